"""The machinery of training by hand: what a run does between its first step and its last word."""

from __future__ import annotations

import inspect
import itertools
import json
import math
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from gymnasium import spaces
from sklearn.linear_model import Ridge
from torch import nn
from torch.nn import functional

from lengthwise.envs.columns import Columns
from lengthwise.envs.costs import latency
from lengthwise.envs.episodes import Episode
from lengthwise.envs.routing import RoutingEnv
from lengthwise.envs.scenarios import Scenario, Scenarios
from lengthwise.errors import InputError, UnknownNameError
from lengthwise.eval.tune import BUDGET
from lengthwise.eval.windows import Window, Windows
from lengthwise.policies import load_policy, load_router
from lengthwise.policies.bundle import read_bundle, write_bundle
from lengthwise.policy import RoutingPolicy, SchedulingPolicy
from lengthwise.prediction import Predictions
from lengthwise.serving import Engine, Node, System
from lengthwise.serving.timing import LinearTiming
from lengthwise.trained import TrainedOn
from lengthwise.training import (
    agents,
    base,
    calibration,
    demo,
    evolution,
    evolve,
    guide,
    intelligent_router,
    judging,
    masked_dqn,
    runs,
    scorer,
    vectors,
)
from lengthwise.training import policy as module
from lengthwise.training import predictor as predictors
from lengthwise.training.checkpoint import read_checkpoint, write_checkpoint
from lengthwise.training.masked_dqn import MaskedDQN
from lengthwise.training.monitor import NotFiniteError
from lengthwise.training.scorer import CandidateNet, Sizes
from lengthwise.training.validation import Validation
from lengthwise.workload import Workload
from tests.systems import burst

TICK = LinearTiming(base_s=1.0, num_gpu_blocks=1000)


def defaults(function: Callable[..., Any], **wanted: Any) -> bool:
    """Whether these are the defaults of these arguments."""
    found = inspect.signature(function).parameters
    assert {name: found[name].default for name in wanted} == wanted
    return True


def test_what_is_not_given_is_as_documented() -> None:
    assert defaults(module.train_policy, **{
        "env": "lengthwise/Routing-v1", "algo": "ppo", "workload": "azure-conv-2023",
        "timing": "h200/llama-3.1-8b", "steps": 500_000, "n_envs": 64, "seed": 0, "resume": False,
        "scenarios": None, "guide": None, "env_options": None, "settings": None,
        "hidden": (32, 32), "eval_every": None, "eval_seeds": 8, "save_every": None,
        "baseline_names": None, "progress": True, "command": None,
    })  # fmt: skip
    assert defaults(judging.evaluate_policy, **{
        "requests": 1000, "rate": None, "seeds": 5, "timing": "h200/llama-3.1-8b", "engine": None,
        "predictor": "oracle", "replicas": None, "beside": "", "baseline_names": None, "loads": (),
        "nodes": None, "metrics_interval_s": 0.0, "failures": None, "tuning": False,
        "budget": BUDGET, "say": None,
    })  # fmt: skip
    assert defaults(predictors.train_predictor, **{
        "target": "exact", "model": "ridge", "out": None, "seed": 0, "test_share": 0.5,
        "max_rows": None, "answers_by": None, "source_weights": None, "options": None,
        "command": None, "recalibrate": None,
    })  # fmt: skip
    assert defaults(predictors.evaluate_predictor, **{
        "split": None, "test_share": None, "max_rows": None, "answers_by": None, "seed": 0,
        "card": False,
    })  # fmt: skip
    assert defaults(evolution.search, **{
        "evaluations": 400, "population": 16, "sigma": 0.3, "every": 3, "seed": 0,
        "diagonal": True, "told": (), "after": None,
    })  # fmt: skip
    assert defaults(intelligent_router.intelligent_router, **{
        "seeds": 20, "processes": 1, "progress": None, "requests": 2000, "steps": 80_000,
        "learners": ("RL", "RL, penalised", "RL, guided", "ES"),
    })  # fmt: skip
    assert defaults(
        demo.run_demo, seeds=3, requests=2000, rates=(21.0, 30.0), prompts=2000,
        model="ridge", processes=1,
    )  # fmt: skip
    assert demo.TRAINING_SEED == 1_000_000


def test_settings_of_algorithms_are_those_that_published_runs_were_made_with() -> None:
    ppo = {"rollout": 16_384, "batch_size": 4096, "n_epochs": 4, "learning_rate": 1e-3,
           "gamma": 0.99, "gae_lambda": 0.95, "ent_coef": 0.0}  # fmt: skip
    assert agents.SETTINGS == {
        "ppo": ppo, "maskable-ppo": ppo,
        "dqn": {
            "buffer_size": 100_000, "learning_starts": 4096, "batch_size": 1024, "train_freq": 4,
            "gradient_steps": 4, "target_update_interval": 8192, "exploration_fraction": 0.4,
            "exploration_final_eps": 0.02, "learning_rate": 5e-4, "gamma": 0.99, "n_steps": 16,
        },
    }  # fmt: skip
    assert guide.GUIDANCE == {
        "demonstrations": 32_768, "clone_epochs": 8, "penalty": 0.1, "penalty_until": 0.5
    }  # fmt: skip
    assert evolve.SETTINGS == {
        "evaluations": 400, "episodes": 16, "population": 16, "sigma": 0.3, "regret": 1.0
    }  # fmt: skip
    assert evolve.ALGORITHMS == {"es": True, "cma": False}
    assert (evolution.TIE, evolution.MEASURED, evolve.TRAINING_SEED) == (0.01, 400, 2**30)
    assert (calibration.STEPS, module.CONFIRMATIONS, guide.STRAY) == (2000, 16, 0.1)
    assert intelligent_router.SMALL == {"requests": 500, "steps": 8000}
    assert (intelligent_router.TEST_SEED, intelligent_router.SPREAD) == (1_000_000, 0.6)
    assert intelligent_router.TASKS == {
        "sentiment": (180, 4), "entities": (100, 40), "question in context": (400, 20),
        "open question": (40, 250), "translation": (80, 90),
    }  # fmt: skip
    assert intelligent_router.THEIRS == {
        "jsq": 0.46, "min-min": 1.50, "max-capacity": 2.60, "RL": 4.35, "RL, penalised": 7.79,
        "RL, guided": 11.43,
    }  # fmt: skip
    assert [(one.engine.max_num_seqs, one.engine.num_gpu_blocks, one.load, one.replicas)
            for one in intelligent_router.REGIMES] == [
        (16, None, 0.9, 4), (16, None, 0.7, 4), (Engine().max_num_seqs, 1000, 0.9, 4),
        (16, None, 0.9, 8),
    ]  # fmt: skip
    assert (base.MOST_PROMPTS, base.FEWEST_PROMPTS, base.MOST_TERMS, base.PENALTY) == (
        1500, 5, 8000, 5.0
    )  # fmt: skip


@pytest.mark.parametrize(
    ("algo", "given", "right"),
    [
        ("ppo", {"gamma": 0}, True), ("ppo", {"gamma": -0.1}, False),
        ("ppo", {"gamma": True}, False),
        ("ppo", {"gamma": "0.9"}, False), ("ppo", {"learning_rate": 3e38}, True),
        ("ppo", {"learning_rate": 4e38}, False), ("ppo", {"rollout": 2**53}, True),
        ("ppo", {"rollout": 2**53 + 1}, False), ("ppo", {"ent_coef": math.nan}, False),
        ("ppo", {"n_epochs": 2.0}, True), ("es", {"sigma": 1}, True),
        ("es", {"sigma": None}, False),
    ],
)  # fmt: skip
def test_settings_are_numbers_that_can_be(algo: str, given: dict[str, Any], right: bool) -> None:
    if right:
        assert agents.settings_for(algo, given) == {**agents.settings_for(algo, None), **given}
        return
    with pytest.raises(InputError, match=f"setting {next(iter(given))} of {algo} is a number of 0"):
        agents.settings_for(algo, given)


# A run, step by step


class Logger:
    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.now: dict[str, float] = {}
        self.name_to_value: dict[str, float] = {}
        self.closed = False

    def record(self, name: str, value: float) -> None:
        self.now[name] = value

    def dump(self, step: int) -> None:
        self.rows.append((step, self.now))
        self.now = {}

    def close(self) -> None:
        self.closed = True


class Agent:
    """A learner that does as the test's ``script`` says."""

    def __init__(self, script: Callable[[Any, Any], None]) -> None:
        self.policy: Any = nn.Linear(2, 1)
        self.policy.optimizer = torch.optim.Adam(self.policy.parameters(), lr=0.5)
        self._n_updates, self.num_timesteps, self.script = 0, 0, script
        self.seeds: list[int] = []
        self.asked: list[tuple[int, bool]] = []

    def set_random_seed(self, seed: int) -> None:
        self.seeds.append(seed)

    def set_logger(self, logger: Any) -> None:
        self.logger = logger

    def learn(self, total: int, watch: Any, reset_num_timesteps: bool) -> None:
        self.asked.append((total, reset_num_timesteps))
        self.script(self, watch)


