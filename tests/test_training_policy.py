"""Reinforcement learning: known optima are found, runs resume, and what is exported decides alike.

The two small problems have known answers. Jobs of length 1 and 5 that are all there at time 0, on
one machine: shortest first is optimal (Smith 1956). Identical single-server replicas: joining the
shorter queue is optimal (Winston 1977), and here the agent sees the work left, which is no worse.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lengthwise.envs.columns import SCALES, Columns
from lengthwise.envs.routing import RoutingEnv
from lengthwise.envs.scheduling import SchedulingEnv
from lengthwise.errors import InputError, UnknownNameError
from lengthwise.eval.simulate import simulate
from lengthwise.eval.windows import TEST_SEED, TUNING_SEED
from lengthwise.policies.bundle import read_bundle, write_bundle
from lengthwise.serving import Engine
from lengthwise.serving.timing import LinearTiming
from lengthwise.training import calibration
from lengthwise.training.agents import SETTINGS, make_agent, settings_for
from lengthwise.training.checkpoint import read_checkpoint
from lengthwise.training.policy import PolicyRun, evaluate_policy, export_run, train_policy
from lengthwise.training.runs import learned
from lengthwise.training.scorer import ILLEGAL, CandidateNet, Sizes, score_layers, score_skip
from lengthwise.training.validation import CONFIRMATION_SEED, VALIDATION_SEED, Validation
from lengthwise.training.vectors import make_vector
from lengthwise.workload import Workload
from tests.systems import burst

TIMING = LinearTiming(base_s=1.0, num_gpu_blocks=1000)
ONE = {"max_num_seqs": 1}
# few transitions between updates, so that the small problems are solved in seconds
QUICK: dict[str, dict[str, Any]] = {
    "ppo": {"rollout": 512, "batch_size": 128, "gamma": 0.9},
    "maskable-ppo": {"rollout": 512, "batch_size": 128, "gamma": 0.9},
    "dqn": {
        "learning_starts": 256, "batch_size": 128, "target_update_interval": 256, "gamma": 0.9,
        "learning_rate": 2e-3, "n_steps": 4, "gradient_steps": 1,
    },
}  # fmt: skip


# Finish times 1..6 and 11, 16, ..., 36: their mean.
SHORTEST_FIRST_S = (sum(range(1, 7)) + sum(range(11, 37, 5))) / 12


def trickle(seed: int) -> Workload:
    """Jobs of 4 tokens, one every 2.25 s on average, for two replicas that run one at a time."""
    rng = np.random.default_rng(seed)
    return Workload(
        {
            "arrival_s": np.cumsum(rng.exponential(2.25, 60)),
            "prompt_tokens": np.full(60, 8),
            "output_tokens": np.full(60, 4),
        },
        name="trickle",
    )


def train(algo: str, out: Path, **changed: Any) -> PolicyRun:
    options: dict[str, Any] = {
        "env": "lengthwise/Scheduling-v0", "workload": burst, "timing": TIMING, "steps": 1536,
        "n_envs": 4, "env_options": {"engine": ONE, "slots": 12}, "settings": QUICK[algo],
        "eval_every": 512, "eval_seeds": 2, "progress": False, "command": "pytest", **changed,
    }  # fmt: skip
    return train_policy(algo=algo, out=out, **options)


@pytest.mark.parametrize("algo", SETTINGS)
def test_every_algorithm_finds_shortest_first(algo: str, tmp_path: Path) -> None:
    run = train(algo, tmp_path / "run")
    assert run.baselines["sjf"] == SHORTEST_FIRST_S
    assert run.evaluations[-1][1] == pytest.approx(SHORTEST_FIRST_S, rel=0.02)


@pytest.mark.parametrize("algo", SETTINGS)
def test_every_algorithm_finds_the_free_replica(algo: str, tmp_path: Path) -> None:
    run = train(
        algo,
        tmp_path / "run",
        env="lengthwise/Routing-v0",
        workload=trickle,
        env_options={
            "replicas": 2, "engine": ONE, "features": ["running_requests", "waiting_requests"]
        },
        baseline_names=["random", "jsq"],
    )  # fmt: skip
    assert run.baselines["jsq"] < 0.9 * run.baselines["random"]
    assert run.evaluations[-1][1] < 1.05 * run.baselines["jsq"]


def test_a_run_says_what_made_it(tmp_path: Path) -> None:
    run = train("ppo", tmp_path / "run", steps=64, eval_every=64)
    config = json.loads((run.folder / "config.json").read_text())
    assert config["command"] == "pytest"
    assert config["seed"] == 0
    assert {"python", "torch", "stable-baselines3", "gymnasium"} <= set(config["versions"])
    assert config["env_options"]["workload"].endswith(":burst")
    events = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    shown = events.Scalars("eval/cost")
    assert [(event.step, pytest.approx(event.value)) for event in shown] == run.evaluations
    assert {"eval/cost_of_sjf", "rollout/ep_rew_mean"} <= set(events.Tags()["scalars"])
    kept = json.loads((run.folder / "evaluations.json").read_text())
    assert kept["baselines"] == run.baselines
    assert [tuple(pair) for pair in kept["evaluations"]] == run.evaluations
    assert run.cost == min(cost for _, cost in run.evaluations)


def test_same_seed_same_weights(tmp_path: Path) -> None:
    for name in ("a", "b"):
        train("ppo", tmp_path / name, steps=512)
    bundles = [tmp_path / name / "bundle" / "weights.safetensors" for name in ("a", "b")]
    assert bundles[0].read_bytes() == bundles[1].read_bytes()


class Interrupting:
    """``burst``, and what is to happen once ``left`` episodes have begun after the first save."""

    def __init__(self, out: Path, left: int, then: Callable[[], None]) -> None:
        self.out, self.left, self.then = out, left, then

    def __call__(self, seed: int) -> Workload:
        if (self.out / "checkpoint.pt").exists():
            self.left -= 1
            if self.left == 0:
                self.then()
        return burst(seed)


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("algo", ["ppo", "dqn"])
def test_an_interrupted_run_goes_on(algo: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    workload = Interrupting(out, 60, interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(algo, out, workload=workload)
    state = read_checkpoint(out / "checkpoint.pt")
    stopped = state["steps"]
    assert 0 < stopped < 1536

    with pytest.raises(InputError, match="holds a training run; resume it"):
        train(algo, out, workload=workload)
    with pytest.raises(InputError, match=r"its n_envs is 4, not 8"):
        train(algo, out, workload=workload, resume=True, n_envs=8)
    same = train(algo, out, workload=workload, resume=True, steps=stopped)  # nothing left to do
    assert [list(pair) for pair in same.evaluations] == state["evaluations"]
    after = read_checkpoint(out / "checkpoint.pt")
    assert all(torch.equal(state["policy"][k], after["policy"][k]) for k in state["policy"])

    run = train(algo, out, workload=workload, resume=True)
    assert run.evaluations[: len(state["evaluations"])] == same.evaluations
    assert run.evaluations[-1][0] >= 1536
    assert run.evaluations[-1][1] == pytest.approx(SHORTEST_FIRST_S, rel=0.02)


def test_held_out_workloads_are_never_drawn_and_a_resumed_run_draws_others(tmp_path: Path) -> None:
    drawn: list[int] = []

    def noted(seed: int) -> Workload:
        drawn.append(seed)
        return burst(seed)

    train("ppo", tmp_path / "run", workload=noted, steps=512)
    held_out = set(range(VALIDATION_SEED, VALIDATION_SEED + 2))
    first = set(drawn) - {seed for seed in drawn if seed >= 2**31}
    assert held_out <= set(drawn)
    confirmed = {seed for seed in drawn if seed >= 2**31} - held_out
    assert min(confirmed) == CONFIRMATION_SEED and len(confirmed) > 2
    # nor are these what finished policies are judged or tuned on
    assert max(confirmed) < min(TEST_SEED, TUNING_SEED)
    drawn.clear()
    train("ppo", tmp_path / "run", workload=noted, steps=1024, resume=True)
    again = {seed for seed in drawn if seed < 2**31}
    assert len(first) > 50 and len(again) > 20
    assert len(first & again) <= 1  # the probe that says what an environment is


def test_the_bundle_holds_the_best_weights_not_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held-out costs as they are told to be: the second evaluation has the lowest."""
    judged: list[Any] = []
    real = Validation.costs

    def told(self: Validation, one: Any) -> list[float]:
        if one.score.name != "learned":
            return real(self, one)
        judged.append(one)
        return [{0: 9.0, 1: 2.0}.get(len(judged) - 1, 3.0)] * len(self.episodes)

    monkeypatch.setattr(Validation, "costs", told)
    run = train("ppo", tmp_path / "run", steps=1536)
    assert len(run.evaluations) >= 3
    assert run.best is not None and run.best == (run.evaluations[1][0], 2.0)
    rng = np.random.default_rng(0)
    best, last = judged[1].score, judged[len(run.evaluations) - 1].score
    values = {name: rng.uniform(1, 9, 5) for name in best.features}
    held = read_bundle(run.bundle).score.evaluate(values)
    assert np.allclose(held, best.evaluate(values), rtol=1e-6)
    assert not np.allclose(held, last.evaluate(values), rtol=1e-6)


