"""The proxy that tells engines how long answers will be: what it adds, and what passes as it is."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import io
import json
import logging
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from lengthwise.curves import RequestCurve
from lengthwise.errors import InputError
from lengthwise.policies.load import load_policy
from lengthwise.policies.plugins.gateways.hints import PLACES, Hints, filled
from lengthwise.policies.plugins.gateways.proxy import HintProxy, Limits, Options
from lengthwise.policies.plugins.prompt_lengths import Expected
from lengthwise.predictors import make_predictor
from lengthwise.serving.mock.server import MockServer, Serving
from lengthwise.serving.options import Engine
from lengthwise.serving.system import Node
from lengthwise.serving.timing.load import timing
from lengthwise.serving.vllm import VllmUnavailable
from lengthwise.training.cli import main
from tests.engines import whole_environment
from tests.gateway_fleet import Listening

CHAT = "/v1/chat/completions"
HELLO = {"model": "m", "messages": [{"role": "user", "content": "seven words"}], "max_tokens": 99}


def asynchronous(test: Callable[..., Any]) -> Callable[..., None]:
    """A test in an event loop of its own."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


def by_words(text: str) -> float:
    """A predictor in one's hand: a number if the prompt ends in one, else its words."""
    last = text.split()[-1]
    return float(last) if last.isdecimal() else float(len(text.split()))


# What is added


def fill(hints: Hints, body: bytes, headers: dict[str, str] | None = None) -> bytes:
    read = hints.read(body, headers or {})
    assert read is not None
    said, call = read
    answer = 7.4 if call.told is None else call.told
    expected = Expected(3, answer, call.known, "predictor", answer)
    return filled(body, said, hints.wanted(call, expected, 0.0))[0]


def test_each_engine_gets_its_own_fields() -> None:
    body = json.dumps(HELLO).encode()
    added = {name: json.loads(fill(Hints(name), body)) for name in PLACES}
    for name, found in added.items():
        assert {key: found.pop(key) for key in HELLO} == HELLO, name
    assert added == {
        "vllm": {"priority": 7, "vllm_xargs": {"predicted_tokens": 7}},
        "sglang": {"priority": -7, "custom_params": {"predicted_tokens": 7}},
        "dynamo": {"nvext": {"agent_hints": {"priority": -7, "osl": 7}}},
    }
    low = json.loads(fill(Hints("sglang", lowest_first=True), body))
    assert low["priority"] == 7
    assert json.loads(fill(Hints(per_unit=10), body))["priority"] == 74


def test_what_a_client_sent_stays_byte_for_byte() -> None:
    odd = b'\n{ "prompt" : "\\u00fc \\ud83d",\t"temperature":1.10, "seed": 1e2, "prompt":"a b" }\n'
    assert fill(Hints(), odd) == odd.replace(
        b" }\n", b' ,"priority": 7, "vllm_xargs": {"predicted_tokens": 7}}\n'
    )
    assert fill(Hints(), b"{}") == b'{"priority": 7, "vllm_xargs": {"predicted_tokens": 7}}'


