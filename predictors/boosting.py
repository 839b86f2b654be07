"""How the gradient-boosted ensembles are fitted: iterations chosen on folds held out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.predictors import targets
from lengthwise.predictors.trees import Trees

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ITERATIONS = 100  # the most that are tried
QUANTILE_ITERATIONS = 60
MANY_ROWS = 10_000
OPTIONS: dict[str, Any] = {
    "learning_rate": 0.08,
    "max_leaf_nodes": 8,
    "l2_regularization": 5.0,
    "early_stopping": False,
}


def boosted(
    columns: Floats, length: Floats, target: targets.AnyTarget, folds: Ints, seed: int
) -> tuple[list[Trees], Floats]:
    """Ensembles for the target fitted to columns (n, c), and held-out raw outputs (n, outputs).

    The first column is a guess, of places for ranks and of the log length otherwise, made without
    the row's own length. Trees start from it: they learn what it leaves, and then, for quantiles,
    one ensemble each what that leaves. Buckets are classified from all columns.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    # on few rows, threads cost more than they bring
    with threadpool_limits(1 if len(length) < MANY_ROWS else None):
        return _boosted(columns, length, target, folds, seed)


def _boosted(
    columns: Floats, length: Floats, target: targets.AnyTarget, folds: Ints, seed: int
) -> tuple[list[Trees], Floats]:
    if isinstance(target, targets.Quantile):
        centre, middle = _regression(columns, np.log(length), folds, seed)
        left = np.log(length) - middle
        fits = [_quantile(columns, left, level, folds, seed) for level in target.levels]
        unseen = np.stack([middle + far for _, far in fits], axis=1)
        return [centre, *(trees for trees, _ in fits)], unseen
    if isinstance(target, targets.Bucket):
        trees, unseen = _buckets(columns, target.labels(length), target.outputs, folds, seed)
        return [trees], unseen
    labels = targets.regression_labels(target, length)[:, 0]
    trees, held = _regression(columns, labels, folds, seed)
    return [trees], held[:, None]


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


def _regression(columns: Floats, labels: Floats, folds: Ints, seed: int) -> tuple[Trees, Floats]:
    from sklearn.ensemble import HistGradientBoostingRegressor as Regressor

    left = labels - columns[:, 0]
    staged = np.empty((ITERATIONS, len(left)))
    for fold in range(int(folds.max()) + 1):
        out = folds == fold
        model = Regressor(max_iter=ITERATIONS, random_state=seed, **OPTIONS)
        model.fit(columns[~out], left[~out])
        staged[:, out] = list(model.staged_predict(columns[out]))
    best = int(((staged - left) ** 2).mean(axis=1).argmin())
    model = Regressor(max_iter=best + 1, random_state=seed, **OPTIONS).fit(columns, left)
    return Trees.of(model), columns[:, 0] + staged[best]


def _buckets(
    columns: Floats, labels: Ints, buckets: int, folds: Ints, seed: int
) -> tuple[Trees, Floats]:
    from sklearn.ensemble import HistGradientBoostingClassifier as Classifier

    staged = np.zeros((ITERATIONS, len(labels), buckets))
    for fold in range(int(folds.max()) + 1):
        out = folds == fold
        if len(np.unique(labels[~out])) < 2:
            staged[:, out, labels[~out][0]] = 1.0
            continue
        model = Classifier(max_iter=ITERATIONS, random_state=seed, **OPTIONS)
        model.fit(columns[~out], labels[~out])
        # a fold may lack a rare bucket, which then has no probability
        staged[np.ix_(np.arange(ITERATIONS), np.flatnonzero(out), model.classes_)] = list(
            model.staged_predict_proba(columns[out])
        )
    right = staged[:, np.arange(len(labels)), labels]  # (iterations, n)
    best = int(np.log(np.maximum(right, 1e-4)).mean(axis=1).argmax())
    model = Classifier(max_iter=best + 1, random_state=seed, **OPTIONS).fit(columns, labels)
    return Trees.of(model), staged[best]


def _quantile(
    columns: Floats, labels: Floats, level: float, folds: Ints, seed: int
) -> tuple[Trees, Floats]:
    from sklearn.ensemble import HistGradientBoostingRegressor as Regressor

    options = {**OPTIONS, "max_iter": QUANTILE_ITERATIONS, "random_state": seed}
    unseen = np.empty(len(labels))
    for part in (0, 1):  # two folds are enough to calibrate, and every level is fitted again
        out = folds % 2 == part
        model = Regressor(loss="quantile", quantile=level, **options)
        unseen[out] = model.fit(columns[~out], labels[~out]).predict(columns[out])
    model = Regressor(loss="quantile", quantile=level, **options).fit(columns, labels)
    return Trees.of(model), unseen
