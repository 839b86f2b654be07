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
from lengthwise.training import evolution, evolve
from lengthwise.training.evolution import (
    COSTS,
    Goal,
    Search,
    as_blend,
    costs_of,
    judging,
    least,
    nothing_to_learn,
    policy_of,
    scales_of,
)
from lengthwise.training.policy import train_policy
from lengthwise.training.validation import CONFIRMATION_SEED, VALIDATION_SEED

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


@pytest.mark.parametrize("diagonal", [True, False])
def test_it_finds_the_minimum_of_an_ill_conditioned_ellipsoid(diagonal):
    """Separable and 1e4 wide: what a separable CMA-ES is made for, and one variance is not."""
    target, widths = np.array([1.0, -2.0, 3.0, 0.5]), 10.0 ** np.linspace(0, 4, 4)
    search = Search(np.zeros(4), 1.0, 12, 0, diagonal)
    for _ in range(150):
        search.tell(((search.ask() - target) ** 2 * widths).sum(axis=1))
    np.testing.assert_allclose(search.mean, target, atol=1e-4)


def test_covariances_pay_where_weights_depend_on_each_other():
    """The same ellipsoid turned: one variance a weight is then no longer the right shape."""
    rng = np.random.default_rng(0)
    turn, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    widths = 10.0 ** np.linspace(0, 4, 4)

    def reached(diagonal):
        search = Search(np.ones(4), 1.0, 12, 0, diagonal)
        for _ in range(60):
            search.tell(((search.ask() @ turn) ** 2 * widths).sum(axis=1))
        return ((search.mean @ turn) ** 2 * widths).sum()

    assert reached(diagonal=False) < 1e-3 * reached(diagonal=True)


@pytest.mark.parametrize("diagonal", [True, False])
def test_what_was_told_brings_a_search_back(diagonal):
    """Whatever others draw from numpy's global generator, which it leaves alone."""

    def told(rounds, search):
        return [search.tell((search.ask() ** 2).sum(axis=1)) for _ in range(rounds)]

    one, two = (Search(np.ones(3), 0.5, 8, 3, diagonal) for _ in range(2))
    told(7, one)
    np.random.seed(5)
    expected = np.random.random()
    np.random.seed(5)
    told(7, two)
    assert np.random.random() == expected
    assert one.generation == two.generation == 7
    assert np.array_equal(one.ask(), two.ask())
    with pytest.raises(InputError, match="finite"):
        one.tell([float("nan")] * 8)
    with pytest.raises(InputError, match="two weights or more"):
        Search(np.ones(1), 0.5, 8, 3)


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
    [("scheduling", s) for s in ("fcfs", "sjf", "work:b=0.3", "srtf")]
    + [
        ("routing", s)
        for s in (
            "jsq",
            "least-tokens",
            "least-requests",
            "weighted-round-robin",
            "jsew:b=0.2",
            "min-min",
        )
    ],
)
def test_a_start_serves_as_the_baseline_does(kind, spec):
    made = scenarios(nodes=[{"count": 2}, {"speed": 0.5}], metrics_interval_s=0.5)
    baseline = (load_policy if kind == "scheduling" else load_router)(spec)
    weights = as_blend(baseline)
    start = policy_of(kind, tuple(weights), tuple(weights.values()))
    for seed in range(2):
        assert costs_of(made(seed), start) == costs_of(made(seed), baseline)
    assert as_blend(load_router("power-of-two")) is None


def test_readiness_to_preempt_is_a_price_in_tokens_of_the_answer():
    def price(**weights):
        return policy_of("scheduling", tuple(weights), tuple(weights.values())).preemption.price

    assert price(expected_remaining=1.0, preempt=2.0) == 0.005
    # scores in other units: the exchange is the same
    assert price(expected_remaining=0.5, prompt=2.0, preempt=2.0) == 0.005 / 4
    for weights in ({"predicted": 1.0, "preempt": 0.01}, {"prompt": 1.0, "preempt": 1.0}):
        made = policy_of("scheduling", tuple(weights), tuple(weights.values()))
        assert made.preemption.mode == "none"  # hardly ready; a score that counts no answers
    with pytest.raises(InputError, match="make no score"):
        policy_of("scheduling", ("preempt",), (1.0,))


