"""A fleet of mock servers: nodes, a policy and a predictor as they are spelled."""

from __future__ import annotations

import asyncio
import csv
import signal
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from lengthwise.errors import InputError
from lengthwise.eval.predict import needs_prediction
from lengthwise.eval.setting import PolicyLike, Setting
from lengthwise.policies import load_policy
from lengthwise.prediction import Predictions
from lengthwise.predictors.load import load_predictor
from lengthwise.predictors.predict import ORACLES, PredictorLike, predict
from lengthwise.serving.mock.api import Call
from lengthwise.serving.mock.driver import Row
from lengthwise.serving.mock.server import MockServer, Predict, Serving
from lengthwise.workload import MOST_TOKENS, Workload
from lengthwise.writing import whole_file


def fleet(
    setting: Setting, policy: PolicyLike, predictor: PredictorLike, serving: Serving
) -> list[MockServer]:
    """A server for each node, on ports one after the other from ``serving.port`` on."""
    told = predictions(predictor, serving.seed)
    servers = []
    nodes = setting.load().system(load_policy(policy)).nodes
    if any(node.role != "both" for node in nodes):
        raise InputError(
            "mock servers have no roles prefill and decode: each serves whole requests"
        )
    for place, node in enumerate(nodes):
        name = needs_prediction(node.policy)
        if name and told is None:
            raise InputError(
                f"{name!r} reads predicted_tokens and no predictor was given; "
                f"give one, or its bound: --predictor {ORACLES}"
            )
        port = serving.port + place if serving.port else 0
        own = replace(serving, port=port, seed=serving.seed + place)
        servers.append(MockServer(node, own, told))
    return servers


def predictions(predictor: PredictorLike, seed: int) -> Predict | None:
    """Predictions of calls as they come, None without a predictor."""
    loaded = load_predictor(predictor)
    if loaded is None:
        return None

    def told(call: Call, output_tokens: int, number: int) -> Predictions:
        limit = MOST_TOKENS if call.limit is None else call.limit
        columns: dict[str, Any] = {
            "arrival_s": [0.0], "prompt_tokens": [call.prompt.tokens],
            "output_tokens": [output_tokens], "prompt": [call.text], "max_tokens": [limit],
        }  # fmt: skip
        found = predict(loaded, Workload(columns, name="a call"), seed + number)
        assert found is not None
        return found

    return told


async def serve(
    servers: Sequence[MockServer],
    drain_s: float,
    say: Callable[[str], None],
    log: str | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT, then until all is answered, ``drain_s`` at most.

    ``log`` is a CSV file for all requests, written at the end. Raises what an engine can't go on
    from.
    """
    if log is not None:
        write_log(log, [])  # a file that can't be written is said now
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):  # before anybody is told that it serves
        loop.add_signal_handler(number, ended.set)
    async with AsyncExitStack() as stack:
        for server in servers:
            await stack.enter_async_context(server)
            say(f"{server.serving.model} at {server.url}")
        logs = [] if log is None else [server.keep_log() for server in servers]
        waiting = asyncio.ensure_future(ended.wait())
        failures = [server.failed for server in servers if server.failed is not None]
        either: list[asyncio.Future[Any]] = [waiting, *failures]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        for failed in failures:
            if failed.done():
                failed.result()
        left = await asyncio.gather(*(server.drain(drain_s) for server in servers))
        if any(left):
            say(f"{sum(left)} requests were not answered")
    if log is not None:
        write_log(log, logs)


def write_log(path: str, logs: Sequence[Sequence[Row]]) -> None:
    """Writes what servers kept, in order of arrival: a workload, and what became of it."""
    rows = sorted((row.arrival_s, place, *row) for place, log in enumerate(logs) for row in log)
    try:
        with whole_file(Path(path)) as fresh, open(fresh, "w", newline="") as file:
            table = csv.writer(file)
            table.writerow(("replica", *Row._fields))
            table.writerows(row[1:] for row in rows)
    except OSError as error:
        raise InputError(f"can't write {path}: {error.strerror}") from None
