"""What every plugin must do, by one table over fakes of engines: order, limits, counts."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lengthwise.errors import InputError
from lengthwise.policies import load_policy
from lengthwise.policies.plugins.metrics import Counters
from lengthwise.policies.plugins.settings import Settings
from lengthwise.policies.plugins.sglang import ENVIRONMENT, Priorities
from lengthwise.policies.plugins.transformers import PolicyOrder
from lengthwise.policies.plugins.transformers_guard import BatchGuard
from lengthwise.policies.plugins.vllm import scheduler as scheduler_of
from lengthwise.policies.plugins.vllm.driver import SHARED, Driver
from lengthwise.policies.plugins.vllm.scheduling import (
    PolicyScheduling,
    RecordedScheduling,
    refuse,
)
from lengthwise.policies.plugins.vllm.shadow import ShadowScheduling
from lengthwise.policy import Guard, SchedulingPolicy, Score
from lengthwise.prediction import Prediction
from tests.engines.fake_scheduler import FakeScheduler, Request, config
from tests.engines.odd_requests import _FIFO

NO_GUARD = {"guard": 0.0}


class Job:
    """A request as each engine's adapter makes it."""

    def __init__(
        self, prompt: int = 3, says: Any = None, output: int = 2, limit: int | None = 64,
        arrival: float = 0.0, priority: float = 0,
    ) -> None:  # fmt: skip
        self.prompt, self.says, self.output, self.limit = prompt, says, output, limit
        self.arrival, self.priority = arrival, priority


def vllm(
    policy: str | SchedulingPolicy, jobs: list[Job], *, seats: int = 1, **settings: Any
) -> tuple[list[int], Counters, Any]:
    """The order in which requests that arrive together end, in vLLM's plugin over a fake."""
    made = driven(policy, seats, **settings)
    for i, job in enumerate(jobs):
        sent = None if job.says is None else {"predicted_tokens": job.says}
        made.add_request(
            Request(f"{i}", output=job.output, prompt=[7] * job.prompt, sent=sent,
                    limit=job.limit, arrival=job.arrival, priority=job.priority)
        )  # fmt: skip
    served(made)
    return [int(name) for name in made.finished], made.lengthwise.counters, made


def driven(policy: str | SchedulingPolicy, seats: int = 1, **settings: Any) -> Any:
    loaded = load_policy(policy)
    said = Settings(policy=loaded.name, **{**NO_GUARD, "policy_timeout_s": 1e9, **settings})
    made: Any = type("Made", (PolicyScheduling, FakeScheduler), {})(
        config(seats), lengthwise=(said, loaded, Counters())
    )
    made.now_s = 100.0
    made.lengthwise.clock.follow(lambda: made.now_s)
    return made


def served(made: Any, steps: int = 2000) -> None:
    for _ in range(steps):
        if not made.requests:
            return
        made.update_from_output(made.schedule(), None)
        made.now_s = getattr(made, "now_s", 0.0) + 1.0
    raise AssertionError("it does not end")


def transformers(
    policy: str | SchedulingPolicy, jobs: list[Job], *, seats: int = 1, **settings: Any
) -> tuple[list[int], Counters, Any]:
    """The same in transformers' continuous batching; what is said is what its predictor says."""
    answers = iter([job.says for job in jobs])

    def predict(prompts: Any, known: Any) -> Any:
        said = next(answers)
        return said if isinstance(said, Prediction) else [said]

    unsaid = all(job.says is None for job in jobs)
    made = passing(
        policy, None if unsaid else predict, seats, settings.get("default_tokens", 256.0)
    )
    for i, job in enumerate(jobs):
        made.add_waiting_request(state_of(i, job))
    ended: list[int] = []
    for _ in range(2000):
        for future in made.schedule_batch(64, 64)[0] or ():
            state = future.state
            state.remaining_prefill_tokens = []
            state.generated_tokens.append(0)
            state.position_offset = len(state.initial_tokens) + len(state.generated_tokens) - 1
            if len(state.generated_tokens) >= state.output:
                made.finish_request(state.request_id)
                ended.append(int(state.request_id))
        if len(ended) == len(jobs):
            return ended, made.lengthwise_counters, made
    raise AssertionError("it does not end")


def passing(policy: Any, predict: Any, seats: int, default: float, **more: Any) -> Any:
    given = {"policy": load_policy(policy), "predict": staticmethod(predict) if predict else None,
             "default_tokens": default, "rule": Guard(0.0), "known": None, **more}  # fmt: skip
    made: Any = type("Made", (PolicyOrder, _FIFO), given)()
    made.max_requests_per_batch = seats
    return made


def state_of(i: int, job: Job) -> Any:
    prompt = [7] * job.prompt
    return SimpleNamespace(
        request_id=f"{i}", initial_tokens=prompt, generated_tokens=[], position_offset=0,
        created_time=job.arrival, max_new_tokens=job.limit, remaining_prefill_tokens=prompt,
        output=job.output,
    )  # fmt: skip


def sglang(
    policy: str | SchedulingPolicy, jobs: list[Job], *, seats: int = 1, **settings: Any
) -> tuple[list[int], Counters, Any]:
    """The order of SGLang's queue of what arrived together: stable, by priority."""
    spelled = policy if isinstance(policy, str) else policy.name
    if isinstance(policy, str):
        priorities = Priorities(Settings(policy=spelled, **settings))
    else:
        priorities = Priorities(Told(policy=spelled, **settings, loaded=policy))
    waiting = [
        SimpleNamespace(
            rid=i, origin_input_ids=[7] * job.prompt, output_ids=[], priority=job.priority,
            sampling_params=SimpleNamespace(
                custom_params=None if job.says is None else {"predicted_tokens": job.says},
                max_new_tokens=job.limit,
            ),
        )
        for i, job in enumerate(jobs)
    ]  # fmt: skip
    policy_ = SimpleNamespace(enable_priority_scheduling=True, priority_sign=1)
    priorities.check(None, policy_)
    priorities.order(lambda _, queue: queue.sort(key=lambda r: r.priority), policy_, waiting)
    return [request.rid for request in waiting], priorities.counters, priorities


class Told(Settings):
    """Settings whose policy is an object."""

    def __init__(self, loaded: SchedulingPolicy, **given: Any) -> None:
        super().__init__(**given)
        object.__setattr__(self, "loaded", loaded)

    def load(self) -> SchedulingPolicy:
        return self.loaded  # type: ignore[attr-defined, no-any-return]


Adapter = Callable[..., tuple[list[int], Counters, Any]]
ENGINES = pytest.mark.parametrize("engine", [vllm, transformers, sglang], ids=lambda e: e.__name__)
WAITING = pytest.mark.parametrize("engine", [vllm, transformers], ids=lambda e: e.__name__)


@ENGINES
def test_the_lowest_score_goes_first_and_the_earlier_of_equals(engine: Adapter) -> None:
    order, counters, _ = engine("sjf", [Job(says=n) for n in (9, 5, 9, 1, 5)])
    assert order == [3, 1, 4, 0, 2]
    by = "predictor" if engine is transformers else "client"
    assert counters.counts["predictions", by] == 5
    assert sum(n for (name, _), n in counters.counts.items() if name != "predictions") == 0


@ENGINES
def test_a_length_is_at_most_what_the_request_may_generate(engine: Adapter) -> None:
    order, *_ = engine("sjf", [Job(says=12), Job(says=5000, limit=10), Job(says=11)])
    assert order == [1, 2, 0]
    # a limit of a single token is one; without a limit there is none
    order, *_ = engine("sjf", [Job(says=500, limit=None), Job(says=300, limit=1), Job(says=2)])
    assert order == [1, 2, 0]


