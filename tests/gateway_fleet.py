"""Endpoints for pickers under test: who shows metrics, well or badly."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self

from aiohttp import web

VLLM = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="m"}} {running}.0
vllm:num_requests_waiting{{engine="0",model_name="m"}} {waiting}.0
vllm:num_requests_waiting_by_reason{{engine="0",model_name="m",reason="capacity"}} 99.0
vllm:kv_cache_usage_perc{{engine="0",model_name="m"}} {used}
vllm:cache_config_info{{block_size="32",engine="0",num_gpu_blocks="1000"}} 1.0
"""


class Endpoint:
    """Somebody at an address who shows ``metrics``: a text, "hang", "flood" or a status."""

    def __init__(self, metrics: str | int = "", port: int = 0) -> None:
        self.metrics: str | int = metrics or vllm()
        self._port = port

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.add_routes([web.get("/metrics", self._show)])
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        self.address = f"127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._runner.cleanup()

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
