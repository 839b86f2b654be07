"""A policy at the wheel of a vLLM scheduler: order, preemption and the starvation guard.

The driver reads and changes the scheduler that it is given through what all versions share: its
queues, ``running``, ``_preempt_request`` and the KV cache manager. It adds ``request.lengthwise``,
an ``Entry``, to each request.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise import features
from lengthwise.picoseconds import picoseconds
from lengthwise.policies.plugins import client
from lengthwise.policies.plugins.metrics import Counters
from lengthwise.policies.plugins.scorer import Scorer
from lengthwise.policies.plugins.settings import Settings
from lengthwise.policies.plugins.vllm.clock import Clock
from lengthwise.policies.plugins.vllm.entry import Entry, bare_entry, entry_of
from lengthwise.policies.plugins.vllm.lengths import Lengths
from lengthwise.policies.plugins.vllm.queue import ClockQueue, RankQueue, ScoredQueue
from lengthwise.policies.plugins.waits import Waits
from lengthwise.policy import SchedulingPolicy
from lengthwise.prediction import CURVES
from lengthwise.preemption import Demand, Victims, exchanges
from lengthwise.provider import Provider
from lengthwise.starvation import StarvationGuard

Floats = NDArray[np.float64]

QUEUES = ("waiting", "skipped_waiting", "kv_holding_waiting")  # by vLLM's version

# Features of one request, and those that all share, of the scheduler (its driver).
REQUEST: Mapping[str, Callable[[Entry], float]] = {
    "arrival_s": lambda e: e.arrival_s,
    "prompt_tokens": lambda e: e.request.num_prompt_tokens,
    "predicted_tokens": lambda e: e.predicted_tokens,
    **{name: partial(Entry.left, feature=name) for name in CURVES},
    "priority": lambda e: e.priority,
    "deadline_s": lambda e: e.deadline_s,
    "generated_tokens": lambda e: e.request.num_output_tokens,
    "computed_tokens": lambda e: e.request.num_computed_tokens,
    "preemptions": lambda e: e.request.num_preemptions,
}
SHARED: Mapping[str, Callable[[Driver], float]] = {
    "now_s": lambda driver: driver.now_s,
    "running_requests": lambda driver: len(driver.scheduler.running),
    "waiting_requests": lambda driver: sum(map(len, driver.queues)),
    "kv_utilization": lambda driver: driver.scheduler.kv_cache_manager.usage,
    "free_seats": lambda driver: (
        driver.scheduler.max_num_running_reqs - len(driver.scheduler.running)
    ),
    "max_seats": lambda driver: driver.scheduler.max_num_running_reqs,
    "prefill_backlog_tokens": lambda driver: sum(
        max(request.num_prompt_tokens - request.num_computed_tokens, 0)
        for request in driver.scheduler.requests.values()
    ),
    "decode_backlog_tokens": lambda driver: sum(
        max(_entry(request).whole_tokens - request.num_output_tokens, 0)
        for request in driver.scheduler.requests.values()
    ),
}
VALUES: Provider[Callable[[Any], float]] = Provider("a vLLM scheduler", {**REQUEST, **SHARED})


class Driver:
    """One scheduler's driver.

    Replaces the scheduler's waiting queues. Raises ``InputError`` for a policy that reads what an
    engine doesn't have, and for a predictor that can't be loaded.
    """

    scheduler: Any
    now_s: float  # of the step, since the driver was made
    queues: list[ScoredQueue]

    def __init__(
        self,
        scheduler: Any,
        settings: Settings,
        policy: SchedulingPolicy,
        counters: Counters,
    ) -> None:
        self.scheduler = scheduler
        self.policy = policy
        self.counters = counters
        self.gave_way: list[str] = []  # ids preempted by policy in this step
        self.clock = Clock()
        self._scorer = Scorer(
            policy.score, self.counters, settings.policy_timeout_s, policy.trained_on
        )
        self._scorer.require(VALUES)
        self._reads_length = features.reads_prediction(policy.score.features)
        self.now_s = 0.0
        # the shared features that the policy reads, as of the step's beginning
        self._view = {name: 0.0 for name in self._scorer.names if name in SHARED}
        self._sequence = count()
        self._guard: StarvationGuard[Entry] = StarvationGuard(settings.guard_of(policy))
        self._in_flight: deque[Mapping[str, int]] = deque()  # steps scheduled and not done
        self._held: list[Entry] = []  # preempted by policy: not yet fit to run again
        self._passed: list[Entry] = []  # of these, taken out of the queue for this step
        self._stale: list[Entry] = []  # preempted since the last step: scores are out of date
        self.queues = []
        for name in QUEUES:
            if hasattr(scheduler, name):
                self.queues.append(self._make_queue())
                setattr(scheduler, name, self.queues[-1])
        self._waiting = self.queues[0]
        self._groups = len(scheduler.kv_cache_config.kv_cache_groups)
        self._pool = scheduler.kv_cache_manager.block_pool
        curves = [name for name in policy.score.features if name in CURVES]
        self._lengths = Lengths(settings, scheduler.vllm_config.model_config, counters, curves)
        self._waits = Waits(counters)

    def _make_queue(self) -> ScoredQueue:
        if self._scorer.by_clock:
            return ClockQueue(_entry, self._scorer, REQUEST, self._view, self._policy_failed)
        return RankQueue(_entry, self._score)

    # What the scheduler reports

    def arrive(self, request: Any) -> None:
        """A request is about to be added; never raises.

        One that the plugin can't make sense of is served first come, first served.
        """
        if not self.scheduler.requests:
            self._guard.idle()
        if request.request_id in self.scheduler.requests:
            return  # the next turn of a streaming session, which has its entry
        try:
            self._take_in(request)
        except Exception as error:
            self.counters.warn("plugin-error", f"a request is served FCFS: {error!r}")
            self.counters.add("fallbacks", "plugin")
            entry = bare_entry(request, next(self._sequence), self.clock.now_s())
            self._guard.arrived(entry)
            self._guard.watch(entry)

    def _take_in(self, request: Any) -> None:
        arrival_s = self.clock.arrival_s(request.arrival_time)
        entry = entry_of(request, next(self._sequence), arrival_s, self.counters)
        told = client.sent(request.sampling_params).get("predicted_tokens")
        self._lengths.ask(entry, told, self._reads_length)
        self._guard.arrived(entry)
        if getattr(request, "resumable", False):
            entry.state = "failed"  # a session waits for its user, not for us
        else:
            self._guard.watch(entry)

    def finished(self, request: Any) -> None:
        """The engine is done with a request."""
        if (entry := getattr(request, "lengthwise", None)) is not None:
            self._lengths.finished(entry)

    def preempted(self, request: Any) -> None:
        """A running request went back to the queue, by whatever cause."""
        entry = _entry(request)
        self._guard.preempted(entry, request.num_output_tokens, self._now_ps)
        self._stale.append(entry)

    def before_step(self, throttled: bool) -> None:
        """Brings scores up to date and preempts by policy; never raises.

        ``throttled`` says that the step admits nobody.
        """
        try:
            self._update()
            if not throttled and self.policy.preemption.mode != "none":
                self._preempt_by_policy()
            if self._scorer.by_progress and self._blocks_may_run_out():
                self._set_priorities()
        except Exception as error:  # ours or the policy's: the engine must go on
            self.counters.warn("plugin-error", f"the policy was left out of a step: {error!r}")
            self.counters.add("failed_steps", "policy")
        # Who gave way can't be resumed in this very step. While output is under way for it, the
        # queue goes on without it, as in vLLM 0.33; otherwise nobody overtakes it.
        self._passed = [entry for entry in self._held if self._is_in_flight(entry)]
        self._waiting.remove_requests([entry.request for entry in self._passed])
        self._waiting.barred.update(entry.sequence for entry in self._held)

    def after_step(self) -> None:
        """Notes who runs now: vLLM appends those that it admits to ``running``."""
        self._waiting.barred.clear()
        for entry in self._passed:
            self._waiting.add(entry)
        for request in reversed(self.scheduler.running):
            entry = _entry(request)
            if entry.running:
                return
            if not entry.admissions and entry.state == "ready":
                self._waits.admitted(entry.score, self.now_s - entry.arrival_s)
            self._guard.admitted(entry, self._now_ps)

    def launched(self, scheduled: Mapping[str, int]) -> None:
        """A step was scheduled; ``scheduled`` is its own mapping of request ids to tokens."""
        self._in_flight.append(scheduled)

    def landed(self, scheduled: Mapping[str, int]) -> None:
        """The step with this mapping is done, and with it all before."""
        if any(step is scheduled for step in self._in_flight):
            while self._in_flight.popleft() is not scheduled:
                pass

    def close(self) -> None:
        """Ends the predictor's process."""
        self._lengths.close()

    # Order

    def _update(self) -> None:
        self.gave_way = []
        self._held = [
            entry
            for entry in self._held
            if not (entry.running or entry.gone) and self._is_in_flight(entry)
        ]
        self.now_s = self.clock.now_s()
        for name in self._view:
            self._view[name] = SHARED[name](self)
        for queue in self.queues:
            queue.refresh()
        for entry in self._lengths.news():
            self._reorder(entry)
        for entry in self._stale:
            self._reorder(entry)
        self._stale.clear()
        for entry in self._guard.turns(self._now_ps):
            entry.turn = True
            if entry.state != "ready":
                self._reorder(entry)
        for entry in self._guard.send_ahead(self._now_ps):
            self.counters.add("guarded", "wait")
            self._reorder(entry)

    @property
    def _now_ps(self) -> int:
        """The time of this step, as the guard counts it."""
        return picoseconds(self.now_s)

    def _is_in_flight(self, entry: Entry) -> bool:
        """Whether a step that computes something of the request is not done yet."""
        return any(entry.request.request_id in step for step in self._in_flight)

    def _reorder(self, entry: Entry) -> None:
        """A request's rank may have changed: it is moved, if it waits."""
        if entry.running:
            entry.request.priority = entry.rank
        for queue in self.queues:
            queue.reorder(entry)

    def _score(self, entry: Entry) -> None:
        """The score of a request that joins a queue whose scores stand still."""
        if entry.state == "ready":
            entry.score = self._scorer.one({n: VALUES[n](entry) for n in self._scorer.names})
            if math.isnan(entry.score):
                self._policy_failed(entry)

    def _policy_failed(self, entry: Entry) -> None:
        entry.state = "failed"
        self.counters.add("fallbacks", "policy")

    def _running_scores(self) -> Floats:
        """Scores of the running requests as of this step, (running,); NaN where that fails."""
        entries = [request.lengthwise for request in self.scheduler.running]
        if not self._scorer.by_progress:
            return np.array([entry.score for entry in entries], dtype=np.float64)
        values: dict[str, Any] = {}
        for name in self._scorer.names:
            if name in self._view:
                values[name] = self._view[name]
            else:
                of = VALUES[name]
                values[name] = np.array([of(entry) for entry in entries], dtype=np.float64)
        return self._scorer.many(values, len(entries))

    def _set_priorities(self) -> None:
        """Under KV pressure vLLM preempts the running request of the highest priority value."""
        running = self.scheduler.running
        for request, score in zip(running, self._running_scores().tolist(), strict=True):
            entry = _entry(request)
            if math.isnan(score) and entry.state == "ready":
                self._policy_failed(entry)
            entry.score = score
            request.priority = entry.rank

    def _blocks_may_run_out(self) -> bool:
        """Whether this step could ask for more KV blocks than are free."""
        scheduler = self.scheduler
        running = len(scheduler.running)
        tokens = scheduler.max_num_scheduled_tokens + running * scheduler.num_lookahead_tokens
        most = self._groups * (running + tokens // scheduler.block_size + 1)
        return bool(self._pool.get_num_free_blocks() < most)

    # Preemption by policy: see ``lengthwise.policy.Preemption``

    def _preempt_by_policy(self) -> None:
        """Lets waiting requests take the place of running ones, before vLLM schedules."""
        scheduler, rule = self.scheduler, self.policy.preemption
        pause = getattr(scheduler, "_pause_state", None)
        if not (scheduler.running and self._waiting) or (pause and pause.name != "UNPAUSED"):
            return
        seats = getattr(scheduler, "max_num_active_reqs", scheduler.max_num_running_reqs)
        seats -= len(scheduler.running) + getattr(scheduler, "num_waiting_for_streaming_input", 0)
        seats = max(seats, 0)
        best = self._waiting.best(seats + rule.max_per_step + 1)
        walk = exchanges(
            rule, (entry for entry in best if self._can_run(entry.request)), self._victims,
            seats=seats,
            in_replica=(len(scheduler.running), sum(map(len, self.queues))),
            score=lambda entry: entry.score if entry.state == "ready" else math.nan,
            demand=self._demand,
            free_blocks=self._pool.get_num_free_blocks,
            spare_tokens=self._spare_tokens,
        )  # fmt: skip
        for victim, _ in walk:
            self._give_way(victim)

    def _victims(self) -> Victims[Entry]:
        rule = self.policy.preemption
        return Victims(
            [request.lengthwise for request in self.scheduler.running], self._running_scores(),
            arrival=lambda e: e.arrival_s, lost=lambda e: e.request.num_computed_tokens,
            protected=lambda e: e.ahead or e.state != "ready"
            or rule.protects(e.request.num_output_tokens, e.whole_tokens),
        )  # fmt: skip

    def _give_way(self, victim: Entry) -> None:
        request = victim.request
        self.scheduler.running.remove(request)
        self.scheduler._preempt_request(request, time.monotonic())
        self.gave_way.append(request.request_id)
        self._held.append(victim)
        self.counters.add("preemptions", "policy")

    def _can_run(self, request: Any) -> bool:
        """Whether vLLM would admit a waiting request, were there room."""
        if request.status.name not in ("WAITING", "PREEMPTED"):
            return False  # it waits for a grammar, for remote KV blocks or for its user
        config = self.scheduler.lora_config
        if not config or not request.lora_request:
            return True
        running = self.scheduler.running
        loaded = {r.lora_request.lora_int_id for r in running if r.lora_request}
        return request.lora_request.lora_int_id in loaded or len(loaded) < config.max_loras

    def _demand(self, entry: Entry) -> Demand:
        """What admitting a waiting request takes."""
        request = entry.request
        manager, size = self.scheduler.kv_cache_manager, self.scheduler.block_size
        found = idle = 0  # tokens in the prefix cache; blocks of them that count as free
        if manager.enable_caching:
            hits = manager.coordinator.find_longest_cache_hit(
                request.block_hashes, request.num_tokens - 1
            )
            found = hits[1]
            idle = sum(block.ref_cnt == 0 for group in hits[0] for block in group)
        needed = self._groups * (-(-request.num_tokens // size) - found // size) + idle
        if self.scheduler.running:
            needed += getattr(manager, "watermark_blocks", 0)
        return Demand(needed, self._capped(request.num_tokens - found))

    def _spare_tokens(self) -> int:
        """Tokens of this step that the running requests leave."""
        wanted = sum(map(self._wanted, self.scheduler.running))
        return int(self.scheduler.max_num_scheduled_tokens) - wanted

    def _wanted(self, request: Any) -> int:
        """Tokens that a running request would compute in this step, but for the budget."""
        pending, computed = request.num_output_placeholders, request.num_computed_tokens
        if pending > 0 and computed + 2 - pending >= request.num_prompt_tokens + request.max_tokens:
            return 0  # its last token is under way
        tokens = request.num_tokens_with_spec + pending - computed
        return self._capped(min(tokens, self.scheduler.max_model_len - 1 - computed))

    def _capped(self, tokens: int) -> int:
        threshold = int(self.scheduler.scheduler_config.long_prefill_token_threshold)
        return threshold if 0 < threshold < tokens else tokens


def _entry(request: Any) -> Entry:
    found: Entry = request.lengthwise
    return found
