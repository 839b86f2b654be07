"""The server: HTTP in front of a driver.

async with MockServer(node, model="mock", port=8000) as server:
    ...  # server.url answers as vLLM would
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from aiohttp import web

from lengthwise.errors import InputError, LengthwiseError
from lengthwise.listening import listening
from lengthwise.prediction import Predictions
from lengthwise.serving.draws import uniform
from lengthwise.serving.live import Asked, LiveNode
from lengthwise.serving.mock.api import DONE, Call, Refused, Reply, call_of
from lengthwise.serving.mock.driver import Driver, Row, Served
from lengthwise.serving.mock.lengths import DEFAULT, Length, lengths
from lengthwise.serving.mock.metrics import Metrics
from lengthwise.serving.system import Node

# What is predicted of a call, from it, its answer's true length and its number.
Predict = Callable[[Call, int, int], Predictions]
LOOK_S = 0.02  # how often a server that ends looks whether all is answered


@dataclass(frozen=True)
class Serving:
    """How a mock server serves, beside its node."""

    model: str = "mock"
    host: str = "127.0.0.1"
    port: int = 8000  # 0 takes one that is free
    speed: float = 1.0  # the engine's seconds in one of the machine's
    output_tokens: str = DEFAULT  # where no client says it; see ``lengths``
    force_usage: bool = False  # every stream ends with usage, asked for or not
    most_body: int = 16 * 2**20  # bytes
    seed: int = 0


class MockServer:
    """One server of a node; a context manager. ``url`` is its address once it is entered.

    ``predict`` is asked for what a scheduling policy reads of lengths. Raises ``InputError`` for a
    policy that reads what nobody tells it, and for a port that can't be had.
    """

    url = ""

    def __init__(
        self, node: Node, serving: Serving | None = None, predict: Predict | None = None
    ) -> None:
        self.serving = serving or Serving()
        if not 0 < self.serving.speed <= 1e6:
            raise InputError(f"speed must be above 0 and up to 1e6, not {self.serving.speed}")
        self._length: Length = lengths(self.serving.output_tokens)
        self._predict = predict
        sample = None if predict is None else predict(_sample(self.serving.model), 1, 0)
        self._node = LiveNode(node, sample=sample, seed=self.serving.seed)
        self._metrics = Metrics(self._node, self.serving.model)
        self._count = 0
        self._draining = False
        self.failed: asyncio.Future[None] | None = None  # holds what ended the engine

    async def __aenter__(self) -> Self:
        serving = self.serving
        self.failed = asyncio.get_running_loop().create_future()
        self._driver = Driver(self._node, self._metrics, serving.speed, self._fail)
        app = web.Application(client_max_size=serving.most_body)
        app.add_routes(
            [
                web.get("/health", self._health),
                web.get("/metrics", self._show_metrics),
                web.get("/v1/models", self._models),
                web.post("/v1/completions", self._complete),
                web.post("/v1/chat/completions", self._complete),
            ]
        )
        self._runner = await listening(app, serving.host, serving.port, handler_cancellation=True)
        port = self._runner.addresses[0][1]
        self.url = f"http://{serving.host}:{port}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._driver.close()
        await self._runner.cleanup()

    def keep_log(self) -> list[Row]:
        """A list that every request is added to as it ends, from now on."""
        log: list[Row] = []
        self._driver.log = log
        return log

    async def drain(self, most_s: float) -> int:
        """Takes no more requests and waits for those under way; how many were not answered."""
        self._draining = True
        late = time.monotonic() + most_s
        while self._driver.under_way and time.monotonic() < late:
            await asyncio.sleep(LOOK_S)
        return self._driver.under_way

    def _fail(self, error: LengthwiseError) -> None:
        if self.failed is not None and not self.failed.done():
            self.failed.set_exception(error)

    # Handlers

    async def _health(self, http: web.Request) -> web.Response:
        return web.Response(status=503 if self._draining else 200)

    async def _show_metrics(self, http: web.Request) -> web.Response:
        self._driver.look()
        return web.Response(
            body=self._metrics.text(),
            headers={"Content-Type": "text/plain; version=1.0.0; charset=utf-8"},
        )

    async def _models(self, http: web.Request) -> web.Response:
        model = {
            "id": self.serving.model, "object": "model", "created": int(time.time()),
            "owned_by": "lengthwise", "root": self.serving.model, "parent": None,
            "max_model_len": self._node.longest,
        }  # fmt: skip
        return web.json_response({"object": "list", "data": [model]})

    async def _complete(self, http: web.Request) -> web.StreamResponse:
        try:
            if self._draining:
                raise Refused(503, "the server is ending")
            chat = http.path.startswith("/v1/chat/")
            call = call_of(await http.read(), http.headers, self.serving.model, chat=chat)
            served = self._begin(call)
        except Refused as refused:
            return web.Response(
                status=refused.status, body=refused.body, content_type="application/json"
            )
        kind = "chatcmpl" if call.chat else "cmpl"
        reply = Reply(f"{kind}-{uuid.uuid4().hex}", self.serving.model, int(time.time()), call.chat)
        try:
            if call.stream:
                return await self._stream(http, call, served, reply)
            await served.all()
            text = call.prompt.answer().text(served.request.output)
            body = reply.whole(text, served.reason, _usage(served))
            return web.Response(body=body, content_type="application/json")
        except LengthwiseError:  # the engine failed, and the server ends
            return web.Response(status=500)
        finally:
            self._driver.leave(served)

    def _begin(self, call: Call) -> Served:
        """Hands a call to the engine."""
        number, self._count = self._count, self._count + 1
        room = self._node.longest - call.prompt.tokens
        limit = room if call.limit is None else call.limit
        if not 1 <= limit <= room:
            raise Refused(
                400,
                f"This model's maximum context length is {self._node.longest} tokens. However, you "
                f"requested {limit if call.limit else 1} output tokens and your prompt contains "
                f"{call.prompt.tokens} input tokens.",
            )
        wanted = limit if call.ignore_eos else 0
        if call.told is not None or not wanted:
            drawn = uniform(self.serving.seed, number, 0) + 2.0**-54
            wanted = max(call.told or self._length(drawn), call.least)
        output = min(wanted, limit)
        reason = "length" if wanted > limit or call.ignore_eos else "stop"
        keys: tuple[int, ...] = ()
        if self._node.engine.enable_prefix_caching:
            keys = call.prompt.block_keys(self._node.engine.block_size)
        told = None if self._predict is None else self._predict(call, output, number)
        return self._driver.add(
            lambda now_s: Asked(
                call.prompt.tokens, output, call.priority, now_s + call.due_in_s, keys, told
            ),
            reason,
        )

    async def _stream(
        self, http: web.Request, call: Call, served: Served, reply: Reply
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(http)
        answer, output, sent = call.prompt.answer(), served.request.output, 0
        before, after = reply.pieces()
        with contextlib.suppress(LengthwiseError, ConnectionError):
            while sent < output:
                await served.more()
                chunks = [] if sent else [reply.opening()]
                until = served.tokens
                for index in range(sent, min(until, output - 1)):
                    chunks += (before, answer.token(index), after)
                if until == output:
                    last = answer.token(output - 1).decode()
                    chunks.append(reply.last(last, served.reason))
                    if call.usage or self.serving.force_usage:
                        chunks.append(reply.usage(_usage(served)))
                    chunks.append(DONE)
                sent = until
                await response.write(b"".join(chunks))
            await response.write_eof()
        return response


def _usage(served: Served) -> dict[str, int]:
    request = served.request
    return {
        "prompt_tokens": request.prompt,
        "completion_tokens": request.output,
        "total_tokens": request.prompt + request.output,
    }


def _sample(model: str) -> Call:
    return call_of(b'{"prompt": "a", "max_tokens": 1}', {}, model, chat=False)
