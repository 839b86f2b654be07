"""Calibration, plans, cells, rows that ran alike and flat tables, each on numbers by hand."""

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

from lengthwise.errors import InputError
from lengthwise.eval import calibrate, flat, measured, plan
from lengthwise.eval.alike import Alike, alike
from lengthwise.eval.calibrate import _Fit, _Surface, figures, met
from lengthwise.eval.capacity import Capacity, Probe
from lengthwise.eval.cells import Cells, digests
from lengthwise.eval.compare import BOUND, Comparison, Contender
from lengthwise.eval.reproductions.table import Line, Reproduction
from lengthwise.eval.source import Fixed
from lengthwise.eval.statistics import Interval, t_interval
from lengthwise.serving import Engine
from lengthwise.serving.timing import LinearTiming
from lengthwise.training.commands import folders, stopped
from lengthwise.workload import Workload

ONE = Engine(max_num_seqs=1, num_gpu_blocks=500)
TICK = LinearTiming(base_s=1.0)


def burst(*output: int) -> Workload:
    n = len(output)
    return Workload(
        {"arrival_s": np.zeros(n), "prompt_tokens": np.ones(n, int), "output_tokens": output},
        name="burst",
    )


# Calibration


def test_figures_are_means_and_quantiles_of_three_latencies() -> None:
    first, last = np.array([1.0, 2.0, 4.0]), np.array([1.0, 6.0, 13.0])
    tokens = np.array([1, 3, 4])
    found = figures(first, last, tokens)
    assert list(found) == ["ttft", "tpot", "e2e"]
    assert found["ttft"].tolist() == pytest.approx(
        [7 / 3, 2.0, np.quantile(first, 0.9), np.quantile(first, 0.99)]
    )
    assert found["tpot"].tolist() == pytest.approx([2.5, 2.5, 2.9, 2.99])  # 2 and 3, of two
    assert found["e2e"][:2].tolist() == pytest.approx([20 / 3, 6.0])
    assert list(figures(None, last, tokens)) == ["e2e"]
    assert list(figures(first, last, np.ones(3, int))) == ["ttft", "e2e"]
    assert met(np.array([1.05, 0.95, 1.051, 1.1])).tolist() == [True, True, False, True]
    assert met(np.array([0.949, 1.0, 1.0, 0.899])).tolist() == [False, True, True, False]
    first_half, second = calibrate._half_of(7)
    assert (first_half.tolist(), second.tolist()) == ([0, 1, 2], [3, 4, 5, 6])


def test_a_factor_s_interval_is_where_it_fits_nearly_as_well() -> None:
    """Twice the logarithm within 3.84 of the least, and one step of the grid further out."""
    gpu, cpu = np.array([0.8, 0.9, 1.0, 1.1, 1.2]), np.array([0.5, 1.0, 2.0])
    misfit = np.array([[9, 9, 9], [9, 5, 9], [9, 1, 4.84], [9, 4.85, 9], [9, 9, 9]])
    surface = _Surface((gpu, cpu), misfit.astype(float))
    one = surface.factor(0)
    assert (one.value, one.low, one.high) == (1.0, 0.9, 1.1)
    assert one.told is (math.log(1.1 / 0.9) < 0.6 * 2 * math.sqrt(3.84) * 0.05)
    other = surface.factor(1)
    assert (other.value, other.low, other.high) == (1.0, 0.5, 2.0)
    assert other.told is (math.log(4) < 0.6 * 2 * math.sqrt(3.84) * 0.6)
    assert other.told and not one.told
    edge = _Surface((gpu, cpu), np.array([[0.0] * 3, *[[9.0] * 3] * 4])).factor(0)
    assert (edge.value, edge.low, edge.high) == (0.8, 0.8, 0.9)
    flat_one = _Surface((gpu, cpu), np.zeros((5, 3))).factor(0)
    assert (flat_one.value, flat_one.low, flat_one.high, flat_one.told) == (0.8, 0.8, 1.2, False)


class Linear:
    """A profile whose latencies are factors' own: first tokens by the CPU's, ends by the GPU's."""

    def fit(self, gpu: float, cpu: float) -> Any:
        n = 60
        work = Workload({"arrival_s": np.arange(n) * 1.0, "prompt_tokens": np.ones(n, int),
                         "output_tokens": np.full(n, 3)}, name="run")  # fmt: skip
        first, last = np.linspace(0.1, 0.2, n), np.linspace(5, 9, n)
        real = measured.Measured("run", work, first * cpu, last * gpu)
        made = _Fit.__new__(_Fit)
        made._runs = [real]
        made._simulated = lambda factors: [(first * factors[1], last * factors[0])]  # type: ignore[method-assign]
        return made


