"""Comparisons and runs as tables in the terminal, and in Markdown."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from lengthwise.errors import UnknownNameError
from lengthwise.eval.advise import Advice
from lengthwise.eval.calibrate import Calibration
from lengthwise.eval.capacity import Capacity
from lengthwise.eval.check import Checked
from lengthwise.eval.compare import SAME, Comparison, Contender
from lengthwise.eval.reproductions.table import NONE, UNSTATED, Reproduction
from lengthwise.eval.searched import Searched
from lengthwise.eval.statistics import Interval
from lengthwise.eval.tables import (
    Cell,
    Row,
    capacities_table,
    chosen_columns,
    columns_of,
    footnote,
    heading,
    names_of,
    number,
    ratio_cell,
    reasons,
    rows_of,
    subtitle,
    with_interval,
)
from lengthwise.eval.tuned import Tuned
from lengthwise.eval.verdict import capacity_verdicts, judged_verdict, verdicts

STYLES = {"better": "green", "worse": "red", "same": "dim", "": ""}
PIPE_WIDTH = 160  # where no terminal says how wide it is
NO_WIDTH = 100_000
NARROW = 100  # characters, below which headings take two lines
LEAST_NAME = 12  # characters of a name in a line, however narrow the terminal
BLOCKS = 4  # of columns, unless some were asked for


def console(wide: bool = False) -> Console:
    """Standard output; as wide as it takes with ``wide``, wide when it is not a terminal."""
    width = NO_WIDTH if wide else None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(width=width, highlight=False)


def comparison_view(
    comparison: Comparison, width: int, columns: Sequence[str] = (), wide: bool = False
) -> RenderableType:
    """A sentence for each load, then a table for each, in blocks of columns that fit ``width``.

    ``columns`` are names of ``lengthwise.eval.tables.chosen_columns``, all of which are shown;
    without them those with room in ``BLOCKS`` blocks are, and the others are named. ``wide`` makes
    one block of all, however wide it gets.
    """
    said = (Text(sentence, style="bold") for sentence in verdicts(comparison))
    return Group(*_title(comparison), Text(), *said, *_tables(comparison, width, columns, wide))


def comparisons_view(each: Mapping[str, Comparison], width: int) -> RenderableType:
    """Comparisons of the same requests by what differs: the sentences of all, then the tables."""
    parts: list[RenderableType] = [*_title(next(iter(each.values())))]
    for label, comparison in each.items():
        said = (Text(sentence, style="bold") for sentence in verdicts(comparison))
        parts += [Text(), Text(f"{label}:"), *said]
    for label, comparison in each.items():
        parts += [Text(), Text(label, style="bold underline"), *_tables(comparison, width)]
    return Group(*parts)


def _title(comparison: Comparison) -> list[RenderableType]:
    return [
        Text(comparison.name, style="bold", overflow="fold"),
        Text(subtitle(comparison), style="dim"),
    ]


def _tables(
    comparison: Comparison, width: int, columns: Sequence[str] = (), wide: bool = False
) -> list[RenderableType]:
    """The table of each load, and how to read it."""
    chosen = chosen_columns(comparison, columns) if columns else columns_of(comparison)
    parts: list[RenderableType] = []
    rates = comparison.rates
    lines = [[_line(row) for row in rows_of(comparison, rate, chosen)] for rate in rates]
    made = Blocks.of(
        names_of(comparison), [column.heading for column in chosen],
        [line for of_rate in lines for line in of_rate],
        None if wide else width, 0 if columns else BLOCKS,
    )  # fmt: skip
    for rate, of_rate in zip(rates, lines, strict=True):
        parts += [Text(), Text(heading(comparison, rate), style="bold")]
        parts += made.tables(of_rate)
        parts += [Text(said, style="dim") for said in dict.fromkeys(reasons(comparison, rate))]
    parts += [Text(), Text(footnote(comparison), style="dim")]
    parts += _no_room(made.left)
    return [*parts, *(Text(f"note: {notice}", style="yellow") for notice in comparison.notices)]


def _no_room(left: Iterable[str]) -> list[RenderableType]:
    """Which columns are not shown, and how they are."""
    names = ", ".join(heading.removesuffix(", s") for heading in left)
    return [Text(f"No room for {names}: --wide or --show has them.", "dim")] if names else []


Line = tuple[Sequence[Text], Sequence[Text]]  # names, then one cell a column


def _line(row: Row) -> Line:
    if row.bound:
        style = "italic dim"
        return [Text(name, style) for name in row.names], [Text(c.text, style) for c in row.cells]
    first, *others = row.names
    names = [Text(first, "bold"), *map(Text, others[:-1]), Text(others[-1], "cyan")]
    return names, [Text(cell.text, STYLES[cell.verdict]) for cell in row.cells]


@dataclass(frozen=True)
class Blocks:
    """Columns in blocks that each fit a width, with the names of the lines before each.

    ``split`` has the places of the columns of each block; ``left`` the headings of those for which
    there was no room.
    """

    heads: Sequence[str]
    columns: Sequence[str]
    split: Sequence[Sequence[int]]
    left: Sequence[str]
    most: int | None  # characters of a name; more go on in the next line

    @classmethod
    def of(
        cls, heads: Sequence[str], columns: Sequence[str], lines: Sequence[Line],
        width: int | None, most: int = 0,
    ) -> Blocks:  # fmt: skip
        """Blocks of at most ``width`` characters (None: any) for lines that may be of several
        tables; at most ``most`` of them, 0: as many as it takes.
        """
        names = [
            max(len(head), *(len(names[index]) for names, _ in lines))
            for index, head in enumerate(heads)
        ]
        longest = max(names) if width is not None else None
        while width is not None and longest is not None and longest > LEAST_NAME:
            if sum(3 + min(wide, longest) for wide in names) <= width // 2:
                break
            longest -= 1
        named = sum(3 + (wide if longest is None else min(wide, longest)) for wide in names)
        cells = [3 + max(len(cells[index]) for _, cells in lines) for index in range(len(columns))]
        own = [max(wide, 3 + len(head)) for wide, head in zip(cells, columns, strict=True)]
        if width is not None and width < NARROW and named + sum(own) > width:  # on two lines
            columns = [head.replace(" ", "\n", 1) for head in columns]
            own = [
                max(wide, 3 + max(map(len, head.split("\n"))))
                for wide, head in zip(cells, columns, strict=True)
            ]
        split: list[list[int]] = [[]]
        used = named
        for index, wide in enumerate(own):
            used += wide
            if width is not None and used > width and split[-1]:
                split.append([])
                used = named + wide
            split[-1].append(index)
        kept = split[:most] if most else split
        left = [columns[i].replace("\n", " ") for block in split[len(kept) :] for i in block]
        return cls(heads, columns, kept, left, longest)

    def tables(self, lines: Sequence[Line]) -> list[RenderableType]:
        """A table for each block, without the lines that say nothing in it."""
        parts: list[RenderableType] = []
        for block in self.split:
            table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
            for head in self.heads:
                table.add_column(
                    head, overflow="fold", max_width=self.most, no_wrap=self.most is None
                )
            for index in block:
                table.add_column(self.columns[index], justify="right", no_wrap=True)
            for names, cells in lines:
                if any(cells[index].plain != "–" for index in block) or len(self.split) == 1:
                    table.add_row(*names, *(cells[index] for index in block))
            parts += [Text(), table] if parts else [table]
        return parts


def markdown(comparison: Comparison) -> str:
    """The verdicts and tables in Markdown, for documents: every row and every column."""
    columns = columns_of(comparison)
    lines = [f"- {sentence}" for sentence in verdicts(comparison)] + [""]
    for rate in comparison.rates:
        lines += [f"**{heading(comparison, rate)}**", ""]
        heads = names_of(comparison)
        lines.append("| " + " | ".join((*heads, *(c.heading for c in columns))) + " |")
        lines.append("|---" * len(heads) + "|" + "---:|" * len(columns))
        lines += [
            "| " + " | ".join((*row.names, *(cell.text for cell in row.cells))) + " |"
            for row in rows_of(comparison, rate, merge=False)
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
    ("prefilled apart", "transfers", "requests"),
    ("KV moved", "transferred_gb", "GB"),
    ("prefilled until KV is there, mean", "transfer_mean_s", "s"),
    ("prefilled until KV is there, most", "transfer_max_s", "s"),
    ("Jain index of slowdowns", "jain_index", ""),
    ("KV blocks in use, mean", "kv_utilization_mean", "%"),
    ("KV blocks in use, most", "kv_utilization_max", "%"),
    ("requests that meet the SLO", "slo_attainment", "%"),
    ("goodput", "goodput_requests_per_s", "requests/s"),
    ("whole by their deadline", "deadline_attainment", "%"),
    ("of these", "deadline_goodput_requests_per_s", "requests/s"),
    ("latest after its deadline", "lateness_max_s", "s"),
    ("mean slowdown of the worst-off tenant", "tenant_slowdown_max", ""),
    ("Jain index of tenants' slowdowns", "tenant_jain_index", ""),
    ("service gap of tenants (VTC), mean", "service_gap_mean", "weighted tokens/min"),
    ("service gap of tenants (VTC), most", "service_gap_max", "weighted tokens/min"),
)


def run_view(title: str, found: Mapping[str, float], verdict: str = "") -> RenderableType:
    """The metrics of one run, under what they say."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("", overflow="fold")
    for name in ("mean", "P50", "P90", "P95", "P99", "max", "unit"):
        table.add_column(name, justify="left" if name == "unit" else "right", no_wrap=True)
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
    said = [Text(verdict, style="bold"), Text()] if verdict else []
    return Group(Text(title, style="" if verdict else "bold"), Text(), *said, table, Text(), totals)


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
            Text(
                f"trained on {train['rows']:,} answers to {train['prompts']:,} prompts"
                f"{_cut(train, 'counted as at least so long')}",
                "dim",
            )
        )
    if "metrics" not in report:
        return Group(*lines, Text("no prompts were left to test on", "yellow"))
    test = report["test"]
    seen = report.get("trained_on", False)
    asked = f"{test['rows']:,} answers to {test['prompts']:,} {'prompts' if seen else 'others'}"
    lines.append(
        Text(f"{'measured' if seen else 'tested'} on {asked}{_cut(test, 'left out')}", "dim")
    )
    if seen:
        lines.append(
            Text(
                "it was trained on prompts among these; this is no measure of unseen ones", "yellow"
            )
        )
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("")
    table.add_column("value", justify="right")
    table.add_column("95% interval", justify="right", style="dim")
    baselines = report.get("baselines", {})
    for name in baselines:
        table.add_column(name, justify="right")
    table.add_column("unit", style="dim")
    for label, name, unit in PREDICTION_ROWS:
        if name in report["metrics"]:
            found = report["metrics"][name]
            value, low, high = (plain_metric(name, found[k]) for k in ("value", "low", "high"))
            beside = (
                plain_metric(name, one[name]["value"]) if name in one else "–"
                for one in baselines.values()
            )
            table.add_row(label, value, f"{low} to {high}", *beside, unit)
    parts: list[RenderableType] = [*lines, Text(), table]
    for when in ("before", "after"):
        if when in report.get("recalibrated", {}):
            parts.append(Text(f"{when}: {_window_line(report['recalibrated'][when])}", "dim"))
    if "windows" in report:
        parts += [Text(), _windows_table(report["windows"]), Text(report["verdict"], "bold")]
    return Group(*parts)


