"""``lengthwise search``: a score function that serves a workload better than those there are."""

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
    Specs,
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
@workload_options
@metric_option
@click.option(
    "--budget", type=click.IntRange(1), default=2000, show_default=True, metavar="N",
    help="Simulated runs to search with; on each window for all that it begins with, and 24 "
    "others, at least.",
)  # fmt: skip
@click.option(
    "--size", type=click.IntRange(1, 60), default=15, show_default=True, metavar="N",
    help="Features, numbers and operations of a score, at most.",
)  # fmt: skip
@click.option(
    "--parsimony", type=click.FloatRange(0, 1), default=0.0005, show_default=True, metavar="SHARE",
    help="Of the metric, that each of them must be worth.",
)  # fmt: skip
@click.option(
    "--features", type=Specs(), default=(), metavar="A,B,...",
    help="What scores may read. Default: lengths, times, how full the replica is, and what the "
    "workload has beside them.",
)  # fmt: skip
@click.option(
    "--start", type=Specs(), default=(), metavar="A,B,...",
    help="Policies to begin with, files among them. Default: all registered ones that are "
    "formulas of what this run can tell.",
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
def search(
    command: str,
    /,
    metric: str,
    budget: int,
    size: int,
    parsimony: float,
    features: tuple[str, ...],
    start: tuple[str, ...],
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
    """Evolves a score function that serves WORKLOAD well, and judges it on other requests.

    It is a formula of features and numbers whose units fit, that never divides by 0, and that
    orders requests beyond what was seen; it begins with the registered scores and ends no worse
    than the best of them on what it is searched on. --out writes it as policy.py, a policy like
    any other. --seeds windows of --requests requests (default 1000) are searched on, and as many
    others judged on: a preset's are drawn, a file is cut, and its first windows are searched on.

    \b
    lengthwise search azure-conv-2023 --rates 24 --predictor noisy-oracle:tau=0.5 --out runs/found
    lengthwise compare azure-conv-2023 --rates 24 --policies sjf,runs/found/policy.py:score
    """
    from lengthwise.eval.flat import searched_document, searched_rows
    from lengthwise.eval.metrics import OF_REQUESTS
    from lengthwise.eval.output import check_writable
    from lengthwise.eval.searched import save, search_policy
    from lengthwise.eval.terminal import searched_view
    from lengthwise.eval.tuned import REQUESTS
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
        from lengthwise.eval.plan import search_plan

        for line in search_plan(
            source, metric=metric, budget=budget, features=features, start=start, rates=rates,
            requests=requests, seeds=seeds, predictor=predictor, engine=engine, **options,
        ):  # fmt: skip
            click.echo(line)
        return
    cells = cells_of(command, out, force)
    with kept(lambda: cells_kept(out)), progress("searching") as moved:
        found = search_policy(
            source, metric=metric, budget=budget, size=size, parsimony=parsimony,
            features=features, start=start, rates=rates, requests=requests, seeds=seeds,
            predictor=predictor, engine=engine, seed=seed, cells=cells, progress=moved, **options,
        )  # fmt: skip
    if form is not None:  # else they stand under the table
        notices(found.notices)
    show(form, lambda width: searched_view(found), lambda: searched_document(found),
         lambda: searched_rows(found))  # fmt: skip
    if out is not None:
        folder = save(found, out, searched_document(found), command)
        wrote(f"{folder}; run it as {folder}/{found.spelled}", form)
        if cells is not None:
            cells.drop()
