"""What tables, figures and the report show is what was measured: every number, by its heading."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from matplotlib.colors import to_hex
from rich.console import Console, RenderableType

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.eval import charts, panels, plots
from lengthwise.eval.alike import NAMES
from lengthwise.eval.capacity import Capacity, Probe
from lengthwise.eval.compare import BOUND, QUANTILES, Comparison, Contender
from lengthwise.eval.publish import pick_timelines, publish
from lengthwise.eval.report import write_report
from lengthwise.eval.reproductions.table import Line, Reproduction
from lengthwise.eval.source import Fixed
from lengthwise.eval.statistics import Interval, t_interval
from lengthwise.eval.tables import (
    COLUMNS,
    check_columns,
    chosen_columns,
    columns_of,
    footnote,
    heading,
    number,
    ratio_cell,
    reasons,
    row,
    rows_of,
    subtitle,
    verdict,
    with_interval,
)
from lengthwise.eval.terminal import (
    BLOCKS,
    capacity_view,
    comparison_view,
    judged_columns,
    judged_view,
    markdown,
    plain_metric,
    prediction_view,
    reproduction_view,
    run_view,
)
from lengthwise.eval.verdict import judged_verdict, verdicts
from lengthwise.policies import load_policy
from lengthwise.policies.bundle import write_bundle
from lengthwise.serving import Engine
from lengthwise.workload import Workload

WHO = (
    Contender("fcfs", None, "fcfs", "none"),
    Contender("sjf", "noisy-oracle", "sjf", "noisy-oracle"),
    Contender("sjf", "oracle", "sjf", "oracle"),
    Contender("mlfq", None, "mlfq", "none"),
)
METRICS = {
    "e2e_mean_s": 10.0, "e2e_p99_s": 60.0, "ttft_mean_s": 1.0, "normalized_latency_mean_s": 0.05,
    "wait_max_s": 30.0, "wait_mean_s": 3.0, "throughput_tokens_per_s": 4000.0,
    "preemptions": 1500.0, "slo_attainment": 0.5, "goodput_requests_per_s": 3.0,
    "ttft_p50_s": 0.5, "ttft_p99_s": 9.0, "tpot_p50_s": 0.03, "tpot_p99_s": 0.08,
}  # fmt: skip
FACTORS = {"fcfs": 1.0, "sjf": 0.6, "mlfq": 0.8}


def comparison(
    seeds: int = 3,
    rates: tuple[float, ...] = (2.0, 8.0),
    contenders: tuple[Contender, ...] = WHO,
    metrics: dict[str, float] = METRICS,
    **config: Any,
) -> Comparison:
    """A grid of made-up values, each another one; the best that needs no oracle is sjf."""
    rng = np.random.default_rng(0)
    rows, curves = [], {}
    for rate in rates:
        for who in contenders:
            for seed in range(seeds):
                factor = FACTORS.get(who.policy_name, 1.0) * (rate if rate == 8.0 else 2.0)
                values = {
                    name: value * factor * rng.uniform(0.9, 1.1) for name, value in metrics.items()
                }
                named = {"policy": who.policy_name, "predictor": who.predictor_name}
                if who.router_name:
                    named["router"] = who.router_name
                    values["e2e_mean_s"] *= {"round-robin": 1.0, "jsq": 0.7}.get(
                        who.router_name, 0.5
                    )
                if "slo_attainment" in values:
                    values["slo_attainment"] = rng.uniform(0.2, 0.9)
                offered = 5.0 if math.isnan(rate) else rate
                rows.append(
                    {"rate": rate, "offered_rate": offered, "seed": seed, **named,
                     "requests": 1200.0 + 100 * seed, **values}
                )  # fmt: skip
            key = None if math.isnan(rate) else rate
            curves[key, who.label] = np.sort(rng.lognormal(1, 1, QUANTILES.size))
        rows += [
            {"rate": rate, "offered_rate": rate, "seed": seed, "policy": BOUND, "router": BOUND,
             "predictor": "none", "e2e_mean_s": float(rng.uniform(2, 3))}
            for seed in range(seeds)
        ]  # fmt: skip
    runs = pd.DataFrame(rows)
    if not contenders[0].router_name:
        runs = runs.drop(columns="router")
    shuffled = runs.sample(frac=1, random_state=1)  # values are by seed, not by row
    return Comparison(
        "made <up>", shuffled, contenders, curves,
        {"replicas": 1, "router": "round-robin", "timing": "h200/x", **config},
        ("a note & more",),
    )  # fmt: skip


ROUTED = (
    Contender("fcfs", None, "fcfs", "none", "round-robin", "round-robin"),
    Contender("fcfs", None, "fcfs", "none", "jsq", "jsq"),
    Contender("sjf", "oracle", "sjf", "oracle", "round-robin", "round-robin"),
)


def shown(view: RenderableType, width: int = 400) -> list[str]:
    screen = Console(width=width, highlight=False, color_system=None)
    with screen.capture() as captured:
        screen.print(view)
    return [line.rstrip() for line in captured.get().splitlines()]


def cells_of(line: str) -> list[str]:
    return re.split(r"\s{2,}", line.strip())


def of(found: Comparison, rate: float, who: Contender, metric: str) -> np.ndarray:
    """Values by seed, with pandas alone."""
    runs = found.runs
    at = (
        (runs.rate.isna() if math.isnan(rate) else (runs.rate == rate))
        & (runs.policy == who.policy_name)
        & (runs.predictor == who.predictor_name)
    )
    if who.router_name:
        at &= runs.router == who.router_name
    return runs[at].set_index("seed")[metric].sort_index().to_numpy()


def half_of(values: np.ndarray) -> float:
    return float(scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values))


def digits(text: str) -> float:
    return float(text.replace(",", ""))


def near(text: str, value: float) -> bool:
    """Whether a text is a number to three digits, or to the last that is shown."""
    decimals = len(text.partition(".")[2])
    return math.isclose(digits(text), value, abs_tol=0.5001 * 10**-decimals) and (
        abs(value) >= 100 or len(text.replace(".", "").lstrip("0")) >= 3 or value < 1e-4
    )


# Numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (99.94, "99.9"), (100.0, "100"), (99.5, "99.5"), (1e-6, "0.000001"), (9.9e-7, "0"),
        (-12.34, "-12.3"), (0.001234, "0.00123"), (1.0, "1.00"), (10.0, "10.0"), (1234.5, "1,234"),
    ],
)  # fmt: skip
def test_numbers_at_the_ends_of_their_ranges(value: float, text: str) -> None:
    assert number(value) == text


def test_an_interval_narrower_than_rounding_is_none() -> None:
    assert with_interval(Interval(5.0, 5.0 - 4e-9, 5.0 + 4e-9, 3)) == "5.00"
    assert with_interval(Interval(5.0, 5.0 - 1e-8, 5.0 + 1e-8, 3)) == "5.00 ± 0.00"
    assert with_interval(Interval(-5.0, -5.0, -5.0, 3)) == "-5.00"
    assert with_interval(Interval(1234.0, 234.0, 2234.0, 3)) == "1,234 ± 1,000"
    assert with_interval(Interval(0.0123, 0.0023, 0.0223, 3)) == "0.0123 ± 0.0100"
    assert with_interval(Interval(5.0, math.nan, math.nan, 1)) == "5.00"


def test_a_verdict_needs_an_interval_on_one_side_of_1() -> None:
    cases = {(0.8, 0.99): "better", (0.8, 1.0): "same", (1.0, 1.2): "same", (1.01, 1.2): "worse"}
    for (low, high), said in cases.items():
        assert verdict(Interval((low + high) / 2, low, high, 3)) == said
    assert verdict(Interval(0.5, math.nan, math.nan, 1)) == ""
    cell = ratio_cell(Interval(0.9, 0.84, 0.95, 3))
    assert (cell.text, cell.value, cell.verdict) == ("0.90 ± 0.05", 0.9, "better")
    assert ratio_cell(Interval(1.0, math.nan, math.nan, 1)).text == "1.00"


# A comparison in the terminal, in Markdown and in the report


def expected(found: Comparison, rate: float, who: Contender) -> dict[str, tuple[str, float, float]]:
    """Metric or ratio -> how it is written, its mean and half its interval, with scipy."""
    first, best = found.contenders[0], found.best(rate)
    said: dict[str, tuple[str, float, float]] = {}
    for name in METRICS:
        if name not in found.runs:
            continue
        values = of(found, rate, who, name)
        kind = {"preemptions": "count", "slo_attainment": "share"}.get(name, "number")
        said[name] = (kind, float(values.mean()), half_of(values))
    for name, to in (("first", first), ("best", best)):
        for metric in ("e2e_mean_s", "e2e_p99_s"):
            logs = np.log(of(found, rate, who, metric) / of(found, rate, to, metric))
            low, high = np.exp([logs.mean() - half_of(logs), logs.mean() + half_of(logs)])
            mean = float(scipy.stats.gmean(np.exp(logs)))
            said[f"{metric} {name}"] = ("ratio", mean, float(high - low) / 2)
    return said


HEADS = [
    "mean latency, s", "mean × fcfs", "P99 latency, s", "P99 × fcfs", "goodput/s", "max wait, s",
    "TTFT P99, s", "TPOT P99, s", "meet SLO", "TTFT P50, s", "TPOT P50, s", "mean TTFT, s",
    "s/token", "tokens/s", "preempted",
]  # fmt: skip
ORDER = [
    "e2e_mean_s", "e2e_mean_s first", "e2e_p99_s", "e2e_p99_s first", "goodput_requests_per_s",
    "wait_max_s", "ttft_p99_s", "tpot_p99_s", "slo_attainment", "ttft_p50_s", "tpot_p50_s",
    "ttft_mean_s", "normalized_latency_mean_s", "throughput_tokens_per_s", "preemptions",
]  # fmt: skip


def agrees(text: str, said: tuple[str, float, float]) -> bool:
    kind, mean, half = said
    if kind == "count":
        return digits(text) == round(mean)
    if kind == "share":
        return text == f"{100 * mean:.1f}%"
    value, sign, spread = text.partition(" ± ")
    if kind == "ratio":
        return value == f"{mean:.2f}" and (spread == f"{half:.2f}" if half > 1e-9 else not sign)
    return near(value, mean) and math.isclose(
        digits(spread), half, abs_tol=0.51 * 10 ** -len(value.partition(".")[2])
    )


def test_each_cell_of_the_terminal_is_its_metric() -> None:
    found = comparison()
    lines = shown(comparison_view(found, 400))
    assert lines[0] == "made <up>"
    assert lines[1] == "1,200 to 1,400 requests × 3 seeds, on h200/x"
    assert lines[3:5] == verdicts(found)  # first of all
    starts = [i for i, line in enumerate(lines) if "requests/s:" in line][2:]
    assert [lines[i].split(":")[0] for i in starts] == ["2 requests/s", "8 requests/s"]
    for start, rate in zip(starts, found.rates, strict=True):
        assert lines[start - 1] == ""
        assert cells_of(lines[start + 1]) == ["policy", "predictor", *HEADS]
        assert set(lines[start + 2]) <= set(" ─")
        for line, who in zip(lines[start + 3 :], found.contenders, strict=False):
            names = [who.policy_name] + [who.predictor_name] * (who.predictor_name != "none")
            cells = cells_of(line)
            assert cells[: len(names)] == names
            said = expected(found, rate, who)
            for text, name in zip(cells[len(names) :], ORDER, strict=True):
                assert agrees(text, said[name]), (name, text, said[name])
        bound = cells_of(lines[start + 3 + len(WHO)])
        values = found.runs[(found.runs.policy == BOUND) & (found.runs.rate == rate)]
        values = values.sort_values("seed").e2e_mean_s.to_numpy()
        assert bound[0] == BOUND
        assert agrees(bound[1], ("number", values.mean(), half_of(values)))
        ratio = scipy.stats.gmean(values / of(found, rate, WHO[0], "e2e_mean_s"))
        assert bound[2].startswith(f"{ratio:.2f} ± ")
        assert bound[3:] == ["–"] * 13
    assert lines[-1] == "note: a note & more"
    assert lines[-2] == footnote(found)


def test_no_column_goes_without_a_word() -> None:
    found = comparison(seeds=2, rates=(2.0,), contenders=WHO[:2])
    wanted = [column.heading.replace(", s", "") for column in columns_of(found)]
    for width in (40, 60, 80, 100, 160, 250):
        for options in ({}, {"columns": ORDER_NAMES}, {"wide": True}):
            lines = shown(comparison_view(found, width, **options), 400)  # type: ignore[arg-type]
            rows = [line for line in lines if line.startswith(("fcfs ", "sjf ", BOUND))]
            heads = [lines[i - 1] for i, line in enumerate(lines) if line.startswith("─")]
            tail = " ".join(line for line in lines if line.startswith("No room for"))
            if options.get("wide"):
                assert len(heads) == 1 and not tail
                continue
            assert max(map(len, rows)) <= max(width, 50)  # names and one column need this much
            assert len(heads) <= BLOCKS or "columns" in options
            cells = [cells_of(line) for line in rows if line.startswith("fcfs ")]
            there = sum(len(line) - 1 for line in cells)  # the baseline has no predictor
            missing = tail.removeprefix("No room for ").partition(": --wide")[0].split(", ")
            missing = [] if missing == [""] else missing
            assert wanted[there:] == missing, (width, options)
            assert not (missing and "columns" in options)


ORDER_NAMES = [
    "e2e_mean", "e2e_mean_ratio", "e2e_p99_s", "e2e_p99_ratio", "goodput", "wait_max", "ttft_p99",
    "tpot_p99", "slo_attainment", "ttft_p50", "tpot_p50", "ttft_mean", "normalized_latency_mean",
    "throughput_tokens_per_s", "preemptions",
]  # fmt: skip


def test_columns_are_chosen_by_the_names_of_metrics() -> None:
    found = comparison()
    assert chosen_columns(found, ORDER_NAMES) == columns_of(found)
    headings = [column.heading.removesuffix(", s") for column in columns_of(found)]
    assert chosen_columns(found, headings) == columns_of(found)
    (other,) = chosen_columns(found, ["Wait mean"])
    assert (other.heading, other.metric) == ("mean wait, s", "wait_mean_s")
    odd = chosen_columns(found, ["ttft_p99_ratio", "wait_mean", "tpot_p50_ratio_best"])
    assert [(c.heading, c.metric, c.ratio) for c in odd] == [
        ("TTFT P99 × fcfs", "ttft_p99_s", "first"), ("mean wait, s", "wait_mean_s", ""),
        ("TPOT P50 × best", "tpot_p50_s", "best"),
    ]  # fmt: skip
    who = found.contenders[1]
    (cell,) = row(found, 2.0, who, odd[:1])
    ratios = of(found, 2.0, who, "ttft_p99_s") / of(found, 2.0, found.contenders[0], "ttft_p99_s")
    assert cell.value == pytest.approx(scipy.stats.gmean(ratios))
    with pytest.raises(InputError, match="did you mean 'ttft_p99'"):
        chosen_columns(found, ["ttft_p9"])


def test_columns_that_no_comparison_has_are_refused_before_the_runs() -> None:
    found = comparison()
    metrics = [name for name in found.runs if name not in NAMES]
    headings = [column.heading.removesuffix(", s") for column in columns_of(found)]
    check_columns([*metrics, *ORDER_NAMES, *headings], ("ttft", "chat.tpot"))
    routed = comparison(contenders=ROUTED, replicas=2)
    check_columns(["slo_attainment_chat", "TTFT P90", "e2e_p95_ratio_best"], ("ttft", "chat.tpot"))
    with pytest.raises(UnknownNameError, match="'e2e_meen'; did you mean 'e2e_mean'"):
        check_columns(["e2e_meen"])
    headings = [column.heading.removesuffix(", s") for column in columns_of(routed)]
    check_columns(headings, ("ttft",), routed=True)
    for name, routers in (("mean × foo", False), ("mean × best", False), ("P99 × fcfs", True),
                          ("TTFT P99 × fcfs", False)):  # fmt: skip
        with pytest.raises(UnknownNameError, match=f"unknown column '{name}'.*mean × "):
            check_columns([name], routed=routers)
        with pytest.raises(UnknownNameError):  # and so are they after the runs
            chosen_columns(routed if routers else found, [name])
    for name in ("goodput", "goodput/s", "meet SLO", "slo_attainment"):
        with pytest.raises(InputError, match=f"column '{name}' needs limits: --slo ttft=1"):
            check_columns([name])


def test_markdown_says_the_same_in_the_same_order() -> None:
    for found in (comparison(), comparison(contenders=ROUTED, replicas=2)):
        lines = markdown(found).split("\n")
        screen = shown(comparison_view(found, 500), 500)
        rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
        rows = [[cell.strip() for cell in cells if cell.strip()] for cells in rows]
        first = ("policy", "router", "fcfs", "sjf", "mlfq", "round-robin", "jsq", BOUND)
        assert rows == [cells_of(line) for line in screen if line.startswith(first)]
        rule = next(line for line in lines if line.startswith("|---"))
        names = 3 if found.routed else 2
        assert rule == "|---" * names + "|" + "---:|" * len(columns_of(found))
        assert lines[:3] == [*(f"- {sentence}" for sentence in verdicts(found)), ""]
        assert lines[3:5] == [f"**{heading(found, 2.0)}**", ""]
        assert lines[-2:] == [footnote(found), ""]
        assert lines[-3] == ""


def test_columns_of_routers_of_failures_and_without_an_slo() -> None:
    def heads(found: Comparison) -> list[tuple[str, str, str]]:
        return [(c.heading, c.metric, c.ratio) for c in columns_of(found)]

    slo = ("slo_attainment", "goodput_requests_per_s")
    plain = {name: value for name, value in METRICS.items() if name not in slo}
    assert [head for head, *_ in heads(comparison(metrics=plain))] == [
        head for head in HEADS if head not in ("meet SLO", "goodput/s")
    ]
    failing = heads(comparison(metrics={**plain, "retries": 3.0, "lost_tokens": 1500.0}))
    assert failing[-2:] == [("retried", "retries", ""), ("lost tokens", "lost_tokens", "")]
    routed = heads(comparison(contenders=ROUTED))
    assert routed[:7] == [
        ("mean latency, s", "e2e_mean_s", ""),
        ("mean × round-robin", "e2e_mean_s", "first"),
        ("mean × best", "e2e_mean_s", "best"),
        ("P99 latency, s", "e2e_p99_s", ""),
        ("P99 × round-robin", "e2e_p99_s", "first"),
        ("P99 × best", "e2e_p99_s", "best"),
        ("goodput/s", "goodput_requests_per_s", ""),
    ]
    assert len(routed) == len(COLUMNS) + 4


def test_ratios_of_routers_are_to_the_first_and_to_the_best() -> None:
    found = comparison(contenders=ROUTED, replicas=2)
    best = min(ROUTED, key=lambda who: np.log(of(found, 8.0, who, "e2e_mean_s")).mean())
    assert found.best(8.0) == best != ROUTED[0]
    for who in ROUTED:
        said = expected(found, 8.0, who)
        cells = row(found, 8.0, who)
        names = [
            "e2e_mean_s", "e2e_mean_s first", "e2e_mean_s best",
            "e2e_p99_s", "e2e_p99_s first", "e2e_p99_s best",
        ]  # fmt: skip
        for cell, name in zip(cells, names, strict=False):
            assert agrees(cell.text, said[name]), name
            assert cell.value == pytest.approx(said[name][1])
    lines = shown(comparison_view(found, 400))
    bound = next(cells_of(line) for line in lines if line.startswith(BOUND))
    values = found.values(2.0, BOUND, "none", "e2e_mean_s")
    for text, to in zip(bound[2:4], (ROUTED[0], found.best(2.0)), strict=True):
        assert text.startswith(
            f"{scipy.stats.gmean(values / of(found, 2.0, to, 'e2e_mean_s')):.2f}"
        )
    assert bound[4:] == ["–"] * 14


def test_the_best_is_of_those_that_were_not_trained(tmp_path: Path) -> None:
    bundle = str(write_bundle(load_policy("hrrn"), tmp_path / "bundle"))
    trained = Contender(bundle, None, "sjf", "none")
    found = comparison(contenders=(WHO[0], WHO[3], trained))
    means = [of(found, 8.0, who, "e2e_mean_s").mean() for who in found.contenders]
    assert int(np.argmin(means)) == 2
    assert trained.trained
    assert not WHO[1].trained
    assert found.best(8.0) == WHO[3]


def test_the_best_is_by_the_geometric_mean() -> None:
    """A seed of a heavy load must not outweigh the others."""
    found = comparison(seeds=2, rates=(2.0,), contenders=(WHO[0], WHO[3]))
    runs = found.runs.copy()
    for who, values in ((WHO[0], (1.0, 100.0)), (WHO[3], (20.0, 60.0))):
        for seed, value in enumerate(values):
            runs.loc[(runs.policy == who.policy_name) & (runs.seed == seed), "e2e_mean_s"] = value
    assert replace(found, runs=runs).best(2.0) == WHO[0]  # 10 against 34.6; by means 50.5 and 40


def _waits(found: Comparison, wait: float, latency: float) -> Comparison:
    runs = found.runs.copy()
    fcfs = runs.policy == "fcfs"
    runs.loc[fcfs, "wait_mean_s"], runs.loc[fcfs, "e2e_mean_s"] = wait, latency
    return replace(found, runs=runs)


def test_headings_say_the_load_and_whether_a_queue_forms() -> None:
    found = comparison()
    assert heading(_waits(found, 1.0, 10.0), 8.0) == (
        "8 requests/s: a queue forms (under fcfs a request waits 1 s of 10.0 s)"
    )
    assert heading(_waits(found, 0.5, 10.0), 8.0) == (  # a twentieth is none
        "8 requests/s: no queue forms (under fcfs a request waits 0.5 s of 10.0 s)"
    )
    assert ": a queue forms" in heading(_waits(found, 0.51, 10.0), 8.0)
    assert " waits 10.0 s of 20.0 s" in heading(_waits(found, 10.0, 20.0), 8.0)
    assert " waits 9.9 s of 20.0 s" in heading(_waits(found, 9.94, 20.0), 8.0)
    own = comparison(rates=(math.nan,))
    assert own.offered_rate(math.nan) == 5.0
    assert heading(own, math.nan).startswith("5 requests/s: ")
    at_once = replace(own, runs=own.runs.assign(offered_rate=math.inf))
    assert heading(at_once, math.nan).startswith("all at once: ")


def test_subtitles_say_what_served() -> None:
    one = comparison(seeds=1)
    assert subtitle(one) == "1,200 requests × 1 seed, on h200/x"
    two = comparison(seeds=2, replicas=2)
    assert subtitle(two) == (
        "1,200 to 1,300 requests × 2 seeds, on 2 replicas of h200/x, routed by round-robin"
    )
    nodes = comparison(
        seeds=1, replicas=3, nodes=[{}, {}], metrics_interval_s=0.5, failures=[{}],
        timing="2 x a + 1 x b",
    )  # fmt: skip
    assert subtitle(nodes) == (
        "1,200 requests × 1 seed, on 2 x a + 1 x b, routed by round-robin on metrics of every "
        "0.5 s, nodes fail or slow down 1 time"
    )
    assert subtitle(comparison(seeds=1, failures=[{}, {}])).endswith("slow down 2 times")
    assert "routed by" not in subtitle(comparison(contenders=ROUTED, replicas=2))


def test_footnotes_say_how_to_read() -> None:
    assert footnote(comparison()) == (
        "Mean over seeds ± half of its 95% t-interval; ratios to fcfs are paired by seed. "
        "lower bound: no schedule has a lower mean, whatever it knows; what is reachable lies "
        "above."
    )
    found = comparison(seeds=1)
    unknown = found.runs.assign(
        e2e_mean_s=found.runs.e2e_mean_s.where(found.runs.policy != BOUND, math.nan)
    )
    assert footnote(replace(found, runs=unknown)) == (
        "One seed: no intervals. lower bound: none is known here."
    )
    # where one rate has a bound, it is explained
    some = unknown.copy()
    some.loc[(some.policy == BOUND) & (some.rate == 8.0), "e2e_mean_s"] = 1.0
    assert "no schedule has a lower mean" in footnote(replace(found, runs=some))
    lines = shown(comparison_view(replace(found, runs=unknown), 400))
    (bound, _) = [cells_of(line) for line in lines if line.startswith(BOUND)]
    assert bound == [BOUND, *["–"] * len(HEADS)]


def test_rows_that_came_out_alike_are_one_and_why() -> None:
    dear = Contender("mlfq+preempt:price=9", None, "mlfq+preempt:price=9", "none")
    free = Contender("mlfq+preempt:price=0", None, "mlfq+preempt:price=0", "none")
    never = Contender("hrrn", None, "hrrn", "none")
    found = comparison(contenders=(WHO[0], dear, free, never))
    runs = found.runs.copy()

    def as_fcfs(who: Contender, rates: tuple[float, ...] = (2.0, 8.0)) -> None:
        for rate in rates:
            for seed in range(3):
                at = (runs.rate == rate) & (runs.seed == seed)
                values = runs.loc[at & (runs.policy == "fcfs"), [*METRICS]].iloc[0].to_numpy()
                runs.loc[at & (runs.policy == who.policy_name), [*METRICS]] = values

    as_fcfs(dear, (8.0,))
    found = replace(found, runs=runs)
    assert reasons(found, 2.0) == []
    assert reasons(found, 8.0) == ["fcfs = mlfq+preempt:price=9: no preemption paid"]
    for who in (free, never):
        as_fcfs(who)
    found = replace(found, runs=runs)
    assert reasons(found, 2.0) == [
        "fcfs = mlfq+preempt:price=0 = hrrn: they served in the same order, nothing was preempted "
        "by score"
    ]
    assert [line.names for line in rows_of(found, 8.0)] == [
        ("fcfs = mlfq+preempt:price=9 = mlfq+preempt:price=0 = hrrn", ""), (BOUND, ""),
    ]  # fmt: skip


class Page(HTMLParser):
    """The rows of a page's tables as cells with their attributes, and its texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[tuple[str, dict[str, str | None]]]]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
            self.tables[-1][-1].append(("", dict(attrs)))
        elif tag in ("td", "th"):
            self.tables[-1][-1].append(("", dict(attrs)))
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            text, attrs = self.tables[-1][-1].pop()
            self.tables[-1][-1].append((text + data, attrs))


