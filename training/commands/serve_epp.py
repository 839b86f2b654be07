"""``lengthwise serve-epp``: a routing policy as an Endpoint Picker."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from lengthwise.errors import InputError
from lengthwise.training.commands.options import seed_option


@click.command()
@click.option(
    "--endpoints", required=True, metavar="IP:PORT,...|FILE",
    help="Addresses, or a YAML or JSON file of them that is read again as it changes: a list, or "
    "Kubernetes's EndpointSlice. NAME:PORT stands for all that DNS knows.",
)  # fmt: skip
@click.option("--router", default="least-tokens", show_default=True, metavar="SPEC",
              help="A name (`lengthwise list routers`), FILE.py:FUNCTION, a bundle.")  # fmt: skip
@click.option("--predictor", metavar="DIR", help="A trained predictor's folder.")
@click.option("--default-tokens", type=click.FloatRange(1), default=256.0, show_default=True,
              metavar="N", help="An answer's length where nobody says anything.")  # fmt: skip
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS")
@click.option("--port", type=click.IntRange(0, 65535), default=9002, show_default=True, metavar="N")
@click.option("--metrics-port", type=click.IntRange(0, 65535), metavar="N",
              help="Prometheus metrics there. Default: nowhere.")  # fmt: skip
@click.option("--scrape-interval", type=click.FloatRange(0.02), default=0.5, show_default=True,
              metavar="S", help="How often endpoints are asked for their metrics.")  # fmt: skip
@click.option("--metrics-path", default="/metrics", show_default=True, metavar="PATH",
              help="Where endpoints show them.")  # fmt: skip
@click.option("--shed-above", type=click.IntRange(0), default=0, metavar="N",
              help="Answer 429 while every endpoint has so many. Default: never.")  # fmt: skip
@click.option(
    "--shed", default="", metavar="SPEC",
    help="Answer 429 while this function of routers' features is above 0 at every endpoint; its "
    "value is in how many seconds to try again.",
)  # fmt: skip
@click.option("--hold-above", type=click.IntRange(0), default=0, metavar="N",
              help="Requests wait while every endpoint has so many. Default: never.")  # fmt: skip
@click.option("--hold", default="", metavar="SPEC",
              help="Likewise, while this function is above 0 at every endpoint.")  # fmt: skip
@click.option("--queue", type=click.IntRange(0), default=1000, show_default=True, metavar="N",
              help="Requests that wait at once; beyond it 429.")  # fmt: skip
@click.option("--queue-timeout", type=click.FloatRange(0, min_open=True), default=30.0,
              show_default=True, metavar="S", help="How long one waits; then 429.")  # fmt: skip
@click.option(
    "--order", default="", metavar="SPEC",
    help="Of those that wait: a scheduling policy. Default: first come, first served.",
)  # fmt: skip
@click.option("--fair", is_flag=True,
              help="Of tenants that wait, the one that was served least goes first.")  # fmt: skip
@click.option(
    "--sticky", type=click.FloatRange(0), metavar="TOKENS",
    help="Requests of a session go where its last one went, while that endpoint has at most so "
    "many tokens more under way than the router's choice (inf: always).",
)  # fmt: skip
@click.option("--session-cookie", default="", metavar="NAME",
              help="The cookie that names a session; with --sticky.")  # fmt: skip
@click.option("--fallbacks", type=click.IntRange(0), default=0, show_default=True, metavar="N",
              help="Further endpoints to name to the gateway, for its retries.")  # fmt: skip
@click.option("--record", metavar="DIR", help="Append finished requests to this folder.")
@click.option("--record-prompts", is_flag=True, help="With what was asked; else with its hash.")
@click.option("--dry-run", is_flag=True,
              help="Leave requests alone; print what would have been chosen.")  # fmt: skip
@click.option("--log-requests", is_flag=True, help="Print one JSON line for each request.")
@click.option("--log-format", type=click.Choice(("text", "json")), default="text",
              show_default=True, help="Of what is said on stderr.")  # fmt: skip
@click.option("--max-body", type=click.IntRange(1), default=16 * 2**20, show_default=True,
              metavar="BYTES", help="Of one request; beyond it 413.")  # fmt: skip
@click.option("--max-streams", type=click.IntRange(1), default=2048, show_default=True,
              metavar="N", help="Requests at once; beyond it 429.")  # fmt: skip
@click.option("--tls-cert", default="", metavar="FILE", help="PEM; with --tls-key.")
@click.option("--tls-key", default="", metavar="FILE")
@click.option("--drain-timeout", type=click.FloatRange(0), default=30.0, show_default=True,
              metavar="S", help="How long SIGTERM waits for answers.")  # fmt: skip
@seed_option
def serve_epp(
    endpoints: str,
    router: str,
    predictor: str | None,
    default_tokens: float,
    host: str,
    port: int,
    metrics_port: int | None,
    scrape_interval: float,
    metrics_path: str,
    shed_above: int,
    shed: str,
    hold_above: int,
    hold: str,
    queue: int,
    queue_timeout: float,
    order: str,
    fair: bool,
    sticky: float | None,
    session_cookie: str,
    fallbacks: int,
    record: str | None,
    record_prompts: bool,
    dry_run: bool,
    log_requests: bool,
    log_format: str,
    max_body: int,
    max_streams: int,
    tls_cert: str,
    tls_key: str,
    drain_timeout: float,
    seed: int,
) -> None:
    """Picks endpoints for Envoy and what is built on it, by the Endpoint Picker Protocol 1.0.

    \b
    lengthwise serve-epp --endpoints 10.0.0.1:8000,10.0.0.2:8000 --router least-tokens
    lengthwise serve-epp --endpoints fleet.yaml --router ./my_router --predictor ./p
    """
    from lengthwise.policies.plugins.gateways.endpoints import Endpoints
    from lengthwise.policies.plugins.gateways.ext_proc import Limits
    from lengthwise.policies.plugins.gateways.picker import Options, Picker
    from lengthwise.policies.plugins.gateways.server import PickerServer, Serving, serve
    from lengthwise.training.commands.stopped import told_to_end

    if record_prompts and not record:
        raise InputError("--record-prompts has no effect without --record")
    if session_cookie and sticky is None:
        raise InputError("--session-cookie has no effect without --sticky")
    if dry_run and (hold or hold_above):
        raise InputError("--hold and --hold-above have no effect in a --dry-run: nobody waits")
    say = _speaker(log_format)
    file = Path(endpoints)
    given = file if file.suffix in (".yaml", ".yml", ".json") or file.is_file() else (
        [one for one in endpoints.split(",") if one]
    )  # fmt: skip

    def log(line: Mapping[str, Any]) -> None:
        print(json.dumps({"time": time.time(), **line}), file=sys.stdout, flush=True)

    async def run() -> None:
        picker = Picker(
            Endpoints(given, described),
            Options(
                router, predictor, default_tokens, scrape_interval_s=scrape_interval,
                metrics_path=metrics_path, shed_above=shed_above, shed=shed, hold_above=hold_above,
                hold=hold, queue=queue, queue_timeout_s=queue_timeout, order=order, fair=fair,
                sticky=sticky, session_cookie=session_cookie, fallbacks=fallbacks,
                dry_run=dry_run, log_requests=log_requests, record=record or "",
                record_prompts=record_prompts, seed=seed,
            ),
            log,
        )  # fmt: skip
        limits = Limits(body=max_body, streams=max_streams)
        serving = Serving(host, port, metrics_port, tls_cert, tls_key, limits)
        await serve(PickerServer(picker, serving), told_to_end(), drain_timeout, say)

    asyncio.run(run())


class _Json(logging.Formatter):
    """A line of JSON for each record."""

    def format(self, record: logging.LogRecord) -> str:
        said = {
            "time": record.created, "level": record.levelname.lower(), "logger": record.name,
            "message": record.getMessage(),
        }  # fmt: skip
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        return json.dumps(said)


def _speaker(form: str) -> Callable[[str], None]:
    """Who says what the server does; with ``json``, warnings of the whole process too."""
    if form == "text":
        return lambda line: click.echo(line, err=True)
    handler = logging.StreamHandler()
    handler.setFormatter(_Json())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    log = logging.getLogger("lengthwise")
    log.setLevel(logging.INFO)
    return log.info


def described(entry: Mapping[str, Any]) -> Mapping[str, float]:
    """Numbers of an endpoint, of which some follow from its timing and engine options."""
    from lengthwise.policies.plugins.gateways.endpoints import NUMBERS, plain
    from lengthwise.serving.clock import Clock
    from lengthwise.serving.nodes import KEYS, read_nodes
    from lengthwise.serving.options import DEFAULT_TIMING, Engine

    node = {key: value for key, value in entry.items() if key in KEYS}
    own = {key: value for key, value in entry.items() if key not in KEYS or key in NUMBERS}
    found: dict[str, float] = {}
    if node:
        (kind,) = read_nodes([node], Engine(), DEFAULT_TIMING)
        found["max_seats"] = float(kind.engine.max_num_seqs)
        if "timing" in node:
            clock = Clock.of(kind.engine, kind.timing)
            found["decode_tokens_per_s"] = clock.decode_tokens_per_s(kind.engine)
    return {**found, **plain(own)}
