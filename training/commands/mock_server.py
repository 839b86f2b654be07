"""``lengthwise mock-server``: a fake vLLM server, or a fleet of them."""

from __future__ import annotations

import asyncio
from typing import Any

import click

from lengthwise.serving.options import DEFAULT_TIMING
from lengthwise.training.commands.folders import claim_file, force_option
from lengthwise.training.commands.options import engine_options, seed_option, take_engine


@click.command()
@click.option(
    "--timing", default=DEFAULT_TIMING, show_default=True, metavar="NAME",
    help="How long iterations take (`lengthwise list timings`).",
)  # fmt: skip
@click.option(
    "--policy", default="fcfs", show_default=True, metavar="SPEC",
    help="Its scheduler's: a name with tunables, FILE.py:FUNCTION, or a bundle.",
)  # fmt: skip
@click.option(
    "--predictor", metavar="SPEC", help="A name (oracle) or a trained predictor's folder."
)
@click.option("--replicas", type=click.IntRange(1), default=1, show_default=True, metavar="N",
              help="Servers, on ports one after the other.")  # fmt: skip
@click.option(
    "--nodes", metavar="SPEC|FILE",
    help="Servers that differ, in place of --replicas: 2xh200/llama-3.1-8b,roofline:l40s/"
    "llama-3.1-8b, or a YAML or JSON file with their timing, engine options and policy.",
)  # fmt: skip
@click.option("--model", default="mock", show_default=True, metavar="NAME",
              help="What clients call the model.")  # fmt: skip
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True,
              metavar="N", help="The first server's; 0 takes free ones.")  # fmt: skip
@click.option("--speed", type=float, default=1.0, show_default=True, metavar="X",
              help="The engine's seconds in one of this machine's.")  # fmt: skip
@click.option(
    "--output-tokens", default="lognormal:200,cv=1", show_default=True, metavar="SPEC",
    help="How long answers are where no client says it: constant:N, lognormal:MEAN,cv=C, "
    "geometric:MEAN, or a workload whose lengths are drawn from.",
)  # fmt: skip
@click.option("--enable-force-include-usage", is_flag=True,
              help="Every stream ends with its usage, asked for or not.")  # fmt: skip
@click.option("--drain-timeout", type=click.FloatRange(0), default=30.0, show_default=True,
              metavar="S", help="How long SIGTERM waits for answers.")  # fmt: skip
@click.option("--log", metavar="FILE.csv",
              help="Written at the end: every request, its tokens and times.")  # fmt: skip
@force_option
@seed_option
@engine_options
@click.pass_obj
def mock_server(
    command: str,
    /,
    timing: str,
    policy: str,
    predictor: str | None,
    replicas: int,
    nodes: str | None,
    model: str,
    host: str,
    port: int,
    speed: float,
    output_tokens: str,
    enable_force_include_usage: bool,
    drain_timeout: float,
    log: str | None,
    force: bool,
    seed: int,
    **options: Any,
) -> None:
    """Serves OpenAI's API and vLLM's metrics as vLLM would, timed by the simulated engine.

    There is no model: answers are words without sense, as long as they are asked to be
    (max_tokens with ignore_eos, the header x-output-tokens, vllm_xargs output_tokens) or drawn.

    \b
    lengthwise mock-server --port 8000 --enable-prefix-caching --async-scheduling
    lengthwise mock-server --nodes 2xh200/llama-3.1-8b,roofline:l40s/llama-3.1-8b --speed 2
    """
    from lengthwise.eval.mock import fleet, serve
    from lengthwise.eval.setting import Setting
    from lengthwise.serving.mock.server import Serving

    claim_file(command, log, force)
    setting = Setting(
        take_engine(options, timing=timing, nodes=nodes), timing, replicas, nodes=nodes
    )
    serving = Serving(
        model=model, host=host, port=port, speed=speed, output_tokens=output_tokens,
        force_usage=enable_force_include_usage, seed=seed,
    )  # fmt: skip
    servers = fleet(setting, policy, predictor, serving)
    asyncio.run(serve(servers, drain_timeout, click.echo, log))
