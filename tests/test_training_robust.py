"""What a training run does when something goes wrong, and what it says when nothing was gained."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lengthwise.envs.columns import Columns
from lengthwise.envs.costs import latency
from lengthwise.envs.scheduling import SchedulingEnv
from lengthwise.errors import InputError
from lengthwise.policies import load_policy, load_router
from lengthwise.serving import Totals
from lengthwise.serving.records import PS
from lengthwise.serving.timing import LinearTiming
from lengthwise.training.agents import make_agent, settings_for
from lengthwise.training.checkpoint import read_checkpoint
from lengthwise.training.guide import GUIDANCE, Guide, Guided
from lengthwise.training.policy import PolicyRun, export_run, train_policy
from lengthwise.training.validation import CONFIRMATION_SEED, VALIDATION_SEED, Validation
from lengthwise.training.vectors import make_vector
from lengthwise.workload import Workload
from tests.systems import burst

TIMING = LinearTiming(base_s=1.0, num_gpu_blocks=1000)
ONE = {"max_num_seqs": 1}


def mixed(seed: int) -> Workload:
    """Requests that differ in all that an environment shows."""
    draw = np.random.default_rng(seed)
    return Workload(
        {
            "arrival_s": np.cumsum(draw.exponential(2.0, 40)),
            "prompt_tokens": draw.integers(1, 900, 40),
            "output_tokens": draw.integers(1, 9, 40),
        },
        name="mixed",
    )


def train(out: Path, **changed: Any) -> PolicyRun:
    options: dict[str, Any] = {
        "env": "lengthwise/Scheduling-v0", "workload": burst, "timing": TIMING, "steps": 1024,
        "n_envs": 4, "settings": {"rollout": 256, "batch_size": 128, "gamma": 0.9},
        "eval_every": 256, "save_every": 256, "eval_seeds": 2, "progress": False, **changed,
        "env_options": {"engine": ONE, "slots": 12, **changed.get("env_options", {})},
    }  # fmt: skip
    return train_policy(out=out, **options)


class Spoiled:
    """Latency, and NaN once a checkpoint of at least ``steps`` steps has been saved."""

    def __init__(self, out: Path, steps: int) -> None:
        self.out, self.steps, self.kept = out, steps, b""

    def __call__(self, totals: Totals) -> float:
        checkpoint = self.out / "checkpoint.pt"
        if not self.kept and checkpoint.exists():
            if read_checkpoint(checkpoint)["steps"] >= self.steps:
                self.kept = checkpoint.read_bytes()
        return float("nan") if self.kept else totals.request_ps / PS


def test_a_cost_that_is_no_number_leaves_the_checkpoint(tmp_path: Path) -> None:
    cost = Spoiled(tmp_path / "run", 256)
    with pytest.raises(InputError, match=r"at step \d+: a step's cost is nan.*is that of before"):
        train(tmp_path / "run", env_options={"cost": cost})
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == cost.kept
    state = read_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert all(torch.isfinite(weights).all() for weights in state["policy"].values())
    with pytest.raises(InputError, match="a step's cost is inf; a cost must be a finite number"):
        train(tmp_path / "other", env_options={"cost": lambda totals: float("inf")})


@pytest.mark.parametrize("algo", ["ppo", "maskable-ppo", "dqn"])
def test_weights_that_are_no_numbers_are_never_saved(algo: str, tmp_path: Path) -> None:
    """A learning rate beyond all bounds: the first update breaks the network."""
    small = {"learning_starts": 64, "batch_size": 64} if algo == "dqn" else {"rollout": 256}
    with pytest.raises(InputError, match=r"training stopped at step .*'.*checkpoint.pt' is that"):
        train(tmp_path / "run", algo=algo, settings={**small, "learning_rate": 1e30})
    state = read_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert state["updates"] == 0
    assert all(torch.isfinite(weights).all() for weights in state["policy"].values())
    with pytest.raises(InputError, match="no update yet that was evaluated"):
        export_run(tmp_path / "run", tmp_path / "bundle")  # an untrained network is no policy


def command(out: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-c", "from lengthwise.training.cli import main; main()",
        "train", "policy", "--out", str(out), "--steps", "200000", "--n-envs", "4",
        "--max-num-seqs", "4", "--env-set", "rate=14,requests=60,replicas=2",
        "--set", "rollout=256,batch_size=128", *more,
    ]  # fmt: skip


def test_sigterm_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    running = subprocess.Popen(command(out), stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not (out / "checkpoint.pt").exists() and running.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.5)
        running.send_signal(signal.SIGTERM)
        _, said = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 128 + signal.SIGTERM
    assert "SIGTERM: saved" in said and "--resume goes on" in said
    assert "Traceback" not in said
    state = read_checkpoint(out / "checkpoint.pt")
    assert 0 < state["steps"] < 200_000
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as on a full disk: an error, not the end
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
from lengthwise.training.cli import main
main(sys.argv[1:])
"""


