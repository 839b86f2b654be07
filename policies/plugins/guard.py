"""The starvation guard: when first come, first served would have started each request.

The guard runs a shadow of FCFS. Whatever the policy admits counts as work served, in predicted
tokens; the shadow hands the same work to requests in their order of arrival. When it reaches a
request, that request's FCFS turn has come. The waits seen in the shadow are the yardstick: nobody
waits longer than ``ratio`` times the longest of the last ``WINDOW`` of them.
"""

from __future__ import annotations

from collections import deque

from lengthwise.policies.plugins.entry import Entry

WINDOW = 1000  # requests


class Guard:
    """The shadow queue and its waits; all calls take amortised constant time."""

    def __init__(self, ratio: float, floor_s: float) -> None:
        self._ratio, self._floor_s = ratio, floor_s
        self._queue: deque[Entry] = deque()
        self._served = 0  # work admitted by the policy, in tokens
        self._begun = 0  # work that the shadow has started
        self._count = 0
        self._longest: deque[tuple[int, float]] = deque()  # (count, wait), waits descending

    def arrived(self, entry: Entry) -> None:
        """A request joins the queue."""
        self._queue.append(entry)

    def admitted(self, entry: Entry) -> None:
        """The policy let a request into the batch; what it still owes will now be served."""
        if not entry.work:
            self._fix(entry)
        self._served += entry.owed
        entry.admissions += 1

    def preempted(self, entry: Entry, generated: int) -> None:
        """A request left the batch unfinished."""
        entry.owed = max(entry.work - generated, 1)
        self._served -= entry.owed

    def idle(self) -> None:
        """Nothing waits and nothing runs: predicted and true work may be squared."""
        self._queue.clear()
        self._served = self._begun = 0

    def turns(self, now_s: float) -> list[Entry]:
        """The requests that FCFS would have started since the last call."""
        found: list[Entry] = []
        while self._queue and (self._queue[0].gone or self._served > self._begun):
            entry = self._queue.popleft()
            if entry.gone and not entry.admissions:
                continue  # aborted before anybody served it
            if not entry.work:
                self._fix(entry)
            self._begun += entry.work
            self._note(now_s - entry.arrival_s)
            found.append(entry)
        return found

    def bound_s(self, now_s: float) -> float:
        """The longest that a request may wait now, in seconds; infinite if the guard is off."""
        if not self._ratio:
            return float("inf")
        longest = self._longest[0][1] if self._longest else 0.0
        if self._queue:
            longest = max(longest, now_s - self._queue[0].arrival_s)
        return max(self._ratio * longest, self._floor_s)

    def _fix(self, entry: Entry) -> None:
        """Work is estimated once, so that both sums count the same tokens."""
        entry.work = entry.owed = max(int(entry.predicted_tokens), 1)

    def _note(self, wait_s: float) -> None:
        self._count += 1
        while self._longest and self._longest[-1][1] <= wait_s:
            self._longest.pop()
        self._longest.append((self._count, wait_s))
        if self._longest[0][0] <= self._count - WINDOW:
            self._longest.popleft()
