"""``lengthwise simulate``: one workload under one policy."""

from __future__ import annotations

import math
from typing import Any

import click

from lengthwise.training.commands.folders import claim, claim_file, config_option, force_option
from lengthwise.training.commands.options import (
    engine_options,
    form_options,
    out_option,
    seed_option,
    system_options,
    take_engine,
    take_source,
    workload_options,
)

MANY = 5_000  # requests whose trace takes its time


@click.command()
@workload_options
@click.option(
    "--policy",
    default="fcfs",
    show_default=True,
    metavar="SPEC",
    help="A name with tunables (mlfq:quantum=64), FILE.py:FUNCTION, or a bundle.",
)
@click.option(
    "--predictor", metavar="SPEC", help="A name (oracle) or a trained predictor's folder."
)
@click.option("--rate", type=float, metavar="R", help="Arrivals in requests/s; stretches time.")
@seed_option
@click.option("--slo", metavar="NAME=S,...", help="Limits a request must meet: ttft=1,tpot=0.05.")
@click.option(
    "--log-iterations",
    is_flag=True,
    help="Keep every iteration: inter-token latency, KV use, and a timeline in --out.",
)
@click.option(
    "--trace",
    metavar="FILE",
    help="A Chrome trace of the run, .json or .json.gz, to open in Perfetto.",
)
@system_options
@engine_options
@form_options
@out_option
@force_option
@config_option
@click.pass_obj
def simulate(
    command: str,
    /,
    policy: str,
    predictor: str | None,
    rate: float | None,
    seed: int,
    slo: str | None,
    log_iterations: bool,
    trace: str | None,
    form: str | None,
    out: str | None,
    force: bool,
    **options: Any,
) -> None:
    """Runs WORKLOAD (a preset, a file or prompts) and prints the metrics by their standard names.

    \b
    lengthwise simulate azure-conv-2023 --rate 28 --policy srtf --predictor oracle
    lengthwise simulate trace.csv.gz --policy mlfq --replicas 4 --router jsq --out runs/mlfq
    """
    from lengthwise.eval import metrics, plots
    from lengthwise.eval.output import check_writable
    from lengthwise.eval.publish import check_publishable
    from lengthwise.eval.simulate import simulate as run
    from lengthwise.eval.terminal import run_view
    from lengthwise.eval.trace import check_trace
    from lengthwise.eval.verdict import run_verdict
    from lengthwise.training.commands.show import notices, show, wrote

    limits = metrics.parse_slo(slo, tuple(metrics.PER_REQUEST)) if slo else None
    engine, source = take_engine(options), take_source(options)
    if out is not None:
        (check_publishable if log_iterations else check_writable)(out)
    if trace is not None:
        check_trace(trace, options["backend"])
    claim(command, out, force)
    claim_file(command, trace, force)
    workload = source.load(rate, seed)
    notices(workload.notices)
    result = run(
        workload,
        policy,
        predictor,
        engine,
        seed=seed,
        log_iterations=log_iterations,
        **options,
    )
    notices(result.notices)
    title = f"{result.config['policy']} on {workload.name}: {len(workload):,} requests"
    if math.isfinite(workload.rate):  # a unit that was guessed wrong shows here
        title += f", {workload.rate:.3g} requests/s"
    summary = result.summary(limits)
    verdict = run_verdict(summary, workload.rate, result.capacity)
    show(
        form,
        lambda width: run_view(title, summary, verdict),
        lambda: {"verdict": verdict, "config": result.config, "summary": summary},
        lambda: [
            {"workload": workload.name, "requests_per_s": workload.rate,
             **{name: result.config[name] for name in ("policy", "predictor", "seed")}, **summary}
        ],
    )  # fmt: skip
    if trace is not None:
        if len(workload) > MANY:
            notices(["the run is made again by the reference engine for its trace: minutes"])
        wrote(result.trace(trace, command), form)
    if out is not None:
        folder = result.save(out, command)
        if result.iterations is not None:
            figure = plots.timeline(
                [(str(result.config["policy"]), result.iterations)], result.num_gpu_blocks
            )
            plots.write(figure, folder, "timeline")
        wrote(folder, form)
