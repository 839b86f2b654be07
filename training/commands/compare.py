"""``lengthwise compare``: a grid of policies, predictors, rates and seeds."""

from __future__ import annotations

from typing import Any, Literal

import click

from lengthwise.training.commands.folders import (
    cells_of,
    claim,
    config_option,
    dry_run_option,
    force_option,
)
from lengthwise.training.commands.options import (
    Name,
    Rates,
    Specs,
    engine_options,
    form_options,
    out_option,
    processes_option,
    seeds_option,
    system_options,
    table_options,
    take_engine,
    take_source,
    workload_options,
)


@click.command()
@workload_options
@click.option(
    "--policies",
    type=Specs(),
    show_default="fcfs,sjf,srtf,mlfq, or fcfs with --routers",
    help="Policies; fcfs is always among them, as the baseline.",
)
@click.option(
    "--routers",
    type=Specs(),
    default=(),
    help="Routers, each before every policy; round-robin is always among them, as the baseline.",
)
@click.option(
    "--predictors",
    type=Specs(),
    default="oracle",
    show_default=True,
    help="Names or folders of predictors; the oracle is always among them.",
)
@click.option(
    "--rates",
    type=Rates(auto=True),
    default=(),
    metavar="R,R,...|auto",
    help="Arrival rates in requests/s; auto: the workload's own, and 80, 95 and 110% of what can "
    "be served. Default: the workload's own.",
)
@seeds_option
@click.option(
    "--tune", "tuning", is_flag=True,
    help="Tune the numbers of each policy (or router) first, on other requests; rows are named as "
    "they were tuned. Of a file the first third is for that.",
)  # fmt: skip
@click.option(
    "--budget", type=click.IntRange(4), default=64, show_default=True, metavar="N",
    help="Simulated runs to tune each row with --tune.",
)  # fmt: skip
@click.option(
    "--metric", default="e2e_mean", show_default=True, metavar="METRIC_STATISTIC",
    help="What --tune makes small: e2e_mean, e2e_p99, ttft_p95, ...",
)  # fmt: skip
@click.option("--slo", metavar="NAME=S,...", help="Limits a request must meet: ttft=1,tpot=0.05.")
@click.option(
    "--host-uncertainty",
    is_flag=True,
    help="Run it on hosts that differ as those that were seen, and say what holds on all.",
)
@system_options
@engine_options
@processes_option
@table_options
@form_options
@out_option
@force_option
@dry_run_option
@config_option
@click.pass_obj
def compare(
    command: str,
    /,
    policies: tuple[str, ...] | None,
    routers: tuple[str, ...],
    predictors: tuple[str, ...],
    rates: tuple[float, ...] | Literal["auto"],
    seeds: int,
    tuning: bool,
    budget: int,
    metric: str,
    slo: str | None,
    host_uncertainty: bool,
    processes: int,
    shown: tuple[str, ...],
    wide: bool,
    form: str | None,
    out: str | None,
    force: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Compares policies on the same requests, with confidence intervals over seeds.

    With --out, the runs are kept as Parquet, beside figures and a self-contained HTML report; each
    seed at each rate is kept as it is finished, so that the same command goes on after a stop.

    \b
    lengthwise compare azure-conv-2023 --rates 8,24,32 --policies fcfs,sjf,mlfq:quantum=64,levels=6
    lengthwise compare azure-conv-2023 --rates 60 --replicas 4 --routers jsq,least-tokens,./bundle
    lengthwise compare prompts.jsonl.gz --split test --arrivals trace.csv.gz --predictors ./p
    """
    from lengthwise.eval import metrics
    from lengthwise.eval.compare import compare as run
    from lengthwise.eval.flat import comparison_document, comparison_rows
    from lengthwise.eval.publish import check_publishable, pick_timelines, publish
    from lengthwise.eval.tables import check_columns
    from lengthwise.eval.terminal import comparison_view
    from lengthwise.training.commands.show import notices, progress, show, wrote
    from lengthwise.training.commands.stopped import cells_kept, kept

    Name("metric", metrics.OF_REQUESTS).convert(metric, None, None)
    limits = metrics.parse_slo(slo, tuple(metrics.PER_REQUEST)) if slo else None
    check_columns(shown, limits or (), routed=bool(routers))
    engine, source = take_engine(options), take_source(options)
    chosen = policies or (("fcfs",) if routers else ("fcfs", "sjf", "srtf", "mlfq"))
    if out is not None:
        check_publishable(out)
    claim(command, out, force)
    if dry_run:
        from lengthwise.eval.plan import compare_plan, tuning_plan

        for line in compare_plan(
            source, chosen, predictors, rates, seeds, engine, processes=processes, routers=routers,
            hosts=host_uncertainty, **options,
        ):  # fmt: skip
            click.echo(line)
        if tuning:
            click.echo(tuning_plan(source, chosen, routers, rates, budget))
        return
    cells = cells_of(command, out, force)
    with kept(lambda: cells_kept(out)), progress("comparing") as moved:
        found = run(
            source,
            chosen,
            predictors,
            rates,
            seeds,
            engine,
            processes=processes,
            slo=limits,
            progress=moved,
            routers=routers,
            cells=cells,
            tuning=tuning,
            budget=budget,
            metric=metric,
            hosts=host_uncertainty,
            **options,
        )
    if form is not None:  # else they stand under the tables
        notices(found.notices)
    show(
        form,
        lambda width: comparison_view(found, width, shown, wide),
        lambda: comparison_document(found),
        lambda: comparison_rows(found),
        wide,
    )
    if out is not None:
        timelines = pick_timelines(found, found.source or source, engine, **options)
        wrote(publish(found, out, timelines=timelines, command=command), form)
        if cells is not None:
            cells.drop()
