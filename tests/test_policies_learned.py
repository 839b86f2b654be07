"""A bundle of random weights acts the same wherever it is deployed."""

from pathlib import Path

import numpy as np
import pytest

from lengthwise.envs.columns import Columns
from lengthwise.envs.routing import RoutingEnv
from lengthwise.envs.scheduling import SchedulingEnv
from lengthwise.policies import load_policy, load_router
from lengthwise.policies.blend import blend
from lengthwise.policies.bundle import write_bundle
from lengthwise.policies.learned import MLP
from lengthwise.policies.plugins.routing import ReplicaRouter
from lengthwise.policy import Preemption, RoutingPolicy, SchedulingPolicy, Score
from lengthwise.serving import Engine, Node, System, run
from lengthwise.serving.fast.compiler.score import compile_score
from lengthwise.serving.fast.state import FEATURE_ROW
from lengthwise.serving.timing import LinearTiming
from lengthwise.serving.vllm import VllmUnavailable
from lengthwise.workload import Workload

TIMING = LinearTiming(
    base_s=0.01, per_prefill_token_s=1e-4, per_sequence_s=0.001, num_gpu_blocks=10_000
)
ENGINE = Engine(max_num_seqs=5, max_num_batched_tokens=256)
ROUTER = {"blend": "blend router"}
SEEN = {
    "scheduling": ("remaining_tokens", "prompt_tokens", "waited_s"),
    "routing": ("outstanding_tokens", "waiting_requests", "prompt_tokens", "kv_utilization"),
}


def layers(width):
    rng = np.random.default_rng(width)
    return [
        (rng.normal(size=(32, width)), rng.normal(size=32)),
        (rng.normal(size=(32, 32)) / 6, rng.normal(size=32)),
        (rng.normal(size=(1, 32)), rng.normal(size=1)),
    ]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """The folders of a scheduling policy, the same with preemption, and a router."""
    folder = tmp_path_factory.mktemp("bundles")
    scores = {
        kind: Score("net", *Columns.of(names).score(layers(len(names))))
        for kind, names in SEEN.items()
    }
    policies = {
        "scheduling": SchedulingPolicy(scores["scheduling"]),
        "preempting": SchedulingPolicy(scores["scheduling"], Preemption("recompute", price=1e-4)),
        "routing": RoutingPolicy(scores["routing"]),
        "blend": SchedulingPolicy(blend({"predicted": 1, "prompt": 0.3, "footprint": 0.2})),
        "blend router": RoutingPolicy(
            blend({"seat_wait_s": 1, "prefill_s": 0.1, "outstanding_s": 0.7, "own_s": 0.5})
        ),
    }
    return {name: str(write_bundle(made, folder / name)) for name, made in policies.items()}


def overload(seed, n=150):
    rng = np.random.default_rng(seed)
    return Workload(
        {
            "arrival_s": np.cumsum(rng.exponential(0.05, n)),
            "prompt_tokens": rng.integers(1, 400, n),
            "output_tokens": rng.geometric(0.02, n),
        }
    )


def simulated(seed, policy, router="round-robin", *, replicas=1, engine=ENGINE, backend="auto"):
    workload = overload(seed)
    node = Node(engine, TIMING, load_policy(policy))
    system = System.replicated(node, replicas, load_router(router))
    return run(workload, system, workload["output_tokens"], seed=seed, backend=backend)


def assert_same(a, b):
    for name in ("replica", "scheduled_ps", "first_token_ps", "finish_ps", "preemptions"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


@pytest.mark.parametrize("kind", ["scheduling", "preempting", "blend"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_twin_schedules_as_the_reference(bundles, kind, asynchronous):
    engine = Engine(max_num_seqs=5, max_num_batched_tokens=256, async_scheduling=asynchronous)
    for seed in range(3):
        given = {"engine": engine, "replicas": 2, "router": bundles[ROUTER.get(kind, "routing")]}
        slow, fast = (
            simulated(seed, bundles[kind], backend=backend, **given)
            for backend in ("reference", "fast")
        )
        assert_same(slow, fast)
        assert (slow.preemptions.sum() > 0) == (kind == "preempting")
        assert len(set(slow.replica.tolist())) == 2


def played(env, seed, columns):
    """The records of an agent that takes what its own network likes best."""
    whole = columns.normaliser()
    net = MLP(whole.shift, whole.scale, whole.log, tuple(layers(len(columns.names))))
    env.reset(options={"workload_seed": seed})
    done = False
    while not done:
        _, _, done, _, _ = env.step(int(net(*env.candidates().T).argmin()))
    return env.records()


def test_the_gym_shows_what_the_bundle_sees(bundles):
    """Differences are folded into the first layer: scores differ by rounding, choices do not."""
    given = {"timing": TIMING, "engine": ENGINE}
    for seed in range(3):
        env = SchedulingEnv(overload, slots=150, features=SEEN["scheduling"], **given)
        choices = played(env, seed, Columns.of(SEEN["scheduling"]))
        assert_same(choices, simulated(seed, bundles["scheduling"]))
        routing = RoutingEnv(
            overload, replicas=3, features=SEEN["routing"], policy=bundles["scheduling"], **given
        )
        choices = played(routing, seed, Columns.of(SEEN["routing"]))
        expected = simulated(seed, bundles["scheduling"], bundles["routing"], replicas=3)
        assert_same(choices, expected)


@pytest.mark.vllm
@pytest.mark.timeout(3000)  # the first test that needs the environment makes it
@pytest.mark.parametrize("kind", ["scheduling", "preempting", "blend"])
def test_vllm_s_scheduler_with_the_plugin_decides_the_same(bundles, kind):
    try:
        real = simulated(0, bundles[kind], backend="vllm")
    except VllmUnavailable as error:
        pytest.skip(str(error))
    assert_same(real, simulated(0, bundles[kind], backend="fast"))
    assert bundles[kind] in real.backend_reason


def test_a_router_ranks_replicas_by_the_same_bits(bundles: dict[str, Path]):
    policy = load_router(bundles["routing"])
    router = ReplicaRouter(policy, reports=("waiting_requests", "kv_utilization"))
    rng = np.random.default_rng(0)
    names = [f"replica {i}" for i in range(40)]
    rows = np.zeros(len(names), FEATURE_ROW)
    rows["prompt_tokens"] = 321
    for row, name in zip(rows, names, strict=True):
        tokens = float(rng.integers(0, 30_000))
        row["waiting_requests"], row["kv_utilization"] = rng.integers(0, 9), rng.random()
        row["outstanding_tokens"] = tokens
        router.sent(name, name, tokens)
        router.report(
            name,
            waiting_requests=int(row["waiting_requests"]),
            kv_utilization=float(row["kv_utilization"]),
        )
    machine = compile_score(policy.score).evaluate(rows)
    assert router.rank(names, prompt_tokens=321.0) == [names[i] for i in machine.argsort()]
    assert machine.tobytes() == policy.score.evaluate(rows).tobytes()


def test_networks_of_equal_numbers_are_equal(bundles):
    first, second = (load_policy(bundles["scheduling"]) for _ in range(2))
    assert first == second and first is not second
    assert len({first.score.function, second.score.function}) == 1
    other = load_router(bundles["routing"]).score.function
    assert first.score.function != other and first.score.function != "a network"
