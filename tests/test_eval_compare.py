"""Grids of policies, predictors, rates and seeds; their tables, figures and report."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import gmean

from lengthwise.errors import InputError
from lengthwise.eval import plots
from lengthwise.eval.compare import BOUND, Comparison, compare
from lengthwise.eval.publish import pick_timelines, publish
from lengthwise.eval.simulate import simulate
from lengthwise.eval.source import Fixed, Spelled
from lengthwise.eval.statistics import Interval
from lengthwise.eval.tables import heading, number, reasons, with_interval
from lengthwise.eval.terminal import comparison_view, console, markdown
from lengthwise.policies import load_router
from lengthwise.policies.bundle import write_bundle
from lengthwise.serving import Engine
from lengthwise.workload import Workload

ENGINE = Engine(max_num_seqs=16)
SOURCE = Spelled("lmsys-chat", {"requests": 300})
NOISY = "noisy-oracle:tau=0.5"


@pytest.fixture(scope="module")
def grid() -> Comparison:
    return compare(SOURCE, ("sjf", "mlfq:quantum=16,levels=4"), (NOISY,), (2.0, 12.0), 3, ENGINE)


def test_rows_are_the_baseline_the_policies_and_the_oracle(grid: Comparison) -> None:
    assert [(who.policy_name, who.predictor_name) for who in grid.contenders] == [
        ("fcfs", "none"),
        ("sjf", NOISY),
        ("sjf", "oracle"),
        ("mlfq:quantum=16,levels=4", "none"),
    ]
    assert grid.rates == [2.0, 12.0]
    assert len(grid.runs) == 2 * 3 * (len(grid.contenders) + 1)  # and the bound


def test_values_are_those_of_single_runs(grid: Comparison) -> None:
    workload = SOURCE.load(2.0, 1).at_rate(12.0)
    result = simulate(workload, "sjf", NOISY, ENGINE, seed=1)
    found = grid.values(12.0, "sjf", NOISY, "e2e_mean_s")
    assert found[1] == pytest.approx(result.summary()["e2e_mean_s"], rel=1e-12)
    offered = grid.values(12.0, "sjf", NOISY, "offered_rate")
    assert offered == pytest.approx(12.0)


def test_order_gains_nothing_until_a_queue_forms(grid: Comparison) -> None:
    _, noisy, oracle, _ = grid.contenders
    assert grid.ratio(2.0, oracle, "e2e_mean_s").mean == pytest.approx(1, abs=0.005)
    assert "no queue forms" in heading(grid, 2.0)
    assert grid.ratio(12.0, oracle, "normalized_latency_mean_s").high < 0.9
    assert "a queue forms" in heading(grid, 12.0)
    # a perfect predictor is worth more than a noisy one, and neither beats the bound
    means = [grid.interval(12.0, who, "e2e_mean_s").mean for who in (oracle, noisy)]
    assert grid.bound(12.0).mean < means[0] < means[1]


def test_preemption_that_never_pays_is_said() -> None:
    dear, free = "mlfq+preempt:price=100", "mlfq:quantum=4+preempt:price=0"
    found = compare(SOURCE, (dear, free), (), (12.0,), 1, ENGINE)
    assert not found.values(12.0, dear, "none", "preemptions").any()
    assert found.values(12.0, free, "none", "preemptions").any()
    assert reasons(found, 12.0) == [f"fcfs = {dear}: no preemption paid"]


def test_processes_change_nothing(grid: Comparison) -> None:
    again = compare(
        SOURCE, ("sjf", "mlfq:quantum=16,levels=4"), (NOISY,), (2.0, 12.0), 3, ENGINE, processes=2
    )
    pd.testing.assert_frame_equal(again.runs, grid.runs)


def test_errors_in_other_processes_are_one_line() -> None:
    with pytest.raises(InputError, match="no preset and no file"):
        compare("azure-conv-2032", seeds=2, processes=2)


def test_a_workload_at_hand_has_its_own_rate(tmp_path: Path) -> None:
    workload = Workload.preset("lmsys-chat", requests=50, rate=5.0)
    found = compare(Fixed(workload), ("sjf",), seeds=2, engine=ENGINE, processes=2)
    assert publish(found, tmp_path / "out").is_file()
    assert [math.isnan(rate) for rate in found.rates] == [True]
    assert found.offered_rate(math.nan) == pytest.approx(workload.rate)
    # nothing in it is random, so there is nothing to put an interval around
    assert (
        with_interval(found.interval(math.nan, found.contenders[0], "e2e_mean_s")).count("±") == 0
    )
    assert any("same requests for every seed" in notice for notice in found.notices)


def test_bad_grids_are_refused() -> None:
    for wrong in ({"seeds": 0}, {"policies": ()}):
        with pytest.raises(InputError):
            compare("lmsys-chat", **wrong)  # type: ignore[arg-type]


def test_numbers_have_three_digits() -> None:
    shown = [number(v) for v in (0.0, 0.01234, 0.5, 1.234, 12.34, 123.4, 12345.6, math.nan)]
    assert shown == ["0", "0.0123", "0.500", "1.23", "12.3", "123", "12,346", "–"]
    assert with_interval(Interval(12.34, 11.34, 13.34, 5)) == "12.3 ± 1.0"


def test_terminal_table_fits_its_width(grid: Comparison) -> None:
    screen = console()
    for width in (90, 120, 200):
        screen.width = width
        with screen.capture() as captured:
            screen.print(comparison_view(grid, width))
        lines = captured.get().splitlines()
        assert max(map(len, lines)) <= width
        assert "…" not in captured.get()
        assert "latency, s" in captured.get()
        assert sum(line.startswith(f"{BOUND}  ") for line in lines) >= 2
    assert "preempted" in captured.get()


def test_markdown_has_a_row_for_each(grid: Comparison) -> None:
    text = markdown(grid)
    assert text.count("| fcfs |") == 2
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1


class Loads(HTMLParser):
    """Collects everything that a page would fetch, and the tags left open."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.stack: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [
            v for k, v in attrs if k in ("src", "href", "xlink:href") and v is not None
        ]
        if tag not in ("meta", "img", "br"):
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag


def test_published_folder(grid: Comparison, tmp_path: Path) -> None:
    timelines = pick_timelines(grid, SOURCE, ENGINE)
    assert timelines[0][0] == "fcfs"
    for name in ("a", "b"):
        report = publish(grid, tmp_path / name, timelines=timelines, command="lengthwise compare")
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert {"runs.parquet", "table.md", "report.html", "config.json", "cdf.svg"} <= set(files)
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    page = Loads()
    page.feed(report.read_text("utf-8"))
    assert page.stack == []
    text = report.read_text("utf-8")
    assert page.fetched  # what figures use again, in the page itself
    assert all(source.startswith("#") for source in page.fetched)
    assert not re.search(r"url\((?!#)|@import|<link|<script src", text)
    assert len(text) < 1_500_000


def test_a_figure_against_load_needs_two_loads() -> None:
    found = compare(SOURCE, ("fcfs",), rates=(4.0,), seeds=1, engine=ENGINE)
    with pytest.raises(InputError, match="two rates"):
        plots.latency_by_rate(found)
    assert plots.svg(plots.latency_cdf(found)).startswith(b"<?xml")


def test_a_narrow_figure_holds_its_whole_legend() -> None:
    """One panel, and names that are wider than it side by side."""
    policies = tuple(f"mlfq:quantum={n},levels=6,prefill_ratio=32" for n in (16, 32, 64, 128))
    found = compare(SOURCE, policies, rates=(4.0,), seeds=1, engine=ENGINE)
    figure = plots.latency_cdf(found)
    plots.svg(figure)  # lays it out
    (legend,) = figure.legends
    box, whole = legend.get_window_extent(), figure.bbox
    assert len(legend.get_texts()) >= 4
    assert whole.x0 <= box.x0 and box.x1 <= whole.x1