@pytest.mark.parametrize(
    ("fills", "said", "found"),
    [
        ("vllm", {"priority": 3}, {"priority": 3, "vllm_xargs": {"predicted_tokens": 7}}),
        ("vllm", {"priority": None}, {"priority": None, "vllm_xargs": {"predicted_tokens": 7}}),
        # its own prediction is what its priority is made of
        ("vllm", {"vllm_xargs": {"predicted_tokens": 50, "a": 1}},
         {"vllm_xargs": {"predicted_tokens": 50, "a": 1}, "priority": 50}),
        ("vllm", {"vllm_xargs": {"a": 1}},
         {"vllm_xargs": {"a": 1, "predicted_tokens": 7}, "priority": 7}),
        ("vllm", {"vllm_xargs": None}, {"vllm_xargs": {"predicted_tokens": 7}, "priority": 7}),
        ("vllm", {"vllm_xargs": [1]}, {"vllm_xargs": [1], "priority": 7}),
        ("sglang", {"custom_params": {"predicted_tokens": 20}},
         {"custom_params": {"predicted_tokens": 20}, "priority": -20}),
        ("dynamo", {"nvext": {"annotations": ["a"], "agent_hints": {"osl": 9}}},
         {"nvext": {"annotations": ["a"], "agent_hints": {"osl": 9, "priority": -9}}}),
        ("dynamo", {"nvext": {"agent_hints": {"osl": 9, "priority": 5}}},
         {"nvext": {"agent_hints": {"osl": 9, "priority": 5}}}),
    ],
)  # fmt: skip
def test_values_of_a_client_s_own_are_kept(
    fills: str, said: dict[str, Any], found: dict[str, Any]
) -> None:
    body = json.dumps({**HELLO, **said}).encode()
    assert json.loads(fill(Hints(fills), body)) == {**HELLO, **found}


def test_names_from_headers_are_handed_on() -> None:
    headers = {"x-session-id": "s1", "x-tenant-id": "t1"}
    found = json.loads(fill(Hints(), json.dumps({**HELLO, "user": "u"}).encode(), headers))
    assert found["vllm_xargs"] == {"predicted_tokens": 7, "session_id": "s1", "tenant": "t1"}


def test_a_priority_that_ages_and_one_that_reads_curves(tmp_path: Path) -> None:
    policy = tmp_path / "aged.py"
    policy.write_text(
        "def aged(predicted_tokens, arrival_s, *, tokens_per_s=10.0):\n"
        "    return predicted_tokens + tokens_per_s * arrival_s\n"
    )
    aged = Hints(policy=f"{policy}:aged")
    assert aged.priority(Expected(1, 50), 0.0) == 50
    assert aged.priority(Expected(1, 20), 4.0) == 60  # shorter, and too late
    refreshed = Hints(policy="srtf-refreshed")
    assert refreshed.priority(Expected(1, 50), 0.0) == 50
    curve = RequestCurve([0.0, 16.0], [80.0, 70.0])
    of_a_distribution = Expected(1, 50, curves={"expected_remaining_tokens": curve})
    assert refreshed.priority(of_a_distribution, 0.0) == 80


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Hints("tgi"), "unknown engine to fill hints of 'tgi'"),
        (lambda: Hints("vllm", lowest_first=True), "a choice in SGLang alone"),
        (lambda: Hints(policy="hrrn"), "changes with the clock"),
        (lambda: Hints(policy="work+guard"), "guard"),
        (lambda: HintProxy("127.0.0.1:8000", Hints(), by_words), "upstream is an address"),
        (lambda: HintProxy("http://a/?b=1", Hints(), by_words), "upstream is an address"),
        (lambda: HintProxy("http://a", Hints(), "/nowhere"), "/nowhere"),
    ],
)
def test_what_can_t_work_is_refused(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        make()


@pytest.mark.parametrize("seed", range(200))
def test_no_body_breaks_the_reader(seed: int) -> None:
    rng = random.Random(seed)
    body = bytearray(json.dumps({**HELLO, "vllm_xargs": {"a": [1]}, "input": "b"}).encode())
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(body))
        body[at : at + rng.randrange(3)] = bytes(rng.choices(b'{}[]",:0e\\\xff\x00x', k=2))
    hints = Hints()
    read = hints.read(bytes(body), {})
    if read is None:
        return
    said, call = read
    expected = Expected(3, 7.0, call.known, "predictor", 7.0)
    new, count = filled(bytes(body), said, hints.wanted(call, expected, 0.0))
    found = json.loads(new)
    assert (new == bytes(body)) == (count == 0)
    assert {name: found.get(name) for name in said if name not in ("priority", "vllm_xargs")} == {
        name: value for name, value in said.items() if name not in ("priority", "vllm_xargs")
    }


# What passes


