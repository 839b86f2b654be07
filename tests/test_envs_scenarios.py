"""Scenarios: loads are shares of what is served, seeds mix them, and files say what is wrong."""

import json
from dataclasses import replace

import numpy as np
import pytest

from lengthwise.envs.columns import Columns
from lengthwise.envs.episodes import episode_source
from lengthwise.envs.scenarios import (
    KEYS,
    LONGEST,
    PRESETS,
    UNEQUAL,
    Scenario,
    Scenarios,
    presets,
    read_scenarios,
    unequal,
    varied,
)
from lengthwise.errors import InputError, UnknownNameError
from lengthwise.serving import Engine, Fail, Slow, run
from lengthwise.serving.events import RandomEvents
from lengthwise.serving.timing import LinearTiming
from lengthwise.workload import Workload

# one request at a time, each a prompt of one token and then 0.1 s a token
ALONE = LinearTiming(base_s=0.1, num_gpu_blocks=10_000)
ONE = {"timing": ALONE, "engine": Engine(max_num_seqs=1, max_num_batched_tokens=64)}


def constant(n=400, tokens=5):
    return Workload(
        {
            "arrival_s": np.arange(n) * 1.0,
            "prompt_tokens": np.ones(n, int),
            "output_tokens": np.full(n, tokens),
        }
    )


def test_capacity_is_the_rate_of_a_server_that_is_never_idle():
    """One server of 0.5 s a request: 2 requests/s; two at speeds 1 and 0.5 serve 3."""
    assert Scenario("one", constant(), requests=300, **ONE).capacity == pytest.approx(2, rel=0.01)
    nodes = [{}, {"speed": 0.5}]
    both = Scenario("two", constant(), requests=300, nodes=nodes, **ONE)
    assert both.capacity == pytest.approx(3, rel=0.02)


@pytest.mark.parametrize("load", [0.5, 1.2])
def test_a_load_is_a_share_of_capacity(load):
    episode = Scenario("one", constant(), requests=300, load=load, predictor=None, **ONE)(7)
    assert episode.workload.rate == pytest.approx(load * 2, rel=0.01)
    records = run(episode.workload, episode.system, seed=7)
    waited = (records.scheduled_ps - records.arrival_ps).max() / 1e12
    # a D/D/1 queue: nobody waits below 1, and the last of n waits n (service - interval) above
    expected = 0.0 if load < 1 else 299 * (0.5 - 0.5 / load)
    assert waited == pytest.approx(expected, rel=0.05, abs=1e-6)


def test_failures_are_drawn_anew_for_each_episode():
    """About as often and as long as was asked for; the same seed draws the same."""
    given = {"fail_every_s": 20, "fail_for_s": 5, "slow_every_s": 30, "slow_factor": 2}
    scenario = Scenario("failing", constant(), requests=400, rate=1.0, predictor=None,
                        replicas=50, failures=given, **ONE)  # fmt: skip
    events = scenario(3).system.events
    assert events == scenario(3).system.events != scenario(4).system.events
    fails = [event for event in events if isinstance(event, Fail)]
    slows = [event for event in events if isinstance(event, Slow)]
    assert len(fails) == pytest.approx(50 * 400 / 25, rel=0.1)
    assert np.mean([e.until_s - e.at_s for e in fails]) == pytest.approx(5, rel=0.1)
    assert len(slows) == pytest.approx(50 * 400 / 60, rel=0.15)
    assert np.mean([e.factor for e in slows]) == pytest.approx(1.5, rel=0.05)
    assert max(e.at_s for e in events) < 400


