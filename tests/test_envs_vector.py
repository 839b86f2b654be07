"""Vector environments: to the bit what the reference engine says, in all three autoreset modes."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, VectorEnv

import lengthwise.envs  # noqa: F401 - registers
from lengthwise.envs.episodes import Episode
from lengthwise.envs.routing import RoutingEnv, RoutingVectorEnv
from lengthwise.envs.scheduling import SchedulingEnv, SchedulingVectorEnv
from lengthwise.errors import InputError, UnknownNameError
from lengthwise.policies import load_policy, load_router
from lengthwise.predictors.predict import predict
from lengthwise.serving import Engine, Node, System, Totals
from lengthwise.serving.events import RandomEvents
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


def failing(seed: int) -> Episode:
    """Nodes fail and slow down, all of them at once now and then."""
    made = unequal(seed)
    rng = np.random.default_rng(seed)
    often = RandomEvents(0.5, 0.3, 0.05, 0.5, 0.3)
    events = often.draw(rng, len(made.system.nodes), 4.0)
    return replace(made, system=replace(made.system, events=events))


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
    "failing": ("route", {"scenarios": failing, "replicas": 4}),
    "failing, hold": ("route", {"scenarios": failing, "replicas": 4, "hold": True}),
    "hold": (
        "route",
        {"workload": bursty, "timing": SLOW, "engine": SMALL, "replicas": 2, "hold": True},
    ),
    "machine code differs": ("route", {"scenarios": cached, "replicas": 2, "predictor": None}),
    "scheduling": ("admit", {"workload": bursty, "timing": SLOW, "engine": SMALL, "slots": 8}),
    "a long queue": (
        "admit",
        {"workload": lambda seed: bursty(seed, 150), "timing": SLOW, "engine": SMALL, "slots": 12},
    ),
    "its head": (
        "admit",
        {"workload": bursty, "timing": SLOW, "engine": SMALL, "slots": 5, "show": "first"},
    ),
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
    rules: Any = {"hold_s": env.game.hold_s, "show": env.game.show}
    oracles = [ReferenceEnv(kind, one[0], names, slots, **rules) for one in episodes]
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
                oracles[k] = ReferenceEnv(kind, episodes[k][1], names, slots, **rules)
        if max(finished) >= 2:
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


def singles(case: str, count: int, **more: Any) -> list[RoutingEnv | SchedulingEnv]:
    kind, options = CASES[case]
    make = RoutingEnv if kind == "route" else SchedulingEnv
    return [make(**{**options, **more}) for _ in range(count)]


class Player:
    """A single environment that is reset as its place in a vector environment is."""

    def __init__(self, env: RoutingEnv | SchedulingEnv, seed: int) -> None:
        self.env = env
        self.seen, self.info = env.reset(seed=seed)
        self.over = False

    def step(self, action: int, mode: AutoresetMode) -> tuple[float, bool]:
        self.last: Any = None
        if self.over and mode is AutoresetMode.NEXT_STEP:
            self.seen, self.info = self.env.reset()
            self.over = False
            return 0.0, False
        self.seen, reward, ended, _, self.info = self.env.step(action)
        self.over = ended
        if ended and mode is AutoresetMode.SAME_STEP:
            self.last = self.seen, self.info
            self.seen, self.info = self.env.reset()
            self.over = False
        return reward, ended


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("case", ["routing", "scheduling"])
def test_autoreset_modes_are_single_environments_step_by_step(
    case: str, mode: AutoresetMode
) -> None:
    """With banks of episodes that are played more than once, and small ones drawn anew."""
    given = {"bank": 2, "plays": 2, "workload": lambda seed: bursty(seed, 20)}
    name = "Routing" if case == "routing" else "Scheduling"
    options = {**CASES[case][1], **given}
    env: VectorEnv[Any, Any, Any] = gymnasium.make_vec(
        f"lengthwise/{name}-v1", num_envs=3, autoreset_mode=mode, **options
    )
    assert env.metadata["autoreset_mode"] is mode
    players = [Player(one, 5 + k) for k, one in enumerate(singles(case, 3, **given))]
    seen, _ = env.reset(seed=5)
    rng, finished = np.random.default_rng(0), 0
    for _ in range(10_000):
        for k, player in enumerate(players):
            for part, values in player.seen.items():
                np.testing.assert_array_equal(seen[part][k], values)
            assert player.seen["mask"].tolist() == env.action_masks()[k].tolist()  # type: ignore[attr-defined]
        over = np.array([player.over for player in players])
        if mode is AutoresetMode.DISABLED and over.any():
            seen, _ = env.reset(options={"reset_mask": over})
            for player in players:
                if player.over:
                    player.seen, player.info = player.env.reset()
                    player.over = False
            continue
        if finished >= 12:
            break
        actions = np.array([
            0 if over[k] else legal(player.seen["mask"], rng, spoil=True)
            for k, player in enumerate(players)
        ])  # fmt: skip
        seen, rewards, ended, _, info = env.step(actions)
        for k, player in enumerate(players):
            assert (rewards[k], ended[k]) == player.step(int(actions[k]), mode)
            assert info["now_s"][k] == player.info["now_s"]
            finished += int(ended[k])
            if ended[k] and mode is AutoresetMode.SAME_STEP:
                last, told = player.last
                assert info["final_info"]["mean_latency_s"][k] == told["mean_latency_s"]
                assert info["final_info"]["illegal_actions"][k] == told["illegal_actions"]
                np.testing.assert_array_equal(info["final_obs"][k]["mask"], last["mask"])
            elif ended[k]:
                assert info["mean_latency_s"][k] == player.info["mean_latency_s"]
                assert info["scenario"][k] == "bursty"
    assert finished >= 12


def test_a_bank_plays_its_episodes_in_turn() -> None:
    """Two episodes, each played twice, then two new ones."""
    env = singles("routing", 1, bank=2, plays=2)[0]
    env.reset(seed=3)
    names = []
    for _ in range(8):
        names.append(env.vector.drawn(0).seed)
        env.reset()
    assert names == [names[0], names[1]] * 2 + [names[4], names[5]] * 2
    assert len(set(names)) == 4
    assert names[:2] == seeds_of(3, 2)


def test_a_cost_in_python_pays_as_the_compiled_one() -> None:
    """Also in the step in which an episode ends and the next one begins."""

    def spent(totals: Totals) -> float:
        return totals.request_ps / 10**12

    rewards = []
    for cost in ("latency", spent):
        env, _ = made("routing", num_envs=2, autoreset_mode="SAME_STEP", cost=cost)
        env.reset(seed=0)
        rewards.append([env.step(np.array([i % 3, 9 % 3]))[1] for i in range(200)])
    np.testing.assert_allclose(rewards[0], rewards[1], rtol=1e-9, atol=1e-12)


def test_buffers_are_written_again_unless_copies_are_asked_for() -> None:
    for copy in (False, True):
        env, _ = made("routing", num_envs=2, flat=True, copy=copy)
        first, _ = env.reset(seed=0)
        before = first.copy()
        env.step(np.array([0, 1]))
        second = env.step(np.array([0, 1]))[0]
        assert np.shares_memory(first, second) is not copy
        assert np.array_equal(first, before) is copy


def test_what_is_refused() -> None:
    env, _ = made("routing", num_envs=2, autoreset_mode="DISABLED")
    with pytest.raises(InputError, match="call reset"):
        env.step(np.array([0, 0]))
    env.reset(seed=0)
    now = env.many.now_s.tolist()
    with pytest.raises(InputError, match=r"action must be in 0\.\.2, not 3"):
        env.step(np.array([0, 3]))
    assert env.many.now_s.tolist() == now  # nobody took a step
    with pytest.raises(InputError, match="whole number"):
        env.step(np.array([0.0, 1.5]))
    with pytest.raises(InputError, match="shape"):
        env.step(np.array([0]))
    with pytest.raises(InputError, match="reset_mask"):
        env.reset(options={"reset_mask": np.array([False, False])})
    with pytest.raises(UnknownNameError, match="did you mean 'SAME_STEP'"):
        made("routing", autoreset_mode="SAME_STEPS")
    with pytest.raises(InputError, match="num_envs"):
        made("routing", num_envs=0)
    with pytest.raises(InputError, match=r"replicas must be [34] or more"):
        env = RoutingVectorEnv(scenarios=unequal, replicas=2)
        for seed in range(20):
            env.reset(seed=seed)


def test_pickled_between_episodes() -> None:
    """Options and generators go along; a run that is under way does not."""
    whole, _ = made("routing", num_envs=2, workload=bursty)
    twin = pickle.loads(pickle.dumps(whole))
    for env in (whole, twin):
        env.reset(seed=4)
    for _ in range(50):
        a, b = (env.step(np.array([1, 2])) for env in (whole, twin))
        np.testing.assert_array_equal(a[0]["candidates"], b[0]["candidates"])
    with pytest.raises(InputError, match="under way can't be pickled"):
        pickle.dumps(whole)
    single = pickle.loads(pickle.dumps(singles("scheduling", 1)[0]))
    assert single.reset(seed=0)[0]["mask"].sum() >= 2
