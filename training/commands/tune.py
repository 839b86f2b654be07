"""``lengthwise tune``: the numbers of a policy that serve best on a workload."""

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
    engine_options,
    form_options,
    metric_option,
    out_option,
    predictor_option,
    rates_option,
    seed_option,
    seeds_option,
    served_options,
    take_engine,
    take_source,
    workload_options,
)


@click.command()
@click.argument("policy", metavar="POLICY")
@workload_options
@metric_option
@click.option(
    "--budget", type=click.IntRange(4), default=64, show_default=True, metavar="N",
    help="Simulated runs to tune with; 4 for each window and rate at least.",
)  # fmt: skip
@predictor_option
@rates_option
@seeds_option
@seed_option
@served_options
@engine_options
@form_options
@out_option
@force_option
@dry_run_option
@config_option
@click.pass_obj
def tune(
    command: str,
    /,
    policy: str,
    metric: str,
    budget: int,
    predictor: str,
    rates: tuple[float, ...] | Literal["auto"],
    seeds: int,
    seed: int,
    form: str | None,
    out: str | None,
    force: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Finds the numbers of POLICY that serve best on WORKLOAD, and judges them on other requests.

    Those of its score, its price on preemption and the share of an answer that protects it, its
    guard's ratio and its reserve, where they are in use. --seeds windows of --requests requests
    (default 1000) are tuned on, and as many others judged on: a preset's are drawn, a file is cut,
    and its first windows are tuned on. A router's name is tuned as a router.

    \b
    lengthwise tune srtf azure-conv-2023 --rates 24 --predictor noisy-oracle:tau=0.5
    lengthwise tune mlfq+guard:ratio=1.5 trace.csv.gz --metric e2e_p99 --rates auto --out runs/mlfq
    """
    from lengthwise.eval.flat import tuned_document, tuned_rows
    from lengthwise.eval.metrics import OF_REQUESTS
    from lengthwise.eval.output import check_writable
    from lengthwise.eval.terminal import tuned_view
    from lengthwise.eval.tuned import REQUESTS, save, tune_policy
    from lengthwise.training.commands.show import notices, progress, show, wrote
    from lengthwise.training.commands.stopped import cells_kept, kept

    Name("metric", OF_REQUESTS).convert(metric, None, None)
    requests = options["requests"] or REQUESTS
    options["requests"] = None  # of a window, not of the workload
    engine, source = take_engine(options), take_source(options)
    if out is not None:
        check_writable(out)
    claim(command, out, force)
    if dry_run:
        from lengthwise.eval.plan import tune_plan

        for line in tune_plan(
            policy, source, metric=metric, budget=budget, rates=rates, requests=requests,
            seeds=seeds, predictor=predictor, engine=engine, **options,
        ):  # fmt: skip
            click.echo(line)
        return
    cells = cells_of(command, out, force)
    with kept(lambda: cells_kept(out)), progress("tuning") as moved:
        found = tune_policy(
            policy, source, metric=metric, budget=budget, rates=rates, requests=requests,
            seeds=seeds, predictor=predictor, engine=engine, seed=seed, cells=cells,
            progress=moved, **options,
        )  # fmt: skip
    if form is not None:  # else they stand under the table
        notices(found.notices)
    show(form, lambda width: tuned_view(found), lambda: tuned_document(found),
         lambda: tuned_rows(found))  # fmt: skip
    if out is not None:
        wrote(save(found, out, tuned_document(found), command), form)
        if cells is not None:
            cells.drop()
