"""Both environments: what gymnasium and stable-baselines3 ask, seeds, rewards, illegal actions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import lengthwise.envs  # noqa: F401 - registers
from lengthwise.envs.base import DecisionEnv
from lengthwise.envs.episodes import Episode
from lengthwise.envs.picture import CELL, picture
from lengthwise.envs.preemption import PreemptionEnv
from lengthwise.envs.routing import RoutingEnv
from lengthwise.envs.scheduling import SchedulingEnv
from lengthwise.errors import InputError, UnknownNameError
from lengthwise.policies import load_policy, load_router
from lengthwise.predictors.predict import predict
from lengthwise.serving import Engine, Node, System, Totals
from lengthwise.serving.records import PS
from lengthwise.serving.timing import LinearTiming
from lengthwise.workload import Workload

TIMING = LinearTiming(base_s=0.01, per_sequence_s=0.0005, num_gpu_blocks=400)


def bursty(seed: int, requests: int = 60) -> Workload:
    rng = np.random.default_rng(seed)
    return Workload(
        {
            "arrival_s": np.cumsum(rng.exponential(0.1, requests)),
            "prompt_tokens": rng.integers(1, 300, requests),
            "output_tokens": rng.geometric(0.03, requests),
        },
        name="bursty",
    )


def scheduling(**options: Any) -> SchedulingEnv:
    options = {"timing": TIMING, "engine": {"max_num_seqs": 4}, "slots": 8, **options}
    return SchedulingEnv(options.pop("workload", bursty), **options)


def routing(**options: Any) -> RoutingEnv:
    options = {"timing": TIMING, "engine": {"max_num_seqs": 4}, "replicas": 3, **options}
    return RoutingEnv(options.pop("workload", bursty), **options)


def preemption(**options: Any) -> PreemptionEnv:
    options = {"timing": TIMING, "engine": {"max_num_seqs": 4}, **options}
    return PreemptionEnv(options.pop("workload", bursty), **options)


both = pytest.mark.parametrize("make", [scheduling, routing])
every = pytest.mark.parametrize("make", [scheduling, routing, preemption])
Make = Callable[..., DecisionEnv]


def play(env: DecisionEnv, seed: int, choose: int = 0) -> list[tuple[bytes, float, bool]]:
    rng = np.random.default_rng(choose)
    observation, _ = env.reset(seed=seed)
    trajectory, done = [], False
    while not done:
        action = int(rng.choice(np.flatnonzero(observation["mask"])))
        observation, reward, done, _, _ = env.step(action)
        seen = b"".join(value.tobytes() for value in observation.values())
        trajectory.append((seen, reward, done))
    return trajectory


IDS = [f"lengthwise/{name}-v{version}" for name in ("Scheduling", "Routing") for version in (0, 1)]
IDS.append("lengthwise/Preemption-v1")
old = pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")  # of the v0 ids


@old
@pytest.mark.parametrize("name", IDS)
def test_gymnasium_checker(name: str) -> None:
    env = gymnasium.make(name, workload=bursty, timing=TIMING, engine={"max_num_seqs": 4})
    check_env(env.unwrapped)


@old
@pytest.mark.parametrize("name", IDS)
def test_every_id_asks_with_nothing_but_its_defaults(name: str) -> None:
    envs = gymnasium.make_vec(name, num_envs=2)
    observations, _ = envs.reset(seed=0)
    assert (observations["mask"].sum(axis=-1) > 1).all()  # there is a choice
    *_, ended, _, _ = envs.step(observations["mask"].argmax(axis=-1))
    assert not ended.any()
    envs.close()


@every
def test_stable_baselines3_checker(make: Make) -> None:
    sb3_check_env(make(), warn=True)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lengthwise/Routing-v1", {"replicas": 4, "requests": 50}),
        ("lengthwise/Scheduling-v1", {"engine": {"max_num_seqs": 8}, "requests": 50, "rate": 20.0}),
    ],
)
def test_made_from_json(name: str, options: dict[str, Any]) -> None:
    env = gymnasium.make(
        name, workload="azure-conv-2023", timing="h200/llama-3.1-8b", **options
    ).unwrapped
    assert isinstance(env, DecisionEnv)
    assert play(env, seed=3)[-1][2]


@every
def test_same_seed_same_bytes(make: Make) -> None:
    assert play(make(), seed=5) == play(make(), seed=5)
    assert play(make(), seed=5) != play(make(), seed=6)


@every
def test_return_is_the_sum_of_latencies(make: Make) -> None:
    """Little's law, to the picosecond: whatever the choices, the integral is the latencies' sum."""
    env = make(reward_scale=1.0)
    for seed in range(5):
        rewards = [reward for _, reward, _ in play(env, seed=seed, choose=seed)]
        records = env.records()
        total_ps = int((records.finish_ps - records.arrival_ps).sum())
        assert env.totals.request_ps == total_ps
        assert -math.fsum(rewards) == pytest.approx(total_ps / PS, rel=1e-12)


@both
def test_default_return_is_minus_the_mean(make: Make) -> None:
    env = make()
    rewards = [reward for _, reward, _ in play(env, seed=2)]
    records = env.records()
    mean_s = (records.finish_ps - records.arrival_ps).mean() / PS
    assert -math.fsum(rewards) == pytest.approx(mean_s, rel=1e-9)


@both
def test_cost_can_be_a_function(make: Make) -> None:
    def makespan(totals: Totals) -> float:
        return totals.now_ps / PS

    env = make(cost=makespan, reward_scale=1.0)
    rewards = [reward for _, reward, _ in play(env, seed=1)]
    assert -math.fsum(rewards) == pytest.approx(env.records().finish_ps.max() / PS)


@both
def test_masks_agree(make: Make) -> None:
    env = make()
    observation, _ = env.reset(seed=0)
    assert env.action_masks().tolist() == (observation["mask"] == 1).tolist()
    rows = observation["candidates"].reshape(int(env.action_space.n), -1)
    assert not rows[~env.action_masks()].any()


def test_illegal_action_is_the_head_of_the_queue_and_costs() -> None:
    legal, illegal = scheduling(illegal_penalty=2.5), scheduling(illegal_penalty=2.5)
    observation, _ = legal.reset(seed=0)
    illegal.reset(seed=0)
    assert observation["mask"][-1] == 0
    _, reward, _, _, info = legal.step(0)
    _, penalised, _, _, told = illegal.step(7)
    assert penalised == pytest.approx(reward - 2.5)
    assert (info["illegal_actions"], told["illegal_actions"]) == (0, 1)
    assert legal.totals.now_ps == illegal.totals.now_ps


@both
@pytest.mark.parametrize("action", [-1, 8, 3.7])
def test_actions_outside_the_space_are_errors(make: Make, action: float) -> None:
    env = make()
    env.reset(seed=0)
    with pytest.raises(InputError, match=r"action must be in 0\.\."):
        env.step(action)


@every
def test_no_step_outside_a_run(make: Make) -> None:
    env = make()
    with pytest.raises(InputError, match="call reset"):
        env.step(0)
    play(env, seed=0)
    with pytest.raises(InputError, match="call reset"):
        env.step(0)
    assert not env.action_masks().any()


@both
def test_bad_options_are_told(make: Make) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'prompt_tokens'"):
        make(features=("prompt_token",))
    with pytest.raises(UnknownNameError, match="arrival_s"):
        make(features=("arrival_s",))
    with pytest.raises(UnknownNameError, match="did you mean 'latency'"):
        make(cost="latencies")
    with pytest.raises(UnknownNameError, match="did you mean 'max_num_seqs'"):
        make(engine={"max_num_seq": 4})
    with pytest.raises(InputError, match="reward_scale must be positive"):
        make(reward_scale=0.0)
    with pytest.raises(InputError, match="scale of"):
        make(features=("prompt_tokens",), scales={"prompt_tokens": (1.0, 0.0)})
    with pytest.raises(UnknownNameError, match="did you mean 'azure-conv-2023'"):
        make(workload="azure-conv-2032")


def test_a_choice_needs_two() -> None:
    with pytest.raises(InputError, match="at least 2 candidates"):
        routing(replicas=1)
    with pytest.raises(InputError, match="no moment of it leaves a choice"):
        scheduling(workload=lambda seed: bursty(seed, 1)).reset(seed=0)


def test_a_feature_without_its_column_is_told() -> None:
    with pytest.raises(InputError, match="deadline_s"):
        scheduling(features=("slack_s",)).reset(seed=0)


@pytest.mark.parametrize("wrong", [{"bank": 0}, {"plays": 0}, {"bank": 3, "plays": -1}])
def test_a_bank_holds_an_episode_or_more_and_plays_it(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match="bank and plays must be 1 or more"):
        gymnasium.make_vec("lengthwise/Scheduling-v1", num_envs=1, workload=bursty, **wrong)


def test_windows_of_a_workload() -> None:
    whole = bursty(0, 200)
    env = scheduling(workload=whole, requests=50)
    env.reset(seed=0)
    first = env.workload
    env.reset(seed=1)
    assert len(first) == len(env.workload) == 50
    assert first["arrival_s"][0] == 0.0
    assert first["prompt_tokens"].tolist() != env.workload["prompt_tokens"].tolist()


def test_one_episode_by_number() -> None:
    env = scheduling()
    env.reset(seed=0, options={"workload_seed": 12})
    assert env.workload["arrival_s"].tolist() == bursty(12)["arrival_s"].tolist()


@both
def test_a_noisy_oracle_errs_anew_in_every_episode(make: Make) -> None:
    same = bursty(0)
    for spec, fixed in (("noisy-oracle:sigma=0.5", False), ("noisy-oracle:sigma=0.5,seed=7", True)):
        env, seen = make(workload=lambda seed: same, predictor=spec), []
        for seed in (1, 2):
            env.reset(options={"workload_seed": seed})
            seen.append(env.predictions.predicted_tokens)
            # as evaluation would have it
            wanted = predict(spec, same, seed)
            assert wanted is not None
            np.testing.assert_array_equal(seen[-1], wanted.predicted_tokens)
        assert np.array_equal(*seen) == fixed


def test_render_is_a_line() -> None:
    env = routing(render_mode="ansi")
    env.reset(seed=0)
    assert "3 candidates" in env.render()


def test_render_is_a_picture() -> None:
    env = routing(render_mode="rgb_array")
    env.reset(seed=0)
    image = env.render()
    features = len(env.columns.names)
    assert image.shape == (features * CELL, 3 * CELL, 3) and image.dtype == np.uint8
    seen = np.array([[0.0, 9.0], [-9.0, 0.0]])  # two candidates of two features, on three slots
    drawn = picture(np.vstack([seen, [[5.0, 5.0]]]), np.array([True, True, False]))[
        CELL // 2 :: CELL, CELL // 2 :: CELL
    ].tolist()
    white, red, blue, grey = [247] * 3, [178, 24, 43], [33, 102, 172], [200] * 3
    assert drawn == [[white, blue, grey], [red, white, grey]]
    with pytest.raises(UnknownNameError, match="render_mode 'rgb'; did you mean 'rgb_array'"):
        routing(render_mode="rgb")


@old
def test_stable_baselines_makes_environments_by_name() -> None:
    """Its helpers ask for pictures by default."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    small = {"workload": bursty, "timing": TIMING, "replicas": 2}
    made = make_vec_env("lengthwise/Routing-v0", n_envs=2, env_kwargs=small)
    assert set(made.reset()) == {"candidates", "mask", "state"}
    assert made.render("rgb_array") is not None
    PPO("MultiInputPolicy", "lengthwise/Routing-v0")