def test_the_report_has_the_table_with_its_numbers_to_sort_by(tmp_path: Path) -> None:
    found = comparison()
    made = {"command": "lengthwise compare <x>", "seeds": [0, 1, 2], "odd": Path("a")}
    write_report(
        tmp_path / "r.html", found, title="T & t", provenance=made, lead="<p>lead</p>",
        charts=[charts.trade(found), charts.latency_cdf(found)], sections=[("S", "<p>own</p>")],
    )  # fmt: skip
    text = (tmp_path / "r.html").read_text("utf-8")
    page = Page(text)
    assert len(page.tables) == 4
    for (most, more), rate in zip(zip(*[iter(page.tables)] * 2, strict=True), found.rates,
                                  strict=True):  # fmt: skip
        # what has no room at 1280 pixels is in a table of its own, of rows that say something
        head, *rows = most
        assert [line[1][0] for line in more] == [line[1][0] for line in most[:-1]]
        head = [*head, *more[0][3:]]
        rows = [*(line + rest[3:] for line, rest in zip(rows, more[1:], strict=False)), rows[-1]]
        assert [cell for cell, _ in head[1:]] == ["policy", "predictor", *HEADS]
        helps = [attrs.get("title") for _, attrs in head[3:]]
        assert helps == [column.help for column in columns_of(found)]
        for line, who in zip(rows, found.contenders, strict=False):
            cells = row(found, rate, who)
            assert [cell for cell, _ in line[3:]] == [cell.text for cell in cells]
            assert [attrs["class"] for _, attrs in line[3:]] == [cell.verdict for cell in cells]
            said = expected(found, rate, who)
            for (_, attrs), name in zip(line[3:], ORDER, strict=True):
                assert float(attrs["data-value"] or "nan") == pytest.approx(said[name][1], rel=1e-8)
            assert line[2][0] == ("" if who.predictor_name == "none" else who.predictor_name)
        assert rows[-1][0][1] == {"class": "bound"}
        assert rows[0][0][1] == {"class": ""}
        assert rows[-1][-1] == ("–", {"class": "", "data-value": ""})
        assert rows[-1][3][1]["data-value"] == f"{found.bound(rate).mean:.9g}"
    assert "<h1>T &amp; t</h1>" in text
    assert "made &lt;up&gt; — 1,200" in text
    assert "<section><h2>S</h2><p>own</p></section>" in text
    assert '<ul class="notes"><li>a note &amp; more</li></ul>' in text
    assert '<pre tabindex="0">lengthwise compare &lt;x&gt;</pre>' in text
    order = [
        text.index(part)
        for part in (
            "<h2>In short</h2><p>lead</p>", *map(escape, verdicts(found)), '<figure id="trade">',
            "<table>", "lower bound: no schedule", '<figure id="cdf">', "<h2>S</h2>",
            "<h2>Notes</h2>", "<h2>How it was made</h2>",
        )
    ]  # fmt: skip
    assert order == sorted(order)  # what it says comes before why
    rest = re.search(r"</summary><pre.*?>(.*?)</pre>", text, re.S)
    assert rest is not None
    assert json.loads(rest[1].replace("&quot;", '"')) == {"seeds": [0, 1, 2], "odd": "a"}
    assert "\n\n\n" not in text.partition("</style>")[2].partition("<script>")[0]
    quiet = replace(found, notices=())
    write_report(tmp_path / "q.html", quiet, title="T", provenance=made)
    assert "Notes" not in (tmp_path / "q.html").read_text("utf-8")