def _cut(counts: Mapping[str, int], what: str) -> str:
    """What is said of answers that were cut short, if there are any."""
    cut = counts.get("censored", 0)
    return f", {cut:,} of them cut short and {what}" if cut else ""


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
    edges = [probe for probe in found.probes if probe.met and probe.rate in found.per_seed]
    used = {name: max(probe.values[name] / limit for probe in edges) for name, limit in slo.items()}
    first = max(used, key=lambda name: used[name])
    bound = f"{first} is what it meets first, at {used[first]:.0%} of its limit there."
    return Group(Text(total, style="bold"), Text(bound), Text(), table)


def tuned_view(found: Tuned) -> RenderableType:
    """The numbers that were found, what they gain on requests that they were not tuned on, and a
    table of both sets.
    """
    return Group(
        Text(found.tuned, style="bold", overflow="fold"), *_judged(found, "tuned", "default")
    )


def searched_view(found: Searched) -> RenderableType:
    """The policy's file that was found, how good it is, and a table of both sets."""
    lines = found.text.splitlines()
    code = "\n".join(lines[lines.index('"""', 1) + 1 :]).strip()
    return Group(
        Text(code, style="bold"), Text(), *_judged(found, "searched", found.policy),
        Text(f"{found.runs:,} runs; {found.refused:,} formulas were refused before any.",
             style="dim"),
    )  # fmt: skip