def test_stable_baselines_wraps_them() -> None:
    """Its vector environments of single ones, one process or several, and its normalisation."""
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

    seen = []
    for kind in (DummyVecEnv, SubprocVecEnv):
        env = VecNormalize(kind([flat_routing, flat_routing]))
        env.seed(0)
        env.reset()
        for _ in range(70):  # an episode has 60 arrivals
            observation, _, done, infos = env.step(np.array([0, 1]))
            if done.any():
                assert infos[0]["terminal_observation"].shape == observation[0].shape
        seen.append(observation)
        env.close()
    np.testing.assert_array_equal(*seen)


def flat_routing() -> RoutingEnv:
    return routing(flat=True)


def test_a_preemption_env_takes_queues_by_score_alone() -> None:
    with pytest.raises(InputError, match="slots must be 5 or more"):
        preemption(slots=4).reset(seed=0)
    with pytest.raises(InputError, match="policy 'fcfs': who gives way"):
        preemption(policy="fcfs").reset(seed=0)
    env = preemption()
    seen, _ = env.reset(seed=0)
    before, mask = env.totals.preemptions, seen["mask"]
    assert mask[-1] == 1 and mask.sum() >= 2
    env.step(int(np.flatnonzero(mask)[0]))
    env.step(env.action_space.n - 1)
    assert env.totals.preemptions == before + 1


