"""A picker as a process: the gRPC service with its health, and a port for metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import grpc
from aiohttp import web
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health

from lengthwise.errors import InputError
from lengthwise.listening import listening, until_drained
from lengthwise.policies.plugins.gateways.ext_proc import NAME, ExternalProcessor, Limits
from lengthwise.policies.plugins.gateways.picker import Picker

LOOK_S = 0.1  # how often a server that ends looks whether all is answered
READY = ("", "readiness", NAME)  # what gateways ask for; "liveness" is always well
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass(frozen=True)
class Serving:
    """Where a picker listens."""

    host: str = "127.0.0.1"
    port: int = 9002  # 0 takes one that is free
    metrics_port: int | None = None  # None: nowhere
    certificate: str = ""  # TLS: PEM files
    key: str = ""
    limits: Limits = field(default_factory=Limits)


class PickerServer:
    """The server of a picker; a context manager. Raises ``InputError`` for what it can't have."""

    port = metrics_port = 0

    def __init__(self, picker: Picker, serving: Serving | None = None) -> None:
        self.picker, self.serving = picker, serving or Serving()
        self.service = ExternalProcessor(picker, self.serving.limits)
        self._credentials = self._read_credentials()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.picker)
            self._server = grpc.aio.server(
                options=[
                    ("grpc.max_receive_message_length", self.serving.limits.body + 2**20),
                    ("grpc.max_send_message_length", -1),
                    ("grpc.so_reuseport", 0),  # a second picker on this port is a mistake
                ]
            )
            self._server.add_generic_rpc_handlers((self.service.handler,))
            self._health = health.HealthServicer()
            health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
            self.port = self._listen()
            await self._server.start()
            stack.push_async_callback(self._server.stop, None)
            await self._health.set("liveness", SERVING)
            for name in READY:
                await self._health.set(name, NOT_SERVING)
            self._watching = asyncio.create_task(self._become_ready())
            stack.callback(self._watching.cancel)
            if self.serving.metrics_port is not None:
                runner = await self._show_metrics(self.serving.metrics_port)
                stack.push_async_callback(runner.cleanup)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def drain(self, most_s: float) -> int:
        """Says that it is not ready and waits for what is under way; how many streams are left."""
        self._watching.cancel()
        for name in READY:
            await self._health.set(name, NOT_SERVING)
        late = time.monotonic() + most_s
        while self.service.streams and time.monotonic() < late:
            await asyncio.sleep(LOOK_S)
        return self.service.streams

    async def _become_ready(self) -> None:
        await self.picker.synced.wait()
        for name in READY:
            await self._health.set(name, SERVING)

    def _listen(self) -> int:
        address = f"{self.serving.host}:{self.serving.port}"
        try:
            if self._credentials is None:
                return int(self._server.add_insecure_port(address))
            return int(self._server.add_secure_port(address, self._credentials))
        except RuntimeError:
            raise InputError(
                f"can't listen on host {self.serving.host!r}, port {self.serving.port}"
            ) from None

    def _read_credentials(self) -> grpc.ServerCredentials | None:
        certificate, key = self.serving.certificate, self.serving.key
        if not certificate and not key:
            return None
        if not (certificate and key):
            raise InputError("TLS needs a certificate and its key")
        try:
            pair = Path(key).read_bytes(), Path(certificate).read_bytes()
        except OSError as error:
            raise InputError(f"can't read {error.filename}: {error.strerror}") from None
        return grpc.ssl_server_credentials([pair])

    async def _show_metrics(self, port: int) -> web.AppRunner:
        async def show(http: web.Request) -> web.Response:
            return web.Response(
                body=self.picker.metrics.text(),
                headers={"Content-Type": "text/plain; version=1.0.0; charset=utf-8"},
            )

        async def ready(http: web.Request) -> web.Response:
            return web.Response(status=200 if self.picker.ready else 503)

        app = web.Application()
        app.add_routes([web.get("/metrics", show), web.get("/ready", ready)])
        runner = await listening(app, self.serving.host, port)
        self.metrics_port = runner.addresses[0][1]
        return runner


async def serve(
    server: PickerServer, ended: asyncio.Event, drain_s: float, say: Callable[[str], None]
) -> None:
    """Serves until ``ended`` is set, then until all is answered, ``drain_s`` at most."""
    async with server:
        metrics = f", metrics on port {server.metrics_port}" if server.metrics_port else ""
        say(f"endpoint picker on {server.serving.host}:{server.port}{metrics}")
        await until_drained(server.drain, ended, drain_s, say)
