"""Baseline scores and routers: what they choose by hand and by theory; alike in both engines."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest

from lengthwise import registry
from lengthwise.errors import InputError
from lengthwise.policies import load_policy, load_router
from lengthwise.policies.plugins.routing import OWN, STAND_IN, ReplicaRouter
from lengthwise.serving import Engine, Node, System, run
from lengthwise.serving.timing import LinearTiming
from lengthwise.workload import Workload

ROUTERS = registry.names("router")


def chosen(spec: str, **values: Any) -> int:
    """The replica that a router takes, from its features: one value each, or one for all."""
    score = load_router(spec).score
    return int(np.argmin(score.evaluate({k: np.asarray(v, float) for k, v in values.items()})))


def test_work_without_a_weight_is_shortest_job_first() -> None:
    rng = np.random.default_rng(0)
    predicted, prompt = rng.integers(1, 500, (2, 200))
    values = {"predicted_tokens": predicted, "prompt_tokens": prompt}
    order = np.argsort(load_policy("work:b=0.0").score.evaluate(values), kind="stable")
    assert order.tolist() == np.argsort(predicted, kind="stable").tolist()
    assert load_policy("work").score.evaluate(values)[3] == predicted[3] + 0.08 * prompt[3]


def test_weighted_sjf_has_the_least_weighted_completion_time() -> None:
    """Smith's rule, against every order of seven jobs on one machine."""
    rng = np.random.default_rng(1)
    for _ in range(5):
        length, priority = rng.integers(1, 50, 7), rng.integers(-3, 4, 7)
        weight = np.where(priority >= 0, 1 / (1 + np.maximum(priority, 0)), 1 + np.abs(priority))
        score = load_policy("weighted-sjf").score.evaluate(
            {"predicted_tokens": length, "priority": priority}
        )

        def cost(order: Any, length: Any = length, weight: Any = weight) -> float:
            order = list(order)
            return float(weight[order] @ np.cumsum(length[order]))

        least = min(map(cost, itertools.permutations(range(7))))
        assert cost(np.argsort(score)) == pytest.approx(least, rel=1e-12)


def test_jsq_tokens_breaks_ties_only() -> None:
    assert chosen(
        "jsq-tokens", running_requests=[2, 1, 1], waiting_requests=[0, 1, 1],
        outstanding_tokens=[900, 500, 400],
    ) == 2  # fmt: skip
    # however many tokens: never more than one request
    assert chosen(
        "jsq-tokens", running_requests=[2, 3], waiting_requests=0, outstanding_tokens=[1e9, 0]
    ) == 0  # fmt: skip


def test_jsew_by_hand() -> None:
    score = load_router("jsew:b=0.1,crowding=0.0").score
    found = score.evaluate(
        {
            "prefill_backlog_tokens": np.array([0, 500, 0]),
            "decode_backlog_tokens": np.array([1000, 1000, 4000]),
            "running_requests": np.array([4, 4, 4]), "waiting_requests": np.array([0, 1, 0]),
            "max_seats": np.array([8, 4, 4]), "decode_tokens_per_s": np.array([100, 100, 200]),
        }
    )  # fmt: skip
    # a free seat; two of five must end (10 s of decoding) and 0.5 s of prefill; one of four in 20 s
    assert found.tolist() == [0.0, 0.5 + 10 * 2 / 5, 20 * 1 / 4]


def test_a_fast_replica_is_worth_a_longer_queue() -> None:
    load = {"outstanding_tokens": [1000, 1500], "decode_tokens_per_s": [1000, 2000]}
    assert chosen("least-tokens", **load) == 0
    assert chosen("min-min", **load, prompt_tokens=10, predicted_tokens=10) == 1


def test_least_requests_counts_what_metrics_have_not_seen() -> None:
    speed = {"decode_tokens_per_s": [1000, 2000]}
    assert chosen("least-requests", **speed, outstanding_requests=[0, 0]) == 1
    assert chosen("least-requests", **speed, outstanding_requests=[0, 1]) == 0  # a tie
    assert chosen("least-requests", **speed, outstanding_requests=[3, 6]) == 1
    # ten arrive between two scrapes of two equal replicas: half go to each
    n = np.arange(10)
    workload = Workload(
        {"arrival_s": 0.1 + 0.01 * n, "prompt_tokens": 0 * n + 5, "output_tokens": 0 * n + 9}
    )
    node = Node(Engine(num_gpu_blocks=100), LinearTiming(1.0), load_policy("fcfs"))
    sent = {
        name: run(workload, System((node, node), load_router(name), 100.0)).replica
        for name in ("jsq", "least-requests")
    }
    assert sent["jsq"].tolist() == [0] * 10
    assert sent["least-requests"].tolist() == [0, 1] * 5