@pytest.mark.parametrize("engine", [vllm, sglang], ids=lambda e: e.__name__)
def test_where_nobody_says_a_length_it_is_the_default(engine: Adapter) -> None:
    jobs = [Job(says=51), Job(), Job(says=49), Job(says="no number"), Job(limit=20)]
    order, counters, _ = engine("sjf", jobs, default_tokens=50.0)
    assert order == [4, 2, 1, 3, 0]
    assert counters.counts["predictions", "client"] == 2
    assert counters.counts["predictions", "default"] == 3
    assert counters.counts["ignored", "predicted_tokens"] == 1
    order, counters, _ = engine("sjf", jobs, client_lengths=False)
    assert order == [4, 0, 1, 2, 3]  # all alike, but for the limit
    assert counters.counts["predictions", "default"] == 5
    assert counters.counts["ignored", "predicted_tokens"] == 0


@WAITING
def test_a_request_whose_score_fails_keeps_its_place_in_line(engine: Adapter) -> None:
    def score(prompt_tokens: Any) -> Any:
        return np.where(np.asarray(prompt_tokens) == 5, np.nan, prompt_tokens)

    failing = SchedulingPolicy(Score.from_function(score))
    jobs = [Job(prompt=p) for p in (9, 5, 2, 1)]
    order, counters, _ = engine(failing, jobs, seats=2, guard=1.0, guard_floor_s=0.0)
    assert counters.counts["fallbacks", "policy"] >= 1
    assert order.index(1) < order.index(0)
    if engine is transformers:  # the second in line is in the first batch of two
        assert set(order[:2]) == {3, 1}


def test_a_request_whose_score_fails_goes_ahead_in_sglang_s_line() -> None:
    def score(prompt_tokens: int) -> float:
        return math.nan if prompt_tokens == 5 else 1.0 * prompt_tokens

    failing = SchedulingPolicy(Score.from_function(score))
    order, counters, _ = sglang(failing, [Job(prompt=p) for p in (9, 5, 2, 1)])
    assert order == [1, 3, 2, 0]
    assert counters.counts["fallbacks", "policy"] == 1


@WAITING
@pytest.mark.parametrize("seats", [1, 2, 3])
def test_as_many_run_at_once_as_there_are_seats(engine: Adapter, seats: int) -> None:
    """Three tokens each: with k seats the k shortest end in the same step, in arrival order."""
    jobs = [Job(says=n, output=3) for n in (60, 20, 50, 10, 40, 30)]
    order, *_ = engine("sjf", jobs, seats=seats)
    ranked = [3, 1, 5, 4, 2, 0]
    waves = [set(ranked[i : i + seats]) for i in range(0, 6, seats)]
    assert [set(order[i : i + seats]) for i in range(0, 6, seats)] == waves


@WAITING
def test_what_is_left_falls_while_a_request_runs(engine: Adapter) -> None:
    """Two seats; who has run is preempted by none with more left, and counts are of takings."""
    policy = "srtf+preempt:mode=recompute,price=0,margin=0,max_per_step=1"
    jobs = [Job(says=8, output=8), Job(says=6, output=6)]
    order, counters, _ = engine(policy, jobs, seats=2)
    assert counters.counts["preemptions", "policy"] == 0
    assert order == [1, 0]


# vLLM


def test_stock_s_requests_are_untouched_and_what_is_added_is_one_attribute() -> None:
    order, _, made = vllm("sjf", [Job(says=2), Job(says=1)])
    assert order == [1, 0]
    assert isinstance(made.lengthwise, Driver)
    assert made.waiting is made.lengthwise.queues[0]
    assert len(made.waiting) == 0


def step(made: Any) -> Any:
    output = made.schedule()
    made.now_s += 1.0
    return output


def test_who_gave_way_waits_until_its_step_is_done() -> None:
    made = driven("srtf+preempt:mode=recompute,price=0", seats=1)
    made.add_request(Request("long", output=50, sent={"predicted_tokens": 50}))
    first = step(made)
    assert list(first.num_scheduled_tokens) == ["long"]
    made.add_request(Request("short", output=1, sent={"predicted_tokens": 2}))
    second = step(made)  # while the first is under way
    assert list(second.num_scheduled_tokens) == ["short"]
    assert second.preempted_req_ids is None
    driver = made.lengthwise
    assert driver.gave_way == ["long"]
    assert driver.counters.counts["preemptions", "policy"] == 1
    assert made.requests["long"].num_preemptions == 1
    made.finish_requests("short")
    third = step(made)
    assert list(third.num_scheduled_tokens) == []  # its first step is not done: not even now
    assert list(made.waiting) == [made.requests["long"]]
    assert driver.gave_way == []
    driver.landed(first.num_scheduled_tokens)
    fourth = step(made)
    assert list(fourth.num_scheduled_tokens) == ["long"]
    assert driver.counters.counts["preemptions", "policy"] == 1
    driver.landed(fourth.num_scheduled_tokens)  # and with it all before
    assert not driver._in_flight
    driver.landed({})  # of a step that was never seen: nothing
    assert not driver._in_flight


def test_who_gave_way_is_not_resumed_in_the_same_step() -> None:
    """Whatever becomes of the request that it gave way to: here its grammar is not ready."""

    class Skips(FakeScheduler):
        def schedule(self) -> Any:
            skipped = [self.waiting.pop_request()] if "short" in self.requests else []
            output = super().schedule()
            for request in skipped:
                self.waiting.add_request(request)
            return output

    loaded = load_policy("srtf+preempt:mode=recompute,price=0")
    given = (Settings(policy="x", guard=0.0, policy_timeout_s=1e9), loaded, Counters())
    made: Any = type("Made", (PolicyScheduling, Skips), {})(config(1), lengthwise=given)
    made.add_request(Request("long", output=50, sent={"predicted_tokens": 50}))
    made.update_from_output(made.schedule(), None)  # nothing of it is under way
    made.add_request(Request("short", output=1, sent={"predicted_tokens": 2}))
    assert made.schedule().num_scheduled_tokens == {}
    assert made.lengthwise.gave_way == ["long"]
    del made.requests["short"]
    assert list(made.schedule().num_scheduled_tokens) == ["short"]


def test_who_gave_way_is_scored_by_what_its_last_step_made() -> None:
    made = driven("srtf+preempt:mode=recompute,price=0")
    long = Request("long", output=50, sent={"predicted_tokens": 50})
    made.add_request(long)
    first = step(made)
    made.add_request(Request("short", output=9, sent={"predicted_tokens": 9}))
    step(made)
    assert made.lengthwise.gave_way == ["long"]
    long.num_output_tokens += 1  # of the step that was under way
    made.lengthwise.landed(first.num_scheduled_tokens)
    step(made)
    entry: Any = long
    assert entry.lengthwise.score == 49 and entry.priority == 49


def test_the_guard_in_vllm_forgets_at_an_idle_moment_and_at_no_other() -> None:
    made, idle = driven("sjf", guard=1.0, guard_floor_s=0.0), []
    forget = made.lengthwise._guard.idle
    made.lengthwise._guard.idle = lambda: (idle.append(sorted(made.requests)), forget())
    made.add_request(Request("0", output=2))
    made.add_request(Request("1", output=2))
    assert idle == [[]]
    made.update_from_output(made.schedule(), None)
    made.add_request(Request("2", output=2))
    assert idle == [[]]
    served(made)
    made.add_request(Request("3", output=2))
    assert idle == [[], []]