def test_what_fits_worst_is_far_in_units_of_its_trust_and_of_what_is_known() -> None:
    fit = Linear().fit(1.0, 1.0)
    every = [np.arange(60)]
    assert fit._misfit((1.0, 1.0), every) == pytest.approx(0.0)
    # 4% on all ends: e2e is trusted to 2%, its P99 to half of that; TPOT moves too
    found = fit._misfit((1.04, 1.0), every)
    first, last = np.linspace(0.1, 0.2, 60), np.linspace(5, 9, 60)
    total = 0.0
    for trust, ours, theirs in (
        (0.05, first, first), (0.02, (1.04 * last - first) / 2, (last - first) / 2),
        (0.02, 1.04 * last, last),
    ):  # fmt: skip
        for k, of in enumerate(
            (np.mean, *(lambda x, q=q: np.quantile(x, q) for q in (0.5, 0.9, 0.99)))
        ):
            off = math.log(of(ours) / of(theirs)) / (trust * (2 if k == 3 else 1))
            total += 2 * (math.sqrt(1 + off * off) - 1) / 3
    assert found == pytest.approx(total + (math.log(1.04) / 0.05) ** 2)
    assert fit._misfit((1.0, 2.0), every) > (math.log(2.0) / 0.6) ** 2
    assert fit.met((1.0, 1.0), every) == (12, 12)
    assert fit.met((1.2, 1.0), every) == (12, 4)  # first tokens alone
    rows = fit.rows((1.1, 1.0))
    assert len(rows) == 12 and rows[0]["figure"] == "ttft_mean" and rows[0]["run"] == "run"
    end = next(row for row in rows if row["figure"] == "e2e_mean")
    assert (end["measured_s"], end["plain"], end["calibrated"]) == pytest.approx((7.0, 0.0, 0.1))


def test_the_search_finds_the_factors_that_were() -> None:
    steps: list[int] = []
    fit = Linear().fit(1.06, 1.9)
    found = fit.search([np.arange(60)], lambda: steps.append(1))
    assert found.values == pytest.approx((1.06, 1.9), rel=0.02)
    assert found.gpu.told and found.cpu.told and len(steps) == 3 * 81
    assert found.gpu.low < 1.06 < found.gpu.high and found.cpu.low < 1.9 < found.cpu.high


def table(n: int, **changed: Any) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "arrival_s": 100.0 + np.arange(n), "prompt_tokens": np.full(n, 7),
        "output_tokens": np.full(n, 3), "finish_s": 104.0 + np.arange(n),
        "first_token_s": 101.0 + np.arange(n),
    }  # fmt: skip
    for name, values in changed.items():
        if values is None:
            del columns[name]
        else:
            columns[name] = values
    return columns


def test_a_measured_table_has_moments_or_durations() -> None:
    of = measured._of_table
    found = of("t", table(60))
    assert len(found) == 60 and found.notices == ()
    assert found.first_s is not None and set(found.first_s) == {1.0} and set(found.last_s) == {4.0}
    assert found.workload["arrival_s"].tolist() == list(range(60))
    durations = table(60, finish_s=None, first_token_s=None, e2e_s=np.full(60, 4.0),
                      ttft_s=np.full(60, 2.0))  # fmt: skip
    again = of("t", durations)
    assert again.first_s is not None and set(again.first_s) == {2.0} and set(again.last_s) == {4.0}
    assert of("t", table(60, first_token_s=None)).first_s is None
    # what was not answered, or broken off, is left out and told; 50 are enough
    reasons = np.array(["stop"] * 30 + ["length"] * 20 + ["abort"] * 10)
    kept = of("t", table(60, finish_reason=reasons))
    assert len(kept) == 50
    assert kept.notices == ("t: 10 of 60 requests are left out: not answered, or without a time",)
    with pytest.raises(InputError, match="t holds 49 answered requests; 50 are the fewest"):
        of("t", table(49))
    order = table(60)
    for name in ("arrival_s", "finish_s", "first_token_s"):
        order[name] = order[name][::-1]
    order["prompt_tokens"] = np.arange(1, 61)
    assert of("t", order).workload["prompt_tokens"].tolist() == list(range(60, 0, -1))


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("finish_s", 101.0, 60), ("finish_s", 100.9, 59), ("finish_s", 100.0, 59),
        ("first_token_s", 100.0, 59), ("first_token_s", 104.0, 60), ("first_token_s", 104.1, 59),
        ("prompt_tokens", 1, 60), ("prompt_tokens", 0, 59), ("output_tokens", 1, 60),
        ("output_tokens", 0, 59), ("finish_s", np.inf, 59), ("arrival_s", np.nan, 59),
    ],
)  # fmt: skip
def test_requests_without_an_answer_or_a_time_are_left_out(
    name: str, value: float, kept: int
) -> None:
    columns = table(60)
    columns[name] = columns[name].astype(float)
    columns[name][0] = value
    assert len(measured._of_table("t", columns)) == kept


