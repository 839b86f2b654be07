"""A comparison as rows of cells: the same ones in the terminal, in Markdown and in the report."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.eval.alike import NAMES, Alike
from lengthwise.eval.capacity import Capacity
from lengthwise.eval.compare import BASELINE, BOUND, ROUTER_BASELINE, Comparison, Contender
from lengthwise.eval.metrics import OF_RUNS
from lengthwise.eval.statistics import Interval, paired_ratio

Verdict = Literal["better", "worse", "same", ""]
Values = NDArray[np.float64]


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


# In order of importance: what a narrow terminal has no room for comes last.
COLUMNS = (
    Column("mean latency, s", "e2e_mean_s", help="arrival to last token"),
    Column("mean × fcfs", "e2e_mean_s", ratio="first"),
    Column("P99 latency, s", "e2e_p99_s"),
    Column("P99 × fcfs", "e2e_p99_s", ratio="first"),
    Column("max wait, s", "wait_max_s", help="longest time in the queue"),
    Column("TTFT P99, s", "ttft_p99_s", help="time to first token"),
    Column("TPOT P99, s", "tpot_p99_s", help="time per output token after the first"),
    Column("TTFT P50, s", "ttft_p50_s", help="time to first token"),
    Column("TPOT P50, s", "tpot_p50_s", help="time per output token after the first"),
    Column("mean TTFT, s", "ttft_mean_s", help="time to first token"),
    Column("s/token", "normalized_latency_mean_s", help="mean of latency over output tokens"),
    Column("tokens/s", "throughput_tokens_per_s", help="output tokens, at 100% completion"),
    Column("preempted", "preemptions", help="preemptions in a run"),
)
FAILURES = (
    Column("retried", "retries", help="requests that lost their node, each time, in a run"),
    Column("lost tokens", "lost_tokens", help="tokens that were generated and lost with a node"),
)
COUNTS = ("preemptions", *(column.metric for column in FAILURES))
BEST = "to the row with the lowest mean latency that was not trained"
GOODPUT = Column("goodput/s", "goodput_requests_per_s", help="requests/s that meet the SLO")
ATTAINED = Column("meet SLO", "slo_attainment", help="share of requests that meet the SLO")
HEADS = {"e2e": "latency", "normalized_latency": "s/token", "ttft": "TTFT", "tpot": "TPOT"}


def columns_of(comparison: Comparison) -> tuple[Column, ...]:
    """The columns that a comparison has values for; routers have ratios to the best row too."""
    found = [*COLUMNS[:4], GOODPUT, *COLUMNS[4:7], ATTAINED, *COLUMNS[7:], *FAILURES]
    if comparison.routed:
        for place, name, metric in ((3, "P99", "e2e_p99_s"), (1, "mean", "e2e_mean_s")):
            found[place : place + 1] = [
                Column(f"{name} × {comparison.baseline}", metric, ratio="first"),
                Column(f"{name} × best", metric, ratio="best", help=BEST),
            ]
    return tuple(column for column in found if column.metric in comparison.runs)


def chosen_columns(comparison: Comparison, names: Sequence[str]) -> tuple[Column, ...]:
    """Columns by their headings, as ``TTFT P99``, or by the names of metrics: ``e2e_p99``,
    ``ttft_p50``, ``goodput``; also ``_s`` at the end. ``_ratio`` makes it the ratio to the first
    row, ``_ratio_best`` that to the best one.

    Raises ``UnknownNameError`` for a metric that the runs don't have.
    """
    usual = {(column.metric, column.ratio): column for column in columns_of(comparison)}
    headed = _by_heading(usual.values())
    metrics = {_short_name(str(name)): str(name) for name in comparison.runs if name not in NAMES}
    found = []
    for name in names:
        if name.lower() in headed:
            found.append(headed[name.lower()])
            continue
        name = _as_metric(name)
        bare, best, _ = name.partition("_ratio_best")
        ratio: Literal["", "first", "best"] = "best" if best else ""
        if not best and name.endswith("_ratio"):
            bare, ratio = name.removesuffix("_ratio"), "first"
        metric = bare if bare in metrics.values() else metrics.get(bare.removesuffix("_s"))
        if metric is None:
            raise UnknownNameError("column", name, metrics)
        to = {"": "", "first": f" × {comparison.baseline}", "best": " × best"}[ratio]
        made = Column(f"{_heading(_short_name(metric))}{to or _unit(metric)}", metric, ratio)
        found.append(usual.get((metric, ratio), made))
    return tuple(found)


def check_columns(names: Sequence[str], slo: Collection[str] = (), *, routed: bool = False) -> None:
    """Raises ``UnknownNameError`` for a column that no comparison has, ``InputError`` for one that
    needs an SLO; ``routed`` is whether routers are compared.

    For before the runs: ``chosen_columns`` knows which there are only after them.
    """
    known = {*OF_RUNS, *(f"slo_attainment_{name.rpartition('.')[0]}" for name in slo)}
    to = (ROUTER_BASELINE, "best") if routed else (BASELINE,)
    ratios = [f"{what} × {row}" for row in to for what in ("mean", "P99")]
    plain = [column for column in COLUMNS if not column.ratio]
    headed = _by_heading((*plain, *FAILURES, GOODPUT, ATTAINED))
    for name in names:
        if "×" in name:
            if name.lower() not in map(str.lower, ratios):
                raise UnknownNameError("column", name, (*ratios, *known))
            continue
        bare = _short_name(_as_metric(name).removesuffix("_best").removesuffix("_ratio"))
        if not (bare in known or name.lower() in headed):
            raise UnknownNameError("column", bare, known)
        if headed.get(name.lower()) in (GOODPUT, ATTAINED) or bare in ("goodput", "slo_attainment"):
            if not slo:
                raise InputError(f"column {name!r} needs limits: --slo ttft=1,tpot=0.05")


def _by_heading(columns: Iterable[Column]) -> dict[str, Column]:
    """By what one types for a heading: without its unit, in any case."""
    return {column.heading.removesuffix(", s").lower(): column for column in columns}


def _as_metric(name: str) -> str:
    return "_".join(name.lower().split())


def _short_name(metric: str) -> str:
    if metric.endswith("per_s"):
        return metric.removesuffix("_requests_per_s") if "goodput" in metric else metric
    return metric.removesuffix("_s")


def _heading(name: str) -> str:
    """``TTFT P90`` of ``ttft_p90``."""
    head, _, statistic = name.rpartition("_")
    if head not in HEADS and head != "wait":
        return name.replace("_", " ")
    said = statistic.upper() if statistic[1:].isdigit() else statistic
    return (
        f"{said} {HEADS.get(head, head)}"
        if said in ("mean", "max")
        else f"{HEADS.get(head, head)} {said}"
    )


def _unit(metric: str) -> str:
    return ", s" if metric.endswith("_s") and not metric.endswith("per_s") else ""


@dataclass(frozen=True)
class Row:
    """A line of a table: the cells under ``names_of``, then one a column."""

    names: tuple[str, ...]
    cells: tuple[Cell, ...]
    bound: bool = False


def rows_of(
    comparison: Comparison, rate: float, columns: Sequence[Column] | None = None, merge: bool = True
) -> list[Row]:
    """The lines of one rate's table, the bound last; with ``merge``, what came out alike is one."""
    groups = comparison.alike(rate) if merge else [Alike((who,)) for who in comparison.contenders]
    rows = [
        Row(_names(comparison, group), tuple(row(comparison, rate, group.first, columns)))
        for group in groups
    ]
    bound = tuple(bound_row(comparison, rate, columns))
    return [*rows, Row(named(comparison, None), bound, bound=True)]