def test_steps_land_in_order_and_those_that_never_began_not_at_all() -> None:
    made = driven("sjf")
    driver = made.lengthwise
    a, b, c = {"0": 1}, {"0": 1}, {"0": 1}  # equal, and not the same
    for one in (a, b, c):
        driver.launched(one)
    driver.landed(b)
    assert [one is c for one in driver._in_flight] == [True]
    driver.landed({"0": 1})
    assert len(driver._in_flight) == 1


def test_older_engines_are_told_who_gave_way() -> None:
    class Older(FakeScheduler):
        def schedule(self) -> Any:
            output = super().schedule()
            output.preempted_req_ids = {"own"}
            return output

    loaded = load_policy("srtf+preempt:mode=recompute,price=0")
    said = Settings(policy="x", guard=0.0)
    made: Any = type("Made", (PolicyScheduling, Older), {})(
        config(1), lengthwise=(said, loaded, Counters())
    )
    made.add_request(Request("long", output=50, sent={"predicted_tokens": 50}))
    assert made.schedule().preempted_req_ids == {"own"}
    made.add_request(Request("short", output=1, sent={"predicted_tokens": 2}))
    assert made.schedule().preempted_req_ids == {"own", "long"}


def test_a_throttled_step_preempts_nobody() -> None:
    class Throttled(FakeScheduler):
        def schedule(self, throttle: bool = False) -> Any:
            return super().schedule()

    loaded = load_policy("srtf+preempt:mode=recompute,price=0")
    made: Any = type("Made", (PolicyScheduling, Throttled), {})(
        config(1), lengthwise=(Settings(policy="x", guard=0.0), loaded, Counters())
    )
    made.add_request(Request("long", output=50, sent={"predicted_tokens": 50}))
    made.schedule()
    made.add_request(Request("short", output=1, sent={"predicted_tokens": 2}))
    made.schedule(throttle=True)
    assert [request.request_id for request in made.running] == ["long"]
    made.schedule(True)
    assert [request.request_id for request in made.running] == ["long"]
    made.schedule(throttle=False)
    assert [request.request_id for request in made.running] == ["short"]


@pytest.mark.parametrize("state", ["PAUSED_NEW", "PAUSED_ALL"])
def test_a_paused_engine_preempts_nobody(state: str) -> None:
    made = driven("srtf+preempt:mode=recompute,price=0")
    made.add_request(Request("long", output=50, sent={"predicted_tokens": 50}))
    made.schedule()
    made.add_request(Request("short", output=1, sent={"predicted_tokens": 2}))
    made._pause_state = SimpleNamespace(name=state)
    made.schedule()
    assert [request.request_id for request in made.running] == ["long"]
    made._pause_state = SimpleNamespace(name="UNPAUSED")
    made.schedule()
    assert [request.request_id for request in made.running] == ["short"]


def test_seats_of_newer_engines_count_sessions_that_wait_for_their_user() -> None:
    def preempted(**more: Any) -> int:
        made = driven("srtf+preempt:mode=recompute,price=0", seats=4)
        made.__dict__.update(more)
        for i in range(3):
            made.add_request(Request(f"{i}", output=50, sent={"predicted_tokens": 50 + i}))
        made.schedule()
        for i in range(3):
            made.add_request(Request(f"short {i}", output=1, sent={"predicted_tokens": 2}))
        made.lengthwise.before_step(throttled=False)
        return len(made.lengthwise.gave_way)

    assert preempted() == 2  # one of three goes to the free seat
    assert preempted(max_num_active_reqs=6) == 0  # three are free
    assert preempted(max_num_active_reqs=6, num_waiting_for_streaming_input=1) == 1
    assert preempted(max_num_active_reqs=2, num_waiting_for_streaming_input=5) == 3


def test_a_policy_preempts_at_most_as_many_as_it_says_in_each_engine() -> None:
    """Four run, four shorter ones wait; a step of vLLM and a batch of transformers."""
    for most in (1, 2, 3, 4):
        spec = f"srtf+preempt:mode=recompute,price=0,max_per_step={most}"
        made = driven(spec, seats=4)
        passing_ = passing(spec, lambda prompts, known: [len(prompts)], 4, 256.0)
        for i in range(4):
            made.add_request(Request(f"{i}", output=50, sent={"predicted_tokens": 50}))
            passing_.add_waiting_request(state_of(i, Job(prompt=50, output=50)))
        made.schedule()
        passing_.schedule_batch(640, 640)
        for i in range(4, 8):
            made.add_request(Request(f"{i}", output=1, sent={"predicted_tokens": 2}))
            passing_.add_waiting_request(state_of(i, Job(prompt=2, output=1)))
        made.schedule()
        assert made.lengthwise.counters.counts["preemptions", "policy"] == most
        batch = {future.state.request_id for future in passing_.schedule_batch(640, 640)[0]}
        assert len(batch & set("4567")) == most
        assert passing_.lengthwise_counters.counts["preemptions", "policy"] == most


def test_what_the_policy_sees_of_the_engine_by_hand() -> None:
    made = driven("sjf", seats=3)
    made.kv_cache_manager.usage = 0.25
    for i in range(5):
        made.add_request(Request(f"{i}", output=9, prompt=[1] * 10, sent={"predicted_tokens": 7.5}))
    made.update_from_output(made.schedule(), None)
    made.lengthwise._update()
    seen = {name: SHARED[name](made.lengthwise) for name in SHARED}
    assert seen == {
        "now_s": 0.0, "running_requests": 3, "waiting_requests": 2, "kv_utilization": 0.25,
        "free_seats": 0, "max_seats": 3, "prefill_backlog_tokens": 20,
        # eight whole tokens each, of which three requests have one
        "decode_backlog_tokens": 3 * 7 + 2 * 8,
    }  # fmt: skip
    made.now_s += 2.5
    made.lengthwise._update()
    assert SHARED["now_s"](made.lengthwise) == 2.5


def test_a_clock_moves_a_queue_whose_scores_change() -> None:
    """hrrn: (wait + s) / s, so that a long request overtakes when it has waited long enough."""
    made = driven("hrrn")
    made.add_request(Request("busy", output=30, sent={"predicted_tokens": 1}))
    made.schedule()
    made.add_request(Request("long", output=1, sent={"predicted_tokens": 40}, arrival=100.0))
    made.now_s += 20.0
    made.add_request(Request("short", output=1, sent={"predicted_tokens": 30}, arrival=119.0))
    made.schedule()
    assert [r.request_id for r in made.waiting] == ["long", "short"]
    assert [r.request_id for r in reversed(made.waiting)] == ["short", "long"]
    assert "waiting_requests" not in made.lengthwise._view
    assert made.lengthwise._view["now_s"] == 20.0


@pytest.mark.parametrize(("spec", "first"), [("srtf", "b"), ("sjf", "a")])
def test_under_pressure_of_memory_the_engine_preempts_by_the_score_of_now(
    spec: str, first: str
) -> None:
    """vLLM itself preempts the highest ``priority``: what is left, where blocks may run out."""
    made = driven(spec, seats=2)
    made.kv_cache_manager.block_pool.get_num_free_blocks = lambda: 3
    made.add_request(Request("a", output=60, sent={"predicted_tokens": 40}))
    made.update_from_output(made.schedule(), None)
    for _ in range(20):
        made.update_from_output(made.schedule(), None)
    made.add_request(Request("b", output=60, sent={"predicted_tokens": 30}))
    made.schedule()
    made.lengthwise.before_step(throttled=False)
    a, b = made.requests["a"], made.requests["b"]
    assert b.priority == 30
    assert a.priority == (40 - 21 if spec == "srtf" else 40)
    assert max((a, b), key=lambda r: r.priority).request_id == first