class Upstream(Listening):
    """A server that keeps what it got and answers as ``answer`` does."""

    def __init__(self, answer: Callable[[web.Request], Any] | None = None) -> None:
        self.got: list[tuple[str, str, dict[str, str], bytes]] = []
        self.left = 0  # answers whose reader went
        self._answer = answer
        app = web.Application(client_max_size=2**26)
        app.add_routes([web.route("*", "/{path:.*}", self._handle)])
        super().__init__(app, shutdown_timeout=0.05)

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    async def _handle(self, http: web.Request) -> web.StreamResponse:
        self.got.append((http.method, http.raw_path, dict(http.headers), await http.read()))
        try:
            if self._answer is None:
                return web.json_response({"ok": True})
            made: web.StreamResponse = await self._answer(http)
            return made
        except (asyncio.CancelledError, ConnectionError):
            self.left += 1
            raise

    def json(self, index: int = -1) -> Any:
        return json.loads(self.got[index][3])


@asynccontextmanager
async def proxied(
    answer: Callable[[web.Request], Any] | None = None,
    predict: Any = by_words,
    hints: Hints | None = None,
    **options: Any,
) -> AsyncIterator[tuple[Upstream, HintProxy, aiohttp.ClientSession]]:
    given = Options(port=0, metrics_port=0, predict_timeout_s=5.0, **options)
    async with (
        Upstream(answer) as upstream,
        HintProxy(upstream.url, hints or Hints(), predict, given) as proxy,
        aiohttp.ClientSession() as client,
    ):
        yield upstream, proxy, client


async def settled(look: Callable[[], bool]) -> bool:
    for _ in range(500):
        if look():
            return True
        await asyncio.sleep(0.01)
    return False