def _judged(found: Tuned, done: str, other: str) -> Iterator[RenderableType]:
    """What was found in a sentence and as a table, beside the baseline and ``other``."""
    baseline, default = found.names[0], found.policy
    to_first = found.ratio("test", found.tuned, baseline)
    sentence = (
        f"On requests that it was not {done} on, {found.metric} is {_of(to_first)} {baseline}"
    )
    if default not in (found.tuned, baseline):
        sentence += f", {_of(found.ratio('test', found.tuned, default))} {default}"
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("requests")
    table.add_column("policy", overflow="fold")
    for head in (f"{found.metric}, s", f"× {baseline}", f"× {other}"):
        table.add_column(head, justify="right", no_wrap=True)
    for on, name in found.values:
        ratios = [found.ratio(on, name, to) for to in (baseline, default)]
        cells = [Cell(with_interval(found.interval(on, name))), *map(ratio_cell, ratios)]
        said = {"train": f"{done} on", "test": "held out"}[on]
        table.add_row(said, name, *(Text(cell.text, STYLES[cell.verdict]) for cell in cells))
    yield Text(f"{sentence}.")
    yield Text()
    yield table
    yield Text()
    yield Text(
        f"{found.workload}, lengths by {found.predictor}; paired ratios, with 95% intervals "
        "over the windows.", style="dim",
    )  # fmt: skip
    for notice in found.notices:
        yield Text(f"note: {notice}", style="yellow")


