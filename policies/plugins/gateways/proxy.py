"""An HTTP proxy that tells an engine how long answers will be; streams pass through as they are.

    async with HintProxy("http://127.0.0.1:8000", Hints("vllm"), "./p") as proxy:
        ...  # proxy.url speaks OpenAI's API as the server behind it does

A request is read whole, for its hints stand inside it; an answer never is: each piece is written
before the next is read, and a client that reads slowly slows its engine's connection down.
"""

from __future__ import annotations

import asyncio
import io
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Self

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from yarl import URL

from lengthwise.errors import InputError
from lengthwise.listening import listening, until_drained
from lengthwise.policies.plugins.gateways.answer import Answer
from lengthwise.policies.plugins.gateways.hints import Hints, filled
from lengthwise.policies.plugins.metrics import Counters
from lengthwise.policies.plugins.prompt_lengths import Expected, Predict, PromptLengths
from lengthwise.starvation import UNKNOWN_TOKENS

PATHS = ("/chat/completions", "/completions", "/responses")  # how those that get hints end
# of one connection and not of what it carries (RFC 9110, section 7.6.1), or written anew
HOP = frozenset({
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection",
    "te", "trailer", "transfer-encoding", "upgrade", "expect",
})  # fmt: skip
OURS = HOP | {"host", "content-length", "content-encoding"}  # of a request: it comes unpacked
IDLE_S = 2.0  # a connection to the engine; vLLM's server closes one that is idle for 5 s
CONNECT_S = 10.0
LOOK_S = 0.05  # how often a proxy that ends looks whether all is answered
SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)
TYPES = {
    400: "invalid_request_error", 413: "request_too_large", 429: "rate_limit_exceeded",
    502: "bad_gateway", 503: "service_unavailable",
}  # fmt: skip
ENDS = ("answered", "client left", "server left")


@dataclass(frozen=True)
class Limits:
    """What a proxy holds at once; beyond it requests are refused."""

    body: int = 16 * 2**20  # bytes of one request: 413
    requests: int = 2048  # under way: 429
    memory: int = 256 * 2**20  # bytes of requests that the engine has not answered yet: 429


@dataclass(frozen=True)
class Options:
    """How a proxy serves."""

    host: str = "127.0.0.1"
    port: int = 8080  # 0 takes one that is free
    metrics_port: int | None = None  # None: nowhere
    predict_timeout_s: float = 0.1
    default_tokens: float = UNKNOWN_TOKENS  # where predictions no longer fit what is served
    limits: Limits = field(default_factory=Limits)


class Refused(Exception):
    """A request that the proxy itself answers, with an HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ProxyMetrics:
    """What a proxy shows to Prometheus, beside what all plugins count."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "lengthwise_proxy_requests",
            "Requests by what was done with them: hints were filled in, all were there already "
            "(kept), none is known (unchanged), the path has none (passed), or the status that "
            "they were refused with.",
            ("result",), registry=registry,
        )  # fmt: skip
        for result in ("filled", "kept", "unchanged", "passed", "413", "429", "502", "503"):
            self.requests.labels(result)
        self.ends = Counter(
            "lengthwise_proxy_answers", "Answers by how they ended.", ("end",), registry=registry
        )
        for end in ENDS:
            self.ends.labels(end)
        self.seconds = Histogram(
            "lengthwise_proxy_hint_seconds", "From the last byte of a request to its hints.",
            registry=registry, buckets=SECONDS,
        )  # fmt: skip
        self.under_way = Gauge(
            "lengthwise_proxy_requests_under_way", "Requests that are not answered yet.",
            registry=registry,
        )  # fmt: skip

    def text(self) -> bytes:
        """In Prometheus's format, with what the plugins' own counters hold."""
        return generate_latest(self._registry) + generate_latest()