def test_a_full_disk_is_one_line_and_leaves_nothing_half(tmp_path: Path) -> None:
    out = tmp_path / "run"
    warm = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    arguments = command(out)[3:]
    done = subprocess.run(
        [sys.executable, "-c", FULL, *arguments], capture_output=True, text=True, env=warm
    )
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("lengthwise: can't write")
    assert "Traceback" not in done.stderr
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]
    assert not (out / "checkpoint.pt").exists()


def test_progress_without_a_terminal_is_a_line_each_twentieth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "run", progress=True)
    lines = [line for line in capsys.readouterr().err.splitlines() if "1,024 steps" in line]
    assert 15 <= len(lines) <= 20
    assert "cost" in lines[-1] and "sjf" in lines[-1]


def test_where_nothing_waits_there_is_nothing_to_learn(tmp_path: Path) -> None:
    """One request at a time finds both replicas free: every router costs the same."""

    def quiet(seed: int) -> Workload:
        return Workload(
            {
                "arrival_s": np.arange(30) * 100.0,
                "prompt_tokens": np.full(30, 8),
                "output_tokens": np.random.default_rng(seed).integers(1, 9, 30),
            },
            name="quiet",
        )

    run = train_policy(
        "lengthwise/Routing-v0", out=tmp_path / "run", workload=quiet, timing=TIMING, steps=256,
        n_envs=4, env_options={"replicas": 2, "engine": ONE}, eval_seeds=2, progress=False,
        settings={"rollout": 128, "batch_size": 64},
    )  # fmt: skip
    assert any("nothing to learn" in line for line in run.notices)
    assert any("no update beat the start" in line for line in run.notices)
    assert any(
        "no update beat the best baseline: 1.000 of round-robin" in line for line in run.notices
    )


def test_what_a_finished_run_says_was_measured_elsewhere(tmp_path: Path) -> None:
    """The ratio is to the best baseline, on seeds that the choice of weights never saw."""
    asked: list[int] = []

    def counted(seed: int) -> Workload:
        asked.append(seed)
        return burst(seed)

    run = train(tmp_path / "run", workload=counted, steps=1536)
    assert not any("nothing to learn" in line for line in run.notices)
    assert run.best_baseline == "sjf"
    assert run.ratio is not None and run.ratio.count == 16
    assert run.ratio.mean == pytest.approx(1.0, abs=0.05)  # shortest first is optimal
    held_out = {seed for seed in asked if seed >= 2**31}
    assert held_out == {VALIDATION_SEED, VALIDATION_SEED + 1} | {
        CONFIRMATION_SEED + i for i in range(16)
    }
    kept = json.loads((run.folder / "evaluations.json").read_text())
    assert run.best is not None and run.best[0] > 0
    assert list(run.best) in [[step, pytest.approx(cost)] for step, cost in kept["evaluations"]]


def test_the_best_baseline_is_the_one_with_the_lowest_geometric_mean() -> None:
    made = Validation([], latency, {"a": [1.0, 16.0], "b": [3.0, 6.0], "c": [9.0, 1.0]})
    assert made.best == "c"  # geometric means 4, 4.24 and 3
    assert made.better([2.0, 2.0], [1.0, 9.0]) and not made.better([9.0, 1.1], [9.0, 1.0])
    ratio = made.ratio([4.5, 2.0], "c")
    assert ratio is not None and ratio.mean == pytest.approx(1.0)
    assert made.ratio([-1.0, 2.0], "c") is None
    assert not made.ties
    close = {"a": [1.0, 2.0], "b": [1.005, 2.0]}
    assert Validation([], latency, close).ties