def test_the_least_cost_is_that_of_the_best_of_each_episode():
    table = np.array([[[2.0, 9.0, 1.0], [1.0, 5.0, 3.0]], [[1.0, 8.0, 2.0], [4.0, 1.0, 1.0]]])
    assert least(table).tolist() == [[1.0, 8.0, 2.0], [1.0, 5.0, 3.0]]


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


def test_a_process_is_given_a_quarter_of_its_share_at_a_time(monkeypatch):
    given = []

    class Pool:
        def __init__(self, *_, **__): ...
        def __enter__(self):
            return self

        def __exit__(self, *_): ...
        def map(self, function, pairs, chunksize):
            given.append(chunksize)
            return [np.zeros(len(COSTS)) for _ in pairs]

    monkeypatch.setattr(evolution, "ProcessPoolExecutor", Pool)
    with judging([scenarios()(seed) for seed in range(5)], 2) as costs:
        for count in (1, 7):
            assert costs([load_policy("fcfs")] * count).shape == (count, 5, len(COSTS))
    assert given == [1, 4] and all(isinstance(one, int) for one in given)


def test_ties_are_told():
    assert "nothing to learn here: a, b cost the same" in nothing_to_learn(
        {"a": np.array([1.0, 2.0]), "b": np.array([1.005, 2.0])}
    )
    assert not nothing_to_learn({"a": np.array([1.0]), "b": np.array([1.1])})


RUN = {
    "env": "lengthwise/Scheduling-v1", "eval_seeds": 2, "progress": False,
    "settings": {"evaluations": 24, "population": 8, "episodes": 2},
    "baseline_names": ["fcfs", "sjf", "work", "hrrn"],
}  # fmt: skip


def test_a_search_never_sees_what_it_is_judged_on(tmp_path):
    """Its own episodes lie below all that are held out, which lie apart; seeds share none."""
    drawn = []

    class Noted(Scenarios):
        def __call__(self, seed):
            drawn.append(seed)
            return super().__call__(seed)

    settings = {"evaluations": 8, "population": 8, "episodes": 2}
    own, least = [], evolve.TRAINING_SEED
    for seed in (0, 1):
        drawn.clear()
        out = tmp_path / str(seed)
        train_policy(
            scenarios=Noted(scenarios().items),
            out=out,
            **{**RUN, "algo": "es", "settings": settings, "seed": seed},
        )
        own.append({at for at in drawn if least <= at < VALIDATION_SEED})
        assert len(own[-1]) == 2
        assert set(range(VALIDATION_SEED, VALIDATION_SEED + 4)) <= set(drawn)
        assert CONFIRMATION_SEED in drawn
    assert not own[0] & own[1]


@pytest.mark.parametrize("algo", evolve.ALGORITHMS)
def test_a_run_ends_no_worse_than_its_start_and_goes_on_exactly(algo, tmp_path, monkeypatch):
    run = {**RUN, "algo": algo}
    whole = train_policy(scenarios=scenarios(), out=tmp_path / "whole", **run)
    policy = load_policy(str(whole.bundle))
    assert dict((n, (a, b)) for n, a, b in policy.trained_on.ranges)["load"] == (1.0, 1.0)
    assert set(policy.trained_on.workloads) == {"azure-code-2023", "burstgpt"}
    history = json.loads((tmp_path / "whole" / "evaluations.json").read_text())["fitness"]
    assert min(value for _, value in history) <= history[0][1]

    write = evolve.write_checkpoint

    def stops(path, state):
        write(path, state)
        if len(state["told"]) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(evolve, "write_checkpoint", stops)
    with pytest.raises(KeyboardInterrupt, match=r"SIGTERM: saved .* after 8 evaluations"):
        train_policy(scenarios=scenarios(), out=tmp_path / "cut", **run)
    monkeypatch.undo()
    train_policy(scenarios=scenarios(), out=tmp_path / "cut", resume=True, **run)
    files = [tmp_path / name / "bundle" / "policy.json" for name in ("whole", "cut")]
    first, second = (json.loads(file.read_text()) for file in files)
    assert first["score"] == second["score"]


def test_what_cannot_be_started_is_told(tmp_path):
    with pytest.raises(InputError, match="none of the baselines hrrn is a blend"):
        train_policy(
            scenarios=scenarios(),
            out=tmp_path / "b",
            algo="es",
            **{**RUN, "baseline_names": ["hrrn"]},
        )