def _names(comparison: Comparison, group: Alike) -> tuple[str, ...]:
    """``sjf = srtf`` and what predicts for them: each name once."""
    *each, predictors = zip(*(named(comparison, who) for who in group.contenders), strict=True)
    joined = [" = ".join(dict.fromkeys(names)) for names in each]
    return (*joined, ", ".join(dict.fromkeys(filter(None, predictors))))


def reasons(comparison: Comparison, rate: float) -> list[str]:
    """Why lines of one rate's table stand for several contenders: ``sjf = srtf: ...``."""
    return [f"{one.label}: {one.reason}" for one in comparison.alike(rate) if one.reason]


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


def row(
    comparison: Comparison, rate: float, who: Contender, columns: Sequence[Column] | None = None
) -> list[Cell]:
    """One contender's cells at one rate, one a column (``columns_of``, if none are given)."""
    cells = []
    for column in columns_of(comparison) if columns is None else columns:
        if column.ratio:
            to = comparison.best(rate) if column.ratio == "best" else None
            cells.append(
                _ratio(
                    comparison.of(rate, who, column.metric),
                    comparison.of(rate, to or comparison.contenders[0], column.metric),
                )
            )
            continue
        interval = comparison.interval(rate, who, column.metric)
        text = with_interval(interval)
        if column.metric in COUNTS:
            text = f"{interval.mean:,.0f}"
        elif column.metric == "slo_attainment":
            text = f"{interval.mean:.1%}"
        cells.append(Cell(text, interval.mean))
    return cells