class Learning:
    """``policy._learn`` on fakes, with held-out costs that the test gives one after the other."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, folder: Path, costs: list[list[float]],
        script: Callable[[Any, Any], None], *, steps: int = 100, guided: bool = False,
        state: dict[str, Any] | None = None, every: tuple[int | None, int | None] = (None, None),
        algo: str = "ppo", stop: int | None = None,
    ) -> None:  # fmt: skip
        self.agent, self.logger, self.watch = Agent(script), Logger(), SimpleNamespace()
        self.state = state or {"steps": 0, "scales": {}, "reward_scale": 1.0, "evaluations": []}
        self.folder, given = folder, iter(costs)
        self.closed: list[str] = []
        self.vector: Any = SimpleNamespace(close=lambda: self.closed.append("vector"))
        if guided:
            self.vector = object.__new__(guide.Guided)
            self.vector.guide = SimpleNamespace(policy=SimpleNamespace(name="sjf"))
            self.vector.venv, self.vector.penalty = None, 0.0
            self.vector.close = lambda: self.closed.append("vector")
        ground = TrainedOn((("nodes", 1.0, 2.0),), ("w",))
        drawn: Any = SimpleNamespace(ranges={"nodes": (1.0, 2.0)}, trained_on=lambda: ground)

        class Held(Validation):
            def costs(self, judged: Any) -> list[float]:
                return next(given)

        held = Held([], latency, {"a": [1.0, 4.0], "b": [3.0, 3.0]})
        self.heard: dict[str, Any] = {}

        class Watched:
            def __init__(inner, **told: Any) -> None:
                self.heard.update(told)

            def close(inner) -> None:
                self.closed.append("watch")

        layers = [(np.eye(2), np.zeros(2)), (np.ones((1, 2)), np.zeros(1))]
        for name, value in {
            "make_agent": lambda *told: setattr(self, "made", told) or self.agent,
            "configure": lambda *told: self.logger,
            "score_layers": lambda policy: layers, "score_skip": lambda policy: np.zeros(2),
            "Watch": Watched, "clone": lambda *told: setattr(self, "cloned", told) or 0.755,
            "check_finite": lambda agent: self.checked(),
        }.items():  # fmt: skip
            monkeypatch.setattr(module, name, value)
        self.finite = True
        settings = {"gamma": 0.9, "penalty": 0.4, "penalty_until": 0.5}
        run = module._Run(folder, "scheduling", algo, settings, (8,), 7, steps, [], False, [])
        self.run = run
        columns = Columns.of(("prompt_tokens", "priority"))
        self.call = lambda: module._learn(
            run, self.vector, columns, drawn, self.state, held, *every
        )

    def checked(self) -> None:
        if not self.finite:
            raise NotFiniteError("the weights are NaN")

    def saved(self) -> dict[str, Any]:
        return read_checkpoint(self.folder / "checkpoint.pt")


def steps_of(agent: Any, watch: Any, *steps: int) -> None:
    """Updates and evaluations at these steps."""
    for step in steps:
        agent.num_timesteps, agent._n_updates = step, agent._n_updates + 1


def test_a_run_keeps_its_evaluations_its_best_and_its_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said: list[str] = []

    def script(agent: Any, watch: Any) -> None:
        made.agent.num_timesteps, made.agent._n_updates = 40, 2
        with torch.no_grad():
            agent.policy.weight.fill_(4.0)
        said.append(made.heard["evaluate"](40))
        made.heard["save"](40)
        assert made.saved()["steps"] == 40 and made.saved()["updates"] == 2
        made.agent.num_timesteps, made.agent._n_updates = 80, 3
        said.append(made.heard["evaluate"](80))
        made.agent.num_timesteps = 104

    costs = [[9.0, 9.0], [2.0, 2.0], [5.0, 1.0], [1.0, 3.0]]
    made = Learning(monkeypatch, tmp_path, costs, script)
    made.call()
    assert made.agent.asked == [(100, False)]
    assert made.state["evaluations"] == [[0, 9.0], [40, 2.0], [80, 3.0], [104, 2.0]]
    assert made.state["start"] == [9.0, 9.0]
    # untrained weights are no best; 1 and 3 are less than twice 2 by their geometric mean
    assert made.state["best"] == [104, [1.0, 3.0]]
    best = read_checkpoint(tmp_path / "best.pt")
    assert (best["cost"], best["features"]) == (2.0, ["prompt_tokens", "priority"])
    assert best["ranges"] == [["nodes", 1.0, 2.0]] and best["workloads"] == ["w"]
    kept = json.loads((tmp_path / "evaluations.json").read_text())
    assert kept == {"evaluations": made.state["evaluations"], "baselines": {"a": 2.5, "b": 3.0}}
    assert said == ["cost 2 (a 2.5)", "cost 3 (a 2.5)"]  # a is best by its geometric mean
    at, row = made.logger.rows[1]
    assert at == 40 and row == {
        "eval/cost": 2.0, "eval/ratio_to_the_best_baseline": pytest.approx(1.0),
        "eval/cost_of_a": 2.5, "eval/cost_of_b": 3.0,
    }  # fmt: skip
    end = made.saved()
    assert end["steps"] == 104 and end["ranges"] == [["nodes", 1.0, 2.0]]
    assert end["policy"]["weight"].tolist() == [[4.0, 4.0]]
    assert end["optimizer"]["param_groups"][0]["lr"] == 0.5
    assert (made.heard["steps"], made.heard["evaluate_every"], made.heard["save_every"]) == (
        100, 5, 5
    )  # fmt: skip
    assert made.heard["show"] is False
    assert made.closed == ["watch", "vector"] and made.logger.closed
    draws = np.random.SeedSequence((7, 0)).generate_state(1)
    assert made.agent.seeds == [int(draws[0]) // 2]
    algo, _, columns, _, hidden, seed = made.made
    assert (algo, columns, hidden, seed) == ("ppo", 2, (8,), 7)
    assert made.run.notices == []


def test_how_often_a_run_evaluates_and_saves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for every, steps, wanted in (
        ((None, None), 19, (1, 1)), ((None, None), 400, (20, 20)), ((7, 9), 400, (7, 9)),
        ((None, 3), 50, (2, 3)),
    ):  # fmt: skip
        made = Learning(monkeypatch, tmp_path, [[1.0, 1.0]] * 3, lambda *of: None, steps=steps,
                        every=every)  # fmt: skip
        made.call()
        assert (made.heard["evaluate_every"], made.heard["save_every"]) == wanted
    # nothing was learned: the last evaluation stands
    assert made.state["evaluations"] == [[0, 1.0]] and "best" not in made.state


def test_a_resumed_run_takes_up_weights_and_draws_other_episodes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = Agent(lambda *of: None)
    with torch.no_grad():
        other.policy.weight.fill_(3.0)
    other.policy.optimizer.param_groups[0]["lr"] = 0.125
    state: dict[str, Any] = {
        "steps": 60, "evaluations": [[0, 9.0], [60, 4.0]], "start": [9.0], "best": [60, [4.0, 4.0]],
        "policy": other.policy.state_dict(), "optimizer": other.policy.optimizer.state_dict(),
        "updates": 12, "scales": {}, "reward_scale": 1.0,
    }  # fmt: skip
    before: list[tuple[int, int]] = []

    def script(agent: Any, watch: Any) -> None:
        before.append((agent.num_timesteps, agent._n_updates))
        agent.num_timesteps = 100

    made = Learning(monkeypatch, tmp_path, [[5.0, 5.0]], script, state=state)
    made.call()
    assert before == [(60, 12)] and made.agent.asked == [(40, False)]
    assert made.agent.policy.weight.tolist() == [[3.0, 3.0]]
    assert made.agent.policy.optimizer.param_groups[0]["lr"] == 0.125
    draws = np.random.SeedSequence((7, 60)).generate_state(1)
    assert made.agent.seeds == [int(draws[0]) // 2]
    assert made.state["evaluations"] == [[0, 9.0], [60, 4.0], [100, 5.0]]
    assert made.state["best"] == [60, [4.0, 4.0]] and made.state["start"] == [9.0]
    assert not (tmp_path / "best.pt").exists()
    # older checkpoints did not count updates; and what is done is done
    done = {**state, "steps": 100, "evaluations": [[0, 9.0], [100, 4.0]]}
    del done["updates"]
    made = Learning(monkeypatch, tmp_path, [], script, state=done)
    made.call()
    assert made.agent._n_updates == 1 and made.agent.asked == []


def test_a_guided_run_begins_with_demonstrations_and_a_penalty_that_ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    penalties: list[float] = []

    def script(agent: Any, watch: Any) -> None:
        for step in (0, 10, 25, 50, 75):
            made.heard["at"](step)
            penalties.append(made.vector.penalty)
        agent.num_timesteps = 100

    made = Learning(monkeypatch, tmp_path, [[3.0, 3.0], [4.0, 4.0]], script, guided=True)
    made.call()
    assert made.run.notices == [
        "the network chooses as sjf does in 76% of its demonstrations"
    ]  # fmt: skip
    assert made.cloned[0] is made.agent and made.cloned[1] is made.vector
    assert made.cloned[2] == 0.9 and made.cloned[4] == 7
    # before the first update its weights are the guide's, and may be best
    assert made.state["best"] == [0, [3.0, 3.0]]
    # 0.4 at first, nothing after half of the 100 steps
    assert penalties == pytest.approx([0.4, 0.32, 0.2, 0.0, 0.0])


def test_a_run_that_is_stopped_is_saved_and_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def script(agent: Any, watch: Any) -> None:
        agent.num_timesteps, agent._n_updates = 30, 1
        signal.raise_signal(signal.SIGTERM)

    made = Learning(monkeypatch, tmp_path, [[1.0, 1.0]], script)
    with pytest.raises(KeyboardInterrupt, match=r"SIGTERM: saved .* after 30 steps; the same"):
        made.call()
    assert made.saved()["steps"] == 30 and made.state["evaluations"] == [[0, 1.0]]
    assert made.closed == ["watch", "vector"] and made.logger.closed

    def early(policy: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return np.zeros(2)

    made = Learning(monkeypatch, tmp_path / "b", [[1.0, 1.0]], script)
    (tmp_path / "b").mkdir()
    monkeypatch.setattr(module, "score_skip", early)  # while it is first evaluated
    with pytest.raises(KeyboardInterrupt, match=r"SIGINT: saved .* after 0 steps"):
        made.call()
    assert made.agent.asked == []


def test_what_goes_wrong_in_a_run_leaves_what_was_saved(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def script(agent: Any, watch: Any) -> None:
        agent.num_timesteps = 50
        raise ValueError("a bug")

    made = Learning(monkeypatch, tmp_path, [[1.0, 1.0]], script)
    with pytest.raises(ValueError, match="a bug"):
        made.call()
    assert made.saved()["steps"] == 50  # saved on the way out

    def spoils(error: BaseException) -> Callable[[Any, Any], None]:
        def script(agent: Any, watch: Any) -> None:
            agent.num_timesteps, made.finite = 60, False
            raise error

        return script

    for error, raised, match in (
        (ValueError("torch's words"), InputError, "at step 60: the weights are NaN; .* before"),
        (NotFiniteError("a step's cost is nan"), InputError, "step 60: a step's cost is nan; "),
        (KeyboardInterrupt("asked"), KeyboardInterrupt, "^asked$"),
        (InputError("a full disk"), InputError, "^a full disk$"),
    ):  # fmt: skip
        made = Learning(monkeypatch, tmp_path, [[1.0, 1.0]], spoils(error))
        with pytest.raises(raised, match=match):
            made.call()
        assert made.saved()["steps"] == 0
        assert made.closed == ["watch", "vector"]
    nothing = module._not_finite(tmp_path / "none", made.agent, NotFiniteError("x"))  # type: ignore[arg-type]
    assert str(nothing) == "training stopped at step 60: x; nothing was saved"


class Costs(Validation):
    """What each policy costs, by its name."""

    told: dict[str, list[float]] = {}  # noqa: RUF012 - set by a test

    def costs(self, judged: Any) -> list[float]:
        return self.told[judged.name]


def finished(
    monkeypatch: pytest.MonkeyPatch, folder: Path, state: dict[str, Any], ours: list[float]
) -> tuple[Any, list[Any]]:
    """The end of a run whose bundle costs ``ours`` where the confirmation's baseline costs 2."""
    columns = Columns.of(("prompt_tokens",))
    layers = [(np.ones((1, 1)), np.zeros(1))]
    policy = module.learned("scheduling", columns, layers, np.zeros(1))
    write_checkpoint(
        folder / "best.pt", module.best_state(policy, columns, layers, np.zeros(1), 1.0)
    )
    asked: list[Any] = []

    def of(source: Any, cost: Any, seeds: range, judges: Any) -> Any:
        asked.append((seeds, [one.name for one in judges]))
        return Costs([], cost, {one.name: [2.0] * len(ours) for one in judges})

    monkeypatch.setattr(module, "Validation", SimpleNamespace(of=of))
    Costs.told = {policy.name: ours}
    held = Costs([None] * len(ours), latency, {"sjf": [1.0, 1.0], "fcfs": [3.0, 3.0]})  # type: ignore[list-item]
    judges = [load_policy("fcfs"), load_policy("sjf")]
    run = module._Run(folder, "scheduling", "ppo", {}, (8,), 0, 100, judges, False, [])
    (folder / "config.json").write_text(json.dumps({"env": "lengthwise/Scheduling-v1"}))
    return module._finished(run, state, lambda seed: None, held), asked  # type: ignore[arg-type,return-value]


def test_a_finished_run_is_measured_on_workloads_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    state: dict[str, Any] = {"best": [40, [0.5, 1.5]], "start": [9.0, 9.0],
                             "evaluations": [[0, 9.0], [40, 1.0]]}  # fmt: skip
    found, asked = finished(monkeypatch, tmp_path, state, [1.0, 1.0])
    first = 2**31 + 5000
    assert asked == [(range(first, first + 16), ["sjf"])]  # the best baseline alone
    assert found.best == (40, 1.0) and found.best_baseline == "sjf"
    assert found.ratio.mean == pytest.approx(0.5) and found.notices == ()
    assert found.evaluations == [(0, 9.0), (40, 1.0)] and found.baselines == {
        "sjf": 1.0,
        "fcfs": 3.0,
    }
    assert found.folder == tmp_path and found.bundle == tmp_path / "bundle"
    assert isinstance(read_bundle(found.bundle), SchedulingPolicy)
    about = (found.bundle / "README.md").read_text()
    assert "ppo, 40 steps, seed 0" in about and "lengthwise/Scheduling-v1" in about
    _, asked = finished(monkeypatch, tmp_path, state, [1.0] * 20)
    assert asked[0][0] == range(first, first + 20)  # as many as it was held out on
    # no better than the start, and no better than the best baseline: at 1 too
    found, _ = finished(monkeypatch, tmp_path, {**state, "start": [0.5, 1.5]}, [2.0, 2.0])
    assert found.notices[0].startswith("no update beat the start")
    assert found.notices[1].startswith("no update beat the best baseline: 1.000 of sjf")
    # of a guided run whose demonstrations stand
    found, _ = finished(monkeypatch, tmp_path, {**state, "best": [0, [1.0, 1.0]]}, [1.0, 1.0])
    assert found.notices == ("no update beat the demonstrations, which the bundle now holds",)
    found, _ = finished(monkeypatch, tmp_path, {**state, "best": None}, [1.5, 1.5])
    assert found.best == (0, 1.5)