class HintProxy:
    """The server; a context manager. ``url`` is its address once it is entered.

    ``predictor`` is the folder of a saved one, or a function from what was asked to its answer's
    tokens; where it fails or is late the request passes as it came, which is said once. Raises
    ``InputError`` for an upstream that is no address, a folder without a predictor, and a port that
    can't be had.
    """

    url = metrics_url = ""

    def __init__(
        self,
        upstream: str,
        hints: Hints,
        predictor: Predict | str,
        options: Options | None = None,
    ) -> None:
        self.options = options or Options()
        self.upstream = _address(upstream)
        self.hints = hints
        self.counters = Counters()
        self._lengths = PromptLengths(
            predictor, self.options.predict_timeout_s, self.options.default_tokens, self.counters,
            features=hints.features,
        )  # fmt: skip
        self.metrics = ProxyMetrics()
        self.under_way = 0  # requests
        self._held = 0  # bytes of them
        self._draining = False
        self._began_s = time.monotonic()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self._session = await stack.enter_async_context(
                aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S),
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
                    cookie_jar=aiohttp.DummyCookieJar(),
                    auto_decompress=False,
                    trust_env=False,
                    skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
                )
            )
            options = self.options
            app = web.Application()
            app.add_routes([web.route("*", "/{path:.*}", self._handle)])
            self.url = await _listen(stack, app, options.host, options.port)
            if options.metrics_port is not None:
                shown = web.Application()
                shown.add_routes([web.get("/metrics", self._show), web.get("/ready", self._ready)])
                self.metrics_url = await _listen(stack, shown, options.host, options.metrics_port)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def drain(self, most_s: float) -> int:
        """Answers 503 to what comes now and waits for what is under way; how much is left."""
        self._draining = True
        late = time.monotonic() + most_s
        while self.under_way and time.monotonic() < late:
            await asyncio.sleep(LOOK_S)
        return self.under_way

    # Handlers

    async def _show(self, http: web.Request) -> web.Response:
        return web.Response(
            body=self.metrics.text(),
            headers={"Content-Type": "text/plain; version=1.0.0; charset=utf-8"},
        )

    async def _ready(self, http: web.Request) -> web.Response:
        return web.Response(status=503 if self._draining else 200)

    async def _handle(self, http: web.Request) -> web.StreamResponse:
        self.under_way += 1
        self.metrics.under_way.set(self.under_way)
        try:
            return await self._pass_on(http)
        except Refused as refused:
            self.metrics.requests.labels(str(refused.status)).inc()
            return _refusal(refused)
        finally:  # however it ends, nothing of it stays counted
            self.under_way -= 1
            self.metrics.under_way.set(self.under_way)

    async def _pass_on(self, http: web.Request) -> web.StreamResponse:
        if self._draining:
            raise Refused(503, "the proxy is ending")
        if self.under_way > self.options.limits.requests:
            raise Refused(429, "too many requests at once")
        if not http.raw_path.startswith("/"):  # an address of its own, which is not the upstream
            raise Refused(400, "the request's target must be a path")
        async with self._body(http) as body:
            expected: Expected | None = None
            if http.method == "POST" and http.path.endswith(PATHS) and body:
                body, expected = await self._hinted(body, http)
            else:
                self.metrics.requests.labels("passed").inc()
            try:
                answer = await self._session.request(
                    http.method, URL(self.upstream + http.raw_path, encoded=True),
                    headers=_kept(http.headers, OURS), allow_redirects=False,
                    data=io.BytesIO(body) if body else None,  # in pieces, where it is long
                )  # fmt: skip
            except (aiohttp.ClientError, OSError) as error:  # the last: what stands for a time-out
                self.counters.warn("upstream", f"{self.upstream} can't be reached: {error!r}")
                raise Refused(502, "the server behind this proxy can't be reached") from None
        async with answer:
            return await self._pass_back(http, answer, expected)

    @asynccontextmanager
    async def _body(self, http: web.Request) -> AsyncIterator[bytes]:
        """A request's body, whole; it counts as held until the engine begins to answer."""
        limits, held = self.options.limits, 0
        if (http.content_length or 0) > limits.body:
            raise Refused(413, f"a request may have {limits.body} bytes")
        pieces = []
        try:
            try:
                async for piece in http.content.iter_any():
                    pieces.append(piece)
                    held += len(piece)
                    self._held += len(piece)
                    if held > limits.body:
                        raise Refused(413, f"a request may have {limits.body} bytes")
                    if self._held > limits.memory:
                        raise Refused(429, "too many bytes of requests at once")
            except web.RequestPayloadError as error:
                raise Refused(400, f"the body can't be read: {error}") from None
            yield b"".join(pieces)
        finally:
            self._held -= held

    async def _hinted(self, body: bytes, http: web.Request) -> tuple[bytes, Expected | None]:
        """The body with its hints, and what is expected of its answer; as it came without any."""
        start_s = time.perf_counter()
        read = self.hints.read(body, {n.lower(): value for n, value in http.headers.items()})
        expected, count, result = None, 0, "unchanged"
        if read is not None:
            said, call = read
            if call.text or call.told is not None:
                expected = await self._lengths.of(call)
            else:
                self.counters.add("fallbacks", "no-prompt")
            # what nobody predicted is not filled with a guess
            if expected is not None and not math.isnan(expected.said):
                arrival_s = time.monotonic() - self._began_s
                try:
                    body, count = filled(body, said, self.hints.wanted(call, expected, arrival_s))
                    result = "filled" if count else "kept"
                except Exception as error:  # of a policy, or of JSON that can't be written
                    self.counters.add("fallbacks", "policy")
                    self.counters.warn("hints", f"a request passes without hints: {error!r}")
        self.metrics.requests.labels(result).inc()
        self.metrics.seconds.observe(time.perf_counter() - start_s)
        return body, expected

    async def _pass_back(
        self, http: web.Request, answer: aiohttp.ClientResponse, expected: Expected | None
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            status=answer.status, reason=answer.reason, headers=_kept(answer.headers, HOP)
        )
        watched, end = Answer(), "client left"
        try:
            await response.prepare(http)
            pieces = aiter(answer.content.iter_any())
            while True:
                try:
                    piece = await anext(pieces, None)
                except (aiohttp.ClientError, OSError) as error:
                    end = "server left"
                    self.counters.warn("broken", f"{self.upstream} broke an answer off: {error!r}")
                    # without a last chunk: the client must see that it is not whole
                    if http.transport is not None:
                        http.transport.close()
                    return response
                if piece is None:
                    break
                if expected is not None:
                    watched.feed(piece)
                await response.write(piece)
            await response.write_eof()
            end = "answered"
        except ConnectionError:  # the client's
            return response
        finally:
            self.metrics.ends.labels(end).inc()
        generated = watched.generated_tokens
        if expected is not None and answer.status == 200 and generated:
            self._lengths.ended(expected, generated)
        return response


