"""The evolution strategy: it finds known optima, goes on exactly, never ends below its start."""

import json
import os
import signal

import numpy as np
import pytest

from lengthwise.envs.scenarios import Scenario, Scenarios
from lengthwise.errors import InputError
from lengthwise.policies import load_policy, load_router
from lengthwise.serving import Engine
from lengthwise.serving.timing import LinearTiming
from lengthwise.training import evolved
from lengthwise.training.evolution import (
    Goal,
    Search,
    as_blend,
    costs_of,
    judging,
    nothing_to_learn,
    policy_of,
    scales_of,
)

TIMING = LinearTiming(
    base_s=0.01, per_prefill_token_s=1e-4, per_sequence_s=0.001, num_gpu_blocks=10_000
)
GIVEN = {
    "timing": TIMING, "engine": Engine(max_num_seqs=4, max_num_batched_tokens=256),
    "requests": 120, "load": 1.0, "predictor": "oracle",
}  # fmt: skip


def scenarios(**given):
    return Scenarios(
        [Scenario(name, name, **{**GIVEN, **given}) for name in ("azure-code-2023", "burstgpt")]
    )


def test_it_finds_the_minimum_of_an_ill_conditioned_ellipsoid():
    """Separable and 1e4 wide: what a separable CMA-ES is made for, and one variance is not."""
    target, widths = np.array([1.0, -2.0, 3.0, 0.5]), 10.0 ** np.linspace(0, 4, 4)
    search = Search(np.zeros(4), 1.0, 12, seed=0)
    for _ in range(150):
        search.tell(((search.ask() - target) ** 2 * widths).sum(axis=1))
    np.testing.assert_allclose(search.mean, target, atol=1e-4)


def test_what_was_told_brings_a_search_back():
    def told(rounds, search):
        return [search.tell((search.ask() ** 2).sum(axis=1)) for _ in range(rounds)]

    one, two = (Search(np.ones(3), 0.5, 8, seed=3) for _ in range(2))
    told(7, one), told(7, two)
    assert np.array_equal(one.ask(), two.ask())
    with pytest.raises(InputError, match="finite"):
        one.tell([float("nan")] * 8)


def test_the_goal_weighs_ratios_and_regret():
    best = np.ones((2, 3))
    costs = np.array([[2.0, 1.0, 1.0], [0.5, 1.0, 4.0]])
    assert Goal(regret=0)(costs, best) == pytest.approx(0)  # twice and half
    assert Goal(regret=1)(costs, best) == pytest.approx(np.log(2) / 2)
    assert Goal(normalized=1, regret=0)(costs, best) == pytest.approx(np.log(4) / 2)
    with pytest.raises(InputError, match="at most 1 together"):
        Goal(p99=0.7, normalized=0.7)


@pytest.mark.parametrize(
    ("kind", "spec"),
    [("scheduling", s) for s in ("fcfs", "sjf", "work:b=0.3")]
    + [("routing", s) for s in ("jsq", "least-tokens", "weighted-round-robin", "jsew:b=0.2")],
)
def test_a_start_serves_as_the_baseline_does(kind, spec):
    made = scenarios(nodes=[{"count": 2}, {"speed": 0.5}], metrics_interval_s=0.5)
    baseline = (load_policy if kind == "scheduling" else load_router)(spec)
    weights = as_blend(baseline)
    start = policy_of(kind, tuple(weights), tuple(weights.values()))
    for seed in range(2):
        assert costs_of(made(seed), start) == costs_of(made(seed), baseline)
    assert as_blend(load_router("power-of-two")) is None


def test_scales_are_spreads_between_candidates():
    episode = scenarios()(0)
    (prompt,) = scales_of([episode], "scheduling", ("prompt",), load_policy("fcfs"))
    assert prompt == pytest.approx(np.std(episode.workload["prompt_tokens"]))
    fleet = scenarios(nodes=[{"count": 2}, {"speed": 0.5}])(0)
    spread = scales_of([fleet], "routing", ("own_s", "requests"), load_router("jsq"))
    assert (spread > 0).all()


def test_processes_give_what_one_gives():
    episodes = [scenarios()(seed) for seed in range(2)]
    policies = [load_policy("fcfs"), load_policy("sjf")]
    with judging(episodes) as one, judging(episodes, 2) as two:
        assert np.array_equal(one(policies), two(policies))


def test_ties_are_told():
    assert "nothing to learn here: a, b cost the same" in nothing_to_learn(
        {"a": np.array([1.0, 2.0]), "b": np.array([1.005, 2.0])}
    )
    assert not nothing_to_learn({"a": np.array([1.0]), "b": np.array([1.1])})


RUN = {"evaluations": 24, "population": 8, "tuned": False, "progress": False}


def test_a_run_ends_no_worse_than_its_start_and_goes_on_exactly(tmp_path, monkeypatch):
    whole = evolved.evolve(scenarios(), "scheduling", out=tmp_path / "whole", **RUN)
    assert whole.best[1] <= whole.evaluations[0][1]
    assert set(whole.baselines) == {"fcfs", "sjf", "work", "hrrn"}
    assert whole.baselines[whole.best_baseline] == 0
    policy = load_policy(str(whole.bundle))
    assert dict((n, (a, b)) for n, a, b in policy.trained_on.ranges)["load"] == (1.0, 1.0)
    assert set(policy.trained_on.workloads) == {"azure-code-2023", "burstgpt"}

    replace = evolved.replace_json

    def stops(path, value):
        replace(path, value)
        if path.name == evolved.STATE and len(value["told"]) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(evolved, "replace_json", stops)
    with pytest.raises(KeyboardInterrupt, match=r"SIGTERM: saved .* after 8 evaluations"):
        evolved.evolve(scenarios(), "scheduling", out=tmp_path / "cut", **RUN)
    monkeypatch.undo()
    rest = evolved.evolve(scenarios(), "scheduling", out=tmp_path / "cut", resume=True, **RUN)
    assert rest.evaluations == whole.evaluations
    files = [(tmp_path / name / "bundle" / "policy.json").read_text() for name in ("whole", "cut")]
    first, second = (json.loads(text) for text in files)
    assert first["score"] == second["score"]


def test_where_nothing_waits_a_run_says_so(tmp_path):
    idle = {**GIVEN, "load": 0.02, "engine": Engine(max_num_seqs=64, max_num_batched_tokens=256)}
    run = evolved.evolve(
        Scenarios([Scenario("idle", "lmsys-chat", **idle)]), "scheduling", out=tmp_path / "idle",
        evaluations=8, population=8, tuned=False, progress=False,
    )  # fmt: skip
    assert any("nothing to learn here" in line for line in run.notices)


def test_what_cannot_be_trained_is_told(tmp_path):
    with pytest.raises(InputError, match="kind must be"):
        evolved.evolve(scenarios(), "migration", out=tmp_path / "a")
    with pytest.raises(InputError, match="none of hrrn is a blend"):
        evolved.evolve(
            scenarios(), "scheduling", out=tmp_path / "b", baseline_names=["hrrn"], **RUN
        )
