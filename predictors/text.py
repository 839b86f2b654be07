"""Predictors on the text's own features: linear (ridge) and gradient-boosted trees.

scikit-learn fits them; what was learned is kept as arrays and evaluated by numpy alone. Ridge is
Hoerl's and Kennard's (Technometrics, 1970), boosting Friedman's (Annals of Statistics, 2001) on
histograms (LightGBM: Ke et al., NeurIPS 2017).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.prediction import Floats
from lengthwise.predictors import targets
from lengthwise.predictors.boosting import MOST_ROWS, Rowwise, boosted, raw_outputs
from lengthwise.predictors.features import SHAPE, VERSION, Rows, TextFeatures
from lengthwise.predictors.learned import Learned, folds_of
from lengthwise.predictors.trees import Trees

ALPHAS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
COMPONENTS = 48  # of the TF-IDF columns, for trees
MANY = 20_000  # distinct prompts that are enough to choose a penalty and components by


@dataclass(frozen=True)
class Design:
    """Training prompts as rows, and the folds that hold some of them out.

    Prompts that come several times, with several answers, are one row, with the mean of their
    labels and the sum of their weights: what least squares makes of them is the same.
    """

    features: TextFeatures
    rows: Rows  # of each distinct prompt
    folds: NDArray[np.int64]  # (n,) of each prompt as given
    row: NDArray[np.int64]  # (n,) where its distinct prompt is
    first: NDArray[np.int64]  # (rows,) where each distinct prompt comes first
    given: Floats  # (n,) weights
    weights: Floats | None  # (rows,) of the rows; None where all are the same

    @classmethod
    def of(cls, prompts: Sequence[str], seed: int, weights: Floats | None = None) -> Design:
        """Features fitted to the prompts, which are rows of them; ``weights`` (n,)."""
        places: dict[str, int] = {}
        row = np.array([places.setdefault(prompt, len(places)) for prompt in prompts])
        first = np.unique(row, return_index=True)[1]
        given = np.ones(len(row)) if weights is None else weights
        sums = np.bincount(row, given)
        even = bool((sums == sums[0]).all())
        distinct = list(places)
        features = TextFeatures.fit(distinct)
        return cls(
            features, features.rows(distinct), folds_of(prompts, seed), row, first, given,
            None if even else sums / sums.mean(),
        )  # fmt: skip

    @property
    def matrix(self) -> Any:
        """The rows as scipy's sparse matrix, for fitting."""
        from scipy.sparse import csr_matrix

        return csr_matrix(
            (self.rows.values, self.rows.columns, self.rows.starts),
            shape=(len(self.rows), self.rows.width),
        )

    def mean(self, labels: Floats) -> Floats:
        """Labels (n, k) as those of the rows, (rows, k)."""
        if len(self.rows) == len(labels):
            return labels
        sums = [np.bincount(self.row, self.given * column) for column in labels.T]
        weight = np.maximum(np.bincount(self.row, self.given), 1e-12)
        return np.stack(sums, axis=1) / weight[:, None]

    def solve(self, labels: Floats, alpha: float) -> tuple[Floats, Floats]:
        """A ridge on all rows, for labels (n, k): weights (width, k), intercept (k,)."""
        return solve(self.matrix, self.mean(labels), alpha, self.weights)

    def held_out(self, labels: Floats, alpha: float) -> Floats:
        """For each prompt, what a ridge fitted to the other folds says; like ``labels`` (n, k)."""
        matrix, means, folds = self.matrix, self.mean(labels), self.folds[self.first]
        out = np.empty_like(means)
        for fold in range(int(self.folds.max()) + 1):
            unseen = folds == fold
            heavy = None if self.weights is None else self.weights[~unseen]
            weights, intercept = solve(matrix[~unseen], means[~unseen], alpha, heavy)
            out[unseen] = matrix[unseen] @ weights + intercept
        return out[self.row]

    def best_alpha(self, labels: Floats) -> tuple[float, Floats]:
        """The penalty with the least held-out squared error, and its held-out outputs."""
        if len(self.rows) > MANY:
            best = self._alpha_of_some(labels)
            return best, self.held_out(labels, best)
        tried = {alpha: self.held_out(labels, alpha) for alpha in ALPHAS}
        heavy = self.given[:, None]
        errors = {
            alpha: float((heavy * (said - labels) ** 2).sum()) for alpha, said in tried.items()
        }
        best = min(errors, key=errors.__getitem__)
        return best, tried[best]

    def some(self) -> NDArray[np.int64]:
        """``MANY`` of the rows, drawn at random; all where they are fewer."""
        return np.sort(np.random.default_rng(0).permutation(len(self.rows))[:MANY])

    def _alpha_of_some(self, labels: Floats) -> float:
        """The penalty with the least squared error on one fold of ``some`` rows."""
        some = self.some()
        matrix, means, out = (
            self.matrix[some],
            self.mean(labels)[some],
            self.folds[self.first][some] == 0,
        )
        heavy = np.ones(len(some)) if self.weights is None else self.weights[some]
        errors = {}
        for alpha in ALPHAS:
            weights, intercept = solve(matrix[~out], means[~out], alpha, heavy[~out])
            far = matrix[out] @ weights + intercept - means[out]
            errors[alpha] = float((heavy[out, None] * far**2).sum())
        return min(errors, key=errors.__getitem__)

    def held_out_mean(self, labels: Floats) -> Floats:
        """Held-out outputs for one label a prompt, (n,), at a middling penalty."""
        return self.held_out(labels[:, None], 3.0)[:, 0]