def test_runs_are_exported_as_bundles_with_what_was_measured_of_these_weights(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    columns = Columns.of(("prompt_tokens",))

    def network(weight: float) -> Any:
        layers = [(np.full((1, 1), weight), np.zeros(1))]
        policy = module.learned("scheduling", columns, layers, np.zeros(1))
        return policy, module.best_state(policy, columns, layers, np.zeros(1), 1.0)

    policy, state = network(2.0)
    write_checkpoint(run / "best.pt", state)
    (run / "config.json").write_text(json.dumps({"algo": "ppo"}))
    made = module.export_run(str(run), tmp_path / "a")  # unfinished
    assert made == tmp_path / "a" and read_bundle(made).score.features == ("prompt_tokens",)
    for weight, same in ((2.0, True), (3.0, False)):  # trained on since
        write_bundle(network(weight)[0], run / "bundle", "as it was measured")
        made = module.export_run(run, tmp_path / f"{weight}")
        assert ((made / "README.md").read_text() == "as it was measured") is same
        assert read_bundle(made).score.evaluate({"prompt_tokens": 5.0}) == pytest.approx(
            policy.score.evaluate({"prompt_tokens": 5.0}), rel=1e-6
        )
    (run / "bundle" / "weights.safetensors").unlink()  # whose card is then of nobody knows what
    made = module.export_run(run, tmp_path / "without")
    assert (made / "README.md").read_text() != "as it was measured"
    for spoiled in ({}, {**state, "layers": 3}, {**state, "features": ["no_such"]}, [1]):
        write_checkpoint(run / "best.pt", spoiled)
        with pytest.raises(InputError, match=r"is damaged: best\.pt|unknown feature"):
            module.export_run(run, tmp_path / "spoiled")
    evolved = evolution.policy_of("scheduling", ("predicted",), (1.0,))
    (run / "config.json").write_text(json.dumps({"algo": "es"}))
    write_bundle(evolved, run / "bundle", "evolved")
    made = module.export_run(run, tmp_path / "es")
    assert read_bundle(made).score.features == ("predicted_tokens",)
    assert (made / "README.md").read_text() == "evolved"


# What a run is made of


def test_a_run_s_arguments_are_looked_at_first(tmp_path: Path) -> None:
    for wrong in (
        {"steps": 0}, {"n_envs": 0}, {"eval_seeds": 0}, {"hidden": ()}, {"hidden": (8, 0)},
    ):  # fmt: skip
        with pytest.raises(InputError, match="the hidden layers must be 1 or more"):
            module.train_policy(out=tmp_path, **wrong)  # type: ignore[arg-type]
    for algo in ("es", "cma"):
        with pytest.raises(InputError, match="guide: the evolution strategy starts at a baseline"):
            module.train_policy(out=tmp_path, algo=algo, guide="jsq")
    with pytest.raises(UnknownNameError, match="unknown option 'replica' of lengthwise/Routing-v1"):
        module.train_policy(out=tmp_path, env_options={"replica": 3})
    assert not list(tmp_path.iterdir())


def test_learners_end_whole_rounds() -> None:
    ppo = {"rollout": 16_384}
    for algo, steps, n_envs, settings, taken in (
        ("ppo", 2048, 64, ppo, 16_384), ("ppo", 16_385, 64, ppo, 32_768), ("ppo", 0, 3, ppo, 0),
        ("maskable-ppo", 1, 16_384, ppo, 32_768),  # at least two steps of each environment
        ("ppo", 100, 3, {"rollout": 256}, 255), ("dqn", 5000, 64, {"train_freq": 4}, 5120),
    ):  # fmt: skip
        assert agents.steps_of(algo, steps, n_envs, settings) == taken
    with pytest.raises(InputError, match=r"learns after 4,096 steps \(learning_starts\), and 9"):
        module.train_policy(out="never", algo="dqn", steps=9)


def test_scenarios_say_how_many_replicas_there_are() -> None:
    fleet = Scenarios([
        Scenario("two", "burstgpt", replicas=2), Scenario("three", "burstgpt", nodes=[{}, {}, {}])
    ])  # fmt: skip
    routing, scheduling = "lengthwise/Routing-v1", "lengthwise/Scheduling-v1"
    assert module._mixed(routing, fleet, {}) == {"scenarios": fleet, "replicas": 3}
    assert module._mixed(routing, fleet, {"replicas": 5}) == {"scenarios": fleet}
    assert module._mixed(scheduling, fleet, {}) == {"scenarios": fleet}
    source: Any = lambda seed: None  # noqa: E731
    assert module._mixed(routing, source, {}) == {"scenarios": source}
    assert len(module._mixed(scheduling, "unequal", {})["scenarios"]) == 21


def test_what_can_be_exported() -> None:
    def kind(found: str, **options: Any) -> str:
        probe: Any = SimpleNamespace(vector=SimpleNamespace(game=SimpleNamespace(kind=found)))
        return module._kind("env", probe, options)

    assert kind("route") == "routing" and kind("admit") == "scheduling"
    assert kind("route", hold=False) == "routing"
    with pytest.raises(InputError, match="no score can be exported"):
        kind("preempt")
    with pytest.raises(InputError, match="can't hold requests"):
        kind("route", hold=True)
    sjf = load_policy("sjf")
    assert module._loaded("routing", sjf) is sjf
    assert isinstance(module._loaded("routing", "jsq"), RoutingPolicy)
    assert isinstance(module._loaded("scheduling", "sjf"), SchedulingPolicy)


def test_a_run_begins_with_scales_of_random_decisions(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    plain = SimpleNamespace(close=lambda: asked.append("closed"))
    monkeypatch.setattr(
        module, "make_vector", lambda make, options, count: asked.append(count) or plain
    )
    monkeypatch.setattr(
        module, "calibrate",
        lambda env, columns, gamma, seed: asked.append((columns.names, gamma, seed))
        or calibration.Scales({"priority": (1.0, 2.0)}, 7.0),
    )  # fmt: skip
    state = module._begin(None, {}, ("priority",), 0.9, 5)
    assert state == {"steps": 0, "scales": {"priority": (1.0, 2.0)}, "reward_scale": 7.0,
                     "evaluations": []}  # fmt: skip
    assert asked == [16, (("priority",), 0.9, 5), "closed"]
    assert module._begin(None, {"reward_scale": 3.0}, ("priority",), 0.9, 5)["reward_scale"] == 1.0


def test_what_is_said_is_kept_and_shown_where_progress_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[list[str]] = []
    monkeypatch.setattr(module, "notices", shown.append)
    for progress in (False, True):
        run = module._Run(tmp_path, "routing", "ppo", {}, (8,), 0, 1, [], progress, [])
        run.say("a line")
        assert run.notices == ["a line"]
    assert shown == [["a line"]]


class Probe:
    """What ``train_policy`` asks of an environment."""


def trained(
    monkeypatch: pytest.MonkeyPatch, out: Path, **given: Any
) -> tuple[dict[str, Any], list[str]]:
    """``train_policy`` up to its first step: what it would learn with."""
    told: dict[str, Any] = {}

    def learn(run: Any, vector: Any, columns: Any, drawn: Any, state: Any, validation: Any,
              *every: Any) -> None:  # fmt: skip
        told.update(run=run, vector=vector, columns=columns, drawn=drawn, state=dict(state),
                    validation=validation, every=every,
                    threads=torch.get_num_threads())  # fmt: skip

    def scales(make: Any, options: Any, names: Any, gamma: float, seed: int) -> dict[str, Any]:
        told.update(names=names, gamma=gamma, options=dict(options), seed=seed)
        return {"steps": 0, "scales": {names[0]: (1.0, 2.0)}, "reward_scale": 3.0,
                "evaluations": []}  # fmt: skip

    def done(run: Any, state: Any, source: Any, validation: Any) -> Any:
        return SimpleNamespace(notices=run.notices)

    monkeypatch.setattr(module, "_learn", learn)
    monkeypatch.setattr(module, "_begin", scales)
    monkeypatch.setattr(module, "_finished", done)
    monkeypatch.setattr(module, "ROUNDED", math.inf)  # nobody says that these are few steps
    options: dict[str, Any] = {
        "workload": burst, "timing": TICK, "env": "lengthwise/Scheduling-v1", "n_envs": 2,
        "eval_seeds": 2, "progress": False, "steps": 10, **given,
    }  # fmt: skip
    found = module.train_policy(out=out, **options)
    return told, list(found.notices)


def test_what_is_learned_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    one = {"max_num_seqs": 1}
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        told, said = trained(
            monkeypatch, tmp_path / "a", env_options={"engine": one, "slots": 12}, eval_every=4,
            save_every=6, seed=3, settings={"gamma": 0.5}, hidden=(16, 8), command="cmd",
        )  # fmt: skip
        assert torch.get_num_threads() == 2 and told["threads"] == 1
    finally:
        torch.set_num_threads(threads)
    assert said == [] and told["every"] == (4, 6)
    assert (told["gamma"], told["seed"]) == (0.5, 3)
    names = ("predicted_tokens", "prompt_tokens", "waited_s")
    assert told["names"] == told["columns"].names == names
    first = told["columns"].columns[0]
    assert (first.shift, first.scale) == (1.0, 2.0)  # those that were measured
    assert told["vector"].num_envs == 2
    inner = told["vector"].venv.env
    assert inner.game.source is told["drawn"] and told["drawn"].factor == 3.0
    assert [c.shift for c in inner.columns.columns] == [c.shift for c in told["columns"].columns]
    assert "workload" not in told["options"] and "engine" not in told["options"]
    held = told["validation"]
    assert [one.seed for one in held.episodes] == [2**31, 2**31 + 1]
    assert list(held.baselines) == ["fcfs", "sjf"]
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert (config["env"], config["algo"], config["seed"], config["steps"], config["n_envs"]) == (
        "lengthwise/Scheduling-v1", "ppo", 3, 10, 2
    )  # fmt: skip
    assert config["hidden"] == [16, 8] and config["settings"]["gamma"] == 0.5
    assert config["command"] == "cmd" and "guide" not in config
    run = told["run"]
    assert (run.kind, run.algo, run.seed, run.steps, run.progress) == (
        "scheduling", "ppo", 3, 10, False
    )  # fmt: skip


def test_given_scales_are_kept_and_ties_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told, said = trained(
        monkeypatch, tmp_path / "a", env_options={
            "engine": {"max_num_seqs": 64}, "slots": 12,
            "scales": {"predicted_tokens": (7.0, 8.0)},
        },
    )  # fmt: skip
    first = told["columns"].columns[0]
    assert (first.shift, first.scale) == (7.0, 8.0)
    assert said == [module.TIES.format("fcfs, sjf")]  # seats for all: nobody waits


def test_a_guided_run_shows_the_guide_what_it_reads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told, _ = trained(
        monkeypatch, tmp_path / "a", guide="srtf",
        env_options={"engine": {"max_num_seqs": 1}, "slots": 12, "features": ("prompt_tokens",)},
    )  # fmt: skip
    assert told["names"][0] == "prompt_tokens" and len(told["names"]) > 1
    assert told["columns"].names == ("prompt_tokens",)
    assert isinstance(told["vector"], guide.Guided)
    assert told["vector"].columns.names == told["names"]
    assert told["vector"].sizes.columns == 1
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["guide"] == "srtf" and config["settings"]["penalty"] == 0.1


def test_a_run_on_scenarios_is_held_out_on_each_of_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = {"max_num_seqs": 1, "max_num_batched_tokens": 64}
    three = Scenarios([
        Scenario(f"{rate}", burst, rate=None, timing=TICK, engine=engine, replicas=2)
        for rate in (1, 2, 3)
    ])  # fmt: skip
    told, _ = trained(monkeypatch, tmp_path / "a", env="lengthwise/Routing-v1", scenarios=three)
    assert [one.seed - 2**31 for one in told["validation"].episodes] == list(range(6))
    assert told["columns"].names == module.NODES_DIFFER
    assert told["options"]["replicas"] == 2
    told, _ = trained(
        monkeypatch, tmp_path / "b", env="lengthwise/Routing-v1", scenarios=three, eval_seeds=9,
        env_options={"features": ("free_seats",), "replicas": 4},
    )  # fmt: skip
    assert len(told["validation"].episodes) == 9 and told["columns"].names == ("free_seats",)
    assert told["vector"].action_space.n == 4
    told, _ = trained(
        monkeypatch, tmp_path / "c", env="lengthwise/Routing-v1",
        env_options={"nodes": [{"max_num_seqs": 1}, {"max_num_seqs": 2}]},
    )  # fmt: skip
    assert told["columns"].names == module.NODES_DIFFER
    told, _ = trained(monkeypatch, tmp_path / "d", env="lengthwise/Routing-v1",
                      env_options={"replicas": 2})  # fmt: skip
    assert len(told["columns"].names) == 4  # the environment's own


def test_a_resumed_run_says_where_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"env_options": {"engine": {"max_num_seqs": 1}, "slots": 12}}
    for algo in ("ppo", "dqn"):
        out = tmp_path / algo
        given["settings"] = {"learning_starts": 8} if algo == "dqn" else {}
        trained(monkeypatch, out, algo=algo, **given)
        state = {"steps": 1234, "scales": {"waited_s": (5.0, 6.0)}, "reward_scale": 2.0,
                 "evaluations": [], "ranges": [["nodes", 1.0, 9.0]]}  # fmt: skip
        write_checkpoint(out / "checkpoint.pt", state)
        told, said = trained(monkeypatch, out, algo=algo, resume=True, steps=5000, **given)
        line = (
            "resumed at step 1,234: weights, optimiser and scales are those of then, episodes "
            "under way begin afresh"
        )
        assert said == [line + (", and so does the replay buffer" if algo == "dqn" else "")]
        assert told["drawn"].factor == 2.0 and told["drawn"].ranges["nodes"] == (1.0, 9.0)
        assert told["columns"].columns[2].shift == 5.0 and told["state"]["steps"] == 1234
        _, said = trained(monkeypatch, out, algo=algo, resume=True, steps=1234, **given)
        assert said == []  # there is nothing left to do
    # resuming what was never saved begins it
    del given["settings"]
    trained(monkeypatch, tmp_path / "new", **given)
    told, said = trained(monkeypatch, tmp_path / "new", resume=True, **given)
    assert said == [] and told["drawn"].factor == 3.0


def test_an_evolution_strategy_s_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}
    policy = load_policy("sjf")
    improved = False

    def evolved(source: Any, kind: str, **given: Any) -> Any:
        asked.update(given, kind=kind)
        return policy, SimpleNamespace(improved=improved, evaluations=48)

    monkeypatch.setattr(module, "evolve", evolved)
    probe: Any = SimpleNamespace(source=lambda seed: Episode(
        burst(seed), System((Node(Engine(max_num_seqs=1), TICK, policy),), load_router("jsq")),
        Predictions({"predicted_tokens": burst(seed)["output_tokens"] * 1.0}), seed, 1.0, "w",
    ), cost=latency)  # fmt: skip
    judges = [load_policy("fcfs"), policy]
    (tmp_path / "config.json").write_text(json.dumps({"env": "lengthwise/Scheduling-v1"}))
    for algo, diagonal in (("es", True), ("cma", False)):
        run = module._Run(tmp_path, "scheduling", algo, {"x": 1}, (8,), 5, 9, judges, False, [])
        found = module._evolved(run, probe, 3, False)
        assert (
            asked["diagonal"] is diagonal and asked["seed"] == 5 and asked["kind"] == "scheduling"
        )
        assert [one.seed for one in asked["validation"]] == [2**31, 2**31 + 1, 2**31 + 2]
        assert found.notices[0].startswith("nothing that was tried beat the start")
        shortest = (sum(range(1, 7)) + sum(range(11, 37, 5))) / 12
        assert found.evaluations == [(48, pytest.approx(shortest))]
        assert found.best == (48, pytest.approx(shortest))
    improved = True
    run = module._Run(tmp_path, "scheduling", "es", {}, (8,), 5, 9, judges, False, [])
    assert not any(
        "beat the start" in line for line in module._evolved(run, probe, 3, True).notices
    )
    assert asked["resume"] is True
    probe.cost = lambda totals: 1.0
    with pytest.raises(InputError, match="minimises latency; another cost needs a learner"):
        module._evolved(run, probe, 3, False)