class Paid(VecEnvWrapper):
    """Pays what a generator says, and notes it."""

    def __init__(self, vector: VecEnv) -> None:
        super().__init__(vector)
        self.paid: list[Any] = []
        self.rng = np.random.default_rng(3)

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        observation, _, done, info = self.venv.step_wait()
        self.paid.append(self.rng.normal(-1.0, 1.0, self.num_envs))
        return observation, self.paid[-1], done, info


def test_scales_are_those_of_what_was_seen_and_of_discounted_returns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calibration, "STEPS", 400)
    options = {"workload": burst, "timing": TIMING, "engine": ONE, "slots": 12}

    def measured(names: Any, scales: Any) -> tuple[calibration.Scales, Paid]:
        vector = Paid(make_vector(SchedulingEnv, {**options, "scales": scales}, 4))
        columns = Columns.of(names, scales)
        return calibration.calibrate(vector, columns, 0.8, seed=1), vector

    names = make_vector(SchedulingEnv, options, 1).env.columns.names
    found, vector = measured(names, None)
    sums, returns = np.zeros(4), []
    for paid in vector.paid:
        sums = 0.8 * sums + paid
        returns.append(sums)
    assert len(vector.paid) == 100
    assert found.reward == pytest.approx(np.std(returns))
    # seen through these scales, the same decisions have mean 0 and spread 1
    again, _ = measured(names, found.features)
    assert again.features.keys() == found.features.keys() and len(found.features) >= 2
    for name, (shift, scale) in again.features.items():
        assert (shift, scale) == pytest.approx(found.features[name], rel=1e-3, abs=1e-3)


