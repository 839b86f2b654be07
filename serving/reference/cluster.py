"""Replicas behind a router, in simulated time: one total order of events, resumable anywhere.

At one moment iterations end first (by replica), then requests arrive (by id), then replicas that
can schedule do so (by replica). Time is integer picoseconds.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lengthwise.errors import InputError, InvariantError
from lengthwise.policy import RoutingPolicy, SchedulingPolicy
from lengthwise.protocols import TimingModel
from lengthwise.serving.draws import sample
from lengthwise.serving.inputs import prepare
from lengthwise.serving.options import Engine
from lengthwise.serving.records import Iterations, Records
from lengthwise.serving.reference.replica import Replica, Step
from lengthwise.serving.reference.request import Request
from lengthwise.serving.scoring import FRACTION, Features, Scorer
from lengthwise.workload import Workload

_END, _ARRIVAL, _WAKE = 0, 1, 2


class Cluster:
    """A run of the reference engine that can stop at each decision.

    ``predicted_tokens`` is the feature of that name, shape (n,), None where nothing was predicted.
    With ``check`` the invariants are verified after every event (slow). Raises ``InputError`` for
    requests that could never run.
    """

    def __init__(
        self,
        workload: Workload,
        *,
        policy: SchedulingPolicy,
        routing: RoutingPolicy,
        engine: Engine,
        timing: TimingModel,
        predicted_tokens: ArrayLike | None = None,
        replicas: int = 1,
        seed: int = 0,
        log_iterations: bool = False,
        check: bool = False,
    ) -> None:
        inputs = prepare(workload, policy, engine, timing, predicted_tokens, replicas)
        self.routing = routing
        self._workload, self._inputs, self._seed = workload, inputs, seed
        self._log, self._check = log_iterations, check
        self._features = Features(workload, inputs.predicted, seed)
        self._features.require(routing.score.features, f"router {routing.score.name!r}")
        scorer = Scorer(policy.score, self._features, inputs.arrival_ps)
        self.replicas = [self._replica(index, engine, policy, scorer) for index in range(replicas)]
        self.now_ps = 0
        self.request_ps = 0  # integral over time of the number of requests in the system
        self.pending: int | None = None  # the request that waits for ``route``
        self.deciding: int | None = None  # the replica that waits for ``order``
        self.steps: list[tuple[int, Step]] | None = None  # set to a list, it collects every step
        self._first: list[Request] = []  # the order given to the deciding replica
        self._in_system = 0
        self._ready: list[int] = []  # heap of replicas that may be able to schedule now
        self._ends: list[tuple[int, int, int]] = []  # heap of (time, kind, replica or request)
        self._prompt = workload["prompt_tokens"].tolist()
        self._output = workload["output_tokens"].tolist()
        self._planned = inputs.arrival_ps.tolist()
        self._reach_ps = inputs.reach_ps.tolist()  # from a request's arrival to the scheduler
        self._predicted_up = inputs.predicted_up.tolist()
        self._weight = _weights(workload, inputs.predicted)
        self._children = _children(workload)
        self._arrivals = _roots(workload)
        self._next = 0  # place in ``_arrivals``
        self._rows: list[tuple[int, ...]] = []  # one a finished request
        self._logged: list[tuple[int, ...]] = []  # one an iteration

    def run_until(
        self, *, route: bool = False, admit: bool = False
    ) -> Literal["route", "admit", "done"]:
        """Goes on to the next decision that was asked for, or to the end.

        "route": ``pending`` has arrived and needs a replica; answer with ``route(replica)``.
        "admit": replica ``deciding`` is about to schedule with a free seat and waiting requests;
        answer with ``order(ids)``, or go on to leave the order to the policy.
        """
        if self.pending is not None:
            raise InputError(f"request {self.pending} waits for a replica: call route() first")
        if self.deciding is not None:
            self._schedule(self.deciding)
        while True:
            event = self._next_event()
            if event is not None and event[0] <= self.now_ps:
                if event[1] == _END:
                    heapq.heappop(self._ends)
                    self._end_iteration(event[2])
                elif event[1] == _WAKE:
                    heapq.heappop(self._ends)
                    heapq.heappush(self._ready, event[2])
                elif self._arrive(event[2], ask=route):
                    return "route"
            elif self._ready:
                replica = self.replicas[self._ready[0]]
                if not replica.can_schedule or replica.launched_ps > self.now_ps:
                    heapq.heappop(self._ready)
                    continue
                replica.begin(self.now_ps)
                seats = replica.engine.max_num_seqs - len(replica.running)
                if admit and seats > 0 and len(replica.waiting):
                    self.deciding = replica.index
                    return "admit"
                self._schedule(replica.index)
            elif event is not None:
                self.request_ps += self._in_system * (event[0] - self.now_ps)
                self.now_ps = event[0]
            else:
                return "done"

    # Decisions

    def route(self, replica: int) -> None:
        """Sends the pending request to a replica."""
        if self.pending is None:
            raise InputError("no request waits for a replica")
        if not 0 <= replica < len(self.replicas):
            raise InputError(f"replica {replica} is not one of 0 to {len(self.replicas) - 1}")
        request, self.pending = self.pending, None
        self._send(request, replica)

    def replica_features(self, names: Iterable[str]) -> dict[str, NDArray[Any]]:
        """Features of all replicas for the pending request, each of shape (replicas,)."""
        if self.pending is None:
            raise InputError("no request waits for a replica")
        names = tuple(names)
        self._features.require(names, "a router")
        views = [replica.view(self.now_ps) for replica in self.replicas]
        return self._features.of_replicas(names, self._request(self.pending), views)

    def candidates(self) -> NDArray[np.int64]:
        """Ids of the waiting requests of the deciding replica, in queue order, shape (n,)."""
        waiting = self._deciding().candidates()
        return np.array([request.id for request in waiting], dtype=np.int64)

    def request_features(
        self, ids: Sequence[int] | NDArray[np.int64], names: Iterable[str]
    ) -> dict[str, NDArray[Any]]:
        """Features of waiting requests of the deciding replica, each of shape (n,)."""
        replica = self._deciding()
        names = tuple(names)
        self._features.require(names, "a policy")
        requests = self._waiting_requests(replica, ids)
        return self._features.of_requests(names, requests, replica.view(self.now_ps))

    def order(self, ids: Sequence[int] | NDArray[np.int64]) -> None:
        """Puts these waiting requests ahead of the queue, in this order, for this iteration."""
        self._first = self._waiting_requests(self._deciding(), ids)

    def in_system(self) -> NDArray[np.int64]:
        """Unfinished requests in each replica, shape (replicas,)."""
        counts = [len(replica.running) + len(replica.waiting) for replica in self.replicas]
        return np.array(counts, dtype=np.int64)

    def records(self) -> Records:
        """The records of a finished run; raises ``InvariantError`` before every request is done."""
        requests = len(self._workload)
        if len(self._rows) != requests:
            raise InvariantError(f"{len(self._rows)} of {requests} requests have finished")
        rows = np.array(sorted(self._rows), dtype=np.int64)
        if (rows[:, 0] != np.arange(requests)).any():
            raise InvariantError("a request finished twice")
        predicted = self._inputs.predicted
        columns = [np.ascontiguousarray(column) for column in rows.T[1:]]
        replica, arrival, scheduled, first, finish, preemptions, recomputed, cached = columns
        return Records(
            replica=replica, arrival_ps=arrival, scheduled_ps=scheduled, first_token_ps=first,
            finish_ps=finish, prompt_tokens=self._workload["prompt_tokens"],
            output_tokens=self._workload["output_tokens"],
            predicted_tokens=np.full(requests, np.nan) if predicted is None else predicted,
            preemptions=preemptions, recomputed_tokens=recomputed, cached_tokens=cached,
            backend="reference", iterations=self._iterations(),
        )  # fmt: skip

    def _replica(
        self, index: int, engine: Engine, policy: SchedulingPolicy, scorer: Scorer
    ) -> Replica:
        """Makes a replica; what another engine overrides."""
        inputs = self._inputs
        return Replica(index, engine, inputs.num_gpu_blocks, policy, scorer, inputs.clock)

    # Events

    def _next_event(self) -> tuple[int, int, int] | None:
        event = self._ends[0] if self._ends else None
        if self._next < len(self._arrivals):
            request = self._arrivals[self._next]
            arrival = (self._planned[request] + self._reach_ps[request], _ARRIVAL, request)
            return arrival if event is None or arrival < event else event
        return event

    def _arrive(self, request: int, *, ask: bool) -> bool:
        """Takes an arrival off the calendar and routes it, unless the caller is to be asked."""
        if self._ends and self._ends[0][1:] == (_ARRIVAL, request):
            heapq.heappop(self._ends)
        else:
            self._next += 1
        self._in_system += 1
        if ask:
            self.pending = request
            return True
        self._send(request, self._route(request))
        return False

    def _route(self, request: int) -> int:
        count = len(self.replicas)
        if count == 1:
            return 0
        chosen = list(range(count))
        if 0 < self.routing.choices < count:
            chosen = sample(self._seed, request, count, self.routing.choices)
        views = [self.replicas[index].view(self.now_ps) for index in chosen]
        names = self.routing.score.features
        values = self._features.of_replicas(names, self._request(request), views)
        scores = np.asarray(self.routing.score.evaluate(values), dtype=np.float64)
        if np.isnan(scores).any():
            raise InputError(f"router {self.routing.score.name!r} gave NaN for a score")
        return chosen[int(np.broadcast_to(scores, (len(chosen),)).argmin())]

    def _request(self, id: int) -> Request:
        """A request that arrives now."""
        keys = self._inputs.block_keys
        return Request(
            id, self._prompt[id], self._output[id], self.now_ps - self._reach_ps[id],
            self._predicted_up[id], () if keys is None else keys[id],
        )  # fmt: skip

    def _send(self, id: int, index: int) -> None:
        replica = self.replicas[index]
        replica.add(self._request(id), self.now_ps, self._planned[id])
        replica.routed += 1
        replica.outstanding += self._weight[id]
        heapq.heappush(self._ready, index)

    def _end_iteration(self, index: int) -> None:
        replica = self.replicas[index]
        if replica.ends_ps > self.now_ps:  # the launch of the iteration after it moved its end
            heapq.heappush(self._ends, (replica.ends_ps, _END, index))
            return
        seen_ps = replica.in_flight[0].seen_ps
        for request in replica.finish():
            self._finish(request, replica, seen_ps)
        if self._check:
            replica.check()
        heapq.heappush(self._ready, index)

    def _finish(self, request: Request, replica: Replica, seen_ps: int) -> None:
        id = request.id
        self._in_system -= 1
        replica.outstanding -= self._weight[id]
        self._rows.append(
            (
                id, replica.index, request.arrival_ps, request.scheduled_ps,
                request.first_token_ps, seen_ps, request.preemptions,
                request.recomputed, request.cached,
            )
        )  # fmt: skip
        if self._inputs.think_ps is not None:
            for child in self._children.get(id, ()):
                arrival = seen_ps + int(self._inputs.think_ps[child])
                reached = max(arrival, self._planned[child]) + self._reach_ps[child]
                event = (reached, _ARRIVAL, child)
                heapq.heappush(self._ends, event)

    def _schedule(self, index: int) -> None:
        replica = self.replicas[index]
        step = replica.schedule(self._first)
        self.deciding, self._first = None, []
        heapq.heappush(self._ends, (step.end_ps, _END, index))
        if replica.launched_ps > self.now_ps and len(replica.in_flight) < replica.depth:
            heapq.heappush(self._ends, (replica.launched_ps, _WAKE, index))
        if self.steps is not None:
            self.steps.append((index, step))
        if self._log:
            self._logged.append(
                (
                    index, step.start_ps, step.end_ps - step.start_ps, step.batch.prefill_tokens,
                    step.batch.decode_seqs, len(replica.running), len(replica.waiting),
                    replica.kv.used, len(step.preempted),
                )
            )  # fmt: skip
        if self._check:
            replica.check()

    def _iterations(self) -> Iterations | None:
        if not self._log:
            return None
        rows = np.array(self._logged, dtype=np.int64)
        return Iterations(*(np.ascontiguousarray(column) for column in rows.T))

    def _deciding(self) -> Replica:
        if self.deciding is None:
            raise InputError("no replica waits for an order")
        return self.replicas[self.deciding]

    def _waiting_requests(
        self, replica: Replica, ids: Sequence[int] | NDArray[np.int64]
    ) -> list[Request]:
        waiting = {request.id: request for request in replica.candidates()}
        wanted = [int(id) for id in ids]
        unknown = [id for id in wanted if id not in waiting]
        if unknown or len(set(wanted)) != len(wanted):
            raise InputError(
                f"order {wanted[:8]} of replica {replica.index}: each must be one of its waiting "
                "requests, once"
            )
        return [waiting[id] for id in wanted]


def _weights(workload: Workload, predicted: NDArray[np.float64] | None) -> list[int]:
    """Prompt and predicted tokens of each request, x FRACTION."""
    tokens = workload["prompt_tokens"].astype(np.float64)
    if predicted is not None:
        tokens = tokens + predicted
    weights: list[int] = np.rint(tokens * FRACTION).astype(np.int64).tolist()
    return weights


def _children(workload: Workload) -> dict[int, list[int]]:
    """The requests that each request's finish lets arrive."""
    children: dict[int, list[int]] = {}
    if "parent" in workload:
        for child, parent in enumerate(workload["parent"].tolist()):
            if parent >= 0:
                children.setdefault(parent, []).append(child)
    return children


def _roots(workload: Workload) -> list[int]:
    """The requests that arrive by themselves, in order."""
    if "parent" not in workload:
        return list(range(len(workload)))
    roots: list[int] = np.flatnonzero(workload["parent"] < 0).tolist()
    return roots
