"""Routing policies at a real router, and priorities for those who can send nothing else."""

from __future__ import annotations

import asyncio
import collections
import json
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.policies.load import load_router
from lengthwise.policies.plugins.calls import call_of
from lengthwise.policies.plugins.litellm import RoutingStrategy
from lengthwise.policies.plugins.priority import priority_for
from lengthwise.policies.plugins.ray_serve import PolicyRouting
from lengthwise.policies.plugins.routing import ReplicaRouter
from lengthwise.policies.plugins.settings import Settings
from lengthwise.policies.plugins.sglang import ENVIRONMENT, Priorities, configured, register
from lengthwise.policy import RoutingPolicy, Score
from tests.engines.odd_requests import RequestRouter, litellm_modules

ABC = ["a", "b", "c"]
KEYS = st.sampled_from([
    "messages", "prompt", "input", "content", "role", "from", "value", "text", "type", "vllm_xargs",
    "predicted_tokens", "max_tokens", "max_completion_tokens", "max_output_tokens",
])  # fmt: skip


def test_round_robin_takes_each_in_turn() -> None:
    router = ReplicaRouter("round-robin")
    taken = []
    for request in range(7):
        best = router.rank(ABC)[0]
        router.sent(best, request)
        taken.append(best)
    assert taken == ["a", "b", "c", "a", "b", "c", "a"]


def test_jsq_counts_what_has_not_come_back() -> None:
    router = ReplicaRouter("jsq")
    for request, replica in enumerate("aabbbc"):
        router.sent(replica, request)
    assert router.rank(ABC) == ["c", "a", "b"]
    router.done(2)
    router.done(3)
    router.done(4)
    router.done(99)  # of somebody else
    assert router.rank(ABC) == ["b", "c", "a"]
    assert router.unfinished("a") == 2


def test_a_request_counts_where_it_went_even_if_its_first_choice_died() -> None:
    router = ReplicaRouter("jsq")
    router.sent("a", 1, 5.0)
    router.keep(["b", "c"])
    router.moved("b", 1)
    assert router.rank(["b", "c"]) == ["c", "b"]
    router.done(1, "b")
    router.moved("c", 1)  # it has ended
    assert router.unfinished("b") == router.unfinished("c") == 0


def test_a_request_that_is_ranked_again_takes_one_turn() -> None:
    router = ReplicaRouter("round-robin")
    for _ in range(3):  # Ray Serve asks again while it finds no seat
        router.sent(router.rank(ABC)[0], 1)
    router.moved("a", 1)
    router.sent(router.rank(ABC)[0], 2)
    assert [router.unfinished(replica) for replica in ABC] == [1, 1, 0]
    assert router.rank(ABC)[0] == "c"


def test_what_ends_late_on_one_replica_still_counts_on_the_next() -> None:
    router = ReplicaRouter("jsq")
    router.sent("a", 1)
    router.sent("b", 1)  # tried again, before the first try was reported ended
    router.done(1, "a")
    assert (router.unfinished("a"), router.unfinished("b")) == (0, 1)
    router.done(1, "b")
    assert router.unfinished("b") == 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda some: st.lists(some, max_size=3) | st.dictionaries(KEYS, some, max_size=3),
    max_leaves=12,
)


@given(JSON | st.dictionaries(KEYS, JSON, max_size=6))
@example({"vllm_xargs": {"predicted_tokens": 10**400}})
@example({"messages": np.zeros(2), "prompt": b"ab"})
def test_no_call_has_a_shape_that_a_router_minds(value: Any) -> None:
    call = call_of(value)
    assert isinstance(call.text, str) and isinstance(call.asked, str)
    assert call.limit > 0 and (call.told is None or call.told > 0)


def test_reports_are_believed_over_own_counts() -> None:
    router = ReplicaRouter("jsq", reports=("running_requests", "waiting_requests"))
    router.report("a", running_requests=9, waiting_requests=4)
    router.report("b", running_requests=9, waiting_requests=1)
    router.report("c", running_requests=8, waiting_requests=3)
    assert router.rank(ABC) == ["b", "c", "a"]


