"""Waiting queues ordered by a policy, with the methods of vLLM's ``RequestQueue``.

``RankQueue`` is for scores that stand still while a request waits: a heap. ``ClockQueue`` is for
scores that change with the time or with the replica: numpy columns, evaluated at most once a step
and sorted only as far as the step looks. Both order by (rank, arrival, sequence) and keep
``request.priority`` at the rank, which is what the engine's own comparisons read.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.policies.plugins.scorer import Scorer
from lengthwise.policies.plugins.vllm.entry import Entry

Floats = NDArray[np.float64]
Ranked = tuple[float, float, int, int, Entry]  # rank, arrival, sequence, version, entry


class ScoredQueue:
    """What both queues share: membership, and the methods that a vLLM scheduler calls.

    ``entry_of`` finds a request's entry, ``score`` evaluates it for a request that joins.
    """

    def __init__(self, entry_of: Callable[[Any], Entry], score: Callable[[Entry], None]) -> None:
        self._entry_of = entry_of
        self._score = score
        self._members: dict[int, Entry] = {}  # by sequence
        self.barred: set[int] = set()  # sequences of members that can't be taken in this step

    # What subclasses implement

    def _insert(self, entry: Entry) -> None:
        raise NotImplementedError

    def _discard(self, entry: Entry) -> None:
        raise NotImplementedError

    def first(self) -> Entry:
        """The entry that is next; the queue must not be empty."""
        raise NotImplementedError

    def best(self, count: int) -> list[Entry]:
        """The next ``count`` entries, in order."""
        raise NotImplementedError

    # vLLM's RequestQueue

    def add_request(self, request: Any) -> None:
        """Adds a waiting request."""
        self.add(self._entry_of(request))

    def add(self, entry: Entry) -> None:
        """Adds a waiting request by its entry, with a fresh score."""
        self._score(entry)
        self._members[entry.sequence] = entry
        self._insert(entry)

    def prepend_request(self, request: Any) -> None:
        """Adds a waiting request: order comes from the score, so there is no front to add to."""
        self.add_request(request)

    def prepend_requests(self, requests: Iterable[Any]) -> None:
        """Adds waiting requests."""
        for request in requests:
            self.add_request(request)

    def peek_request(self) -> Any:
        """The request that is next; raises ``IndexError`` if none waits."""
        if not self._members:
            raise IndexError("peek from an empty queue")
        return self.first().request

    def pop_request(self) -> Any:
        """Takes the request that is next; raises ``IndexError`` if none waits."""
        if not self._members:
            raise IndexError("pop from an empty queue")
        entry = self.first()
        self._remove(entry)
        return entry.request

    def remove_request(self, request: Any) -> None:
        """Takes a request out; raises ``ValueError`` if it isn't here."""
        entry = self._entry_of(request)
        if self._members.get(entry.sequence) is not entry:
            raise ValueError("the request is not in this queue")
        self._remove(entry)

    def remove_requests(self, requests: Iterable[Any]) -> None:
        """Takes out those of the requests that are here."""
        for request in requests:
            entry = self._entry_of(request)
            if entry.sequence in self._members:
                self._remove(entry)

    def __iter__(self) -> Iterator[Any]:
        yield from [entry.request for entry in self.best(len(self._members))]

    def __len__(self) -> int:
        return len(self._members)

    def __bool__(self) -> bool:
        """Whether a request could be taken: the next one, if it is barred, bars all behind it."""
        if self.barred and self._members:
            return self.first().sequence not in self.barred
        return bool(self._members)

    def __contains__(self, request: Any) -> bool:
        return self._entry_of(request).sequence in self._members

    def __reversed__(self) -> Iterator[Any]:
        yield from reversed(list(self))

    def refresh(self) -> None:
        """A step begins: scores that change with it are out of date."""

    def reorder(self, entry: Entry) -> None:
        """Takes note that a member's rank changed."""
        if entry.sequence in self._members:
            self._discard(entry)
            self.add(entry)

    def _remove(self, entry: Entry) -> None:
        del self._members[entry.sequence]
        self._discard(entry)


