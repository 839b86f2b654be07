"""Capacity against queues whose capacity is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lengthwise.errors import InputError
from lengthwise.eval.capacity import Capacity, capacity, contenders, curves, save
from lengthwise.eval.charts import capacity_curves
from lengthwise.eval.compare import Contender
from lengthwise.eval.setting import Setting
from lengthwise.eval.statistics import t_interval
from lengthwise.eval.tables import capacities_table
from lengthwise.eval.verdict import capacity_verdicts
from lengthwise.serving import Engine
from lengthwise.serving.timing import LinearTiming
from lengthwise.workload import Workload

# One request at a time, one token each, 0.1 s each: a queue with deterministic service.
ONE = Engine(max_num_seqs=1)
TENTH = LinearTiming(base_s=0.1, num_gpu_blocks=100)


class Regular:
    """Arrivals one by one, evenly spaced: D/D/1, which never waits below 10 requests/s."""

    name = "regular"

    def load(self, rate: float | None, seed: int) -> Workload:
        times = np.arange(400) / (rate or 1.0)
        return Workload(
            {"arrival_s": times, "prompt_tokens": np.ones(400), "output_tokens": np.ones(400)}
        )


class Random(Regular):
    """Poisson arrivals: M/D/1."""

    name = "random"

    def load(self, rate: float | None, seed: int) -> Workload:
        times = np.cumsum(np.random.default_rng(seed).exponential(1 / (rate or 1.0), 40_000))
        ones = np.ones(len(times))
        return Workload({"arrival_s": times, "prompt_tokens": ones, "output_tokens": ones})


def test_a_deterministic_queue_holds_until_it_is_full() -> None:
    found = capacity(
        Regular(), "fcfs", {"wait_max": 0.05}, seeds=1, tolerance=1e-3, engine=ONE, timing=TENTH
    )
    # 400 requests at rate r wait at most 399 (0.1 - 1/r), which is 0.05 s at r = 10.0125
    assert found.rate.mean == pytest.approx(1 / (0.1 - 0.05 / 399), rel=2e-3)
    for probe in found.probes:
        assert probe.met == (probe.values["wait_max"] <= 0.05)


def test_capacity_of_an_m_d_1_queue() -> None:
    """Mean wait of M/D/1 is rho S / (2 (1 - rho)): 0.05 s at rho = 1/2, so 5 requests/s."""
    found = capacity(
        Random(), "fcfs", {"wait_mean": 0.05}, seeds=5, tolerance=2e-3, engine=ONE, timing=TENTH
    )
    assert found.rate.low < 5.0 * 1.01
    assert found.rate.high > 5.0 * 0.99
    assert found.rate.half < 0.15
    assert len(found.per_seed) == 5


def test_processes_change_nothing() -> None:
    options = {"seeds": 2, "tolerance": 0.05, "engine": ONE, "timing": TENTH}
    workload = Workload.preset("lmsys-chat", requests=40)
    found = [
        capacity(workload, "fcfs", {"ttft_p99": 60.0}, processes=n, **options)  # type: ignore[arg-type]
        for n in (1, 2)
    ]
    assert found[0] == found[1]


def test_what_has_no_capacity_is_refused(tmp_path: Path) -> None:
    short = Workload.preset("lmsys-chat", requests=2)
    with pytest.raises(InputError, match="too short to queue"):
        capacity(short, "fcfs", {"ttft_p99": 1000.0}, seeds=1)
    with pytest.raises(InputError, match="where requests run alone"):
        capacity(short, "fcfs", {"ttft_p99": 1e-9}, seeds=1)
    with pytest.raises(InputError, match="is not one of"):
        capacity(short, "fcfs", {"ttft_p98": 1.0}, seeds=1)


def test_saved(tmp_path: Path) -> None:
    found = capacity(
        Regular(), "fcfs", {"wait_max": 0.05}, seeds=1, tolerance=0.1, engine=ONE, timing=TENTH
    )
    folder = save(found, tmp_path / "out", {"policy": "fcfs"}, "lengthwise capacity")
    saved = json.loads((folder / "capacity.json").read_text())
    assert saved["mean"] == found.rate.mean
    assert saved["low"] is None  # one seed has no interval


def test_an_answer_of_one_token_has_no_tpot_to_miss() -> None:
    one = capacity(Regular(), "fcfs", {"wait_max": 0.05}, seeds=1, engine=ONE, timing=TENTH)
    both = capacity(
        Regular(), "fcfs", {"wait_max": 0.05, "tpot_p99": 0.001}, seeds=1, engine=ONE, timing=TENTH
    )
    assert both.per_seed == one.per_seed


def test_what_nobody_can_meet_is_said_as_such() -> None:
    with pytest.raises(InputError, match=r"misses the SLO even at .* where requests run alone"):
        capacity(Regular(), "fcfs", {"ttft_mean": 0.01}, seeds=1, engine=ONE, timing=TENTH)


def test_a_limit_that_is_just_met_is_met_and_the_rate_found_meets_it() -> None:
    """Alone a request takes 0.1 s, so that is met until the queue forms at 10 requests/s."""
    found = capacity(
        Regular(), "fcfs", {"ttft_max": 0.1}, seeds=1, tolerance=0.01, engine=ONE, timing=TENTH
    )
    (rate,) = found.per_seed
    assert rate == max(probe.rate for probe in found.probes if probe.met)
    missed = min(probe.rate for probe in found.probes if not probe.met)
    assert rate <= 10 < missed <= 1.01 * rate
    assert found.rate.mean == rate


class Mixed(Regular):
    """Poisson arrivals of answers of one token and of nine, in equal parts."""

    name = "mixed"

    def load(self, rate: float | None, seed: int) -> Workload:
        rng = np.random.default_rng(seed)
        times = np.cumsum(rng.exponential(1 / (rate or 1.0), 3000))
        tokens = np.where(rng.random(3000) < 0.5, 1, 9)
        return Workload(
            {"arrival_s": times, "prompt_tokens": np.ones(3000), "output_tokens": tokens}
        )


def test_several_policies_are_compared_around_their_capacities() -> None:
    from matplotlib.figure import Figure

    setting = Setting(ONE, TENTH, 1, "round-robin").load()
    rows = contenders(("fcfs", "sjf", "fcfs"), ("oracle",), setting)
    assert [who.label for who in rows] == ["fcfs", "sjf · oracle"]
    slo = {"wait_mean": 0.5, "wait_p50": 0.4}
    found = {
        who: capacity(Mixed(), who.policy, slo, who.predictor, 2, 0.01, ONE, TENTH) for who in rows
    }
    # M/G/1: FCFS waits rate E[S²] / (2 (1 - rho)), S of 0.1 and 0.9 s, which is 0.5 s at 1.10
    first, other = (one.rate.mean for one in found.values())
    assert first == pytest.approx(1 / (0.41 + 0.5), rel=0.1) and other > first
    heads, lines = capacities_table(slo, found)
    assert heads == [
        "policy", "predictor", "capacity, requests/s", "× fcfs", "wait_mean, s", "wait_p50, s"
    ]  # fmt: skip
    assert [cell.text for cell in lines[0]][:2] == ["fcfs", ""] and lines[0][3].text == "1.00"
    assert lines[1][3].value == pytest.approx(other / first, rel=0.01)
    assert lines[1][3].verdict in ("better", "same")
    (said,) = capacity_verdicts(found, slo)
    assert "wait_mean ≤ 0.5 s, wait_p50 ≤ 0.4 s" in said and "sjf · oracle" in said
    around = curves(Mixed(), found, slo, 1, ONE, timing=TENTH)
    assert around.rates[0] == pytest.approx(0.7 * first, rel=0.01) and len(around.rates) == 6
    assert around.rates[-1] == pytest.approx(1.15 * other, rel=0.01)
    assert [who.label for who in around.contenders] == ["fcfs", "sjf · oracle"]
    marks = {who.label: one.rate.mean for who, one in found.items()}
    chart = capacity_curves(around, slo, marks)
    assert len(chart.panels) == 4 and [each.label for each in chart.series] == list(marks)
    axes = Figure().subplots()
    told = chart.panels[0].draw(axes)
    assert len(told) == 12 and axes.get_ylabel() == "wait mean, s"
    drawn = {tuple(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2}
    assert {(rate, rate) for rate in marks.values()} <= drawn
    assert any(list(line.get_ydata()) == [0.5, 0.5] for line in axes.lines)


def test_one_who_carries_no_more_for_sure_is_said_so() -> None:
    one = Contender("fcfs", None, "fcfs", "none")
    two = Contender("sjf", None, "sjf", "none")
    found = {one: of(10.0, 12.0), two: of(10.0, 12.1)}
    assert capacity_verdicts({one: found[one]}, {"ttft_p99": 1.0}) == [
        "fcfs carries 11.0 requests/s with ttft_p99 ≤ 1 s."
    ]
    assert capacity_verdicts(found, {"ttft_p99": 1.0}) == [
        "fcfs carries 11.0 requests/s with ttft_p99 ≤ 1 s, and none for sure more: the most is "
        "100% (95 to 106) of it, sjf."
    ]
    found[two] = of(20.0, 24.0)
    assert capacity_verdicts(found, {"ttft_p99": 1.0}) == [
        "sjf carries the most with ttft_p99 ≤ 1 s: 22.0 requests/s, 200% of what fcfs carries "
        "(11.0)."
    ]


def of(*rates: float) -> Capacity:
    return Capacity(t_interval(rates), rates, ())
