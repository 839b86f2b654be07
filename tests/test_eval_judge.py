"""Judging: known answers, windows that share nothing, intervals as scipy has them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from lengthwise.errors import InputError
from lengthwise.eval.judge import Trial, judge
from lengthwise.eval.windows import TEST_SEED, Window, Windows, windows_of
from lengthwise.policies import load_policy, load_router
from lengthwise.policies.bundle import write_bundle
from lengthwise.serving import Engine, Node, System
from lengthwise.serving.saturation import saturation_rate
from lengthwise.serving.timing import LinearTiming
from lengthwise.training.judging import evaluate_policy
from lengthwise.workload import Workload

ONE = Engine(max_num_seqs=1, num_gpu_blocks=500)
TICK = LinearTiming(base_s=1.0)
SYSTEM = System((Node(ONE, TICK, load_policy("fcfs")),), load_router("round-robin"))


def burst(*output: int, name: str = "burst") -> Workload:
    """All at once, prompts of one token: a second for each token of an answer."""
    n = len(output)
    return Workload(
        {"arrival_s": np.zeros(n), "prompt_tokens": np.ones(n, int), "output_tokens": output},
        name=name,
    )


def trial(workload: Workload, seed: int = 0) -> Trial:
    return Trial(workload, SYSTEM, workload["output_tokens"] * 1.0, seed)


def trace(n: int, seed: int = 0) -> Workload:
    rng = np.random.default_rng(seed)
    return Workload(
        {
            "arrival_s": np.cumsum(rng.exponential(5.0, n)),
            "prompt_tokens": np.arange(1, n + 1),  # so that every request can be told
            "output_tokens": rng.integers(1, 20, n),
        },
        name="trace",
    )


def test_two_windows_by_hand() -> None:
    """Latencies 3, 4 and 6, 8 in arrival order; shortest first 1, 4 and 2, 8."""
    trials = [trial(burst(3, 1)), trial(burst(6, 2))]
    rows = judge([load_policy("fcfs"), load_policy("sjf")], [load_policy("work:b=9.0")], trials)
    fcfs, sjf, other = rows
    assert fcfs["mean_latency_s"] == np.mean([3.5, 7.0])
    assert sjf["mean_latency_s"] == np.mean([2.5, 5.0])
    assert fcfs["ratio"] == 1.0
    assert sjf["ratio"] == pytest.approx(2.5 / 3.5)
    assert {row["best"] for row in rows} == {"sjf"}
    assert fcfs["ratio_best"] == pytest.approx(3.5 / 2.5)
    assert other["ratio_best"] == pytest.approx(1.0)  # prompts are alike
    assert fcfs["mean_ttft_s"] == np.mean([(1 + 4) / 2, (1 + 7) / 2])
    normal = np.mean([(3 / 3 + 4 / 1) / 2, (6 / 6 + 8 / 2) / 2])
    assert fcfs["mean_normalized_latency_s"] == pytest.approx(normal)
    p99 = np.percentile([3, 4], 99), np.percentile([6, 8], 99)
    assert fcfs["p99_latency_s"] == pytest.approx(np.mean(p99))


def test_intervals_are_scipys() -> None:
    rng = np.random.default_rng(0)
    trials = [trial(burst(*rng.integers(1, 50, 20))) for _ in range(6)]
    policies = [load_policy("fcfs"), load_policy("sjf"), load_policy("mlfq:quantum=1,levels=3")]
    rows = judge(policies[:2], policies[2:], trials)
    each = [[judge([p], [], [t])[0]["mean_latency_s"] for t in trials] for p in policies]
    expected = scipy.stats.ttest_1samp(each[0], 0).confidence_interval(0.95)
    assert (rows[0]["mean_latency_s_low"], rows[0]["mean_latency_s_high"]) == pytest.approx(
        tuple(expected)
    )
    log = np.log(np.array(each[2]) / each[1])
    expected = np.exp(scipy.stats.ttest_1samp(log, 0).confidence_interval(0.95))
    assert (rows[2]["ratio_best_low"], rows[2]["ratio_best_high"]) == pytest.approx(tuple(expected))


def test_training_seeds_are_judged_together_with_an_interval_over_them() -> None:
    rng = np.random.default_rng(1)
    trials = [trial(burst(*rng.integers(1, 50, 20))) for _ in range(3)]
    seeds = [load_policy(f"mlfq:quantum={q},levels=4") for q in (1, 2, 8, 16)]
    *_, one, two, three, four, together = judge([load_policy("fcfs")], seeds, trials)
    assert together["policy"] == "mean of 4"
    means = [row["mean_latency_s"] for row in (one, two, three, four)]
    expected = scipy.stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert together["mean_latency_s"] == pytest.approx(np.mean(means))
    assert together["mean_latency_s_high"] == pytest.approx(expected.high)
    log = np.log([row["ratio_best"] for row in (one, two, three, four)])
    expected = np.exp(scipy.stats.ttest_1samp(log, 0).confidence_interval(0.95))
    assert together["ratio_best_low"] == pytest.approx(expected[0])


def requests_of(windows: tuple[Window, ...]) -> list[int]:
    return [number for w in windows for number in w.workload["prompt_tokens"].tolist()]


@pytest.mark.parametrize(("test", "tuning"), [(3, 3), (5, 2), (100, 100), (2, 0)])
def test_windows_share_no_request(test: int, tuning: int) -> None:
    found = windows_of(trace(107), requests=10, rate=None, test=test, tuning=tuning)
    numbers = requests_of(found.tuning) + requests_of(found.test)
    assert len(set(numbers)) == len(numbers)
    if tuning:  # the first ones, as an operator has them
        assert max(requests_of(found.tuning)) < min(requests_of(found.test))
    assert all(len(w.workload) == 10 and w.workload["arrival_s"][0] == 0 for w in found.test)
    assert bool(found.notices) is (test == 100)
    if test == 100:
        assert "10 windows of 10 requests do not overlap" in found.notices[0]
        assert (len(found.tuning), len(found.test)) == (5, 5)


@pytest.mark.parametrize(("test", "tuning"), [(6, 1), (2, 6)])
def test_windows_that_are_missing_on_either_side_are_told(test: int, tuning: int) -> None:
    """Six windows are there: one to tune on leaves five to judge on, and half is the most."""
    found = windows_of(trace(60), requests=10, rate=None, test=test, tuning=tuning)
    assert len(found.notices) == 1
    assert (len(found.tuning), len(found.test)) == ((1, 5) if tuning == 1 else (3, 2))


def test_windows_that_are_judged_are_spread_over_the_rest() -> None:
    found = windows_of(trace(100), requests=10, rate=None, test=4, tuning=2)
    assert [w.span for w in found.tuning] == [(0, 10), (10, 20)]
    assert [w.span for w in found.test] == [(20, 30), (40, 50), (60, 70), (80, 90)]


def test_windows_that_share_requests_are_refused() -> None:
    one, two = (windows_of(trace(60), requests=20, rate=None, test=3).test[i] for i in (0, 1))
    for shared in (one, dataclasses.replace(one, seed=7, span=(15, 35))):
        with pytest.raises(InputError, match="would share requests"):
            Windows("trace", (two, shared), (one, two))
    drawn = windows_of("lmsys-chat", requests=5, rate=None, test=2, tuning=2)
    assert {w.seed for w in drawn.tuning}.isdisjoint(w.seed for w in drawn.test)
    assert [w.seed for w in drawn.test] == [TEST_SEED, TEST_SEED + 1]


def test_what_is_tuned_does_not_depend_on_what_is_judged() -> None:
    """The last half of the trace in another order, and other requests in it."""
    whole = trace(80)
    later = np.arange(80)
    later[40:] = np.random.default_rng(3).permutation(later[40:])
    given: dict[str, Any] = {
        "requests": 10, "seeds": 4, "engine": {"max_num_seqs": 1, "num_gpu_blocks": 500},
        "timing": LinearTiming(base_s=1.0, per_prefill_token_s=0.4), "tuning": True,
        "budget": 40, "baseline_names": ("fcfs", "work"),
    }  # fmt: skip
    longer = whole["output_tokens"][later] + (np.arange(80) >= 40)
    shuffled = whole.replace(prompt_tokens=whole["prompt_tokens"][later], output_tokens=longer)
    first, other = (evaluate_policy(load_policy("sjf"), w, **given) for w in (whole, shuffled))
    names = [row["policy"] for row in first]
    assert names == [row["policy"] for row in other]
    assert names[:2] == ["fcfs", "work"]
    assert names[2].startswith("work:b=")
    assert first[0]["mean_latency_s"] != other[0]["mean_latency_s"]


def test_loads_are_shares_of_what_can_be_served() -> None:
    """One seat and a second a token: the rate is one over the mean answer."""
    workload = trace(400)
    served = 1 / workload["output_tokens"].mean()
    assert saturation_rate(workload, SYSTEM) == pytest.approx(served, rel=0.05)
    two = System(SYSTEM.nodes * 2, load_router("jsq"))
    assert saturation_rate(workload, two) == 2 * saturation_rate(workload, SYSTEM)
    rows = evaluate_policy(
        load_policy("sjf"), [workload, "lmsys-chat"], requests=100, seeds=2, loads=(0.5, 1.1),
        engine={"max_num_seqs": 1, "num_gpu_blocks": 5000}, timing=TICK,
    )  # fmt: skip
    assert [(r["workload"], r["load"]) for r in rows[::4]] == [
        ("trace", 0.5), ("trace", 1.1), ("lmsys-chat", 0.5), ("lmsys-chat", 1.1),
    ]  # fmt: skip
    # little waits at half the load, much above all of it
    waits = [row["mean_ttft_s"] for row in rows if row["policy"] == "fcfs"]
    assert waits[1] > 2 * waits[0]
    rates = [row["rate_requests_per_s"] for row in rows[::4]]
    assert rates[1] / rates[0] == pytest.approx(2.2)


def test_bad_input_is_told(tmp_path: Path) -> None:
    router = write_bundle(load_router("jsq"), tmp_path / "router")
    for match, given in (
        ("apart, not in one table", {"policy": [router, load_policy("sjf")]}),
        ("a rate or loads, not both", {"rate": 1.0, "loads": (0.5,)}),
        ("positive share of the capacity", {"loads": (-0.5,)}),
        ("not two windows of 50", {"tuning": True, "requests": 50}),
        ("needs a policy and a workload", {"workload": []}),
        ("neither a bundle nor a finished", {"policy": tmp_path}),
    ):
        merged: dict[str, Any] = {"policy": load_policy("sjf"), "workload": trace(60), **given}
        with pytest.raises(InputError, match=match):
            evaluate_policy(**merged, timing=TICK)