def solve(
    matrix: Any, labels: Floats, alpha: float, heavy: Floats | None = None
) -> tuple[Floats, Floats]:
    """Ridge regression with an unpenalised intercept: weights (width, k), intercept (k,)."""
    from sklearn.linear_model import Ridge as Solver
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    if len(labels) <= MANY:
        solver = Solver(alpha=alpha, solver="sparse_cg", tol=1e-6)
        solver.fit(matrix, labels, sample_weight=heavy)
    else:
        solver = Solver(alpha=alpha, solver="sparse_cg", tol=1e-4)
        with threadpool_limits(1):  # sparse products take one thread, and others wait busily
            solver.fit(matrix, labels, sample_weight=heavy)
    k = labels.shape[1]
    return np.ascontiguousarray(solver.coef_.reshape(k, -1).T), np.reshape(solver.intercept_, k)


class Ridge(Learned):
    """Ridge regression on TF-IDF and shape; ``alpha`` is chosen by cross-validation unless given.

    Buckets are learned as P(longer than the edge) for each inner edge, ranks as places among the
    training lengths, quantiles as the mean log length shifted by held-out residuals.
    """

    name = "ridge"
    weighs = True

    def __init__(
        self,
        target: str = "exact",
        *,
        buckets: int | Sequence[float] | None = None,
        levels: Sequence[float] = targets.LEVELS,
        seed: int = 0,
        alpha: float | None = None,
    ) -> None:
        super().__init__(target, buckets=buckets, levels=levels, seed=seed)
        number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
        if alpha is not None and not (number and 0 <= alpha < float("inf")):
            raise InputError(f"alpha must be a number of 0 or more, not {alpha!r}")
        self.alpha = alpha

    def _learn(
        self, prompts: list[str], length: Floats, target: targets.AnyTarget
    ) -> tuple[Floats, NDArray[np.int64]]:
        design = Design.of(prompts, self.seed, self._row_weights)
        labels = targets.regression_labels(target, length)
        if self.alpha is None:
            alpha, unseen = design.best_alpha(labels)
        else:
            alpha, unseen = self.alpha, design.held_out(labels, self.alpha)
        self.features_ = design.features
        self.weights_, self.intercept_ = design.solve(labels, alpha)
        return targets.from_regression(target, unseen), np.arange(len(prompts))

    def _raw(self, prompts: list[str]) -> Floats:
        linear = self.features_.rows(prompts).dot(self.weights_) + self.intercept_
        return targets.from_regression(self._fitted(), linear)

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "alpha": self.alpha}

    def _state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        arrays = {"weights": self.weights_, "intercept": self.intercept_}
        return feature_state(self.features_), arrays | feature_arrays(self.features_)

    def _restore(
        self, state: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], path: Path
    ) -> None:
        self.features_ = restored_features(state, arrays)
        self.weights_, self.intercept_ = restored_weights(self.features_, arrays)


