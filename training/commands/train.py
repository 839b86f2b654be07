"""``lengthwise train predictor`` and ``lengthwise train policy``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from lengthwise import registry
from lengthwise.errors import InputError
from lengthwise.serving.options import DEFAULT_TIMING
from lengthwise.training.commands.folders import (
    claim,
    config_option,
    dry_run_option,
    force_option,
)
from lengthwise.training.commands.options import (
    Name,
    Settings,
    Specs,
    columns_option,
    engine_options,
    form_options,
    max_expanded_option,
    seed_option,
    take_engine,
)
from lengthwise.training.groups import NamingGroup

TARGETS = ("exact", "bucket", "rank", "quantile")
ALGORITHMS = ("ppo", "dqn", "maskable-ppo", "es", "cma")


@click.group(cls=NamingGroup)
def train() -> None:
    """Trains a predictor of answer lengths, or a scheduling or routing policy."""


@train.command()
@click.argument("data", metavar="DATA...", nargs=-1, required=True)
@click.option(
    "--target",
    type=Name("target", TARGETS),
    default="exact",
    show_default=True,
    help="What is learned: a length, a bucket, an order, or a distribution.",
)
@click.option(
    "--model",
    default="ridge",
    show_default=True,
    metavar="NAME",
    help="constant, prompt-length, ridge, gbdt, transformer, minilm, base, or the path of a "
    "pretrained encoder.",
)
@click.option(
    "--base", is_flag=True, help="Start from the predictor that ships: the same as --model base."
)
@click.option(
    "--recalibrate",
    metavar="DIR",
    help="Train nothing: set a trained predictor's lengths and intervals right on DATA.",
)
@click.option("--out", required=True, metavar="DIR", help="Folder of the trained predictor.")
@click.option(
    "--answers-by",
    metavar="NAME",
    help="The model whose answers are learned, in DATA of several; all for every one's.",
)
@click.option(
    "--test-share",
    type=float,
    default=0.5,
    show_default=True,
    help="Share of the prompts, by a hash of their text, that is kept for testing.",
)
@click.option(
    "--max-rows", type=int, metavar="N", help="At most so many rows of DATA, drawn by --seed."
)
@click.option(
    "--source-weights",
    metavar="W,W,...",
    help="What each of several DATA counts for; by default all count alike.",
)
@columns_option
@max_expanded_option
@seed_option
@form_options
@click.option(
    "--set",
    "settings",
    type=Settings(),
    default={},
    metavar="NAME=VALUE,...",
    help="More options of the model: buckets=8, epochs=2.",
)
@force_option
@dry_run_option
@config_option
@click.pass_obj
def predictor(
    command: str,
    /,
    data: tuple[str, ...],
    target: str,
    model: str,
    base: bool,
    recalibrate: str | None,
    out: str,
    answers_by: str | None,
    test_share: float,
    max_rows: int | None,
    source_weights: str | None,
    columns: dict[str, str] | None,
    max_expanded_mb: float | None,
    seed: int,
    form: str | None,
    settings: dict[str, object],
    force: bool,
    dry_run: bool,
) -> None:
    """Trains on half of the prompts of DATA, tests on the other half, saves to --out.

    Several DATA are learned together. Each holds prompts with answers or their lengths: CSV,
    JSONL, Parquet (or .gz), hf:NAME, or synthetic-chat for generated ones.

    \b
    lengthwise train predictor responses.jsonl.gz --answers-by Mistral-7B-Instruct-v0.2 --out p
    lengthwise train predictor ./log --recalibrate p --out p2
    """
    from lengthwise.eval.flat import prediction_rows
    from lengthwise.eval.terminal import prediction_view
    from lengthwise.training.commands.data import prompts_of, weights_of
    from lengthwise.training.commands.show import notices, progress, show, wrote
    from lengthwise.training.commands.stopped import checkpoint_kept, kept
    from lengthwise.training.predictor import train_predictor

    if recalibrate is not None and (base or (model, target) != ("ridge", "exact")):
        raise InputError("--recalibrate keeps the model and the target of DIR: give neither")
    if base and model not in ("ridge", "base"):  # ridge is the default
        raise InputError(f"give --base or --model {model}, not both")
    claim(command, out, force)
    with kept(lambda: checkpoint_kept(out)), progress("training"):
        report = train_predictor(
            [
                prompts_of(one, max_rows, seed, columns=columns, max_expanded_mb=max_expanded_mb)
                for one in data
            ],
            target=target,
            model="base" if base else model,
            out=out,
            seed=seed,
            test_share=test_share,
            max_rows=max_rows,
            answers_by=answers_by,
            source_weights=weights_of(source_weights),
            options=settings,
            command=command,
            recalibrate=recalibrate,
            dry_run=dry_run,
        )
    notices(report["notices"])
    if dry_run:
        train, test = report["train"], report["test"]
        what = (
            f"recalibrate {recalibrate}" if recalibrate else f"train {report['model']} ({target})"
        )
        click.echo(
            f"would {what} on {train['rows']:,} rows of {report['data']}, test on "
            f"{test['rows']:,} others, and write {out}"
        )
        return
    show(
        form, lambda width: prediction_view(report), lambda: report,
        lambda: prediction_rows(report),
    )  # fmt: skip
    wrote(out, form)


@train.command()
@click.option(
    "--env",
    type=Name("env", registry.names("env")),
    default="lengthwise/Routing-v1",
    show_default=True,
)
@click.option("--algo", type=Name("algorithm", ALGORITHMS), default="ppo", show_default=True)
@click.option("--workload", default="azure-conv-2023", show_default=True, metavar="WORKLOAD")
@click.option("--out", required=True, metavar="DIR", help="Folder of the run.")
@click.option("--timing", default=DEFAULT_TIMING, show_default=True, metavar="NAME")
@click.option("--steps", type=click.IntRange(1), default=500_000, show_default=True)
@click.option("--n-envs", type=click.IntRange(1, 16_384), default=64, show_default=True)
@click.option(
    "--nodes", metavar="SPEC|FILE", help="Nodes that differ behind the router, as for `simulate`."
)
@click.option(
    "--scenarios", metavar="FILE|NAME",
    help="Several workloads, loads and systems, trained on at once, in place of WORKLOAD.",
)  # fmt: skip
@click.option("--features", metavar="A,B,...", type=Specs(), help="What is seen of each candidate.")
@click.option(
    "--baselines", "baseline_names", metavar="A,B,...", type=Specs(), help="What is to be beaten."
)
@click.option(
    "--guide",
    metavar="SPEC",
    help="A policy or router to begin from: its choices are cloned, leaving it costs at first.",
)
@seed_option
@click.option("--resume", is_flag=True, help="Go on from the run's last checkpoint.")
@click.option(
    "--env-set",
    type=Settings(),
    default={},
    metavar="NAME=VALUE,...",
    help="Options of the environment: rate=24,replicas=4,requests=500.",
)
@click.option(
    "--set",
    "settings",
    type=Settings(),
    default={},
    metavar="NAME=VALUE,...",
    help="Options of the algorithm: learning_rate=0.0003.",
)
@engine_options
@force_option
@dry_run_option
@config_option
@click.pass_obj
def policy(
    command: str,
    /,
    env: str,
    algo: str,
    workload: str,
    out: str,
    timing: str,
    steps: int,
    n_envs: int,
    nodes: str | None,
    scenarios: str | None,
    features: tuple[str, ...] | None,
    baseline_names: tuple[str, ...] | None,
    guide: str | None,
    seed: int,
    resume: bool,
    env_set: dict[str, object],
    settings: dict[str, object],
    force: bool,
    dry_run: bool,
    **options: object,
) -> None:
    """Trains a policy by reinforcement learning; it is exported to DIR/bundle.

    \b
    lengthwise train policy --nodes 2xh200/llama-3.1-8b,2xroofline:l40s/llama-3.1-8b \\
        --max-num-seqs 8 --env-set rate=14 --out runs/router
    """
    from lengthwise.training.commands.stopped import kept
    from lengthwise.training.policy import train_policy
    from lengthwise.training.validation import told

    environment = {**env_set, "engine": take_engine(options, **{"nodes": nodes, **env_set})}
    environment |= {"nodes": nodes} if nodes else {}
    environment |= {"features": features} if features else {}
    with kept(lambda: f"nothing is saved in {out} before the first step"):
        run = train_policy(
            env,
            out=out,
            algo=algo,
            workload=workload,
            timing=timing,
            steps=steps,
            n_envs=n_envs,
            scenarios=scenarios,
            baseline_names=baseline_names,
            guide=guide,
            seed=seed,
            resume=resume,
            env_options=environment,
            settings=settings,
            command=command,
            force=force,
            dry_run=dry_run,
        )
    if dry_run:
        click.echo(
            f"would train {algo} on {env}, beside {', '.join(run.baselines)}, and write {out}"
        )
        click.echo(f"{_budget(algo, steps, n_envs, settings)}")
        return
    listed = ", ".join(f"{name} {cost:.4g}" for name, cost in run.baselines.items())
    click.echo(f"held-out cost {run.cost:.4g} (baselines: {listed})")
    click.echo(f"on workloads that nothing was chosen on: {told(run.ratio, run.best_baseline)}")
    click.echo(f"wrote {run.bundle}")


def _budget(algo: str, steps: int, n_envs: int, settings: Mapping[str, Any]) -> str:
    """How long training goes on, in its own measure."""
    if algo in ("es", "cma"):
        from lengthwise.training.evolve import SETTINGS

        asked = {**SETTINGS, **settings}
        return f"{asked['evaluations']} policies, each on {asked['episodes']} episodes"
    from lengthwise.training.agents import settings_for, steps_of

    total = steps_of(algo, steps, n_envs, settings_for(algo, settings))
    return f"{total:,} steps in {n_envs} environments, evaluated and saved every twentieth of them"