def _of(ratio: Interval) -> str:
    known = not math.isnan(ratio.low)
    return f"{ratio.mean:.2f}{f' ({ratio.low:.2f} to {ratio.high:.2f})' if known else ''} of"


def capacities_view(
    slo: Mapping[str, float], found: Mapping[Contender, Capacity]
) -> RenderableType:
    """Who carries the most, and each row's capacity with what was measured just below it."""
    heads, lines = capacities_table(slo, found)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for head in heads:
        named = head in ("policy", "predictor")
        table.add_column(head, justify="left" if named else "right", overflow="fold")
    for line in lines:
        table.add_row(*(Text(cell.text, STYLES[cell.verdict]) for cell in line))
    said = (Text(sentence, style="bold") for sentence in capacity_verdicts(found, slo))
    return Group(*said, Text(), table)


def advice_view(found: Advice, width: int) -> RenderableType:
    """Three sentences, the line that serves so, and a row for each load."""
    loads = [
        ("own", found.own, math.nan),
        *((f"{r / found.capacity:.0%}", found.loads, r) for r in found.loads.rates),
    ]
    shown = [
        who for who in found.own.contenders
        if who.policy_name == "mlfq" or who.predictor_name == "noisy-oracle:tau=0.5"
    ]  # fmt: skip
    columns = ["requests/s", "fcfs waits, s", "fcfs mean, s"]
    columns += [f"{what} {who.policy_name}" for what in ("mean", "P99") for who in shown]
    lines: list[Line] = []
    for label, comparison, rate in loads:
        fcfs = comparison.contenders[0]
        numbers = [
            comparison.offered_rate(rate),
            *(comparison.interval(rate, fcfs, f"{m}_mean_s").mean for m in ("wait", "e2e")),
        ]
        ratios = [
            ratio_cell(comparison.ratio(rate, who, metric))
            for metric in ("e2e_mean_s", "e2e_p99_s")
            for who in shown
        ]
        cells = [*map(Cell, map(number, numbers)), *ratios]
        lines.append(([Text(label)], [Text(cell.text, STYLES[cell.verdict]) for cell in cells]))
    # the last sentence says where the same requests are run for every seed
    notices = dict.fromkeys((*found.own.notices, *found.loads.notices))
    notes = [notice for notice in notices if SAME not in notice]
    return Group(
        *(part for text in found.sentences for part in (Text(text), Text())),
        Text(found.command, style="bold", overflow="fold"),
        Text(),
        *Blocks.of(["load"], columns, lines, width).tables(lines),
        Text(
            "Mean and P99 latency of policies in fcfs's, with lengths of a Kendall τ of .5.", "dim"
        ),
        *(Text(f"note: {notice}", style="yellow") for notice in notes),
    )


