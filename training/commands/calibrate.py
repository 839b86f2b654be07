"""``lengthwise calibrate``: the profile of this GPU beside this CPU, from one measured run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lengthwise.errors import InputError
from lengthwise.serving.options import DEFAULT_TIMING
from lengthwise.training.commands.folders import claim_file, force_option
from lengthwise.training.commands.options import (
    engine_options,
    form_options,
    seed_option,
    take_engine,
)

MOST_TOKENS = (2048, 1024)  # of a prompt and an answer that --live sends
SHARE = 0.7  # of the capacity, where no rate was given


@click.command()
@click.argument("results", nargs=-1, metavar="[RESULT]...", type=click.Path())
@click.option(
    "--timing",
    default=DEFAULT_TIMING,
    show_default=True,
    metavar="NAME",
    help="The profile to calibrate (`lengthwise list timings`), or its file.",
)
@click.option(
    "--policy",
    default="fcfs",
    show_default=True,
    metavar="SPEC",
    help="What the server scheduled by; one that needs no lengths.",
)
@click.option(
    "--live", metavar="URL", help="Measure this server first: http://HOST:PORT, an OpenAI API."
)
@click.option(
    "--model", metavar="NAME", help="Of --live: which of the models there. Default: the first."
)
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    metavar="R",
    help="Of --live: requests/s. Default: 70% of what the profile sustains.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(1, 3600),
    default=60.0,
    show_default=True,
    metavar="S",
    help="Of --live: for how long requests are sent.",
)
@click.option(
    "--save",
    metavar="FILE",
    type=click.Path(),
    help="Of --live: where to keep what was measured, CSV that calibrate reads.",
)
@force_option
@seed_option
@engine_options
@form_options
@click.pass_obj
def calibrate(
    command: str,
    /,
    results: tuple[str, ...],
    timing: str,
    policy: str,
    live: str | None,
    model: str | None,
    rate: float | None,
    seconds: float,
    save: str | None,
    force: bool,
    seed: int,
    form: str | None,
    **options: Any,
) -> None:
    """Finds by what factors this GPU and CPU differ from those that a profile was measured on.

    RESULT is what `vllm bench serve --save-result --save-detailed` wrote, a plugin's record, or a
    table with arrival_s, prompt_tokens, output_tokens, first_token_s and finish_s; several are
    fitted together. Say how the server was started: --like vllm-serve, --max-num-seqs 64.

    \b
    lengthwise calibrate bench.json --timing h200/llama-3.1-8b --like vllm-serve
    lengthwise calibrate --live http://localhost:8000 --like vllm-serve --seconds 60
    """
    from lengthwise.eval.calibrate import calibrate as find
    from lengthwise.eval.measured import read_measured
    from lengthwise.eval.terminal import calibration_view
    from lengthwise.training.commands.show import notices, progress, show
    from lengthwise.training.commands.stopped import kept

    engine = take_engine(options, timing=timing)
    if not (results or live):
        raise click.UsageError("what to calibrate on? RESULT, or --live URL")
    claim_file(command, save, force)
    runs = [read_measured(one) for one in results]
    if live is not None:
        with kept(lambda: "nothing is kept of requests that were not all sent"):
            runs.append(_measured(live, model, timing, engine, rate, seconds, seed))
        if save is not None:
            _save(runs[-1], Path(save))
    saved = f"what was measured is kept in {save}; calibrate reads it"
    with (
        kept(lambda: saved if live and save else "nothing is kept of a calibration"),
        progress("simulating") as moved,
    ):
        found = find(runs, timing, engine, policy, moved)
    if not engine.async_scheduling:
        notices(
            ["this engine has no asynchronous scheduling; vllm serve has it: --like vllm-serve"]
        )
    if form is not None:
        notices(found.notices)
    show(form, lambda width: calibration_view(found), found.to_dict, lambda: found.rows)


def _measured(
    url: str,
    model: str | None,
    timing: str,
    engine: Any,
    rate: float | None,
    seconds: float,
    seed: int,
) -> Any:
    import asyncio

    from lengthwise.eval.measure_server import measure_server
    from lengthwise.policies import load_policy, load_router
    from lengthwise.serving import Node, System
    from lengthwise.serving.saturation import saturation_rate
    from lengthwise.serving.timing import timing as load_timing
    from lengthwise.training.commands.show import notices, progress
    from lengthwise.workload import Workload

    def drawn(requests: int, at: float) -> Workload:
        found = Workload.preset("azure-conv-2023", requests=requests, rate=at, seed=seed)
        columns = {name: found[name] for name in ("arrival_s", "prompt_tokens", "output_tokens")}
        for name, most in zip(("prompt_tokens", "output_tokens"), MOST_TOKENS, strict=True):
            columns[name] = columns[name].clip(1, most)
        return Workload(columns, name=found.name)

    if rate is None:
        node = Node(engine, load_timing(timing), load_policy("fcfs"))
        sustained = saturation_rate(drawn(1000, 1.0), System((node,), load_router("round-robin")))
        rate = SHARE * sustained
    requests = round(rate * seconds)
    if requests < 100:
        raise InputError(
            f"{rate:.3g} requests/s for {seconds:g} s are {requests} requests; 100 are the fewest "
            "to calibrate on: more --seconds"
        )
    notices([f"sending {requests} requests to {url}, {rate:.3g} a second"])
    with progress("measuring") as moved:
        return asyncio.run(measure_server(url, model, drawn(requests, rate), seed, moved))


def _save(run: Any, path: Path) -> None:
    import pandas as pd

    from lengthwise.writing import whole_file

    table = pd.DataFrame(
        {
            **{n: run.workload[n] for n in ("arrival_s", "prompt_tokens", "output_tokens")},
            "ttft_s": run.first_s, "e2e_s": run.last_s,
        }
    )  # fmt: skip
    try:
        with whole_file(path) as fresh:
            table.to_csv(fresh, index=False)
    except OSError as error:
        raise InputError(f"can't write {path}: {error.strerror}") from None
