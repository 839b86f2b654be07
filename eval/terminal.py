"""Comparisons and runs as tables in the terminal, and in Markdown."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from lengthwise.eval.advise import Advice
from lengthwise.eval.capacity import Capacity
from lengthwise.eval.check import Checked
from lengthwise.eval.compare import BOUND, SAME, Comparison
from lengthwise.eval.reproduce import Reproduction
from lengthwise.eval.statistics import Interval
from lengthwise.eval.tables import (
    Cell,
    bound_row,
    columns_of,
    footnote,
    heading,
    named,
    names_of,
    number,
    ratio_cell,
    row,
    subtitle,
    with_interval,
)

STYLES = {"better": "green", "worse": "red", "same": "dim", "": ""}
PIPE_WIDTH = 160  # where no terminal says how wide it is, nothing is dropped


def console() -> Console:
    """Standard output; wide when it is not a terminal, so that a pipe gets every column."""
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)


def comparison_view(comparison: Comparison, width: int) -> RenderableType:
    """One table a rate, with as many columns as ``width`` holds."""
    parts: list[RenderableType] = [
        Text(comparison.name, style="bold", overflow="fold"),
        Text(subtitle(comparison), style="dim"),
    ]
    for rate in comparison.rates:
        parts += [
            Text(),
            Text(heading(comparison, rate), style="bold"),
            _table(comparison, rate, width),
        ]
    parts.append(Text(footnote(comparison), style="dim"))
    parts += [Text(f"note: {notice}", style="yellow") for notice in comparison.notices]
    return Group(*parts)


def _rows(comparison: Comparison, rate: float) -> list[tuple[tuple[str, ...], list[Cell]]]:
    found = [
        (named(comparison, who), row(comparison, rate, who)) for who in comparison.contenders
    ]  # fmt: skip
    return [*found, (named(comparison, None), bound_row(comparison, rate))]


def _table(comparison: Comparison, rate: float, width: int) -> Table:
    rows, columns = _rows(comparison, rate), columns_of(comparison)
    shown, used = 0, 0
    heads = names_of(comparison)
    for index, head in enumerate(heads):
        used += 3 + max(len(head), *(len(names[index]) for names, _ in rows))
    for index, column in enumerate(columns):
        used += 3 + max(len(column.heading), *(len(cells[index].text) for _, cells in rows))
        shown += used <= width
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    for head in heads:
        table.add_column(head, no_wrap=True)
    for column in columns[:shown]:
        table.add_column(column.heading, justify="right", no_wrap=True)
    for (first, *others), cells in rows:
        bound = first == BOUND
        table.add_row(
            Text(first, style="italic dim" if bound else "bold"),
            *(Text(name) for name in others[:-1]),
            Text(others[-1], style="cyan"),
            *(
                Text(cell.text, style="italic dim" if bound else STYLES[cell.verdict])
                for cell in cells[:shown]
            ),
        )
    return table


def markdown(comparison: Comparison) -> str:
    """The tables in Markdown, for documents."""
    columns = columns_of(comparison)
    lines = []
    for rate in comparison.rates:
        lines += [f"**{heading(comparison, rate)}**", ""]
        heads = names_of(comparison)
        lines.append("| " + " | ".join((*heads, *(c.heading for c in columns))) + " |")
        lines.append("|---" * len(heads) + "|" + "---:|" * len(columns))
        lines += [
            "| " + " | ".join((*names, *(cell.text for cell in cells))) + " |"
            for names, cells in _rows(comparison, rate)
        ]
        lines.append("")
    return "\n".join([*lines, footnote(comparison), ""])


RUN_ROWS = (  # label, metric of the summary's names, unit
    ("time to first token (TTFT)", "ttft", "s"),
    ("time per output token (TPOT)", "tpot", "s"),
    ("inter-token latency (ITL)", "itl", "s"),
    ("end-to-end latency", "e2e", "s"),
    ("normalized latency", "normalized_latency", "s/token"),
    ("wait in the queue", "wait", "s"),
    ("slowdown against an idle replica", "slowdown", "×"),
)
RUN_TOTALS = (
    ("throughput", "throughput_requests_per_s", "requests/s, at 100% completion"),
    ("", "throughput_tokens_per_s", "output tokens/s"),
    ("makespan", "makespan_s", "s"),
    ("preemptions", "preemptions", ""),
    ("recomputed", "recomputed_tokens", "tokens"),
    ("retried, as a node failed", "retries", "requests"),
    ("lost with nodes that failed", "lost_tokens", "tokens"),
    ("nodes down, summed", "downtime_s", "s"),
    ("Jain index of slowdowns", "jain_index", ""),
    ("KV blocks in use, mean", "kv_utilization_mean", "%"),
    ("KV blocks in use, most", "kv_utilization_max", "%"),
    ("requests that meet the SLO", "slo_attainment", "%"),
    ("goodput", "goodput_requests_per_s", "requests/s"),
    ("service gap of tenants (VTC), mean", "service_gap_mean", "weighted tokens/min"),
    ("service gap of tenants (VTC), most", "service_gap_max", "weighted tokens/min"),
)


def run_view(title: str, found: Mapping[str, float]) -> RenderableType:
    """The metrics of one run."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("")
    for name in ("mean", "P50", "P90", "P95", "P99", "max", "unit"):
        table.add_column(name, justify="left" if name == "unit" else "right")
    for label, metric, unit in RUN_ROWS:
        end = "" if metric == "slowdown" else "_s"
        keys = [f"{metric}_{s}{end}" for s in ("mean", "p50", "p90", "p95", "p99", "max")]
        if keys[0] in found:
            table.add_row(label, *(number(found[key]) for key in keys), unit)
    totals = Table(box=None, show_header=False, pad_edge=False)
    totals.add_column("")
    totals.add_column("", justify="right")
    for label, key, unit in RUN_TOTALS:
        if key in found:
            scale = 100 if unit == "%" else 1
            totals.add_row(label, number(scale * found[key]), unit)
    return Group(Text(title, style="bold"), Text(), table, Text(), totals)


