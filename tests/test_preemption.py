"""Who gives way to whom: one contract for the reference engine and the plugins of two engines.

The compiled engine repeats the reference (``test_serving_kernel``). The score of a request is its
prompt's length, and a running request wants one token; who gives way is worked out by hand.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from lengthwise.policies.plugins.metrics import Counters
from lengthwise.policies.plugins.settings import Settings
from lengthwise.policies.plugins.transformers import PolicyOrder
from lengthwise.policies.plugins.vllm.clock import Clock
from lengthwise.policies.plugins.vllm.driver import Driver
from lengthwise.policy import LONGEST_FLOOR_S, Guard, Preemption, SchedulingPolicy, Score
from lengthwise.serving import Engine
from lengthwise.serving.reference.request import Request
from lengthwise.serving.reference.scheduler import Scheduler as Decides

BLOCK = 16


def by_prompt(prompt_tokens: Any) -> Any:
    return prompt_tokens


@dataclass(frozen=True)
class Runs:
    """A running request."""

    score: int
    arrival: int = 0
    generated: int = 1
    predicted: float = 0.0  # 0: nobody predicted it
    ahead: bool = False

    @property
    def computed(self) -> int:
        return self.score + self.generated - 1


@dataclass(frozen=True)
class Hall:
    """A batch, a queue and a rule; ``gives`` are the places in the batch, in order."""

    says: str
    running: tuple[Runs, ...]
    waiting: tuple[int, ...]
    gives: tuple[int, ...]
    rule: dict[str, Any] = dataclasses.field(default_factory=dict)
    seats: int = 0
    budget: int = 2048
    free: int = 1000  # blocks

    @property
    def policy(self) -> SchedulingPolicy:
        rule = Preemption("recompute", **({"price": 0.0} | self.rule))
        return SchedulingPolicy(Score.from_function(by_prompt), rule)


def batch(*scores: int) -> tuple[Runs, ...]:
    return tuple(Runs(score) for score in scores)


EVERYWHERE = (
    Hall("the worst gives way to the best", batch(10, 30, 20), (5, 6), (1, 2)),
    # 30 > 5; then 20 is not above 25, and whoever waits behind must wait too
    Hall("the first who finds no place ends it", batch(10, 30, 20), (5, 25, 26), (1,)),
    Hall("equal is not better", batch(30,), (30,), ()),
    # 30 - 5 = 25 is above 20; 20 - 6 = 14 is not
    Hall("a margin", batch(10, 30, 20), (5, 6), (1,), {"margin": 20.0}),
    Hall("a gain of the margin is not above it", batch(25,), (5,), (), {"margin": 20.0}),
    Hall("as many as a step may preempt, and no more",
         batch(10, 20, 30, 40), (1, 2, 3), (3, 2), {"max_per_step": 2}),
    Hall("all of them, where a step may preempt that many",
         batch(10, 20, 30, 40), (1, 2, 3), (3, 2, 1), {"max_per_step": 3}),
    Hall("free seats first", batch(10, 20), (1, 2), (1,), seats=1),
    Hall("nobody, where seats suffice", batch(10, 20), (1, 2), (), seats=2),
    # 5 of 10 tokens are half; 4 are less
    Hall("protected past a share of the prediction",
         (Runs(30, generated=5, predicted=10), Runs(20, generated=4, predicted=10)), (5, 6), (1,),
         {"protect_after": 0.5}),
    # 4.2 tokens are 5 whole ones, of which 0.9 are 4.5, and 4 have been generated
    Hall("predictions count in whole tokens",
         (Runs(30, generated=4, predicted=4.2),), (5,), (0,), {"protect_after": 0.9}),
    Hall("a default length protects nobody",
         (Runs(30, generated=300),), (5,), (0,), {"protect_after": 0.5}),
    Hall("of equal scores the latest arrival, then the first in the batch",
         (Runs(20, 1), Runs(20, 3), Runs(20, 3)), (1, 2, 3), (1, 2, 0)),
    # three running tokens of 8: without a victim two, so that 6 are left for 5, and then 1 for
    # the next; of 7 tokens nothing is left for the next
    Hall("for as long as tokens last", batch(10, 30, 20), (5, 6), (1, 2), budget=8),
    Hall("the guard's are protected",
         (Runs(10), Runs(30, ahead=True), Runs(20)), (5,), (2,)),
    Hall("not without tokens", batch(10, 30, 20), (5, 6), (1,), budget=7),
)  # fmt: skip

# where a request that gives way loses its blocks, and its place has a price
WITH_BLOCKS = (
    # 100 computed tokens are lost, in a replica of 2: 0.44 x 100 x 2 = 88, of a gain of 90
    Hall("a price below the gain", batch(100), (10,), (0,), {"price": 0.44, "overhead_tokens": 0}),
    Hall("a price of the gain", batch(100), (10,), (), {"price": 0.45, "overhead_tokens": 0}),
    # 20 tokens need 2 blocks of 16, 1 is free; 100 tokens give 7; the next needs 3 of what is left
    Hall("a seat without blocks is none", batch(100, 40), (20, 33), (0,), seats=1, free=1),
    # 33 tokens need 3 blocks: 0 and then 3 of 40 tokens' are free; 20 more tokens need 2
    Hall("blocks are promised once", batch(40, 35), (20, 33), (0, 1), seats=2, free=0),
    # 1 and 2 of 4 blocks are promised when the third asks for 2
    Hall("promises add up", batch(40), (10, 20, 20), (0,), seats=3, free=4),
)  # fmt: skip


def in_reference(hall: Hall) -> list[int]:
    engine = Engine(
        max_num_seqs=len(hall.running) + hall.seats, max_num_batched_tokens=hall.budget,
        block_size=BLOCK,
    )  # fmt: skip
    used = sum(-(-each.computed // BLOCK) for each in hall.running)
    still: Any = SimpleNamespace(changes=frozenset())  # scores stand still
    decides = Decides(engine, used + hall.free + 1, hall.policy, still)
    for place, each in enumerate(hall.running):
        whole = -int(-each.predicted // 1)
        request = Request(place, each.score, 10_000, each.arrival, whole, ())
        request.known, request.computed = each.score + each.generated, each.computed
        request.score, request.ahead, request.in_batch = each.score, each.ahead, True
        assert decides.kv.grow(request, each.computed)
        decides.running.append(request)
    for place, score in enumerate(hall.waiting):
        request = Request(100 + place, score, 10_000, 10, 0, ())
        request.score = score
        decides.waiting.push(request)
    decides.begin(0)
    decides.preempt(None)
    return [request.id for request in decides.schedule(()).preempted]


class Scheduler(SimpleNamespace):
    """As much of vLLM's as a driver reads."""

    def __init__(self, hall: Hall) -> None:
        self.free = hall.free
        super().__init__(
            requests={}, running=[], waiting=None, lora_config=None, max_model_len=1 << 30,
            max_num_running_reqs=len(hall.running) + hall.seats,
            max_num_scheduled_tokens=hall.budget, num_lookahead_tokens=0, block_size=BLOCK,
            scheduler_config=SimpleNamespace(long_prefill_token_threshold=0),
            vllm_config=SimpleNamespace(model_config=SimpleNamespace(max_model_len=1 << 30)),
            kv_cache_config=SimpleNamespace(kv_cache_groups=[None]),
            kv_cache_manager=SimpleNamespace(
                enable_caching=False,
                block_pool=SimpleNamespace(get_num_free_blocks=lambda: self.free),
            ),
        )  # fmt: skip

    def _preempt_request(self, request: Any, now_s: float) -> None:
        self.free += -(-request.num_computed_tokens // BLOCK)
        request.num_computed_tokens = 0
        request.status.name = "PREEMPTED"
        self.waiting.add_request(request)


def in_vllm(hall: Hall) -> list[int]:
    scheduler: Any = Scheduler(hall)
    settings = Settings(policy="given", policy_timeout_s=1e9)
    driver = Driver(scheduler, settings, hall.policy, Counters())
    now_s = 0.0
    driver.clock = Clock(lambda: now_s, lambda: now_s)
    now_s = 50.0
    for place, each in enumerate((*hall.running, *(Runs(s, 10) for s in hall.waiting))):
        extra = {"predicted_tokens": each.predicted} if each.predicted else {}
        runs = place < len(hall.running)
        request = SimpleNamespace(
            request_id=str(place), arrival_time=each.arrival, priority=0, max_tokens=10_000,
            sampling_params=SimpleNamespace(extra_args=extra), prompt_token_ids=None,
            status=SimpleNamespace(name="RUNNING" if runs else "WAITING"), lora_request=None,
            num_prompt_tokens=each.score, num_output_tokens=each.generated * runs,
            num_tokens=each.score, num_tokens_with_spec=each.score + each.generated,
            num_computed_tokens=each.computed * runs, num_output_placeholders=0, num_preemptions=0,
            is_finished=lambda: False,
        )  # fmt: skip
        driver.arrive(request)
        scheduler.requests[request.request_id] = request
        if runs:
            scheduler.running.append(request)
            request.lengthwise.score, request.lengthwise.ahead = each.score, each.ahead
        else:
            scheduler.waiting.add_request(request)
    driver.after_step()
    driver.before_step(throttled=False)
    assert not driver.counters.counts["fallbacks", "plugin-error"]
    return [int(request_id) for request_id in driver.gave_way]


class Batches:
    """As much of transformers' scheduler as a policy's goes before."""

    def __init__(self, seats: int) -> None:
        self.max_requests_per_batch, self.block_new_requests = seats, False
        self.active_requests: dict[str, Any] = {}
        self.waiting_requests: dict[str, Any] = {}
        self.tried: list[set[str]] = []

    def add_waiting_request(self, state: Any) -> None:
        self.waiting_requests[state.request_id] = state

    def schedule_batch(self, token_budget: int, cache_budget: int) -> Any:
        self.tried.append(set(self.active_requests))
        return (
            [SimpleNamespace(state=state) for state in self.active_requests.values()],
            False,
            0,
            0,
        )


def in_transformers(hall: Hall) -> list[int]:
    made = type("Made", (PolicyOrder, Batches), {
        "policy": hall.policy, "predict": None, "default_tokens": 256.0,
        "rule": Guard(1.0, LONGEST_FLOOR_S), "clock": lambda self: 10.0, "known": None,
    })(len(hall.running) + hall.seats)  # fmt: skip
    for place, each in enumerate((*hall.running, *(Runs(s, 10) for s in hall.waiting))):
        state = SimpleNamespace(
            request_id=str(place), initial_tokens=[0] * each.score, created_time=each.arrival,
            generated_tokens=[0] * each.generated, position_offset=each.computed,
            remaining_prefill_tokens=[] if place < len(hall.running) else [0] * each.score,
        )  # fmt: skip
        made.add_waiting_request(state)
        assert made._lengthwise_guard is not None
        made._lengthwise_guard._waiters[state.request_id].ahead = each.ahead
        state.lengthwise_sequence = each.arrival
        state.lengthwise_whole = -int(-each.predicted // 1)
        if place < len(hall.running):
            made.active_requests[state.request_id] = made.waiting_requests.pop(state.request_id)
            made._lengthwise_seated.add(state.request_id)
    made.schedule_batch(hall.budget, 1 << 30)
    return sorted(int(i) for i in set(made.active_requests) - made.tried[0])


@pytest.mark.parametrize("hall", (*EVERYWHERE, *WITH_BLOCKS), ids=lambda hall: hall.says)
def test_the_reference_engine(hall: Hall) -> None:
    assert in_reference(hall) == list(hall.gives)


@pytest.mark.parametrize("hall", (*EVERYWHERE, *WITH_BLOCKS), ids=lambda hall: hall.says)
def test_the_plugin_in_vllm(hall: Hall) -> None:
    assert in_vllm(hall) == list(hall.gives)


@pytest.mark.parametrize("hall", EVERYWHERE, ids=lambda hall: hall.says)
def test_the_plugin_in_transformers(hall: Hall) -> None:
    """It passes over whom the others preempt; all at once, so that there is no order among them."""
    assert in_transformers(hall) == sorted(hall.gives)