def test_runs_that_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no training run at"):
        train("ppo", tmp_path / "none", resume=True)
    cut = train("ppo", tmp_path / "run", steps=8)
    assert any(line.startswith("512 steps, not 8: a round of all") for line in cut.notices)
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="is damaged"):
        train("ppo", tmp_path / "run", steps=8, resume=True)


def test_bad_arguments_are_told(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'ppo'"):
        train_policy("lengthwise/Routing-v0", algo="pppo", out=tmp_path)
    with pytest.raises(UnknownNameError, match="did you mean 'lengthwise/Routing-v1'"):
        train_policy("lengthwise/Routing", out=tmp_path)
    with pytest.raises(UnknownNameError, match="did you mean 'gamma'"):
        settings_for("dqn", {"gama": 1.0})
    with pytest.raises(UnknownNameError, match="did you mean 'slots'"):
        train("ppo", tmp_path, env_options={"slot": 12})
    with pytest.raises(UnknownNameError, match="did you mean 'sjf'"):
        train("ppo", tmp_path, baseline_names=["sjff"])
    with pytest.raises(InputError, match="no moment of it leaves a choice"):
        train("ppo", tmp_path / "idle", env_options={"requests": 1}, workload="azure-conv-2023")
    assert not list((tmp_path / "idle").iterdir())  # nothing is left that would be in the way
    with pytest.raises(InputError, match="must be 1 or more"):
        train("ppo", tmp_path, steps=0)
    with pytest.raises(InputError, match="holds other files"):
        (tmp_path / "notes.txt").write_text("mine")
        train("ppo", tmp_path)
    with pytest.raises(InputError, match="no training run at"):
        export_run(tmp_path / "nothing", tmp_path / "bundle")
    with pytest.raises(InputError, match="neither a bundle nor a finished training run"):
        evaluate_policy(tmp_path / "nothing", burst)


NUMPY_ALONE = """
import sys
for banned in ("torch", "stable_baselines3", "gymnasium", "numba"):
    sys.modules[banned] = None  # importing it raises
import numpy as np
from lengthwise.policies.bundle import read_bundle
score = read_bundle(sys.argv[1]).score
seen = np.load(sys.argv[2])
count, slots = seen["mask"].shape
values = {name: seen[name].reshape(-1) for name in score.features}
scores = np.where(seen["mask"], score.evaluate(values).reshape(count, slots), np.inf)
np.save(sys.argv[3], scores)
"""


def _typical(name: str, rng: np.random.Generator, shape: tuple[int, int]) -> Any:
    """Random values of a feature, in the range where scores differ."""
    if name in ("now_s", "arrival_s"):
        return rng.uniform(0, 10, shape) + (20 if name == "now_s" else 0)
    log, shift, scale = SCALES.get(name, (False, 0.0, 1.0))
    values = shift + scale * rng.normal(size=shape)
    return np.expm1(values) if log else values


@pytest.mark.parametrize("kind", ["scheduling", "routing"])
@pytest.mark.parametrize("algo", SETTINGS)
def test_exported_decides_like_the_network(algo: str, kind: str, tmp_path: Path) -> None:
    """20,000 random situations, the bundle loaded where torch can't be imported."""
    if kind == "scheduling":
        env: Any = SchedulingEnv(
            burst, slots=12, timing=TIMING, engine=ONE,
            features=("predicted_tokens", "prompt_tokens", "waited_s", "remaining_tokens"),
        )  # fmt: skip
    else:
        env = RoutingEnv(trickle, replicas=12, timing=TIMING, engine=ONE)
    # the replay of several steps takes flat observations alone
    settings = settings_for(algo, {"n_steps": 1} if algo == "dqn" else None)
    agent = make_agent(
        algo, DummyVecEnv([lambda: env]), len(env.columns.names), settings, (16, 8), 0
    )
    generator = torch.Generator().manual_seed(1)
    for weight in agent.policy.parameters():  # far from the near-uniform start
        fan_in = weight.shape[-1]
        weight.data = torch.randn(weight.shape, generator=generator) * (2 / fan_in) ** 0.5

    rng, count = np.random.default_rng(0), 20_000
    raw = {name: _typical(name, rng, (count, 12)) for name in env.columns.reads}
    mask = rng.random((count, 12)) < 0.7
    mask[:, 0] = True
    seen = env.columns.normaliser().normalise(env.columns.raw(raw)) * mask[..., None]
    observation = {
        "candidates": seen.reshape(count, -1).astype(np.float32),
        "mask": mask.astype(np.int8),
        "state": rng.normal(size=(count, env.observation_space["state"].shape[0])).astype(
            np.float32
        ),
    }
    chosen, _ = agent.policy.predict(observation, deterministic=True)

    write_bundle(
        learned(kind, env.columns, score_layers(agent.policy), score_skip(agent.policy)),
        tmp_path / "bundle",
    )
    np.savez(tmp_path / "seen.npz", mask=mask, **raw)
    arguments = [str(tmp_path / name) for name in ("bundle", "seen.npz", "scores.npy")]
    subprocess.run([sys.executable, "-c", NUMPY_ALONE, *arguments], check=True)
    scores = np.load(tmp_path / "scores.npy")
    best = scores.argmin(axis=1)
    differs = np.flatnonzero(best != chosen)
    # torch computes in float32: only scores that it can't tell apart may swap places
    gap = scores[differs, chosen[differs]] - scores[differs, best[differs]]
    assert (gap < 1e-5).all()
    assert len(differs) <= 5
    assert len(np.unique(chosen)) == 12


def test_evaluate_policy_beside_baselines(tmp_path: Path) -> None:
    run = train("ppo", tmp_path / "run", steps=1024)
    bundle = export_run(run.folder, tmp_path / "bundle")
    assert read_bundle(bundle).score.features == (
        "predicted_tokens",
        "prompt_tokens",
        "now_s",
        "arrival_s",
    )
    card = (bundle / "README.md").read_text("utf-8")
    assert (
        run.ratio is not None and f"{run.ratio.mean:.3f} of the cost of {run.best_baseline}" in card
    )
    assert all(f"| {name} | {cost:.4g} |" in card for name, cost in run.baselines.items())
    assert f"| this policy | {run.cost:.4g} |" in card and "ppo, 1,024 steps" in card
    given: dict[str, Any] = {"timing": TIMING, "engine": ONE, "seeds": 3}
    rows = evaluate_policy(bundle, burst, **given)
    assert [row["policy"] for row in rows] == ["fcfs", "sjf", "work", str(bundle)]
    again = evaluate_policy(run.folder, burst, **given)[3]
    assert rows[3] == {**again, "policy": str(bundle)}
    assert rows[3]["mean_latency_s"] == pytest.approx(SHORTEST_FIRST_S, rel=0.05)
    means = [
        simulate(burst(2**31 + 10_000 + i), "fcfs", engine=Engine(**ONE), timing=TIMING)
        .requests.eval("finish_s - arrival_s")
        .mean()
        for i in range(3)
    ]
    assert rows[0]["mean_latency_s"] == pytest.approx(np.mean(means))
    assert rows[0]["ratio"] == 1.0
    assert rows[3]["ratio"] < 0.9


def test_a_slot_without_a_candidate_changes_nothing() -> None:
    """Actor and critic of batches with empty slots, against each row's candidates by themselves."""
    torch.manual_seed(0)
    wide, narrow = Sizes(4, 3, 2), Sizes(2, 3, 2)
    net = CandidateNet(wide, [8, 8])
    torch.nn.init.normal_(net.skip.weight)
    rows, state = torch.randn(5, 4, 3), torch.randn(5, 2)
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1], [1, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 0.0]])
    logits, latent = net(torch.cat([rows.flatten(1), mask, state], dim=1))
    assert (logits[mask == 0] == ILLEGAL).all()
    two = rows[mask > 0].reshape(5, 2, 3)
    alone = CandidateNet(narrow, [8, 8])
    alone.load_state_dict(net.state_dict())
    flat = torch.cat([two.flatten(1), torch.ones(5, 2), state], dim=1)
    wanted = alone(flat)
    torch.testing.assert_close(logits[mask > 0].reshape(5, 2), wanted[0])
    torch.testing.assert_close(latent, wanted[1])
    by_hand = torch.relu(two @ net.embed[0].weight.T + net.embed[0].bias)  # type: ignore[operator]
    pooled = torch.cat([by_hand.mean(1), by_hand.amax(1), state], dim=1)
    torch.testing.assert_close(latent, net.pool(pooled))
    torch.testing.assert_close(alone.forward_actor(flat), wanted[0])
    torch.testing.assert_close(alone.forward_critic(flat), wanted[1])