PREDICTION_ROWS = (  # label, metric of lengthwise.eval.prediction_metrics, unit
    ("Kendall tau-b", "kendall_tau", ""),
    ("Spearman", "spearman", ""),
    ("R² of log length", "r2_log", ""),
    ("mean absolute error", "mae", "tokens"),
    ("root mean squared error", "rmse", "tokens"),
    ("within 50 tokens", "within_50", "of answers"),
    ("within 100 tokens", "within_100", "of answers"),
    ("bucket accuracy", "bucket_accuracy", "of answers"),
)


def prediction_view(report: Mapping[str, Any]) -> RenderableType:
    """How well a predictor does on unseen prompts: a report of lengthwise.training.predictor."""
    who = report.get("predictor") or f"{report['model']} ({report['target']})"
    lines = [Text(f"{who} on {report['data']}", style="bold")]
    if "train" in report:
        train = report["train"]
        lines.append(
            Text(f"trained on {train['rows']:,} answers to {train['prompts']:,} prompts", "dim")
        )
    if "metrics" not in report:
        return Group(*lines, Text("no prompts were left to test on", "yellow"))
    test = report["test"]
    lines.append(Text(f"tested on {test['rows']:,} answers to {test['prompts']:,} others", "dim"))
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("")
    table.add_column("value", justify="right")
    table.add_column("95% interval", justify="right", style="dim")
    table.add_column("unit", style="dim")
    for label, name, unit in PREDICTION_ROWS:
        if name in report["metrics"]:
            found = report["metrics"][name]
            value, low, high = (plain_metric(name, found[k]) for k in ("value", "low", "high"))
            table.add_row(label, value, f"{low} to {high}", unit)
    parts: list[RenderableType] = [*lines, Text(), table]
    for when in ("before", "after"):
        if when in report.get("recalibrated", {}):
            parts.append(Text(f"{when}: {_window_line(report['recalibrated'][when])}", "dim"))
    if "windows" in report:
        parts += [Text(), _windows_table(report["windows"]), Text(report["verdict"], "bold")]
    return Group(*parts)


def _window_line(window: Mapping[str, Any]) -> str:
    """What one window says, in words."""
    covered = window["coverage"]
    told = "" if covered is None else f", 90% intervals cover {covered:.0%}"
    factor = f"answers are {window['factor']:.2f} times what is predicted"
    return f"τ {window['kendall_tau']:.2f}, {factor}{told}"


def _windows_table(windows: Sequence[Mapping[str, Any]]) -> Table:
    """Windows of a file in its order, as ``eval.prediction_windows`` makes them."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("answers")
    for head in ("Kendall tau-b", "in 90% intervals", "actual / predicted", "abstained"):
        table.add_column(head, justify="right")
    for window in windows:
        first, covered = window["first"], window["coverage"]
        table.add_row(
            f"{first + 1:,} to {first + window['rows']:,}", f"{window['kendall_tau']:.3f}",
            "-" if covered is None else f"{covered:.1%}", f"{window['factor']:.2f}",
            f"{window['abstained']:.0%}",
        )  # fmt: skip
    return table


def plain_metric(name: str, value: float) -> str:
    """A metric of predictions as text: tokens, shares in per cent, correlations."""
    if name in ("mae", "rmse"):
        return f"{value:.1f}"
    return f"{value:.1%}" if name.startswith(("within", "bucket")) else f"{value:.3f}"


def capacity_view(policy: str, slo: Mapping[str, float], found: Capacity) -> RenderableType:
    """The capacity of each seed and over all, with what was measured just below it."""
    limits = ", ".join(f"{name} ≤ {limit:g} s" for name, limit in slo.items())
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for head in ("seed", "capacity, requests/s", "rates tried", *(f"{n}, s" for n in slo)):
        table.add_column(head, justify="right")
    for seed, rate in enumerate(found.per_seed):
        tried = [probe for probe in found.probes if probe.seed == seed]
        at = next(probe for probe in tried if probe.rate == rate)
        values = (number(at.values[name]) for name in slo)
        table.add_row(str(seed), f"{rate:.2f}", str(len(tried)), *values)
    total = f"{policy}: {with_interval(found.rate)} requests/s with {limits}"
    return Group(Text(total, style="bold"), Text(), table)


def advice_view(found: Advice, width: int) -> RenderableType:
    """Three sentences, the line that serves so, and a row for each load."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("load")
    table.add_column("requests/s", justify="right")
    for head in ("fcfs waits, s", "mean, s", *(f"{p} τ .5" for p in ("sjf", "srtf")), "mlfq"):
        table.add_column(head, justify="right")
    for label, comparison, rate in (
        ("own", found.own, math.nan),
        *((f"{r / found.capacity:.0%}", found.loads, r) for r in found.loads.rates),
    ):
        fcfs = comparison.contenders[0]
        cells = [
            ratio_cell(comparison.ratio(rate, who, "e2e_mean_s"))
            for who in comparison.contenders
            if who.policy_name == "mlfq" or who.predictor_name == "noisy-oracle:tau=0.5"
        ]
        table.add_row(
            label,
            number(comparison.offered_rate(rate)),
            *(number(comparison.interval(rate, fcfs, f"{m}_mean_s").mean) for m in ("wait", "e2e")),
            *(Text(cell.text, STYLES[cell.verdict]) for cell in cells),
        )
    # the last sentence says where the same requests are run for every seed
    notices = dict.fromkeys((*found.own.notices, *found.loads.notices))
    notes = [notice for notice in notices if SAME not in notice]
    return Group(
        *(part for text in found.sentences for part in (Text(text), Text())),
        Text(found.command, style="bold", overflow="fold"),
        Text(),
        table,
        Text("Mean latency of policies in fcfs's, with lengths of a Kendall τ of .5.", "dim"),
        *(Text(f"note: {notice}", style="yellow") for notice in notes),
    )