def calibration_view(found: Calibration) -> RenderableType:
    """The calibrated profile's name, what it rests on, and each figure before and after."""
    half = found.second_half
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for head in ("run", "figure", "measured, s", "profile", "calibrated"):
        table.add_column(head, justify="left" if head in ("run", "figure") else "right")
    for row_ in found.rows:
        off = [f"{100 * row_[name]:+.1f}%" for name in ("plain", "calibrated")]
        table.add_row(row_["run"], row_["figure"], number(row_["measured_s"]), *off)
    said = [
        f"{name} {one.value:g} of the profile's time ({one.low:.2f} to {one.high:.2f})"
        for name, one in (("GPU", found.gpu), ("CPU", found.cpu))
    ]
    return Group(
        Text(f"--timing {found.timing}", style="bold", overflow="fold"),
        Text("; ".join(said)),
        Text(
            f"Found on the first half of each run, the factors meet {half.calibrated} of the "
            f"{half.figures} figures of the second within 5% (P99: 10%); the profile as it is, "
            f"{half.plain}."
        ),
        Text(),
        table,
        *(Text(f"note: {notice}", style="yellow") for notice in found.notices),
    )


JUDGED = (  # heading, column of lengthwise.eval.judge (ratios have "×"), its name elsewhere
    ("mean latency, s", "mean_latency_s", "e2e_mean"),
    ("mean × {first}", "ratio", "e2e_mean_ratio"),
    ("mean × best", "ratio_best", "e2e_mean_ratio_best"),
    ("P99 latency, s", "p99_latency_s", "e2e_p99"),
    ("P99 × best", "p99_latency_s_ratio_best", "e2e_p99_ratio_best"),
    ("max wait, s", "max_wait_s", "wait_max"),
    ("TTFT P99, s", "p99_ttft_s", "ttft_p99"),
    ("TPOT P99, s", "p99_tpot_s", "tpot_p99"),
    ("TTFT P50, s", "p50_ttft_s", "ttft_p50"),
    ("TPOT P50, s", "p50_tpot_s", "tpot_p50"),
    ("mean TTFT, s", "mean_ttft_s", "ttft_mean"),
    ("s/token", "mean_normalized_latency_s", "normalized_latency_mean"),
    (
        "s/token × best",
        "mean_normalized_latency_s_ratio_best",
        "normalized_latency_mean_ratio_best",
    ),
)