def test_a_loop_written_by_hand() -> None:
    """As CleanRL writes it: flat observations, masks, NEXT_STEP, a policy gradient in numpy.

    With two replicas of which one is ten times slower, it learns to avoid the slow one.
    """
    slow = LinearTiming(base_s=0.1, per_sequence_s=0.005, num_gpu_blocks=400)
    policy, router = load_policy("fcfs"), load_router("jsq")
    nodes = tuple(Node(Engine(max_num_seqs=4), timing, policy) for timing in (TIMING, slow))
    system = System(nodes, router)
    envs: Any = gymnasium.make_vec(
        "lengthwise/Routing-v1", num_envs=16, flat=True, replicas=2,
        features=("decode_tokens_per_s", "running_requests"),
        scenarios=lambda seed: Episode(bursty(seed, 30), system, None, seed, 30.0, "two"),
    )  # fmt: skip
    rng, weights, baseline = np.random.default_rng(0), np.zeros(2), 0.0
    seen, _ = envs.reset(seed=0)
    returns, gradients, finished = np.zeros(16), np.zeros((16, 2)), []
    over = np.zeros(16, bool)
    for _ in range(1500):
        rows, mask = seen[:, :4].reshape(16, 2, 2), seen[:, 4:6] > 0
        logits = np.where(mask, rows @ weights, -np.inf)
        logits[over] = 0.0
        chances = np.exp(logits - logits.max(1, keepdims=True))
        chances /= chances.sum(1, keepdims=True)
        actions = (rng.random(16) > chances[:, 0]).astype(np.int64)
        expected = (chances[..., None] * rows).sum(1)
        gradients += np.where(over[:, None], 0.0, rows[np.arange(16), actions] - expected)
        seen, rewards, over, _, _ = envs.step(actions)
        returns += rewards
        if over.any():
            finished += returns[over].tolist()
            for total, gradient in zip(returns[over], gradients[over], strict=True):
                weights += 0.02 * np.clip(total - baseline, -2, 2) * gradient / 30
                baseline += 0.1 * (total - baseline)
            returns[over], gradients[over] = 0.0, 0.0
    tenth = len(finished) // 10
    assert weights[0] > 0  # faster is better
    assert np.mean(finished[-tenth:]) > np.mean(finished[:tenth])
