"""Vector environments: to the bit what the reference engine says, in all three autoreset modes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lengthwise.envs  # noqa: F401 - registers
from lengthwise.envs.episodes import Episode
from lengthwise.envs.routing import RoutingVectorEnv
from lengthwise.envs.scheduling import SchedulingVectorEnv
from lengthwise.policies import load_policy, load_router
from lengthwise.predictors.predict import predict
from lengthwise.serving import Engine, Node, System
from lengthwise.serving.timing import LinearTiming
from lengthwise.workload import Workload
from tests.reference_env import ReferenceEnv

SLOW = LinearTiming(
    base_s=0.01, per_prefill_token_s=1e-4, per_sequence_s=0.0005, num_gpu_blocks=400
)
FAST = LinearTiming(base_s=0.004, per_sequence_s=0.0002, num_gpu_blocks=150)
SMALL = {"max_num_seqs": 4, "max_num_batched_tokens": 256}
FEATURES = {
    "route": ("running_requests", "waiting_requests", "outstanding_tokens", "kv_utilization",
              "predicted_tokens", "free_seats", "oldest_request_s", "prefill_backlog_tokens"),
    "admit": ("predicted_tokens", "prompt_tokens", "waited_s", "preemptions", "kv_utilization"),
}  # fmt: skip


def bursty(seed: int, requests: int = 60) -> Workload:
    rng = np.random.default_rng(seed)
    return Workload(
        {
            "arrival_s": np.cumsum(rng.exponential(0.06, requests)),
            "prompt_tokens": rng.integers(1, 300, requests),
            "output_tokens": rng.geometric(0.03, requests),
        },
        name="bursty",
    )


def unequal(seed: int) -> Episode:
    """Episodes that differ in everything: nodes, their number, load, staleness, predictions."""
    rng = np.random.default_rng(seed)
    policy = load_policy(["fcfs", "srtf"][seed % 2])
    nodes = tuple(
        Node(Engine(int(rng.integers(2, 6)), 256), (SLOW, FAST)[int(rng.integers(2))], policy)
        for _ in range(int(rng.integers(2, 5)))
    )
    system = System(nodes, load_router("jsq"), [0.0, 0.05][seed // 2 % 2])
    workload = bursty(seed, 30 + seed % 40)
    predictions = predict("noisy-oracle:sigma=0.5", workload, seed)
    return Episode(workload, system, predictions, seed, 40.0, f"{len(nodes)} nodes")


def cached(seed: int) -> Episode:
    """Prefix caching and asynchronous scheduling now and then: other machine code."""
    engine = Engine(
        max_num_seqs=4, max_num_batched_tokens=256, enable_prefix_caching=seed % 2 == 0,
        async_scheduling=seed % 2 == 0,
    )  # fmt: skip
    system = System.replicated(Node(engine, SLOW, load_policy("fcfs")), 2, load_router("jsq"))
    return Episode(bursty(seed, 40), system, None, seed, 40.0, "cached")


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "routing": ("route", {"workload": bursty, "timing": SLOW, "engine": SMALL, "replicas": 3}),
    "stale": (
        "route",
        {"workload": bursty, "timing": SLOW, "engine": SMALL, "metrics_interval_s": 0.1},
    ),
    "unequal": ("route", {"scenarios": unequal, "replicas": 4}),
    "hold": (
        "route",
        {"workload": bursty, "timing": SLOW, "engine": SMALL, "replicas": 2, "hold": True},
    ),
    "machine code differs": ("route", {"scenarios": cached, "replicas": 2, "predictor": None}),
    "scheduling": ("admit", {"workload": bursty, "timing": SLOW, "engine": SMALL, "slots": 8}),
    "two schedulers": (
        "admit",
        {"workload": bursty, "timing": SLOW, "engine": SMALL, "slots": 200, "replicas": 2},
    ),
}


def made(case: str, **more: Any) -> tuple[Any, tuple[str, ...]]:
    kind, options = CASES[case]
    names = FEATURES[kind]
    if case == "machine code differs":
        names = ("running_requests", "waiting_requests", "kv_utilization", "cached_tokens")
    make = RoutingVectorEnv if kind == "route" else SchedulingVectorEnv
    return make(**{**options, "features": names, **more}), names


def seeds_of(seed: int, count: int) -> list[int]:
    """The episodes that an environment of this seed draws."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
    return [int(rng.integers(2**31)) for _ in range(count)]


def legal(mask: Any, rng: np.random.Generator, spoil: bool) -> int:
    """A random action, now and then one that the mask rules out."""
    if spoil and rng.random() < 0.02:
        return int(rng.integers(len(mask)))
    choices = np.flatnonzero(mask)
    return int(choices[rng.integers(len(choices))])


@pytest.mark.parametrize("case", CASES)
def test_the_reference_engine_sees_and_pays_the_same(case: str) -> None:
    """Every observation, mask, reward and end of several environments, to the bit."""
    env, names = made(case, num_envs=3, flat=True, bank=1, plays=1)
    kind, slots = env.game.kind, env.game.slots
    width = len(names)
    rngs = [np.random.default_rng(k) for k in range(3)]
    episodes = [[env.game.source(s) for s in seeds_of(7 + k, 2)] for k in range(3)]
    oracles = [ReferenceEnv(kind, one[0], names, slots, hold_s=env.game.hold_s) for one in episodes]
    seen, _ = env.reset(seed=7)
    finished = [0, 0, 0]
    for _ in range(100_000):
        for k, oracle in enumerate(oracles):
            np.testing.assert_array_equal(seen[k], oracle.flat())
            np.testing.assert_array_equal(env.action_masks()[k], seen[k, slots * width :][:slots])
        masks = seen[:, slots * width : slots * (width + 1)]
        over = [oracle.done for oracle in oracles]
        actions = np.array([
            0 if over[k] else legal(masks[k], rngs[k], spoil=True) for k in range(3)
        ])  # fmt: skip
        wanted = []
        for k, oracle in enumerate(oracles):
            if not over[k]:
                wanted.append(oracle.step(int(actions[k])))
                continue
            finished[k] += 1
            wanted.append(0.0)
            if finished[k] < 2:
                oracles[k] = ReferenceEnv(
                    kind, episodes[k][1], names, slots, hold_s=env.game.hold_s
                )
        if min(finished) >= 2 or max(finished) >= 2:
            break
        seen, rewards, ended, truncated, info = env.step(actions)
        assert rewards.tolist() == wanted
        assert not truncated.any()
        for k, oracle in enumerate(oracles):
            assert ended[k] == (oracle.done and not over[k])
            if ended[k]:
                for name, value in oracle.end().items():
                    assert info[name][k] == value and info[f"_{name}"][k]
    assert max(finished) >= 2