@pytest.mark.parametrize("n_steps", [1, 3])
def test_the_double_target_is_the_target_networks_value_of_the_online_networks_choice(
    n_steps: int,
) -> None:
    """Against the formula written out transition by transition, and unlike the plain maximum."""
    vector = make_vector(
        SchedulingEnv, {"workload": mixed, "timing": TIMING, "engine": ONE, "slots": 12}, 4
    )
    given = {"learning_starts": 64, "buffer_size": 512, "n_steps": n_steps}
    agent: Any = make_agent("dqn", vector, 3, settings_for("dqn", given), (8,), 0)
    agent.learn(256)
    for parameters in (agent.q_net, agent.q_net_target):
        for weights in parameters.parameters():
            weights.data = torch.randn(weights.shape)
    replay = agent.replay_buffer.sample(200)
    found = agent.targets(replay)[:, 0].numpy()
    online = agent.q_net(replay.next_observations).detach().numpy()
    target = agent.q_net_target(replay.next_observations).detach().numpy()
    dones, rewards = replay.dones.numpy()[:, 0], replay.rewards.numpy()[:, 0]
    legal = agent.sizes.mask(replay.next_observations).numpy()
    discounts = np.full(200, agent.gamma)
    if n_steps > 1:  # three steps, but for the latest transitions and at an episode's end
        discounts = replay.discounts.numpy()[:, 0]
        assert np.median(discounts) == np.float32(agent.gamma**3)
    for i in range(200):
        chosen = max(np.flatnonzero(legal[i]), key=lambda a: online[i, a], default=0)
        expected = rewards[i] + (0.0 if dones[i] else discounts[i] * target[i, chosen])
        assert found[i] == pytest.approx(expected, rel=1e-5)
    plain = rewards + discounts * np.where(dones > 0, 0.0, target.max(axis=1))
    assert (found <= plain + 1e-4).all() and (found < plain - 1e-3).any()


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("sjf", ("prompt_tokens",)),
        ("fcfs", ("predicted_tokens",)),
        ("hrrn", ("prompt_tokens", "waited_s")),
    ],
)
def test_a_guide_chooses_as_it_would_in_the_engine(name: str, seen: tuple[str, ...]) -> None:
    """From what the environments show, held against the policy's own score of the raw features."""
    rng = np.random.default_rng(0)

    guide = Guide(load_policy(name), seen)
    columns = Columns.of(guide.features)
    options = {
        "workload": mixed, "timing": TIMING, "engine": ONE, "slots": 6, "features": guide.features,
    }  # fmt: skip
    vector = Guided(make_vector(SchedulingEnv, options, 3), guide, columns, len(seen))
    vector.seed(0)
    observation = vector.reset()
    assert observation.shape == (3, 6 * (len(seen) + 1) + 4)
    score, differs = load_policy(name).score, 0
    inner: Any = vector.venv
    for _ in range(60):
        actions = []
        for i in range(3):
            rows = inner.env.many.of(i).state.rows[: inner.env.action_masks()[i].sum()]
            scores = np.asarray(score.evaluate({name: rows[name] for name in score.features}))
            assert scores[vector.choices[i]] == pytest.approx(scores.min(), rel=1e-5, abs=1e-5)
            differs += int(scores.argmin() > 0)
            actions.append(rng.integers(len(scores)))
        observation, *_ = vector.step(np.array(actions))
    assert differs > 10 or name == "fcfs"


def test_leaving_the_guide_costs_and_following_does_not() -> None:
    guide = Guide(load_policy("sjf"), ("prompt_tokens",))
    options = {
        "workload": burst, "timing": TIMING, "engine": ONE, "slots": 12,
        "features": guide.features,
    }  # fmt: skip
    rewards = []
    for penalty in (0.0, 0.5):
        vector = Guided(
            make_vector(SchedulingEnv, options, 2), guide, Columns.of(guide.features), 1
        )
        vector.penalty = penalty
        vector.seed(0)
        vector.reset()
        longest = vector._scores.copy()
        longest[~np.isfinite(longest)] = -1.0
        _, first, *_ = vector.step(np.array([vector.choices[0], longest[1].argmax()]))
        rewards.append(first)
    assert rewards[1][0] == rewards[0][0]
    assert rewards[1][1] == pytest.approx(rewards[0][1] - 0.5)


@pytest.mark.parametrize("algo", ["ppo", "maskable-ppo", "dqn"])
def test_a_guided_run_begins_where_its_guide_is(algo: str, tmp_path: Path) -> None:
    small: dict[str, Any] = {"demonstrations": 4096, "gamma": 0.9}
    small |= {"learning_starts": 128} if algo == "dqn" else {"rollout": 256, "batch_size": 128}
    run = train(tmp_path / "run", algo=algo, guide="sjf", steps=256, settings=small)
    assert run.evaluations[0][0] == 0
    assert run.evaluations[0][1] == pytest.approx(run.baselines["sjf"], rel=0.02)
    assert any("chooses as sjf does" in line for line in run.notices)
    config = json.loads((run.folder / "config.json").read_text())
    assert config["guide"] == "sjf"
    assert set(GUIDANCE) <= set(config["settings"])


def test_guides_that_cannot_be_followed_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'sjf'"):
        train(tmp_path, guide="sjff")
    with pytest.raises(InputError, match="looks at random replicas only"):
        Guide(load_router("power-of-two"), ("running_requests",))
    with pytest.raises(InputError, match="unknown setting 'penalty'"):
        train(tmp_path, settings={"penalty": 0.1})