class RankQueue(ScoredQueue):
    """A heap; entries that left or changed stay behind in it until they surface."""

    def __init__(self, entry_of: Callable[[Any], Entry], score: Callable[[Entry], None]) -> None:
        super().__init__(entry_of, score)
        self._heap: list[Ranked] = []

    def _insert(self, entry: Entry) -> None:
        entry.version += 1
        entry.request.priority = rank = entry.rank
        heapq.heappush(self._heap, (rank, entry.arrival_s, entry.sequence, entry.version, entry))
        if len(self._heap) > 2 * len(self._members) + 64:
            self._heap = [item for item in self._heap if self._valid(item)]
            heapq.heapify(self._heap)

    def _discard(self, entry: Entry) -> None:
        entry.version += 1

    def _valid(self, item: Ranked) -> bool:
        return item[3] == item[4].version

    def first(self) -> Entry:
        while not self._valid(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][4]

    def best(self, count: int) -> list[Entry]:
        if count >= len(self._members):
            return [item[4] for item in sorted(filter(self._valid, self._heap))]
        return list(islice(self._walk(), count))

    def _walk(self) -> Iterator[Entry]:
        """The heap in order without taking it apart: k entries cost k log k."""
        heap = self._heap
        ahead = [(heap[0], 0)] if heap else []
        while ahead:
            item, place = heapq.heappop(ahead)
            if self._valid(item):
                yield item[4]
            for child in (2 * place + 1, 2 * place + 2):
                if child < len(heap):
                    heapq.heappush(ahead, (heap[child], child))


class ClockQueue(ScoredQueue):
    """Numpy columns of the features that stand still; one evaluation a step for all members.

    ``values`` maps feature names to what a request has while it waits; ``view`` holds the features
    that all share (the time, the replica's state), as of the step's beginning.
    """

    def __init__(
        self,
        entry_of: Callable[[Any], Entry],
        scorer: Scorer,
        values: Mapping[str, Callable[[Entry], float]],
        view: Mapping[str, float],
        failed: Callable[[Entry], None],
    ) -> None:
        super().__init__(entry_of, lambda entry: None)
        self._scorer, self._view, self._failed = scorer, view, failed
        self._values = [(n, values[n]) for n in scorer.names if n in values]
        self._rows: list[Entry] = []
        # arrival, sequence, override (NaN or an infinite rank), then the features
        self._columns: Floats = np.empty((3 + len(self._values), 64))
        self._ready: list[Entry] = []  # the best of the step, last is next
        self._scores: Floats | None = None  # as of this step

    def _insert(self, entry: Entry) -> None:
        if len(self._rows) == self._columns.shape[1]:
            self._columns = np.concatenate([self._columns, np.empty_like(self._columns)], axis=1)
        place = entry.column = len(self._rows)
        self._rows.append(entry)
        special = np.nan if entry.state == "ready" and not entry.ahead else entry.rank
        features = (value(entry) for _, value in self._values)
        self._columns[:, place] = (entry.arrival_s, entry.sequence, special, *features)
        self._scores, self._ready = None, []

    def _discard(self, entry: Entry) -> None:
        last = self._rows.pop()
        if last is not entry:
            self._rows[entry.column] = last
            self._columns[:, entry.column] = self._columns[:, last.column]
            if self._scores is not None:
                self._scores[entry.column] = self._scores[last.column]
            last.column = entry.column
        entry.column = -1

    def _remove(self, entry: Entry) -> None:
        super()._remove(entry)
        if self._ready and self._ready[-1] is entry:
            self._ready.pop()
        else:
            self._ready = []

    def refresh(self) -> None:
        self._scores, self._ready = None, []

    def first(self) -> Entry:
        if not self._ready:
            self._ready = self._order(64)[::-1]
        return self._ready[-1]

    def best(self, count: int) -> list[Entry]:
        return self._order(count)[:count]

    def _order(self, count: int) -> list[Entry]:
        """At least the next ``count`` entries, in order, their ranks set."""
        members = len(self._rows)
        scores = self._evaluate()
        special = self._columns[2, :members]
        ranks = np.where(np.isnan(special), scores, special)
        if count < members:
            limit = np.partition(ranks, count - 1)[count - 1]
            chosen = np.flatnonzero(ranks <= limit)
        else:
            chosen = np.arange(members)
        arrival, sequence = self._columns[0, chosen], self._columns[1, chosen]
        chosen = chosen[np.lexsort((sequence, arrival, ranks[chosen]))]
        found: list[Entry] = []
        for place in chosen.tolist():
            entry = self._rows[place]
            entry.score, entry.request.priority = float(scores[place]), float(ranks[place])
            found.append(entry)
        return found

    def _evaluate(self) -> Floats:
        """The members' scores, (members,); those that fail get the rank of a failed request."""
        members = len(self._rows)
        if self._scores is None:
            names = self._scorer.names
            values: dict[str, Any] = {n: self._view[n] for n in names if n in self._view}
            for row, (name, _) in enumerate(self._values, start=3):
                values[name] = self._columns[row, :members]
            self._scores = np.array(self._scorer.many(values, members))
            for place in np.flatnonzero(np.isnan(self._scores)).tolist():
                entry = self._rows[place]
                if entry.state == "ready":
                    self._failed(entry)
                self._scores[place] = 0.0
                self._columns[2, place] = entry.rank
        return self._scores[:members]
