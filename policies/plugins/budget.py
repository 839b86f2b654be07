"""How often something that failed may be started again: so many times in so long a time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

TIMES, WINDOW_S = 3, 600.0


class Budget:
    """``take`` allows ``times`` in any ``window_s`` seconds of ``clock``: what is past is forgiven.

    A server lives for months; what failed thrice in its life is no reason to give it up.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        times: int = TIMES,
        window_s: float = WINDOW_S,
    ) -> None:
        self.times, self.window_s = times, window_s
        self._clock = clock
        self._taken: deque[float] = deque()

    def take(self) -> bool:
        """Whether it may be now; if so, this time counts."""
        now = self._clock()
        while self._taken and now - self._taken[0] >= self.window_s:
            self._taken.popleft()
        if len(self._taken) >= self.times:
            return False
        self._taken.append(now)
        return True
