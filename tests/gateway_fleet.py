"""Endpoints for pickers under test: who shows metrics, well or badly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, Self

import pytest
from aiohttp import web

from lengthwise.listening import listening
from lengthwise.policies.plugins.gateways import picker as picker_module
from lengthwise.policies.plugins.gateways.endpoints import Endpoints
from lengthwise.policies.plugins.gateways.picker import Options, Pick, Picker
from lengthwise.policies.plugins.gateways.scrape import Seen

VLLM = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="m"}} {running}.0
vllm:num_requests_waiting{{engine="0",model_name="m"}} {waiting}.0
vllm:num_requests_waiting_by_reason{{engine="0",model_name="m",reason="capacity"}} 99.0
vllm:kv_cache_usage_perc{{engine="0",model_name="m"}} {used}
vllm:cache_config_info{{block_size="32",engine="0",num_gpu_blocks="1000"}} 1.0
"""


class Listening:
    """An HTTP application at a free port of this machine, or at ``port``: a context manager."""

    def __init__(self, app: web.Application, port: int = 0, **options: Any) -> None:
        self._app, self._port, self._options = app, port, options

    async def __aenter__(self) -> Self:
        self._runner = await listening(
            self._app, "127.0.0.1", self._port, handler_cancellation=True, **self._options
        )
        self.address = f"127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._runner.cleanup()


class Endpoint(Listening):
    """Somebody at an address who shows ``metrics``: a text, "hang", "flood" or a status."""

    def __init__(self, metrics: str | int = "", port: int = 0) -> None:
        self.metrics: str | int = metrics or vllm()
        app = web.Application()
        app.add_routes([web.get("/metrics", self._show)])
        super().__init__(app, port)

    async def _show(self, http: web.Request) -> web.StreamResponse:
        said = self.metrics
        if isinstance(said, int):
            return web.Response(status=said)
        if said == "hang":
            await asyncio.sleep(60)
        if said == "flood":
            response = web.StreamResponse()
            await response.prepare(http)
            while True:
                await response.write(b"a 1\n" * 2**16)
        return web.Response(text=said)


def vllm(running: int = 0, waiting: int = 0, used: float = 0.0) -> str:
    """What a vLLM shows, as far as pickers read it."""
    return VLLM.format(running=running, waiting=waiting, used=used)


def body(**more: Any) -> dict[str, Any]:
    """A request's JSON."""
    return {"model": "m", "prompt": "What is a queue?", "max_tokens": 20, **more}


class Says:
    """A scraper: what each endpoint says is what the test says."""

    made: list[tuple[str, float]]
    said: Mapping[str, Any]
    during: Callable[[], None]

    def __init__(self, path: str, timeout_s: float) -> None:
        self.made.append((path, timeout_s))

    async def __aenter__(self) -> Says:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.made.append(("ended", 0.0))

    async def seen(self, endpoint: Any) -> Seen:
        found = self.said.get(endpoint.address, Seen({"waiting_requests": 0.0}))
        self.during()
        if isinstance(found, Exception):
            raise found
        assert isinstance(found, Seen)
        return found


class Desk:
    """A picker whose clock and whose endpoints' words are the test's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = [100.0]
        self.said: dict[str, Any] = {}
        self.made: list[tuple[str, float]] = []
        self.during: list[Callable[[], None]] = [lambda: None]
        clock = SimpleNamespace(
            monotonic=lambda: self.now[0], perf_counter=lambda: self.now[0] / 1000
        )
        monkeypatch.setattr(picker_module, "time", clock)
        kind = type("Said", (Says,), {
            "made": self.made, "said": self.said, "during": lambda one: self.during[0](),
        })  # fmt: skip
        monkeypatch.setattr(picker_module, "Scraper", kind)

    @asynccontextmanager
    async def open(
        self, endpoints: Endpoints, log: Any = lambda line: None, **options: Any
    ) -> AsyncIterator[Picker]:
        picker = Picker(endpoints, Options(**{"scrape_interval_s": 30.0, **options}), log)
        async with picker:
            await asyncio.wait_for(picker.synced.wait(), 5)
            yield picker


def addresses(count: int) -> list[str]:
    return [f"10.0.0.{k + 1}:80" for k in range(count)]


def ended(pick: Pick, generated: int = 5, status: int = 200, reason: str = "stop") -> Pick:
    """A request whose answer went by."""
    pick.answer.status, pick.answer.ended = status, True
    usage = {"finish_reason": reason, "completion_tokens": generated}
    pick.answer.feed(json.dumps(usage).encode())
    return pick
