"""What decides in a replica: vLLM V1's scheduler, iteration by iteration.

The order of decisions is vLLM's own (``Scheduler.schedule`` and ``update_from_output``): running
requests first, each getting the tokens it misses from one token budget; under KV pressure one of
them is preempted and recomputed later; then, unless somebody was preempted, waiting requests while
there are seats, tokens and blocks. Before that comes what vLLM lacks: policy preemption. All state
is integers, but for scores; ties go to the earlier arrival and then the lower id.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Protocol

from lengthwise.errors import InvariantError
from lengthwise.policy import SchedulingPolicy
from lengthwise.preemption import Demand, Victims, exchanges
from lengthwise.serving.options import Engine
from lengthwise.serving.reference.kv_cache import KVCache
from lengthwise.serving.reference.request import Request
from lengthwise.serving.reference.starvation import Watch
from lengthwise.serving.reference.timeline import Step
from lengthwise.serving.reference.waiting import ArrivalQueue, ScoreQueue, WaitingQueue
from lengthwise.serving.scoring import MOST_RESERVED, ReplicaView, Scorer

UNLIMITED = 1 << 62
Viewer = Callable[[int, Iterable[str]], ReplicaView]  # a moment and the features that are read


class Decider(Protocol):
    """What decides in a replica: the reference's ``Scheduler``, vLLM's own, or a fake.

    It decides which tokens are computed when; its replica times that and keeps the books. A replica
    sets ``view``, which says what scores may know of it. ``begin``, ``preempt`` and ``schedule``
    make an iteration, ``finish`` takes its tokens in.
    """

    view: Viewer
    engine: Engine
    kv: KVCache
    running: list[Request]

    @property
    def waiting(self) -> Sized:
        """The requests that wait."""
        ...

    def add(self, request: Request, now_ps: int, planned_ps: int) -> None:
        """A request arrives, or comes from a replica that it was removed from, and waits."""
        ...

    def remove(self, request: Request) -> None:
        """Forgets an unfinished request, whose tokens under way are lost, and frees its blocks."""
        ...

    def begin(self, now_ps: int) -> None:
        """Starts an iteration: fixes what its scores see."""
        ...

    def preempt(self, victims: Sequence[Request] | None) -> None:
        """Running requests give way, None for those that the policy names."""
        ...

    def candidates(self) -> list[Request]:
        """The waiting requests, next first; between ``preempt`` and ``schedule``."""
        ...

    def schedule(self, first: Sequence[Request]) -> Step:
        """Decides the iteration that ``begin`` started; ``first`` go ahead of the queue in it."""
        ...

    def finish(self, step: Step) -> list[Request]:
        """The oldest iteration under way has ended; the requests that are done, and left."""
        ...

    def settle(self) -> None:
        """Before anybody looks at ``kv``."""
        ...

    def cached_tokens(self, request: Request) -> int:
        """Leading tokens of a request, here or not, that are in the prefix cache."""
        ...

    def check(self) -> None:
        """Raises ``InvariantError`` if seats, tokens or blocks don't add up."""
        ...


