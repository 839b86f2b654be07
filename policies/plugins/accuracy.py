"""How predictions turn out: as metrics of each finished request, and over the last of them."""

from __future__ import annotations

import math
from collections import deque

import numpy as np
from numpy.typing import NDArray

from lengthwise.kendall import tau_error
from lengthwise.policies.plugins.metrics import Counters

WINDOW = 256  # finished requests that "recent" means
EVERY = 50  # finished requests between two looks at the window
FEWEST = 50  # of fewer nothing is said
UNKNOWN = (math.nan, math.nan)  # of an interval
DRIFTED = -2.0  # standard errors of tau below 0 at which an order is worse than none
LEVEL = 0.9  # of the intervals that are counted
MISSED = 0.75  # coverage of them below which that is said


class Accuracy:
    """Predicted beside generated tokens, by who predicted; ``finished`` is cheap and never raises.

    An answer that its limit cut counts as it is: predictions are cut at the same limit. One whose
    client hung up says nothing.
    """

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._recent: dict[str, deque[tuple[float, float]]] = {}
        self._within: dict[str, deque[bool]] = {}  # whether the length lay in its interval
        self._drifted: set[str] = set()
        self._seen = 0

    def drifted(self, source: str) -> bool:
        """Whether what ``source`` says has lately ordered requests the wrong way round."""
        return source in self._drifted

    def finished(
        self,
        source: str,
        predicted: float,
        generated: float,
        interval: tuple[float, float] = UNKNOWN,
    ) -> None:
        """A request whose length ``source`` predicted has ended by itself.

        ``interval``: where its length was said to lie with probability ``LEVEL``, NaN if unknown.
        """
        if not (predicted > 0 and generated > 0):
            return
        off = math.log2(generated / predicted)
        self._counters.observe("predicted_tokens", source, predicted)
        self._counters.observe("actual_tokens", source, generated)
        self._counters.observe("error_log2", source, off)
        if interval[0] <= interval[1]:
            low, high = math.floor(interval[0]), math.ceil(interval[1])  # lengths are whole
            within = self._within.setdefault(source, deque(maxlen=WINDOW))
            within.append(low <= generated <= high)
        recent = self._recent.setdefault(source, deque(maxlen=WINDOW))
        recent.append((predicted, float(generated)))
        self._seen += 1
        if len(recent) >= FEWEST and self._seen % EVERY == 0:
            pairs = np.array(recent)
            tau = kendall_tau(pairs[:, 0], pairs[:, 1])
            self._counters.set("recent_tau", source, tau)
            if source == "predictor":  # clients are believed, or are not
                self._follow(source, tau, len(pairs))
            ratio = np.log2(pairs[:, 1] / pairs[:, 0])
            self._counters.set("recent_log2", source, float(ratio.mean()))
            self._cover(source)

    def _follow(self, source: str, tau: float, pairs: int) -> None:
        if tau < DRIFTED * tau_error(pairs):
            self._drifted.add(source)
            self._counters.warn(
                "drift",
                f"the {source} ordered the last {pairs} finished requests the "
                f"wrong way round (tau {tau:.2f}): nobody is ordered by them until tau is above 0",
            )
        elif tau > 0:
            self._drifted.discard(source)
        self._counters.set("followed", source, float(source not in self._drifted))

    def _cover(self, source: str) -> None:
        within = self._within.get(source, ())
        if len(within) < FEWEST:
            return
        coverage = sum(within) / len(within)
        self._counters.set("recent_coverage", source, coverage)
        if coverage < MISSED:
            self._counters.warn(
                "coverage",
                f"{coverage:.0%} of the last {len(within)} answers were as long as the {source}'s "
                f"{LEVEL:.0%} intervals say: train it, or recalibrate it, on what is served now",
            )


def kendall_tau(left: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    """Tau-b of n pairs, in n² operations, 0.5 ms for 256 of them; 0 where one side is constant."""
    upper = np.triu_indices(len(left), 1)
    a = np.sign(left[:, None] - left)[upper]
    b = np.sign(right[:, None] - right)[upper]
    scale = math.sqrt(float((a * a).sum()) * float((b * b).sum()))
    return float((a * b).sum()) / scale if scale else 0.0