async def serve(
    proxy: HintProxy, ended: asyncio.Event, drain_s: float, say: Callable[[str], None]
) -> None:
    """Serves until ``ended`` is set, then until all is answered, ``drain_s`` at most."""
    async with proxy:
        metrics = f", metrics on {proxy.metrics_url}/metrics" if proxy.metrics_url else ""
        say(f"hints for {proxy.upstream} on {proxy.url}{metrics}")
        say(proxy.hints.places.needs)
        await until_drained(proxy.drain, ended, drain_s, say)


async def _listen(stack: AsyncExitStack, app: web.Application, host: str, port: int) -> str:
    """Serves an application until the stack ends; its address."""
    # a handler is cancelled when its client hangs up; who is left at the end is cut off
    runner = await listening(app, host, port, handler_cancellation=True, shutdown_timeout=LOOK_S)
    stack.push_async_callback(runner.cleanup)
    where = f"[{host}]" if ":" in host else host
    return f"http://{where}:{runner.addresses[0][1]}"


def _address(upstream: str) -> str:
    """An upstream without its last slash; raises ``InputError`` for what is no address."""
    try:
        url = URL(upstream)
        sound = url.scheme in ("http", "https") and url.host and not (url.query or url.fragment)
    except ValueError:
        sound = False
    if not sound:
        raise InputError(f"upstream is an address as http://127.0.0.1:8000, not {upstream!r}")
    return str(url).rstrip("/")


def _kept(headers: Any, dropped: Iterable[str]) -> CIMultiDict[str]:
    """Headers that go on, several of a name among them."""
    also = {name.strip().lower() for name in headers.get("Connection", "").split(",")}
    out = {*dropped, *also}
    return CIMultiDict((n, value) for n, value in headers.items() if n.lower() not in out)


def _refusal(refused: Refused) -> web.Response:
    said = {"message": str(refused), "type": TYPES[refused.status], "code": refused.status}
    response = web.Response(
        status=refused.status, reason=HTTPStatus(refused.status).phrase,
        body=json.dumps({"error": said}).encode(), content_type="application/json",
    )  # fmt: skip
    response.force_close()  # its body may not have been read
    return response
