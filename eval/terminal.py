"""Comparisons and runs as tables in the terminal, and in Markdown."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from lengthwise.eval.compare import BOUND, Comparison
from lengthwise.eval.tables import (
    Cell,
    bound_row,
    columns_of,
    footnote,
    heading,
    number,
    row,
    subtitle,
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


def _rows(comparison: Comparison, rate: float) -> list[tuple[str, str, list[Cell]]]:
    found = [
        (who.policy_name, "" if who.predictor_name == "none" else who.predictor_name,
         row(comparison, rate, who))
        for who in comparison.contenders
    ]  # fmt: skip
    return [*found, (BOUND, "", bound_row(comparison, rate))]


def _table(comparison: Comparison, rate: float, width: int) -> Table:
    rows, columns = _rows(comparison, rate), columns_of(comparison)
    names = max(len(policy) for policy, _, _ in rows) + max(len(p) for _, p, _ in rows) + 6
    shown, used = 0, names
    for index, column in enumerate(columns):
        used += 2 + max(len(column.heading), *(len(cells[index].text) for _, _, cells in rows))
        shown += used <= width
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    table.add_column("policy", no_wrap=True)
    table.add_column("predictor", no_wrap=True)
    for column in columns[:shown]:
        table.add_column(column.heading, justify="right", no_wrap=True)
    for policy, predictor, cells in rows:
        bound = policy == BOUND
        table.add_row(
            Text(policy, style="italic dim" if bound else "bold"),
            Text(predictor, style="cyan"),
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
        lines.append("| policy | predictor | " + " | ".join(c.heading for c in columns) + " |")
        lines.append("|---|---|" + "---:|" * len(columns))
        lines += [
            f"| {policy} | {predictor} | " + " | ".join(cell.text for cell in cells) + " |"
            for policy, predictor, cells in _rows(comparison, rate)
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
    ("Jain index of slowdowns", "jain_index", ""),
    ("KV blocks in use, mean", "kv_utilization_mean", "of 1"),
    ("KV blocks in use, most", "kv_utilization_max", "of 1"),
    ("requests that meet the SLO", "slo_attainment", "of 1"),
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
            totals.add_row(label, number(found[key]), unit)
    return Group(Text(title, style="bold"), Text(), table, Text(), totals)
