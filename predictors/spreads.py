"""Learns a ``Spread`` from rows that the model did not see: a few numbers, pooled over all of them.

The survival of a length, given its prediction, is that of the ratio of the two, and so its hazard
at any number of generated tokens. Far above what was predicted, where few rows are, the log ratio
goes on exponentially, with the mean excess of the largest ones (Hill, Annals of Statistics 1975).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.spread import TAIL_MASS, Floats, Spread, tail_ratios

LEVELS = np.array(
    [0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.96, 0.98, 0.99]
)
CELLS = 8  # in each bucket
TOP, FEWEST, LARGEST_TAIL = 0.01, 20, 0.5  # rows that a tail is learned from; what it may reach
ARRAYS = ("spread.cuts", "spread.mass", "spread.ends")


def of_ratios(
    predicted: Floats, tokens: Floats, longest: float, *, conformal: bool = False
) -> Spread:
    """Lengths ``tokens`` (n,) around what was predicted of them, (n,).

    ``conformal``: quantiles at (n + 1) times the level, as one more row would have it, which for
    few rows lie farther out.
    """
    logs = np.log(tokens / predicted)
    tail = _tail(logs)
    cuts = np.exp(np.quantile(logs, LEVELS, method="weibull" if conformal else "linear"))
    return Spread(
        np.concatenate((cuts, cuts[-1] * tail_ratios(tail)[1:])),
        np.concatenate((np.diff(LEVELS), (1 - LEVELS[-1]) * TAIL_MASS)),
        longest,
        tail,
    )


def of_buckets(edges: Floats, labels: NDArray[np.int64], tokens: Floats) -> Spread:
    """Lengths (n,) within the buckets ``labels`` (n,); none of them may be empty."""
    at = np.linspace(0, 1, CELLS + 1)
    cuts = np.stack([np.quantile(tokens[labels == k], at) for k in range(len(edges) - 1)])
    cuts[:, 0] = np.clip(cuts[:, 0] - 1, edges[:-1], None)  # as lengths are whole
    shares, tail = np.full(CELLS, 1 / CELLS), _tail(np.log(tokens))
    return Spread(cuts, shares, float(edges[-1]), tail)


def of_quantiles(quantiles: Floats, tokens: Floats) -> Spread:
    """Lengths (n,) above the last of their quantiles, (n, levels).

    Where too few are above it the tail is that above an earlier one.
    """
    above = np.log(tokens)[:, None] - np.log(quantiles)
    counts = (above > 0).sum(axis=0)
    enough = np.flatnonzero(counts >= FEWEST)
    excess = above[:, enough[-1] if len(enough) else 0]
    excess = excess[excess > 0]
    tail = float(np.clip(excess.mean(), 0.0, LARGEST_TAIL)) if len(excess) else 0.0
    return Spread(tail_ratios(tail), TAIL_MASS, float(tokens.max()), tail)


def arrays(spread: Spread | None) -> dict[str, NDArray[Any]]:
    """What ``restored`` needs, under the names it is saved by."""
    if spread is None:
        return {}
    ends = np.array([spread.longest, spread.tail])
    return dict(zip(ARRAYS, (spread.cuts, spread.mass, ends), strict=True))


def restored(found: Mapping[str, NDArray[Any]]) -> Spread | None:
    """The spread in saved arrays; None of a predictor that was saved before there was one."""
    if not set(ARRAYS) <= set(found):
        return None
    cuts, mass, ends = (found[name] for name in ARRAYS)
    longest, tail = (float(value) for value in ends)
    return Spread(cuts, mass, longest, tail)


def _tail(logs: Floats) -> float:
    """The mean excess of the largest of these over the one below them."""
    count = min(max(FEWEST, round(TOP * len(logs))), len(logs) - 1)
    largest = np.sort(logs)[-count - 1 :]
    return float(np.clip((largest[1:] - largest[0]).mean(), 0.0, LARGEST_TAIL))
