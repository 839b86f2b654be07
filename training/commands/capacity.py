"""``lengthwise capacity``: the largest arrival rate that meets a service-level objective."""

from __future__ import annotations

from typing import Any

import click

from lengthwise.training.commands.folders import (
    cells_of,
    claim,
    config_option,
    dry_run_option,
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
@click.option("--policy", default="fcfs", show_default=True, metavar="SPEC")
@click.option(
    "--predictor", metavar="SPEC", help="A name (oracle) or a trained predictor's folder."
)
@click.option(
    "--slo",
    required=True,
    metavar="METRIC_STATISTIC=S,...",
    help="Limits in seconds on statistics over requests: ttft_p99=1,tpot_p99=0.05.",
)
@click.option(
    "--tolerance",
    type=float,
    default=0.01,
    show_default=True,
    help="How closely the rate is found, relative.",
)
@seeds_option
@system_options
@engine_options
@processes_option
@form_options
@out_option
@force_option
@dry_run_option
@config_option
@click.pass_obj
def capacity(
    command: str,
    /,
    policy: str,
    predictor: str | None,
    slo: str,
    tolerance: float,
    seeds: int,
    processes: int,
    form: str | None,
    out: str | None,
    force: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Bisects the arrival rate of WORKLOAD until it just meets the SLO, on each seed.

    \b
    lengthwise capacity azure-conv-2023 --policy sjf --predictor oracle --slo ttft_p99=1.0
    """
    from lengthwise.eval.capacity import capacity as search
    from lengthwise.eval.capacity import save
    from lengthwise.eval.flat import capacity_document, capacity_rows
    from lengthwise.eval.metrics import OF_REQUESTS, parse_slo
    from lengthwise.eval.output import check_writable
    from lengthwise.eval.terminal import capacity_view
    from lengthwise.training.commands.show import progress, show, wrote
    from lengthwise.training.commands.stopped import cells_kept, kept

    limits = parse_slo(slo, OF_REQUESTS)
    engine, source = take_engine(options), take_source(options)
    if out is not None:
        check_writable(out)
    claim(command, out, force)
    if dry_run:
        from lengthwise.eval.plan import capacity_plan

        for line in capacity_plan(
            source, policy, predictor, seeds, tolerance, engine, processes=processes, **options
        ):
            click.echo(line)
        return
    cells = cells_of(command, out, force)
    with kept(lambda: cells_kept(out)), progress("searching") as moved:
        found = search(
            source,
            policy,
            limits,
            predictor,
            seeds,
            tolerance,
            engine,
            processes=processes,
            progress=moved,
            cells=cells,
            **options,
        )
    show(
        form,
        lambda width: capacity_view(policy, limits, found),
        lambda: capacity_document(policy, limits, found),
        lambda: capacity_rows(policy, found),
    )
    if out is not None:
        config = {"workload": source.name, "policy": policy, "predictor": predictor, "slo": limits,
                  "seeds": seeds, **options}  # fmt: skip
        wrote(save(found, out, config, command), form)
        if cells is not None:
            cells.drop()
