"""Who waits: the time to admission, by where a request's score lies among those of late."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque

from lengthwise.policies.plugins.metrics import QUARTERS, Counters

WINDOW = 1000  # admitted requests whose scores a new one is compared with
EVERY = 100  # admissions between two sortings of them


class Waits:
    """Sorts waits into quarters of the score; those without a score are left out."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._scores: deque[float] = deque(maxlen=WINDOW)
        self._bounds: list[float] = []  # three, once there are scores
        self._admitted = 0

    def admitted(self, score: float, wait_s: float) -> None:
        """A request was admitted for the first time."""
        if math.isnan(score):
            return
        self._scores.append(score)
        if self._admitted % EVERY == 0 or len(self._scores) < EVERY:
            ranked = sorted(self._scores)
            self._bounds = [ranked[len(ranked) * k // 4] for k in (1, 2, 3)]
        self._admitted += 1
        quarter = QUARTERS[bisect_left(self._bounds, score)]
        self._counters.observe("wait_seconds", quarter, max(wait_s, 0.0))
