"""The reference engine's run: nodes behind a router, in one total order of events.

At one moment iterations end first (by node), then KV arrives (by request), then requests are handed
over (as their prefills ended), then nodes fail or come back (``serving.events``), then requests
arrive (by id), then nodes that can schedule do so (by node). Time is integer picoseconds.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lengthwise.errors import InputError, InvariantError
from lengthwise.features import get
from lengthwise.picoseconds import LAST_PS
from lengthwise.policy import RoutingPolicy
from lengthwise.prediction import Predictions
from lengthwise.serving import answers
from lengthwise.serving.draws import sample
from lengthwise.serving.events import FAIL, NOTICE, UP
from lengthwise.serving.inputs import prepare
from lengthwise.serving.records import LOST, TRANSFER, Iterations, Records, with_lost
from lengthwise.serving.reference.replica import Replica, too_late
from lengthwise.serving.reference.request import Request
from lengthwise.serving.reference.scheduler import Scheduler
from lengthwise.serving.reference.tenants import TenantBooks
from lengthwise.serving.reference.timeline import Step
from lengthwise.serving.scoring import ADMISSION, FRACTION, Features, ReplicaView, Scorer
from lengthwise.serving.system import HOLD, Stop, Stops, System, Totals
from lengthwise.workload import Workload

_END, _LAND, _HAND, _TURN, _ARRIVAL, _WAKE = 0, 1, 2, 3, 4, 5
TO_THE_END = Stops()


@dataclasses.dataclass(slots=True)
class _Moving:
    """A request that was handed over, as it was at the node before and is at the next."""

    prefilled: Request
    source: int
    request: Request
    target: int
    ready_ps: int
    start_ps: int = -1
    end_ps: int = -1
    bytes: int = 0

    def row(self, decode_ps: int) -> tuple[int, ...]:
        """With the columns of ``records.TRANSFER``."""
        return (
            self.request.id, self.source, self.target, self.ready_ps, self.start_ps, self.end_ps,
            self.bytes, decode_ps,
        )  # fmt: skip


class ReferenceRun:
    """A ``Run`` in plain, readable Python: every feature, any callable.

    ``predictions`` may be an array of predicted lengths, (n,), or None where nothing was
    predicted. With ``check`` the invariants are verified after every event (slow). Raises
    ``InputError`` for requests that could never run.
    """

    def __init__(
        self,
        workload: Workload,
        system: System,
        predictions: Predictions | ArrayLike | None = None,
        *,
        seed: int = 0,
        log_iterations: bool = False,
        check: bool = False,
    ) -> None:
        inputs = prepare(workload, system, predictions)
        self.system = system
        self._workload, self._inputs, self._seed = workload, inputs, seed
        self._log, self._check = log_iterations, check
        self._features = Features(workload, inputs.predictions, seed)
        routing = system.routing.score
        self._features.require(routing.features, f"router {routing.name!r}")
        scorers: dict[int, Scorer] = {}  # by identity: a policy that nodes share scores once
        for node in system.nodes:
            if id(node.policy) not in scorers:
                self._features.require(node.policy.admission.reads, ADMISSION)
                scored = Scorer(node.policy.score, self._features, inputs.arrival_ps)
                scorers[id(node.policy)] = scored
        self._scorers = [scorers[id(node.policy)] for node in system.nodes]
        self.nodes = [self._node(index, scorer) for index, scorer in enumerate(self._scorers)]
        self._closed = [False] * len(self.nodes)  # those that the router knows to be down
        self._turn = 0  # place in the timetable of failures
        self._lost: list[tuple[int, ...]] = []  # one a stay at a node that failed
        self._lost_tokens = 0
        self.steps: list[tuple[int, Step]] | None = None  # set to a list, it collects every step
        self._interval_ps = system.interval_ps
        self._seen = [node.view(0) for node in self.nodes]  # as of the last multiple of it
        self._now_ps = 0
        self._due: Stop | None = None  # what ``answer`` answers
        self._hold_ps = TO_THE_END.hold_ps
        self._held: dict[int, int] = {}  # request -> when it arrived, while the router holds it
        self._chosen: list[Request] | None = None  # the answer to it
        self._in_system = self._waiting = 0
        self._queued = [0] * len(self.nodes)  # requests that wait at each node
        self._request_ps = self._waiting_ps = 0
        self._generated = self._preemptions = self._recomputed = 0
        self._ready: list[int] = []  # heap of nodes that may be able to schedule now
        self._ends: list[tuple[int, int, int]] = []  # heap of (time, kind, node or request)
        self._prompt = workload["prompt_tokens"].tolist()
        self._output = workload["output_tokens"].tolist()
        self._planned = inputs.arrival_ps.tolist()
        self._reach_ps = inputs.reach_ps.tolist()  # from a request's arrival to the router
        self._predicted_up = inputs.predicted_up.tolist()
        self._weight = _weights(workload, inputs.predicted)
        self._prefill_weight = self._weight
        if inputs.transfers is not None and inputs.predicted is not None:
            self._prefill_weight = _weights(workload, np.minimum(inputs.predicted, 1.0))
        self._children = _children(workload)
        self._arrivals = _roots(workload)
        self._next = 0  # place in ``_arrivals``
        self._rows: list[tuple[int, ...]] = []  # one a finished request
        self._apart = inputs.transfers  # None where all nodes serve whole requests
        self._handed: list[tuple[Request, int]] = []  # prefills that ended, and where
        self._moving: dict[int, _Moving] = {}  # requests that were handed over
        self._link_free_ps = [0] * len(self.nodes)
        self._moved: list[tuple[int, ...]] = []  # one a finished request that was handed over
        for made in self.nodes:
            made.apart = self._apart is not None
        self._logged: list[tuple[int, ...]] = []  # one an iteration

    def advance(self, stops: Stops = TO_THE_END) -> Stop:
        """Goes on to the next stop that was asked for, or to the end."""
        if self._apart is not None and (stops.route or stops.admit or stops.preempt):
            raise InputError("a run with roles prefill and decode can't be asked on its way yet")
        due, self._due = self._due, None
        if due is not None:
            if due.kind == "route":
                self._due = due
                raise InputError(f"request {due.request} waits for a node: call answer() first")
            stop = self._schedule(self.nodes[due.node], stops, passed=due.kind)
            if stop is not None:
                return stop
        self._hold_ps = stops.hold_ps
        while True:
            event = self._next_event()
            if event is not None and event[0] <= self._now_ps:
                if event[1] == _END:
                    heapq.heappop(self._ends)
                    self._end_iteration(event[2])
                elif event[1] == _LAND:
                    heapq.heappop(self._ends)
                    self._land(event[2])
                elif event[1] == _HAND:
                    heapq.heappop(self._ends)
                    self._hand_over(*self._handed[event[2]])
                elif event[1] == _WAKE:
                    heapq.heappop(self._ends)
                    heapq.heappush(self._ready, event[2])
                elif event[1] == _TURN:
                    self._happen(*self._inputs.turns[self._turn][1:])
                elif self._arrive(event[2], ask=stops.route):
                    closed = tuple(at for at, down in enumerate(self._closed) if down)
                    return self._stop(
                        Stop("route", -1, event[2], candidates=len(self.nodes), closed=closed)
                    )
            elif self._ready:
                node = self.nodes[self._ready[0]]
                if not node.can_schedule or node.timeline.launched_ps > self._now_ps:
                    heapq.heappop(self._ready)
                    continue
                node.begin(self._now_ps)
                stop = self._schedule(node, stops)
                if stop is not None:
                    return stop
            elif event is None:
                return Stop("done")
            elif stops.horizon_ps is not None and event[0] > stops.horizon_ps:
                self._move(max(stops.horizon_ps, self._now_ps))
                return Stop("horizon")
            else:
                self._move(event[0])

    def features(self, names: Sequence[str], out: NDArray[Any]) -> int:
        """Writes features of the candidates of the stop that is due to ``out``; see ``Run``."""
        due = self._asked()
        self._features.require(names, "a router" if due.kind == "route" else "a policy")
        rows = min(due.candidates, len(out))
        if due.kind == "route":
            found = self._routing_features(names, due.request, range(rows))
        else:
            view = self.nodes[due.node].view(self._now_ps, names)
            found = self._features.of_requests(names, self._candidates(due)[:rows], view)
        for column, name in enumerate(names):
            out[:rows, column] = found[name]
        return rows

    def answer(self, choice: int | Sequence[int] | NDArray[Any]) -> None:
        """Answers the stop that is due; see ``Stop``."""
        due = self._asked()
        if due.kind != "route":
            candidates = self._candidates(due)
            self._chosen = [candidates[place] for place in answers.places(choice, due)]
            return
        node = answers.node(choice, due)
        self._due = None
        if node == HOLD:
            self._hold(due.request, self._now_ps + self._hold_ps)
        else:
            self._send(due.request, node)

    @property
    def totals(self) -> Totals:
        """The integrals up to now."""
        return Totals(
            self._now_ps, self._in_system, self._request_ps, self._waiting_ps, len(self._rows),
            self._generated, self._preemptions, self._recomputed, len(self._lost),
            self._lost_tokens,
        )  # fmt: skip

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
        lost = np.array(sorted(self._lost), dtype=np.int64).reshape(-1, len(LOST))
        preemptions = with_lost(preemptions, lost, "preemptions")
        recomputed = with_lost(recomputed, lost, "recomputed_tokens")
        return Records(
            replica=replica, arrival_ps=arrival, scheduled_ps=scheduled, first_token_ps=first,
            finish_ps=finish, prompt_tokens=self._workload["prompt_tokens"],
            output_tokens=self._workload["output_tokens"],
            predicted_tokens=np.full(requests, np.nan) if predicted is None else predicted,
            preemptions=preemptions, recomputed_tokens=recomputed, cached_tokens=cached,
            backend="reference", iterations=self._iterations(), lost=lost,
            moved=None if self._apart is None
            else np.array(sorted(self._moved), np.int64).reshape(-1, len(TRANSFER)),
        )  # fmt: skip

    def _node(self, index: int, scorer: Scorer) -> Replica:
        """Makes a node; what another engine overrides."""
        node, inputs = self.system.nodes[index], self._inputs.nodes[index]
        decides = Scheduler(node.engine, inputs.num_gpu_blocks, node.policy, scorer)
        made = Replica(index, decides, inputs.clock, self._inputs.slow[index])
        known = self._features.tenants
        if known is not None and self._inputs.transfers is None:  # else nobody may read them
            made.tenants = TenantBooks(known.of.tolist(), known.shares.tolist())
        return made

    # Stops

    def _stop(self, stop: Stop) -> Stop:
        self._due, self._chosen = stop, None
        return stop

    def _asked(self) -> Stop:
        if self._due is None:
            raise InputError("nothing waits for an answer: call advance() first")
        return self._due

    def _candidates(self, due: Stop) -> Sequence[Request]:
        """The requests that are to choose from at a node."""
        node = self.nodes[due.node]
        return node.candidates() if due.kind == "admit" else node.running

    def _routing_features(
        self, names: Sequence[str], id: int, indices: Sequence[int]
    ) -> dict[str, NDArray[Any]]:
        """Features of nodes for a request to be routed, (nodes,) each."""
        views = self._views(names, indices)
        if any(get(name).of == "pair" for name in names):
            requests = [self._request(id, index) for index in indices]
        else:
            requests = [self._request(id, 0)] * len(indices)
        return self._features.of_replicas(names, requests, views)

    def _views(self, names: Sequence[str], indices: Sequence[int]) -> list[ReplicaView]:
        """Nodes as the router sees them: their state of the last scrape, its own books of now."""
        now_ps, nodes = self._now_ps, [self.nodes[index] for index in indices]
        if not self._interval_ps:
            return [node.view(now_ps, names) for node in nodes]
        return [
            dataclasses.replace(
                self._seen[node.index], now_ps=now_ps, routed=node.routed,
                unfinished=len(node.here), outstanding=node.outstanding,
                oldest_ps=node.oldest_ps(now_ps), replica=node,
            )
            for node in nodes
        ]  # fmt: skip

    # Events

    def _move(self, to_ps: int) -> None:
        """Lets time pass in which nothing happens; metrics are scraped on the way."""
        if to_ps > LAST_PS:
            raise too_late()
        interval = self._interval_ps
        if interval and to_ps // interval > self._now_ps // interval:
            self._seen = [node.view(to_ps // interval * interval) for node in self.nodes]
        self._request_ps += self._in_system * (to_ps - self._now_ps)
        self._waiting_ps += self._waiting * (to_ps - self._now_ps)
        self._now_ps = to_ps

    def _next_event(self) -> tuple[int, int, int] | None:
        event = self._ends[0] if self._ends else None
        turns = self._inputs.turns
        if self._turn < len(turns) and len(self._rows) < len(self._workload):
            turn = (turns[self._turn][0], _TURN, 0)
            event = turn if event is None or turn < event else event
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
        if request not in self._held:
            self._in_system += 1
            self._waiting += 1
        if all(self._closed):
            coming = self._inputs.turns[self._turn :]
            self._hold(request, next(time_ps for time_ps, kind, _ in coming if kind == UP))
            return False
        if ask:
            return True
        self._send(request, self._route(request, self.system.routing, self._begins_at(request)))
        return False

    def _begins_at(self, request: int) -> Sequence[int]:
        """The nodes that a request which arrives may be sent to."""
        apart = self._apart
        if apart is None:
            return range(len(self.nodes))
        return apart.prefill if self._prompt[request] >= apart.min_prompt else apart.decode

    def _route(self, request: int, routing: RoutingPolicy, nodes: Sequence[int]) -> int:
        chosen = [at for at in nodes if not self._closed[at]]
        if len(chosen) == 1:
            return chosen[0]
        if 0 < routing.choices < len(chosen):
            places = sample(self._seed, request, len(chosen), routing.choices)
            chosen = [chosen[place] for place in places]
        values = self._routing_features(routing.score.features, request, chosen)
        scores = routing.score.numbers(values, len(chosen), "router")
        return chosen[int(scores.argmin())]

    def _request(self, id: int, index: int) -> Request:
        """A request that is to be routed, as a node would take it."""
        keys = self._inputs.nodes[index].block_keys
        arrival_ps = self._held.get(id, self._now_ps - self._reach_ps[id])
        return Request(
            id, self._prompt[id], self._output[id], arrival_ps,
            self._predicted_up[id], () if keys is None else keys[id],
        )  # fmt: skip

    def _send(self, id: int, index: int) -> None:
        node = self.nodes[index]
        request = self._request(id, index)
        if node.tenants is not None:
            node.tenants.arrives(id, node.here)
        if self._prefills(index):
            request.hands_over = request.output > 1
            request.output, request.predicted = 1, min(request.predicted, 1)
        node.add(request, self._now_ps, self._planned[id])
        node.here[request] = None
        self._held.pop(id, None)
        self._waiting -= 1
        self._count(node)
        node.routed += 1
        node.outstanding += self._weight_at(id, index)
        heapq.heappush(self._ready, index)

    # Prefill and decode on nodes of their own

    def _prefills(self, index: int) -> bool:
        """Whether a node computes prompts alone."""
        return self.system.nodes[index].role == "prefill"

    def _weight_at(self, id: int, index: int) -> int:
        """Prompt and predicted tokens of a request, as far as they are a node's, x FRACTION."""
        return self._prefill_weight[id] if self._prefills(index) else self._weight[id]

    def _hand_over(self, prefilled: Request, source: int) -> None:
        """A request whose prompt was computed waits at a node that decodes."""
        assert self._apart is not None
        id = prefilled.id
        self._held[id] = prefilled.arrival_ps  # the router has it again, with its old arrival
        index = self._route(id, self._apart.routing, self._apart.decode)
        del self._held[id]
        request = Request(
            id, self._prompt[id], self._output[id], prefilled.arrival_ps, self._predicted_up[id], ()
        )
        request.known += 1  # the first token
        request.stored = request.reach = request.prompt
        request.remote = True
        request.cached = 0
        request.preemptions, request.recomputed = prefilled.preemptions, prefilled.recomputed
        request.first_token_ps = prefilled.first_token_ps
        self._moving[id] = _Moving(prefilled, source, request, index, ready_ps=self._now_ps)
        node = self.nodes[index]
        node.add(request, self._now_ps, self._planned[id])
        node.here[request] = None
        self._count(node)
        node.routed += 1
        node.outstanding += self._weight_at(id, index)
        heapq.heappush(self._ready, index)

    def _pull(self, request: Request) -> None:
        """The KV of a request sets out as soon as the links of both its ends are free."""
        assert self._apart is not None
        moving, free_ps = self._moving[request.id], self._link_free_ps
        at, to = moving.source, moving.target
        blocks = moving.prefilled.held
        moving.bytes = blocks * self._apart.block_bytes[at]
        moving.start_ps = max(self._now_ps, free_ps[at], free_ps[to])
        free_ps[at] = free_ps[to] = moving.start_ps + blocks * self._apart.block_ps[at]
        moving.end_ps = free_ps[at] + self._apart.latency_ps
        heapq.heappush(self._ends, (moving.end_ps, _LAND, request.id))

    def _land(self, id: int) -> None:
        """The KV of a request has arrived."""
        moving = self._moving[id]
        source, target = self.nodes[moving.source], self.nodes[moving.target]
        source.let_go(moving.prefilled)
        target.land(moving.request)
        for node in (source, target):
            heapq.heappush(self._ready, node.index)
            if self._check:
                node.check()

    def _hold(self, request: int, until_ps: int) -> None:
        """The router keeps a request until it is asked for again."""
        self._held.setdefault(request, self._now_ps - self._reach_ps[request])
        heapq.heappush(self._ends, (until_ps, _ARRIVAL, request))

    def _happen(self, kind: int, index: int) -> None:
        """What the timetable says of a node now."""
        self._turn += 1
        node = self.nodes[index]
        if kind == UP:
            routed = [other.routed for other in self.nodes if not self._closed[other.index]]
            node.routed = max(node.routed, min(routed, default=0))  # no burst to catch up
            node.down = self._closed[index] = False
            return
        if kind != NOTICE:
            node.down = True
            self._ends = [e for e in self._ends if e[1] not in (_END, _WAKE) or e[2] != index]
            heapq.heapify(self._ends)
        if kind != FAIL:
            self._lose(node)

    def _lose(self, node: Replica) -> None:
        """The router knows that a node has failed: all that is there comes back to it."""
        index, now_ps = node.index, self._now_ps
        for request in node.here:
            started = 0 <= request.scheduled_ps < now_ps
            self._lost.append(
                (
                    request.id, index, request.scheduled_ps if started else -1, now_ps,
                    request.generated, request.preemptions, request.recomputed,
                )
            )  # fmt: skip
            self._lost_tokens += request.generated
            self._held[request.id] = request.arrival_ps
            heapq.heappush(self._ends, (now_ps, _ARRIVAL, request.id))
        self._waiting += len(node.here) - self._queued[index]
        self._queued[index] = 0
        fresh = self.nodes[index] = self._node(index, self._scorers[index])
        fresh.routed, fresh.down = node.routed, True
        self._closed[index] = True

    def _count(self, node: Replica) -> None:
        """Keeps count of the requests that wait after something happened to a node."""
        self._waiting += len(node.waiting) - self._queued[node.index]
        self._queued[node.index] = len(node.waiting)

    def _end_iteration(self, index: int) -> None:
        node = self.nodes[index]
        if node.ends_ps > self._now_ps:  # the launch of the iteration after it moved its end
            heapq.heappush(self._ends, (node.ends_ps, _END, index))
            return
        step = node.in_flight[0]
        self._generated += len(step.yields)
        for request in node.finish():
            if request.hands_over:
                self._leave(request, node)
                heapq.heappush(self._ends, (self._now_ps, _HAND, len(self._handed)))
                self._handed.append((request, index))
            else:
                self._finish(request, node, step.seen_ps)
        self._count(node)
        if self._check:
            node.check()
        heapq.heappush(self._ready, index)

    def _finish(self, request: Request, node: Replica, seen_ps: int) -> None:
        id, scheduled_ps = request.id, request.scheduled_ps
        self._in_system -= 1
        self._leave(request, node)
        if id in self._moving:
            moving = self._moving[id]
            self._moved.append(moving.row(scheduled_ps))
            scheduled_ps = moving.prefilled.scheduled_ps
        self._rows.append(
            (
                id, node.index, request.arrival_ps, scheduled_ps,
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

    def _leave(self, request: Request, node: Replica) -> None:
        """A request is done at a node."""
        del node.here[request]
        if node.tenants is not None:
            node.tenants.finished(request)
        node.outstanding -= self._weight_at(request.id, node.index)

    def _schedule(self, node: Replica, stops: Stops, passed: str = "") -> Stop | None:
        """Schedules the iteration that a node began, unless the caller is to be asked before.

        ``passed`` is the stop that was due, which ``_chosen`` answers or leaves to the policy.
        """
        chosen, self._chosen = self._chosen, None
        if not passed and stops.preempt and node.running and len(node.waiting):
            return self._stop(Stop("preempt", node.index, candidates=len(node.running)))
        if passed != "admit":
            node.preempt(chosen)
            self._count(node)
            seats = node.engine.max_num_seqs - len(node.running)
            if stops.admit and seats > 0 and len(node.waiting):
                return self._stop(Stop("admit", node.index, candidates=len(node.waiting)))
            chosen = None
        step = node.schedule(chosen or ())
        self._count(node)
        for request in step.pulled:
            self._pull(request)
        if node.stuck:
            return None
        self._preemptions += len(step.preempted)
        self._recomputed += step.recomputed_tokens
        heapq.heappush(self._ends, (step.end_ps, _END, node.index))
        if node.timeline.launched_ps > self._now_ps and len(node.in_flight) < node.depth:
            heapq.heappush(self._ends, (node.timeline.launched_ps, _WAKE, node.index))
        if self.steps is not None:
            self.steps.append((node.index, step))
        if self._log:
            self._logged.append(
                (
                    node.index, step.start_ps, step.end_ps - step.start_ps,
                    step.batch.prefill_tokens, step.batch.decode_seqs, len(node.running),
                    len(node.waiting), node.kv.used, len(step.preempted),
                )
            )  # fmt: skip
        if self._check:
            node.check()
        return None

    def _iterations(self) -> Iterations | None:
        if not self._log:
            return None
        rows = np.array(self._logged, dtype=np.int64)
        return Iterations(*(np.ascontiguousarray(column) for column in rows.T))


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
