"""``lengthwise evaluate predictor`` and ``lengthwise evaluate policy``."""

from __future__ import annotations

import click

from lengthwise.serving.options import DEFAULT_TIMING
from lengthwise.training.commands.options import (
    Name,
    engine_options,
    seeds_option,
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
def predictor(
    folder: str, data: str, split: str | None, answers_by: str | None, max_rows: int | None
) -> None:
    """Measures a predictor (DIR, or a name such as prompt-length) on DATA's prompts."""
    from lengthwise.eval.terminal import console, prediction_view
    from lengthwise.training.commands.data import prompts_of
    from lengthwise.training.commands.show import notices
    from lengthwise.training.predictor import evaluate_predictor

    rows = prompts_of(data, max_rows, 0)
    report = evaluate_predictor(folder, rows, split=split, answers_by=answers_by, max_rows=max_rows)
    notices(report["notices"])
    console().print(prediction_view(report))


@evaluate.command()
@click.argument("policy", metavar="DIR")
@click.argument("workload", metavar="WORKLOAD")
@click.option("--requests", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--rate", type=float, metavar="R", help="Arrivals in requests/s; stretches time.")
@click.option("--predictor", default="oracle", show_default=True, metavar="SPEC")
@click.option("--replicas", type=click.IntRange(1), help="Default: 1, or 4 for a router.")
@click.option("--timing", default=DEFAULT_TIMING, show_default=True, metavar="NAME")
@seeds_option
@engine_options
def policy(
    policy: str,
    workload: str,
    requests: int,
    rate: float | None,
    predictor: str,
    replicas: int | None,
    timing: str,
    seeds: int,
    **options: object,
) -> None:
    """Judges a trained policy (a bundle or a run's folder) beside the usual baselines."""
    from lengthwise.eval.terminal import console, judged_view
    from lengthwise.training.policy import evaluate_policy

    rows = evaluate_policy(
        policy,
        workload,
        requests=requests,
        rate=rate,
        seeds=seeds,
        timing=timing,
        engine=take_engine(options),
        predictor=predictor,
        replicas=replicas,
    )
    console().print(judged_view(rows))