JUDGED = (  # heading, column of lengthwise.eval.judge
    ("mean latency, s", "mean_latency_s"),
    ("P99 latency, s", "p99_latency_s"),
    ("mean TTFT, s", "mean_ttft_s"),
    ("s/token", "mean_normalized_latency_s"),
)
TO_BEST = (
    ("mean × best", "ratio_best"),
    ("P99 × best", "p99_latency_s_ratio_best"),
    ("s/token × best", "mean_normalized_latency_s_ratio_best"),
)


def judged_view(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Trained policies beside baselines, a table for each workload and load: rows of
    lengthwise.training.judging.evaluate_policy.
    """
    parts: list[RenderableType] = []
    for key in dict.fromkeys((row_["workload"], row_["load"]) for row_ in rows):
        group = [row_ for row_ in rows if (row_["workload"], row_["load"]) == key]
        workload, load = key
        at = f"{group[0]['rate_requests_per_s']:.3g} requests/s"
        at = f"load {load:g}: {at}" if load is not None else at
        title = f"{workload}, {at}; best baseline: {group[0]['best']}"
        parts += [Text(title, style="bold"), _judged_table(group), Text()]
    return Group(*parts[:-1])


def _judged_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("policy", style="bold", overflow="fold")
    ratios = ((f"mean × {rows[0]['policy']}", "ratio"), *TO_BEST)
    for head, _ in (*JUDGED, *ratios):
        table.add_column(head, justify="right")
    for row_ in rows:
        cells = [ratio_cell(_interval(row_, name)) for _, name in ratios]
        table.add_row(
            str(row_["policy"]),
            *(with_interval(_interval(row_, name)) for _, name in JUDGED),
            *(Text(cell.text, STYLES[cell.verdict]) for cell in cells),
        )
    return table


def _interval(row_: Mapping[str, Any], name: str) -> Interval:
    return Interval(row_[name], row_[f"{name}_low"], row_[f"{name}_high"], 0)


def checked_view(found: Checked) -> RenderableType:
    """What was looked at of a policy, a line each."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    styles = {"ok": "green", "note": "yellow", "not checked": "dim"}
    for check in found.checks:
        table.add_row(check.name, Text(check.verdict, styles[check.verdict]), check.said)
    reads = ", ".join(found.reads) or "nothing"
    return Group(Text(f"{found.policy} ({found.kind}) reads {reads}", style="bold"), Text(), table)


def reproduction_view(found: Reproduction) -> RenderableType:
    """A published table with ours beside it, and what differs."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("setting")
    table.add_column("policy", style="bold")
    for head in (f"theirs, {found.quantity}", f"ours, {found.quantity}"):
        table.add_column(head, justify="right")
    table.add_column(f"theirs × {found.first}", justify="right")
    table.add_column(f"ours × {found.first}", justify="right")
    setting = ""
    for line in found.lines:
        if setting and line.setting != setting:
            table.add_section()
        ours = "–" if line.ours is None else with_interval(line.ours)
        ratio = "–" if line.our_ratio is None else ratio_cell(line.our_ratio).text
        shown = line.setting if line.setting != setting else ""
        table.add_row(shown, line.policy, line.theirs, ours, line.their_ratio, ratio)
        setting = line.setting
    notes = [Text(f"differs: {text}", style="dim") for text in found.differs]
    return Group(Text(found.title, style="bold"), Text(), table, Text(), *notes)
