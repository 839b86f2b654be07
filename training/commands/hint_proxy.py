"""``lengthwise hint-proxy``: tells an engine how long answers will be, in front of any server."""

from __future__ import annotations

import asyncio

import click

from lengthwise.training.commands.options import Name


@click.command()
@click.option("--upstream", required=True, metavar="URL",
              help="The server that speaks OpenAI's API, as http://127.0.0.1:8000.")  # fmt: skip
@click.option("--predictor", required=True, metavar="DIR", help="A trained predictor's folder.")
@click.option(
    "--fill", type=Name("engine to fill hints of", ("vllm", "sglang", "dynamo")), default="vllm",
    show_default=True, help="Whose fields are filled: vllm, sglang or dynamo.",
)  # fmt: skip
@click.option(
    "--policy", default="sjf", show_default=True, metavar="SPEC",
    help="Whose score is the priority: one that is known when a request arrives.",
)  # fmt: skip
@click.option("--priority-scale", type=click.FloatRange(0, min_open=True), default=1.0,
              show_default=True, metavar="X",
              help="Steps of the priority, a whole number, a unit of the score.")  # fmt: skip
@click.option("--lowest-first", is_flag=True,
              help="For SGLang with --schedule-low-priority-values-first.")  # fmt: skip
@click.option("--predict-timeout", type=click.FloatRange(0, min_open=True), default=0.1,
              show_default=True, metavar="S",
              help="A request whose prediction takes longer passes as it came.")  # fmt: skip
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, metavar="N")
@click.option("--metrics-port", type=click.IntRange(0, 65535), metavar="N",
              help="Prometheus metrics there. Default: nowhere.")  # fmt: skip
@click.option("--max-body", type=click.IntRange(1), default=16 * 2**20, show_default=True,
              metavar="BYTES", help="Of one request; beyond it 413.")  # fmt: skip
@click.option("--max-requests", type=click.IntRange(1), default=2048, show_default=True,
              metavar="N", help="At once; beyond it 429.")  # fmt: skip
@click.option("--drain-timeout", type=click.FloatRange(0), default=30.0, show_default=True,
              metavar="S", help="How long SIGTERM waits for answers.")  # fmt: skip
def hint_proxy(
    upstream: str,
    predictor: str,
    fill: str,
    policy: str,
    priority_scale: float,
    lowest_first: bool,
    predict_timeout: float,
    host: str,
    port: int,
    metrics_port: int | None,
    max_body: int,
    max_requests: int,
    drain_timeout: float,
) -> None:
    """Fills in what engines take as hints (priority, predicted length) where clients did not.

    Everything else passes as it is, streams as they come; what a client said stays.

    \b
    lengthwise hint-proxy --upstream http://127.0.0.1:8000 --predictor ./p
    lengthwise hint-proxy --upstream http://127.0.0.1:8000 --predictor ./p --fill dynamo
    """
    from lengthwise.policies.plugins.gateways.hints import Hints
    from lengthwise.policies.plugins.gateways.proxy import HintProxy, Limits, Options, serve
    from lengthwise.training.commands.stopped import told_to_end

    async def run() -> None:
        proxy = HintProxy(
            upstream,
            Hints(fill, policy, per_unit=priority_scale, lowest_first=lowest_first),
            predictor,
            Options(
                host, port, metrics_port, predict_timeout,
                limits=Limits(body=max_body, requests=max_requests),
            ),
        )  # fmt: skip
        await serve(proxy, told_to_end(), drain_timeout, lambda line: click.echo(line, err=True))

    asyncio.run(run())
