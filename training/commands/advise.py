"""``lengthwise advise``: does length-aware scheduling pay for this traffic?"""

from __future__ import annotations

from html import escape
from typing import Any

import click

from lengthwise.training.commands.folders import (
    cells_of,
    claim,
    config_option,
    force_option,
)
from lengthwise.training.commands.options import (
    engine_options,
    form_options,
    out_option,
    processes_option,
    seeds_option,
    system_options,
    take_engine,
    take_source,
    workload_options,
)


@click.command()
@workload_options
@click.option(
    "--predictor", metavar="SPEC", help="A trained predictor's folder; without it τ .5 is assumed."
)
@click.option(
    "--slo", metavar="NAME=S,...", help="Limits for goodput: ttft=1,tpot=0.05. Default: five times "
    "the medians at a tenth of the capacity.",
)  # fmt: skip
@click.option(
    "--gpu", metavar="NAME",
    help="The GPU that serves the timing's model: h100, 2xa100. Estimated where not measured.",
)  # fmt: skip
@seeds_option
@system_options
@engine_options
@processes_option
@out_option
@force_option
@config_option
@form_options
@click.pass_obj
def advise(
    command: str,
    /,
    predictor: str | None,
    slo: str | None,
    gpu: str | None,
    seeds: int,
    processes: int,
    out: str | None,
    force: bool,
    form: str | None,
    **options: Any,
) -> None:
    """Says in three sentences whether length-aware scheduling pays for WORKLOAD.

    Finds its capacity, runs it at its own rate and at 80, 95 and 110% of the capacity under fcfs,
    sjf, srtf and mlfq, with exact lengths, with those of --predictor and with predictors of a
    Kendall tau of .3, .5 and .7, and prints the line that serves best. With --out, also a report.

    \b
    lengthwise advise trace.csv.gz --like vllm-serve --gpu l40s
    lengthwise advise azure-conv-2023 --timing h200/qwen2.5-32b --max-num-seqs 64 --out runs/advice
    """
    from lengthwise.eval import metrics
    from lengthwise.eval.advise import advise as find
    from lengthwise.eval.flat import advice_rows
    from lengthwise.eval.pool import kept_workers
    from lengthwise.eval.publish import check_publishable, pick_timelines, publish
    from lengthwise.eval.report import table
    from lengthwise.eval.tables import heading
    from lengthwise.eval.terminal import advice_view
    from lengthwise.serving.timing.load import timing_on
    from lengthwise.training.commands.show import progress, show, wrote
    from lengthwise.training.commands.stopped import cells_kept, kept

    limits = metrics.parse_slo(slo, tuple(metrics.PER_REQUEST)) if slo else None
    if gpu is not None:
        if options["nodes"] is not None:
            raise click.UsageError("give --gpu, or --nodes with their timings")
        options["timing"] = timing_on(gpu, options["timing"])
    engine, source = take_engine(options), take_source(options)
    for name, only in (("failures", None), ("backend", "auto")):
        if options.pop(name) != only:
            raise click.UsageError(f"advise has no --{name}")
    if out is not None:
        check_publishable(out)
    claim(command, out, force)
    cells = cells_of(command, out, force)
    kept_cells = kept(lambda: cells_kept(out))
    with kept_cells, kept_workers(processes), progress("running") as moved:
        found = find(
            source, predictor, slo=limits, seeds=seeds, engine=engine, processes=processes,
            progress=moved, cells=cells, **options,
        )  # fmt: skip
    show(form, lambda width: advice_view(found, width), found.to_dict, lambda: advice_rows(found))
    if out is not None:
        said = "".join(f"<p>{text}</p>" for text in map(escape, found.sentences))
        lead = f'{said}<pre tabindex="0">{escape(found.command)}</pre>'
        own = [(heading(found.own, rate), table(found.own, rate)) for rate in found.own.rates]
        written = publish(
            found.loads, out, title=f"Does length-aware scheduling pay for {source.name}?",
            lead=lead, command=command, config={"advice": found.to_dict()},
            timelines=pick_timelines(found.loads, found.source, engine, **options),
            sections=[(f"As it comes: {title}", html) for title, html in own],
        )  # fmt: skip
        wrote(written, form)
        if cells is not None:
            cells.drop()