def test_rows_that_ran_alike_are_one_in_the_report_with_the_reason(tmp_path: Path) -> None:
    found = comparison()
    runs = found.runs.copy()
    twin = runs[runs.policy == "sjf"].assign(policy="srtf")
    more = tuple(Contender("srtf", w.predictor, "srtf", w.predictor_name) for w in WHO[1:3])
    curves = {
        **found.curves,
        **{(r, m.label): found.curves[r, w.label]
           for r in found.rates for m, w in zip(more, WHO[1:3], strict=True)},
    }  # fmt: skip
    both = replace(
        found, runs=pd.concat([runs, twin]), contenders=(*WHO, *more), curves=curves
    )  # fmt: skip
    write_report(tmp_path / "r.html", both, title="T", provenance={"command": "x"})
    page = Page((tmp_path / "r.html").read_text("utf-8"))
    assert [line[1][0] for line in page.tables[0][1:]] == [
        "fcfs", "sjf = srtf", "sjf = srtf", "mlfq", BOUND,
    ]  # fmt: skip
    assert "<li>sjf = srtf: no preemption paid</li></ul>" in (tmp_path / "r.html").read_text()


# Figures in the report


def test_points_of_the_report_s_figures_lie_where_they_are_drawn_and_say_what_the_table_says() -> (
    None
):
    found = comparison()
    for chart in (charts.trade(found), charts.latency_by_rate(found)):
        text = panels.html(chart)
        (data,) = re.findall(r'<script type="application/json">(.*?)</script>', text, re.S)
        drawn = re.findall(r"<svg xmlns.*?</svg>", text, re.S)
        told = json.loads(data)
        assert len(told) == len(drawn) == len(chart.panels)
        for svg, points in zip(drawn, told, strict=True):
            width, height = map(float, re.search(r'viewBox="0 0 (\S+) (\S+)"', svg).groups())  # type: ignore[union-attr]
            assert (width, height) == pytest.approx((4.3 * 72, 3.3 * 72), abs=0.1)
            for key, x, y, _ in points:
                own = [part for part in svg.split('<g class="s ') if part.startswith(f'{key}"')]
                marks = re.findall(r'<use [^>]*?x="(\S+)" y="(\S+)"', "".join(own))
                places = [(float(a), float(b)) for a, b in marks]
                assert min(math.dist((x, y), place) for place in places) < 0.2
    who, rate = WHO[2], 8.0
    (point,) = [p for p in told_by(charts.trade(found), 1) if p[0] == "s2"]
    mean, p99 = (of(found, rate, who, m) for m in ("e2e_mean_s", "e2e_p99_s"))
    name, *lines = point[3].split("\n")
    assert name == who.label
    assert lines == [
        f"mean {with_interval(t_interval(mean))} s, "
        f"{ratio_cell(found.ratio(rate, who, 'e2e_mean_s')).text} × fcfs",
        f"P99 {with_interval(t_interval(p99))} s, "
        f"{ratio_cell(found.ratio(rate, who, 'e2e_p99_s')).text} × fcfs",
    ]
    last = next(p for p in told_by(charts.latency_cdf(found), 1) if p[0] == "s2" and "90%" in p[3])
    value = np.interp(0.9, QUANTILES, found.curves[rate, who.label])
    assert last[3] == f"{who.label}\n90% of requests within {number(float(value))} s"


