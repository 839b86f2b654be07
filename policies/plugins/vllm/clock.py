"""The time in an engine: a clock that never jumps, on whose scale arrivals are put."""

from __future__ import annotations

import time
from collections.abc import Callable

JUMP_S = 1.0  # the wall clock moved against the other by more: it was set
ON_THE_WAY_S = 60.0  # a request is not older than that when the scheduler gets it


class Clock:
    """Seconds since it was made.

    vLLM stamps arrivals with the wall clock, which may be set while the server runs; waiting is
    measured with the monotonic one.
    """

    def __init__(
        self,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._monotonic, self._wall = monotonic, wall
        self._origin_s = monotonic()
        self._ahead_s = wall() - self._origin_s  # of the wall clock

    def follow(self, clock: Callable[[], float]) -> None:
        """From now on it is ``clock`` that tells the time, in seconds: for simulation."""
        self._monotonic = self._wall = clock
        self._origin_s, self._ahead_s = clock(), 0.0

    def now_s(self) -> float:
        """The time."""
        return self._monotonic() - self._origin_s

    def arrival_s(self, stamped_s: float) -> float:
        """When a request arrived that the wall clock stamped, and that is here now."""
        monotonic_s = self._monotonic()
        now_s = monotonic_s - self._origin_s
        ahead_s = self._wall() - monotonic_s
        if abs(ahead_s - self._ahead_s) > JUMP_S:
            self._ahead_s = ahead_s
            return now_s  # stamped before the clock was set, or after: it came just now
        arrived_s = stamped_s - self._ahead_s - self._origin_s
        return min(max(now_s - ON_THE_WAY_S, arrived_s), now_s)  # NaN is as old as can be
