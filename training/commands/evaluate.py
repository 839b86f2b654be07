"""``lengthwise evaluate predictor`` and ``lengthwise evaluate policy``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from lengthwise.errors import InputError
from lengthwise.serving.options import DEFAULT_TIMING
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
    columns_option,
    engine_options,
    form_options,
    max_expanded_option,
    out_option,
    seeds_option,
    table_options,
    take_engine,
)
from lengthwise.training.groups import NamingGroup


@click.group(cls=NamingGroup)
def evaluate() -> None:
    """Evaluates a trained predictor on prompts, or a trained policy on a workload."""


@evaluate.command()
@click.argument("folder", metavar="DIR")
@click.argument("data", metavar="DATA")
@click.option(
    "--split",
    type=Name("split", ("test", "train", "all")),
    help="Part of the prompts: by default all of DATA that were not trained on, else test, which "
    "is what training left out.",
)
@click.option("--answers-by", metavar="NAME", help="The model whose answers are predicted.")
@click.option(
    "--max-rows", type=int, metavar="N", help="At most so many rows of DATA, drawn at random."
)
@columns_option
@max_expanded_option
@form_options
@click.option("--card", is_flag=True, help="Also add the result to DIR's model card.")
def predictor(
    folder: str,
    data: str,
    split: str | None,
    answers_by: str | None,
    max_rows: int | None,
    columns: dict[str, str] | None,
    max_expanded_mb: float | None,
    form: str | None,
    card: bool,
) -> None:
    """Measures a predictor (DIR, or a name such as prompt-length) on DATA's prompts."""
    from lengthwise.eval.flat import prediction_rows
    from lengthwise.eval.terminal import prediction_view
    from lengthwise.training.commands.data import prompts_of
    from lengthwise.training.commands.show import notices, progress, show
    from lengthwise.training.commands.stopped import kept
    from lengthwise.training.predictor import evaluate_predictor

    with kept(lambda: "nothing is kept of an evaluation"), progress("evaluating"):
        rows = prompts_of(data, max_rows, 0, columns=columns, max_expanded_mb=max_expanded_mb)
        report = evaluate_predictor(
            folder, rows, split=split, answers_by=answers_by, max_rows=max_rows, card=card
        )
    notices(report["notices"])
    show(
        form, lambda width: prediction_view(report), lambda: report,
        lambda: prediction_rows(report),
    )  # fmt: skip


