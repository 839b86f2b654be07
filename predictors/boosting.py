"""How the gradient-boosted ensembles are fitted: iterations chosen on folds held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.predictors import targets
from lengthwise.predictors.trees import Trees

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ITERATIONS = 100  # the most that are tried
QUANTILE_ITERATIONS = 60
MANY_ROWS = 10_000  # from here on two folds are enough, and so are fewer bins
MOST_ROWS = 40_000  # that buckets and quantiles are boosted on: drawn at random from more
OPTIONS: dict[str, Any] = {
    "learning_rate": 0.08,
    "max_leaf_nodes": 8,
    "l2_regularization": 5.0,
    "early_stopping": False,
}
OPTIONS_OF_MANY = OPTIONS | {"max_bins": 63}


@dataclass(frozen=True)
class Rowwise:
    """What ensembles are fitted to: n rows.

    The first column is a guess, of places for ranks and of the log length otherwise, made without
    the row's own length. ``values`` are lengths for buckets and quantiles, else labels.
    """

    columns: Floats  # (n, c)
    values: Floats  # (n,)
    folds: Ints  # (n,)
    weights: Floats | None = None  # (n,); None where all are the same

    def part(self, mask: Any) -> tuple[Floats, Floats | None]:
        """Columns and weights of some of the rows."""
        return self.columns[mask], None if self.weights is None else self.weights[mask]

    @property
    def many(self) -> bool:
        """Whether there are so many rows that less care will do."""
        return len(self.values) > MANY_ROWS

    @property
    def parts(self) -> Ints:
        """Which fold holds each row out, (n,): one of five, or of two where rows are many."""
        return self.folds % 2 if self.many else self.folds

    @property
    def options(self) -> dict[str, Any]:
        """How to boost."""
        return OPTIONS_OF_MANY if self.many else OPTIONS


def boosted(
    data: Rowwise, target: targets.AnyTarget, seed: int
) -> tuple[list[Trees], Floats, Ints]:
    """Ensembles for the target fitted to n rows, and held-out raw outputs (m, outputs) of m rows.

    Trees start from the guess: they learn what it leaves, and then, for quantiles,
    one ensemble each what that leaves. Buckets are classified from all columns.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    # threads that wait for one another cost more than they bring, but on very many rows
    with threadpool_limits(1 if len(data.values) <= MOST_ROWS else None):
        return _boosted(data, target, seed)


def _boosted(
    data: Rowwise, target: targets.AnyTarget, seed: int
) -> tuple[list[Trees], Floats, Ints]:
    rows: Ints = np.arange(len(data.values))
    if isinstance(target, targets.Quantile):
        logs = np.log(data.values)
        centre, middle = _regression(data, logs, seed)
        fits = [_quantile(data, logs - middle, level, seed) for level in target.levels]
        unseen = np.stack([middle + far for _, far in fits], axis=1)
        held = np.flatnonzero(data.parts == 1) if data.many else rows
        return [centre, *(trees for trees, _ in fits)], unseen[held], held
    if isinstance(target, targets.Bucket):
        trees, unseen = _buckets(data, target.labels(data.values), target.outputs, seed)
        return [trees], unseen, rows
    trees, said = _regression(data, data.values, seed)
    return [trees], said[:, None], rows


def raw_outputs(ensembles: list[Trees], columns: Floats, target: targets.AnyTarget) -> Floats:
    """Raw outputs (n, outputs), as the target reads them."""
    sums = np.concatenate([trees(columns) for trees in ensembles], axis=1)
    if isinstance(target, targets.Bucket):
        return probabilities(sums)
    centre = columns[:, :1] + sums[:, :1]
    more = sums[:, 1:] if isinstance(target, targets.Quantile) else 0.0
    return np.asarray(centre + more)


def probabilities(sums: Floats) -> Floats:
    """Class probabilities from the ensemble's sums, of which two classes share one, (n, k)."""
    if sums.shape[1] == 1:
        sums = np.concatenate((np.zeros_like(sums), sums), axis=1)
    powers = np.exp(sums - sums.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _regression(data: Rowwise, labels: Floats, seed: int) -> tuple[Trees, Floats]:
    from sklearn.ensemble import HistGradientBoostingRegressor as Regressor

    columns, folds = data.columns, data.parts
    left = labels - columns[:, 0]
    staged = np.empty((ITERATIONS, len(left)), dtype=np.float32 if data.many else None)
    for fold in range(int(folds.max()) + 1):
        out = folds == fold
        model = Regressor(max_iter=ITERATIONS, random_state=seed, **data.options)
        seen, weights = data.part(~out)
        model.fit(seen, left[~out], sample_weight=weights)
        at = np.flatnonzero(out)
        for k, said in enumerate(model.staged_predict(columns[out])):
            staged[k, at] = said
    errors = [float(np.average((said - left) ** 2, weights=data.weights)) for said in staged]
    best = int(np.argmin(errors))
    model = Regressor(max_iter=best + 1, random_state=seed, **data.options)
    model.fit(columns, left, sample_weight=data.weights)
    return Trees.of(model), columns[:, 0] + staged[best]


def _buckets(data: Rowwise, labels: Ints, buckets: int, seed: int) -> tuple[Trees, Floats]:
    from sklearn.ensemble import HistGradientBoostingClassifier as Classifier

    columns, folds = data.columns, data.parts
    staged = np.zeros((ITERATIONS, len(labels), buckets), dtype=np.float32 if data.many else None)
    for fold in range(int(folds.max()) + 1):
        out = folds == fold
        if len(np.unique(labels[~out])) < 2:
            staged[:, out, labels[~out][0]] = 1.0
            continue
        model = Classifier(max_iter=ITERATIONS, random_state=seed, **data.options)
        seen, weights = data.part(~out)
        model.fit(seen, labels[~out], sample_weight=weights)
        at = np.ix_(np.flatnonzero(out), model.classes_)
        # a fold may lack a rare bucket, which then has no probability
        for k, said in enumerate(model.staged_predict_proba(columns[out])):
            staged[k][at] = said
    rows = np.arange(len(labels))
    right = [
        np.average(np.log(np.maximum(said[rows, labels], 1e-4)), weights=data.weights)
        for said in staged
    ]
    best = int(np.argmax(right))
    model = Classifier(max_iter=best + 1, random_state=seed, **data.options)
    model.fit(columns, labels, sample_weight=data.weights)
    return Trees.of(model), staged[best].astype(np.float64)


def _quantile(data: Rowwise, labels: Floats, level: float, seed: int) -> tuple[Trees, Floats]:
    from sklearn.ensemble import HistGradientBoostingRegressor as Regressor

    options = {**data.options, "max_iter": QUANTILE_ITERATIONS, "random_state": seed}
    if data.many:  # the rows that calibrate need not teach as well
        model = Regressor(loss="quantile", quantile=level, **options)
        seen, weights = data.part(data.parts == 0)
        model.fit(seen, labels[data.parts == 0], sample_weight=weights)
        return Trees.of(model), model.predict(data.columns)
    unseen = np.empty(len(labels))
    for part in (0, 1):  # two folds are enough to calibrate, and every level is fitted again
        out = data.folds % 2 == part
        model = Regressor(loss="quantile", quantile=level, **options)
        seen, weights = data.part(~out)
        unseen[out] = model.fit(seen, labels[~out], sample_weight=weights).predict(
            data.columns[out]
        )
    model = Regressor(loss="quantile", quantile=level, **options)
    return Trees.of(model.fit(data.columns, labels, sample_weight=data.weights)), unseen