class GBDT(Learned):
    """Gradient-boosted trees that start from a ridge's guess.

    They see it, the text's main TF-IDF components and its shape. The guess that they are trained on
    is held out, so that they learn how far to trust it.
    """

    name = "gbdt"
    weighs = True

    def _learn(
        self, prompts: list[str], length: Floats, target: targets.AnyTarget
    ) -> tuple[Floats, NDArray[np.int64]]:
        design = Design.of(prompts, self.seed, self._row_weights)
        labels = targets.regression_labels(target, length)
        if isinstance(target, targets.Bucket):  # classified; the guess is one column for it
            labels = np.log(length)[:, None]
        alpha, guess = design.best_alpha(labels)
        weights, intercept = design.solve(labels, alpha)
        self.features_ = design.features
        self.weights_ = np.concatenate((weights, self._components(design)), axis=1)
        self.intercept_ = intercept
        rows = np.arange(len(prompts))
        if isinstance(target, targets.Exact | targets.Rank):  # one label a prompt says it all
            columns = self._columns(design.rows)
            columns[:, 0] = guess[design.first, 0]
            data = Rowwise(columns, design.mean(labels)[:, 0], design.folds[design.first],
                           design.weights)  # fmt: skip
            self.ensembles_, unseen, _ = boosted(data, target, self.seed)
            return unseen[design.row], rows
        heavy = None if design.weights is None else self._row_weights
        if len(rows) > MOST_ROWS:
            rows = np.sort(np.random.default_rng(self.seed).permutation(rows)[:MOST_ROWS])
        used, place = np.unique(design.row[rows], return_inverse=True)
        columns = self._columns(design.rows.select(used))
        columns[:, 0] = guess[design.first[used], 0]
        data = Rowwise(columns[place], length[rows], design.folds[rows],
                       None if heavy is None else heavy[rows])  # fmt: skip
        self.ensembles_, unseen, held = boosted(data, target, self.seed)
        return unseen, rows[held]

    def _raw(self, prompts: list[str]) -> Floats:
        columns = self._columns(self.features_.rows(prompts))
        return raw_outputs(self.ensembles_, columns, self._fitted())

    def _components(self, design: Design) -> Floats:
        """The main directions of the TF-IDF columns, (width, components), none for few terms."""
        from sklearn.decomposition import TruncatedSVD

        terms, width = len(design.features.terms), design.rows.width
        components = min(COMPONENTS, terms - 1, len(design.rows) - 1)
        out = np.zeros((width, max(components, 0)))
        if components > 0:
            svd = TruncatedSVD(components, random_state=self.seed)
            out[:terms] = svd.fit(design.matrix[design.some(), :terms]).components_.T
        return out

    def _columns(self, rows: Rows) -> Floats:
        """What the trees see, (n, 1 + components + SHAPE): the guess first."""
        columns = rows.dot(self.weights_)
        columns[:, 0] += self.intercept_[0]
        shape = rows.values[rows.starts[1:, None] + np.arange(-len(SHAPE), 0)]
        return np.concatenate((columns, shape), axis=1)

    def _state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        arrays = {"weights": self.weights_, "intercept": self.intercept_}
        for k, trees in enumerate(self.ensembles_):
            arrays |= trees.arrays(f"trees.{k}")
        state = feature_state(self.features_) | {"ensembles": len(self.ensembles_)}
        return state, arrays | feature_arrays(self.features_)

    def _restore(
        self, state: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], path: Path
    ) -> None:
        self.features_ = restored_features(state, arrays)
        self.weights_, self.intercept_ = restored_weights(self.features_, arrays)
        columns = self.weights_.shape[1] + len(SHAPE)
        self.ensembles_ = [
            Trees.restored(f"trees.{k}", arrays, columns) for k in range(state["ensembles"])
        ]


def feature_arrays(features: TextFeatures) -> dict[str, NDArray[Any]]:
    """The features' numbers, under the names they are saved by."""
    return {
        "features.idf": features.idf,
        "features.shift": features.shift,
        "features.scale": features.scale,
    }


def feature_state(features: TextFeatures) -> dict[str, Any]:
    """What JSON holds of the features."""
    return {"terms": list(features.terms), "features": features.version}


def restored_features(state: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> TextFeatures:
    """The features that were saved; those of before they had a version are of the first."""
    version = state.get("features", 1)
    if version not in range(1, VERSION + 1):
        raise ValueError(f"text features of version {version!r}; this one reads up to {VERSION}")
    terms = tuple(state["terms"])
    idf, shift, scale = (arrays[f"features.{name}"] for name in ("idf", "shift", "scale"))
    lengths = (len(terms), len(SHAPE), len(SHAPE))
    if any(values.shape != (n,) for values, n in zip((idf, shift, scale), lengths, strict=True)):
        raise ValueError("the features are not as many as their terms")
    if not all(isinstance(term, str) for term in terms) or not (scale > 0).all():
        raise ValueError("the features are malformed")
    return TextFeatures(terms, idf, shift, scale, version)


def restored_weights(
    features: TextFeatures, arrays: Mapping[str, NDArray[Any]]
) -> tuple[Floats, Floats]:
    """Weights (width, k) and intercept that were saved, of as many columns as the features have."""
    weights, intercept = arrays["weights"], arrays["intercept"]
    width = len(features.terms) + len(SHAPE)
    if weights.ndim != 2 or len(weights) != width or intercept.ndim != 1:
        raise ValueError(f"weights of shape {weights.shape} for {width} columns")
    return weights, intercept