@pytest.mark.parametrize(
    ("failures", "message"),
    [
        ({"fail_evry_s": 3}, "unknown key 'fail_evry_s' of failures; did you mean 'fail_every_s'"),
        ({"fail_every_s": 0}, r"fail_every_s must be a number from 0\.001 to"),
        ({"slow_every_s": 1, "slow_factor": 0.5}, "factor must be a number from 1 to"),
        ({"fail_every_s": 1, "detected_after_s": -1}, "detected_after_s must be a number from 0"),
        ([], "failures must be keys and values, not"),
    ],
)
def test_bad_failures_of_a_scenario_are_told(tmp_path, failures, message):
    path = tmp_path / "scenarios.json"
    path.write_text(json.dumps([{"workload": "azure-conv-2023", "failures": failures}]))
    with pytest.raises(InputError, match=message) as caught:
        read_scenarios(path)
    assert "\n" not in str(caught.value)


def test_an_episode_s_scale_is_the_cost_of_what_serves_it():
    scenario = Scenario("one", constant(), requests=300, load=0.5, predictor=None, **ONE)
    assert scenario.scale == pytest.approx(300 * 0.5, rel=1e-6)
    assert scenario(3).scale == scenario.scale


def test_noise_is_drawn_anew_and_an_episode_is_its_seed_s():
    scenario = Scenario("noisy", "azure-conv-2023", requests=200, rate=5.0)
    first, again, other = scenario(1), scenario(1), scenario(2)
    predicted = [e.predictions.predicted_tokens for e in (first, again, other)]
    assert np.array_equal(predicted[0], predicted[1])
    assert not np.array_equal(predicted[0], predicted[2])
    assert np.array_equal(first.workload["arrival_s"], again.workload["arrival_s"])
    fixed = Scenario("fixed", constant(), requests=400, rate=2.0, predictor="noisy-oracle:sigma=1")
    assert not np.array_equal(
        fixed(1).predictions.predicted_tokens, fixed(2).predictions.predicted_tokens
    )


def test_spans_of_a_trace_are_apart():
    trace = constant(1000).replace(prompt_tokens=np.arange(1, 1001))
    parts = [
        Scenario("part", trace, requests=50, span=span, rate=1.0, predictor=None, **ONE)
        for span in ((0, 0.6), (0.6, 1))
    ]
    seen = [
        {int(t) for s in range(40) for t in part(s).workload["prompt_tokens"]} for part in parts
    ]
    assert max(seen[0]) <= 600 < min(seen[1])


def test_successive_seeds_take_each_scenario_once():
    mixed = Scenarios(
        [Scenario(f"at {rate}", constant(), requests=20, rate=rate, predictor=None, **ONE)
         for rate in (1.0, 2.0, 3.0)]
    )  # fmt: skip
    assert {mixed(seed).name for seed in range(30, 33)} == {"at 1.0", "at 2.0", "at 3.0"}
    assert mixed(5).name == mixed(8).name
    with pytest.raises(InputError, match="2 scenarios are called 'a'"):
        Scenarios([Scenario("a", constant()), Scenario("a", constant())])