def told_by(chart: charts.Chart, panel: int) -> list[list[Any]]:
    found = re.search(r'application/json">(.*?)</script>', panels.html(chart), re.S)
    assert found is not None
    return json.loads(found[1])[panel]  # type: ignore[no-any-return]


def test_figures_in_the_report_take_the_page_s_colours_and_have_names() -> None:
    found = comparison()
    text = panels.html(charts.latency_by_rate(found))
    assert not re.search(r"#[0-9a-f]{6}", text)  # no colour of matplotlib's is left
    assert text.count('role="img" aria-label=') == text.count('class="panel"') == 6
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    used = {name for name in re.findall(r'(?:url\(|href=")#([^)"]+)', text)}
    assert used <= set(ids)
    assert re.findall(r'aria-pressed="true" data-key="(\w+)"', text) == [
        "s0", "s1", "s2", "s3", "bound",
    ]  # fmt: skip
    assert set(re.findall(r'class="s (\w+)"', text)) == {"s0", "s1", "s2", "s3", "bound"}
    course = panels.html(charts.timeline([("a <b>", TWO_NODES), ("b", TWO_NODES)], 400))
    assert "a &lt;b&gt; · KV in use, %" in course
    assert "<b>" not in course
    assert course.count('class="panel"') == 8


def test_the_trade_is_the_table_s_ratios() -> None:
    found = comparison()
    figure: Any = plots.trade(found)
    assert len(figure.axes) == 2
    for axes, rate in zip(figure.axes, found.rates, strict=True):
        for who, drawn in zip(found.contenders, axes.containers, strict=True):
            assert drawn.get_label() == who.label
            point, _, (across, up) = drawn.lines
            for data, metric, bars, axis in (
                (point.get_xdata(), "e2e_mean_s", across, 0),
                (point.get_ydata(), "e2e_p99_s", up, 1),
            ):
                ratio = found.ratio(rate, who, metric)
                assert list(data) == [ratio.mean]
                ((low, high),) = [(s[0, axis], s[1, axis]) for s in bars.get_segments()]
                assert (low + high) / 2 == pytest.approx(ratio.mean)
                assert (high - low) / 2 == pytest.approx(ratio.half)
        (low, high) = axes.get_xlim()
        assert low <= 0.95
        assert high >= 1.05


