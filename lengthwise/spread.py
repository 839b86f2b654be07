"""How lengths lie around what was predicted of them: learned where a predictor was calibrated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lengthwise.remaining import Pieces

Floats = NDArray[np.float64]

# Cells of a tail whose excess in log length is exponential: their mass, and how much lies above.
TAIL_MASS = np.array([0.5, 0.3, 0.15, 0.05])
TAIL_ABOVE = np.array([1.0, 0.5, 0.2, 0.05, 0.005])
BEYOND = 1e-9  # the mass of lengths beyond all that were seen: it counts where nothing else is left


def tail_ratios(mean: float) -> Floats:
    """Where the cells of ``TAIL_MASS`` begin and end, (5,), as ratios to where the tail begins.

    ``mean`` is the mean excess of the log length.
    """
    return np.asarray(TAIL_ABOVE**-mean)


@dataclass(frozen=True)
class Spread:
    """Cells of lengths: between ``cuts`` j and j + 1 lies the share ``mass[j]``, uniformly.

    ``cuts`` are ratios to the predicted length (exact lengths and calibrated ranks) or to the last
    quantile, (J + 1,), or tokens within each bucket, (buckets, J + 1). Nothing longer than
    ``longest`` tokens was seen: cells end there. Of whoever outlives even that, the log length
    exceeds that of ``longest`` by ``tail`` in the mean.
    """

    cuts: Floats
    mass: Floats  # (J,), summing to 1
    longest: float
    tail: float

    def around(self, tokens: Floats) -> Pieces:
        """Lengths around predicted ones, (n,)."""
        cuts = tokens[:, None] * self.cuts
        mass = np.broadcast_to(self.mass, (len(tokens), len(self.mass)))
        return self._bounded(cuts[:, :-1], cuts[:, 1:], mass)

    def within(self, probabilities: Floats) -> Pieces:
        """Lengths within buckets that have these probabilities, (n, buckets)."""
        mass = (probabilities[:, :, None] * self.mass).reshape(len(probabilities), -1)
        return self._bounded(
            self.cuts[:, :-1].reshape(1, -1), self.cuts[:, 1:].reshape(1, -1), mass
        )

    def between(self, quantiles: Floats, levels: Floats) -> Pieces:
        """Lengths between quantiles (n, levels), below the first and above the last.

        Below the first they reach, in log length, as far as the second lies above it.
        """
        first = quantiles[:, :1]
        low = np.maximum(first * first / quantiles[:, 1:2], 1.0) if len(levels) > 1 else first / 2
        above = quantiles[:, -1:] * self.cuts[1:]
        cuts = np.concatenate((np.minimum(low, first), quantiles, above), axis=1)
        shares = (levels[:1], np.diff(levels), (1 - levels[-1]) * self.mass)
        mass = np.broadcast_to(np.concatenate(shares), (len(cuts), cuts.shape[1] - 1))
        return self._bounded(cuts[:, :-1], cuts[:, 1:], mass)

    def _bounded(self, low: Floats, high: Floats, mass: Floats) -> Pieces:
        """The same cells, ended at ``longest``, and those of a longer length behind them."""
        ends = self.longest * tail_ratios(self.tail)
        rows = (len(low), len(TAIL_MASS))
        further = np.broadcast_to(BEYOND * TAIL_MASS, (len(mass), len(TAIL_MASS)))
        return Pieces(
            np.concatenate((np.minimum(low, self.longest), np.broadcast_to(ends[:-1], rows)), 1),
            np.concatenate((np.minimum(high, self.longest), np.broadcast_to(ends[1:], rows)), 1),
            np.concatenate(((1 - BEYOND) * mass, further), axis=1),
        )
