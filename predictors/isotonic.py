"""Isotonic regression: from scores that only order to tokens.

Pool adjacent violators (Barlow et al., "Statistical Inference under Order Restrictions", 1972).
Between the pooled blocks the curve is interpolated, so that it keeps the order of scores within
the range of the blocks' centres; beyond them it goes on with the end's slope.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Isotonic:
    """A rising curve through ``knots`` (score, ascending) and ``values`` (tokens), each (k,)."""

    knots: Floats
    values: Floats
    low: float  # tokens: what extrapolation may not leave
    high: float

    @classmethod
    def fit(cls, scores: Floats, tokens: Floats) -> Isotonic:
        """The rising step function nearest to ``tokens`` (n,) in least squares, then joined."""
        levels, centres = pooled(scores, tokens)
        return cls(centres, levels, float(tokens.min()), float(tokens.max()))

    def scaled(self, level: float, slope: float) -> Isotonic:
        """The same curve, the logarithm of its tokens times ``slope`` plus ``level``."""
        values = np.exp(level + slope * np.log(np.maximum(self.values, 1.0)))
        low, high = np.exp(level + slope * np.log(np.maximum([self.low, self.high], 1.0))).tolist()
        return Isotonic(self.knots, values, low, high)

    def __call__(self, scores: Floats) -> Floats:
        """Tokens for scores, both (n,)."""
        inside = np.interp(scores, self.knots, self.values)
        if len(self.knots) < 2:
            return inside
        first, last = (np.diff(self.values) / np.diff(self.knots))[[0, -1]]
        below = np.minimum(scores - self.knots[0], 0) * first
        above = np.maximum(scores - self.knots[-1], 0) * last
        return np.asarray(np.clip(inside + below + above, self.low, self.high))


def pooled(scores: Floats, values: Floats) -> tuple[Floats, Floats]:
    """The blocks of pool adjacent violators: mean value and mean score of each, ascending."""
    order = np.argsort(scores, kind="stable")
    # equal scores are one point: their mean, with their number as weight
    points, first, weights = np.unique(scores[order], return_index=True, return_counts=True)
    means = np.add.reduceat(values[order], first) / weights
    blocks: list[tuple[float, float, float]] = []  # (sum of weights, mean value, mean score)
    for point, mean, weight in zip(points, means, weights, strict=True):
        block = (float(weight), float(mean), float(point))
        while blocks and blocks[-1][1] >= block[1]:
            w, m, p = blocks.pop()
            total = w + block[0]
            block = (total, (w * m + block[0] * block[1]) / total,
                     (w * p + block[0] * block[2]) / total)  # fmt: skip
        blocks.append(block)
    _, level, centre = (np.array(column) for column in zip(*blocks, strict=True))
    return level, centre