def test_least_tokens_weighs_requests_by_their_length() -> None:
    router = ReplicaRouter("least-tokens")
    router.sent("a", 1, 5000)
    router.sent("b", 2, 100)
    router.sent("b", 3, 100)
    assert router.rank(["a", "b"]) == ["b", "a"]


def test_power_of_two_is_between_random_and_jsq() -> None:
    """Balls into bins: with two choices the fullest holds far less (Mitzenmacher 2001)."""
    fullest = {}
    for policy in ("random", "power-of-two", "jsq"):
        router = ReplicaRouter(policy, seed=1)
        replicas = list(range(50))
        for ball in range(500):
            router.sent(router.rank(replicas)[0], ball)
        fullest[policy] = max(map(router.unfinished, replicas))
    assert fullest["jsq"] == 10 < fullest["power-of-two"] < fullest["random"]


def test_all_candidates_are_ranked_also_beyond_the_sample() -> None:
    router = ReplicaRouter("power-of-two", seed=3)
    assert sorted(router.rank(ABC)) == ABC


def test_random_is_uniform() -> None:
    router = ReplicaRouter("random", seed=5)
    taken = collections.Counter(router.rank(ABC)[0] for _ in range(3000))
    assert all(abs(taken[c] - 1000) < 120 for c in ABC)  # 4.6 standard deviations


def test_a_failing_policy_falls_back_to_each_in_turn() -> None:
    def broken(outstanding_tokens: Any) -> Any:
        raise ValueError("no")

    router = ReplicaRouter(RoutingPolicy(Score.from_function(broken)))
    taken = []
    for request in range(4):
        best = router.rank(["a", "b"])[0]
        router.sent(best, request)
        taken.append(best)
    assert taken == ["a", "b", "a", "b"]
    assert router.counters.counts["fallbacks", "policy"] == 4


def test_replicas_come_and_go() -> None:
    router = ReplicaRouter("round-robin")
    for request in range(10):
        router.sent(router.rank(["a", "b"])[0], request)
    router.keep(["b", "new"])
    router.done(0)  # of one that is gone
    taken = []
    for request in range(10, 14):
        best = router.rank(["b", "new"])[0]
        router.sent(best, request)
        taken.append(best)
    assert taken == ["b", "new", "b", "new"]  # the new one is not sent everything


def test_what_a_router_can_t_know_is_refused_by_name() -> None:
    def by_cache(kv_utilization: Any) -> Any:
        return kv_utilization

    with pytest.raises(InputError, match="kv_utilization"):
        ReplicaRouter(load_router(by_cache))
    ReplicaRouter(load_router(by_cache), reports=("kv_utilization",))
    with pytest.raises(InputError, match="not free_memory"):
        ReplicaRouter("jsq", reports=("free_memory",))
    with pytest.raises(UnknownNameError, match="did you mean 'jsq'"):
        ReplicaRouter("jsqq")


# Priorities


def test_priorities_order_requests_as_the_policy_does() -> None:
    lengths = random.Random(0).sample(range(1, 4000), 50)
    by_priority = sorted(lengths, key=lambda n: priority_for("sjf", predicted_tokens=n))
    assert by_priority == sorted(lengths)
    highest = max(
        lengths, key=lambda n: priority_for("srtf", predicted_tokens=n, lowest_first=False)
    )
    assert highest == min(lengths)
    assert priority_for("mlfq:quantum=8", prompt_tokens=64 * 9) == 8


def test_a_priority_fits_an_integer_field() -> None:
    assert priority_for("sjf", predicted_tokens=1e12) == 2**31 - 1
    assert priority_for("sjf", predicted_tokens=0.3, per_unit=10) == 3
    assert isinstance(priority_for("sjf", predicted_tokens=7.6), int)


def test_a_score_that_moves_is_no_priority() -> None:
    with pytest.raises(InputError, match="changes with the clock"):
        priority_for("hrrn", predicted_tokens=1)
    with pytest.raises(InputError, match="reads predicted_tokens, which is not given"):
        priority_for("sjf")
    with pytest.raises(UnknownNameError, match="did you mean 'predicted_tokens'"):
        priority_for("sjf", predicted_token=3)