def capacities_table(
    slo: Mapping[str, float], found: Mapping[Contender, Capacity]
) -> tuple[list[str], list[list[Cell]]]:
    """Headings and lines of capacities: each row's, its ratio to the first row's, paired by seed,
    and the means over seeds of what the SLO limits there.
    """
    (first, base), *_ = found.items()
    heads = ["policy", "predictor", "capacity, requests/s", f"× {first.label}"]
    lines = []
    for who, one in found.items():
        at = [
            next(p.values for p in one.probes if (p.seed, p.rate) == (seed, rate))
            for seed, rate in enumerate(one.per_seed)
        ]
        ratio = (
            Cell("1.00")
            if who is first
            else more_is_better(_ratio(np.array(one.per_seed), np.array(base.per_seed)))
        )
        predictor = "" if who.predictor_name == "none" else who.predictor_name
        lines.append([
            Cell(who.policy_name), Cell(predictor), Cell(with_interval(one.rate)), ratio,
            *(Cell(number(float(np.mean([values[name] for values in at])))) for name in slo),
        ])  # fmt: skip
    return [*heads, *(f"{name}, s" for name in slo)], lines


def more_is_better(cell: Cell) -> Cell:
    """A ratio of what there should be much of: its verdict is the other one."""
    turned: dict[Verdict, Verdict] = {"better": "worse", "worse": "better"}
    return replace(cell, verdict=turned.get(cell.verdict, cell.verdict))


def _ratio(values: Values, to: Values) -> Cell:
    """The cell of a paired ratio; empty where there is none (0 preemptions in place of 0)."""
    known = np.isfinite(values).all() and np.isfinite(to).all()
    if not known or (values <= 0).any() or (to <= 0).any():
        return Cell("–")
    return ratio_cell(paired_ratio(values, to))


def bound_row(
    comparison: Comparison, rate: float, columns: Sequence[Column] | None = None
) -> list[Cell]:
    """The lower bound's cells: a mean latency and its ratios, if they are known."""
    bound = comparison.values(rate, BOUND, "none", "e2e_mean_s")
    known = not np.isnan(bound).all()
    cells = []
    for column in columns_of(comparison) if columns is None else columns:
        if column.metric != "e2e_mean_s" or not known:
            cells.append(Cell("–"))
        elif column.ratio:
            to = comparison.best(rate) if column.ratio == "best" else comparison.contenders[0]
            ratio = ratio_cell(paired_ratio(bound, comparison.of(rate, to, "e2e_mean_s")))
            cells.append(Cell(ratio.text, ratio.value))
        else:
            mean = comparison.bound(rate)
            cells.append(Cell(with_interval(mean), mean.mean))
    return cells


def heading(comparison: Comparison, rate: float) -> str:
    """``8.0 requests/s: ...``: the load of one table, and whether a queue formed under fcfs."""
    baseline = comparison.contenders[0]
    wait = comparison.interval(rate, baseline, "wait_mean_s").mean
    latency = comparison.interval(rate, baseline, "e2e_mean_s").mean
    queue = "a queue forms" if queue_forms(comparison, rate) else "no queue forms"
    if comparison.overloaded(rate):
        queue = f"more than the {number(comparison.capacity)} that can be served"
    return (
        f"{load_of(comparison, rate)}: {queue} (under {comparison.baseline} a request waits "
        f"{_rough(wait)} s of {number(latency)} s)"
    )


def load_of(comparison: Comparison, rate: float) -> str:
    """``8.0 requests/s``, or ``all at once``."""
    at = comparison.offered_rate(rate) if math.isnan(rate) else rate
    return "all at once" if math.isinf(at) else f"{at:.3g} requests/s"


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
    return f"{spread}{BOUND}: {bound}."