def test_quantiles_are_numpys() -> None:
    found = compare(SOURCE, ("fcfs",), rates=(4.0,), seeds=1, engine=ENGINE)
    run = simulate(SOURCE.load(4.0, 0), "fcfs", engine=ENGINE)
    latency = run.requests["finish_s"] - run.requests["arrival_s"]
    assert found.quantiles(4.0, found.contenders[0])[200] == pytest.approx(
        np.median(latency), rel=1e-9
    )


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, str]:
    """Routers of three replicas, one of them a bundle (of the best there is here)."""
    folder = str(write_bundle(load_router("jsq-tokens"), tmp_path_factory.mktemp("r") / "bundle"))
    found = compare(
        SOURCE, ("fcfs",), (NOISY,), (30.0,), 3, Engine(max_num_seqs=8), replicas=3,
        routers=("jsq", "least-tokens", folder),
    )  # fmt: skip
    return found, folder


def test_routers_are_rows_beside_round_robin(routed: tuple[Comparison, str]) -> None:
    found, folder = routed
    assert [(who.router_name, who.predictor_name) for who in found.contenders] == [
        ("round-robin", "none"), ("jsq", "none"), ("least-tokens", NOISY),
        ("least-tokens", "oracle"), (folder, NOISY), (folder, "oracle"),
    ]  # fmt: skip
    turns, jsq, *_, bundle = found.contenders
    workload = SOURCE.load(30.0, 2)
    for who in (turns, jsq):
        alone = simulate(
            workload, "fcfs", None, Engine(max_num_seqs=8), replicas=3, router=who.router, seed=2
        )
        expected = alone.summary()["e2e_mean_s"]
        assert found.of(30.0, who, "e2e_mean_s")[2] == pytest.approx(expected, rel=1e-12)
    # the best is no bundle, and ratios to it are scipy's geometric means of pairs
    best = found.best(30.0)
    assert best.router_name in ("jsq", "least-tokens")
    pairs = found.of(30.0, bundle, "e2e_mean_s") / found.of(30.0, best, "e2e_mean_s")
    assert found.ratio(30.0, bundle, "e2e_mean_s", best).mean == pytest.approx(gmean(pairs))
    assert found.ratio(30.0, jsq, "e2e_mean_s").mean < 1


def test_tables_of_routers_have_ratios_to_the_first_and_the_best(
    routed: tuple[Comparison, str], tmp_path: Path
) -> None:
    found, _folder = routed
    lines = [line for line in markdown(found).splitlines() if line.startswith("|")]
    heads = [cell.strip() for cell in lines[0].split("|")[1:-1]]
    assert heads[:6] == [
        "router", "policy", "predictor", "mean latency, s", "mean × round-robin",
        "mean × best",
    ]  # fmt: skip
    assert heads[6:9] == ["P99 latency, s", "P99 × round-robin", "P99 × best"]
    assert len({line.count("|") for line in lines}) == 1
    best = found.best(30.0)
    row = next(
        cells for cells in ([c.strip() for c in line.split("|")[1:-1]] for line in lines)
        if (cells[0], cells[2]) == (best.router_name, best.predictor_name.replace("none", ""))
    )  # fmt: skip
    assert row[5] == "1.00"
    assert heading(found, 30.0).count("under round-robin a request waits") == 1
    screen = console()
    with screen.capture() as captured:
        screen.print(comparison_view(found, 200))
    assert "× best" in captured.get()
    timelines = pick_timelines(found, SOURCE, Engine(max_num_seqs=8), replicas=3)
    assert timelines[0][0] == "round-robin"
    report = publish(found, tmp_path / "out", timelines=timelines, command="lengthwise compare")
    page = Loads()
    page.feed(report.read_text("utf-8"))
    assert page.stack == []
    assert report.read_text("utf-8").count("× best") == 2


def test_routers_need_a_choice() -> None:
    with pytest.raises(InputError, match="two nodes or more"):
        compare(SOURCE, ("fcfs",), routers=("jsq",), seeds=1)