def test_a_benchmark_s_lists_are_read_by_request() -> None:
    said: dict[str, Any] = {
        "start_times": [5.0 + k for k in range(60)], "input_lens": [9] * 60,
        "output_lens": [3] * 60, "ttfts": [0.5] * 60, "itls": [[0.25, 0.5]] * 60,
    }  # fmt: skip
    found = measured._of_bench("b", said)
    assert found.first_s is not None and set(found.first_s) == {0.5} and set(found.last_s) == {1.25}
    with pytest.raises(InputError, match="b has no ttfts, itls: calibrate reads"):
        measured._of_bench("b", {**said, "ttfts": 3, "itls": None})
    with pytest.raises(InputError, match="ttfts has 59 entries, for 60 requests"):
        measured._of_bench("b", {**said, "ttfts": [0.5] * 59})
    with pytest.raises(InputError, match="are no numbers"):
        measured._of_bench("b", {**said, "itls": [["x"]] * 60})


# Plans


def test_how_long_is_said_in_a_unit_of_its_size() -> None:
    assert [plan.duration(s) for s in (0.2, 40, 99.4, 100, 720, 5999, 6000, 12_600)] == [
        "1 s", "40 s", "99 s", "2 min", "12 min", "100 min", "1.7 h", "3.5 h"
    ]  # fmt: skip


