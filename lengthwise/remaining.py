"""What is still to come of an answer whose length has a distribution, given what was generated.

Lengths of n requests are mixtures of J pieces, ascending along the row: piece j has probability
``mass`` (n, J) and is uniform from ``low`` to ``high`` (n, J), or one length where these are equal.
All functions condition on the length exceeding ``done`` (n,), and leave 1 token, the least that a
running request still owes, of a length that was outlived.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pieces:
    """Distributions of n lengths; ``low`` and ``high`` may be (1, J), shared by all."""

    low: Floats
    high: Floats
    mass: Floats

    def distinct(self) -> tuple[Pieces, NDArray[np.int32]]:
        """Those that differ, and which of them each request has, (n,)."""
        parts = [part for part in (self.low, self.high, self.mass) if len(part) > 1]
        if not parts:
            return self, np.zeros(len(self.mass), np.int32)
        rows = np.ascontiguousarray(np.concatenate(parts, axis=1))
        keys = rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1])))[:, 0]
        _, first, row = np.unique(keys, return_index=True, return_inverse=True)

        def pick(part: Floats) -> Floats:
            return part[first] if len(part) > 1 else part

        return Pieces(pick(self.low), pick(self.high), pick(self.mass)), row.astype(np.int32)

    def left(self, done: Floats) -> tuple[Floats, Floats, Floats]:
        """From where to where pieces still reach beyond ``done``, and their mass, (n, J) each."""
        at = done[:, None]
        low, high = np.maximum(self.low - at, 0.0), np.maximum(self.high - at, 0.0)
        width = self.high - self.low
        share = np.where(width > 0, (high - low) / np.where(width > 0, width, 1.0), self.low > at)
        return low, high, self.mass * share


def expected(pieces: Pieces, done: Floats) -> Floats:
    """Expected tokens still to come, (n,)."""
    low, high, mass = pieces.left(done)
    total = mass.sum(axis=1)
    ahead = ((low + high) / 2 * mass).sum(axis=1)
    return np.asarray(np.maximum(ahead / np.where(total > 0, total, 1.0), 1.0))


def quantile(pieces: Pieces, done: Floats, level: float) -> Floats:
    """The tokens still to come that are not exceeded with probability ``level``, (n,)."""
    low, high, mass = pieces.left(done)
    reached = np.cumsum(mass, axis=1)
    wanted = level * reached[:, -1]
    piece = np.argmax(reached >= wanted[:, None], axis=1)[:, None]
    of = np.take_along_axis
    missing = of(reached, piece, 1) - wanted[:, None]
    share = of(mass, piece, 1)
    back = missing / np.where(share > 0, share, 1.0) * (of(high, piece, 1) - of(low, piece, 1))
    return np.asarray(np.maximum((of(high, piece, 1) - back)[:, 0], 1.0))


def gittins(pieces: Pieces, done: Floats) -> Floats:
    """The Gittins index as tokens, lowest first, (n,): min over d of E[min(X, d)] / P(X <= d).

    X is what is still to come. Within a uniform piece the hazard rises, so that the best d is some
    piece's end. (Scully, Harchol-Balter, Scheller-Wolf, "SOAP", SIGMETRICS 2018, section 3.)
    """
    low, high, mass = pieces.left(done)
    reached = np.cumsum(mass, axis=1)
    spent = np.cumsum((low + high) / 2 * mass, axis=1) + (reached[:, -1:] - reached) * high
    index = np.where(reached > 0, spent, np.inf) / np.where(reached > 0, reached, 1.0)
    best = index.min(axis=1)
    return np.maximum(np.where(np.isfinite(best), best, 1.0), 1.0)