@evaluate.command()
@click.argument("items", metavar="DIR... WORKLOAD...", nargs=-1, required=True)
@click.option("--requests", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--rate", type=float, metavar="R", help="Arrivals in requests/s; stretches time.")
@click.option(
    "--load", "loads", type=Rates("--load", "shares of capacity", "load"), default=(),
    metavar="L,L,...", help="Arrivals as shares of what the system can serve of each workload.",
)  # fmt: skip
@click.option(
    "--baselines", "baseline_names", type=Specs(), metavar="A,B,...",
    help="What to judge beside; the first is what ratios are to, as those to the best.",
)  # fmt: skip
@click.option(
    "--tune", "tuning", is_flag=True,
    help="Baselines with tunables also as tuned on other windows of the workloads.",
)  # fmt: skip
@click.option(
    "--budget", type=click.IntRange(4), default=64, show_default=True, metavar="N",
    help="Simulated runs to tune each baseline.",
)  # fmt: skip
@click.option("--predictor", default="oracle", show_default=True, metavar="SPEC")
@click.option("--replicas", type=click.IntRange(1), help="Default: 1, or 4 for a router.")
@click.option("--nodes", metavar="SPEC|FILE", help="Nodes that differ, as for `simulate`.")
@click.option(
    "--metrics-interval", "metrics_interval_s", type=float, default=0.0, metavar="S",
    help="How old the router's view of nodes gets; 0 is always new.",
)  # fmt: skip
@click.option("--failures", metavar="FILE", help="What happens to nodes, as for `simulate`.")
@click.option("--timing", default=DEFAULT_TIMING, show_default=True, metavar="NAME")
@max_expanded_option
@seeds_option
@engine_options
@table_options
@form_options
@out_option
@force_option
@dry_run_option
@config_option
@click.pass_obj
def policy(
    command: str,
    /,
    items: tuple[str, ...],
    max_expanded_mb: float | None,
    shown: tuple[str, ...],
    wide: bool,
    form: str | None,
    out: str | None,
    force: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Judges trained policies (bundles or runs' folders) beside baselines on unseen workloads.

    Several DIRs are one method's training seeds. Of each WORKLOAD (a preset or a trace) --seeds
    windows of --requests requests are judged, which share no request. With --out, the rows are kept
    as Parquet; each policy's runs are kept as they are finished, so that the same command goes on
    after a stop.

    \b
    lengthwise evaluate policy ./router azure-conv-2023 --load 0.8,1.0
    lengthwise evaluate policy run0 run1 run2 code.csv.gz chat.csv.gz --load 0.9 --tune
    """
    from lengthwise.eval.output import check_writable, save_rows
    from lengthwise.eval.terminal import judged_columns, judged_view
    from lengthwise.training.commands.show import notices, progress, show, wrote
    from lengthwise.training.commands.stopped import cells_kept, kept
    from lengthwise.training.judging import evaluate_policy

    judged_columns(shown)
    folders, workloads = _sorted(items)
    engine = take_engine(options)
    if out is not None:
        check_writable(out)
    claim(command, out, force)
    given = [_allowed(name, max_expanded_mb) for name in workloads]
    if dry_run:
        for line in _plan(
            evaluate_policy(
                folders, given, engine=engine, say=lambda line: notices([line]), dry_run=True,
                **options,
            )
        ):  # fmt: skip
            click.echo(line)
        return
    cells = cells_of(command, out, force)
    with kept(lambda: cells_kept(out)), progress("judging") as moved:
        rows = evaluate_policy(
            folders, given, engine=engine, say=lambda line: notices([line]), progress=moved,
            cells=cells, **options,
        )  # fmt: skip
    show(
        form,
        lambda width: judged_view(rows, width, shown, wide),
        lambda: rows,
        lambda: rows,
        wide,
    )
    if out is not None:
        config = {"policies": folders, "workloads": workloads, "engine": asdict(engine),
                  **options}  # fmt: skip
        wrote(save_rows(rows, out, "policies.parquet", config, command), form)
        if cells is not None:
            cells.drop()


def _plan(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a dry run says of the rows that would be."""
    from lengthwise.eval.plan import duration

    names = dict.fromkeys(row["policy"] for row in rows)
    tuned = {row["policy"]: row["runs_to_tune"] for row in rows if row["runs_to_tune"]}
    lines = [f"would judge {', '.join(names)}"]
    if tuned:
        runs = next(iter(tuned.values()))
        lines.append(f"and, tuned by {runs} runs each on other windows, {', '.join(tuned)}")
    places = dict.fromkeys(
        (row["workload"], row["load"], row["rate_requests_per_s"], row["runs"]) for row in rows
    )
    lines += [
        f"on {runs} windows of {workload} at {rate:.3g} requests/s"
        + (f", {load:g} of the capacity" if load is not None else "")
        for workload, load, rate, runs in places
    ]
    again = sum(row["runs"] for row in rows if row["policy"] in tuned)
    count = sum(row["runs"] for row in rows) + sum(tuned.values()) + again
    run_s = rows[0]["run_s"]
    took = f"(a run of {rows[0]['policy']} took {run_s:.2g} s)"
    return [*lines, f"{count} runs, about {duration(count * run_s)} {took}"]


def _allowed(name: str, max_expanded_mb: float | None) -> Any:
    """The name of a workload; read now if it is a file that may expand to more than others."""
    from lengthwise.workload import Workload

    if max_expanded_mb is None or not os.path.exists(name):
        return name
    return Workload.read(name, max_expanded_mb=max_expanded_mb)


def _sorted(items: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """The policies, which are folders, and the workloads, which come after."""
    count = 1
    while count < len(items) and Path(items[count]).is_dir():
        count += 1
    if count == len(items):
        raise InputError(
            f"evaluate policy takes folders, then workloads, and there is no workload after "
            f"{items[-1]!r}"
        )
    return list(items[:count]), list(items[count:])