def test_weighted_round_robin_sends_in_proportion_to_speed() -> None:
    sent, speed = np.zeros(3), np.array([100.0, 200.0, 500.0])
    for _ in range(80):
        sent[chosen("weighted-round-robin", routed_requests=sent, decode_tokens_per_s=speed)] += 1
    assert sent.tolist() == [10, 20, 50]
    equal = [0, 0, 0, 0]
    for _ in range(8):
        at = chosen("weighted-round-robin", routed_requests=equal, decode_tokens_per_s=[9.0] * 4)
        assert equal[at] == min(equal)
        equal[at] += 1


def test_max_min_keeps_the_least_loaded_for_the_large() -> None:
    load = {"outstanding_tokens": [500, 100, 900], "waiting_requests": 0}
    assert chosen("max-min", **load, free_seats=1, predicted_tokens=600) == 1
    assert chosen("max-min", **load, free_seats=[1, 1, 0], predicted_tokens=20) == 0
    assert chosen("max-min", **load, free_seats=0, predicted_tokens=20) == 1


def test_load_cache_and_memory_by_hand() -> None:
    load = {"running_requests": [6, 4], "waiting_requests": [0, 0]}
    assert chosen("least-load", **load, max_seats=[16, 8], kv_utilization=0.5) == 0
    assert chosen("least-load", **load, max_seats=[16, 8], kv_utilization=[0.9, 0.5]) == 1
    cached = {"cached_tokens": [512, 0]}
    assert chosen("prefix-affinity", **load, **cached) == 0  # two requests more, and just worth it
    assert chosen("prefix-affinity:break_even=300.0", **load, **cached) == 1
    new = {"prefill_backlog_tokens": [0, 100], "prompt_tokens": 600}
    assert chosen("lmetric", **load, **cached, **new) == 0  # 88 x 6 against 700 x 4
    assert chosen("max-capacity", waiting_requests=[1, 0], kv_utilization=[0.1, 0.9]) == 1


def test_a_router_in_front_of_real_replicas_refuses_what_it_cannot_see() -> None:
    known = {*OWN, *STAND_IN, "prompt_tokens", "predicted_tokens", "now_s", "arrival_s", "priority"}
    for name in ROUTERS:
        unseen = [f for f in load_router(name).score.features if f not in known]
        if unseen:
            with pytest.raises(InputError, match=unseen[0]):
                ReplicaRouter(name)
        else:
            assert ReplicaRouter(name).policy.name == name
    speeds = ReplicaRouter("weighted-round-robin", reports=("decode_tokens_per_s",))
    speeds.report("a", decode_tokens_per_s=1000.0)
    speeds.report("b", decode_tokens_per_s=3000.0)
    taken: Counter[Any] = Counter()
    for request in range(40):
        first = speeds.rank(["a", "b"])[0]
        speeds.sent(first, request)
        taken[first] += 1
    assert taken == {"a": 10, "b": 30}


@pytest.mark.parametrize("interval_s", [0.0, 0.5])
@pytest.mark.parametrize("spec", [*ROUTERS, "jsew:b=0.3", "least-load:choices=2"])
def test_both_engines_route_alike_on_unequal_nodes(spec: str, interval_s: float) -> None:
    rng = np.random.default_rng(len(spec))
    n = 150
    prompt, output = rng.integers(1, 90, (2, n))
    workload = Workload(
        {
            "arrival_s": np.cumsum(rng.exponential(0.02, n)), "prompt_tokens": prompt,
            "output_tokens": output, "hash_block_tokens": np.full(n, 16),
            "prefix_hashes": [tuple(range(rng.integers(0, 5))) for _ in range(n)],
        }
    )  # fmt: skip
    nodes = tuple(
        Node(
            Engine(max_num_seqs=seats, num_gpu_blocks=60, enable_prefix_caching=True),
            LinearTiming(base_s=base_s, per_sequence_s=0.001), load_policy("work"),
        )
        for seats, base_s in ((8, 0.01), (4, 0.02), (2, 0.01))
    )  # fmt: skip
    system = System(nodes, load_router(spec), interval_s)
    slow, fast = (
        run(workload, system, output * 1.0, seed=3, backend=backend)  # type: ignore[arg-type]
        for backend in ("reference", "fast")
    )
    assert slow.replica.tolist() == fast.replica.tolist()
    assert slow.finish_ps.tolist() == fast.finish_ps.tolist()
    assert len(set(slow.replica.tolist())) > 1
