"""How good predicted lengths are: errors in tokens, order, buckets; pure functions of arrays.

``predicted`` and ``actual`` are lengths in tokens, shape (n,). For the order metrics any increasing
function of the length will do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lengthwise.errors import InputError
from lengthwise.eval.statistics import Interval
from lengthwise.prediction import Prediction

Floats = NDArray[np.float64]
Metric = Callable[[Floats, Floats], float]


def mae(predicted: Floats, actual: Floats) -> float:
    """Mean absolute error, tokens."""
    return float(np.abs(predicted - actual).mean())


def rmse(predicted: Floats, actual: Floats) -> float:
    """Root mean squared error, tokens."""
    return float(np.sqrt(((predicted - actual) ** 2).mean()))


def r2_log(predicted: Floats, actual: Floats) -> float:
    """R² of the log length: 1 - residual over total sum of squares; NaN for equal lengths."""
    logs = np.log(actual)
    total = ((logs - logs.mean()) ** 2).sum()
    residual = ((logs - np.log(predicted)) ** 2).sum()
    return float(1 - residual / total) if total > 0 else float("nan")


def within(predicted: Floats, actual: Floats, tokens: float) -> float:
    """Share of predictions at most ``tokens`` off (Zheng et al., NeurIPS 2023: 50 and 100)."""
    return float((np.abs(predicted - actual) <= tokens).mean())


def accuracy(predicted: Floats, actual: Floats) -> float:
    """Share of buckets that are right."""
    return float((predicted == actual).mean())


def kendall_tau(predicted: Floats, actual: Floats) -> float:
    """Kendall's τ_b; 0 where all predictions (or lengths) are equal, which order nothing."""
    from scipy.stats import kendalltau

    if _flat(predicted) or _flat(actual):
        return 0.0
    return float(kendalltau(predicted, actual).statistic)


def spearman(predicted: Floats, actual: Floats) -> float:
    """Spearman's rank correlation; 0 where all predictions (or lengths) are equal."""
    from scipy.stats import rankdata

    if _flat(predicted) or _flat(actual):
        return 0.0
    # scipy's spearmanr, but for the p-value, which takes as long again
    return float(np.corrcoef(rankdata(predicted), rankdata(actual))[0, 1])


def prediction_metrics(
    prediction: Prediction,
    output_tokens: ArrayLike,
    *,
    edges: ArrayLike | None = None,
    groups: Sequence[Any] | None = None,
    resamples: int = 500,
    seed: int = 0,
) -> dict[str, Interval]:
    """All metrics of n predictions, each with its 95% bootstrap interval.

    Uncalibrated ranks have the order metrics alone. Buckets are the prediction's own, else those
    between ``edges``; without either there is no bucket accuracy. ``groups`` (n,) holds what was
    drawn at random, such as the prompt where one has several answers: groups are resampled whole.
    """
    actual = np.asarray(output_tokens, dtype=np.float64)
    if actual.shape != (len(prediction),):
        raise InputError(f"{len(prediction)} predictions, but lengths of shape {actual.shape}")
    if len(actual) < 2 or not (np.isfinite(actual) & (actual >= 1)).all():
        raise InputError("metrics need at least two lengths, each finite and 1 token or more")
    order = prediction.order
    metrics: dict[str, tuple[Metric, Floats, Floats]] = {
        "kendall_tau": (kendall_tau, order, actual),
        "spearman": (spearman, order, actual),
    }
    if prediction.tokens is not None:
        tokens = prediction.predicted_tokens
        metrics |= {
            "mae": (mae, tokens, actual),
            "rmse": (rmse, tokens, actual),
            "r2_log": (r2_log, tokens, actual),
            "within_50": (lambda p, a: within(p, a, 50), tokens, actual),
            "within_100": (lambda p, a: within(p, a, 100), tokens, actual),
        }
    cuts = prediction.edges if prediction.edges is not None else edges
    if cuts is not None and (prediction.bucket is not None or prediction.tokens is not None):
        inner = np.asarray(cuts, dtype=np.float64)[1:-1]
        said = prediction.bucket
        if said is None:
            said = np.searchsorted(inner, prediction.predicted_tokens)
        came = np.searchsorted(inner, actual)
        metrics["bucket_accuracy"] = (accuracy, said.astype(float), came.astype(float))
    draws = _draws(len(actual), groups, resamples, seed)
    return {name: _interval(*columns, draws) for name, columns in metrics.items()}


def _interval(
    metric: Metric, predicted: Floats, actual: Floats, draws: list[NDArray[np.int64]]
) -> Interval:
    """The metric with its percentile interval over the resamples (Efron 1979)."""
    drawn = [metric(predicted[rows], actual[rows]) for rows in draws]
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return Interval(metric(predicted, actual), float(low), float(high), len(actual))


def _draws(
    rows: int, groups: Sequence[Any] | None, resamples: int, seed: int
) -> list[NDArray[np.int64]]:
    """Row numbers of each resample: groups (by default, rows) drawn with replacement."""
    rng = np.random.default_rng(seed)
    if groups is None:
        return [rng.integers(rows, size=rows) for _ in range(resamples)]
    if len(groups) != rows:
        raise InputError(f"groups has {len(groups)} rows, not {rows}")
    first: dict[Any, int] = {}
    code = np.array([first.setdefault(group, len(first)) for group in groups])
    order = np.argsort(code, kind="stable")
    count = np.bincount(code)
    begin = np.cumsum(count) - count  # of each group's rows in ``order``

    def drawn() -> NDArray[np.int64]:
        chosen = rng.integers(len(count), size=len(count))
        many = count[chosen]
        shift = begin[chosen] - (np.cumsum(many) - many)
        return np.asarray(order[np.repeat(shift, many) + np.arange(many.sum())])

    return [drawn() for _ in range(resamples)]


def _flat(values: Floats) -> bool:
    return bool((values == values[0]).all())