def judged_columns(names: Sequence[str]) -> list[tuple[str, str]]:
    """Headings and columns of ``lengthwise.eval.judge``, by heading, by ``compare``'s name or by
    their own; all without names.

    Raises ``UnknownNameError`` for others.
    """
    every = [(head, column) for head, column, _ in JUDGED]
    known = {}
    for head, column, name in JUDGED:
        for said in (column, name, head.removesuffix(", s")):
            known[said.lower()] = (head, column)
    for name in names:
        if name.lower() not in known:
            raise UnknownNameError("column", name, (name for _, _, name in JUDGED))
    return [known[name.lower()] for name in names] or every


def judged_view(
    rows: Sequence[Mapping[str, Any]], width: int, columns: Sequence[str] = (), wide: bool = False
) -> RenderableType:
    """Trained policies beside baselines, a verdict and a table for each workload and load: rows of
    ``lengthwise.training.judging.evaluate_policy``. ``columns`` are for ``judged_columns``.
    """
    chosen = judged_columns(columns)
    groups: dict[tuple[Any, Any], list[Mapping[str, Any]]] = {}
    for row_ in rows:
        groups.setdefault((row_["workload"], row_["load"]), []).append(row_)
    made = Blocks.of(
        ["policy"], [head.format(first=rows[0]["policy"]) for head, _ in chosen],
        [_judged_line(row_, chosen) for row_ in rows],
        None if wide else width, 0 if columns else BLOCKS,
    )  # fmt: skip
    parts: list[RenderableType] = []
    for group in groups.values():
        said = [Text(sentence, style="bold") for sentence in judged_verdict(group)]
        tables = made.tables([_judged_line(row_, chosen) for row_ in group])
        parts += [Text(_judged_title(group[0])), *said, Text(), *tables, Text()]
    return Group(*parts[:-1], *_no_room(made.left))


def _judged_title(row_: Mapping[str, Any]) -> str:
    load, rate = row_["load"], f"{row_['rate_requests_per_s']:.3g} requests/s"
    at = rate if load is None else f"load {load:g}: {rate}"
    over = ", more than can be served" if load is not None and load > 1 else ""
    return f"{row_['workload']}, {at}{over}; best baseline: {row_['best']}"


def _judged_line(row_: Mapping[str, Any], columns: Sequence[tuple[str, str]]) -> Line:
    cells = []
    for _, name in columns:
        interval = _interval(row_, name)
        made = ratio_cell(interval) if "ratio" in name else Cell(with_interval(interval))
        cells.append(Text(made.text, STYLES[made.verdict]))
    return [Text(str(row_["policy"]), "bold")], cells


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
    """A published table with ours beside it, what differs, and why."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("setting")
    table.add_column("policy", style="bold")
    said = any(line.theirs not in (NONE, UNSTATED) for line in found.lines)
    heads = ["theirs, {0}"] * said + ["ours, {0}", "theirs × {1}", "ours × {1}"]
    for head in heads:
        table.add_column(head.format(found.quantity, found.first), justify="right")
    setting = ""
    for line in found.lines:
        if setting and line.setting != setting:
            table.add_section()
        ours = "–" if line.ours is None else with_interval(line.ours)
        ratio = "–" if line.our_ratio is None else ratio_cell(line.our_ratio).text
        shown = line.setting if line.setting != setting else ""
        theirs = [line.theirs] * said
        table.add_row(shown, line.policy, *theirs, ours, line.their_ratio, ratio)
        setting = line.setting
    notes = [Text(f"source: {found.source}", style="dim")] if found.source else []
    notes += [Text(f"differs: {text}", style="dim") for text in found.differs]
    notes += [Text(f"why: {found.why}")] if found.why else []
    return Group(Text(found.title, style="bold"), Text(), table, Text(), *notes)


def papers_view(told: Mapping[str, str]) -> RenderableType:
    """The papers whose tables can be reproduced, and what of each."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("paper", style="bold", no_wrap=True)
    table.add_column("what is reproduced")
    for name, what in told.items():
        table.add_row(name, what)
    return table