async def metrics(proxy: HintProxy, client: aiohttp.ClientSession) -> dict[str, float]:
    async with client.get(f"{proxy.metrics_url}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    found = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in found}


def events(seed: int, count: int = 200) -> list[bytes]:
    """Pieces of a stream: of events, and cut anywhere."""
    rng = random.Random(seed)
    whole = (
        b"".join(
            b"data: "
            + json.dumps({"choices": [{"text": "ü" * rng.randrange(40)}]}).encode()
            + b"\n\n"
            for _ in range(count)
        )
        + b'data: {"choices": [], "usage": {"completion_tokens": 12}}\n\ndata: [DONE]\n\n'
    )
    cuts = sorted(rng.sample(range(1, len(whole)), 300))
    return [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


@asynchronous
async def test_requests_are_filled_and_everything_else_passes() -> None:
    async with proxied() as (upstream, proxy, client):
        for path, body in (
            (CHAT, HELLO),
            ("/v1/completions", {"model": "m", "prompt": "one two three"}),
            ("/v1/responses", {"model": "m", "input": "one two three four"}),
            ("/base/v1/responses", {"input": [{"role": "user", "content": "a b c d e"}]}),
        ):
            async with client.post(
                URL(proxy.url + path + "?a=%2F", encoded=True), json=body
            ) as answer:
                assert await answer.json() == {"ok": True}
            method, raw, headers, sent = upstream.got[-1]
            assert (method, raw) == ("POST", path + "?a=%2F")
            assert headers["Content-Length"] == str(len(sent))
            found = upstream.json()
            assert {name: found.pop(name) for name in body} == body
            assert found == {
                "priority": found["priority"], "vllm_xargs": {"predicted_tokens": found["priority"]}
            }  # fmt: skip
        assert [json.loads(sent)["priority"] for *_, sent in upstream.got] == [2, 3, 4, 5]

        headers = {"Authorization": "Bearer x", "X-A": "1", "Cookie": "a=b", "Connection": "X-B"}
        async with client.get(proxy.url + "/v1/models", headers={**headers, "X-B": "2"}) as answer:
            assert answer.status == 200
        method, raw, sent_headers, sent = upstream.got[-1]
        assert (method, raw, sent) == ("GET", "/v1/models", b"")
        assert {**headers, **sent_headers}.items() >= {
            "Authorization": "Bearer x", "X-A": "1", "Cookie": "a=b"
        }.items()  # fmt: skip
        assert "X-B" not in sent_headers
        assert sent_headers["Host"] == upstream.url.removeprefix("http://")
        for body in (b"not JSON", b"[1]", b"", '{"prompt": "ü"}'.encode("utf-16"), b"\xff"):
            async with client.post(proxy.url + CHAT, data=body) as answer:
                assert answer.status == 200
            assert upstream.got[-1][3] == body
        ids = {"model": "m", "prompt": [1, 2, 3]}  # no text: nothing to predict from
        async with client.post(proxy.url + "/v1/completions", json=ids):
            assert upstream.json() == ids
        found = await metrics(proxy, client)
        assert found['lengthwise_proxy_requests_total{result="filled"}'] == 4
        assert found['lengthwise_proxy_requests_total{result="unchanged"}'] == 5
        assert found['lengthwise_proxy_requests_total{result="passed"}'] == 2
        assert found['lengthwise_proxy_answers_total{end="answered"}'] == 11
        assert found["lengthwise_proxy_requests_under_way"] == 0


@asynchronous
async def test_streams_are_byte_identical_and_not_held_back() -> None:
    gate = asyncio.Event()
    pieces = events(1)

    async def answer(http: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(
            status=201, reason="So Be It",
            headers={"Content-Type": "text/event-stream", "X-Request-Id": "7", "Set-Cookie": "a=1"},
        )  # fmt: skip
        response.headers.add("Set-Cookie", "b=2")
        await response.prepare(http)
        await response.write(pieces[0])
        await gate.wait()
        for piece in pieces[1:]:
            await response.write(piece)
        return response

    async with proxied(answer) as (_, proxy, client):
        async with client.post(proxy.url + CHAT, json=HELLO) as got:
            assert (got.status, got.reason, got.headers["X-Request-Id"]) == (201, "So Be It", "7")
            assert got.headers.getall("Set-Cookie") == ["a=1", "b=2"]
            first = await got.content.readexactly(len(pieces[0]))  # while the rest is not there
            gate.set()
            assert first + await got.read() == b"".join(pieces)
        assert await settled(lambda: proxy.under_way == 0)


@asynchronous
async def test_whole_answers_keep_their_length_and_coding() -> None:
    packed = hashlib.sha256(b"a").digest() * 99

    async def answer(http: web.Request) -> web.StreamResponse:
        return web.Response(body=packed, headers={"Content-Encoding": "x-ours"})

    async with proxied(answer) as (_, proxy, client):
        async with client.get(proxy.url + "/a", headers={"Accept-Encoding": "x-ours"}) as got:
            assert got.headers["Content-Length"] == str(len(packed))
            assert got.headers["Content-Encoding"] == "x-ours"
            assert await got.read() == packed
        async with client.head(proxy.url + "/a") as got:
            assert (got.status, await got.read()) == (200, b"")


@asynchronous
async def test_a_slow_reader_slows_the_server_down() -> None:
    sent = 0

    async def answer(http: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(http)
        for _ in range(1000):
            await response.write(b"x" * 2**16)
            sent += 2**16
        return response

    async with proxied(answer) as (_, proxy, client):
        async with client.post(proxy.url + CHAT, json=HELLO) as got:
            before = -1
            while before != sent:  # until nobody's buffer takes any more
                before = sent
                await asyncio.sleep(0.5)
            assert sent < 2**25  # what kernels and libraries hold between the two: not all 64 MB
            total = 0
            async for piece in got.content.iter_any():
                total += len(piece)
            assert total == 1000 * 2**16


@asynchronous
async def test_a_client_that_breaks_off_frees_the_server() -> None:
    async def answer(http: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(http)
        while True:
            await response.write(b"data: x\n\n")
            await asyncio.sleep(0.005)

    async with proxied(answer) as (upstream, proxy, client):
        for _ in range(5):
            got = await client.post(proxy.url + CHAT, json=HELLO)
            await got.content.readany()
            got.close()
        assert await settled(lambda: proxy.under_way == 0 and upstream.left == 5)
        found = await metrics(proxy, client)
        assert found['lengthwise_proxy_answers_total{end="client left"}'] == 5

        # before the server has said anything
        async def silent(http: web.Request) -> web.StreamResponse:
            await asyncio.sleep(60)
            raise AssertionError

        upstream._answer = silent
        task = asyncio.create_task(client.post(proxy.url + CHAT, json=HELLO))
        assert await settled(lambda: len(upstream.got) == 6)
        task.cancel()
        assert await settled(lambda: proxy.under_way == 0 and upstream.left == 6)


@asynchronous
async def test_a_server_that_dies_in_an_answer_is_seen_by_its_client() -> None:
    async def answer(http: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        if http.path == "/v1/completions":
            response.content_length = 1000
        await response.prepare(http)
        await response.write(b"data: the first\n\n")
        await asyncio.sleep(0.05)
        assert http.transport is not None
        http.transport.abort()
        return response

    async with proxied(answer) as (_, proxy, client):
        for path in (CHAT, "/v1/completions"):
            async with client.post(proxy.url + path, json=HELLO) as got:
                assert await got.content.readany() == b"data: the first\n\n"
                with pytest.raises(aiohttp.ClientPayloadError):
                    await got.read()
        found = await metrics(proxy, client)
        assert found['lengthwise_proxy_answers_total{end="server left"}'] == 2
        assert proxy.under_way == 0


@asynchronous
async def test_a_server_that_is_not_there(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with proxied() as (upstream, proxy, client):
        await upstream._runner.cleanup()
        for _ in range(3):
            async with client.post(proxy.url + CHAT, json=HELLO) as got:
                assert got.status == 502
                assert (await got.json())["error"]["type"] == "bad_gateway"
    assert sum("can't be reached" in line for line in caplog.messages) == 1


@asynchronous
async def test_a_megabyte_passes_and_more_than_is_allowed_does_not() -> None:
    async with proxied(limits=Limits(body=2**21, memory=3 * 2**21)) as (upstream, proxy, client):
        long = {**HELLO, "messages": [{"role": "user", "content": "word " * 2**18}]}
        sent = io.BytesIO(json.dumps(long).encode())
        async with client.post(proxy.url + CHAT, data=sent) as got:
            assert got.status == 200
        assert upstream.json()["messages"] == long["messages"]
        assert upstream.json()["priority"] == 99  # of a quarter of a million: max_tokens

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(40):
                yield b"x" * 2**16

        for data in (io.BytesIO(b"x" * (2**21 + 1)), chunks()):  # told beforehand, and not
            try:
                async with client.post(proxy.url + CHAT, data=data) as got:
                    assert got.status == 413
            except aiohttp.ClientConnectionError:
                pass  # who goes on sending is cut off
        assert len(upstream.got) == 1
        assert await settled(lambda: proxy.under_way == 0 and proxy._held == 0)


@asynchronous
async def test_limits_of_requests_and_memory() -> None:
    gate = asyncio.Event()

    async def answer(http: web.Request) -> web.StreamResponse:
        await gate.wait()
        return web.json_response({})

    limits = Limits(requests=3, memory=10_000)
    async with proxied(answer, limits=limits) as (upstream, proxy, client):

        async def ask(words: int = 2) -> int:
            said = {**HELLO, "messages": [{"role": "user", "content": "w " * words}]}
            async with client.post(proxy.url + CHAT, json=said) as got:
                return got.status

        first = asyncio.create_task(ask(4000))  # 8 of 10 KB, until it is answered
        assert await settled(lambda: len(upstream.got) == 1)
        assert await ask(4000) == 429
        others = [asyncio.create_task(ask()) for _ in range(2)]
        assert await settled(lambda: proxy.under_way == 3)
        assert await ask() == 429
        gate.set()
        assert [await one for one in (first, *others)] == [200] * 3
        assert await ask() == 200
        assert proxy._held == 0


@pytest.mark.parametrize("broken", ["raises", "hangs", "nan"])
@asynchronous
async def test_a_broken_predictor_costs_hints_and_nothing_else(
    broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)

    def predict(text: str) -> float:
        if broken == "raises":
            raise RuntimeError("no")
        if broken == "hangs":
            time.sleep(0.3)
        return float("nan")

    async with proxied(predict=predict) as (upstream, proxy, client):
        object.__setattr__(proxy.options, "predict_timeout_s", 0.05)
        proxy._lengths._timeout_s = 0.05
        body = json.dumps(HELLO).encode()
        for _ in range(3):
            async with client.post(proxy.url + CHAT, data=body) as got:
                assert got.status == 200
            assert upstream.got[-1][3] == body
        found = await metrics(proxy, client)
        assert found['lengthwise_proxy_requests_total{result="unchanged"}'] == 3
        # what its client says needs no predictor
        told = {**HELLO, "vllm_xargs": {"predicted_tokens": 5}}
        async with client.post(proxy.url + CHAT, json=told):
            assert upstream.json()["priority"] == 5
    assert sum("the predictor failed" in line for line in caplog.messages) == 1


@asynchronous
async def test_answers_are_judged_by_their_usage() -> None:
    async def answer(http: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(http)
        for piece in events(2, 100):
            await response.write(piece)
        return response

    ended: list[float] = []
    async with proxied(answer) as (_, proxy, client):
        proxy._lengths.ended = lambda expected, tokens: ended.append((expected.said, tokens))  # type: ignore[assignment,method-assign,func-returns-value]
        async with client.post(proxy.url + CHAT, json=HELLO) as got:
            await got.read()
        assert await settled(lambda: proxy.under_way == 0)
    assert ended == [(2.0, 12)]


@asynchronous
async def test_targets_that_name_another_host_are_refused() -> None:
    async with proxied() as (upstream, proxy, _):
        host, port = proxy.url.removeprefix("http://").split(":")
        for target in ("http://127.0.0.1:1/v1/models", "@127.0.0.1:1/", "//127.0.0.1:1/a"):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(f"GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
            said = await reader.read()
            writer.close()
            if not target.startswith("//"):
                assert b" 400 " in said.split(b"\r\n")[0], target
        # two slashes are a path, and stay at this upstream
        assert [raw for _, raw, *_ in upstream.got] == ["//127.0.0.1:1/a"]


@asynchronous
async def test_draining_answers_what_is_under_way() -> None:
    gate = asyncio.Event()

    async def answer(http: web.Request) -> web.StreamResponse:
        await gate.wait()
        return web.json_response({})

    async with proxied(answer) as (upstream, proxy, client):
        first = asyncio.create_task(client.post(proxy.url + CHAT, json=HELLO))
        assert await settled(lambda: len(upstream.got) == 1)
        draining = asyncio.create_task(proxy.drain(30))
        await asyncio.sleep(0.1)
        async with client.post(proxy.url + CHAT, json=HELLO) as got:
            assert got.status == 503
        async with client.get(f"{proxy.metrics_url}/ready") as got:
            assert got.status == 503
        assert not draining.done()
        gate.set()
        assert (await first).status == 200
        assert await draining == 0


# The whole


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(3000)
def test_vllm_takes_what_is_filled_in_and_orders_by_it(tmp_path: Path) -> None:
    """Its own classes of requests, and its own priority queue."""
    prompts = [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}, 400.0),
        ("/v1/completions", {"prompt": "a"}, 100.0),
        ("/v1/responses", {"input": [{"role": "user", "content": "a"}]}, 200.0),
        ("/v1/chat/completions", {**HELLO, "priority": 150, "vllm_xargs": {"a": 1}}, 900.0),
    ]
    hints, rows = Hints(), []
    for path, said, answer in prompts:
        body = json.dumps({"model": "m", **said}).encode()
        read = hints.read(body, {"x-session-id": "s"})
        assert read is not None
        expected = Expected(3, answer, read[1].known, "predictor", answer)
        rows.append([path, filled(body, read[0], hints.wanted(read[1], expected, 0.0))[0].decode()])
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    try:
        *_, line = whole_environment.run(
            [str(tmp_path / "rows.json")], module="tests.engines.hint_checks"
        )
    except VllmUnavailable as error:
        pytest.skip(f"PyPI can't be reached, and the environment is not there yet: {error}")
    found = json.loads(line)
    assert found["read"] == [
        [400, {"predicted_tokens": 400, "session_id": "s"}, []],
        [100, {"predicted_tokens": 100, "session_id": "s"}, []],
        [200, {"predicted_tokens": 200, "session_id": "s"}, []],
        [150, {"a": 1, "predicted_tokens": 900, "session_id": "s"}, []],
    ]
    assert found["order"] == [1, 3, 2, 0]


@asynchronous
async def test_a_server_that_orders_by_priority_serves_the_short_ones_first() -> None:
    node = Node(Engine(max_num_seqs=1), timing("h200/llama-3.1-8b"), load_policy("priority"))
    async with (
        MockServer(node, Serving(port=0, speed=20.0)) as server,
        HintProxy(server.url, Hints(), by_words, Options(port=0, predict_timeout_s=5.0)) as proxy,
        aiohttp.ClientSession() as client,
    ):
        done: list[int] = []

        async def ask(tokens: int) -> None:
            said = {"model": "mock", "prompt": f"say {tokens}", "max_tokens": tokens,
                    "ignore_eos": True, "stream": True}  # fmt: skip
            async with client.post(proxy.url + "/v1/completions", json=said) as got:
                assert got.status == 200
                assert (await got.read()).endswith(b"data: [DONE]\n\n")
            done.append(tokens)

        first = asyncio.create_task(ask(8000))  # holds the seat while the others come
        assert await settled(lambda: server._driver.under_way == 1)
        lengths = [400, 100, 300, 200, 500]
        others = [asyncio.create_task(ask(one)) for one in lengths]
        assert await settled(lambda: server._driver.under_way == 6)
        assert not first.done()
        await asyncio.gather(first, *others)
    assert done == [8000, *sorted(lengths)]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_predictor("prompt-length")
    made.fit(["a"] * 20, [3 * n for n in range(1, 21)], prompt_tokens=list(range(1, 21))).save(
        tmp_path / "p"
    )
    code = "from lengthwise.training.cli import main; main()"
    command = [sys.executable, "-c", code, "hint-proxy", "--port", "0", "--predictor",
               str(tmp_path / "p"), "--predict-timeout", "30", "--upstream"]  # fmt: skip

    async def run() -> str:
        async with Upstream() as upstream, aiohttp.ClientSession() as client:
            process = await asyncio.create_subprocess_exec(
                *command, upstream.url, stderr=asyncio.subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )  # fmt: skip
            assert process.stderr is not None
            line = (await process.stderr.readline()).decode()
            url = line.split(" on ")[1].strip()
            async with client.post(url + CHAT, json=HELLO) as got:
                assert got.status == 200
            assert upstream.json()["priority"] > 0
            process.send_signal(signal.SIGTERM)
            rest = (await process.stderr.read()).decode()
            assert await process.wait() == 0
            return line + rest

    said = asyncio.run(run())
    assert "--scheduling-policy priority" in said
    with pytest.raises(SystemExit) as ended:
        main(["hint-proxy", "--predictor", str(tmp_path / "p"), "--upstream", "nowhere"])
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
