"""A comparison as rows of cells: the same ones in the terminal, in Markdown and in the report."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from lengthwise.eval.compare import BOUND, Comparison, Contender
from lengthwise.eval.statistics import Interval, paired_ratio
from lengthwise.policies import load_policy

Verdict = Literal["better", "worse", "same", ""]


@dataclass(frozen=True)
class Column:
    """A column: its heading with unit, the metric, and to what it is a ratio, if it is one: to the
    "first" row or to the "best" that was not trained.
    """

    heading: str
    metric: str
    ratio: Literal["", "first", "best"] = ""
    help: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell: what it says, the number to sort by (NaN: none), and how a ratio lies to 1."""

    text: str
    value: float = math.nan
    verdict: Verdict = ""


# In order of importance: a narrow terminal drops columns from the end.
COLUMNS = (
    Column("mean latency, s", "e2e_mean_s", help="arrival to last token"),
    Column("× fcfs", "e2e_mean_s", ratio="first"),
    Column("P99 latency, s", "e2e_p99_s"),
    Column("× fcfs", "e2e_p99_s", ratio="first"),
    Column("mean TTFT, s", "ttft_mean_s", help="time to first token"),
    Column("s/token", "normalized_latency_mean_s", help="mean of latency over output tokens"),
    Column("max wait, s", "wait_max_s", help="longest time in the queue"),
    Column("tokens/s", "throughput_tokens_per_s", help="output tokens, at 100% completion"),
    Column("preempted", "preemptions", help="preemptions in a run"),
)
FAILURES = (
    Column("retried", "retries", help="requests that lost their node, each time, in a run"),
    Column("lost tokens", "lost_tokens", help="tokens that were generated and lost with a node"),
)
COUNTS = ("preemptions", *(column.metric for column in FAILURES))
BEST = "to the row with the lowest mean latency that was not trained"
GOODPUT = Column("meet SLO", "slo_attainment", help="share of requests that meet the SLO")


def columns_of(comparison: Comparison) -> tuple[Column, ...]:
    """The columns that a comparison has values for; routers have ratios to the best row too."""
    found = list(COLUMNS)
    if GOODPUT.metric in comparison.runs:
        found.insert(4, GOODPUT)
    if FAILURES[0].metric in comparison.runs:
        found += FAILURES
    if comparison.routed:
        for place, metric in ((3, "e2e_p99_s"), (1, "e2e_mean_s")):
            found[place : place + 1] = [
                Column(f"× {comparison.baseline}", metric, ratio="first"),
                Column("× best", metric, ratio="best", help=BEST),
            ]
    return tuple(found)


def names_of(comparison: Comparison) -> tuple[str, ...]:
    """The headings of the columns that name a row."""
    return ("router", "policy", "predictor") if comparison.routed else ("policy", "predictor")


def named(comparison: Comparison, who: Contender | None) -> tuple[str, ...]:
    """The cells under ``names_of``; None for the bound."""
    if who is None:
        return (BOUND, *[""] * (len(names_of(comparison)) - 1))
    predictor = "" if who.predictor_name == "none" else who.predictor_name
    routed = (who.router_name,) if comparison.routed else ()
    return (*routed, who.policy_name, predictor)


def number(value: float) -> str:
    """Three significant digits without exponents: 1,234, 12.3, 1.23, 0.0123."""
    if math.isnan(value):
        return "–"
    size = abs(value)
    if size >= 100 or size < 1e-6:
        return f"{value:,.0f}"
    return f"{value:.{min(2 - math.floor(math.log10(size)), 6)}f}"


def with_interval(interval: Interval) -> str:
    """``12.3 ± 0.4``; no ± where there is none (one seed, or the same value on every seed)."""
    text = number(interval.mean)
    if not _spreads(interval):
        return text
    decimals = len(text.partition(".")[2])
    return f"{text} ± {interval.half:,.{decimals}f}"


def _spreads(interval: Interval) -> bool:
    """Whether there is an interval, and wider than rounding errors."""
    return interval.half > 1e-9 * abs(interval.mean)


def verdict(ratio: Interval) -> Verdict:
    """Whether a ratio to fcfs lies below 1, above 1, or its interval holds 1."""
    if math.isnan(ratio.low):
        return ""
    return "better" if ratio.high < 1 else "worse" if ratio.low > 1 else "same"


def ratio_cell(ratio: Interval) -> Cell:
    """A ratio to fcfs, two decimals, with its verdict."""
    spread = f" ± {ratio.half:.2f}" if _spreads(ratio) else ""
    return Cell(f"{ratio.mean:.2f}{spread}", ratio.mean, verdict(ratio))


