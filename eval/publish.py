"""Writes a comparison as a folder: Parquet, tables, figures and the report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lengthwise.eval import charts, plots
from lengthwise.eval.charts import Chart
from lengthwise.eval.compare import Comparison
from lengthwise.eval.output import (
    CONFIG,
    check_writable,
    provenance,
    replaced_folder,
    write_json,
)
from lengthwise.eval.report import write_report
from lengthwise.eval.simulate import Result, simulate
from lengthwise.eval.source import Source
from lengthwise.eval.terminal import markdown
from lengthwise.serving import Engine

REPORT = "report.html"


def check_publishable(out: str | Path) -> None:
    """Raises ``InputError`` for a folder that can't be written, and where figures can't be drawn.

    To be called before the work whose results would be lost.
    """
    check_writable(out)
    plots.matplotlib_style()


def pick_timelines(
    comparison: Comparison, source: Source, engine: Engine | None = None, **options: Any
) -> list[tuple[str, Result]]:
    """Two runs of the first seed at the highest rate, with their iterations: fcfs and the best.

    The best is the lowest mean latency that needs no oracle, if any. ``options`` are those of
    ``simulate`` that the comparison ran with (timing, replicas, router, backend).
    """
    rate = comparison.rates[-1]
    fcfs, *others = comparison.contenders
    real = [who for who in others if "oracle" not in who.predictor_name] or others
    chosen = [fcfs]
    if real:
        chosen.append(min(real, key=lambda who: comparison.interval(rate, who, "e2e_mean_s").mean))
    workload = source.load(None if math.isnan(rate) else rate, 0)
    return [
        (
            who.label,
            simulate(
                workload, who.policy, who.predictor, engine, log_iterations=True,
                **{**options, **({"router": who.router} if who.router_name else {})},
            ),
        )
        for who in chosen
    ]  # fmt: skip


def publish(
    comparison: Comparison,
    folder: str | Path,
    *,
    title: str = "Scheduling policies compared",
    timelines: Sequence[tuple[str, Result]] = (),
    config: Mapping[str, Any] | None = None,
    command: str | None = None,
    lead: str = "",
    sections: Sequence[tuple[str, str]] = (),
    extra: Callable[[Path], None] | None = None,
    first: Chart | None = None,
) -> Path:
    """Writes the whole folder at once and returns the report's path.

    runs.parquet (one row a run), table.md, report.html, config.json, figures as SVG, PNG and PDF,
    and requests-N.parquet and iterations-N.parquet of each of ``timelines`` (labels with results
    that logged their iterations). ``lead`` and ``sections`` are HTML for the report, see
    ``write_report``. ``extra`` may write more into the new folder; ``first`` is a chart before the
    others.
    """
    made = provenance({**comparison.config, **(config or {})}, command)
    shown = [charts.trade(comparison), charts.latency_cdf(comparison)]
    if len(comparison.rates) > 1:
        shown.insert(1, charts.latency_by_rate(comparison))
    if first is not None:
        shown.insert(0, first)
    logs = [(label, r.iterations) for label, r in timelines if r.iterations is not None]
    if logs:
        shown.append(charts.timeline(logs, timelines[0][1].num_gpu_blocks))
    with replaced_folder(folder) as fresh:
        comparison.runs.to_parquet(fresh / "runs.parquet", index=False)
        for index, (_, result) in enumerate(timelines):
            result.requests.to_parquet(fresh / f"requests-{index}.parquet", index=False)
            if result.iterations is not None:
                result.iterations.to_parquet(fresh / f"iterations-{index}.parquet", index=False)
        (fresh / "table.md").write_text(markdown(comparison), encoding="utf-8")
        for chart in shown:
            plots.write(plots.whole(chart), fresh, chart.name)
        write_report(
            fresh / REPORT, comparison, title=title, provenance=made, charts=shown, lead=lead,
            sections=sections,
        )  # fmt: skip
        write_json(fresh / CONFIG, made)
        if extra is not None:
            extra(fresh)
    return Path(folder) / REPORT