def test_blocks_may_run_out_by_hand() -> None:
    """64 tokens of a step and 2 running: 2 + 64 // 16 + 1 blocks of each group may be asked for."""
    made = driven("srtf", seats=2)
    for i in range(2):
        made.add_request(Request(f"{i}", output=9))
    made.schedule()
    pool, driver = made.kv_cache_manager.block_pool, made.lengthwise

    def at(free: int) -> bool:
        pool.get_num_free_blocks = lambda: free
        return driver._blocks_may_run_out()

    assert (at(6), at(7)) == (True, False)
    driver._groups = 2
    assert (at(13), at(14)) == (True, False)
    driver._groups, made.num_lookahead_tokens = 1, 8  # 64 + 16 tokens
    assert (at(7), at(8)) == (True, False)


def test_what_admission_takes_by_hand() -> None:
    made = driven("srtf+preempt:mode=recompute,price=0", seats=2)
    driver = made.lengthwise
    waits = Request("waits", prompt=[1] * 50)
    made.add_request(waits)
    found = driver._demand(waits.lengthwise)  # type: ignore[attr-defined]
    assert (found.blocks, found.tokens) == (4, 50)  # 50 tokens in blocks of 16
    made.scheduler_config.long_prefill_token_threshold = 50
    assert driver._demand(waits.lengthwise).tokens == 50  # type: ignore[attr-defined]
    made.scheduler_config.long_prefill_token_threshold = 20
    assert driver._demand(waits.lengthwise).tokens == 20  # type: ignore[attr-defined]
    made.scheduler_config.long_prefill_token_threshold = 0
    # a watermark is kept free beside others that run
    made.kv_cache_manager.watermark_blocks = 3
    assert driver._demand(waits.lengthwise).blocks == 4  # type: ignore[attr-defined]
    made.running.append(Request("runs"))
    assert driver._demand(waits.lengthwise).blocks == 7  # type: ignore[attr-defined]
    made.running.clear()
    # two blocks are cached, one of them in use: the other counts as free, and is taken
    asked: list[int] = []

    def hit(hashes: Any, most: int) -> Any:
        asked.append(most)
        return [[SimpleNamespace(ref_cnt=0), SimpleNamespace(ref_cnt=1)]], 32

    made.kv_cache_manager.enable_caching = True
    made.kv_cache_manager.coordinator = SimpleNamespace(find_longest_cache_hit=hit)
    found = driver._demand(waits.lengthwise)  # type: ignore[attr-defined]
    assert (found.blocks, found.tokens) == (4 - 2 + 1, 18)
    assert asked == [49]  # its last token is always computed
    driver._groups = 2
    assert driver._demand(waits.lengthwise).blocks == 2 * (4 - 2) + 1  # type: ignore[attr-defined]


def test_tokens_that_running_requests_want_by_hand() -> None:
    made = driven("sjf")
    driver = made.lengthwise

    def wanted(computed: int, placeholders: int = 0, **more: Any) -> int:
        request = Request("r", prompt=[1] * 10)
        request.num_output_tokens = 5
        request.num_computed_tokens, request.num_output_placeholders = computed, placeholders
        request.max_tokens = 8
        request.__dict__.update(more)
        return driver._wanted(request)

    assert wanted(14) == 1
    assert wanted(4) == 11  # of a prefill all that is left
    assert wanted(15, placeholders=1) == 1  # the token after the one that is under way
    # its last token is the 18th; when that is under way nothing is wanted any more
    assert wanted(16, placeholders=1) == 0
    assert wanted(17, placeholders=1) == 0
    made.scheduler_config.long_prefill_token_threshold = 7
    assert wanted(4) == 7
    made.max_model_len = 10
    assert wanted(4) == 5  # up to the last but one of the context
    made.running = [Request("a", prompt=[1] * 10), Request("b", prompt=[1] * 3)]
    made.scheduler_config.long_prefill_token_threshold = 0
    made.max_model_len = 4096
    assert driver._spare_tokens() == 64 - 10 - 3


def test_who_can_be_admitted_by_status_and_adapters() -> None:
    made = driven("sjf")
    can = made.lengthwise._can_run
    request = Request("r")
    for status, fit in (
        ("WAITING", True), ("PREEMPTED", True), ("WAITING_FOR_FSM", False),
        ("WAITING_FOR_REMOTE_KVS", False), ("RUNNING", False),
    ):  # fmt: skip
        request.status.name = status
        assert can(request) is fit
    request.status.name = "WAITING"

    def adapter(number: int | None) -> Any:
        one: Any = Request("x")
        one.lora_request = None if number is None else SimpleNamespace(lora_int_id=number)
        return one

    made.lora_config = SimpleNamespace(max_loras=2)
    made.running = [adapter(1), adapter(None)]
    assert can(adapter(2))  # another one fits
    made.running = [adapter(1), adapter(2), adapter(2)]
    assert can(adapter(2))
    assert not can(adapter(3))
    assert can(adapter(None))


def test_a_session_of_a_user_is_served_by_arrival_and_joins_once() -> None:
    made = driven("sjf", guard=1.0)
    session: Any = Request("session", output=3, sent={"predicted_tokens": 1})
    session.resumable = True
    made.add_request(session)
    assert session.lengthwise.state == "failed"
    entry = session.lengthwise
    made.lengthwise.arrive(session)  # its next turn
    assert session.lengthwise is entry
    assert made.lengthwise.counters.counts["predictions", "client"] == 1


def test_a_deadline_is_on_the_arrival_s_clock() -> None:
    made = driven("sjf")
    made.now_s = 130.0
    request: Any = Request("r", arrival=110.0, sent={"deadline_s": 2.5}, priority=3)
    made.add_request(request)
    assert request.lengthwise.arrival_s == 10.0
    assert request.lengthwise.deadline_s == 12.5
    assert request.lengthwise.priority == 3.0
    late: Any = Request("late", arrival=110.0)
    made.add_request(late)
    assert late.lengthwise.deadline_s == math.inf


def test_the_guard_sends_ahead_whoever_waited_too_long_and_counts_it() -> None:
    """A long request among short ones, one seat: without a guard last, with it before some."""

    def order(**guard: Any) -> tuple[int, int]:
        made = driven("sjf", **guard)
        made.add_request(Request("0", output=2, sent={"predicted_tokens": 2}, arrival=100.0))
        made.update_from_output(made.schedule(), None)
        long = Request("long", output=2, sent={"predicted_tokens": 60}, arrival=made.now_s)
        made.add_request(long)
        for i in range(1, 30):
            sent = {"predicted_tokens": 2}
            made.add_request(Request(f"{i}", output=2, sent=sent, arrival=made.now_s))
            made.update_from_output(made.schedule(), None)
            made.now_s += 1.0
        served(made)
        counted = made.lengthwise.counters.counts["guarded", "wait"]
        return made.finished.index("long"), counted

    assert order() == (30, 0)
    place, counted = order(guard=1.0, guard_floor_s=0.0)
    assert place < 15
    assert counted >= 1
    later, _ = order(guard=1.0, guard_floor_s=30.0)
    assert place < later


