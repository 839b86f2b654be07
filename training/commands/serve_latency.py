"""``lengthwise serve-latency``: the latency predictor that llm-d's endpoint picker asks."""

from __future__ import annotations

import asyncio
from typing import Any

import click

from lengthwise.serving.options import DEFAULT_TIMING
from lengthwise.training.commands.options import engine_options, take_engine


@click.command()
@click.option("--timing", default=DEFAULT_TIMING, show_default=True, metavar="NAME",
              help="How long iterations take (`lengthwise list timings`).")  # fmt: skip
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, metavar="N",
              help="0 takes a free one.")  # fmt: skip
@click.option("--objective", type=click.Choice(("quantile", "mean")), default="quantile",
              show_default=True, help="Of latencies, what is predicted.")  # fmt: skip
@click.option("--quantile", type=click.FloatRange(0.01, 0.99), default=0.9, show_default=True,
              metavar="Q", help="Which, with --objective quantile.")  # fmt: skip
@click.option("--answer-tokens", type=click.FloatRange(1), default=256.0, show_default=True,
              metavar="N", help="Answers' mean length: how soon seats become free.")  # fmt: skip
@engine_options
def serve_latency(
    timing: str,
    host: str,
    port: int,
    objective: str,
    quantile: float,
    answer_tokens: float,
    **options: Any,
) -> None:
    """Predicts TTFT and TPOT for llm-d's endpoint picker, and learns from what it observes.

    \b
    lengthwise serve-latency --timing h200/llama-3.1-8b --max-num-seqs 256 --port 8000
    """
    from lengthwise.eval.latency import LatencyModel
    from lengthwise.eval.serve_latency import LatencyServer, serve
    from lengthwise.serving.timing.load import timing as load_timing
    from lengthwise.training.commands.stopped import told_to_end

    engine = take_engine(options, timing=timing, nodes=None)
    asked = quantile if objective == "quantile" else None
    model = LatencyModel(engine, load_timing(timing), answer_tokens, asked)

    async def run() -> None:
        server = LatencyServer(model, asked)
        await serve(server, host, port, told_to_end(), lambda line: click.echo(line, err=True))

    asyncio.run(run())