def test_a_plan_counts_what_would_run(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    predicted: list[Any] = []
    rates: list[float] = []
    monkeypatch.setattr(plan, "time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    monkeypatch.setattr(
        plan, "predict", lambda who, work, seed: predicted.append((who, len(work), seed))
    )

    def simulated(workload: Workload, *given: Any, **more: Any) -> None:
        rates.append(workload.rate)

    monkeypatch.setattr(plan, "simulate_on", simulated)
    work = burst(*[2] * 128).replace(arrival_s=np.arange(128.0))
    given: dict[str, Any] = {"processes": 2, "timing": TICK}
    said = plan.compare_plan(Fixed(work), ("sjf",), ("oracle",), (4.0, 8.0), 3, ONE, **given)
    # a second to load, two predictors at a second for 64 of 128 requests, a second a run
    assert said == [
        "would compare 2 rows: fcfs, sjf · oracle",
        "on burst (128 requests) at 4, 8 requests/s, 3 seeds: 6 cells, 12 runs",
        "about 18 s in 2 processes (a run of fcfs took 1 s)",
    ]
    assert predicted == [(None, 64, 0), ("oracle", 64, 0)] and rates == pytest.approx([8.0, 8.0])
    rates.clear()
    said = plan.compare_plan(Fixed(work), ("fcfs",), (), (), 1, ONE, **given)
    assert said[1:] == [
        "on burst (128 requests) at its own rate, 1 seeds: 1 cells, 1 runs",
        "about 4 s in 1 processes (a run of fcfs took 1 s)",
    ]
    assert rates == pytest.approx([work.rate] * 2)
    few = plan.compare_plan(Fixed(burst(*[2] * 64)), ("fcfs",), (), (), 1, ONE, **given)
    assert "about 3 s" in few[2]
    said = plan.capacity_plan(Fixed(work), "sjf", "oracle", 5, 0.01, ONE, **given)
    # 2^7 > ln 2 / ln 1.01 = 69.7 > 2^6: seven bisections, nine runs at least of each of five seeds
    assert said == [
        "would search the capacity of burst (128 requests) on 5 seeds",
        "7 runs a seed for a tolerance of 0.01, after 2 to 21 that find the neighbourhood",
        "about 27 s or more in 2 processes (a run took 1 s)",
    ]
    assert predicted[-1] == ("oracle", 128, 0)


# Cells


def test_cells_are_of_one_work_and_come_back(tmp_path: Path) -> None:
    made = Cells.open(tmp_path / "c", {"command": "x", "files": {"a": "1", "b": "2"}})
    assert len(made) == 0 and made.read("one") is None
    made.write("one", {"x": np.float64(0.1), "n": [1, math.inf], "a": np.arange(2)})
    assert made.read("one") == {"x": 0.1, "n": [1, math.inf], "a": [0, 1]}
    made.write("two", 3)
    again = Cells.open(tmp_path / "c", {"command": "x", "files": {"a": "1", "b": "2"}})
    assert len(again) == 2 and again.read("two") == 3
    for identity, said in (
        ({"command": "y", "files": {"a": "1", "b": "2"}}, "whose command is 'x', not 'y'; --force"),
        ({"command": "x", "files": {"a": "1", "b": "3"}}, "run of before b changed; --force"),
        ({"command": "x", "files": {"a": "1"}}, "run of before b changed"),
        ({"command": "x", "files": {"a": "1", "b": "2"}, "more": 1}, "whose more is None, not 1"),
        ({"files": {"a": "1", "b": "2"}}, "whose command is 'x', not None"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            Cells.open(tmp_path / "c", identity)
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="it holds something else"):
        Cells.open(tmp_path / "other", {})
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="can't keep cells in"):
        Cells.open(tmp_path / "file" / "c", {})
    made.drop()
    assert not (tmp_path / "c").exists()
    with pytest.raises(InputError, match="can't write"):
        made.write("one", 1)


def test_what_is_named_is_known_by_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("a")
    Path("p").mkdir()
    Path("p/x").write_text("1")
    found = digests({"policy": "./mine.py:score", "many": ["sjf", ("p:alpha=2", "oracle")]})
    assert set(found) == {"./mine.py", "p"} and all(len(one) == 16 for one in found.values())
    assert set(digests("2xh200/a,mine.py")) == {"mine.py"}
    Path("p/__pycache__").mkdir()
    Path("p/__pycache__/y").write_text("2")
    assert digests(["p"])["p"] == found["p"]
    Path("p/x").rename("p/z")
    assert digests(["p"])["p"] != found["p"]
    Path("mine.py").write_text("b")
    assert digests(["mine.py"])["mine.py"] != found["./mine.py"]
    assert digests([".", "/", "none", 3, None, "p\0", "x" * 4096]) == {}


# Rows that ran alike


def rows_of(values: dict[tuple[str, str], list[float]], **more: Any) -> Comparison:
    runs = [
        {"rate": 2.0, "offered_rate": 2.0 + k, "seed": k, "policy": policy, "predictor": predictor,
         "backend": f"b{k}", "e2e_mean_s": value, "e2e_p99_s": 2 * value, "tpot_mean_s": math.nan}
        for (policy, predictor), column in values.items()
        for k, value in enumerate(column)
    ]  # fmt: skip
    who = tuple(Contender(p.split("@")[0], None, p, q) for p, q in values if p != BOUND)
    return Comparison("w", pd.DataFrame(runs), who, {}, {"x": 1}, ("said",), **more)


def test_rows_with_the_same_values_stand_together() -> None:
    found = alike(rows_of({
        ("fcfs", "none"): [1.0, 2.0], ("sjf", "oracle"): [3.0, 2.0], ("mlfq", "none"): [1.0, 2.0],
        ("sjf", "p"): [3.0, 2.0], ("hrrn", "p"): [3.0, 2.5],
    }), 2.0)  # fmt: skip
    assert [[who.policy_name for who in one.contenders] for one in found] == [
        ["fcfs", "mlfq"], ["sjf", "sjf"], ["hrrn"]
    ]  # fmt: skip
    assert [one.name for one in found] == ["fcfs = mlfq", "sjf", "hrrn"]
    assert found[1].label == "sjf · oracle = sjf · p" and found[0].label == "fcfs = mlfq"
    assert found[1].reason == "all predicted lengths gave one order"
    assert found[2].reason == "" and found[0].first.policy_name == "fcfs"

    comparison = rows_of({("fcfs", "none"): [1.0, 2.0], ("mlfq", "none"): [1.0, 2.0]})
    assert comparison.alike(2.0) is comparison.alike(2.0)  # asked by sentences, tables and figures

    def reason(*specs: str, predictor: str = "none") -> str:
        who = [(spec, predictor) for spec in specs]
        (group,) = alike(rows_of({one: [1.0] for one in who}), 2.0)
        return group.reason

    assert reason("fcfs", "hrrn") == "they served in the same order"
    assert reason("fcfs", "sjf+preempt:margin=3") == "no preemption paid"
    assert reason("fcfs", "sjf+preempt:price=0") == "nothing was preempted by score"
    assert reason("sjf", "sjf+guard:ratio=3") == "the starvation guard never acted"
    two = Alike((Contender("fcfs", None, "fcfs", "none", "jsq", "jsq"),) * 2, "x")
    assert two.name == "jsq"


# Flat tables


def test_flat_rows_have_means_with_their_intervals_and_ratios() -> None:
    found = flat.comparison_rows(rows_of({
        ("fcfs", "none"): [2.0, 4.0], ("sjf", "oracle"): [1.0, 3.0], (BOUND, "none"): [0.5, 1.0],
    }))  # fmt: skip
    first, second, bound = found
    assert (first["requests_per_s"], first["policy"], first["predictor"]) == (2.5, "fcfs", "none")
    assert "router" not in first and (second["policy"], second["predictor"]) == ("sjf", "oracle")
    interval = t_interval([1.0, 3.0])
    assert [second[f"e2e_mean_s{end}"] for end in ("", "_low", "_high")] == [
        interval.mean, interval.low, interval.high
    ]  # fmt: skip
    assert second["e2e_mean_s_ratio"] == pytest.approx((0.5 * 0.75) ** 0.5)
    assert second["e2e_p99_s_ratio"] == pytest.approx((0.5 * 0.75) ** 0.5)
    assert first["e2e_mean_s_ratio"] == 1.0 and "tpot_mean_s_ratio" not in first
    assert not {"rate", "seed", "backend", "offered_rate"} & set(first)
    assert bound["policy"] == BOUND and bound["e2e_mean_s"] == 0.75
    assert bound["e2e_mean_s_ratio"] == pytest.approx(0.25)
    without = flat.comparison_rows(rows_of({
        ("fcfs", "none"): [2.0, 4.0], (BOUND, "none"): [0.5, math.nan],
    }))  # fmt: skip
    assert [row["policy"] for row in without] == ["fcfs"]


def test_flat_capacities_and_published_tables() -> None:
    found = Capacity(
        Interval(2.0, 1.5, 2.5, 2), (1.5, 2.5),
        (Probe(1.5, 1, {"x": 0.1}, True), Probe(1.5, 0, {"x": 0.2}, True),
         Probe(2.5, 1, {"x": 0.3}, True), Probe(2.5, 0, {"x": 0.4}, False)),
    )  # fmt: skip
    assert flat.capacity_rows("sjf", found) == [
        {"policy": "sjf", "seed": 0, "capacity_requests_per_s": 1.5, "x": 0.2},
        {"policy": "sjf", "seed": 1, "capacity_requests_per_s": 2.5, "x": 0.3},
    ]
    document = flat.capacity_document("sjf", {"x": 1.0}, found)
    assert document["capacity_requests_per_s_low"] == 1.5 and len(document["probes"]) == 4
    assert document["slo_s"] == {"x": 1.0} and len(document["seeds"]) == 2
    lines = (Line("s", "p", "1", "2", Interval(3.0, 2.0, 4.0, 2)), Line("s", "q", "-", "-"))
    first, second = flat.reproduction_rows(Reproduction("t", "s", lines, ("d",)))
    assert (first["ours"], first["ours_low"], first["ours_high"]) == (3.0, 2.0, 4.0)
    assert math.isnan(first["our_ratio"]) and math.isnan(second["ours"])
    assert flat.prediction_rows({"model": "ridge", "metrics": {"mae": {"value": 1.0}}}) == [
        {"predictor": "ridge", "metric": "mae", "value": 1.0}
    ]
    assert flat.prediction_rows({"predictor": "./p", "model": "x"}) == []
    bound = {(BOUND, "none"): [math.nan]}
    two = SimpleNamespace(
        capacity=5.0, own=rows_of({("fcfs", "none"): [2.0], **bound}),
        loads=rows_of({("sjf", "p"): [1.0], **bound}),
    )  # fmt: skip
    shares = flat.advice_rows(two)  # type: ignore[arg-type]
    assert [(row["load"], row["policy"]) for row in shares] == [(0.4, "fcfs"), (0.4, "sjf")]


# Work that is stopped, and folders that are taken


def test_work_that_is_stopped_says_what_is_kept() -> None:
    before = signal.getsignal(signal.SIGTERM)
    for number, name in ((signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "SIGINT")):
        with pytest.raises(stopped.Stopped, match=f"^{name}: all of it$") as caught:
            with stopped.kept(lambda: "all of it"):
                signal.raise_signal(number)
        assert caught.value.number == number
        assert signal.getsignal(signal.SIGTERM) == before
    for number in (signal.SIGTERM, signal.SIGINT):  # whatever the words are
        with pytest.raises(stopped.Stopped, match="SIGTERM or not: saved") as caught:
            with stopped.kept(lambda: "not asked"):
                raise stopped.Interrupted("SIGTERM or not: saved", number)
        assert caught.value.number == number
    with stopped.kept(lambda: ""):
        pass
    with pytest.raises(ValueError, match="a bug"), stopped.kept(lambda: ""):
        raise ValueError("a bug")
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_is_kept_beside_a_result(tmp_path: Path) -> None:
    assert stopped.cells_kept(None) == "nothing is kept without --out"
    out = tmp_path / "out"
    folder = folders.cells_folder(out)
    assert folder == tmp_path / "out.cells"
    folder.mkdir()
    for count, said in ((0, "0 finished cells"), (1, "1 finished cell "), (2, "2 finished cells")):
        if count:
            (folder / f"cell-{count}.json").write_text("1")
        assert stopped.cells_kept(str(out)).startswith(said)
    assert stopped.checkpoint_kept(str(out)).startswith("nothing was written to")
    (tmp_path / "out.checkpoint" / "a").mkdir(parents=True)
    (tmp_path / "out.checkpoint" / "a" / "x.pt").write_text("1")
    assert stopped.checkpoint_kept(str(out)).startswith("the last epoch is kept in")


def test_the_same_run_is_one_that_gives_the_same_results(tmp_path: Path) -> None:
    same = folders.same_run
    line = "lengthwise compare azure-conv-2023 --seeds 3"
    assert same(line, line) and same("x", "x") and not same("x", "y")
    for more in ("--out a", "--processes 2", "--force", "--replicas 1", "--router round-robin"):
        assert same(line, f"{line} {more}"), more
    for other in ("--seed 4", "--replicas 2", "--rates 3"):
        assert not same(line, f"{line} {other}"), other
    assert not same(line, "lengthwise simulate azure-conv-2023")
    assert not same(line, "lengthwise nothing") and not same(line, "other compare x")
    with pytest.raises(InputError, match="not made by a command of lengthwise"):
        folders._command("other compare x")
    with pytest.raises(InputError, match="no command of lengthwise"):
        folders._command("lengthwise nothing")
    name, command, tokens = folders._command("lengthwise train policy --out r")
    assert (name, command.name, tokens) == ("train policy", "policy", ["--out", "r"])
    out = tmp_path / "out"
    folders.claim(line, None, False)
    folders.claim(line, out, False)
    out.mkdir()
    config = out / "config.json"
    for content, match in (
        ({"command": "lengthwise simulate x"}, "those of `lengthwise simulate x`: name a new"),
        ({"command": 3}, "holds results already, others:"), ([1], "others: name a new folder"),
    ):  # fmt: skip
        config.write_text(json.dumps(content))
        with pytest.raises(InputError, match=match):
            folders.claim(line, out, False)
        folders.claim(line, out, True)
    config.write_text(json.dumps({"command": f"{line} --processes 2"}))
    folders.claim(line, out, False)


def test_cells_beside_a_result_are_gone_on_with_or_discarded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[list[str]] = []
    monkeypatch.setattr("lengthwise.training.commands.show.notices", said.append)
    line = "lengthwise compare azure-conv-2023 --seeds 3"
    assert folders.cells_of(line, None, False) is None
    made = folders.cells_of(line, tmp_path / "o", False)
    assert said == [] and made.folder == tmp_path / "o.cells"
    made.write("a", 1)
    again = folders.cells_of(f"{line} --processes 2", tmp_path / "o", False)
    assert again.read("a") == 1
    assert said == [
        [f"going on: {tmp_path / 'o.cells'} holds 1 finished cells of an interrupted run"]
    ]
    with pytest.raises(InputError, match="--force discards them"):
        folders.cells_of(f"{line} --replicas 2", tmp_path / "o", False)
    fresh = folders.cells_of(f"{line} --replicas 2", tmp_path / "o", True)
    assert len(fresh) == 0