class Watched(Counters):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str, float]] = []

    def observe(self, name: str, label: str, value: float) -> None:
        self.seen.append((name, label, value))


def test_waits_are_of_first_admissions_alone() -> None:
    loaded = load_policy("srtf+preempt:mode=recompute,price=0")
    counters = Watched()
    made: Any = type("Made", (PolicyScheduling, FakeScheduler), {})(
        config(1), lengthwise=(Settings(policy="x", guard=0.0), loaded, counters)
    )
    made.now_s = 100.0
    made.lengthwise.clock.follow(lambda: made.now_s)
    made.add_request(Request("long", output=6, sent={"predicted_tokens": 6}, arrival=99.0))
    made.update_from_output(made.schedule(), None)
    made.now_s += 3.0
    made.add_request(Request("short", output=1, sent={"predicted_tokens": 1}, arrival=101.0))
    served(made)
    assert made.finished == ["short", "long"]
    waits = [value for name, _, value in counters.seen if name == "wait_seconds"]
    assert waits == [1.0, 2.0]  # the long one is in once


def test_a_step_that_fails_is_counted_and_the_engine_goes_on() -> None:
    made = driven("sjf")
    made.add_request(Request("r", output=2, sent={"predicted_tokens": 1}))
    made.lengthwise._guard.turns = lambda now_ps: 1 / 0
    served(made)
    assert made.finished == ["r"]
    assert made.lengthwise.counters.counts["failed_steps", "policy"] == 2


# vLLM's entry point


def made_by(given: dict[str, Any], policy: str = "fcfs", **more: Any) -> Any:
    said = config()
    said.additional_config = {"lengthwise": given} if given else None
    said.scheduler_config.policy = policy
    said.scheduler_config.scheduler_cls = "theirs"
    said.parallel_config.__dict__.update(more)
    asked: list[Any] = []

    def get_scheduler_cls() -> Any:
        asked.append(said.scheduler_config.scheduler_cls)
        return FakeScheduler

    said.scheduler_config.get_scheduler_cls = get_scheduler_cls
    made = scheduler_of(said)
    assert asked == [None]  # vLLM's own choice
    assert said.scheduler_config.scheduler_cls == "theirs"
    return made