def row(comparison: Comparison, rate: float, who: Contender) -> list[Cell]:
    """One contender's cells at one rate, one a column of ``columns_of``."""
    cells = []
    for column in columns_of(comparison):
        if column.ratio:
            to = comparison.best(rate) if column.ratio == "best" else None
            cells.append(ratio_cell(comparison.ratio(rate, who, column.metric, to)))
        else:
            interval = comparison.interval(rate, who, column.metric)
            text = with_interval(interval)
            if column.metric in COUNTS:
                text = f"{interval.mean:,.0f}"
            elif column.metric == "slo_attainment":
                text = f"{interval.mean:.1%}"
            cells.append(Cell(text, interval.mean))
    return cells


def bound_row(comparison: Comparison, rate: float) -> list[Cell]:
    """The lower bound's cells: a mean latency and its ratios, empty where none is known."""
    if math.isnan(comparison.bound(rate).mean):
        return [Cell("–")] * len(columns_of(comparison))
    bound = comparison.values(rate, BOUND, "none", "e2e_mean_s")
    mean = comparison.bound(rate)
    cells = [Cell(with_interval(mean), mean.mean)]
    for to in (comparison.contenders[0], *([comparison.best(rate)] * comparison.routed)):
        ratio = ratio_cell(paired_ratio(bound, comparison.of(rate, to, "e2e_mean_s")))
        cells.append(Cell(ratio.text, ratio.value))
    return cells + [Cell("–")] * (len(columns_of(comparison)) - len(cells))


def heading(comparison: Comparison, rate: float) -> str:
    """``8.0 requests/s: ...``: the load of one table, and whether a queue formed under fcfs."""
    baseline = comparison.contenders[0]
    wait = comparison.interval(rate, baseline, "wait_mean_s").mean
    latency = comparison.interval(rate, baseline, "e2e_mean_s").mean
    queue = "a queue forms" if queue_forms(comparison, rate) else "no queue forms"
    at = comparison.offered_rate(rate) if math.isnan(rate) else rate
    speed = "all at once" if math.isinf(at) else f"{at:.3g} requests/s"
    return (
        f"{speed}: {queue} (under {comparison.baseline} a request waits "
        f"{_rough(wait)} s of {number(latency)} s)"
    )


def queue_forms(comparison: Comparison, rate: float) -> bool:
    """Whether waiting under fcfs is more than a twentieth of the latency."""
    baseline = comparison.contenders[0]
    wait = comparison.interval(rate, baseline, "wait_mean_s").mean
    return wait > 0.05 * comparison.interval(rate, baseline, "e2e_mean_s").mean


def _rough(value: float) -> str:
    return number(value) if value >= 10 else f"{value:.2g}"


def subtitle(comparison: Comparison) -> str:
    """What all tables of a comparison have in common."""
    requests = comparison.runs["requests"].dropna()
    few, many = int(requests.min()), int(requests.max())
    count = f"{many:,}" if few == many else f"{few:,} to {many:,}"
    config = comparison.config
    replicas = int(config["replicas"])
    on = f"{replicas} replicas of " if replicas > 1 and "nodes" not in config else ""
    by = f", routed by {config['router']}" if replicas > 1 and not comparison.routed else ""
    if "metrics_interval_s" in config:
        by += f" on metrics of every {config['metrics_interval_s']:g} s"
    if happens := len(config.get("failures", ())):
        by += f", nodes fail or slow down {happens} time{'s' if happens > 1 else ''}"
    seeds = comparison.seeds
    return (
        f"{count} requests × {seeds} seed{'s' if seeds > 1 else ''}, on {on}{config['timing']}{by}"
    )


def footnote(comparison: Comparison) -> str:
    """How to read the numbers."""
    spread = (
        f"Mean over seeds ± half of its 95% t-interval; ratios to {comparison.baseline} are paired "
        "by seed. "
        if comparison.seeds > 1
        else "One seed: no intervals. "
    )
    known = not all(math.isnan(comparison.bound(rate).mean) for rate in comparison.rates)
    bound = (
        "no schedule has a lower mean, whatever it knows; what is reachable lies above"
        if known
        else "none is known here"
    )
    return f"{spread}{BOUND}: {bound}.{_unmoved(comparison)}"


def _unmoved(comparison: Comparison) -> str:
    """Policies whose preemption was never worth its price, so that they were fcfs throughout."""
    baseline, *others = comparison.contenders
    if not any(queue_forms(comparison, rate) for rate in comparison.rates):
        return ""

    def latencies(who: Contender) -> list[list[float]]:
        return [comparison.of(rate, who, "e2e_mean_s").tolist() for rate in comparison.rates]

    notes: dict[str, str] = {}
    for who in others:
        rule = load_policy(who.policy).preemption
        same_router = who.router_name == baseline.router_name
        if (
            rule.mode != "none"
            and rule.price > 0
            and same_router
            and (latencies(who) == latencies(baseline))
        ):
            notes[who.policy_name] = (
                f" {who.policy_name} ran as fcfs: no preemption was worth its price here "
                "(+preempt:price=0 preempts all the same)."
            )
    return "".join(notes.values())