def test_the_short_way_to_actions_is_stable_baselines3s() -> None:
    """Log-probabilities, entropies and values as its distributions have them; draws as often."""
    options = {"workload": mixed, "timing": TIMING, "engine": ONE, "slots": 5}
    vector = make_vector(SchedulingEnv, options, 2)
    policy: Any = make_agent("ppo", vector, 3, settings_for("ppo", None), (8,), 0).policy
    for weights in policy.parameters():
        weights.data = torch.randn(weights.shape)
    vector.seed(1)
    vector.reset()
    seen, *_ = vector.step(np.array([0, 0]))
    many = torch.from_numpy(np.repeat(seen, 20_000, axis=0))
    theirs = policy.get_distribution(many)
    actions, values, log_probs = policy(many)
    assert torch.allclose(log_probs, theirs.log_prob(actions), atol=1e-5)
    again, log_probs, entropy = policy.evaluate_actions(many, actions)
    assert torch.equal(values, again)
    assert torch.allclose(values, policy.predict_values(many))
    assert torch.allclose(entropy, theirs.entropy(), atol=1e-5)
    for i in range(2):
        rows = slice(i * 20_000, (i + 1) * 20_000)
        drawn = np.bincount(actions[rows], minlength=5) / 20_000
        expected = theirs.distribution.probs[rows][0].detach().numpy()
        np.testing.assert_allclose(drawn, expected, atol=5 * 0.5 / 20_000**0.5)
    best, *_ = policy(many, deterministic=True)
    assert torch.equal(best, theirs.mode())


@pytest.mark.parametrize("algo", ["es", "cma"])
def test_an_evolution_strategy_is_a_run_like_others(algo: str, tmp_path: Path) -> None:
    """It finds shortest first from first come, first served; resumed, it is the same to the bit."""
    small: dict[str, Any] = {"evaluations": 48, "episodes": 4, "population": 8}
    given: dict[str, Any] = {"algo": algo, "baseline_names": ["fcfs"], "settings": small}
    run = train(tmp_path / "run", **given)
    optimum = Validation.of(
        lambda seed: SchedulingEnv(burst, timing=TIMING, engine=ONE).source(seed), latency,
        range(VALIDATION_SEED, VALIDATION_SEED + 2), [load_policy("sjf")],
    ).means["sjf"]  # fmt: skip
    assert run.best_baseline == "fcfs" and run.cost == pytest.approx(optimum)
    assert run.ratio is not None and run.ratio.high < 0.9
    half = {**given, "settings": {**small, "evaluations": 24}}
    train(tmp_path / "half", **half)
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    config["settings"]["evaluations"] = 48  # as if it had been stopped on the way
    (tmp_path / "half" / "config.json").write_text(json.dumps(config))
    again = train(tmp_path / "half", **given, resume=True)
    weights = [(one.bundle / "policy.json").read_bytes() for one in (run, again)]
    assert weights[0] == weights[1]
    exported = export_run(run.folder, tmp_path / "bundle")
    files = [json.loads((one / "policy.json").read_text()) for one in (exported, run.bundle)]
    assert files[0]["score"] == files[1]["score"]


@pytest.mark.parametrize("algo", ["ppo", "es"])
def test_one_policy_for_several_scenarios(algo: str, tmp_path: Path) -> None:
    scenarios = tmp_path / "scenarios.json"
    scenarios.write_text(json.dumps({
        "defaults": {"workload": "lmsys-chat", "requests": 60, "replicas": 2,
                     "engine": {"max_num_seqs": 4}},
        "scenarios": [{"name": "busy", "rate": 12.0}, {"name": "quiet", "rate": 3.0}],
    }))  # fmt: skip
    small: dict[str, Any] = (
        {"rollout": 256, "batch_size": 128} if algo == "ppo"
        else {"evaluations": 16, "episodes": 2, "population": 8}
    )  # fmt: skip
    run = train_policy(
        "lengthwise/Routing-v1", out=tmp_path / "run", algo=algo, scenarios=scenarios, steps=512,
        n_envs=4, eval_seeds=2, settings=small, progress=False,
    )  # fmt: skip
    trained = load_router(str(run.bundle)).trained_on
    assert trained is not None
    ranges = {name: (low, high) for name, low, high in trained.ranges}
    assert ranges["nodes"] == (2, 2) and ranges["seats"] == (4, 4)
    assert ranges["prompt_tokens"][0] < ranges["prompt_tokens"][1]
    assert run.ratio is not None and run.ratio.count == 16
