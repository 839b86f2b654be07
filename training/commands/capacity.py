"""``lengthwise capacity``: the largest arrival rate that meets a service-level objective."""

from __future__ import annotations

from pathlib import Path
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
    Specs,
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
    "--policies",
    "--policy",
    "policies",
    type=Specs(),
    default="fcfs",
    show_default=True,
    help="Policies; of several, ratios are to the first.",
)
@click.option(
    "--predictors",
    "--predictor",
    "predictors",
    type=Specs(),
    default=(),
    help="Names (oracle) or trained predictors' folders.",
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
    policies: tuple[str, ...],
    predictors: tuple[str, ...],
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

    Of several policies or predictors it says who carries the most; with --out it then runs them
    around their capacities, and draws what the SLO limits against the arrival rate.

    \b
    lengthwise capacity azure-conv-2023 --policy sjf --predictor oracle --slo ttft_p99=1.0
    lengthwise capacity azure-conv-2023 --policies fcfs,sjf,mlfq --predictors oracle,./p \\
        --slo ttft_p99=1,tpot_p99=0.05 --out runs/capacity
    """
    from lengthwise.eval.capacity import capacity as search
    from lengthwise.eval.capacity import contenders, save
    from lengthwise.eval.flat import capacity_document, capacity_rows
    from lengthwise.eval.metrics import OF_REQUESTS, parse_slo
    from lengthwise.eval.output import check_writable
    from lengthwise.eval.publish import check_publishable
    from lengthwise.eval.setting import Setting
    from lengthwise.eval.terminal import capacity_view
    from lengthwise.training.commands.show import progress, show, wrote
    from lengthwise.training.commands.stopped import cells_kept, kept

    limits = parse_slo(slo, OF_REQUESTS)
    engine, source = take_engine(options), take_source(options)
    several = len(policies) > 1 or len(predictors) > 1
    policy, predictor = policies[0], next(iter(predictors), None)
    if out is not None:
        (check_publishable if several else check_writable)(out)
    claim(command, out, force)
    rows: list[Any] = []
    if several:
        system = {name: options[name] for name in options if name != "backend"}
        rows = contenders(policies, predictors, Setting(engine, **system).load())
    if dry_run:
        from lengthwise.eval.plan import capacity_plan

        for line in capacity_plan(
            source, policy, predictor, seeds, tolerance, engine, processes=processes, **options
        ):
            click.echo(line)
        if several:
            click.echo(f"all of it for each of {', '.join(who.label for who in rows)}")
        return
    cells = cells_of(command, out, force)
    if several:
        with kept(lambda: cells_kept(out)):
            asked = {"seeds": seeds, "engine": engine, "processes": processes, **options}
            _several(source, rows, limits, tolerance, asked, out, command, form, cells)
        return
    with kept(lambda: cells_kept(out)), progress("searching") as moved:
        found = search(
            source, policy, limits, predictor, seeds, tolerance, engine, processes=processes,
            progress=moved, cells=cells, **options,
        )  # fmt: skip
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


def _several(
    source: Any, rows: list[Any], limits: dict[str, float], tolerance: float,
    asked: dict[str, Any], out: str | None, command: str, form: str | None, cells: Any,
) -> None:  # fmt: skip
    """The capacities of several rows, and with ``out`` how each metric of the SLO goes around."""
    from lengthwise.eval.capacity import capacity as search
    from lengthwise.eval.capacity import curves, probes_table
    from lengthwise.eval.charts import capacity_curves
    from lengthwise.eval.flat import capacities_document, capacities_rows
    from lengthwise.eval.output import write_json
    from lengthwise.eval.publish import publish
    from lengthwise.eval.report import capacities_lead
    from lengthwise.eval.terminal import capacities_view
    from lengthwise.training.commands.show import progress, show, wrote

    found = {}
    with progress("searching") as moved:
        for place, who in enumerate(rows):
            found[who] = search(
                source, who.policy, limits, who.predictor, tolerance=tolerance,
                progress=lambda done, total, at=place: moved(at * total + done, len(rows) * total),  # type: ignore[misc]
                cells=None if cells is None else cells.part(str(place)), **asked,
            )  # fmt: skip
    document = capacities_document(limits, found)
    show(
        form,
        lambda width: capacities_view(limits, found),
        lambda: document,
        lambda: capacities_rows(found),
    )
    if out is None:
        return
    with progress("comparing") as moved:
        around = curves(source, found, limits, progress=moved, cells=cells.part("curves"), **asked)

    def keep_more(fresh: Path) -> None:
        probes_table(found).to_parquet(fresh / "probes.parquet", index=False)
        write_json(fresh / "capacity.json", document)

    marks = {who.label: one.rate.mean for who, one in found.items()}
    written = publish(
        around, out, title=f"How much load is carried of {source.name}",
        lead=capacities_lead(limits, found), first=capacity_curves(around, limits, marks),
        command=command, config={"slo": limits, "tolerance": tolerance},
        extra=keep_more,
    )  # fmt: skip
    wrote(written, form)
    cells.drop()