def test_a_file_multiplies_its_lists(tmp_path):
    file = tmp_path / "set.json"
    file.write_text(
        json.dumps(
            {
                "defaults": {"requests": 50, "engine": {"max_num_seqs": 8}},
                "scenarios": [
                    {"workload": ["burstgpt", "reasoning"], "load": [0.8, 1.0],
                     "predictor": ["oracle", "noisy-oracle:tau=0.5"]},
                    {"name": "slow", "workload": "burstgpt", "rate": 2.0,
                     "nodes": [{"count": 2}, {"speed": 0.5}], "metrics_interval_s": 1.0},
                ],
            }
        )
    )  # fmt: skip
    found = read_scenarios(file)
    assert len(found) == 9 and found.items[-1].name == "slow"
    assert {(s.workload, s.load, s.predictor) for s in found.items[:8]} == {
        (w, load, p)
        for w in ("burstgpt", "reasoning")
        for load in (0.8, 1.0)
        for p in ("oracle", "noisy-oracle:tau=0.5")
    }
    assert found.items[0].system.nodes[0].engine.max_num_seqs == 8
    assert len(found.items[-1].system.nodes) == 3


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"workload": "burstgpt", "laod": 1}], "'laod'.*did you mean 'load'"),
        ([{"workload": "burstgtp"}], "'burstgtp'.*did you mean 'burstgpt'"),
        ([{"load": 1}], "needs a workload"),
        ([{"workload": "burstgpt", "load": -1}], "load must be above 0, not -1"),
        ([{"workload": "burstgpt", "load": 1, "rate": 2}], "not both"),
        ([{"workload": "burstgpt", "engine": {"seats": 3}}], "'seats'"),
        ([{"workload": "burstgpt", "nodes": [{"speed": "fast"}]}], "speed must be a number"),
        ([{"workload": "burstgpt", "requests": 1}], "at least 10"),
        ([{"workload": "burstgpt", "span": [1, 0]}], "span must be two shares"),
        ([], "at least one"),
        ({"scenario": []}, "did you mean 'scenarios'"),
        ("burstgpt", "expected a list"),
        (["burstgpt"], "scenario 0 in .*: expected the keys and values of a scenario"),
    ],
)
def test_files_say_what_is_wrong(tmp_path, rows, message):
    file = tmp_path / "set.json"
    file.write_text(json.dumps(rows))
    with pytest.raises(InputError, match=message) as error:
        read_scenarios(file)
    assert "\n" not in str(error.value)


def test_factors_multiply_lengths_before_capacity_is_measured():
    plain = Scenario("a", "burstgpt", requests=200, load=1.0, engine={"max_num_seqs": 16})
    long = replace(plain, prompt_factor=3.0, output_factor=2.0)
    before, after = plain(5).workload, long(5).workload
    assert (after["prompt_tokens"] == 3 * before["prompt_tokens"]).all()
    assert (after["output_tokens"] == 2 * before["output_tokens"]).all()
    assert long.capacity < plain.capacity / 1.5
    huge = replace(plain, prompt_factor=1e9, load=None)
    assert set(huge(5).workload["prompt_tokens"]) == {LONGEST["prompt_tokens"]}
    with pytest.raises(InputError, match="prompt_factor must be above 0, not 0"):
        replace(plain, prompt_factor=0)


def test_varied_scenarios_are_drawn_from_a_seed():
    one, same, other = varied(fleet=True), varied(fleet=True), varied(fleet=True, seed=1)
    assert one.items == same.items != other.items
    assert len(one) == 64 and len({s.load for s in one}) > 40
    assert {s.prompt_factor == 1 for s in one} == {True, False}
    assert 0.5 <= one.loads[0] and one.loads[1] <= 1.2
    assert {len(s.system.nodes) for s in one} == {4}
    assert {s.metrics_interval_s for s in one} == {0.0, 0.25, 1.0, 2.0}
    whole = varied(("burstgpt",), count=2, factors=False, predictor="oracle")
    assert [(s.prompt_factor, s.predictor) for s in whole] == [(1.0, "oracle")] * 2
    assert whole(0).name == "0: burstgpt"


def test_named_sets_and_unknown_ones(tmp_path):
    assert len(presets((0.9,))) == len(PRESETS) and "name" in KEYS
    assert len(read_scenarios("unequal").items[0].system.nodes) == 4
    with pytest.raises(UnknownNameError, match="did you mean 'presets'"):
        read_scenarios("preset")
    with pytest.raises(InputError, match="No such file"):
        read_scenarios(tmp_path / "none.json")


def test_every_window_of_a_trace_is_drawn_and_deadlines_move_with_it():
    """Twelve requests, one a second, hold three windows of ten."""
    trace = constant(12).replace(deadline_s=np.arange(12) + 3.0, prompt_tokens=np.arange(1, 13))
    draw = episode_source(trace, requests=10, rate=None)
    firsts = [int(draw(seed)["prompt_tokens"][0]) for seed in range(60)]
    assert set(firsts) == {1, 2, 3}
    for seed in range(6):
        window = draw(seed)
        assert window["arrival_s"].tolist() == list(range(10))
        assert window["deadline_s"].tolist() == [3.0 + k for k in range(10)]
    faster = episode_source(trace, requests=10, rate=10 * trace.rate)(0)
    assert faster["arrival_s"][1] == pytest.approx(0.1)
    assert (faster["deadline_s"] - faster["arrival_s"]).tolist() == pytest.approx([3.0] * 10)
    # as many as there are is the whole, and one more is no window yet
    assert len(episode_source(trace, requests=12, rate=None)(5)) == 12