@pytest.mark.parametrize("points", [(0.9, 1.0, 1.1), (0.98, 1.0, 0.99), (0.3, 1.0, 0.6)])
def test_wide_intervals_of_the_trade_are_cut_one_and_a_half_spans_beyond_its_points(
    points: tuple[float, ...],
) -> None:
    found = comparison(rates=(2.0,), contenders=(WHO[0], WHO[2], WHO[3]))
    runs = found.runs.copy()
    for who, point in zip(found.contenders, (points[1], points[0], points[2]), strict=True):
        rows = (runs["policy"] == who.policy_name) & (runs["predictor"] == who.predictor_name)
        wide = np.array([0.01, 1.0, 100.0] if who.policy_name == "sjf" else [1.0, 1.0, 1.0])
        for metric in ("e2e_mean_s", "e2e_p99_s"):
            runs.loc[rows, metric] = 10 * point * wide[runs.loc[rows, "seed"].astype(int)]
    figure: Any = plots.trade(dataclasses.replace(found, runs=runs))
    span = max(max(points) - min(points), 0.05)
    for low, high in (figure.axes[0].get_xlim(), figure.axes[0].get_ylim()):
        assert low == pytest.approx(min(max(min(points) - 1.5 * span, 0.0), 0.95))
        assert high == pytest.approx(max(max(points) + 1.5 * span, 1.05))


# Figures


def lines_of(axes: Any) -> dict[str, Any]:
    return {line.get_label(): line for line in axes.lines}


def test_each_curve_of_the_distribution_is_its_contender_s() -> None:
    found = comparison()
    figure: Any = plots.latency_cdf(found)
    assert len(figure.axes) == 2
    assert figure.axes[0].get_ylabel() == "share of requests"
    for axes, rate in zip(figure.axes, found.rates, strict=True):
        drawn = lines_of(axes)
        assert list(drawn) == [who.label for who in found.contenders]
        for who in found.contenders:
            x, y = drawn[who.label].get_data()
            assert np.array_equal(x, found.curves[rate, who.label])
            assert np.array_equal(y, QUANTILES)
        assert axes.get_title() == f"{rate:g} requests/s"
        assert axes.get_xlabel() == "end-to-end latency, s"
        assert axes.get_xscale() == "log"
        curves = [found.curves[rate, who.label] for who in found.contenders]
        low, high = axes.get_xlim()  # all but the fastest hundredth, and all of the slowest
        assert low == pytest.approx(min(np.quantile(c, 0.01, method="lower") for c in curves))
        assert max(c[-1] for c in curves) < high < 1.1 * max(c[-1] for c in curves)
        assert axes.get_ylim() == pytest.approx((0, 1.01))
    (one,) = plots.latency_cdf(found, [8.0]).axes
    assert one.get_title() == "8 requests/s"
    assert plots.latency_cdf(replace(found, runs=found.runs.assign(offered_rate=np.inf)), ()).axes
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [who.label for who in WHO]


def test_a_distribution_at_the_workload_s_own_rate_says_it() -> None:
    own = comparison(rates=(math.nan,))
    assert plots.latency_cdf(own).axes[0].get_title() == "5 requests/s"
    at_once = replace(own, runs=own.runs.assign(offered_rate=math.inf))
    assert plots.latency_cdf(at_once).axes[0].get_title() == "all arrive at once"


def test_a_legend_s_swatch_is_what_is_drawn() -> None:
    found = comparison()
    for made, first in ((charts.trade, "text"), (charts.latency_by_rate, "line")):
        chart = made(found)
        swatches = re.findall(r"<svg[^>]*aria-hidden[^>]*><(\w+)", panels.html(chart))
        assert swatches == [first] * len(chart.series)


def test_a_policy_has_its_colour_and_a_predictor_its_line() -> None:
    drawn = lines_of(plots.latency_cdf(comparison()).axes[0])
    fcfs, noisy, oracle, mlfq = (drawn[who.label] for who in WHO)
    assert to_hex(fcfs.get_color()) == "#000000"
    assert noisy.get_color() == oracle.get_color()
    assert len({to_hex(line.get_color()) for line in drawn.values()}) == 3
    assert [line.get_linestyle() for line in (fcfs, noisy, oracle, mlfq)] == ["-", "-", "--", "-"]
    # the baseline is wide and pale, the others are ever thinner so that none hides another
    assert fcfs.get_alpha() == 0.3
    widths = [line.get_linewidth() for line in (fcfs, noisy, mlfq)]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 2 * widths[1]
    assert noisy.get_alpha() is None
    many = tuple(
        Contender("sjf", f"p{i}", f"a{i}", f"p{i}") for i in range(10)
    )  # more than there are colours, line styles and steps of width
    drawn = lines_of(plots.latency_cdf(comparison(seeds=2, contenders=(WHO[0], *many))).axes[0])
    colours = [to_hex(line.get_color()) for line in drawn.values()]
    assert len(set(colours)) == 8
    assert colours[8] == colours[0]
    styles = [drawn[who.label].get_linestyle() for who in many]
    assert styles[:5] == ["-", "--", "-.", ":", "-"]
    assert min(line.get_linewidth() for line in drawn.values()) == 1.0


def test_latency_against_load_is_the_table_s() -> None:
    found = comparison()
    figure: Any = plots.latency_by_rate(found)
    shown = {
        "e2e_mean_s": "mean end-to-end latency, s", "e2e_p99_s": "P99 end-to-end latency, s",
        "ttft_p99_s": "P99 time to first token, s", "tpot_p99_s": "P99 time per output token, s",
        "goodput_requests_per_s": "goodput, requests/s",
        "slo_attainment": "meet the SLO, % of requests",
    }  # fmt: skip
    for axes, (metric, label) in zip(figure.axes, shown.items(), strict=True):
        factor = 100 if metric == "slo_attainment" else 1
        assert axes.get_ylabel() == label
        assert axes.get_xlabel() == "arrival rate, requests/s"
        assert [text.get_text() for text in axes.get_xticklabels()] == ["2", "8"]
        for who, drawn in zip(found.contenders, axes.containers, strict=True):
            assert drawn.get_label() == who.label
            points, _, (bars,) = drawn.lines
            values = [factor * of(found, rate, who, metric) for rate in found.rates]
            assert points.get_xdata().tolist() == [2.0, 8.0]
            assert points.get_ydata() == pytest.approx([v.mean() for v in values])
            ends = [(s[0, 1], s[1, 1]) for s in bars.get_segments()]
            for (low, high), value in zip(ends, values, strict=True):
                assert (high - low) / 2 == pytest.approx(half_of(value))
                assert (high + low) / 2 == pytest.approx(value.mean())
    bound = lines_of(figure.axes[0])["lower bound"]
    assert list(bound.get_xdata()) == [2.0, 8.0]
    assert list(bound.get_ydata()) == [found.bound(rate).mean for rate in found.rates]
    assert "lower bound" not in lines_of(figure.axes[1])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(labels) == sorted([*(who.label for who in WHO), "lower bound"])