class Scheduler:
    """The reference's ``Decider``: queues, KV cache, scores and the starvation guard.

    With ``async_scheduling`` two iterations may be under way: the second is scheduled when the
    first starts, before its results are known.
    """

    view: Viewer

    def __init__(
        self, engine: Engine, num_gpu_blocks: int, policy: SchedulingPolicy, scorer: Scorer
    ) -> None:
        self.engine = engine
        self.policy = policy
        self.kv = KVCache(num_gpu_blocks, engine.block_size, engine.enable_prefix_caching)
        self.running: list[Request] = []
        self.waiting: WaitingQueue = ArrivalQueue() if policy.queue == "fcfs" else ScoreQueue()
        self.pulling: dict[Request, None] = {}  # have blocks and a seat; their KV is on its way
        self.handed: dict[Request, None] = {}  # done here, whose KV has yet to leave
        self._in_flight: list[Step] = []
        self._async = engine.async_scheduling
        self._scorer = scorer
        self._max_model_len = engine.max_model_len or UNLIMITED
        self._watermark = int(engine.watermark * num_gpu_blocks)
        self._now_ps = 0
        self._step = Step()
        self._threshold = 0  # of this iteration
        self._view: ReplicaView | None = None  # as the scores of this iteration see the replica
        self._waiting_scored = self._running_scored = False
        self._stale: list[Request] = []  # preempted: their scores are out of date
        guard = policy.acting_guard
        self._watch = None if guard is None else Watch(guard)

    def settle(self) -> None:
        """Nothing: all is up to date."""

    def cached_tokens(self, request: Request) -> int:
        """Leading tokens of a request, here or not, that are in the prefix cache."""
        return len(self.kv.find(request)) * self.engine.block_size

    def add(self, request: Request, now_ps: int, planned_ps: int) -> None:
        """A request waits; ``planned_ps`` is when the workload says that it would arrive."""
        self._set_first_score(request, now_ps, planned_ps)
        if self._watch is not None:
            self._watch.arrived(request, idle=not self.running and not len(self.waiting))
        self.waiting.push(request)

    def remove(self, request: Request) -> None:
        """Forgets an unfinished request, whose tokens under way are lost, and frees its blocks."""
        if request.in_batch:
            self.running.remove(request)
            self.kv.release(request)
            request.in_batch = False
        else:
            self.waiting.remove(request)
        self._stale = [each for each in self._stale if each is not request]
        request.computed = request.pending = request.stored = 0
        request.waiter = None
        request.ahead = False

    def begin(self, now_ps: int) -> None:
        """Starts an iteration: fixes what its scores see."""
        self._now_ps = now_ps
        self._step = Step()
        self._threshold = self.engine.long_prefill_token_threshold
        alone = len(self.running) + len(self.waiting) == 1
        if alone and not self.engine.long_prefill_applies_alone:
            self._threshold = 0
        if self._scorer.changes:
            self._view = self.view(now_ps, self._scorer.reads)
            self._waiting_scored = self._running_scored = False
        if self._watch is not None:
            self.waiting.reorder(self._watch.send_ahead(now_ps))

    def preempt(self, victims: Sequence[Request] | None) -> None:
        """Running requests give way, None for those that the policy names."""
        if victims is not None:
            for request in victims:
                self._give_way(request)
        elif self.policy.preemption.mode != "none" and len(self.waiting):
            self._preempt_by_policy()

    def candidates(self) -> list[Request]:
        """The waiting requests, next first; between ``preempt`` and ``schedule``."""
        self._score_waiting()
        return self.waiting.ordered()

    def schedule(self, first: Sequence[Request]) -> Step:
        """Decides the iteration that ``begin`` started; ``first`` go ahead of the queue in it."""
        step = self._step
        budget, pressed = self._schedule_running(step)
        if not pressed:
            self._schedule_waiting(step, budget, first)
        self._in_flight.append(step)
        return step

    def finish(self, step: Step) -> list[Request]:
        """The oldest iteration under way has ended; the requests that are done, and left."""
        self._in_flight.remove(step)
        done: list[Request] = []
        for request in step.yields:
            last = request.generated == request.output
            if self._async:  # when this iteration was scheduled its token was not known
                if request.in_batch:
                    self.kv.remember(request, request.computed - request.pending)
                elif last:  # preempted while its last token was under way
                    self.waiting.remove(request)
                elif self._scorer.changes:
                    self._stale.append(request)
            if last:
                if request.hands_over:
                    self.handed[request] = None
                else:
                    self.kv.release(request)
                done.append(request)
        if done:
            finished = set(done)
            self.running = [r for r in self.running if r not in finished]
        return done

    def land(self, request: Request) -> None:
        """The KV of a request has arrived: it joins the batch, at its end."""
        del self.pulling[request]
        request.computed, request.stored, request.remote = request.stored, 0, False
        request.in_batch = True
        self.running.append(request)

    def let_go(self, request: Request) -> None:
        """The KV of a request has left: its blocks are free."""
        del self.handed[request]
        self.kv.release(request)

    def check(self) -> None:
        """Raises ``InvariantError`` if seats, tokens or blocks don't add up."""
        if len(self.running) + len(self.pulling) > self.engine.max_num_seqs:
            raise InvariantError(f"{len(self.running)} requests run on {self.engine.max_num_seqs}")
        waiting = self.waiting.ordered()
        if len(waiting) != len(self.waiting) or any(r.in_batch or r.held for r in waiting):
            raise InvariantError("a waiting request runs or holds KV blocks")
        for request in self.running:
            if not request.in_batch or request.computed > request.known + request.pending:
                raise InvariantError(f"request {request.id} computed tokens that it can't know")
            if request.held < self.kv.blocks_for(request.computed):
                raise InvariantError(f"request {request.id} has tokens outside its KV blocks")
        self.kv.check([*self.running, *self.pulling, *self.handed])

    # Scores: evaluated when first asked for in an iteration, all as of its beginning.

    def _set_first_score(self, request: Request, now_ps: int, planned_ps: int) -> None:
        score = self._scorer.known_at_arrival(request, planned_ps)
        stale = request.reach and not self._scorer.every_iteration
        if score is None or stale:  # what was known of it at its arrival is out of date
            self._scorer.update([request], self.view(now_ps, self._scorer.reads))
        else:
            request.score = score

    def _score_waiting(self) -> None:
        if not self._scorer.changes or self._waiting_scored:
            return
        self._waiting_scored = True
        if self._scorer.every_iteration:
            changed = self.waiting.ordered()
        else:
            changed = [r for r in dict.fromkeys(self._stale) if not r.in_batch]
        self._stale.clear()
        self._scorer.update(changed, self._seen())
        self.waiting.reorder(changed)

    def _score_running(self) -> None:
        if self._scorer.changes and not self._running_scored:
            self._running_scored = True
            self._scorer.update(self.running, self._seen())

    def _seen(self) -> ReplicaView:
        assert self._view is not None  # ``begin`` made it
        return self._view

    # Preemption

    def _preempt(self, request: Request) -> None:
        """Takes a request, no longer in ``running``, out of the batch: its blocks are lost."""
        self.kv.release(request)
        request.in_batch = False
        request.computed = 0
        request.preemptions += 1
        self.waiting.push_back(request)
        self._step.preempted.append(request)
        if self._watch is not None:
            self._watch.preempted(request, self._now_ps)
        if self._scorer.changes:
            self._stale.append(request)

    def _worst(self, running: Iterable[Request]) -> Request:
        """vLLM's victim: highest score, then latest arrival, then first in the batch."""
        self._score_running()
        return max(running, key=lambda r: (r.rank, r.arrival_ps))

    def _preempt_by_policy(self) -> None:
        """Lets waiting requests take the place of running ones; see ``policy.Preemption``."""
        self._score_waiting()
        walk = exchanges(
            self.policy.preemption, self._queue(), self._victims,
            seats=self.engine.max_num_seqs - len(self.running),
            in_replica=(len(self.running), len(self.waiting)),
            score=lambda r: r.score, demand=self._demand,
            free_blocks=lambda: self.kv.free, spare_tokens=self._spare_tokens,
        )  # fmt: skip
        for victim, _ in walk:
            self._give_way(victim)

    def _victims(self) -> Victims[Request]:
        self._score_running()
        rule = self.policy.preemption
        return Victims(
            tuple(self.running), [r.score for r in self.running],
            arrival=lambda r: r.arrival_ps, lost=lambda r: r.computed,
            protected=lambda r: r.ahead or rule.protects(r.generated, r.predicted),
        )  # fmt: skip

    def _demand(self, request: Request) -> Demand:
        hits = self.kv.find(request)
        start = max(len(hits) * self.engine.block_size, request.stored)
        tokens = self._capped(request.known - start)
        return Demand(self._admission_blocks(request, hits), tokens)

    def _spare_tokens(self) -> int:
        """Tokens of an iteration that the batch leaves."""
        return self.engine.max_num_batched_tokens - sum(map(self._wanted, self.running))

    def _give_way(self, victim: Request) -> None:
        """Preempts a running request in the policy's mode."""
        self.running.remove(victim)
        if self.policy.preemption.mode == "swap":
            victim.stored = min(victim.computed, victim.known + victim.pending - 1)
            self._step.swapped_tokens += victim.stored
        self._preempt(victim)

    def _queue(self) -> Iterator[Request]:
        """The waiting requests, next first, without those preempted in this iteration."""
        first = self.waiting.peek()
        yield first  # most of the time nobody asks for more, which need sorting
        for request in self.waiting.ordered():
            if request is not first and request not in self._step.preempted:
                yield request

    # The iteration

    def _wanted(self, request: Request) -> int:
        """Tokens that a running request would compute, but for the budget."""
        if request.pending and request.generated + 1 == request.output:
            return 0  # its last token is under way
        tokens = min(request.missing, self._max_model_len - request.computed - 1)
        return self._capped(tokens)

    def _capped(self, tokens: int) -> int:
        return self._threshold if 0 < self._threshold < tokens else tokens

    def _schedule_running(self, step: Step) -> tuple[int, bool]:
        """Tokens for the running requests; the budget left, and whether KV ran out."""
        budget = self.engine.max_num_batched_tokens
        pressed = False
        place = 0
        while place < len(self.running) and budget > 0:
            request = self.running[place]
            tokens = min(self._wanted(request), budget)
            if tokens == 0:
                place += 1
                continue
            while not self.kv.grow(request, request.computed + tokens):
                pressed = True
                if self.policy.queue == "fcfs":
                    victim = self.running.pop()
                else:
                    victim = self._worst(self.running)
                    at = self.running.index(victim)
                    del self.running[at]
                    if victim in step.scheduled:
                        budget += step.scheduled.pop(victim)
                        place -= 1
                    elif at < place and self.engine.schedule_past_preemption:
                        place -= 1
                self._preempt(victim)
                if victim is request:
                    break
            if not request.in_batch:  # it had to give way itself
                if self.policy.queue == "fcfs" or not self.engine.schedule_past_preemption:
                    break
                continue
            self.kv.remember(request, min(request.computed + tokens, request.known))
            step.scheduled[request] = tokens
            budget -= tokens
            place += 1
        return budget, pressed

    def _schedule_waiting(self, step: Step, budget: int, first: Sequence[Request]) -> None:
        """Admits waiting requests, in order, until one finds no seat, no tokens or no blocks."""
        if not len(self.waiting) or not self._seats:
            return
        self._score_waiting()
        ahead = deque(first)
        passed: list[Request] = []
        while len(self.waiting) and budget > 0 and self._seats:
            request = ahead[0] if ahead else self.waiting.peek()
            if request.preemptions and any(request in other.scheduled for other in self._in_flight):
                # what it computed before its preemption has yet to come back
                self.waiting.remove(request)
                passed.append(request)
                if ahead:
                    ahead.popleft()
                continue
            if request in step.preempted:  # nobody gives way and returns in one iteration
                break
            if request.remote:
                if self._admission_blocks(request, []) > self.kv.free:
                    break
                self._pull(request)
                continue
            hits = self.kv.find(request)
            found = len(hits) * self.engine.block_size
            start = max(found, request.stored)
            tokens = self._capped(request.known - start)
            if tokens > budget and not self.engine.enable_chunked_prefill:
                break
            tokens = min(tokens, budget)
            if self._admission_blocks(request, hits, start + tokens) > self.kv.free:
                break
            self.kv.admit(request, hits, start + tokens)
            self.kv.remember(request, start + tokens)
            if ahead:
                ahead.popleft()
            self.waiting.remove(request)
            self.running.append(request)
            request.in_batch = True
            step.admitted = request
            if self._watch is not None:
                self._watch.admitted(request, self._now_ps)
            request.computed = start
            step.swapped_tokens += start - found
            request.stored = 0
            if request.cached < 0:
                request.cached = min(found, request.prompt)
            step.scheduled[request] = tokens
            budget -= tokens
        for request in reversed(passed):
            self.waiting.push_back(request)

    @property
    def _seats(self) -> int:
        return self.engine.max_num_seqs - len(self.running) - len(self.pulling)

    def _pull(self, request: Request) -> None:
        """A waiting request takes its blocks and a seat; its KV sets out."""
        self.kv.admit(request, [], request.known)
        self.waiting.remove(request)
        self.pulling[request] = None
        self._step.pulled.append(request)
        if self._watch is not None:
            self._watch.admitted(request, self._now_ps)

    def _admission_blocks(self, request: Request, hits: list[int], tokens: int = 0) -> int:
        """Free blocks that must be there for a waiting request to be admitted.

        ``tokens`` is what its first iteration needs room for; 0 stands for all that it knows.
        """
        if self.engine.scheduler_reserve_full_isl or tokens == 0:
            tokens = request.known
        needed = self.kv.demand(tokens, hits)
        # alone, a request is always admitted: nobody else could free blocks
        if self.running or self.pulling:
            needed += self._watermark
            share = self.policy.admission.reserve
            if share > 0 and self.policy.admission.by == "peak":
                peak = self._peak_blocks([*self.running, request]) + self._watermark
                needed = max(needed, peak - self.kv.used)
            elif share > 0:
                ahead = sum(self._to_come([*self.running, request]))
                if ahead > 0:  # an infinite share of nothing is nothing
                    needed += math.ceil(min(share * ahead, MOST_RESERVED) / self.engine.block_size)
        return needed

    def _to_come(self, requests: Sequence[Request]) -> list[int]:
        """Tokens that each is predicted to generate yet."""
        of = self.policy.admission.of
        if of == "predicted_tokens":
            return [request.decode_left for request in requests]
        return self._scorer.rounded_up(of, requests)

    def _peak_blocks(self, requests: Sequence[Request]) -> int:
        """The most KV blocks that these will hold at one moment, none ending before its time.

        That is when one of them ends: then those that have as much to come, or more, have grown by
        what it had to come, and the others are gone. A request's last token is never computed, and
        each may leave all but one token of its last block empty.
        """
        share, size = self.policy.admission.reserve, self.engine.block_size
        ends = sorted(
            (
                (math.ceil(min(share * max(left, 1), MOST_RESERVED)), request.known)
                for left, request in zip(self._to_come(requests), requests, strict=True)
            ),
            reverse=True,
        )
        peak = known = 0
        for holders, (left, tokens) in enumerate(ends, 1):
            known += tokens
            peak = max(peak, known + holders * (left - 1 + size - 1))
        return peak // size