@pytest.fixture
def vllm_module(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("vllm")
    module.__version__ = "0.99"
    monkeypatch.setitem(sys.modules, "vllm", module)


@pytest.mark.usefixtures("vllm_module")
def test_an_engine_is_made_of_what_is_asked_for(
    tmp_path: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    listened: list[tuple[str, int]] = []
    monkeypatch.setattr(Counters, "listen", lambda self, host, port: listened.append((host, port)))
    logging.getLogger("vllm").propagate = True
    caplog.set_level(logging.INFO, "vllm.lengthwise")
    stock = made_by({"policy": "fcfs"})
    assert type(stock) is FakeScheduler
    assert stock.scheduler_config.policy == "fcfs"
    assert "policy fcfs (vLLM's own class), preemption none" in caplog.messages[-1]
    assert caplog.messages[-1].endswith("predictor none, guard off, record none")
    made = made_by({"policy": "srtf", "metrics_port": 9000}, data_parallel_rank=2)
    assert type(made).__mro__[1:3] == (PolicyScheduling, FakeScheduler)
    assert made.scheduler_config.policy == "priority"
    assert made.lengthwise.counters._engine == "2"
    assert listened == [("127.0.0.1", 9002)]
    assert "in vLLM 0.99: policy srtf (score srtf), preemption" in caplog.messages[-1]
    assert f"guard {Guard.ratio:g} from {Guard.floor_s:g} s" in caplog.messages[-1]
    off = made_by({"policy": "srtf", "guard": 0, "metrics_port": 9000, "metrics_host": "::1"},
                  data_parallel_index=3)  # fmt: skip
    assert off.lengthwise.counters._engine == "3"
    assert listened[-1] == ("::1", 9003)
    assert "guard off" in caplog.messages[-1]
    recorded = made_by({"policy": "srtf", "record": str(tmp_path / "r")})
    assert type(recorded).__mro__[1] is RecordedScheduling
    assert issubclass(type(recorded), PolicyScheduling)
    recorded.shutdown()
    only = made_by({"policy": "fcfs", "record": str(tmp_path / "s")})
    assert type(only).__mro__[1:3] == (RecordedScheduling, FakeScheduler)
    assert not hasattr(only, "lengthwise")
    request = Request("r", output=1)
    only.add_request(request)
    only.update_from_output(only.schedule(), None)
    only.shutdown()
    assert only.finished == ["r"]
    assert len(list((tmp_path / "s").glob("*.parquet"))) == 1


@pytest.mark.usefixtures("vllm_module")
def test_settings_come_from_the_configuration_or_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("LENGTHWISE_VLLM", raising=False)
    with pytest.raises(InputError, match="no policy: pass --additional-config"):
        made_by({})
    monkeypatch.setenv("LENGTHWISE_VLLM", '{"policy": "sjf"}')
    assert made_by({}).lengthwise.policy.name == "sjf"
    assert made_by({"policy": "srtf"}).lengthwise.policy.name == "srtf"
    monkeypatch.setenv("LENGTHWISE_VLLM", "{")
    with pytest.raises(InputError, match="LENGTHWISE_VLLM is not JSON"):
        made_by({})


def test_what_does_not_go_together_in_vllm_is_named() -> None:
    def said(policy: str, own: str = "fcfs", kv: Any = None, stages: int = 1) -> str:
        given = config()
        given.scheduler_config.policy = own
        given.kv_transfer_config = kv
        given.parallel_config.pipeline_parallel_size = stages
        try:
            refuse(given, load_policy(policy))
        except InputError as error:
            return str(error).partition("not supported: ")[2]
        return ""

    preempt = "srtf+preempt:mode=recompute"
    assert said("srtf+preempt:mode=none") == said(preempt) == said("fcfs") == ""
    assert said("srtf+preempt:mode=none", own="priority", kv=object(), stages=2) == ""
    assert said(preempt, kv=object()).startswith("policy preemption with a KV connector; +preempt")
    assert said(preempt, stages=2).startswith("policy preemption with pipeline parallelism; +pre")
    assert said(f"{preempt}+admit:reserve=0.5") == "memory-aware admission (+admit)"
    assert said("srtf+preempt:mode=swap").startswith("preemption by swapping (vLLM recomputes")
    assert said("fcfs", own="priority").startswith("policy fcfs with --scheduling-policy priority")
    assert "vLLM's own queue" in said("fcfs+preempt:mode=recompute")


# Shadow mode


def test_shadow_mode_changes_no_order_and_judges_every_prediction() -> None:
    counters = Watched()
    made: Any = type("Made", (ShadowScheduling, FakeScheduler), {})(
        config(1), lengthwise=(Settings(policy="fcfs"), counters)
    )
    now_s = [100.0]
    made.lengthwise.clock.follow(lambda: now_s[0])
    now_s[0] = 110.0
    for i, says in enumerate((9, 3, None, 5)):
        sent = None if says is None else {"predicted_tokens": says}
        made.add_request(Request(f"{i}", output=2, sent=sent, arrival=105.0))
    while made.requests:
        made.update_from_output(made.schedule(), None)
        now_s[0] += 1.0
    assert made.finished == ["0", "1", "2", "3"]
    assert counters.counts["predictions", "client"] == 3
    assert counters.counts["predictions", "default"] == 1
    seen = {name: [v for n, _, v in counters.seen if n == name] for name, *_ in counters.seen}
    assert seen["predicted_tokens"] == [9, 3, 5]
    assert seen["actual_tokens"] == [2, 2, 2]
    assert seen["error_log2"] == pytest.approx(np.log2([2 / 9, 2 / 3, 2 / 5]))
    assert seen["wait_seconds"] == [5.0, 7.0, 11.0]  # of those that were predicted
    made.lengthwise._lengths.news = lambda: 1 / 0
    made.add_request(Request("4", output=1))
    made.update_from_output(made.schedule(), None)
    assert made.finished[-1] == "4"
    assert counters.counts["failed_steps", "shadow"] == 1
    odd: Any = Request("5", output=1)
    odd.arrival_time = object()
    made.add_request(odd)
    assert counters.counts["fallbacks", "plugin"] == 1
    assert odd.lengthwise.state == "failed"
    made.lengthwise.arrive(odd)  # its next turn is no arrival
    assert counters.counts["fallbacks", "plugin"] == 1
    made.shutdown()


# transformers


def test_transformers_counts_what_its_predictor_says() -> None:
    says = [9, math.nan, 0, "no", -3, 4]
    order, counters, _ = transformers("sjf", [Job(says=n) for n in says])
    assert counters.counts["predictions", "predictor"] == 2
    assert counters.counts["fallbacks", "predictor-error"] == 4
    assert counters.counts["fallbacks", "policy"] == 0
    assert sorted(order) == [0, 1, 2, 3, 4, 5]
    assert order[0] == 5  # then the second, third ... keep their places in line
    assert order.index(1) < order.index(2) < order.index(3) < order.index(4)


def test_transformers_batches_know_what_a_request_has() -> None:
    seen: dict[str, list[float]] = {}

    def score(
        arrival_s: Any, prompt_tokens: Any, predicted_tokens: Any, generated_tokens: Any,
        computed_tokens: Any, now_s: Any, running_requests: Any, waiting_requests: Any,
    ) -> Any:  # fmt: skip
        for name, value in list(locals().items()):
            if name != "seen":
                seen.setdefault(name, []).append(value)
        return prompt_tokens * 1.0

    policy = SchedulingPolicy(Score.from_function(score))
    made = passing(policy, lambda prompts, known: [8], 1, 256.0, clock=lambda self: 50.0)
    made.add_waiting_request(state_of(0, Job(prompt=4, arrival=41.0)))
    made.schedule_batch(64, 64)
    state = made.active_requests["0"]
    state.generated_tokens, state.position_offset = [1, 2], 5
    made.add_waiting_request(state_of(1, Job(prompt=9, arrival=43.0, limit=None)))
    made.add_waiting_request(state_of(2, Job(prompt=2, arrival=44.0, limit=5)))
    seen.clear()
    made._ranked([state, *made.waiting_requests.values()])
    found = {name: np.asarray(values[0]).tolist() for name, values in seen.items()}
    assert found == {
        "arrival_s": [41, 43, 44], "prompt_tokens": [4, 9, 2], "predicted_tokens": [8, 8, 5],
        "generated_tokens": [2, 0, 0], "computed_tokens": [5, 0, 0], "now_s": 50,
        "running_requests": 1, "waiting_requests": 2,
    }  # fmt: skip


def test_transformers_tells_what_its_predictions_were_worth() -> None:
    says = [8.0, 2.0]
    made = passing("sjf", lambda prompts, known: [says[len(prompts) - 5]], 2, 256.0)
    counters = made.lengthwise_counters = Watched()
    made._lengthwise_accuracy._counters = counters
    for i in range(2):
        made.add_waiting_request(state_of(i, Job(prompt=5 + i)))
    made.schedule_batch(64, 64)
    failed = made.active_requests["1"]
    failed.error, failed.generated_tokens = "out of memory", [1]
    made.active_requests["0"].generated_tokens = [1, 2, 3, 4]
    for i in range(2):
        made.finish_request(f"{i}")
    assert counters.seen == [
        ("predicted_tokens", "predictor", 8.0), ("actual_tokens", "predictor", 4),
        ("error_log2", "predictor", -1.0),
    ]  # fmt: skip
    assert not made.active_requests


def test_transformers_lets_those_go_on_whose_place_nobody_can_take() -> None:
    """A newcomer that needs more cache than is there: the batch would be empty."""

    class Full(_FIFO):
        def schedule_batch(self, token_budget: int, cache_budget: int) -> Any:
            chosen = list(self.active_requests.values())
            return [SimpleNamespace(state=state) for state in chosen] or None, None

    spec = "srtf+preempt:mode=recompute,price=0"
    given = {"policy": load_policy(spec), "predict": staticmethod(lambda p, known: [len(p)]),
             "default_tokens": 256.0, "rule": Guard(0.0), "known": None}  # fmt: skip
    made: Any = type("Made", (PolicyOrder, Full), given)()
    made.max_requests_per_batch = 1
    state = state_of(0, Job(prompt=50))
    made.add_waiting_request(state)
    made.active_requests["0"] = made.waiting_requests.pop("0")
    made._lengthwise_seated = {"0"}
    made.add_waiting_request(state_of(1, Job(prompt=2)))
    futures, _ = made.schedule_batch(64, 64)
    assert [future.state.request_id for future in futures] == ["0"]
    assert list(made.active_requests) == ["0"]
    assert made._lengthwise_seated == {"0"}
    made.block_new_requests = True  # no room for anybody new: nobody is passed over at all
    before = made.lengthwise_counters.counts["preemptions", "policy"]
    futures, _ = made.schedule_batch(64, 64)
    assert [future.state.request_id for future in futures] == ["0"]
    assert made.lengthwise_counters.counts["preemptions", "policy"] == before


def test_transformers_knows_limits_and_what_its_user_says() -> None:
    heard: list[dict[str, Any]] = []

    def predict(prompts: Any, known: Any) -> list[float]:
        heard.append(known)
        return [3.0]

    told: Any = {"tenant": "t", "odd": 1}
    made = passing("sjf", predict, 1, 256.0, known=staticmethod(lambda name: told))
    made.add_waiting_request(state_of(0, Job(limit=9)))
    made.add_waiting_request(state_of(1, Job(limit=None)))
    assert heard == [{"max_tokens": 9.0, "tenant": "t"}, {"tenant": "t"}]
    failing = passing("sjf", predict, 1, 256.0, known=staticmethod(lambda name: 1 / 0))
    failing.add_waiting_request(state_of(0, Job(limit=9)))
    assert heard[-1] == {"max_tokens": 9.0}
    assert failing.lengthwise_counters.counts["predictions", "predictor"] == 1
    unread = passing("fcfs", predict, 1, 256.0)
    unread.add_waiting_request(state_of(0, Job()))
    assert len(heard) == 3  # a policy that reads no length asks nobody


# SGLang


def test_sglang_s_preemption_compares_scores_and_leaves_no_trace() -> None:
    _, _, priorities = sglang("srtf", [])

    def made(predicted: int, done: int = 0, priority: int | None = 5) -> Any:
        return SimpleNamespace(
            origin_input_ids=[0], output_ids=[0] * done, priority=priority,
            sampling_params=SimpleNamespace(custom_params={"predicted_tokens": predicted}),
        )  # fmt: skip

    running, new = [made(50, done=45), made(30)], made(20, priority=None)
    adder = SimpleNamespace(running_batch=SimpleNamespace(reqs=running))

    def own(adder: Any, request: Any, *more: Any) -> Any:
        assert more == ("server args",)
        return [r.priority for r in (request, *adder.running_batch.reqs)]

    assert priorities.preempt(own, adder, new, "server args") == [20, 5, 30]
    assert [r.priority for r in (new, *running)] == [None, 5, 5]
    # a victim's cache is released at its own priority, in the midst of it
    batch = SimpleNamespace(reqs=running)

    def releases(adder: Any, request: Any) -> None:
        assert running[1].priority == 30
        priorities.release(batch, 1, "args")
        assert [r.priority for r in running] == [5, 5]

    running[1].priority = 5

    def own_release(adder: Any, request: Any) -> None:
        assert [r.priority for r in running] == [5, 30]
        priorities.release(batch, 1)
        assert [r.priority for r in running] == [5, 5]

    priorities.preempt(own_release, adder, new)
    stranger = SimpleNamespace(priority=7)
    priorities.release(SimpleNamespace(reqs=[stranger]), 0)
    assert stranger.priority == 7

    def fails(adder: Any, request: Any) -> None:
        raise RuntimeError("theirs")

    with pytest.raises(RuntimeError, match="theirs"):
        priorities.preempt(fails, adder, new)
    assert [r.priority for r in (new, *running)] == [None, 5, 5]


def test_sglang_s_hooks_are_where_its_queue_is(monkeypatch: pytest.MonkeyPatch) -> None:
    hooks: list[tuple[str, str, str]] = []
    module: Any = ModuleType("hook_registry")
    module.HookType = SimpleNamespace(AFTER="after", BEFORE="before", AROUND="around")
    module.HookRegistry = SimpleNamespace(
        register=lambda place, hook, kind: hooks.append((place, hook.__name__, kind))
    )
    for name in ("sglang", "sglang.srt", "sglang.srt.plugins"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "sglang.srt.plugins.hook_registry", module)
    from lengthwise.policies.plugins import sglang as plugin

    monkeypatch.setenv(ENVIRONMENT, json.dumps({"policy": "srtf", "default_tokens": 9}))
    plugin.register()
    managers = "sglang.srt.managers."
    assert hooks == [
        (f"{managers}schedule_policy.SchedulePolicy.__init__", "check", "after"),
        (f"{managers}schedule_policy.SchedulePolicy.calc_priority", "order", "around"),
        (f"{managers}schedule_policy.PrefillAdder.preempt_to_schedule", "preempt", "around"),
        (f"{managers}schedule_batch.ScheduleBatch.release_req", "release", "before"),
    ]
    monkeypatch.setenv(ENVIRONMENT, json.dumps({"policy": "hrrn"}))
    with pytest.raises(SystemExit, match=f"{ENVIRONMENT}: .*ranks must agree"):
        plugin.register()
    priorities = Priorities(Settings(policy="srtf"))
    unaware = SimpleNamespace(enable_priority_scheduling=False, priority_sign=1)
    with pytest.raises(InputError, match="without --enable-priority-scheduling"):
        priorities.check(None, unaware)


def test_a_request_without_a_priority_is_the_least_urgent_in_sglang() -> None:
    order, *_ = sglang("priority", [Job(priority=None), Job(priority=5), Job(priority=9)])  # type: ignore[arg-type]
    assert order == [1, 2, 0]


# Ends, and limits of one token


def test_an_engine_that_ends_ends_its_predictor_once() -> None:
    closed: list[str] = []

    class Engine(FakeScheduler):
        def shutdown(self) -> None:
            closed.append("engine")

    for kind, given in ((ShadowScheduling, (Settings(policy="fcfs"), Counters())),
                        (PolicyScheduling, (Settings(policy="sjf"), load_policy("sjf"),
                                            Counters()))):  # fmt: skip
        made: Any = type("Made", (kind, Engine), {})(config(1), lengthwise=given)
        made.lengthwise._lengths.close = lambda: closed.append("predictor")
        made.shutdown()
        assert closed == ["predictor", "engine"]
        closed.clear()


@pytest.mark.parametrize(("most", "limit"), [(1, 1), (0, 1), (7, 7), (None, math.inf)])
def test_transformers_lets_a_request_have_one_token(most: int | None, limit: float) -> None:
    made = passing("sjf", lambda prompt, known: [50.0], 1, 256.0)
    state = state_of(0, Job(limit=most))
    made.add_waiting_request(state)
    assert state.lengthwise_limit == limit
    assert state.lengthwise_predicted == min(50.0, limit)


def test_a_guard_in_transformers_keeps_no_crowd_of_those_who_left() -> None:
    for many, here, kept in ((64, 0, 64), (65, 0, 0), (66, 1, 66), (67, 1, 1)):
        known: dict[str, Any] = {f"{i}": None for i in range(here)}
        books = BatchGuard(Guard(1.0, 0.0), has=known.__contains__)
        for i in range(many):
            state = state_of(i, Job())
            state.lengthwise_sequence, state.lengthwise_predicted = i, 5.0
            books.arrived(state, idle=False)
        books.scheduled([], 1.0, known)
        assert len(books._waiters) == kept


# transformers, where a prediction is a distribution


def spread_of(tokens: list[float], abstained: list[bool] | None = None) -> Prediction:
    levels = np.array([0.05, 0.5, 0.95])
    made = Prediction.distribution(np.outer(tokens, [0.5, 1.0, 2.0]), levels)
    return dataclasses.replace(made, abstained=None if abstained is None else np.array(abstained))


def test_transformers_reads_distributions_and_what_they_abstain_from() -> None:
    said = [spread_of([40.0]), spread_of([30.0], [True]), spread_of([20.0], [False])]
    order, counters, made = transformers("sjf", [Job(says=one, output=2) for one in said])
    assert counters.counts["predictions", "predictor"] == 3
    assert counters.counts["abstained", "predictor"] == 1
    assert sorted(order) == [0, 1, 2]
    assert order[0] == 2
    within = made._lengthwise_accuracy._within["predictor"]
    assert list(within) == [False, False]  # two tokens lie below 10 and 20
    assert len(made._lengthwise_accuracy._recent["predictor"]) == 2  # the unsure one is not judged
    bounded = passing("sjf", lambda prompts, known: spread_of([40.0]), 1, 256.0)
    bounded.add_waiting_request(state_of(0, Job(limit=30)))
    assert bounded.waiting_requests["0"].lengthwise_said == (
        30.0, pytest.approx((20.0, 30.0)),
    )  # fmt: skip
    assert bounded.waiting_requests["0"].lengthwise_whole == 30


def test_transformers_asks_a_distribution_anew_with_every_token() -> None:
    made = passing("srtf", lambda prompts, known: spread_of([40.0]), 1, 256.0)
    made.add_waiting_request(state_of(0, Job(limit=None)))
    state = made.waiting_requests["0"]
    assert set(state.lengthwise_curves) == {"expected_remaining_tokens"}
    ((before, _),) = made._ranked([state])
    state.generated_tokens = [0] * 60
    ((after, _),) = made._ranked([state])
    assert 1 <= after != max(before - 60, 1.0)
    state.lengthwise_limit = 65.0
    ((limited, _),) = made._ranked([state])
    assert limited <= 5.0
    plain = passing("srtf", lambda prompts, known: [40.0], 1, 256.0)
    plain.add_waiting_request(state_of(0, Job(limit=None)))
    state = plain.waiting_requests["0"]
    assert plain._ranked([state])[0][0] == 40.0
    state.generated_tokens = [0] * 60
    assert plain._ranked([state])[0][0] == 1.0


def test_transformers_does_not_follow_lengths_that_drifted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = passing("sjf", lambda prompts, known: [5.0], 1, 256.0)
    made._lengthwise_accuracy._drifted.add("predictor")
    made.add_waiting_request(state_of(0, Job()))
    state = made.waiting_requests["0"]
    assert (state.lengthwise_predicted, state.lengthwise_fcfs) == (64, True)
    assert state.lengthwise_said[0] == 5.0  # it goes on being judged
    assert made.lengthwise_counters.counts["fallbacks", "drift"] == 1
    assert made.lengthwise_counters.counts["predictions", "predictor"] == 0
    failing = passing("sjf", lambda prompts, known: 1 / 0, 1, 256.0)
    failing.add_waiting_request(state_of(0, Job()))
    assert any("the predictor failed: ZeroDivisionError" in m for m in caplog.messages)
    unknown = passing("sjf", lambda p, known: [5.0], 1, 256.0, known=staticmethod(lambda i: 1 / 0))
    unknown.add_waiting_request(state_of(0, Job()))
    assert any("known failed: ZeroDivisionError" in m for m in caplog.messages)


def test_transformers_seats_are_the_best_ones_and_counts_of_tokens_hold() -> None:
    """Two of three seats are taken, four wait: the best takes the free one, others exchange."""

    def batch(budget: int, **rule: Any) -> tuple[set[str], int]:
        spec = "sjf+preempt:mode=recompute,price=5,margin=0"
        made = passing(spec, lambda prompts, known: [len(prompts)], 3, 256.0)
        made.policy = dataclasses.replace(
            made.policy, preemption=dataclasses.replace(made.policy.preemption, **rule)
        )
        for i, prompt in enumerate((50, 40)):
            made.add_waiting_request(state_of(i, Job(prompt=prompt, output=50)))
        for future in made.schedule_batch(640, 640)[0]:
            future.state.generated_tokens.append(0)
            future.state.remaining_prefill_tokens = []
        for i, prompt in enumerate((10, 20, 30, 60), start=2):
            made.add_waiting_request(state_of(i, Job(prompt=prompt, output=50)))
        found = {future.state.request_id for future in made.schedule_batch(budget, 640)[0]}
        assert made._lengthwise_seated == found
        # who was passed over is still there, in its place
        assert list(made.active_requests)[:2] == ["1", "0"]
        return found, made.lengthwise_counters.counts["preemptions", "policy"]

    assert batch(640) == ({"2", "3", "4"}, 2)
    assert batch(640, max_per_step=1) == ({"2", "3", "1"}, 1)
    # two run and want a token each, the free seat's prompt wants ten: of twelve tokens nothing is
    # left to exchange for; then twenty go to the second, and one that ran wants one
    assert batch(12) == ({"2", "0", "1"}, 0)
    assert batch(13) == ({"2", "3", "1"}, 1)
    assert batch(31) == ({"2", "3", "1"}, 1)
    assert batch(32) == ({"2", "3", "4"}, 2)


def test_who_was_passed_over_in_transformers_goes_on_before_who_is_worse() -> None:
    made = passing("sjf+preempt:mode=recompute,price=0", lambda p, known: [len(p)], 1, 256.0)

    def batch() -> list[str]:
        states = [future.state for future in made.schedule_batch(640, 640)[0]]
        for state in states:
            state.generated_tokens.append(0)
            state.remaining_prefill_tokens = []
        return [state.request_id for state in states]

    made.add_waiting_request(state_of(0, Job(prompt=50, output=50)))
    assert batch() == ["0"]
    made.add_waiting_request(state_of(1, Job(prompt=10, output=50)))
    made.add_waiting_request(state_of(2, Job(prompt=60, output=50)))
    assert batch() == ["1"] and batch() == ["1"]
    made.finish_request("1")
    assert batch() == ["0"] and batch() == ["0"]  # and not the one of 60 tokens
    made.finish_request("0")
    assert batch() == ["2"]


def test_a_guard_in_transformers_is_told_of_idle_moments_and_of_who_was_passed_over() -> None:
    made = passing("sjf+preempt:mode=recompute,price=0", lambda p, known: [len(p)], 1, 256.0,
                   rule=Guard(1.0, 0.0), clock=lambda self: self.now_s)  # fmt: skip
    calls: list[tuple[Any, ...]] = []
    guard = made._lengthwise_guard._guard
    for name in ("idle", "preempted", "admitted", "arrived"):
        own = getattr(guard, name)

        def told(*given: Any, name: str = name, own: Any = own) -> Any:
            calls.append((name, *(getattr(g, "request_id", g) for g in given)))
            return own(*given)

        setattr(guard, name, told)
    made.now_s = 1.0
    made.add_waiting_request(state_of(0, Job(prompt=50, output=50)))
    (future,), _ = made.schedule_batch(640, 640)
    future.state.generated_tokens.append(0)
    future.state.remaining_prefill_tokens = []
    made.now_s = 2.0
    made.add_waiting_request(state_of(1, Job(prompt=2, output=1, arrival=1.5)))
    made.schedule_batch(640, 640)
    made.finish_request("1")
    made.schedule_batch(640, 640)
    second = 10**12
    assert calls == [
        ("idle",), ("arrived", "0"), ("admitted", "0", second), ("arrived", "1"),
        ("preempted", "0", 1, 2 * second), ("admitted", "1", 2 * second),
        ("admitted", "0", 2 * second),
    ]  # fmt: skip
    assert made._lengthwise_guard._seated == {"0"}
    made.finish_request("0")
    made.add_waiting_request(state_of(2, Job()))
    assert [name for name, *_ in calls[-2:]] == ["idle", "arrived"]
    assert list(made._lengthwise_guard._waiters) == ["2"]
    made.schedule_batch(640, 640)
    forked = state_of(3, Job())
    forked.lengthwise_sequence, forked.lengthwise_predicted = 9, 4.0
    books = made._lengthwise_guard
    books.scheduled([made.active_requests["2"], forked], 3.0, {"2": 1, "3": forked})
    assert [call for call in calls if call[-1] == "3" or "3" in call[1:2]] == [
        ("arrived", "3"), ("admitted", "3", 3 * second),
    ]  # fmt: skip


def test_a_predictor_s_folder_is_read_through_the_model_s_tokenizer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lengthwise.policies.plugins import transformers as plugin

    heard: list[Any] = []

    class Saved:
        needs = frozenset({"prompt"})

        def predict(self, prompts: Any, **more: Any) -> Prediction:
            heard.append((prompts, more["prompt_tokens"]))
            return Prediction.exact(np.array([7.0]))

    monkeypatch.setattr(plugin, "saved_predictor", lambda folder: Saved())
    monkeypatch.setattr(
        plugin, "PromptReader", lambda tokenizer: SimpleNamespace(served=lambda ids: ("text", {}))
    )
    assert plugin._asked("folder", object())([1, 2, 3], {}).predicted_tokens.tolist() == [7.0]
    assert heard == [(["text"], [3])]
    with pytest.raises(InputError, match="reads texts: give the model's tokenizer"):
        plugin._asked("folder", None)
    assert plugin._asked(lambda prompts: [len(prompts[0])], None)([1, 2], {}) == [2]