def test_one_seed_has_points_without_intervals() -> None:
    figure: Any = plots.latency_by_rate(comparison(seeds=1))
    for drawn in figure.axes[0].containers:
        (bars,) = drawn.lines[2]
        assert all(segment[0, 1] == segment[1, 1] for segment in bars.get_segments())


@pytest.mark.parametrize(("much", "scale"), [(3.0, "linear"), (40.0, "log")])
def test_loads_that_differ_much_are_drawn_by_logarithms(much: float, scale: str) -> None:
    found = comparison(seeds=1, contenders=WHO[:1])
    runs = found.runs.copy()
    fcfs = runs.policy == "fcfs"
    runs.loc[fcfs, "e2e_mean_s"] = np.where(runs.rate[fcfs] == 2.0, 1.0, much)
    axes = plots.latency_by_rate(replace(found, runs=runs)).axes[0]
    assert axes.get_yscale() == scale
    assert (axes.get_ylim()[0] == 0) == (scale == "linear")
    assert axes.get_ylim()[1] > much


def log_of(**columns: list[float]) -> pd.DataFrame:
    return pd.DataFrame(columns)


TWO_NODES = log_of(
    replica=[1, 0, 1, 0],
    start_s=[1.0, 0.0, 3.0, 4.0],
    prefill_tokens=[30, 10, 0, 20],
    decode_seqs=[0, 0, 5, 2],
    running=[2, 1, 5, 3],
    waiting=[0, 4, 1, 2],
    used_blocks=[20, 10, 60, 30],
    preempted=[0, 1, 3, 0],
)


def test_the_course_of_a_run_is_its_log_summed_over_nodes() -> None:
    figure: Any = plots.timeline([("a run", TWO_NODES)], [100, 300])
    top, blocks, tokens, preempted = figure.axes
    assert top.get_title() == "a run"
    drawn = lines_of(top)
    assert drawn["running"].get_xdata().tolist() == [0, 1, 3, 4]
    assert drawn["running"].get_ydata().tolist() == [1, 1 + 2, 1 + 5, 3 + 5]
    assert drawn["waiting"].get_ydata().tolist() == [4, 4, 4 + 1, 2 + 1]
    (used,) = blocks.lines
    assert used.get_ydata() == pytest.approx([100 * x / 400 for x in (10, 30, 70, 90)])
    assert blocks.get_ylim() == pytest.approx((0, 1.2 * 22.5))
    for patch, total in zip(tokens.patches, (60, 7), strict=True):
        values, edges, _ = patch.get_data()
        assert (edges[0], edges[-1], len(values)) == (0, 4, 120)
        assert (values * np.diff(edges)).sum() == pytest.approx(total)  # tokens a second
    assert [patch.get_label() for patch in tokens.patches] == ["prefill", "decode"]
    values, edges, _ = tokens.patches[0].get_data()
    assert np.flatnonzero(values).tolist() == [0, 30, 119]
    (counted,) = preempted.lines
    assert counted.get_xdata().tolist() == [0, 1, 3, 4]
    assert counted.get_ydata().tolist() == [1, 1, 4, 4]
    assert preempted.get_ylim() == pytest.approx((0, 4.32))
    assert preempted.get_xlabel() == "time, s"
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "requests", "KV in use, %", "tokens/s", "preemptions",
    ]  # fmt: skip
    for axes, names in ((top, ["running", "waiting"]), (tokens, ["prefill", "decode"])):
        assert [text.get_text() for text in axes.get_legend().get_texts()] == names
    assert blocks.get_legend() is None


def test_courses_side_by_side_have_the_same_scales() -> None:
    one = TWO_NODES[TWO_NODES.replica == 0]
    full = one.assign(used_blocks=[90, 99], preempted=0)
    figure: Any = plots.timeline([("a", one), ("b", full)], 100)
    grid = np.array(figure.axes).reshape(4, 2)
    assert [axes.get_ylim() for axes in grid[1]] == [(0, 105.0)] * 2
    assert grid[3, 1].get_ylim() == grid[3, 0].get_ylim()
    assert grid[0, 0].get_ylim() == grid[0, 1].get_ylim()
    assert [axes.get_title() for axes in grid[0]] == ["a", "b"]
    assert [axes.get_ylabel() for axes in grid[:, 1]] == [""] * 4
    assert grid[0, 1].get_legend() is not None
    assert lines_of(grid[0, 0])["running"].get_xdata().tolist() == [0, 4]
    assert grid[3, 0].get_xlim() == grid[0, 0].get_xlim()


def test_a_course_without_blocks_or_of_one_iteration() -> None:
    one = TWO_NODES[:1].assign(used_blocks=2)
    figure: Any = plots.timeline([("a", one)])
    assert figure.axes[1].get_ylabel() == "KV blocks"
    assert figure.axes[1].lines[0].get_ydata().tolist() == [2]
    assert not figure.axes[2].patches  # no time in which tokens were made
    assert figure.axes[2].get_legend() is None
    assert figure.axes[3].get_ylim() == (0, 1.0)
    assert plots.timeline([("a", one)], 100).axes[1].get_ylim() == (0, 10.0)


def test_panels_are_beside_each_other_and_courses_below() -> None:
    def inches(figure: Any) -> tuple[float, float]:
        width, height = figure.get_size_inches().tolist()
        return width, height

    found = comparison()
    wide, tall = inches(plots.latency_cdf(found))
    assert inches(plots.latency_cdf(found, [2.0])) == pytest.approx((wide / 2, tall))
    assert inches(plots.latency_by_rate(found)) == pytest.approx((wide * 1.5, tall * 2))
    few = {name: METRICS[name] for name in ("e2e_mean_s", "e2e_p99_s", "wait_mean_s")}
    assert inches(plots.latency_by_rate(comparison(metrics=few))) == pytest.approx((wide, tall))
    assert 3 < tall < wide < 10
    one, two = (inches(plots.timeline([("a", TWO_NODES)] * n)) for n in (1, 2))
    assert one[1] == two[1] < one[0] < two[0]


def test_figures_have_one_look() -> None:
    """Small text, thin lines that hide nothing, no boxes: what a page of a paper has room for."""
    rates: Any = plots.latency_by_rate(comparison())
    course: Any = plots.timeline([("a", TWO_NODES)])
    for figure in (rates, plots.latency_cdf(comparison()), course):
        for axes in figure.axes:
            axes: Any
            seen = {side: spine.get_visible() for side, spine in axes.spines.items()}
            assert seen == {"left": True, "bottom": True, "top": False, "right": False}
            assert axes.get_axisbelow() is True
            line = axes.get_xgridlines()[0]
            assert (line.get_visible(), line.get_linewidth()) == (True, 0.7)
            assert axes.xaxis.label.get_size() == axes.yaxis.label.get_size() == 10
            assert axes.title.get_size() in (10, 12)
    (legend,) = rates.legends
    assert not legend.get_frame_on()
    assert {text.get_size() for text in legend.get_texts()} == {9}
    assert {text.get_size() for text in course.axes[0].get_legend().get_texts()} == {8}
    assert {text.get_size() for text in course.axes[2].get_legend().get_texts()} == {8}
    points, (cap, _), _ = rates.axes[0].containers[1].lines
    assert (points.get_marker(), points.get_markersize(), cap.get_markersize()) == ("o", 3.5, 5.0)
    assert lines_of(rates.axes[0])["lower bound"].get_linewidth() == 1
    assert [patch.get_linewidth() for patch in course.axes[2].patches] == [1.2, 1.2]
    drawn = [line.get_color() for axes in course.axes for line in axes.lines]
    drawn += [patch.get_edgecolor() for patch in course.axes[2].patches]
    assert len({to_hex(colour) for colour in drawn}) == len(drawn) == 6
    assert course.axes[0].title.get_size() == 10
    assert plots.latency_cdf(comparison()).axes[0].title.get_size() == 10  # type: ignore[attr-defined]
    sizes = [tuple(figure.get_size_inches()) for figure in (rates, course)]
    assert sizes == [pytest.approx((12.9, 7.2)), (8.0, 5.8)]
    two: Any = plots.timeline([("a", TWO_NODES)] * 2)
    assert tuple(two.get_size_inches()) == (9.8, 5.8)
    assert two.axes[0].get_legend()._loc == 1


