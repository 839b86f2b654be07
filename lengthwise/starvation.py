"""The starvation guard: when first come, first served would have started each request.

The guard runs a shadow of FCFS. Whatever the policy admits counts as work served, in predicted
tokens; the shadow hands the same work to requests in their order of arrival. When it reaches a
request, that request's FCFS turn has come. The waits seen in the shadow are the yardstick: a
request that waited longer than ``ratio`` times the longest of the last ``WINDOW`` of them goes
ahead of all others, for good. The reference engine and the plugins share this code; the compiled
engine repeats it (``serving.fast.guard``). Times are integer picoseconds, so that all three agree
to the last bit whatever they compute with.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

from lengthwise.policy import Guard

WINDOW = 1000  # requests
FOREVER_PS = 2.0**62  # no bound is longer
UNKNOWN_TOKENS = 256.0  # predicted length where nobody says anything


@dataclass(slots=True, eq=False, kw_only=True)
class Waiter:
    """One request as the guard knows it; who uses the guard says when it is ``gone``."""

    sequence: int  # order of arrival
    arrival_ps: int
    predicted_tokens: float
    ahead: bool = False  # the guard sent it to the front
    running: bool = False
    waiting_since_ps: int = 0
    waited_ps: int = 0  # before waiting_since_ps
    work: int = 0  # tokens, as the guard counts them; 0 until it is needed
    owed: int = 0  # of these, when it last joined or left the batch
    admissions: int = 0

    @property
    def gone(self) -> bool:
        """Whether the engine is done with the request."""
        raise NotImplementedError

    @property
    def start_ps(self) -> int:
        """When its waiting would have begun, had it waited all the time."""
        return self.waiting_since_ps - self.waited_ps


W = TypeVar("W", bound=Waiter)


class StarvationGuard(Generic[W]):
    """The shadow queue and its waits; all calls take amortised logarithmic time at most."""

    def __init__(self, rule: Guard) -> None:
        self._rule = rule
        self._queue: deque[W] = deque()
        self._served = 0  # work admitted by the policy, in tokens
        self._begun = 0  # work that the shadow has started
        self._count = 0
        self._longest: deque[tuple[int, int]] = deque()  # (count, wait), waits descending
        self._oldest: list[tuple[int, int, W]] = []  # heap: when waiting began, in effect

    def idle(self) -> None:
        """Nothing waits and nothing runs: predicted and true work may be squared."""
        self._queue.clear()
        self._served = self._begun = 0

    def arrived(self, waiter: W) -> None:
        """A request joins the queue."""
        waiter.waiting_since_ps = waiter.arrival_ps
        self._queue.append(waiter)

    def watch(self, waiter: W) -> None:
        """A request that waits may be sent ahead."""
        if self._rule.ratio > 0 and not waiter.ahead:
            heapq.heappush(self._oldest, (waiter.start_ps, waiter.sequence, waiter))

    def admitted(self, waiter: W, now_ps: int) -> None:
        """The policy let a request into the batch; what it still owes will now be served."""
        if not waiter.work:
            self._fix(waiter)
        self._served += waiter.owed
        waiter.admissions += 1
        waiter.running = True
        waiter.waited_ps += max(now_ps - waiter.waiting_since_ps, 0)

    def preempted(self, waiter: W, generated: int, now_ps: int) -> None:
        """A request left the batch unfinished and waits again."""
        waiter.owed = max(waiter.work - generated, 1)
        self._served -= waiter.owed
        waiter.running = False
        waiter.waiting_since_ps = now_ps
        self.watch(waiter)

    def turns(self, now_ps: int) -> list[W]:
        """The requests that FCFS would have started since the last call."""
        found: list[W] = []
        while self._queue and (self._queue[0].gone or self._served > self._begun):
            waiter = self._queue.popleft()
            if waiter.gone and not waiter.admissions:
                continue  # aborted before anybody served it
            if not waiter.work:
                self._fix(waiter)
            self._begun += waiter.work
            self._note(now_ps - waiter.arrival_ps)
            found.append(waiter)
        return found

    def send_ahead(self, now_ps: int) -> list[W]:
        """Those that have waited too long by now; they are ``ahead`` from here on."""
        found: list[W] = []
        bound_ps = self._bound_ps(now_ps)
        while self._oldest and now_ps - self._oldest[0][0] > bound_ps:
            start_ps, _, waiter = heapq.heappop(self._oldest)
            stands = not waiter.running and start_ps == waiter.start_ps
            if stands and not waiter.ahead and not waiter.gone:
                waiter.ahead = True
                found.append(waiter)
        return found

    def _bound_ps(self, now_ps: int) -> int:
        """The longest that a request may wait now."""
        longest = self._longest[0][1] if self._longest else 0
        if self._queue:
            longest = max(longest, now_ps - self._queue[0].arrival_ps)
        return max(math.floor(min(self._rule.ratio * longest, FOREVER_PS)), self._rule.floor_ps)

    def _fix(self, waiter: W) -> None:
        """Work is estimated once, so that both sums count the same tokens."""
        waiter.work = waiter.owed = max(math.ceil(waiter.predicted_tokens), 1)

    def _note(self, wait_ps: int) -> None:
        self._count += 1
        while self._longest and self._longest[-1][1] <= wait_ps:
            self._longest.pop()
        self._longest.append((self._count, wait_ps))
        if self._longest[0][0] <= self._count - WINDOW:
            self._longest.popleft()