# Vectors and scales


def test_vectors_of_a_run_are_flat_and_go_on_at_once() -> None:
    options = {"workload": burst, "timing": TICK, "replicas": 2}
    made = vectors.make_vector(RoutingEnv, options, 3)
    env: Any = made.env
    assert made.num_envs == 3 and env.flat and env.autoreset_mode.name == "SAME_STEP"
    system = System((Node(Engine(), TICK, load_policy("fcfs")),), load_router("jsq"))
    drawn = vectors.Drawn(
        lambda seed: Episode(burst(seed), system, None, seed, 2.0 + seed, f"w{seed}"), 3.0
    )
    assert [drawn(seed).scale for seed in (0, 1)] == [6.0, 9.0]
    assert drawn.workloads == {"w0", "w1"} and drawn.ranges["prompt_tokens"] == (8.0, 8.0)
    assert drawn.trained_on() == TrainedOn.of(drawn.ranges, {"w0", "w1"})


class Rewarded:
    """Three environments of two slots and one column, whose rewards are known."""

    num_envs = 3

    def __init__(self, wrong: float | None = None) -> None:
        self.observation_space = spaces.Box(-9, 9, (2 * 2 + 1,))
        self.action_space = SimpleNamespace(n=2)
        self.wrong, self.seeds, self.actions, self.paid = wrong, [], [], []  # type: ignore[var-annotated]
        self.rng = np.random.default_rng(0)

    def seed(self, seed: int) -> None:
        self.seeds.append(seed)

    def reset(self) -> Any:
        self.seen = []  # type: ignore[var-annotated]
        return self._shown()

    def _shown(self) -> Any:
        rows = self.rng.normal(3.0, 0.25, (3, 2))
        self.seen.append(rows)
        mask = np.array([[1, 1], [1, 0], [0, 1]])
        return np.concatenate([rows, mask, np.ones((3, 1))], axis=1)

    def step(self, actions: Any) -> Any:
        self.actions.append(np.array(actions))
        self.paid.append(self.rng.normal(-1.0, 1.0, 3))
        if self.wrong is not None:
            self.paid[-1][1] = self.wrong
        return self._shown(), self.paid[-1], np.zeros(3, bool), [{}] * 3


def test_scales_are_of_two_thousand_decisions_or_a_few_more() -> None:
    columns = Columns.of(("prompt_tokens",), {"prompt_tokens": (10.0, 4.0)})
    env: Any = Rewarded()
    found = calibration.calibrate(env, columns, 0.5, seed=4)
    assert len(env.paid) == 667 and env.seeds == [4]  # 2,001 of three at once
    sums, returns = np.zeros(3), []
    for paid in env.paid:
        sums = 0.5 * sums + paid
        returns.append(sums)
    assert found.reward == pytest.approx(np.std(returns))
    seen = np.concatenate([np.r_[rows[0], rows[1, 0], rows[2, 1]] for rows in env.seen[:667]])
    shift, scale = found.features["prompt_tokens"]
    assert shift == pytest.approx(10 + 4 * seen.mean()) and scale == pytest.approx(4 * seen.std())
    again: Any = Rewarded()
    np.random.seed(99)
    calibration.calibrate(again, columns, 0.5, seed=4)
    assert [a.tolist() for a in again.actions] == [a.tolist() for a in env.actions]
    assert all(a[1] == 0 and a[2] == 1 for a in env.actions)  # legal ones
    for wrong, said in ((math.inf, "-inf"), (math.nan, "nan")):
        with pytest.raises(InputError, match=f"a step's cost is {said}; a cost must be a finite"):
            calibration.calibrate(Rewarded(wrong), columns, 0.5, seed=4)  # type: ignore[arg-type]


def test_a_column_that_never_varies_and_rewards_of_nothing_keep_their_scale() -> None:
    class Still(Rewarded):
        def _shown(self) -> Any:
            return np.tile([[1.0, 1.0, 1.0, 1.0, 0.0]], (3, 1))

        def step(self, actions: Any) -> Any:
            return self._shown(), np.zeros(3), np.zeros(3, bool), [{}] * 3

    found = calibration.calibrate(Still(), Columns.of(("prompt_tokens",)), 0.9, 0)  # type: ignore[arg-type]
    assert found.features == {} and found.reward == 1.0


# Learning from a guide


class Tiny(nn.Module):
    """Actor and critic of three numbers, for two choices."""

    def __init__(self) -> None:
        super().__init__()
        self.actor, self.critic = nn.Linear(3, 2), nn.Linear(3, 1)