def test_ticks_are_plain_numbers() -> None:
    axes = plots.latency_cdf(comparison()).axes[0]
    formatter = axes.xaxis.get_major_formatter()
    assert [formatter(value) for value in (0.02, 1.0, 50.0, 1000.0)] == ["0.02", "1", "50", "1000"]
    assert axes.xaxis.get_minor_formatter()(3.0) == ""
    for (low, high), expected_ticks in (
        ((1.0, 100.0), {1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0}),
        ((1.0, 1000.0), {1.0, 10.0, 100.0, 1000.0}),
    ):
        axes.set_xlim(low, high)
        charts.plain_log_ticks(axes.xaxis)
        ticks = axes.xaxis.get_major_locator().tick_values(low, high)
        assert {round(t, 6) for t in ticks if low <= t <= high} == expected_ticks


def test_legends_have_as_many_columns_as_fit() -> None:
    def columns(found: Comparison) -> list[int]:
        figure: Any = plots.latency_cdf(found)
        return [legend._ncols for legend in figure.legends]

    assert columns(comparison()) == [4]
    assert columns(comparison(contenders=WHO[:2])) == [2]
    long = tuple(replace(who, policy_name=who.policy_name * 20) for who in WHO)
    wide = comparison(rates=(2.0,), contenders=long)
    assert columns(wide) == [1]


# A folder


def test_runs_to_show_are_the_baseline_s_and_the_best_s() -> None:
    workload = Workload.preset("lmsys-chat", requests=20, rate=50.0)
    found = comparison()
    chosen = pick_timelines(found, Fixed(workload), Engine(max_num_seqs=2), replicas=2)
    assert [label for label, _ in chosen] == ["fcfs", "mlfq"]  # sjf asks an oracle
    for (_, result), name in zip(chosen, ("fcfs", "mlfq"), strict=True):
        assert result.config["policy"] == name
        assert result.iterations is not None
        assert result.workload.rate == pytest.approx(8.0)  # the highest
        assert len(result.num_gpu_blocks) == 2
        assert result.engine.max_num_seqs == 2
    # where all need an oracle, the best of those
    oracles = comparison(contenders=WHO[:1] + WHO[2:3])
    assert [label for label, _ in pick_timelines(oracles, Fixed(workload))] == [
        "fcfs",
        "sjf · oracle",
    ]
    alone = comparison(contenders=WHO[:1], rates=(math.nan,))
    ((label, result),) = pick_timelines(alone, Fixed(workload))
    assert label == "fcfs"
    assert result.workload.rate == pytest.approx(50.0)
    routers = comparison(contenders=ROUTED)
    _, (_, best) = pick_timelines(routers, Fixed(workload), replicas=2, router="jsq-tokens")
    assert best.config["router"] == "jsq"


def test_a_published_folder_holds_what_it_says(tmp_path: Path) -> None:
    workload = Workload.preset("lmsys-chat", requests=20, rate=50.0)
    found = comparison()
    timelines = pick_timelines(found, Fixed(workload))
    path = publish(
        found, tmp_path / "out", title="My title", timelines=timelines, config={"more": 1},
        command="the command", sections=[("Own", "<p>x</p>")],
        extra=lambda fresh: (fresh / "more.txt").touch(),
    )  # fmt: skip
    folder = tmp_path / "out"
    assert path == folder / "report.html"
    assert {p.name for p in folder.iterdir()} == {
        "runs.parquet", "table.md", "report.html", "config.json", "requests-0.parquet",
        "requests-1.parquet", "iterations-0.parquet",
        "iterations-1.parquet", "more.txt",
        *(f"{name}.{format}" for name in ("trade", "rates", "cdf", "timeline")
          for format in ("svg", "png", "pdf")),
    }  # fmt: skip
    pd.testing.assert_frame_equal(
        pd.read_parquet(folder / "runs.parquet"), found.runs.reset_index(drop=True)
    )
    for index, (_, result) in enumerate(timelines):
        requests = pd.read_parquet(folder / f"requests-{index}.parquet")
        pd.testing.assert_frame_equal(requests, result.requests)
        iterations = pd.read_parquet(folder / f"iterations-{index}.parquet")
        assert result.iterations is not None
        pd.testing.assert_frame_equal(iterations, result.iterations)
    config = json.loads((folder / "config.json").read_text())
    assert config["command"] == "the command"
    assert (config["more"], config["timing"]) == (1, "h200/x")
    text = path.read_text("utf-8")
    assert "<h1>My title</h1>" in text
    assert "<h2>Own</h2><p>x</p>" in text
    assert (folder / "table.md").read_text("utf-8") == markdown(found)
    names = ("trade", "rates", "cdf", "timeline")  # in this order
    assert re.findall(r'<figure id="(\w+)">', text) == list(names)
    for name in names:
        for format, begins in (("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")):
            assert (folder / f"{name}.{format}").read_bytes().startswith(begins)
    few = comparison(rates=(2.0,))
    publish(few, tmp_path / "few", command="x")
    assert {p.name for p in (tmp_path / "few").iterdir()} == {
        "runs.parquet", "table.md", "report.html", "config.json",
        *(f"{name}.{format}" for name in ("trade", "cdf") for format in ("svg", "png", "pdf")),
    }  # fmt: skip


# Other views


STATISTICS = ("mean", "p50", "p90", "p95", "p99", "max")


def test_a_run_s_table_has_each_metric_in_its_row_with_its_unit() -> None:
    metrics = {
        "ttft": ("time to first token (TTFT)", "s"), "tpot": ("time per output token (TPOT)", "s"),
        "itl": ("inter-token latency (ITL)", "s"), "e2e": ("end-to-end latency", "s"),
        "normalized_latency": ("normalized latency", "s/token"), "wait": ("wait in the queue", "s"),
        "slowdown": ("slowdown against an idle replica", "×"),
    }  # fmt: skip
    totals = {
        "throughput_requests_per_s": ("throughput", "requests/s, at 100% completion"),
        "throughput_tokens_per_s": ("", "output tokens/s"), "makespan_s": ("makespan", "s"),
        "preemptions": ("preemptions", ""), "recomputed_tokens": ("recomputed", "tokens"),
        "retries": ("retried, as a node failed", "requests"),
        "lost_tokens": ("lost with nodes that failed", "tokens"),
        "downtime_s": ("nodes down, summed", "s"), "transfers": ("prefilled apart", "requests"),
        "transferred_gb": ("KV moved", "GB"),
        "transfer_mean_s": ("prefilled until KV is there, mean", "s"),
        "transfer_max_s": ("prefilled until KV is there, most", "s"),
        "jain_index": ("Jain index of slowdowns", ""),
        "kv_utilization_mean": ("KV blocks in use, mean", "%"),
        "kv_utilization_max": ("KV blocks in use, most", "%"),
        "slo_attainment": ("requests that meet the SLO", "%"),
        "goodput_requests_per_s": ("goodput", "requests/s"),
        "service_gap_mean": ("service gap of tenants (VTC), mean", "weighted tokens/min"),
        "service_gap_max": ("service gap of tenants (VTC), most", "weighted tokens/min"),
    }  # fmt: skip
    rng = np.random.default_rng(3)
    keys = [
        f"{name}_{s}" + ("" if name == "slowdown" else "_s") for name in metrics for s in STATISTICS
    ]
    found = dict(zip([*keys, *totals], rng.uniform(1, 90, 200).tolist(), strict=False))
    lines = shown(run_view("a title", found))
    assert lines[0] == "a title"
    assert lines[1] == ""
    assert cells_of(lines[2]) == ["mean", "P50", "P90", "P95", "P99", "max", "unit"]
    for line, (name, (label, unit)) in zip(lines[4:11], metrics.items(), strict=True):
        end = "" if name == "slowdown" else "_s"
        values = [number(found[f"{name}_{s}{end}"]) for s in STATISTICS]
        assert cells_of(line) == [label, *values, unit]
    assert lines[11] == ""
    for line, (key, (label, unit)) in zip(lines[12:], totals.items(), strict=True):
        value = found[key] * (100 if unit == "%" else 1)
        assert [c for c in (label, number(value), unit) if c] == cells_of(line)
        assert line.startswith(label)
    # what is not known has no row, and says nothing else
    little = {key: value for key, value in found.items() if key.startswith(("e2e", "makespan"))}
    assert len(shown(run_view("t", little))) == 4 + 1 + 1 + 1


