"""Means over seeds with intervals, paired differences and ratios."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lengthwise.errors import InputError


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval; ``low`` and ``high`` are NaN for one value alone."""

    mean: float
    low: float
    high: float
    count: int

    @property
    def half(self) -> float:
        """Half the interval's width: what stands behind the ± sign."""
        return (self.high - self.low) / 2

    def contains(self, value: float) -> bool:
        """Whether ``value`` lies inside the interval."""
        return self.low <= value <= self.high


def t_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Student's t-interval of the mean of independent replications (one value a seed)."""
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not len(x):
        raise InputError(f"an interval needs a row of values, not shape {x.shape}")
    if len(x) == 1:
        return Interval(float(x[0]), float("nan"), float("nan"), 1)
    from scipy.special import stdtrit  # t's quantile without scipy.stats' half second of import

    half = stdtrit(len(x) - 1, 0.5 + confidence / 2) * x.std(ddof=1) / np.sqrt(len(x))
    return Interval(float(x.mean()), float(x.mean() - half), float(x.mean() + half), len(x))


def paired_difference(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> Interval:
    """The mean of a - b with its t-interval; entry i of both ran on the same random numbers."""
    return t_interval(np.subtract(*_pair(a, b)), confidence)


def paired_ratio(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> Interval:
    """The geometric mean of a / b with its interval: a t-interval of the paired log-ratios."""
    x, y = _pair(a, b)
    if (x <= 0).any() or (y <= 0).any():
        raise InputError("a ratio needs positive values")
    log = t_interval(np.log(x / y), confidence)
    mean, low, high = np.exp([log.mean, log.low, log.high]).tolist()
    return Interval(mean, low, high, log.count)


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[Any, Any]:
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape:
        raise InputError(f"pairs need as many values on both sides, not {x.shape} and {y.shape}")
    return x, y
