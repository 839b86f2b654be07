"""The parts of training, each on numbers worked out by hand: watching, judging, goals, networks."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from gymnasium import spaces

from lengthwise.context import Context
from lengthwise.envs.columns import Columns
from lengthwise.errors import InputError, UnknownNameError
from lengthwise.policies import load_policy, load_router
from lengthwise.policy import Preemption, RoutingPolicy, SchedulingPolicy, Score
from lengthwise.prediction import Prediction
from lengthwise.serving import Engine, Node, System
from lengthwise.serving.timing import LinearTiming
from lengthwise.serving.workload import Prompts
from lengthwise.trained import TrainedOn
from lengthwise.training import (
    agents,
    base,
    evolution,
    evolve,
    guide,
    intelligent_router,
    judging,
    monitor,
    runs,
    sources,
    validation,
)
from lengthwise.training import predictor as predictors
from lengthwise.training.checkpoint import read_checkpoint, write_checkpoint
from lengthwise.training.masked_dqn import random_legal
from lengthwise.training.scorer import CandidateNet, Sizes
from lengthwise.training.validation import Validation, told
from tests.systems import burst

TICK = LinearTiming(base_s=1.0, num_gpu_blocks=1000)

# Watching


class Progress:
    """A bar that keeps what it is told."""

    def __init__(self, *columns: Any, **given: Any) -> None:
        self.given, self.said = given, []

    def add_task(self, what: str, **given: Any) -> int:
        self.said.append((what, given))
        return 0

    def start(self) -> None: ...

    def stop(self) -> None:
        self.said.append("stopped")

    def update(self, task: int, **given: Any) -> None:
        self.said.append(given)


class Watched:
    """A watch over a model whose number of updates the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: int = 100, start: int = 0) -> None:
        monkeypatch.setattr(monitor, "Progress", Progress)
        self.now_s = 0.0
        monkeypatch.setattr(monitor, "time", SimpleNamespace(monotonic=lambda: self.now_s))
        self.evaluated: list[int] = []
        self.saved: list[int] = []
        self.at: list[int] = []
        self.stop = monitor.Stopping()
        self.watch = monitor.Watch(
            steps=steps, evaluate=self.evaluate, evaluate_every=20, save=self.saved.append,
            save_every=30, stop=self.stop, at=self.at.append, show=True,
        )  # fmt: skip
        self.model: Any = SimpleNamespace(
            _n_updates=0, logger=SimpleNamespace(name_to_value={}),
            policy=SimpleNamespace(named_parameters=lambda: []),
        )  # fmt: skip
        self.watch.model = self.model
        self.watch.num_timesteps = start
        self.watch.locals = {"rewards": np.zeros(2)}
        self.watch._on_training_start()

    def evaluate(self, step: int) -> str:
        self.evaluated.append(step)
        return f"cost of {step}"

    def to(self, step: int, updates: int | None = None) -> bool:
        self.watch.num_timesteps = step
        self.model._n_updates = self.model._n_updates + 1 if updates is None else updates
        return self.watch._on_step()


def test_evaluations_and_checkpoints_come_every_so_many_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Watched(monkeypatch)
    for step in range(5, 101, 5):
        made.now_s = step / 10
        assert made.to(step)
    assert made.evaluated == [20, 40, 60, 80, 100]
    assert made.saved == [30, 60, 90]
    assert made.at == list(range(5, 101, 5))
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "5 of 100 steps, 10 a second"
    assert said[3] == "20 of 100 steps, 10 a second; cost of 20"
    assert len(said) == 20
    progress: Any = made.watch.progress
    assert progress.said[0] == ("training", {"total": 100, "completed": 0})
    assert {"completed": 100} in progress.said
    assert {"description": "cost of 20"} in progress.said
    assert progress.given["disable"] is True  # no terminal
    made.to(120)
    assert progress.said[-2]["completed"] == 100 or progress.said[-1] == {"completed": 100}
    made.watch.close()
    assert progress.said[-1] == "stopped"


def test_weights_that_did_not_change_are_not_evaluated_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = Watched(monkeypatch)
    made.to(20, updates=0)
    assert made.evaluated == []  # before the first update
    made.to(25, updates=1)
    assert made.evaluated == [25]
    made.to(45, updates=1)
    assert made.evaluated == [25]
    made.to(50, updates=2)
    assert made.evaluated == [25, 50]
    made.to(69, updates=3)
    assert made.evaluated == [25, 50]
    made.to(70, updates=3)
    assert made.evaluated == [25, 50, 70]


def test_a_resumed_watch_counts_from_where_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Watched(monkeypatch, start=50)
    made.now_s = 2.0
    made.to(54)
    assert capsys.readouterr().err == ""
    made.to(55)
    assert capsys.readouterr().err == "55 of 100 steps, 2 a second\n"
    made.to(69)
    made.to(70)
    assert made.evaluated == [70]
    made.to(79)
    assert made.saved == []
    made.to(80)
    assert made.saved == [80]


def test_costs_losses_and_weights_are_finite_or_the_run_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = Watched(monkeypatch)
    made.watch.locals = {"rewards": np.array([1.0, -np.inf])}
    with pytest.raises(monitor.NotFiniteError, match="a step's cost is inf;"):
        made.to(1)
    agent = made.model
    agent.logger.name_to_value = {"train/value_loss": np.nan}
    with pytest.raises(monitor.NotFiniteError, match="the value loss is nan"):
        made.watch._on_rollout_start()
    agent.logger.name_to_value = {
        "train/value_loss": 1.0, "train/std": np.nan, "rollout/loss": np.nan,
    }  # fmt: skip
    monitor.check_finite(agent)
    weights = torch.tensor([1.0, 2.0])
    agent.policy.named_parameters = lambda: [("a", weights)]
    monitor.check_finite(agent)
    weights[1] = np.nan
    with pytest.raises(monitor.NotFiniteError, match="the weights a are NaN"):
        monitor.check_finite(agent)


def test_a_run_ends_between_two_steps_and_at_once_the_second_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    made = Watched(monkeypatch)
    with monitor.stopping() as stop:
        made.watch.stop = stop
        assert made.to(1)
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
        assert not made.to(2)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_checkpoints_come_back(tmp_path: Path) -> None:
    state = {"steps": 5, "w": torch.arange(3.0), "told": [[1.5, 2.5]]}
    write_checkpoint(tmp_path / "c.pt", state)
    found = read_checkpoint(tmp_path / "c.pt")
    assert (found["steps"], found["w"].tolist(), found["told"]) == (5, [0, 1, 2], [[1.5, 2.5]])
    with pytest.raises(InputError, match="no checkpoint at"):
        read_checkpoint(tmp_path / "none.pt")
    (tmp_path / "bad.pt").write_bytes(b"x")
    with pytest.raises(InputError, match="is damaged"):
        read_checkpoint(tmp_path / "bad.pt")


# Validation


def made(**costs: list[float]) -> Validation:
    return Validation([], lambda totals: 0.0, costs)