def test_a_predictor_s_table_has_units_and_intervals() -> None:
    def said(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.05, "high": value + 0.1}

    metrics = {
        "kendall_tau": said(0.5), "spearman": said(0.6), "r2_log": said(0.3), "mae": said(80.0),
        "rmse": said(120.0), "within_50": said(0.2), "within_100": said(0.4),
        "bucket_accuracy": said(0.45),
    }  # fmt: skip
    window = {
        "first": 0, "rows": 1256, "kendall_tau": 0.4567, "coverage": 0.8765, "factor": 1.234,
        "abstained": 0.126,
    }  # fmt: skip
    report = {
        "model": "ridge", "target": "exact", "data": "chats.parquet", "metrics": metrics,
        "train": {"rows": 8000, "prompts": 7000}, "test": {"rows": 2000, "prompts": 1500},
        "recalibrated": {"before": window, "after": {**window, "coverage": None, "factor": 1.0}},
        "baselines": {"constant": {"mae": said(90.0)}},
        "windows": [window, {**window, "first": 1256, "coverage": None}], "verdict": "it holds",
    }  # fmt: skip
    lines = shown(prediction_view(report))
    assert lines[0] == "ridge (exact) on chats.parquet"
    assert lines[1] == "trained on 8,000 answers to 7,000 prompts"
    assert lines[2] == "tested on 2,000 answers to 1,500 others"
    assert lines[3] == ""
    assert cells_of(lines[4]) == ["value", "95% interval", "constant", "unit"]
    assert [cells_of(line) for line in lines[6:14]] == [
        ["Kendall tau-b", "0.500", "0.450 to 0.600", "–"],
        ["Spearman", "0.600", "0.550 to 0.700", "–"],
        ["R² of log length", "0.300", "0.250 to 0.400", "–"],
        ["mean absolute error", "80.0", "80.0 to 80.1", "90.0", "tokens"],
        ["root mean squared error", "120.0", "120.0 to 120.1", "–", "tokens"],
        ["within 50 tokens", "20.0%", "15.0% to 30.0%", "–", "of answers"],
        ["within 100 tokens", "40.0%", "35.0% to 50.0%", "–", "of answers"],
        ["bucket accuracy", "45.0%", "40.0% to 55.0%", "–", "of answers"],
    ]
    assert lines[14:16] == [
        "before: τ 0.46, answers are 1.23 times what is predicted, 90% intervals cover 88%",
        "after: τ 0.46, answers are 1.00 times what is predicted",
    ]
    assert cells_of(lines[17]) == [
        "answers", "Kendall tau-b", "in 90% intervals", "actual / predicted", "abstained",
    ]  # fmt: skip
    assert cells_of(lines[19]) == ["1 to 1,256", "0.457", "87.6%", "1.23", "13%"]
    assert cells_of(lines[20]) == ["1,257 to 2,512", "0.457", "-", "1.23", "13%"]
    assert lines[21] == "it holds"
    assert len(lines) == 22
    short = {"predictor": "./p", "data": "d", "train": report["train"]}
    assert shown(prediction_view(short))[0] == "./p on d"
    assert shown(prediction_view(short))[-1] == "no prompts were left to test on"
    few = {**short, "test": report["test"], "metrics": {"mae": said(80.0)}}
    assert len(shown(prediction_view(few))) == 7
    assert plain_metric("bucket_accuracy", 0.5) == "50.0%"


def test_capacity_s_table_has_what_was_measured_at_each_seed_s_capacity() -> None:
    probes = (
        Probe(1.0, 0, {"ttft_p99": 0.5, "e2e_mean": 3.0}, True),
        Probe(2.0, 0, {"ttft_p99": 0.9, "e2e_mean": 4.0}, True),
        Probe(4.0, 0, {"ttft_p99": 1.9, "e2e_mean": 9.0}, False),
        Probe(2.0, 1, {"ttft_p99": 0.7, "e2e_mean": 5.0}, True),
        Probe(3.0, 1, {"ttft_p99": 1.7, "e2e_mean": 8.0}, False),
    )
    found = Capacity(t_interval([2.0, 2.0]), (2.0, 2.0), probes)
    lines = shown(capacity_view("sjf", {"ttft_p99": 1.0, "e2e_mean": 6.5}, found))
    assert lines[0] == "sjf: 2.00 requests/s with ttft_p99 ≤ 1 s, e2e_mean ≤ 6.5 s"
    assert lines[1] == "ttft_p99 is what it meets first, at 90% of its limit there."
    assert cells_of(lines[3]) == [
        "seed", "capacity, requests/s", "rates tried", "ttft_p99, s", "e2e_mean, s",
    ]  # fmt: skip
    assert cells_of(lines[5]) == ["0", "2.00", "3", "0.900", "4.00"]
    assert cells_of(lines[6]) == ["1", "2.00", "2", "0.700", "5.00"]
    assert len(lines) == 7


JUDGED = {
    "mean latency, s": "mean_latency_s", "mean × fcfs": "ratio", "mean × best": "ratio_best",
    "P99 latency, s": "p99_latency_s", "P99 × best": "p99_latency_s_ratio_best",
    "max wait, s": "max_wait_s", "TTFT P99, s": "p99_ttft_s", "TPOT P99, s": "p99_tpot_s",
    "TTFT P50, s": "p50_ttft_s", "TPOT P50, s": "p50_tpot_s",
    "mean TTFT, s": "mean_ttft_s", "s/token": "mean_normalized_latency_s",
    "s/token × best": "mean_normalized_latency_s_ratio_best",
}  # fmt: skip


def test_judged_policies_have_a_table_for_each_workload_and_load() -> None:
    rng = np.random.default_rng(5)
    rows = []
    for workload, load in (("azure", 0.8), ("azure", 1.25), ("mine", None)):
        for policy in ("fcfs", "learned"):
            said: dict[str, Any] = {}
            for name in JUDGED.values():
                value = rng.uniform(0.5, 2)
                said |= {name: value, f"{name}_low": value - 0.25, f"{name}_high": value + 0.25}
            rows.append(
                {"workload": workload, "load": load, "rate_requests_per_s": 12.345, "best": "srtf",
                 "policy": policy, "trained": policy == "learned", **said}
            )  # fmt: skip
    both = [("TTFT P99, s", "p99_ttft_s"), ("mean × best", "ratio_best")]
    for asked in (["TTFT P99", "mean × best"], ["ttft_p99", "e2e_mean_ratio_best"]):
        assert judged_columns(asked) == both
    with pytest.raises(UnknownNameError, match="'ttft_p9'; did you mean 'ttft_p99'"):
        judged_columns(["ttft_p9"])
    lines = shown(judged_view(rows, 400))
    titles = [i for i, line in enumerate(lines) if "best baseline:" in line]
    assert [lines[i] for i in titles] == [
        "azure, load 0.8: 12.3 requests/s; best baseline: srtf",
        "azure, load 1.25: 12.3 requests/s, more than can be served; best baseline: srtf",
        "mine, 12.3 requests/s; best baseline: srtf",
    ]
    for k, at in enumerate(titles):
        assert lines[at + 1] == judged_verdict(rows[2 * k : 2 * k + 2])[0]
        at += 2
        assert cells_of(lines[at + 1]) == ["policy", *JUDGED]
        for line, found in zip(lines[at + 3 : at + 5], rows[2 * k : 2 * k + 2], strict=True):
            cells = cells_of(line)
            assert cells[0] == found["policy"]
            for text, (head, name) in zip(cells[1:], JUDGED.items(), strict=True):
                value = found[name]
                shown_as = f"{value:.2f}" if "×" in head or value >= 1 else f"{value:.3f}"
                half = "0.25" if "." in shown_as and len(shown_as) == 4 else "0.250"
                assert text == f"{shown_as} ± {half}"
    assert lines[-1] != ""


def test_a_reproduced_table_has_theirs_beside_ours() -> None:
    ours, ratio = Interval(1.2, 1.1, 1.3, 5), Interval(0.48, 0.43, 0.53, 5)
    lines = (
        Line("8B", "FCFS", "1.15", "1.00", Interval(2.5, 2, 3, 5), Interval(1, 1, 1, 5)),
        Line("8B", "LTR", "0.56", "0.49", ours, ratio),
        Line("70B", "FCFS", "1.44", "1.00"),
    )  # fmt: skip
    found = Reproduction("A paper", "s/token", lines, ("one thing", "another"))
    text = shown(reproduction_view(found))
    assert text[0] == "A paper"
    assert cells_of(text[2]) == [
        "setting", "policy", "theirs, s/token", "ours, s/token", "theirs × FCFS", "ours × FCFS",
    ]  # fmt: skip
    assert cells_of(text[4]) == ["8B", "FCFS", "1.15", "2.50 ± 0.50", "1.00", "1.00"]
    assert cells_of(text[5]) == ["LTR", "0.56", "1.20 ± 0.10", "0.49", "0.48 ± 0.05"]
    assert set(text[6]) <= set(" ─")  # settings apart
    assert cells_of(text[7]) == ["70B", "FCFS", "1.44", "–", "1.00", "–"]
    assert text[8:] == ["", "differs: one thing", "differs: another"]
