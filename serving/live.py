"""One node of the reference engine whose requests come, and may go, while it serves.

It takes the steps that a run takes (``serving.reference.run``), in the same order of events, for
arrivals that nobody knows ahead. Who drives it says what time it is.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError, InvariantError
from lengthwise.features import get
from lengthwise.picoseconds import LAST_PS
from lengthwise.prediction import CURVES, Predictions
from lengthwise.serving.clock import Clock
from lengthwise.serving.inputs import check_policy, gpu_blocks
from lengthwise.serving.reference.replica import Replica, too_late
from lengthwise.serving.reference.request import Request
from lengthwise.serving.reference.scheduler import Scheduler
from lengthwise.serving.scoring import ADMISSION, FRACTION, REFERENCE, Features, Scorer
from lengthwise.serving.system import Node

_END, _ARRIVAL, _WAKE = 0, 1, 2
NO_TIME = -1  # of a workload, which there is none of
COLUMNS = ("prompt_tokens", "priority", "deadline_s")


@dataclass(frozen=True)
class Asked:
    """What a client asks for, and what its answer is going to be.

    ``block_keys`` are identities of the prompt's leading blocks, 0 or more (``KVCache``);
    ``predictions`` are those of this one request, None without a predictor.
    """

    prompt_tokens: int
    output_tokens: int
    priority: int = 0
    deadline_s: float = math.inf
    block_keys: tuple[int, ...] = ()
    predictions: Predictions | None = None


class Token(NamedTuple):
    """A client has one more token of its answer."""

    seen_ps: int
    request: Request
    last: bool


class LiveNode:
    """A node that serves as time goes on. All times are picoseconds since its beginning.

    ``sample`` are the predictions of some request, so that a policy which reads what they do not
    have is refused now. Raises ``InputError`` for such a policy, and for a node that can't be run.
    """

    def __init__(self, node: Node, *, sample: Predictions | None = None, seed: int = 0) -> None:
        check_policy(node.policy, "", predicted=sample is not None)
        clock = Clock.of(node.engine, node.timing)
        blocks = gpu_blocks(node.engine, node.timing)
        clock.check(node.engine, node.timing, blocks * node.engine.block_size, 1.0)
        self.engine, self.num_gpu_blocks = node.engine, blocks
        self._features = _LiveFeatures(sample, seed)
        self._features.require(node.policy.admission.reads, ADMISSION)
        scorer = Scorer(node.policy.score, self._features, np.zeros(0, dtype=np.int64))
        scheduler = Scheduler(node.engine, blocks, node.policy, scorer)
        self.replica = Replica(0, scheduler, clock)
        self.preemptions = 0
        self._now_ps = 0
        self._reached_ps = 0  # when the last request that came is seen by the scheduler
        self._events: list[tuple[int, int, int]] = []  # heap of (time, kind, request)
        self._coming: dict[int, Request] = {}  # requests that the scheduler does not see yet
        self._ready = False  # whether the node may be able to schedule now
        self._tokens: list[tuple[int, int, Request, bool]] = []  # heap: when clients see them
        self._count = self._made = 0

    @property
    def longest(self) -> int:
        """Tokens that a request may have in all, prompt and answer."""
        room = (self.num_gpu_blocks - 1) * self.engine.block_size + 1
        if self.engine.max_model_len is not None:
            room = min(room, self.engine.max_model_len)
        if not self.engine.enable_chunked_prefill:
            room = min(room, self.engine.max_num_batched_tokens)
        return room

    @property
    def running(self) -> int:
        """Requests in the batch."""
        return len(self.replica.running)

    @property
    def waiting(self) -> int:
        """Requests that wait, those included that are still on their way to the scheduler."""
        return len(self.replica.waiting) + len(self._coming)

    @property
    def kv_utilization(self) -> float:
        """Share of KV blocks in use."""
        return self.replica.kv.used / self.replica.kv.total

    @property
    def next_ps(self) -> int | None:
        """When something happens next, None while nothing is under way."""
        found = [heap[0][0] for heap in (self._events, self._tokens) if heap]
        return min(found, default=None)

    def add(self, asked: Asked, now_ps: int) -> Request:
        """A request comes; ``advance`` must have been told of this moment."""
        if now_ps < self._now_ps:
            raise InvariantError(f"a request came at {now_ps} ps, and it is {self._now_ps} ps")
        if asked.prompt_tokens + asked.output_tokens > self.longest:
            raise InputError(
                f"a request of {asked.prompt_tokens} prompt and {asked.output_tokens} output "
                f"tokens is longer than {self.longest} tokens"
            )
        self._now_ps = now_ps
        id, self._count = self._count, self._count + 1
        tokens = self._features.add(id, asked)
        request = Request(
            id, asked.prompt_tokens, asked.output_tokens, now_ps, math.ceil(tokens),
            asked.block_keys if self.engine.enable_prefix_caching else (),
        )  # fmt: skip
        reached, pipeline = now_ps, self.replica.timeline.clock.pipeline
        if pipeline is not None:
            reached += int(pipeline.arrival_ps(np.array([asked.prompt_tokens]))[0])
        self._reached_ps = max(self._reached_ps, reached)
        self._coming[id] = request
        heapq.heappush(self._events, (self._reached_ps, _ARRIVAL, id))
        return request

    def remove(self, request: Request) -> None:
        """A client hangs up; nothing happens if its answer is complete."""
        if self._coming.pop(request.id, None) is None:
            if request not in self.replica.here:
                return
            self.replica.remove(request)
            self._forget(request)
            self._ready = True
        self._features.remove(request.id)
        self._tokens = [each for each in self._tokens if each[2] is not request]
        heapq.heapify(self._tokens)

    def advance(self, until_ps: int) -> list[Token]:
        """Lets time pass; what clients have got up to and at that moment, in order.

        Raises ``InputError`` for requests that preempt each other forever, and after 106 days.
        """
        if until_ps > LAST_PS:
            raise too_late()
        while True:
            if self._events and self._events[0][0] <= self._now_ps:
                _, kind, id = heapq.heappop(self._events)
                if kind == _END:
                    self._end_iteration()
                elif kind == _WAKE:
                    self._ready = True
                elif id in self._coming:
                    self._reach(self._coming.pop(id))
            elif self._ready:
                self._ready = self._schedule()
            elif self._events and self._events[0][0] <= until_ps:
                self._now_ps = self._events[0][0]
            else:
                self._now_ps = max(until_ps, self._now_ps)
                break
        seen: list[Token] = []
        while self._tokens and self._tokens[0][0] <= self._now_ps:
            seen_ps, _, request, last = heapq.heappop(self._tokens)
            seen.append(Token(seen_ps, request, last))
        return seen

    def _reach(self, request: Request) -> None:
        """A request arrives at the scheduler."""
        replica = self.replica
        replica.add(request, self._now_ps, NO_TIME)
        replica.here[request] = None
        replica.routed += 1
        replica.outstanding += self._features.weight(request.id)
        self._ready = True

    def _schedule(self) -> bool:
        """Schedules an iteration if the node can; whether it may be able to schedule another."""
        replica = self.replica
        if not replica.can_schedule or replica.timeline.launched_ps > self._now_ps:
            return False
        replica.begin(self._now_ps)
        replica.preempt()
        step = replica.schedule()
        self.preemptions += len(step.preempted)
        heapq.heappush(self._events, (step.end_ps, _END, 0))
        launched_ps = replica.timeline.launched_ps
        if launched_ps > self._now_ps and len(replica.in_flight) < replica.depth:
            heapq.heappush(self._events, (launched_ps, _WAKE, 0))
        return True

    def _end_iteration(self) -> None:
        replica = self.replica
        if replica.ends_ps > self._now_ps:  # the launch of the iteration after it moved its end
            heapq.heappush(self._events, (replica.ends_ps, _END, 0))
            return
        step = replica.in_flight[0]
        done = set(replica.finish())
        for request in step.yields:
            token = (step.seen_ps, self._made, request, request in done)
            heapq.heappush(self._tokens, token)
            self._made += 1
        for request in done:
            self._forget(request)
            self._features.remove(request.id)
        self._ready = True

    def _forget(self, request: Request) -> None:
        del self.replica.here[request]
        self.replica.outstanding -= self._features.weight(request.id)


class _LiveFeatures(Features):
    """Features of requests that come and go: a row each, for as long as it is here."""

    def __init__(self, sample: Predictions | None, seed: int) -> None:
        self.seed = seed
        self._rows: dict[int, Asked] = {}
        self._sample = sample
        self.columns = {name: _column(self._rows, name) for name in COLUMNS}
        if sample is not None:
            self.columns |= {name: _predicted(self._rows, name) for name in sample.columns}

    def require(self, names: Any, reader: str) -> None:
        """Raises ``InputError`` unless all features that ``reader`` reads have values here."""
        REFERENCE.require(names, reader)
        for name in names:
            if get(name).given == "prediction" and self._sample is None:
                raise InputError(f"{reader} reads {name}, which needs a predictor")
            if name in CURVES and name not in self.predictions.curves:
                raise InputError(f"{reader} reads {name}, and the predictions have no such curve")

    @property
    def predictions(self) -> Any:
        """What answers for a ``Predictions`` of all that are here."""
        assert self._sample is not None
        return _Curves(self._rows, self._sample)

    def add(self, id: int, asked: Asked) -> float:
        """A request comes; its predicted tokens, 0 without a prediction."""
        if (asked.predictions is None) != (self._sample is None):
            raise InvariantError("either all requests have predictions or none has")
        self._rows[id] = asked
        return 0.0 if asked.predictions is None else float(asked.predictions.predicted_tokens[0])

    def remove(self, id: int) -> None:
        """A request is gone."""
        del self._rows[id]

    def weight(self, id: int) -> int:
        """Prompt and predicted tokens of a request, x FRACTION."""
        asked = self._rows[id]
        told = asked.predictions
        predicted = 0.0 if told is None else float(told.predicted_tokens[0])
        return round((asked.prompt_tokens + predicted) * FRACTION)


class _Column:
    """Stands for a column of which only rows by id are asked for."""

    def __init__(self, rows: dict[int, Asked], value: Any) -> None:
        self._rows, self._value = rows, value

    def __getitem__(self, ids: Sequence[int]) -> NDArray[Any]:
        return np.array([self._value(self._rows[id]) for id in ids])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.zeros(0, dtype=dtype)  # all that are here before anybody comes


def _column(rows: dict[int, Asked], name: str) -> NDArray[Any]:
    return cast("NDArray[Any]", _Column(rows, lambda asked: getattr(asked, name)))


def _predicted(rows: dict[int, Asked], name: str) -> NDArray[Any]:
    return cast("NDArray[Any]", _Column(rows, lambda asked: asked.predictions.columns[name][0]))


class _Curves:
    """Stands for the ``Predictions`` of all requests that are here."""

    def __init__(self, rows: dict[int, Asked], sample: Predictions) -> None:
        self._rows, self.curves = rows, sample.curves

    def at(self, feature: str, ids: Any, generated_tokens: Any) -> NDArray[Any]:
        """A feature of requests by id that have generated so many tokens each."""
        if isinstance(ids, slice):
            return np.zeros(0)
        found = []
        for id, generated in zip(ids, generated_tokens, strict=True):
            told = self._rows[id].predictions
            assert told is not None
            found.append(told.at(feature, [0], [generated])[0])
        return np.array(found)
