"""A replica: what decides in it, when that happens, and its books."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence, Sized
from functools import cached_property

from lengthwise.errors import InputError
from lengthwise.picoseconds import LONGEST_S, PS
from lengthwise.protocols import Batch
from lengthwise.serving.clock import Clock
from lengthwise.serving.events import Window
from lengthwise.serving.options import Engine
from lengthwise.serving.reference.kv_cache import KVCache
from lengthwise.serving.reference.request import Request
from lengthwise.serving.reference.scheduler import Decider, Scheduler
from lengthwise.serving.reference.tenants import TenantBooks
from lengthwise.serving.reference.timeline import Step, Timeline
from lengthwise.serving.scoring import BACKLOGS, ReplicaView

# Preemptions in a row, none of which let anybody get further than before, that count as forever.
FUTILE = 1000


def endless(requests: int, replica: int, now_ps: int) -> InputError:
    """What is wrong where preemptions never end; both engines say it."""
    return InputError(
        f"{requests} requests preempt each other forever for want of KV blocks, as they would in "
        f"vLLM (replica {replica}, {now_ps / PS:g} s): num_gpu_blocks is too small for this policy"
    )


def too_late() -> InputError:
    """What is wrong where time passes what 64-bit integers hold; both engines say it."""
    return InputError(
        f"the run goes on beyond {LONGEST_S:g} s (106 days) of simulated time: requests are too "
        "many, think too long, or are served too slowly"
    )


class Replica:
    """Times what a ``Decider`` decides, and keeps the books of its requests.

    ``begin``, ``preempt`` and ``schedule`` make an iteration; ``finish`` brings its results. With
    ``async_scheduling`` two of them may be under way.
    """

    engine: Engine

    def __init__(
        self, index: int, scheduler: Decider, clock: Clock, slow: Sequence[Window] = ()
    ) -> None:
        self.index = index
        self.scheduler = scheduler
        self.engine = scheduler.engine
        self.timeline = Timeline(clock, slow)
        self.in_flight: deque[Step] = deque()
        self.depth = 2 if self.engine.async_scheduling else 1
        self.here: dict[Request, None] = {}  # all that were sent and have not left, in order
        self.routed = 0
        self.apart = False  # prefill and decode have nodes of their own
        self.pulled = 0  # requests that have blocks and a seat, and whose KV is on its way
        self.stuck = False  # nobody can be scheduled before a request or KV comes, or KV leaves
        self.down = False
        self.outstanding = 0  # prompt and predicted tokens x FRACTION, of unfinished requests
        self.tenants: TenantBooks | None = None  # of a workload that names tenants
        self._now_ps = 0
        self._futile = 0  # preemptions since somebody got further than ever before
        scheduler.view = self.view

    @property
    def running(self) -> list[Request]:
        """The batch, in its order."""
        return self.scheduler.running

    @property
    def waiting(self) -> Sized:
        """The requests that wait."""
        return self.scheduler.waiting

    @property
    def kv(self) -> KVCache:
        """The KV cache's books."""
        return self.scheduler.kv

    def view(self, now_ps: int, names: Iterable[str] = BACKLOGS) -> ReplicaView:
        """What policies that read ``names`` may know of this replica now."""
        self.scheduler.settle()
        backlogs = None
        if not BACKLOGS.isdisjoint(names):
            backlogs = sum(r.prefill_left for r in self.here), sum(r.decode_left for r in self.here)
        return ReplicaView(
            self.index, now_ps, len(self.running), len(self.waiting) + self.pulled, self.kv.used,
            self.kv.total, self.routed, len(self.here), self.outstanding, self.oldest_ps(now_ps),
            backlogs, self.pulled, self,
        )  # fmt: skip

    def oldest_ps(self, now_ps: int) -> int:
        """The arrival of the request that is here longest; ``now_ps`` if there is none."""
        return next(iter(self.here)).arrival_ps if self.here else now_ps

    @cached_property
    def decode_tokens_per_s(self) -> float:
        """Its nominal speed; see ``Clock``."""
        return self.timeline.clock.decode_tokens_per_s(self.engine)

    def cached_tokens(self, request: Request) -> int:
        """Leading tokens of a request, here or not, that are in the prefix cache."""
        return self.scheduler.cached_tokens(request)

    def tenant_service(self, requests: Sequence[Request]) -> list[float]:
        """What the tenants of requests, here or not, were served here; see ``TenantBooks``."""
        assert self.tenants is not None, "read, and the workload has no tenants"
        service = self.tenants.service(self.here)
        return [service[self.tenants.of[request.id]] for request in requests]

    def tenant_attained(self, requests: Sequence[Request]) -> list[float]:
        """The same as ``TenantBooks.attained`` has it."""
        assert self.tenants is not None, "read, and the workload has no tenants"
        attained = self.tenants.attained(self.here)
        return [attained[self.tenants.of[request.id]] for request in requests]

    def add(self, request: Request, now_ps: int, planned_ps: int) -> None:
        """A request arrives, or comes from a replica that it was removed from, and waits.

        ``planned_ps`` is when the workload says that it would arrive.
        """
        self.stuck = False
        self.scheduler.add(request, now_ps, planned_ps)

    def remove(self, request: Request) -> Request:
        """Takes an unfinished request out, as another replica's ``add`` takes it.

        It carries what it has generated; its blocks are freed here, so that its tokens are computed
        again there, and a token that is under way is lost. Moving a request, serving its stages in
        two places and losing a replica are all this. ``block_keys`` are for this replica's block
        size: who moves it gives it those of the next.
        """
        self.scheduler.remove(request)
        for step in self.in_flight:
            step.yields = [each for each in step.yields if each is not request]
        return request

    @property
    def can_schedule(self) -> bool:
        """Whether there is work, and room for another iteration in flight."""
        if self.down or len(self.in_flight) >= self.depth:
            return False
        return bool(self.running or (len(self.waiting) and not self.stuck))

    @property
    def ends_ps(self) -> int:
        """When the oldest iteration in flight ends, as far as is known by now."""
        return self.in_flight[0].end_ps

    def begin(self, now_ps: int) -> None:
        """Starts an iteration."""
        self._now_ps = now_ps
        self.scheduler.begin(now_ps)

    def preempt(self, victims: Sequence[Request] | None = None) -> None:
        """Before ``schedule``: running requests give way, None for those that the policy names."""
        self.scheduler.preempt(victims)

    def candidates(self) -> list[Request]:
        """The waiting requests, next first; between ``preempt`` and ``schedule``."""
        return self.scheduler.candidates()

    def schedule(self, first: Sequence[Request] = ()) -> Step:
        """Has the iteration decided that ``begin`` started; ``first`` go ahead of the queue."""
        step = self.scheduler.schedule(first)
        if self.tenants is not None and step.admitted is not None:
            self.tenants.admitted = step.admitted
        self.pulled += len(step.pulled)
        if self.apart and not (self.running or step.preempted):
            self.stuck = True  # whoever waits needs blocks that others' KV takes
            self.scheduler.finish(step)
            return step
        step.start_ps = self.timeline.starts_ps(self._now_ps)
        self._launch(step, self._now_ps)
        self.in_flight.append(step)
        return step

    def finish(self) -> list[Request]:
        """The oldest iteration in flight ends; returns the requests that are done and left."""
        step = self.in_flight.popleft()
        for request in step.yields:
            request.known += 1
            if self.depth > 1:  # when the iteration was scheduled its token was not known
                request.pending -= 1
            if request.generated == 1:
                request.first_token_ps = step.seen_ps
        return self.scheduler.finish(step)

    def land(self, request: Request) -> None:
        """The KV of a request has arrived: it joins the batch."""
        self.pulled -= 1
        self.stuck = False
        assert isinstance(self.scheduler, Scheduler)
        self.scheduler.land(request)

    def let_go(self, request: Request) -> None:
        """The KV of a request that was handed over has left."""
        self.stuck = False
        assert isinstance(self.scheduler, Scheduler)
        self.scheduler.let_go(request)

    def check(self) -> None:
        """Raises ``InvariantError`` if seats, tokens or blocks don't add up."""
        self.scheduler.check()

    def _launch(self, step: Step, now_ps: int) -> None:
        """Counts the batch, has it timed, and takes its tokens as computed."""
        prefill_tokens = prefill_seqs = decode_seqs = context_tokens = chunk_context = 0
        for request, tokens in step.scheduled.items():
            before = request.computed
            after = request.computed = before + tokens
            if after == request.known + request.pending:  # all known: it yields the next token
                step.yields.append(request)
                if self.depth > 1:
                    request.pending += 1
            if tokens == 1 and step.yields and step.yields[-1] is request:
                decode_seqs += 1
                context_tokens += after
            else:
                prefill_seqs += 1
                prefill_tokens += tokens
                chunk_context += tokens * before + tokens * (tokens + 1) // 2
            if request.scheduled_ps < 0:
                request.scheduled_ps = step.start_ps
            if request.reach > before:
                again = min(after, request.reach) - before
                request.recomputed += again
                step.recomputed_tokens += again
            if after > request.reach:
                request.reach = after
                self._futile = 0
        self._futile += len(step.preempted)
        if self._futile > FUTILE:
            raise endless(len(self.running) + len(self.waiting), self.index, now_ps)
        step.batch = Batch(prefill_tokens, prefill_seqs, decode_seqs, context_tokens, chunk_context)
        under_way = self.in_flight[-1] if self.in_flight else None
        self.timeline.place(step, now_ps, len(self.running), under_way)