# SGLang's hook


def request(prompt: int, predicted: Any = None, done: int = 0, priority: int = 0) -> Any:
    custom = None if predicted is None else {"predicted_tokens": predicted}
    return SimpleNamespace(
        origin_input_ids=[0] * prompt, output_ids=[0] * done, priority=priority,
        sampling_params=SimpleNamespace(custom_params=custom),
    )  # fmt: skip


def calc(priorities: Priorities, waiting: list[Any], sign: int = 1) -> list[float]:
    """The priorities that SGLang's own sort sees, in its order."""
    policy = SimpleNamespace(enable_priority_scheduling=True, priority_sign=sign)
    priorities.check(None, policy)
    seen: list[float] = []

    def own_sort(policy: Any, waiting: list[Any], batch: Any, processed: int = 0) -> None:
        waiting.sort(key=lambda r: r.priority * policy.priority_sign)
        seen.extend(r.priority for r in waiting)

    priorities.order(own_sort, policy, waiting, SimpleNamespace(reqs=[]), 3)
    return seen


@pytest.mark.parametrize("sign", [1, -1])
def test_sglang_s_own_sort_becomes_srtf(sign: int) -> None:
    priorities = Priorities(Settings(policy="srtf", default_tokens=50))
    waiting = [request(9, 80), request(9), request(9, 20), request(9, 100, done=95)]
    seen = calc(priorities, waiting, sign)
    assert [r.lengthwise_predicted - len(r.output_ids) for r in waiting] == [5, 20, 50, 80]
    assert seen == [sign * left for left in (5, 20, 50, 80)]
    assert {r.priority for r in waiting} == {0}  # as their clients said


@pytest.mark.parametrize("sign", [1, -1])
def test_a_client_s_priority_means_in_a_policy_what_it_means_to_sglang(sign: int) -> None:
    waiting = [request(9, priority=p) for p in (2, 9, 5)]
    calc(Priorities(Settings(policy="priority")), waiting, sign)
    assert [r.priority for r in waiting] == ([2, 5, 9] if sign == 1 else [9, 5, 2])


def test_every_rank_sees_the_same_priorities() -> None:
    ranks = []
    for _ in range(2):
        queue = [request(n, done=3 * n) for n in (700, 20, 5)]
        ranks.append(calc(Priorities(Settings(policy="mlfq")), queue))
    assert ranks[0] == ranks[1]


@pytest.mark.parametrize("policy", ["hrrn", "fcfs"])
def test_sglang_refuses_what_ranks_see_differently(policy: str) -> None:
    with pytest.raises(InputError, match="where ranks must agree"):
        Priorities(Settings(policy=policy))


def test_sglang_has_no_guard_and_says_so() -> None:
    with pytest.raises(InputError, match=r"in SGLang: no \+guard"):
        Priorities(Settings(policy="srtf+guard"))
    Priorities(Settings(policy="srtf+guard:ratio=0"))


def test_sglang_s_plugin_sleeps_until_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    register()  # would import sglang, which is not there
    monkeypatch.setenv(ENVIRONMENT, "{")
    with pytest.raises(InputError, match="not JSON"):
        Priorities(configured())


@pytest.mark.parametrize(
    "given, said",
    [
        ({"policy": "sjf", "guard": 1.5}, "guard has no effect in SGLang; these have: bundle"),
        ({"policy": "sjf", "guard_floor_s": 1.5}, "guard_floor_s has no effect in SGLang"),
        ({"policy": "sjf", "metrics_port": 1}, "metrics_port has no effect in SGLang"),
        ({"policy": "sjf", "record_prompts": True}, "there is no record"),
        ({"policy": "sjf", "predict_timeout_s": 1}, "there is no predictor"),
        ({"policy": "fcfs"}, "without predictor or record it does nothing"),
        ({"policy": "srtf+preempt:price=0"}, "in SGLang: no .preempt"),
        ({"policy": "sjf+guard"}, "no .guard"),
    ],
)
def test_sglang_refuses_what_has_no_effect_there(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], said: str
) -> None:
    monkeypatch.setenv(ENVIRONMENT, json.dumps(given))
    with pytest.raises(InputError, match=said):
        Priorities(configured())