def test_an_episode_s_run_is_seeded_with_it_and_failures_with_another_stream():
    given = {"fail_every_s": 20, "fail_for_s": 5}
    scenario = Scenario(
        "failing", constant(), requests=300, load=0.5, predictor=None, replicas=2,
        failures=given, **ONE,
    )  # fmt: skip
    assert [scenario(seed).seed for seed in (1, 2, 7)] == [1, 2, 7]
    times = [[event.at_s for event in scenario(seed).system.events] for seed in (1, 2)]
    assert times[0] != times[1]
    span_s = float(scenario(1).workload["arrival_s"].max())
    by_its_own_seed = RandomEvents.of(given).draw(np.random.default_rng(1), 2, span_s)
    assert times[0] != [event.at_s for event in by_its_own_seed]


def test_the_unequal_fleet_is_what_it_says():
    """Two fast, one at half speed, one with a quarter of the seats; presets at three loads."""
    fleet = unequal()
    assert fleet.loads == (0.7, 1.05) and len(fleet) == 3 * len(PRESETS)
    system = next(iter(fleet)).system
    assert [node.engine.max_num_seqs for node in system.nodes] == [64, 64, 64, 16]
    assert system.metrics_interval_s == 1.0
    took = [node.timing.tables(100, 8).decode_ps[8] for node in system.nodes]
    assert took[1] == took[0] == took[3] and took[2] / took[0] == pytest.approx(2, rel=1e-3)
    assert all(node.engine.max_num_seqs == 64 for node in next(iter(presets())).system.nodes)


def test_varied_scenarios_lie_where_the_documentation_says():
    """Factors, loads, seats and speeds in their ranges, each over most of its range."""
    one = varied(count=400)
    assert {s.requests for s in one} == {600}
    loads = np.array([s.load for s in one])
    assert 0.5 <= loads.min() and loads.max() <= 1.2
    assert 0.8 < np.mean((loads >= 0.75) & (loads <= 1.15)) < 0.97  # 0.8 and a part of the rest
    seats = [s.engine.max_num_seqs for s in one]
    assert set(seats) == {32, 64, 128} and 0.5 < np.mean(np.equal(seats, 64)) < 0.7
    for name, low, high in (("prompt_factor", 0.2, 20), ("output_factor", 0.3, 3)):
        drawn = np.array([getattr(s, name) for s in one if getattr(s, name) != 1])
        assert low <= drawn.min() < 1.2 * low and 0.8 * high < drawn.max() <= high
    fleets = varied(count=400, fleet=True)
    assert 0.5 < np.mean([s.nodes == UNEQUAL for s in fleets]) < 0.7
    assert {s.metrics_interval_s for s in fleets if s.nodes == UNEQUAL} == {1.0}
    nodes = [node for s in fleets if s.nodes != UNEQUAL for node in s.nodes]
    assert {node["max_num_seqs"] for node in nodes} == {16, 32, 64}
    speeds = [node["speed"] for node in nodes]
    assert 0.4 <= min(speeds) < 0.45 and 0.9 < max(speeds) <= 1
    assert sorted({s.load for s in presets()}) == [0.7, 0.9, 1.05]


def test_columns_that_are_missing_or_scaled_in_vain_are_told():
    with pytest.raises(InputError, match="at least one feature"):
        Columns.of(())
    with pytest.raises(UnknownNameError, match="feature to scale"):
        Columns.of(("prompt_tokens",), {"priority": (0.0, 1.0)})
