"""Whether a predictor still holds: order, coverage and level over the rows of a file, in turn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lengthwise.errors import InputError
from lengthwise.eval.prediction_metrics import kendall_tau
from lengthwise.kendall import tau_error
from lengthwise.prediction import Prediction

WINDOW = 256  # answers: what plugins call recent
MOST = 12  # windows; of a longer file they are longer
LEVEL = 0.9  # of the intervals
SURE = 2.0  # standard errors
FACTOR = 1.1  # of answers to what was predicted: less is no drift worth a word


@dataclass(frozen=True)
class PredictionWindow:
    """What a predictor was worth on some neighbouring rows."""

    first: int  # row of the file's answers, from 0
    rows: int
    kendall_tau: float
    coverage: float | None  # share of answers within ``LEVEL`` intervals; None without intervals
    factor: float  # geometric mean of answers over what was predicted of them
    factor_error: float  # standard error of its logarithm
    abstained: float  # share of the rows that the predictor left in the order of arrival


def windowed(
    prediction: Prediction, output_tokens: ArrayLike, abstained: NDArray[np.bool_] | None = None
) -> list[PredictionWindow]:
    """Windows of at least ``WINDOW`` of n rows, one of all where there are fewer than two.

    ``abstained`` (n,) are the rows that the predictor would leave in their order.
    """
    actual = np.asarray(output_tokens, dtype=np.float64)
    size = max(WINDOW, math.ceil(len(actual) / MOST))
    bounds = [*range(0, len(actual) - size + 1, size), len(actual)]
    bounds = bounds if len(bounds) > 1 else [0, len(actual)]
    return [
        window_of(
            prediction.select(slice(first, last)), actual[first:last],
            None if abstained is None else abstained[first:last], first,
        )
        for first, last in pairwise(bounds)
    ]  # fmt: skip


def window_of(
    prediction: Prediction,
    output_tokens: ArrayLike,
    abstained: NDArray[np.bool_] | None = None,
    first: int = 0,
) -> PredictionWindow:
    """One window of n rows."""
    actual = np.asarray(output_tokens, dtype=np.float64)
    logs = np.zeros(len(actual))  # of ranks that were never calibrated nothing else is known
    if prediction.tokens is not None:
        logs = np.log(actual / prediction.predicted_tokens)
    return PredictionWindow(
        first, len(actual), kendall_tau(prediction.order, actual), _coverage(prediction, actual),
        float(np.exp(logs.mean())), float(logs.std() / math.sqrt(len(actual))),
        0.0 if abstained is None else float(abstained.mean()),
    )  # fmt: skip


def verdict(windows: Sequence[PredictionWindow]) -> str:
    """One sentence: whether the predictor holds, and what to do where it does not."""
    last, first = windows[-1], windows[0]
    of = f"the last {last.rows} answers" if len(windows) > 1 else f"{last.rows} answers"
    error = tau_error(last.rows)
    if last.kendall_tau < SURE * error:
        return (
            f"train it anew: over {of} its order was no better than chance "
            f"(τ {last.kendall_tau:.2f} ± {SURE * error:.2f})"
        )
    order = f"its order holds (τ {last.kendall_tau:.2f} ± {SURE * error:.2f})"
    fell = first.kendall_tau - last.kendall_tau
    if fell > SURE * math.hypot(error, tau_error(first.rows)):
        order = f"its order has weakened from τ {first.kendall_tau:.2f} to {last.kendall_tau:.2f}"
    faults = []
    if last.coverage is not None and abs(last.coverage - LEVEL) > SURE * math.sqrt(
        LEVEL * (1 - LEVEL) / last.rows
    ):
        faults.append(f"{LEVEL:.0%} intervals cover {last.coverage:.0%} of {of}")
    if abs(math.log(last.factor)) > max(SURE * last.factor_error, math.log(FACTOR)) and (
        faults or _moved(first, last)
    ):
        faults.append(f"answers are {last.factor:.2f} times what it predicts")
    if faults:
        return f"recalibrate it: {' and '.join(faults)}; {order}"
    return f"{'it holds' if order.startswith('its order holds') else 'watch it'}: {order}" + (
        ""
        if last.coverage is None
        else f", {LEVEL:.0%} intervals cover {last.coverage:.0%} of {of}"
    )


def _moved(first: PredictionWindow, last: PredictionWindow) -> bool:
    """Whether the level is another one than at the file's beginning, or there is no beginning."""
    if first is last:
        return True
    apart = abs(math.log(last.factor / first.factor))
    return apart > SURE * math.hypot(first.factor_error, last.factor_error)


def _coverage(prediction: Prediction, actual: NDArray[np.float64]) -> float | None:
    try:
        low, high = prediction.interval(LEVEL)
    except InputError:
        return None  # single lengths
    return float(((low <= actual) & (actual <= high)).mean())