def test_the_best_baseline_ties_and_ratios_by_hand() -> None:
    found = made(a=[1.0, 100.0], b=[20.0, 60.0])
    assert found.best == "a"  # 10 against 34.6; by means it would be b
    assert found.means == {"a": 50.5, "b": 40.0}
    assert found.better([1.0, 99.0], [20.0, 60.0])
    assert not found.better([1.0, 1.0], [1.0, 1.0])
    ratio = found.ratio([2.0, 50.0], "a")
    assert ratio is not None
    assert ratio.mean == pytest.approx(1.0)
    free = made(a=[0.0, 100.0], b=[20.0, 60.0])  # a cost of 0 has no logarithm: means
    assert free.best == "b"
    assert free.ratio([1.0, 1.0], "a") is None
    assert free.ratio([1.0, 1.0], "b") is not None
    assert found.ratio([0.0, 1.0], "b") is None
    assert not free.ties
    assert made(a=[1.0, 2.0], b=[1.009, 2.0]).ties
    assert not made(a=[1.0, 2.0], b=[1.03, 2.0]).ties
    assert not made(a=[1.0, 2.0]).ties
    assert evolution.nothing_to_learn({"a": np.array([1.0]), "b": np.array([1.011])}) == ""
    same = evolution.nothing_to_learn({"a": np.array([1.0]), "b": np.array([1.0099])})
    assert same.startswith("nothing to learn here: a, b cost the same to 1%")


def test_held_out_costs_are_latencies_or_the_environment_s_own_cost() -> None:
    system = System(
        (Node(Engine(max_num_seqs=1), TICK, load_policy("fcfs")),), load_router("round-robin")
    )

    def source(seed: int) -> Any:
        work = burst(seed)
        return SimpleNamespace(
            workload=work, system=system, predictions=work["output_tokens"] * 1.0, seed=seed
        )

    from lengthwise.envs.costs import latency

    drawn: list[int] = []

    def counted(seed: int) -> Any:
        drawn.append(seed)
        return source(seed)

    held = Validation.of(counted, latency, range(3, 6), [load_policy("sjf")])  # type: ignore[arg-type]
    assert drawn == [3, 4, 5]
    shortest = (sum(range(1, 7)) + sum(range(11, 37, 5))) / 12
    assert held.baselines["sjf"] == pytest.approx([shortest] * 3)
    own = Validation.of(source, lambda totals: 6.0, range(2), [load_policy("fcfs")])  # type: ignore[arg-type]
    assert own.baselines["fcfs"] == [0.5, 0.5]  # a request
    with pytest.raises(InputError, match="the cost of fcfs is nan on a held-out workload"):
        Validation.of(source, lambda totals: math.nan, range(2), [load_policy("fcfs")])  # type: ignore[arg-type]
    assert told(None, "jsq").startswith("the best baseline is jsq; costs are not positive")
    one = validation.paired_ratio([0.9], [1.0])
    assert told(one, "jsq") == "0.900 of jsq, the best baseline"
    assert validation.VALIDATION_SEED == 2**31
    assert validation.CONFIRMATION_SEED - validation.VALIDATION_SEED == 5000
    assert evolve.TRAINING_SEED < 2**31


# A run's folder


def test_options_are_described_as_json_holds_them() -> None:
    class Odd:
        pass

    work = burst(0)
    given = {"a": (1, 2.5, None, True), 3: Engine, "t": TICK, "w": work, "o": Odd()}
    assert runs.described({**given, "p": load_policy("sjf")}) == {
        "a": [1, 2.5, None, True], "3": "lengthwise.serving.options:Engine", "t": TICK.name,
        "w": repr(work), "o": Odd.__qualname__, "p": "sjf",
    }  # fmt: skip
    assert runs.described(Engine(max_num_seqs=9))["max_num_seqs"] == 9


