"""The two waiting queues of vLLM: first come first served, and ordered by score."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from typing import Protocol

from lengthwise.serving.reference.request import Request


class WaitingQueue(Protocol):
    """What a replica asks of its waiting queue."""

    def push(self, request: Request) -> None:
        """Adds an arrived request."""
        ...

    def push_back(self, request: Request) -> None:
        """Returns a preempted request."""
        ...

    def peek(self) -> Request:
        """The request that is next; the queue must not be empty."""
        ...

    def remove(self, request: Request) -> None:
        """Takes a request out, wherever it stands."""
        ...

    def reorder(self, requests: Iterable[Request]) -> None:
        """Takes note that the scores of these waiting requests changed."""
        ...

    def ordered(self) -> list[Request]:
        """All waiting requests, next first."""
        ...

    def __len__(self) -> int: ...


class ArrivalQueue:
    """vLLM's ``fcfs`` queue: arrivals at the end, preempted requests at the front."""

    def __init__(self) -> None:
        self._queue: deque[Request] = deque()

    def push(self, request: Request) -> None:
        self._queue.append(request)

    def push_back(self, request: Request) -> None:
        self._queue.appendleft(request)

    def peek(self) -> Request:
        return self._queue[0]

    def remove(self, request: Request) -> None:
        if self._queue[0] is request:
            self._queue.popleft()
        else:
            self._queue.remove(request)

    def reorder(self, requests: Iterable[Request]) -> None:
        pass  # order of arrival does not depend on scores

    def ordered(self) -> list[Request]:
        return list(self._queue)

    def __len__(self) -> int:
        return len(self._queue)


class ScoreQueue:
    """vLLM's ``priority`` queue: ascending (rank, arrival, id).

    A heap in which entries are left behind when a request leaves or its rank changes; an entry
    counts only while its request waits with that rank.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, int]] = []
        self._waiting: dict[int, Request] = {}

    def push(self, request: Request) -> None:
        self._waiting[request.id] = request
        heapq.heappush(self._heap, (request.rank, request.arrival_ps, request.id))

    push_back = push

    def peek(self) -> Request:
        while True:
            rank, _, id = self._heap[0]
            request = self._waiting.get(id)
            if request is not None and request.rank == rank:
                return request
            heapq.heappop(self._heap)

    def remove(self, request: Request) -> None:
        del self._waiting[request.id]

    def reorder(self, requests: Iterable[Request]) -> None:
        changed = list(requests)
        if 4 * len(changed) < len(self._waiting):
            for request in changed:
                heapq.heappush(self._heap, (request.rank, request.arrival_ps, request.id))
        else:
            self._heap = [(r.rank, r.arrival_ps, r.id) for r in self._waiting.values()]
            heapq.heapify(self._heap)

    def ordered(self) -> list[Request]:
        return sorted(self._waiting.values(), key=lambda r: (r.rank, r.arrival_ps, r.id))

    def __len__(self) -> int:
        return len(self._waiting)