def test_in_sglang_too_no_length_exceeds_the_limit_and_nonsense_is_ignored() -> None:
    priorities = Priorities(Settings(policy="sjf", default_tokens=50))
    waiting = [request(9, 145), request(9, "12"), request(9, 10**400), request(9, [3])]
    for one in waiting:
        one.sampling_params.max_new_tokens = 10 if one is waiting[0] else 128
    calc(priorities, waiting)
    assert [r.lengthwise_predicted for r in waiting] == [10, 12, 50, 50]
    assert priorities.counters.counts["ignored", "predicted_tokens"] == 2


def test_what_a_replica_reports_is_ignored_where_it_is_no_number() -> None:
    router = ReplicaRouter("jsq", reports=("running_requests", "waiting_requests"))
    for replica, waiting in (("a", "4"), ("b", None), ("c", 1)):
        router.report(replica, waiting_requests=waiting, running_requests=[1])
    assert router.rank(ABC) == ["b", "c", "a"]
    ignored = {label: n for (name, label), n in router.counters.counts.items() if name == "ignored"}
    assert ignored == {"waiting_requests": 1, "running_requests": 3}


def test_a_client_s_tools_and_roles_may_be_anything() -> None:
    odd = {"tools": np.zeros(2), "messages": [{"role": 10**5000, "content": "hello"}], "model": 5}
    call = call_of(odd)
    assert (call.asked, call.known["tools"]) == ("hello", 1.0)
    assert call_of({"tools": 5}).known["tools"] == 0.0
    assert call_of({"tools": [{"type": "function"}]}).known["tools"] == 1.0


@pytest.mark.parametrize("setting", ["metrics_port", "guard", "predict_timeout_s"])
def test_a_setting_that_no_float_holds_is_refused_in_one_line(setting: str) -> None:
    with pytest.raises(InputError, match=f"setting {setting} ") as refused:
        Settings.parse({"policy": "sjf", setting: 10**5000})
    assert len(str(refused.value)) < 200


def test_a_call_at_ray_serve_or_litellm_is_load_by_its_prompt_and_its_answer() -> None:
    """Four letters a token: the prompt of the first call weighs more than two answers."""
    ray: Any = type("Router", (PolicyRouting, RequestRouter), {})()
    ray.initialize_state(policy="least-tokens", reports=("waiting_requests",))
    replicas = [SimpleNamespace(replica_id=name, routing_stats=None) for name in ("a", "b")]
    ray.curr_replicas = {one.replica_id: one for one in replicas}
    deployments = [{"model_info": {"id": name}} for name in ("a", "b")]

    async def healthy(**rest: Any) -> Any:
        return deployments

    async def iterate(**rest: Any) -> Any: ...

    async def run() -> tuple[list[str], list[str]]:
        with litellm_modules():
            lite = RoutingStrategy(
                SimpleNamespace(
                    async_get_healthy_deployments=healthy, _acompletion_streaming_iterator=iterate
                ),
                "least-tokens",
            )
        at_ray, at_lite = [], []
        for number, letters in enumerate((4000, 40, 40, 40)):
            messages = [{"role": "user", "content": "abc " * (letters // 4)}]
            pending = SimpleNamespace(
                args=({"messages": messages},), kwargs={}, created_at=0.0,
                future=asyncio.get_running_loop().create_future(),
                metadata=SimpleNamespace(internal_request_id=str(number)),
            )  # fmt: skip
            at_ray.append((await ray.choose_replicas(replicas, pending))[0][0].replica_id)
            found = await lite.async_get_available_deployment(
                "m", messages=messages, request_kwargs={}
            )
            at_lite.append(found["model_info"]["id"])
        # replicas that are gone are in no count
        ray.curr_replicas.pop("b")
        await ray.choose_replicas(replicas[:1])
        assert set(ray._lengthwise._replicas) == {"a"}
        return at_ray, at_lite

    at_ray, at_lite = asyncio.run(run())
    for chosen in (at_ray, at_lite):
        first = chosen[0]
        assert first not in chosen[1:] and len(set(chosen)) == 2