def test_a_network_is_taught_choices_and_what_they_are_worth(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Adam on the log-probability and half the squared error of what is known, in passes over
    batches of 1,024 at most: against the same written out with torch alone."""
    count = 2500
    rng = np.random.default_rng(0)
    seen = torch.from_numpy(rng.normal(size=(count, 3)).astype(np.float32))
    choices = torch.from_numpy(rng.integers(0, 2, count))
    returns = torch.from_numpy(rng.normal(size=count).astype(np.float32) * 50)
    returns[-40:] = math.nan
    monkeypatch.setattr(
        guide, "_demonstrations", lambda env, gamma, demonstrations, seed: (
            (lambda rows: seen[rows]), choices, returns
        ) if (gamma, demonstrations, seed) == (0.9, 50, 7) else None,
    )  # fmt: skip

    def heads(agent: Any, batch: Any, actions: Any) -> Any:
        logits = agent.policy.actor(batch)
        log_prob = functional.log_softmax(logits, dim=1).gather(1, actions[:, None])[:, 0]
        return log_prob, agent.policy.critic(batch).flatten(), logits.argmax(1)

    monkeypatch.setattr(guide, "_heads", heads)
    torch.manual_seed(0)
    agent: Any = SimpleNamespace(policy=Tiny())
    mine = Tiny()
    mine.load_state_dict(agent.policy.state_dict())
    agree = guide.clone(agent, None, 0.9, {"demonstrations": 50.0, "clone_epochs": 3.0}, 7)  # type: ignore[arg-type]
    optimiser = torch.optim.Adam(mine.parameters(), lr=0.002)
    order = np.random.default_rng(7)
    for _ in range(3):
        agreed = 0
        for rows in np.array_split(order.permutation(count), 3):
            logits = mine.actor(seen[rows])
            picked = torch.log_softmax(logits, 1)[torch.arange(len(rows)), choices[rows]]
            loss = -picked.mean()
            known = ~torch.isnan(returns[rows])
            worth = mine.critic(seen[rows]).flatten()
            loss = loss + ((worth[known] - returns[rows][known]) ** 2).mean() / 2
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(mine.parameters(), 1.0)
            optimiser.step()
            agreed += int((logits.argmax(1) == choices[rows]).sum())
    assert agree == agreed / count
    for ours, theirs in zip(mine.parameters(), agent.policy.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_returns_that_nobody_saw_teach_no_worth(monkeypatch: pytest.MonkeyPatch) -> None:
    unseen = torch.full((4,), math.nan)
    batch = torch.ones(4, 3)
    monkeypatch.setattr(guide, "_demonstrations", lambda *of: (
        (lambda rows: batch[rows]), torch.zeros(4, dtype=torch.int64), unseen))  # fmt: skip
    net = Tiny()

    def heads(agent: Any, seen: Any, actions: Any) -> Any:
        logits = agent.policy.actor(seen)
        chosen = torch.zeros(len(seen), dtype=torch.int64)
        return torch.log_softmax(logits, 1)[:, 0], agent.policy.critic(seen).flatten(), chosen

    monkeypatch.setattr(guide, "_heads", heads)
    before = net.critic.weight.detach().clone()
    # a learner of action values keeps a second network, which follows
    made = MaskedDQN.__new__(MaskedDQN)
    made.policy, made.q_net, made.q_net_target = net, nn.Linear(2, 2), nn.Linear(2, 2)  # type: ignore[assignment]
    assert guide.clone(made, None, 0.9, {"demonstrations": 4, "clone_epochs": 1}, 0) == 1.0  # type: ignore[arg-type]
    assert torch.equal(net.critic.weight, before)
    assert torch.equal(made.q_net.weight, made.q_net_target.weight)  # type: ignore[arg-type]
    assert guide.clone(made, None, 0.9, {"demonstrations": 4, "clone_epochs": 0}, 0) == 0.0  # type: ignore[arg-type]


def test_heads_of_both_kinds_of_learners() -> None:
    seen, actions = torch.tensor([[1.0, 2.0], [3.0, -1.0]]), torch.tensor([1, 0])
    values = torch.tensor([[0.5, 2.0], [4.0, 1.0]])
    dqn = MaskedDQN.__new__(MaskedDQN)
    dqn.q_net = lambda given: values  # type: ignore[assignment]
    log_prob, worth, chosen = guide._heads(dqn, seen, actions)
    assert log_prob.tolist() == pytest.approx(
        [2 - math.log(math.exp(0.5) + math.exp(2)), 4 - math.log(math.exp(4) + math.exp(1))]
    )
    assert worth.tolist() == [2.0, 4.0] and chosen.tolist() == [1, 0]
    policy = SimpleNamespace(
        extract_features=lambda given: given * 2, mlp_extractor=lambda given: (values, given),
        value_net=lambda latent: latent.sum(1, keepdim=True),
    )  # fmt: skip
    log_prob, worth, chosen = guide._heads(SimpleNamespace(policy=policy), seen, actions)  # type: ignore[arg-type]
    assert log_prob.tolist() == pytest.approx(
        [2 - math.log(math.exp(0.5) + math.exp(2)), 4 - math.log(math.exp(4) + math.exp(1))]
    )
    assert worth.tolist() == [6.0, 4.0] and chosen.tolist() == [1, 0]


class Shown:
    """Two environments of three slots and two columns (the guide's is the second), as a dict or
    one vector."""

    num_envs = 2

    def __init__(self, whole: bool) -> None:
        box, state = spaces.Box(-5, 5, (6,), np.float32), spaces.Box(-7, 7, (2,), np.float32)
        self.whole = whole
        self.observation_space: Any = (
            spaces.Box(-np.arange(11, dtype=np.float32) - 1, np.arange(11, dtype=np.float32) + 1)
            if whole
            else spaces.Dict({"candidates": box, "mask": spaces.MultiBinary(3), "state": state})
        )
        self.action_space, self.render_mode = spaces.Discrete(3), None
        self.rows = np.array([[9, 4, 8, 2, 7, 2], [6, 1, 5, 0, 4, 3]], np.float32)
        self.mask = np.array([[1, 1, 1], [1, 0, 1]], np.int8)

    def shown(self) -> Any:
        state = np.array([[1, 2], [3, 4]], np.float32)
        if self.whole:
            return np.concatenate([self.rows, self.mask, state], axis=1)
        return {"candidates": self.rows, "mask": self.mask, "state": state}

    def get_attr(self, name: str, indices: Any = None) -> list[Any]:
        return [getattr(self, name)] * 2

    def reset(self) -> Any:
        return self.shown()

    def step_async(self, actions: Any) -> None:
        self.took = actions

    def step_wait(self) -> Any:
        last = self.shown()
        last = last[0] if self.whole else {name: part[0] for name, part in last.items()}
        infos = [{"terminal_observation": last}, {}]
        return self.shown(), np.array([-1.0, -2.0]), np.array([True, False]), infos


@pytest.mark.parametrize("whole", [True, False])
def test_a_guide_is_asked_and_the_agent_sees_its_own_columns(whole: bool) -> None:
    def lowest(priority: Any) -> Any:
        return priority

    made = guide.Guide(load_policy(lowest), ("running_requests",))
    columns = Columns.of(made.features, {"priority": (0.0, 1.0)})
    inner: Any = Shown(whole)
    env = guide.Guided(inner, made, columns, 1)
    seen = env.reset()
    if whole:
        assert seen.tolist() == [[9, 8, 7, 1, 1, 1, 1, 2], [6, 5, 4, 1, 0, 1, 3, 4]]
        assert env.observation_space.high.tolist() == [1, 3, 5, 7, 8, 9, 10, 11]
        assert env.observation_space.low.tolist() == [-1, -3, -5, -7, -8, -9, -10, -11]
    else:
        assert seen["candidates"].tolist() == [[9, 8, 7], [6, 5, 4]]
        assert seen["mask"].tolist() == inner.mask.tolist()
        assert env.observation_space["candidates"] == spaces.Box(-5, 5, (3,), np.float32)
        assert set(env.observation_space.spaces) == {"candidates", "mask", "state"}
    assert env.observation_space.dtype in (np.float32, None)
    # of 4, 2 and 2 the first of the lowest; of 1 and 3 the first, the middle one is not there
    assert env.choices.tolist() == [1, 0]
    assert (env.sizes.columns, env.sizes.slots, env.sizes.state, env.penalty) == (1, 3, 2, 0.0)
    env.penalty = 0.25
    for actions, left in (([2, 0], [0, 0]), ([0, 2], [1, 1]), ([1, 0], [0, 0])):
        _, rewards, done, infos = env.step(np.array(actions))
        assert rewards.tolist() == [-1.0 - 0.25 * left[0], -2.0 - 0.25 * left[1]]
        assert done.tolist() == [True, False] and inner.took.tolist() == actions
        last = infos[0]["terminal_observation"]
        assert (last[:3] if whole else last["candidates"]).tolist() == [9, 8, 7]
    # what float32 rounds is no difference, what is more is one
    inner.rows[0, 1::2] = [1000.0005, 1000.0, 1000.002]
    env.reset()
    assert env.choices[0] == 0
    assert env.step(np.array([0, 0]))[1].tolist() == [-1.0, -2.0]
    assert env.step(np.array([2, 0]))[1].tolist() == [-1.25, -2.0]


def test_demonstrations_stray_one_time_in_ten_by_their_seed() -> None:
    class Env:
        num_envs, sizes = 50, Sizes(4, 1, 0)
        choices = np.zeros(50, np.int64)

        def __init__(self) -> None:
            self.taken: list[Any] = []

        def reset(self) -> Any:
            return {"candidates": np.zeros((50, 4), np.float32), "mask": np.ones((50, 4), np.int8)}

        def step(self, actions: Any) -> Any:
            self.taken.append(np.array(actions))
            return self.reset(), np.zeros(50), np.zeros(50, bool), []

    first, again = Env(), Env()
    batch, choices, returns = guide._demonstrations(first, 0.5, 990, 3)  # type: ignore[arg-type]
    assert len(first.taken) == 20 and choices.shape == (1000,)
    assert batch(np.arange(7))["mask"].shape == (7, 4) and returns.dtype == torch.float32
    np.random.seed(77)
    guide._demonstrations(again, 0.5, 990, 3)  # type: ignore[arg-type]
    rng = np.random.default_rng(3)
    strays = np.array([rng.random(50) < 0.1 for _ in range(20)])
    taken = np.array(first.taken)
    assert not taken[~strays].any() and 0.5 < (taken[strays] > 0).mean() < 0.95
    assert np.array_equal(taken, again.taken)


# Action values


def test_double_dqn_takes_gradient_steps_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Huber loss, gradients no longer than ``max_grad_norm``, against torch alone."""
    rng = np.random.default_rng(0)
    batches = [
        SimpleNamespace(
            observations=torch.from_numpy(rng.normal(size=(6, 3)).astype(np.float32)),
            actions=torch.from_numpy(rng.integers(0, 2, (6, 1)).astype(np.int32)),
        )
        for _ in range(3)
    ]
    goals = torch.from_numpy(rng.normal(size=(6, 1)).astype(np.float32) * 9)
    sampled: list[Any] = []
    queue = iter(batches)

    def sample(count: int, env: Any) -> Any:
        sampled.append((count, env))
        return next(queue)

    torch.manual_seed(0)
    net, mine = nn.Linear(3, 2), nn.Linear(3, 2)
    mine.load_state_dict(net.state_dict())
    modes: list[bool] = []
    policy: Any = SimpleNamespace(
        set_training_mode=modes.append, optimizer=torch.optim.SGD(net.parameters(), lr=0.5),
        parameters=net.parameters,
    )  # fmt: skip
    said: dict[str, Any] = {}
    made = MaskedDQN.__new__(MaskedDQN)
    given: dict[str, Any] = {
        "policy": policy, "q_net": net, "max_grad_norm": 0.7, "_n_updates": 5,
        "replay_buffer": SimpleNamespace(sample=sample), "_vec_normalize_env": "norm",
        "_logger": SimpleNamespace(record=lambda name, value, **more: said.update({name: value})),
    }  # fmt: skip
    for name, value in given.items():
        setattr(made, name, value)
    rates: list[Any] = []
    monkeypatch.setattr(MaskedDQN, "_update_learning_rate", lambda self, one: rates.append(one))
    monkeypatch.setattr(MaskedDQN, "targets", lambda self, replay: goals)
    made.train(3, batch_size=6)
    losses = []
    optimiser = torch.optim.SGD(mine.parameters(), lr=0.5)
    for one in batches:
        values = mine(one.observations).gather(1, one.actions.long())
        loss = functional.huber_loss(values, goals)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(mine.parameters(), 0.7)
        optimiser.step()
        losses.append(loss.item())
    assert torch.allclose(net.weight, mine.weight) and torch.allclose(net.bias, mine.bias)
    assert sampled == [(6, "norm")] * 3 and modes == [True] and rates == [policy.optimizer]
    assert said == {"train/n_updates": 8, "train/loss": pytest.approx(np.mean(losses))}
    assert made._n_updates == 8
    assert defaults(MaskedDQN.train, batch_size=100)


def test_exploring_is_legal_and_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 4000
    seen = {"mask": np.tile([[0, 1, 1]], (count, 1))}
    made = MaskedDQN.__new__(MaskedDQN)
    greedy: Any = SimpleNamespace(
        predict=lambda *of: (np.zeros(count, np.int64), "state"),
        q_net=SimpleNamespace(features_extractor=SimpleNamespace(sizes=Sizes(3, 1, 0))),
    )  # fmt: skip
    made.policy, made.exploration_rate = greedy, 0.25
    np.random.seed(0)
    actions, state = made.predict(seen)
    assert state == "state"
    assert (actions > 0).mean() == pytest.approx(0.25, abs=0.03)  # no greedy choice is 1 or 2
    assert (actions == 1).sum() == pytest.approx((actions == 2).sum(), rel=0.2)
    assert not made.predict(seen, deterministic=True)[0].any()
    made.exploration_rate = 1.0
    assert (made.predict(seen)[0] > 0).all() and not made.predict(seen, deterministic=True)[0].any()
    made.exploration_rate = 0
    assert not made.predict(seen)[0].any()
    # at first all is random, and what is stored is what was done
    made._last_obs, made.num_timesteps = seen, 9
    first, stored = made._sample_action(10)
    assert (first > 0).all() and stored is first
    made.num_timesteps = 10
    assert not made._sample_action(10)[0].any()
    assert defaults(MaskedDQN.predict, deterministic=False)
    mask = np.array([[0, 0, 1]])
    assert masked_dqn.random_legal(mask).tolist() == [2]


def test_values_of_choices_are_the_state_s_and_what_is_above_the_mean_score() -> None:
    torch.manual_seed(1)
    sizes = Sizes(3, 2, 1)
    net = scorer._Dueling(sizes, [4, 5])
    rows = torch.tensor([1.0, 2.0, 3.0, -1.0, 9.0, 9.0])
    flat = torch.stack([
        torch.cat([rows, torch.tensor([1.0, 1.0, 0.0]), torch.tensor([7.0])]),
        torch.cat([rows, torch.tensor([1.0, 1.0, 1.0]), torch.tensor([7.0])]),
        torch.cat([rows, torch.tensor([0.0, 0.0, 0.0]), torch.tensor([7.0])]),
        torch.cat([rows, torch.tensor([0.0, 1.0, 0.0]), torch.tensor([7.0])]),
    ])  # fmt: skip
    with torch.no_grad():
        for weights in net.parameters():
            weights.normal_()
    found = net(flat)
    logits, latent = net.net(flat)
    for row, there in ((0, [0, 1]), (1, [0, 1, 2]), (3, [1])):
        worth = net.value(latent[row])
        wanted = worth + logits[row, there] - logits[row, there].mean()
        assert found[row, there].tolist() == pytest.approx(wanted.tolist(), rel=1e-5)
    assert found[0, 2] == -1e8 == scorer.ILLEGAL
    assert found[2].tolist() == [-1e8] * 3  # nobody there: nothing is divided by none


def test_weights_begin_orthogonal_and_small_where_they_choose() -> None:
    torch.manual_seed(0)
    net = CandidateNet(Sizes(3, 4, 2), [16, 8])

    def gain(layer: Any) -> float:
        weight = layer.weight.detach()
        small = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
        scale = float(small.diagonal().mean())
        assert torch.allclose(small, scale * torch.eye(len(small)), atol=1e-5)
        assert not layer.bias.any()
        return scale**0.5

    first, second, last = net.score[0], net.score[2], net.score[4]
    assert [gain(one) for one in (first, second, last)] == pytest.approx([2**0.5, 2**0.5, 0.01])
    assert gain(net.embed[0]) == pytest.approx(2**0.5) == gain(net.pool[0])
    assert (net.embed[0].out_features, net.pool[0].in_features) == (16, 2 * 16 + 2)
    assert (net.pool[0].out_features, net.latent_dim_pi, net.latent_dim_vf) == (8, 3, 8)
    assert gain(scorer._Dueling(Sizes(3, 4, 2), [16, 8]).value) == pytest.approx(1.0)
    assert [type(one).__name__ for one in net.score] == [
        "Linear",
        "Tanh",
        "Linear",
        "Tanh",
        "Linear",
    ]


def test_observations_become_one_vector() -> None:
    sizes = Sizes(2, 3, 1)
    assert sizes.length == 2 * 4 + 1
    parts = spaces.Dict(
        candidates=spaces.Box(-1, 1, (6,)), mask=spaces.MultiBinary(2),
        state=spaces.Box(-1, 1, (1,)),
    )  # fmt: skip
    assert Sizes.of(parts, 2, 3) == sizes == Sizes.of(spaces.Box(-1, 1, (9,)), 2, 3)
    flat = scorer.Flat(parts, sizes)
    whole = torch.arange(9.0)[None]
    assert flat(whole) is whole
    found = flat({"state": whole[:, 8:], "mask": torch.tensor([[1, 0]], dtype=torch.int8),
                  "candidates": whole[:, :6]})  # fmt: skip
    assert found.tolist() == [[0, 1, 2, 3, 4, 5, 1, 0, 8]] and found.dtype == torch.float32


@pytest.mark.parametrize("algo", ["ppo", "maskable-ppo", "dqn"])
def test_the_network_stands_where_stable_baselines3_has_its_own(algo: str) -> None:
    vector = vectors.make_vector(
        RoutingEnv, {"workload": burst, "timing": TICK, "replicas": 2}, 2
    )  # fmt: skip
    settings = agents.settings_for(algo, {"learning_rate": 0.004})
    agent: Any = agents.make_agent(algo, vector, 4, settings, [8, 6], 3)
    assert agent.policy.optimizer.param_groups[0]["lr"] == pytest.approx(0.004)
    assert str(agent.device) == "cpu"
    layers, skip = scorer.score_layers(agent.policy), scorer.score_skip(agent.policy)
    assert [weight.shape for weight, _ in layers] == [(8, 4), (6, 8), (1, 6)]
    assert [bias.shape for _, bias in layers] == [(8,), (6,), (1,)]
    assert all(part.dtype == np.float64 for pair in layers for part in pair)
    assert skip.tolist() == [0.0] * 4
    seen = torch.randn(1, 2 * 5 + 4)
    seen[0, 8:10] = 1.0
    if algo == "dqn":
        assert torch.equal(agent.q_net(seen), agent.q_net_target(seen))
        values = agent.q_net(seen)[0]
        scores = agent.q_net.q_net.net.forward_actor(seen)[0]
        apart = (scores[0] - scores[1]).item()
        assert (values[0] - values[1]).item() == pytest.approx(apart, abs=1e-5)
        return
    value = agent.policy.value_net
    assert isinstance(agent.policy.action_net, nn.Identity) and value.in_features == 6
    assert float(value.weight.detach().norm()) == pytest.approx(1.0, rel=1e-4)
    assert (agent.n_steps, agent.batch_size) == (8192, 4096)


# The evolution strategy


def test_a_search_starts_at_its_baseline_in_units_of_its_terms() -> None:
    """Terms of spreads 2 and 4: three of the first are 1 in its own units, 1/2 of a weight."""
    tried: list[Any] = []

    def costs(policies: Any) -> Any:
        tried.append(policies)
        return np.ones((len(policies), 2, 3))

    given: dict[str, Any] = {
        "best": np.ones((2, 3)), "best_validation": np.full((2, 3), 0.5),
        "scales": {"predicted": 2.0, "prompt": 4.0}, "goal": evolution.Goal(regret=0.0),
        "evaluations": 8, "population": 4,
    }  # fmt: skip
    found = evolution.search("scheduling", costs, costs, start={"predicted": 3.0}, **given)
    assert found.weights == {"predicted": 0.5, "prompt": 0.0}
    assert found.fitness == found.start_fitness == pytest.approx(math.log(2))
    assert not found.improved and found.start == {"predicted": 3.0}
    assert [len(one) for one in tried] == [1, 4, 4, 2]
    start = tried[0][0]
    assert start.score.features == ("predicted_tokens",)
    # a term of the start that has no scale counts as it is
    found = evolution.search(
        "scheduling", costs, costs, start={"arrival": 3.0, "predicted": 2.0}, **given
    )
    assert found.weights == pytest.approx({"predicted": 2 / 5, "prompt": 0.0, "arrival": 3 / 5})
    assert list(found.weights) == ["predicted", "prompt", "arrival"]


def test_candidates_are_cma_s_own() -> None:
    """The first generation of the package by that name, of the same numbers."""
    from cma import CMAEvolutionStrategy

    rng = np.random.default_rng(5)
    strategy = CMAEvolutionStrategy(
        [1.0, 0.5], 0.25,
        {"popsize": 6, "CMA_diagonal": True, "verbose": -9, "seed": np.nan,
         "randn": lambda *shape: rng.standard_normal(shape)},
    )  # fmt: skip
    search = evolution.Search(np.array([1.0, 0.5]), 0.25, 6, 5)
    for _ in range(3):
        asked, theirs = search.ask(), strategy.ask()
        assert np.array_equal(asked, theirs)
        values = [float((row**2).sum()) for row in asked]
        search.tell(values)
        strategy.tell(theirs, values)
    assert search.mean.tolist() == np.asarray(strategy.mean).tolist() and search.generation == 3


def test_scales_of_arrivals_are_over_a_hundred_in_a_row_and_of_routers_over_replicas() -> None:
    arrival = np.cumsum(np.random.default_rng(0).exponential(1.0, 250))
    work = Workload({"arrival_s": arrival, "prompt_tokens": np.arange(1, 251),
                     "output_tokens": np.ones(250, int)})  # fmt: skip
    nodes = tuple(
        Node(Engine(max_num_seqs=seats), TICK, load_policy("fcfs")) for seats in (1, 2, 8)
    )
    one: Any = SimpleNamespace(workload=work, system=System(nodes, load_router("jsq")), seed=0,
                               predictions=None)  # fmt: skip
    found = evolution.scales_of([one], "scheduling", ("arrival", "prompt"), load_policy("fcfs"))
    halves = [np.std(arrival[:125]), np.std(arrival[125:])]
    assert found == pytest.approx([np.mean(halves), np.std(np.arange(250))])
    short: Any = SimpleNamespace(**{**vars(one), "workload": work.head(60)})
    (arrivals,) = evolution.scales_of([short], "scheduling", ("arrival",), load_policy("fcfs"))
    assert arrivals == pytest.approx(np.std(arrival[:60]))
    # requests at three replicas, as the shorter queue is joined
    seen: list[list[float]] = []
    going = evolution.begin(work, one.system, None, seed=0, backend="reference")
    rows = np.zeros((3, 2))
    names = ("running_requests", "waiting_requests")
    while going.advance(evolution.Stops(route=True)).kind == "route":
        going.features(names, rows)
        seen.append(rows.sum(axis=1).tolist())
        going.answer(int(np.argmin(rows.sum(axis=1))))
    spread = np.mean([np.std(row) for row in seen])
    (found,) = evolution.scales_of([one], "routing", ("requests",), load_router("jsq"))
    assert found == pytest.approx(spread)


def test_a_policy_s_cost_is_a_number_above_nothing() -> None:
    work = burst(0)
    system = System((Node(Engine(max_num_seqs=1), TICK, load_policy("fcfs")),), load_router("jsq"))
    one: Any = SimpleNamespace(workload=work, system=system, seed=0, name="one",
                               predictions=work["output_tokens"] * 1.0)  # fmt: skip
    mean, p99, normalized = evolution.costs_of(one, load_policy("sjf"))
    ends = np.r_[np.arange(1, 7), np.arange(11, 37, 5)]
    outputs = np.repeat([1, 5], 6)
    assert mean == pytest.approx(ends.mean()) and p99 == pytest.approx(np.percentile(ends, 99))
    assert normalized == pytest.approx((ends / outputs).mean())
    for wrong in (math.inf, math.nan, 0.0, -1.0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                evolution, "METRICS",
                {"e2e_mean": lambda r: 1.0, "e2e_p99": lambda r, w=wrong: w,
                 "normalized_latency_mean": lambda r: 1.0},
            )  # fmt: skip
            with pytest.raises(InputError, match="must be a finite number above 0"):
                evolution.costs_of(one, load_policy("sjf"))


def test_evolving_starts_at_the_best_blend_and_keeps_each_generation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {}
    drawn: list[int] = []
    policy = evolution.policy_of("scheduling", ("predicted",), (1.0,))
    state = evolution.Evolved(policy, {}, 0.5, {}, 0.7, ((0, 0.7), (16, 0.5)), ((1.0, 2.0),), 16)

    class Source:
        loads = (0.5, 0.9)

        def __call__(self, seed: int) -> Any:
            drawn.append(seed)
            work = burst(seed)
            system = System(
                (Node(Engine(max_num_seqs=1), TICK, load_policy("fcfs")),), load_router("jsq")
            )
            return Episode(
                work, system, Predictions({"predicted_tokens": work["output_tokens"] * 1.0}), seed,
                1.0, "w",
            )  # fmt: skip

    def search(kind: str, costs: Any, validate: Any, **given: Any) -> Any:
        asked.update(given, kind=kind)
        asked["ended"] = given["after"](state)
        return state

    monkeypatch.setattr(evolve.es, "search", search)
    judges = [load_policy("fcfs"), load_policy("hrrn"), load_policy("sjf")]
    settings = {**evolve.SETTINGS, "episodes": 3, "evaluations": 50, "population": 5, "sigma": 0.1,
                "regret": 2.0}  # fmt: skip
    stop: Any = SimpleNamespace(signal=None)
    given: dict[str, Any] = {
        "folder": tmp_path, "settings": settings, "seed": 4, "validation": [Source()(9)],
        "judges": judges, "resume": False, "stop": stop, "diagonal": False,
    }  # fmt: skip
    drawn.clear()
    found, _ = evolve.evolve(Source(), "scheduling", **given)
    assert drawn == [2**30 + 12, 2**30 + 13, 2**30 + 14]
    assert asked["start"] == {"predicted": 1.0}  # sjf's: hrrn is no blend, fcfs is worse
    assert (asked["evaluations"], asked["population"], asked["sigma"], asked["seed"]) == (
        50, 5, 0.1, 4
    )  # fmt: skip
    assert asked["goal"] == evolution.Goal(regret=2.0) and asked["diagonal"] is False
    assert list(asked["scales"]) == list(evolution.FAMILIES["scheduling"])
    assert asked["told"] == [] and asked["ended"] is False
    assert asked["best"].shape == (3, 3) and asked["best_validation"].shape == (1, 3)
    assert read_checkpoint(tmp_path / "checkpoint.pt") == {"told": [[1.0, 2.0]]}
    assert json.loads((tmp_path / "evaluations.json").read_text()) == {
        "fitness": [[0, 0.7], [16, 0.5]], "start": "sjf"
    }  # fmt: skip
    assert found.trained_on is not None and ("load", 0.5, 0.9) in found.trained_on.ranges
    assert read_bundle(tmp_path / "bundle").score.features == policy.score.features
    stop.signal = signal.SIGTERM
    evolve.evolve(Source(), "scheduling", **{**given, "resume": True})
    assert asked["ended"] is True and asked["told"] == [[1.0, 2.0]]
    evolve.evolve(Source(), "scheduling", **given)
    assert asked["told"] == []  # what is there is not taken up unasked
    with pytest.raises(InputError, match="none of the baselines hrrn is a blend"):
        evolve.evolve(Source(), "scheduling", **{**given, "judges": judges[1:2]})


# Judging


def test_what_is_judged_on_which_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    said: list[str] = []

    def windows(workload: Any, *, requests: int, rate: Any, test: int, tuning: int) -> Any:
        asked.append((workload.name, requests, rate, test, tuning))
        tuned, tested = (
            tuple(Window(workload.at_rate(k + 1.0), first + k) for k in range(count))
            for first, count in ((50, tuning), (90, test))
        )
        return Windows(workload.name, tuned, tested, (f"{workload.name} is short",))

    tuned: list[Any] = []

    def tune(policy: Any, runs: Any, *, budget: int) -> Any:
        tuned.append((policy.name, [one.seed for one in runs], budget))
        return load_policy("work:b=0.5") if policy.name == "work:b=0.25" else policy

    judged: list[Any] = []

    def judge(baselines: Any, ours: Any, trials: Any, measure: Any) -> Any:
        names = [one.name for one in baselines]
        judged.append((names, [one.name for one in ours], [one.seed for one in trials],
                       [one.workload.rate for one in trials]))  # fmt: skip
        return [{"policy": "p"}]

    saturated: list[Any] = []

    def saturation(workload: Any, system: Any) -> float:
        saturated.append(workload.rate)
        return 8.0

    for name, value in {"windows_of": windows, "tune": tune, "judge": judge,
                        "saturation_rate": saturation}.items():  # fmt: skip
        monkeypatch.setattr(judging, name, value)
    one = burst(0).replace(arrival_s=np.arange(12.0))
    other = Workload({name: one[name] for name in ("arrival_s", "prompt_tokens", "output_tokens")},
                     name="other")  # fmt: skip
    given: dict[str, Any] = {
        "timing": TICK, "engine": {"max_num_seqs": 1}, "seeds": 2, "requests": 7,
        "baseline_names": ("fcfs", "work:b=0.25", "hrrn"), "say": said.append,
    }  # fmt: skip
    rows = judging.evaluate_policy(load_policy("sjf"), [one, other], rate=3.0, **given)
    assert asked == [("burst", 7, 3.0, 2, 0), ("other", 7, 3.0, 2, 0)]
    assert said == ["burst is short", "other is short"] and not tuned and not saturated
    assert rows == [
        {"workload": name, "load": None, "rate_requests_per_s": pytest.approx(1.5), "policy": "p"}
        for name in ("burst", "other")
    ]
    assert judged[0][:3] == (["fcfs", "work:b=0.25", "hrrn"], ["sjf"], [90, 91])
    for log in (asked, said, judged):
        log.clear()
    rows = judging.evaluate_policy(
        load_policy("sjf"), one, loads=(0.5, 1.0), tuning=True, budget=16, **given
    )
    assert asked == [("burst", 7, None, 2, 2)] and saturated == [pytest.approx(1.0)]
    # four windows to tune on at 16 runs: no more than asked for
    assert tuned == [(name, [50, 51, 50, 51], 16) for name in ("fcfs", "work:b=0.25", "hrrn")]
    assert said[0] == "burst is short"
    assert [line for line in said[1:] if "fcfs" in line] == []  # it has nothing to tune
    assert said[1:] == ["hrrn: nothing was found that is better than its defaults"]
    assert judged[0][0] == ["fcfs", "work:b=0.25", "hrrn", "work:b=0.5"]
    assert [row[3] for row in judged] == [pytest.approx([4.0] * 2), pytest.approx([8.0] * 2)]
    assert [row["load"] for row in rows] == [0.5, 1.0]
    tuned.clear()
    said.clear()
    judging.evaluate_policy(
        load_policy("sjf"), one, loads=(0.5, 1.0), tuning=True, budget=15, **given
    )
    assert tuned[0][2] == 16
    assert "4 windows to tune on: 16 runs for each baseline, not 15" in said
    judging.evaluate_policy(load_policy("sjf"), one, tuning=True, **{**given, "say": None})
    judging.evaluate_policy(
        load_policy("sjf"), one, **{**given, "baseline_names": None, "seeds": 1, "requests": 1}
    )
    assert judged[-1][0] == ["fcfs", "sjf", "work"]
    judging.evaluate_policy(load_router("jsq"), one, **{**given, "baseline_names": None})
    assert judged[-1][0] == list(judging.BESIDE["routing"])


def test_bundles_and_runs_are_read_by_their_folders(tmp_path: Path) -> None:
    policy = evolution.policy_of("scheduling", ("predicted",), (1.0,))
    write_bundle(policy, tmp_path / "run" / "bundle")
    for given in (tmp_path / "run", tmp_path / "run" / "bundle"):
        found = judging._read(str(given))
        assert found.name == str(given) and found.score.features == policy.score.features
    assert judging._read(policy) is policy
    with pytest.raises(InputError, match="neither a bundle nor a finished training run"):
        judging._read(tmp_path)
    for empty in ([], ()):
        with pytest.raises(InputError, match="judging needs a policy and a workload"):
            judging._several(empty)
    trial = judging._trial(
        Window(burst(0).replace(arrival_s=np.arange(12.0)), 5), 4.0,
        System((Node(Engine(), TICK, policy),), load_router("jsq")), "noisy-oracle:sigma=1",
    )  # fmt: skip
    assert trial.workload.rate == pytest.approx(4.0) and trial.seed == 5
    assert judging._trial(Window(burst(0), 5), None, trial.system, None).predictions is None


# The base


def test_scales_are_of_what_is_shown_and_returns_are_discounted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two environments of two candidates, of which the second is not always there."""
    rng = np.random.default_rng(0)
    shown = rng.normal(3.0, 2.0, (6, 2, 2, 2))  # step, environment, candidate, column
    shown[..., 1] = 4.0  # never varies: keeps its scale
    masks = np.ones((6, 2, 2))
    masks[::2, :, 1] = 0
    rewards = -rng.exponential(2.0, (5, 2))
    step = itertools.count()

    def observed(k: int) -> dict[str, Any]:
        return {"candidates": shown[k].reshape(2, 4), "mask": masks[k], "state": np.zeros((2, 1))}

    def stepped(actions: Any) -> Any:
        k = next(step)
        assert masks[k][np.arange(2), actions].all()
        return observed(k + 1), rewards[k], None, None

    space = spaces.Dict({"state": spaces.Box(0, 1, (1,))})
    env = SimpleNamespace(
        observation_space=space, action_space=SimpleNamespace(n=2), num_envs=2,
        seed=lambda seed: None, reset=lambda: observed(0), step=stepped,
    )  # fmt: skip
    named = [SimpleNamespace(name="a", shift=1.0, scale=10.0),
             SimpleNamespace(name="b", shift=0.0, scale=1.0)]  # fmt: skip
    columns: Any = SimpleNamespace(names=["a", "b"], columns=named)
    monkeypatch.setattr(calibration, "STEPS", 9)  # five of two: as many as are needed
    found = calibration.calibrate(env, columns, 0.5, seed=0)  # type: ignore[arg-type]
    assert next(step) == 5
    seen = np.concatenate([shown[k][masks[k] > 0] for k in range(5)])[:, 0]
    assert found.features == {
        "a": (pytest.approx(1 + 10 * seen.mean()), pytest.approx(10 * seen.std()))
    }
    sums = [sum(0.5 ** (k - i) * rewards[i] for i in range(k + 1)) for k in range(5)]
    assert found.reward == pytest.approx(np.std(sums))
    rewards[:] = 0.0
    step = itertools.count()
    assert calibration.calibrate(env, columns, 0.5, seed=0).reward == 1.0  # type: ignore[arg-type]
    rewards[3, 1] = -math.inf
    step = itertools.count()
    with pytest.raises(InputError, match="a step's cost is inf; a cost must be a finite number"):
        calibration.calibrate(env, columns, 0.5, seed=0)  # type: ignore[arg-type]


def test_the_base_is_a_weighted_ridge_over_embeddings_and_terms(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Against scikit-learn's: sources count by the root of their prompts, each fold is held out."""
    rng = np.random.default_rng(0)
    n = 80
    prompts = [f"{'list' if i % 3 else 'story'} number {i} {'please ' * (i % 4)}" for i in range(n)]
    rows = pd.DataFrame({
        "prompt": prompts, "label": rng.normal(size=n), "tokens": rng.integers(5, 900, n),
        "source": ["a"] * 50 + ["b"] * 20 + ["c"] * 10,
        "spread": [0.5] * 50 + [0.9] * 20 + [0.6] * 10,
    })  # fmt: skip
    rows.loc[70:, "tokens"] += 3000  # the mean of the sources is not the median
    embedding = rng.normal(2.0, 3.0, (n, 4))
    features = base._common(prompts)
    seen: dict[str, Any] = {}
    kept = base.Pretrained
    monkeypatch.setattr(base, "Pretrained", lambda *given: seen.update(given=given) or kept(*given))
    state, arrays = base.train(rows, embedding)
    assert state == {"terms": list(features.terms)} and len(features.terms) > 3
    scaled = (embedding - embedding.mean(axis=0)) / (embedding.std(axis=0) * 2)
    sparse = features.rows(prompts)
    text = np.zeros((n, sparse.width))
    for row, (begin, end) in enumerate(zip(sparse.starts[:-1], sparse.starts[1:], strict=True)):
        text[row, sparse.columns[begin:end]] = sparse.values[begin:end]
    matrix = np.hstack((scaled, text))
    weights = np.repeat([1 / 50**0.5, 1 / 20**0.5, 1 / 10**0.5], [50, 20, 10])
    weights /= weights.mean()

    def ridge(some: Any) -> Any:
        solver = Ridge(alpha=5.0, solver="cholesky")
        return solver.fit(matrix[some], rows["label"][some], sample_weight=weights[some])

    whole = ridge(np.arange(n))
    _, of_text, shift, scale, of_embedding, intercept = seen["given"]
    assert of_embedding == pytest.approx(whole.coef_[:4], abs=1e-4)
    assert np.ravel(of_text) == pytest.approx(whole.coef_[4:], abs=1e-4)
    assert float(np.ravel(intercept)[0]) == pytest.approx(whole.intercept_, abs=1e-4)
    assert shift == pytest.approx(embedding.mean(axis=0))
    assert scale == pytest.approx(2 * embedding.std(axis=0))
    log = np.log(rows["tokens"].to_numpy(float))
    centre = [(log[:50].mean() + log[50:70].mean() + log[70:].mean()) / 3, 0.6]
    assert arrays["centre"].tolist() == pytest.approx(centre)
    # what is calibrated is what each prompt is given by the other folds
    folds = base.folds_of(prompts, 0)
    unseen = np.empty(n)
    for fold in range(folds.max() + 1):
        others = np.flatnonzero(folds != fold)
        unseen[folds == fold] = ridge(others).predict(matrix[folds == fold])
    raw = (centre[0] + centre[1] * unseen)[:, None]
    tokens = rows["tokens"].to_numpy(float)
    target = base.targets.Exact(1.0, float(tokens.max())).calibrated(raw, tokens)
    for name, value in target.arrays().items():
        assert arrays[f"target.{name}"] == pytest.approx(value, rel=1e-2, abs=1e-2)


def test_the_base_s_command_writes_its_folder_with_its_own_card(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = pd.DataFrame(
        {"prompt": ["p", "q", "r"], "source": ["oasst_sampling"] * 2 + ["mmlu_pro"]}
    )
    asked: list[Any] = []
    monkeypatch.setattr(base, "read", lambda data, out: asked.append((data, out)) or rows)
    monkeypatch.setattr(
        base, "embedded", lambda prompts, cache: asked.append((prompts, cache)) or np.ones((3, 2))
    )
    monkeypatch.setattr(base, "train", lambda rows, embedding: ({"terms": []}, {"x": np.ones(2)}))
    monkeypatch.setattr("sys.argv", ["base", "data", "--out", str(tmp_path / "made"), "--leave-out",
                                     "mmlu_pro", "--cache", "c.npz"])  # fmt: skip
    base.main()
    assert asked == [(Path("data"), "mmlu_pro"), (["p", "q", "r"], Path("c.npz"))]
    said = capsys.readouterr().out
    assert said == f"wrote {tmp_path / 'made'}: 3 prompts of 2 sources\n"
    card = (tmp_path / "made" / "README.md").read_text()
    assert card == base.card(rows)
    assert "| `oasst_sampling` | Open-Assistant/oasst-model-eval, Apache-2.0 | 2 |" in card
    assert "| `mmlu_pro` | TIGER-AI-Lab/MMLU-Pro, Apache-2.0 | 1 |" in card
    assert "gsm8k" not in card and "up to 8,000\nwords" in card and "at least 5 prompts" in card
    saved = base.folder.read(tmp_path / "made") if hasattr(base.folder, "read") else None
    assert saved is None or saved.name == "base"


# Intelligent Router


def test_latencies_of_a_regime_are_those_of_its_replicas() -> None:
    seats = intelligent_router.TAUGHT
    found = intelligent_router.mean_latencies(seats, 200.0, "jsq", 40, [3, 4])
    assert len(found) == 2
    from lengthwise.serving import run

    for seed, mean in zip((3, 4), found, strict=True):
        work = intelligent_router.five_tasks(40, 200.0, 1_000_000 + seed)
        nodes = (intelligent_router.node(Engine(max_num_seqs=16)),) * 4
        records = run(
            work, System(nodes, load_router("jsq")), work["output_tokens"] * 1.0, seed=seed
        )
        wanted = ((records.finish_ps - records.arrival_ps) / 1e12).mean()
        assert mean == pytest.approx(wanted, rel=1e-9)


def test_what_a_replica_sustains_leaves_its_emptying_out(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def run(work: Any, system: Any) -> Any:
        asked.append((len(work), float(work["arrival_s"].max()), len(system.nodes)))
        return SimpleNamespace(finish_ps=np.arange(4000)[::-1] * 10**10)

    monkeypatch.setattr(intelligent_router, "run", run)
    assert intelligent_router.sustained(Engine(max_num_seqs=2)) == pytest.approx(3200 / 32.0)
    assert asked == [(4000, 0.0, 1)]


def test_a_learner_has_enough_evaluations_however_few_its_steps(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        "lengthwise.training.policy.train_policy",
        lambda env, **given: asked.append(given) or SimpleNamespace(bundle="jsq"),
    )
    intelligent_router.train("ES", 8.0, 50, 100, tmp_path)
    intelligent_router.train("RL", 8.0, 50, 4, tmp_path)
    assert asked[0]["settings"]["evaluations"] == 16 and asked[1]["eval_every"] == 1
    assert asked[1]["env_options"]["engine"] == Engine(max_num_seqs=16)
    assert asked[1]["env_options"]["requests"] == 50


# Predictors


def test_predictors_learn_by_weights_or_by_how_often_they_see_a_row() -> None:
    from tests.test_training_by_hand import prompts as made

    heard: list[Any] = []

    class Weighs:
        needs: frozenset[str] = frozenset()

        def fit(self, prompts: Any, lengths: Any, *, prompt_tokens: Any, censored: Any,
                weights: Any = None) -> Any:  # fmt: skip
            heard.append((prompts, lengths.tolist(), prompt_tokens.tolist(), censored.tolist(),
                          weights))  # fmt: skip

    class Plain(Weighs):
        def fit(self, prompts: Any, lengths: Any, *, prompt_tokens: Any, censored: Any) -> Any:  # type: ignore[override]
            heard.append((prompts, lengths.tolist()))

    rows = made("a", 4)
    predictors._fit(Weighs(), rows, None, 0)  # type: ignore[arg-type]
    assert heard[0][1:] == ([10, 20, 30, 40], [1, 2, 3, 4], [False, True, False, False], None)
    weights = np.array([1.0, 0.0, 0.0, 3.0])
    predictors._fit(Weighs(), rows, weights, 0)  # type: ignore[arg-type]
    assert heard[1][4] is weights
    predictors._fit(Plain(), rows, weights, 0)  # type: ignore[arg-type]
    assert set(heard[2][1]) <= {10, 40} and 40 in heard[2][1]
    predictors._fit(Plain(), rows, None, 0)  # type: ignore[arg-type]
    assert heard[3][1] == [10, 20, 30, 40]


def test_what_was_trained_on_is_known_by_its_prompts_or_by_its_name(tmp_path: Path) -> None:
    from tests.test_training_by_hand import prompts as made

    rows, others = made("a", 60), made("b", 60)
    report = predictors.train_predictor(
        rows, model="constant", out=tmp_path / "p", test_share=0.5, dry_run=True
    )
    assert not (tmp_path / "p").exists() and set(report) == {
        "data", "notices", "model", "target", "train", "test"
    }  # fmt: skip
    train, test = rows.split("train", 0.5), rows.split("test", 0.5)
    assert (report["train"]["rows"], report["test"]["rows"]) == (len(train), len(test))
    predictors.train_predictor(rows, model="constant", out=tmp_path / "p", test_share=0.5)

    def said(data: Any, **given: Any) -> tuple[str, bool, int]:
        found = predictors.evaluate_predictor(tmp_path / "p", data, **given)
        return found["split"], found["trained_on"], found["test"]["rows"]

    assert said(rows) == ("test", False, len(test))
    assert said(rows, split="all") == ("all", True, 60)
    assert said(rows, split="train") == ("train", True, len(train))
    assert said(others) == ("all", False, 60)
    assert said(others, split="test")[:2] == ("test", False)
    with pytest.raises(InputError, match="give --split test, or another file"):
        said(rows, split="all", card=True)
    assert said(rows, card=True) == ("test", False, len(test))
    # older reports know the name alone
    path = tmp_path / "p" / "report.json"
    older = json.loads(path.read_text())
    del older["sketch"]
    path.write_text(json.dumps(older))
    assert said(rows) == ("test", False, len(test)) and said(others) == ("all", False, 60)
    assert said(rows, test_share=0.25)[2] == len(rows.split("test", 0.25))
    path.write_text(json.dumps({**older, "test_share": 0}))
    assert said(rows) == ("all", True, 60)
    with pytest.raises(InputError, match="there is no test split"):
        said(rows, split="test")
    with pytest.raises(InputError, match="give another file"):
        said(rows, card=True)


def test_a_folder_of_another_run_is_kept_unless_it_is_forced(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    runs.open_run(folder, {"a": 1}, resume=False)
    runs.write_config(folder, {"a": 1}, "cmd")
    (folder / "checkpoint.pt").write_text("x")
    with pytest.raises(InputError, match="holds a training run; resume it"):
        runs.check_run(folder, {"a": 1}, resume=False)
    runs.check_run(folder, {"a": 1}, resume=False, force=True)
    assert (folder / "checkpoint.pt").exists()  # nothing is touched yet
    runs.open_run(folder, {"a": 1}, resume=True, force=True)
    assert (folder / "checkpoint.pt").exists()
    runs.open_run(folder, {"a": 2}, resume=False, force=True)
    assert list(folder.iterdir()) == []
    (folder / "mine").write_text("x")
    with pytest.raises(InputError, match="holds other files; name a new folder"):
        runs.open_run(folder, {"a": 2}, resume=False, force=True)
    assert (folder / "mine").exists()
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(InputError, match="holds other files"):
        runs.open_run(file, {}, resume=False)


def test_groups_know_their_commands_without_importing_them() -> None:
    import click

    from lengthwise.training.groups import LazyGroup

    group = LazyGroup("lengthwise", commands_in={
        "list": ("listing:listing", "Lists."), "late": ("nowhere:late", "Is late."),
        "export": ("export:export", "Exports."),
    })  # fmt: skip
    ctx = click.Context(group, info_name="lengthwise")
    assert group.list_commands(ctx) == ["list", "late", "export"]
    found = [(one.value, one.help) for one in group.shell_complete(ctx, "l")]
    assert found == [("list", "Lists."), ("late", "Is late.")]
    assert [one.value for one in group.shell_complete(ctx, "--h")] == ["--help"]
    listing = group.get_command(ctx, "list")
    assert listing is not None and listing.name == "list"
    assert group.get_command(ctx, "lists") is None
    with pytest.raises(ModuleNotFoundError):
        group.get_command(ctx, "late")
    with pytest.raises(UnknownNameError, match=r"command 'lst' of 'lengthwise'.*'list'"):
        group.resolve_command(ctx, ["lst"])
    assert group.resolve_command(ctx, ["list", "policies"])[2] == ["policies"]
    help_text = group.get_help(ctx)
    assert "late    Is late." in help_text and "export  Exports." in help_text