def test_a_run_is_the_same_or_not_resumed(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    runs.open_run(folder, {"a": 1}, resume=False)
    runs.write_config(folder, {"a": [1, 2], "steps": 5, "b": None}, "cmd")
    read = runs.read_config(folder)
    assert (read["command"], read["a"], read["steps"]) == ("cmd", [1, 2], 5)
    assert "gymnasium" in read["versions"]
    runs.open_run(folder, {"a": (1, 2), "steps": 9, "b": None}, resume=True)
    for config, said in (({"a": [1, 3]}, "its a is"), ({"c": 1}, "its c is None, not 1")):
        with pytest.raises(InputError, match=said):
            runs.open_run(folder, config, resume=True)
    with pytest.raises(InputError, match="holds a training run; resume it"):
        runs.open_run(folder, {}, resume=False)
    other = tmp_path / "o"
    other.mkdir()
    (other / "x").touch()
    with pytest.raises(InputError, match="holds other files; name a new folder"):
        runs.open_run(other, {}, resume=False)
    with pytest.raises(InputError, match="no training run at"):
        runs.open_run(other, {}, resume=True)
    (other / "config.json").write_text("[1]")
    with pytest.raises(InputError, match="holds no options"):
        runs.read_config(other)


@pytest.mark.parametrize("kind", ["scheduling", "routing"])
def test_the_best_weights_come_back_as_the_same_policy(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = ("prompt_tokens", "predicted_tokens") if kind == "scheduling" else (
        "running_requests", "outstanding_tokens"
    )  # fmt: skip
    columns = Columns.of(names, {names[0]: (2.0, 3.0)})
    layers = [
        (rng.normal(size=(4, 2)), rng.normal(size=4)),
        (rng.normal(size=(1, 4)), rng.normal(size=1)),
    ]
    skip = rng.normal(size=2)
    ground = TrainedOn((("nodes", 1.0, 4.0),), ("w",))
    policy = runs.learned(kind, columns, layers, skip, ground)
    assert isinstance(policy, SchedulingPolicy if kind == "scheduling" else RoutingPolicy)
    state = runs.best_state(policy, columns, layers, skip, 1.5)
    assert (state["kind"], state["cost"]) == (kind, 1.5)
    write_checkpoint(tmp_path / runs.BEST, state)
    back = runs.best_policy(tmp_path)
    assert type(back) is type(policy)
    assert back.trained_on == ground
    values = {name: rng.uniform(0, 50, 7) for name in names}
    assert back.score.evaluate(values).tolist() == policy.score.evaluate(values).tolist()
    bare = runs.learned(kind, columns, layers, None)
    assert bare.score.evaluate(values).tolist() != policy.score.evaluate(values).tolist()
    without = {**runs.best_state(bare, columns, layers, skip, 1.0)}
    write_checkpoint(tmp_path / runs.BEST, without)
    assert runs.best_policy(tmp_path).trained_on is None
    del without["skip"], without["ranges"]
    write_checkpoint(tmp_path / runs.BEST, without)
    assert runs.best_policy(tmp_path).score.evaluate(values).tolist() == (
        bare.score.evaluate(values).tolist()
    )
    with pytest.raises(InputError, match="no update yet"):
        runs.best_policy(tmp_path / "none")
    run = runs.PolicyRun(tmp_path, tmp_path, [(1, 5.0), (2, 3.0), (3, 4.0)], {})
    assert run.cost == 3.0
    assert runs.PolicyRun(tmp_path, tmp_path, run.evaluations, {}, best=(1, 5.0)).cost == 5.0


# The evolution strategy


def test_a_goal_is_the_mean_log_ratio_and_the_regret() -> None:
    costs = np.array([[2.0, 8.0, 1.0], [1.0, 1.0, 4.0]])
    best = np.array([[1.0, 2.0, 1.0], [2.0, 1.0, 1.0]])
    logs = np.log([2.0, 0.5])
    assert evolution.Goal()(costs, best) == pytest.approx(logs.mean() + np.log(2.0) / 2)
    assert evolution.Goal(regret=0.0)(costs, best) == pytest.approx(0.0)
    mixed = evolution.Goal(p99=0.5, normalized=0.25, regret=0.0)
    by_hand = [0.25 * np.log(2) + 0.5 * np.log(4), 0.25 * np.log(0.5) + 0.25 * np.log(4)]
    assert mixed(costs, best) == pytest.approx(np.mean(by_hand))
    for wrong in ({"p99": -0.1}, {"regret": -1.0}, {"p99": 0.6, "normalized": 0.5}):
        with pytest.raises(InputError, match="0 or more and at most 1"):
            evolution.Goal(**wrong)  # type: ignore[arg-type]
    evolution.Goal(p99=0.5, normalized=0.5)


def test_weights_make_policies() -> None:
    of = evolution.policy_of
    plain = of("scheduling", ("predicted", "prompt", "preempt"), (2.0, 1.0, 0.049))
    assert isinstance(plain, SchedulingPolicy)
    assert plain.preemption.mode == "none"
    values = {"predicted_tokens": np.array([10.0, 3.0]), "prompt_tokens": np.array([4.0, 8.0])}
    score = plain.score.evaluate(values)
    assert score[0] - score[1] == pytest.approx((10 - 3) + 0.5 * (4 - 8))
    ready = of("scheduling", ("predicted", "prompt", "preempt"), (2.0, 1.0, 0.5))
    assert isinstance(ready, SchedulingPolicy)
    assert ready.preemption == Preemption("recompute", price=0.01 * 1.0 / 0.5)
    least = of("scheduling", ("predicted", "preempt"), (1.0, 0.05))
    assert isinstance(least, SchedulingPolicy)
    assert least.preemption.price == pytest.approx(0.2)
    tokenless = of("scheduling", ("prompt", "preempt"), (1.0, 2.0))
    assert isinstance(tokenless, SchedulingPolicy)
    assert tokenless.preemption.mode == "none"
    half = of("scheduling", ("prompt", "predicted", "preempt"), (4.0, 2.0, 1.0))
    assert half.preemption.price == pytest.approx(0.01 * 0.5)  # type: ignore[union-attr]
    routed = of("routing", ("outstanding_s", "own_s"), (1.0, 0.0))
    assert isinstance(routed, RoutingPolicy)
    assert routed.score.features == of("routing", ("outstanding_s",), (3.0,)).score.features
    for wrong in ((0.0, 0.0), (math.inf, 1.0)):
        with pytest.raises(InputError, match="make no score"):
            of("routing", ("outstanding_s", "own_s"), wrong)
    assert evolution.as_blend(load_router("jsq:choices=2")) is None
    assert evolution.as_blend(load_policy("hrrn")) is None
    assert evolution.as_blend(load_policy("work:b=0.25")) == {"predicted": 1.0, "prompt": 0.25}
    assert evolution.as_blend(load_policy("srtf+preempt:margin=5")) is None
    assert evolution.as_blend(load_router("jsew:b=0.5,crowding=0.25")) == {
        "prefill_s": 0.5, "seat_wait_s": 1.0, "decode_s": 0.25,
    }  # fmt: skip


def test_a_search_validates_as_often_as_it_says_and_keeps_the_best() -> None:
    """Costs fall with the weight of one term: every number of evaluations is as asked."""
    asked: list[int] = []
    validated: list[int] = []
    seen: list[evolution.Evolved] = []

    def worth(policy: Any) -> list[float]:
        weights = dict(
            zip(policy.score.function.terms, policy.score.function.weights, strict=True)
        ) if hasattr(policy.score.function, "terms") else {}  # fmt: skip
        value = 1.0 + abs(weights.get("prompt", 0.0) - 0.5)
        return [value] * 3

    def costs(policies: Any) -> Any:
        asked.append(len(policies))
        return np.array([[worth(one)] * 2 for one in policies])

    def validate(policies: Any) -> Any:
        validated.append(len(policies))
        return np.array([[worth(one)] * 2 for one in policies])

    given: dict[str, Any] = {
        "best": np.ones((2, 3)), "best_validation": np.ones((2, 3)), "start": {"predicted": 1.0},
        "scales": {"predicted": 1.0, "prompt": 2.0}, "goal": evolution.Goal(), "evaluations": 70,
        "population": 10, "every": 3,
    }  # fmt: skip
    found = evolution.search(
        "scheduling", costs, validate, after=lambda state: bool(seen.append(state)), **given
    )
    assert asked == [10] * 7
    assert validated == [1, 2, 2, 2]  # the start; after 3, 6 and the last generation
    assert [at for at, _ in found.history] == [0, 30, 30, 60, 60, 70, 70]
    assert found.fitness == min(value for _, value in found.history)
    assert (found.evaluations, len(found.told)) == (70, 7)
    assert [one.evaluations for one in seen] == [10, 20, 30, 40, 50, 60, 70]
    assert found.improved == (found.fitness < found.start_fitness)
    assert found.start == {"predicted": 1.0}
    assert min(found.weights.values()) >= 0
    # told again, nothing is run again; the same search goes on
    asked.clear()
    again = evolution.search("scheduling", costs, validate, told=found.told[:4], **given)
    assert asked == [10] * 3
    assert again == found
    ended = evolution.search("scheduling", costs, validate, after=lambda state: True, **given)
    assert ended.evaluations == 10
    few = evolution.search("scheduling", costs, validate, **{**given, "evaluations": 3})
    assert few.evaluations == 10
    with pytest.raises(UnknownNameError):
        evolution.search("schedulin", costs, validate, **given)
    for wrong in ((3, 0.3, 2), (4, 0.0, 2), (4, 0.3, 1)):
        with pytest.raises(InputError, match="population of 4 or more"):
            evolution.Search(np.ones(wrong[2]), wrong[1], wrong[0], 0)
    search = evolution.Search(np.ones(2), 0.3, 4, 0)
    with pytest.raises(InputError, match="that it was asked for"):
        search.tell([1.0] * 4)
    search.ask()
    with pytest.raises(InputError, match="that it was asked for"):
        search.tell([1.0] * 3)
    with pytest.raises(InputError, match="must be a finite number"):
        search.tell([1.0, 2.0, 3.0, math.nan])
    search.tell([1.0, 2.0, 3.0, 4.0])
    assert search.generation == 1


# The guide


def test_guides_read_columns_as_they_were_before_scaling() -> None:
    def score(now_s: Any, arrival_s: Any, deadline_s: Any, predicted_tokens: Any) -> Any:
        return (now_s - arrival_s) * 1.0 + 10 * (deadline_s - now_s) + 100 * predicted_tokens

    made = guide.Guide(SchedulingPolicy(Score.from_function(score)), ("prompt_tokens",))
    assert made.features == ("prompt_tokens", "waited_s", "slack_s", "predicted_tokens")
    columns = Columns.of(made.features, {"waited_s": (1.0, 2.0)})
    raw = {"prompt_tokens": 5.0, "waited_s": 3.0, "slack_s": -2.0, "predicted_tokens": 40.0}

    def shown(name: str) -> float:
        column = columns.columns[columns.names.index(name)]
        value = raw[name]
        value = math.copysign(math.log1p(abs(value)), value) if column.log else value
        return (value - column.shift) / column.scale

    rows = np.array([[[shown(name) for name in made.features]] * 2])
    found = made.scores(rows, np.array([[True, False]]), columns)
    assert found[0, 0] == pytest.approx(3.0 - 20.0 + 4000.0, rel=1e-6)
    assert found[0, 1] == np.inf
    with pytest.raises(InputError, match="looks at random replicas only"):
        guide.Guide(load_router("jsq:choices=2"), ())


class Coins:
    """Two environments; rewards count up, and the first ends every third step."""

    num_envs = 2

    def __init__(self) -> None:
        self.sizes = Sizes(2, 1, 0)
        self.t = 0
        self.choices = np.array([1, 0])
        self.taken: list[Any] = []

    def reset(self) -> Any:
        return self._shown()

    def _shown(self) -> Any:
        # one column of two slots, then the mask
        return np.array([[self.t, 0.0, 1.0, 1.0], [self.t, 1.0, 1.0, 1.0]], np.float32)

    def step(self, actions: Any) -> Any:
        self.taken.append(np.array(actions))
        self.t += 1
        return self._shown(), np.array([1.0, 2.0]) * self.t, np.array([self.t % 3 == 0, False]), {}


def test_returns_of_demonstrations_are_discounted_until_an_episode_ends() -> None:
    env: Any = Coins()
    batch, choices, returns = guide._demonstrations(env, 0.5, 40, 0)
    assert env.t == 20  # of two at once
    found = returns.reshape(20, 2).numpy()
    expected = np.zeros((21, 2))
    for t in reversed(range(20)):
        going = np.array([0.0 if (t + 1) % 3 == 0 else 1.0, 1.0])
        expected[t] = np.array([1.0, 2.0]) * (t + 1) + 0.5 * going * expected[t + 1]
    unseen = 6  # 3 / (1 - 0.5): too little of the future was seen
    assert np.isnan(found[-unseen:]).all()
    assert found[:-unseen] == pytest.approx(expected[: 20 - unseen])
    assert choices.reshape(20, 2).tolist() == [[1, 0]] * 20
    assert batch(np.array([2, 3]))[:, 0].tolist() == [1.0, 1.0]
    strays = np.mean([np.any(taken != [1, 0]) for taken in env.taken])
    assert 0 < strays < 0.5
    all_seen = guide._demonstrations(Coins(), 0.999999999, 4, 0)[2]  # type: ignore[arg-type]
    assert torch.isnan(all_seen).all()


def test_random_legal_choices_are_legal_and_each_of_them() -> None:
    np.random.seed(0)
    mask = np.array([[0, 1, 0, 1], [1, 0, 0, 0]])
    drawn = np.array([random_legal(mask) for _ in range(200)])
    assert set(drawn[:, 0]) == {1, 3}
    assert set(drawn[:, 1]) == {0}
    assert 0.35 < (drawn[:, 0] == 1).mean() < 0.65


# Networks and settings


def test_settings_of_algorithms_reach_them() -> None:
    for algo in agents.SETTINGS:
        plain = agents.settings_for(algo, None)
        assert plain == agents.SETTINGS[algo]
        assert plain is not agents.SETTINGS[algo]
    assert agents.settings_for("ppo", {"gamma": 0.5})["gamma"] == 0.5
    assert agents.settings_for("ppo", None, guided=True)["penalty"] == 0.1
    with pytest.raises(UnknownNameError, match="setting 'penalty' of ppo"):
        agents.settings_for("ppo", {"penalty": 1})
    with pytest.raises(UnknownNameError, match="unknown algorithm"):
        agents.settings_for("pp", None)
    assert agents.settings_for("es", None) == evolve.SETTINGS
    made: dict[str, Any] = {}

    class Told:
        def __init__(self, policy: Any, envs: Any, **given: Any) -> None:
            made.update(given, policy=policy)

    envs: Any = SimpleNamespace(
        num_envs=4, observation_space=spaces.Box(-1, 1, (3 * (2 + 1) + 5,)),
        action_space=SimpleNamespace(n=3),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patched:
        for name in ("PPO", "MaskablePPO", "MaskedDQN"):
            patched.setattr(agents, name, Told)
        given = agents.settings_for("ppo", {"rollout": 100, "batch_size": 300}, guided=True)
        agents.make_agent("ppo", envs, 2, given, [8, 4], 7)
        assert (made["n_steps"], made["batch_size"], made["seed"]) == (25, 100, 7)
        assert made["policy_kwargs"]["net_arch"] == [8, 4]
        sizes = made["policy_kwargs"]["features_extractor_kwargs"]["sizes"]
        assert (sizes.slots, sizes.columns, sizes.state, sizes.length) == (3, 2, 5, 14)
        rate = made["learning_rate"]
        assert [rate(left) for left in (1.0, 0.5, 0.0)] == pytest.approx([1e-3, 5.5e-4, 1e-4])
        assert not set(guide.GUIDANCE) & set(made)
        agents.make_agent("ppo", envs, 2, {**given, "rollout": 4}, [8], 0)
        assert (made["n_steps"], made["batch_size"]) == (2, 8)
        agents.make_agent("dqn", envs, 2, agents.settings_for("dqn", None), [8], 0)
        assert (made["batch_size"], made["n_steps"]) == (1024, 16)


def test_the_network_s_heads_by_hand() -> None:
    torch.manual_seed(0)
    sizes = Sizes(3, 2, 1)
    net = CandidateNet(sizes, [4, 5])
    with torch.no_grad():
        net.skip.weight.copy_(torch.tensor([[0.5, -2.0]]))
    rows = torch.tensor([[1.0, 2.0], [3.0, -1.0], [9.0, 9.0]])
    flat = torch.cat([rows.flatten(), torch.tensor([1.0, 1.0, 0.0]), torch.tensor([7.0])])[None]
    logits, latent = net(flat)
    first, second = net.score[0], net.score[2]
    hidden = torch.tanh(second(torch.tanh(first(rows[:2]))))
    expected = -net.score[4](hidden)[:, 0] - rows[:2] @ torch.tensor([0.5, -2.0])
    assert logits[0, :2].tolist() == pytest.approx(expected.tolist())
    assert logits[0, 2] < -1e7
    embedded = torch.relu(net.embed[0](rows[:2]))
    pooled = torch.cat([embedded.mean(0), embedded.amax(0), torch.tensor([7.0])])
    assert latent[0].tolist() == pytest.approx(net.pool(pooled).tolist(), abs=1e-6)
    assert net.forward_actor(flat).tolist() == logits.tolist()
    assert net.forward_critic(flat).tolist() == latent.tolist()
    fresh = CandidateNet(sizes, [4, 5])
    assert not fresh.skip.weight.any()
    assert float(fresh.score[-1].weight.detach().norm()) == pytest.approx(0.01, rel=1e-3)  # type: ignore[operator]
    observation = {
        "candidates": np.arange(6.0)[None],
        "mask": np.array([[1, 1, 0]]),
        "state": np.ones((1, 1)),
    }
    assert sizes.mask(observation).tolist() == [[True, True, False]]
    assert sizes.candidates(observation).tolist() == [[[0, 1], [2, 3], [4, 5]]]
    assert sizes.mask(flat.numpy()).tolist() == [[True, True, False]]


# Judging from the command line's side


def test_what_is_judged_is_sorted_by_kind() -> None:
    sjf, jsq = load_policy("sjf"), load_router("jsq")
    assert judging._kind_of([sjf, sjf]) == "scheduling"
    assert judging._kind_of([jsq]) == "routing"
    with pytest.raises(InputError, match="judged apart"):
        judging._kind_of([sjf, jsq])
    assert judging._several(sjf) == [sjf]
    assert judging._several("a") == ["a"]
    assert judging._several(["a", "b"]) == ["a", "b"]
    work = burst(0)
    assert judging._several(work) == [work]
    assert judging._several(burst) == [burst]
    assert [one.name for one in judging.baselines("scheduling")] == ["fcfs", "sjf"]
    assert [one.name for one in judging.baselines("routing", ["jsq"])] == ["jsq"]

    def system(kind: str, **more: Any) -> System:
        given = {"beside": "", "timing": TICK, "engine": None, "replicas": None, "nodes": None,
                 "metrics_interval_s": 0.0, "failures": None, **more}  # fmt: skip
        return judging._system(kind, **given)

    one, four = system("scheduling"), system("routing")
    assert (len(one.nodes), one.routing.name) == (1, "round-robin")
    assert (len(four.nodes), four.nodes[0].policy.name) == (4, "fcfs")
    assert len(system("routing", replicas=2).nodes) == 2
    assert system("scheduling", beside="jsq", replicas=2).routing.name == "jsq"
    assert system("routing", beside="sjf").nodes[0].policy.name == "sjf"
    assert system("routing", engine={"max_num_seqs": 9}).nodes[0].engine.max_num_seqs == 9
    assert system("routing", metrics_interval_s=0.5).metrics_interval_s == 0.5
    nodes = [Node(Engine(), TICK, load_policy("fcfs"))] * 3
    assert len(system("routing", nodes=nodes).nodes) == 3


def test_judging_tunes_by_a_budget_of_four_runs_of_each_window_or_more() -> None:
    said: list[str] = []
    rows = judging.evaluate_policy(
        load_policy("sjf"), burst, requests=12, seeds=2, timing=TICK, engine={"max_num_seqs": 1},
        baseline_names=("fcfs", "work:b=0.5"), tuning=True, budget=4, say=said.append,
    )  # fmt: skip
    assert said[0] == "2 windows to tune on: 8 runs for each baseline, not 4"
    assert [row["policy"] for row in rows][:2] == ["fcfs", "work:b=0.5"]
    assert {row["load"] for row in rows} == {None}
    quiet: list[str] = []
    judging.evaluate_policy(
        load_policy("sjf"), burst, seeds=1, timing=TICK, engine={"max_num_seqs": 1},
        baseline_names=("fcfs",), tuning=True, budget=4, say=quiet.append,
    )  # fmt: skip
    assert quiet == []
    for wrong in ({"seeds": 0}, {"requests": 0}):
        with pytest.raises(InputError, match="1 seed and 1 request or more"):
            judging.evaluate_policy(load_policy("sjf"), burst, timing=TICK, **wrong)  # type: ignore[arg-type]


# Data of predictors


def prompts(name: str, n: int, model: str | None = None, **more: Any) -> Prompts:
    return Prompts(
        prompt=np.array([f"{name} {i}" for i in range(n)], dtype=object),
        prompt_tokens=np.arange(1, n + 1), output_tokens=np.arange(1, n + 1) * 10,
        censored=np.arange(n) == 1, name=name,
        model=None if model is None else np.full(n, model, dtype=object), **more,
    )  # fmt: skip


def test_sources_are_put_together_row_by_row() -> None:
    a = prompts("a", 2, "m", context=Context(temperature=np.array([0.5, 0.7])), notices=("x", "y"))
    b = prompts("b", 3, notices=("y",))
    rows, source = sources.together([a, b])
    assert source.tolist() == [0, 0, 1, 1, 1]
    assert rows.name == "a + b"
    assert rows.notices == ("x", "y")
    assert list(rows.model) == ["m", "m", None, None, None]  # type: ignore[arg-type]
    assert rows.prompt_tokens.tolist() == [1, 2, 1, 2, 3]
    assert rows.output_tokens.tolist() == [10, 20, 10, 20, 30]
    assert rows.censored.tolist() == [False, True, False, True, False]
    assert rows.context is not None
    assert (
        np.isnan(np.asarray(rows.context.temperature, float)).tolist() == [False] * 2 + [True] * 3
    )
    assert rows.context.top_p is None
    alone, source = sources.together([a])
    assert alone is a
    assert source.tolist() == [0, 0]
    unnamed, _ = sources.together([b, prompts("c", 1)])
    assert unnamed.model is None


def test_what_rows_and_sources_count() -> None:
    source = np.array([0, 0, 0, 1])
    assert sources.row_weights(source, None, 2).tolist() == [1 / 3] * 3 + [1.0]  # type: ignore[union-attr]
    assert sources.row_weights(source, [3.0, 2.0], 2).tolist() == [1.0] * 3 + [2.0]  # type: ignore[union-attr]
    assert sources.row_weights(source[:3], [5.0], 1) is None
    assert sources.row_weights(source, [1.0, 1.0, 1.0], 3).tolist() == [1 / 3] * 3 + [1.0]  # type: ignore[union-attr]
    with pytest.raises(InputError, match="has 1 numbers, for 2 sources"):
        sources.row_weights(source, [1.0], 2)
    for wrong in ([0.0, 1.0], [math.inf, 1.0]):
        with pytest.raises(InputError, match="numbers above 0"):
            sources.row_weights(source, wrong, 2)
    some = prompts("a", 4)
    some = Prompts(**{**vars(some), "output_tokens": np.array([0, 3, 1, 0])})
    kept = sources.with_answers(some)
    assert kept.output_tokens.tolist() == [3, 1]
    assert kept.notices == ("a: left out 2 empty answers",)
    assert sources.with_answers(kept) is kept


def test_sketches_tell_whether_prompts_were_seen() -> None:
    names = [f"p{i}" for i in range(600)]
    held = sources.sketch([*names, *names])
    assert (len(held), held) == (256, sorted(set(held)))
    assert sources.shares_prompts(names, held)
    assert not sources.shares_prompts([f"q{i}" for i in range(600)], held)
    assert sources.merged(held, sources.sketch(["z"])) == sources.sketch([*names, "z"])
    assert len(sources.sketch(["a", "b", "a"])) == 2


def test_rows_are_of_the_model_that_is_asked_for() -> None:
    both, _ = sources.together([prompts("a", 3, "m"), prompts("b", 2, "n")])
    of = predictors._rows
    assert len(of(both, "m", None, 0)) == 3
    assert len(of(both, "all", None, 0)) == 5
    with pytest.raises(InputError, match=r"holds answers of 2 models \(m, n\)"):
        of(both, None, None, 0)
    with pytest.raises(UnknownNameError):
        of(both, "x", None, 0)
    learned = of(both, "x", None, 0, trained=True)
    assert len(learned) == 5
    assert "has no answers of x, which were learned" in learned.notices[-1]
    assert len(of(both, "n", None, 0, trained=True)) == 2
    unnamed = prompts("c", 10)
    assert of(unnamed, None, None, 0) is unnamed
    drawn = of(unnamed, None, 4, 1)
    expected = np.sort(np.random.default_rng(1).permutation(10)[:4])
    assert drawn.prompt_tokens.tolist() == (expected + 1).tolist()
    assert of(unnamed, None, 10, 1) is unnamed
    with pytest.raises(InputError, match="max_rows must be 1 or more, not 0"):
        of(unnamed, None, 0, 1)
    assert len(of(unnamed, None, 1, 1)) == 1


def test_a_report_counts_what_was_trained_and_tested_on(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n = 200
    given = Prompts(
        prompt=np.array([f"words {i // 2} {'long ' * (i % 9)}" for i in range(n)], dtype=object),
        prompt_tokens=rng.integers(1, 50, n), output_tokens=rng.integers(1, 300, n),
        censored=np.arange(n) % 20 == 0, model=None, name="given",
    )  # fmt: skip
    report = predictors.train_predictor(
        given, model="constant", out=tmp_path / "p", test_share=0.25, seed=3, command="cmd"
    )
    train, test = given.split("train", 0.25), given.split("test", 0.25)
    for name, rows in (("train", train), ("test", test)):
        assert report[name] == {
            "rows": len(rows), "prompts": len(set(rows.prompt)),
            "censored": int(rows.censored.sum()),
        }  # fmt: skip
    assert report["train"]["rows"] + report["test"]["rows"] == n
    assert 20 < report["test"]["rows"] < 80
    written = json.loads((tmp_path / "p" / "report.json").read_text())
    assert written == json.loads(
        json.dumps({k: v for k, v in report.items() if k not in ("seconds", "folder")})
    )
    config = json.loads((tmp_path / "p" / "config.json").read_text())
    assert (config["command"], config["options"], config["seed"]) == ("cmd", {}, 3)
    assert not set(predictors.OF_DATA) & set(config)
    assert set(report["baselines"]) == {"constant", "prompt-length"}
    assert report["baselines"]["constant"]["mae"] == report["metrics"]["mae"]
    assert (tmp_path / "p" / "README.md").is_file()
    found = predictors.evaluate_predictor(tmp_path / "p", given)
    assert (found["split"], found["test_share"]) == ("test", 0.25)  # it has seen the others
    assert found["metrics"] == report["metrics"] or found["test"] == report["test"]
    everything = predictors.evaluate_predictor(tmp_path / "p", given, split="all")
    assert everything["test"]["rows"] == n
    other = Prompts(
        **{**vars(given), "prompt": np.array([f"new {i}" for i in range(n)], dtype=object)}
    )
    assert predictors.evaluate_predictor(tmp_path / "p", other)["split"] == "all"
    carded = predictors.evaluate_predictor(tmp_path / "p", other, card=True)
    noted = json.loads((tmp_path / "p" / "report.json").read_text())["elsewhere"]
    assert [(row["data"], row["rows"]) for row in noted] == [("given", n)]
    assert noted[0]["metrics"] == json.loads(json.dumps(carded["metrics"]))
    assert set(noted[0]["baselines"]) == {"constant", "prompt-length"}
    predictors.evaluate_predictor(tmp_path / "p", other, card=True)
    assert len(json.loads((tmp_path / "p" / "report.json").read_text())["elsewhere"]) == 1
    with pytest.raises(UnknownNameError, match="did you mean 'train'"):
        predictors.evaluate_predictor(tmp_path / "p", given, split="trian")
    with pytest.raises(InputError, match=r"holds no report\.json with baselines"):
        predictors.evaluate_predictor("oracle", given, card=True)
    whole = predictors.train_predictor(given, model="constant", out=tmp_path / "q", test_share=0)
    assert whole["train"]["rows"] == n
    assert "metrics" not in whole
    with pytest.raises(InputError, match="there is no test split"):
        predictors.evaluate_predictor(tmp_path / "q", given, split="test")
    for wrong in (-0.1, 1.0):
        with pytest.raises(InputError, match=r"must lie in \[0, 1\)"):
            predictors.train_predictor(given, test_share=wrong)
    with pytest.raises(InputError, match="no data to train on"):
        predictors.train_predictor([])


def test_sources_have_metrics_of_their_own() -> None:
    a, b = prompts("a", 60), prompts("b", 40)
    report = predictors.train_predictor([a, b], model="constant", source_weights=[1.0, 3.0])
    assert {name: one["rows"] for name, one in report["sources"].items()} == {"a": 60, "b": 40}
    assert report["source_weights"] == [1.0, 3.0]
    assert set(report["by_source"]) == {"a", "b"}
    constant = {one["mae"]["value"] for one in report["by_source"].values()}
    assert len(constant) == 2
    both = report["metrics"]["mae"]["value"]
    assert min(constant) < both < max(constant)
    assert "sources" not in predictors.train_predictor(a, model="constant")


def test_models_are_found_by_name_or_path() -> None:
    made = predictors._unfitted
    for name in ("oracle", "noisy-oracle"):
        with pytest.raises(InputError, match="learns nothing; predictors to train"):
            made(name, "exact", 0, {})
    with pytest.raises(InputError, match="has the target exact alone, not 'rank'"):
        made("constant", "rank", 0, {})
    with pytest.raises(UnknownNameError):
        made("rigde", "exact", 0, {})
    ridge: Any = made("ridge", "quantile", 5, {})
    assert (ridge.target, ridge.seed) == ("quantile", 5)


def test_edges_are_none_of_lengths_that_are_all_the_same() -> None:
    same = prompts("a", 5)
    flat = Prompts(**{**vars(same), "output_tokens": np.full(5, 7)})
    assert predictors._edges(flat) is None
    assert predictors._edges(same) == sorted(predictors._edges(same) or [])


def test_no_prediction_hears_a_length_unless_it_says_so() -> None:
    heard: list[Any] = []

    class Listens:
        def __init__(self, *needs: str) -> None:
            self.needs = frozenset(needs)

        def predict(self, prompts: Any, *, output_tokens: Any, **rest: Any) -> Prediction:
            heard.append(output_tokens)
            return Prediction.exact(np.ones(len(prompts)))

    rows = prompts("a", 3)
    predictors._predict(Listens("prompt"), rows)  # type: ignore[arg-type]
    predictors._predict(Listens("output_tokens"), rows)  # type: ignore[arg-type]
    assert heard[0] is None
    assert heard[1].tolist() == [10, 20, 30]


# The base


def test_rows_of_the_base_are_centred_by_model_and_scaled_by_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    monkeypatch.setattr(base, "SOURCES", {"a": "x", "b": "y", "c": "z"})
    frames = {}
    for name, n in (("a", 8), ("b", 6), ("c", 5)):
        ids = [f"{i}" for i in range(n)]
        pd.DataFrame({"prompt_id": ids, "prompt": [f"{name} {i}" for i in range(n)]}).to_json(
            tmp_path / f"{name}_prompts.jsonl.gz", orient="records", lines=True
        )
        rows = [
            {"prompt_id": i, "model": m, "output_tokens": int(rng.integers(1, 500))}
            for i in ids for m in ("m1", "m2", "m3")
        ]  # fmt: skip
        rows[0]["output_tokens"] = 0  # empty: left out
        frames[name] = pd.DataFrame(rows)
        frames[name].to_csv(tmp_path / f"{name}_lengths.csv.gz", index=False)
    found = base.read(tmp_path)
    assert found.groupby("source").size().to_dict() == {"a": 8, "b": 6, "c": 5}
    for name, frame in frames.items():
        kept = frame[frame.output_tokens > 0].copy()
        kept["log"] = np.log(kept.output_tokens)
        kept["label"] = kept["log"] - kept.groupby("model")["log"].transform("mean")
        mean = kept.groupby("prompt_id")["label"].mean()
        expected = (mean - mean.mean()) / mean.std()
        its = found[found.source == name].set_index("prompt")
        for i, value in expected.items():
            assert its.label[f"{name} {i}"] == pytest.approx(value)
        assert its.spread.tolist() == pytest.approx([mean.std()] * len(its))
        middle = kept[kept.prompt_id == "1"].output_tokens.tolist()[1]
        assert its.tokens[f"{name} 1"] == middle
    assert set(base.read(tmp_path, "b").source) == {"a", "c"}
    monkeypatch.setattr(base, "MOST_PROMPTS", 4)
    assert base.read(tmp_path).groupby("source").size().to_dict() == {"a": 4, "b": 4, "c": 4}


def test_the_base_holds_terms_of_several_prompts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"common word{i % 3} rare{i}" for i in range(30)]
    found = base._common(texts)
    assert "common" in found.terms
    assert not any(term.startswith("rare") for term in found.terms)
    assert any("word0" in term for term in found.terms)  # ten prompts hold it
    few = base._common([*texts[:4], "else one", "else two", "else three"])
    assert not few.terms or "common" not in few.terms  # four do
    monkeypatch.setattr(base, "MOST_TERMS", 2)
    assert len(base._common(texts).terms) == 2


def test_embeddings_are_kept_by_their_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def embeddings(texts: list[str], *, exact: bool) -> Any:
        assert exact  # what ships does not depend on the CPU's bfloat16
        asked.append(list(texts))
        return np.array([[len(t), 1.0] for t in texts])

    monkeypatch.setattr(base, "embeddings", embeddings)
    cache = tmp_path / "c.npz"
    first = base.embedded(["a", "bb", "a"], cache)
    assert first.tolist() == [[1, 1], [2, 1], [1, 1]]
    assert asked == [["a", "bb"]]
    again = base.embedded(["ccc", "bb"], cache)
    assert again.tolist() == [[3, 1], [2, 1]]
    assert asked[1:] == [["ccc"]]
    assert base.embedded(["a", "ccc"], cache).tolist() == [[1, 1], [3, 1]]
    assert len(asked) == 2
    base.embedded(["a"], None)
    assert asked[2] == ["a"]


# Intelligent Router


def test_the_mix_of_five_tasks_is_as_its_table_says() -> None:
    work = intelligent_router.five_tasks(60_000, 20.0, 3)
    assert work.rate == pytest.approx(20.0, rel=0.02)
    for name, means in intelligent_router.TASKS.items():
        its = work["task"] == name
        assert its.mean() == pytest.approx(0.2, abs=0.01)
        for column, mean in zip(("prompt_tokens", "output_tokens"), means, strict=True):
            tokens = work[column][its].astype(float)
            assert tokens.mean() == pytest.approx(mean, rel=0.03 if mean > 10 else 0.1)
            if mean > 30:
                assert np.log(tokens).std() == pytest.approx(0.6, rel=0.05)
    mix = intelligent_router.Mix(10, 5.0)
    assert mix(1_000_003)["output_tokens"].tolist() == mix(3)["output_tokens"].tolist()
    theirs = intelligent_router._theirs
    taught, lighter, _, eight = intelligent_router.REGIMES
    assert theirs(taught, "round-robin") == "1"
    assert theirs(taught, "jsq") == "0.995"
    assert theirs(taught, "RL, guided") == "0.886"
    assert theirs(taught, "ES") == "–"
    assert theirs(lighter, "jsq") == "–"
    assert theirs(eight, "RL, guided") == "0.884"
    assert theirs(eight, "jsq") == "–"
    assert (taught.name, eight.replicas) == ("4 replicas, 16 seats, load 0.9", 8)


def test_learners_are_trained_by_their_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Any] = []

    def trained(env: str, **given: Any) -> Any:
        asked.append(given)
        return SimpleNamespace(bundle="jsq")

    monkeypatch.setattr("lengthwise.training.policy.train_policy", trained)
    for name in intelligent_router.LEARNERS:
        assert intelligent_router.train(name, 8.0, 50, 4000, tmp_path).name == "jsq"
    plain, penalised, guided, es = asked
    assert plain["settings"] == {"rollout": 2000, "batch_size": 500, "n_epochs": 8}
    assert (plain["guide"], plain["steps"], plain["n_envs"], plain["eval_every"]) == (
        None, 4000, 20, 500,
    )  # fmt: skip
    assert penalised["settings"]["demonstrations"] == 1024
    assert penalised["settings"]["clone_epochs"] == 0
    assert penalised["settings"]["penalty"] == guided["settings"]["penalty"] == 0.3
    assert guided["guide"] == "jsq-tokens"
    assert guided["settings"]["demonstrations"] == 8192
    assert es["settings"] == {"episodes": 6, "evaluations": 20}
    assert plain["workload"] == intelligent_router.Mix(50, 8.0)
    assert plain["env_options"]["replicas"] == 4
    assert plain["progress"] is False


# What a search and a judge are told of their runs


def episode(seed: int = 0, load: float = 0.5) -> Any:
    work = burst(seed)
    system = System(
        (Node(Engine(max_num_seqs=1), TICK, load_policy("fcfs")),) * 2, load_router("round-robin")
    )

    class Told:
        predicted_tokens = work["output_tokens"] * 2.0

    return SimpleNamespace(
        workload=work, system=system, predictions=Told(), seed=seed, name="burst",
        ranges={"load": (load, load), "nodes": (2.0, 2.0), f"own {seed}": (0.0, 1.0)},
    )  # fmt: skip


def test_a_search_s_scales_and_ground_are_those_of_its_episodes() -> None:
    one = episode()
    found = evolution._columns(one)
    assert found["predicted_tokens"].tolist() == (one.workload["output_tokens"] * 2).tolist()
    assert found["expected_remaining_tokens"].tolist() == found["predicted_tokens"].tolist()
    assert found["generated_tokens"].tolist() == found["computed_tokens"].tolist() == [0.0] * 12
    bare = episode()
    bare.predictions = None
    assert "predicted_tokens" not in evolution._columns(bare)
    both = evolution.ground([episode(0, 0.5), episode(1, 0.9)])
    assert {name: (low, high) for name, low, high in both.ranges} == {
        "load": (0.5, 0.9), "nodes": (2.0, 2.0),
    }  # fmt: skip
    assert both.workloads == ("burst",)
    wider = evolution.ground([episode()], (0.1, 1.5))
    assert ("load", 0.1, 1.5) in wider.ranges
    terms = ("predicted", "prompt", "preempt", "arrival")
    scales = evolution.scales_of([one, episode(3)], "scheduling", terms, load_policy("fcfs"))
    spread = np.mean([np.std(episode(s).workload["output_tokens"] * 2.0) for s in (0, 3)])
    assert scales == pytest.approx([spread, 1.0, 1.0, 1.0])  # what never differs counts as it is


def test_costs_over_one_process_and_what_is_no_cost() -> None:
    class Exact:
        def __init__(self, seed: int) -> None:
            self.workload = burst(seed)
            self.system = System(
                (Node(Engine(max_num_seqs=1), TICK, load_policy("fcfs")),), load_router("jsq")
            )
            self.predictions, self.seed = self.workload["output_tokens"] * 1.0, seed
            self.name = "burst"

    episodes: Any = [Exact(0), Exact(1)]
    with evolution.judging(episodes) as costs:
        found = costs([load_policy("fcfs"), load_policy("sjf")])
    assert found.shape == (2, 2, 3)
    shortest = (sum(range(1, 7)) + sum(range(11, 37, 5))) / 12
    assert found[1, :, 0] == pytest.approx([shortest] * 2)
    assert (found[0, :, 0] > shortest).all()
    assert evolution.least(found)[:, 0] == pytest.approx([shortest] * 2)
    table = np.array([[[1.0, 9, 9], [5, 1, 1]], [[2.0, 3, 3], [4, 2, 2]]])
    assert evolution.least(table).tolist() == [[1, 9, 9], [4, 2, 2]]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(evolution, "METRICS", dict.fromkeys(evolution.COSTS, lambda r: 0.0))
        with pytest.raises(InputError, match="must be a finite number above 0"):
            evolution.costs_of(episodes[0], load_policy("fcfs"))


def test_loads_of_judged_windows_are_shares_of_what_is_served() -> None:
    def work(seed: int) -> Any:
        rng = np.random.default_rng(seed)
        from lengthwise.workload import Workload

        return Workload(
            {"arrival_s": np.cumsum(rng.exponential(5.0, 30)), "prompt_tokens": np.full(30, 8),
             "output_tokens": rng.integers(1, 9, 30)}, name="work",
        )  # fmt: skip

    given: dict[str, Any] = {
        "seeds": 2, "timing": TICK, "engine": {"max_num_seqs": 1}, "baseline_names": ("fcfs",),
    }  # fmt: skip
    plain = judging.evaluate_policy(load_policy("sjf"), work, **given)
    from lengthwise.eval.windows import TEST_SEED

    rates = [work(TEST_SEED + k).rate for k in range(2)]
    assert plain[0]["rate_requests_per_s"] == pytest.approx(np.mean(rates))
    loaded = judging.evaluate_policy(load_policy("sjf"), work, loads=(0.5, 1.0), **given)
    assert [row["load"] for row in loaded] == [0.5, 0.5, 1.0, 1.0]
    assert loaded[2]["rate_requests_per_s"] == pytest.approx(2 * loaded[0]["rate_requests_per_s"])
    with pytest.raises(InputError, match="a rate or loads, not both"):
        judging.evaluate_policy(load_policy("sjf"), work, loads=(0.5,), rate=1.0, **given)
    for wrong in (0.0, math.inf):
        with pytest.raises(InputError, match="a positive share of the capacity"):
            judging.evaluate_policy(load_policy("sjf"), work, loads=(wrong,), **given)


def test_intelligent_router_moves_once_for_each_learner_and_each_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moved: list[tuple[int, int]] = []
    asked: list[Any] = []
    monkeypatch.setattr(intelligent_router, "sustained", lambda engine: 10.0)

    def train(*given: Any) -> str:
        asked.append(given[:4])
        return "jsq"

    monkeypatch.setattr(intelligent_router, "train", train)
    monkeypatch.setattr(
        intelligent_router, "mean_latencies",
        lambda regime, rate, router, requests, seeds: asked.append(rate) or [rate, rate + 1.0],
    )  # fmt: skip
    found = intelligent_router.intelligent_router(
        2, progress=lambda done, of: moved.append((done, of)), requests=50, steps=99,
        learners=("RL",),
    )  # fmt: skip
    total = 1 + 4 * (len(intelligent_router.BASELINES) + 1)
    assert moved == [(k, total) for k in range(1, total + 1)]
    assert asked[0] == ("RL", 0.9 * 4 * 10.0, 50, 99)
    assert asked[1:] == [r for r in (36.0, 28.0, 36.0, 72.0) for _ in range(total // 4)]
    assert len(found.lines) == total - 1
    assert found.lines[0].ours is not None
    assert found.lines[0].ours.mean == 36.5
    assert found.first == "round robin"
