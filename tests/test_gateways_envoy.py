"""Real Envoy between clients and endpoints, and the picker as the one that it asks."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web

import lengthwise as lw
from lengthwise.eval.mock import fleet
from lengthwise.eval.setting import Setting
from lengthwise.policies.plugins.gateways.endpoints import Endpoints
from lengthwise.policies.plugins.gateways.picker import Options, Pick, Picker
from lengthwise.policies.plugins.gateways.server import PickerServer
from lengthwise.policies.plugins.gateways.server import Serving as Listening
from lengthwise.serving.mock.server import MockServer, Serving
from lengthwise.serving.mock.text import Prompt
from lengthwise.training.commands.serve_epp import described
from tests.engines.envoy import Envoy, binary, free_ports
from tests.gateway_fleet import vllm

pytestmark = pytest.mark.timeout(300)  # the first test that needs Envoy installs it
DOCS = Path(__file__).parent.parent / "docs" / "gateways.md"


@pytest.fixture(autouse=True, scope="module")
def _envoy() -> None:
    binary()


class Backend:
    """An endpoint that answers with random bytes in random pieces, and a hash of what it got."""

    def __init__(self, seed: int, port: int = 0) -> None:
        self._rng, self._port = random.Random(seed), port
        self.served = 0
        self.hold: asyncio.Event | None = None  # set, an answer waits for it after its first piece

    async def __aenter__(self) -> Backend:
        app = web.Application(client_max_size=2**26)
        app.add_routes([web.get("/metrics", self._metrics), web.post("/{path:.*}", self._answer)])
        self.runner = web.AppRunner(app, access_log=None, handler_cancellation=True,
                                    shutdown_timeout=0.1)  # fmt: skip
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", self._port).start()
        self.address = f"127.0.0.1:{self.runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.runner.cleanup()

    async def _metrics(self, http: web.Request) -> web.Response:
        return web.Response(text=vllm())

    async def _answer(self, http: web.Request) -> web.StreamResponse:
        got = hashlib.sha256(await http.read()).hexdigest()
        self.served += 1
        data = self._rng.randbytes(self._rng.choice((0, 1, 500, 70_000, 300_000)))
        sent = hashlib.sha256(data).hexdigest()
        response = web.StreamResponse(headers={"x-got": got, "x-sent": sent, "x-by": self.address})
        await response.prepare(http)
        while data:
            cut = self._rng.choice((1, 100, 5000, 100_000))
            await response.write(data[:cut])
            data = data[cut:]
            if self.hold is not None:
                await self.hold.wait()
        return response


@asynccontextmanager
async def behind(
    addresses: Sequence[str], *, envoy: Any = None, **options: Any
) -> AsyncIterator[tuple[Picker, Envoy, aiohttp.ClientSession]]:
    """A picker, Envoy, and clients."""
    endpoints = options.pop("endpoints", None) or Endpoints(addresses)
    picker = Picker(endpoints, Options(**{"scrape_interval_s": 0.1, **options}))
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(PickerServer(picker, Listening(port=0)))
        await picker.synced.wait()
        made = Envoy(addresses, picker=server.port, **(envoy or {}))
        await asyncio.to_thread(made.__enter__)
        stack.push_async_callback(asyncio.to_thread, made.__exit__, None, None, None)
        connector = aiohttp.TCPConnector(limit=0)
        session = aiohttp.ClientSession(made.url, connector=connector)
        yield picker, made, await stack.enter_async_context(session)
        await session.close()
        await until(lambda: server.service.streams == 0)  # nobody is counted for ever
        assert picker.under_way == 0 and server.service.held == 0


async def until(true: Callable[[], Any]) -> None:
    for _ in range(2000):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came true")


async def limited(count: int, most: int, work: Callable[[int], Awaitable[Any]]) -> list[Any]:
    gate = asyncio.Semaphore(most)

    async def one(number: int) -> Any:
        async with gate:
            return await work(number)

    return await asyncio.gather(*map(one, range(count)))


def test_chats_go_where_the_policy_said_and_none_is_lost(tmp_path: Path) -> None:
    async def run() -> None:
        nodes = [
            {"timing": "h200/llama-3.1-8b", "max_num_seqs": 16, "count": 2},
            {"timing": "h200/llama-3.1-8b", "max_num_seqs": 8, "speed": 0.25},
        ]
        file = tmp_path / "fleet.json"
        setting = Setting(lw.Engine(), nodes=nodes)
        async with AsyncExitStack() as stack:
            servers: list[MockServer] = fleet(
                setting, "fcfs", None, Serving(port=0, speed=8.0, force_usage=True)
            )
            for server in servers:
                await stack.enter_async_context(server)
            addresses = [server.url.removeprefix("http://") for server in servers]
            kinds = [{**nodes[0]}, {**nodes[0]}, {**nodes[1]}]
            for kind in kinds:
                kind.pop("count", None)
            file.write_text(
                yaml.safe_dump(
                    [
                        {"address": address, **kind}
                        for address, kind in zip(addresses, kinds, strict=True)
                    ]
                )
            )
            logs = {
                address: one.keep_log() for address, one in zip(addresses, servers, strict=True)
            }
            chosen: dict[int, str] = {}
            endpoints = Endpoints(file, described)
            async with behind(addresses, endpoints=endpoints, policy="jsew") as (
                picker,
                _,
                session,
            ):
                pick_of = picker.pick

                async def pick(body: bytes, *rest: Any) -> Pick:
                    found = await pick_of(body, *rest)
                    chosen[len(yaml.safe_load(body)["prompt"])] = found.endpoint
                    return found

                picker.pick = pick  # type: ignore[method-assign]

                async def one(number: int) -> None:
                    ids = list(range(number + 1))  # its length is the request's name
                    tokens = 1 + 7 * number % 40
                    body = {
                        "prompt": ids, "max_tokens": tokens, "ignore_eos": True,
                        "stream": number % 4 > 0,
                    }  # fmt: skip
                    async with session.post("/v1/completions", json=body) as answer:
                        assert answer.status == 200
                        said = (await answer.read()).decode()
                    text = "".join(re.findall(r'"text": "([^"]*)"', said))
                    assert text == Prompt.of_ids(ids).answer().text(tokens)
                    assert f'"completion_tokens": {tokens}' in said

                await limited(240, 48, one)
            served = {row.prompt_tokens: address for address, log in logs.items() for row in log}
            assert sum(map(len, logs.values())) == len(served) == 240
            assert served == chosen
            counts = [len(log) for log in logs.values()]
            # four times slower, with half of the seats: by how much a busy machine decides too
            assert counts[2] < 0.8 * min(counts[:2])
            # what the picker heard of answers' lengths
            assert picker.metrics.text().count(b"lengthwise_epp_picks_total{") == 3

    asyncio.run(run())


def test_bytes_arrive_as_they_were_sent_and_broken_streams_leak_nothing() -> None:
    async def run() -> None:
        async with Backend(1) as first, Backend(2) as second:
            addresses = [first.address, second.address]
            async with behind(addresses, policy="least-tokens") as (picker, _, session):
                rng = random.Random(3)

                async def one(number: int) -> None:
                    data = rng.randbytes((0, 10, 1000, 65_536, 2**20, 2**21)[number % 6])
                    async with session.post("/v1/completions", data=io.BytesIO(data)) as answer:
                        assert answer.status == 200
                        said = await answer.read()
                        assert answer.headers["x-got"] == hashlib.sha256(data).hexdigest()
                        assert answer.headers["x-sent"] == hashlib.sha256(said).hexdigest()
                        assert answer.headers["x-by"] in addresses

                await limited(120, 16, one)
                assert first.served + second.served == 120
                # nobody outside says where a request goes
                spoofed = {"x-gateway-destination-endpoint": "127.0.0.1:9"}
                async with session.post("/v1/completions", data=b"{", headers=spoofed) as answer:
                    assert answer.status == 200 and answer.headers["x-by"] in addresses
                # clients that leave: before an answer's end, and before their request's
                first.hold, second.hold = asyncio.Event(), asyncio.Event()
                open_ = [await session.post("/v1/completions", data=b"{}") for _ in range(20)]
                assert picker.under_way > 5  # some answers are empty, and over
                for answer in open_:
                    answer.close()
                await until(lambda: picker.under_way == 0)

                async def half() -> AsyncIterator[bytes]:
                    yield b"x" * 1000
                    await asyncio.sleep(60)

                tasks = [
                    asyncio.create_task(session.post("/v1/completions", data=half()))
                    for _ in range(10)
                ]
                await asyncio.sleep(0.3)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                first.hold, second.hold = None, None
                await limited(10, 5, one)

    asyncio.run(run())


def test_an_endpoint_dies_and_comes_back() -> None:
    async def run() -> None:
        async with Backend(1) as first, AsyncExitStack() as stack:
            second = await stack.enter_async_context(Backend(2))
            addresses = [first.address, second.address]
            async with behind(addresses, policy="round-robin") as (picker, _, session):

                async def one(number: int) -> int:
                    async with session.post("/v1/completions", data=b"{}") as answer:
                        await answer.read()
                        return answer.status

                assert set(await limited(20, 4, one)) == {200}
                await stack.aclose()
                # those that are sent before the picker knows are refused by Envoy, in full
                assert set(await limited(20, 4, one)) <= {200, 503}
                await until(lambda: picker.ready == [first.address])
                before = first.served
                assert set(await limited(20, 4, one)) == {200}
                assert first.served == before + 20
                port = int(second.address.rpartition(":")[2])
                second = await stack.enter_async_context(Backend(2, port))
                await until(lambda: len(picker.ready) == 2)
                assert set(await limited(20, 4, one)) == {200} and second.served >= 9
                await first.runner.cleanup()
                await stack.aclose()
                await until(lambda: not picker.ready)
                async with session.post("/v1/completions", data=b"{}") as answer:
                    assert answer.status == 503
                    assert (await answer.json())["error"]["message"] == "no endpoint is ready"

    asyncio.run(run())


@pytest.mark.parametrize("fail_open", [True, False])
def test_a_picker_is_killed_and_started_again(tmp_path: Path, fail_open: bool) -> None:
    (port,) = free_ports(1)

    def start(*more: str) -> subprocess.Popen[str]:
        code = "from lengthwise.training.cli import main; main()"
        command = [sys.executable, "-c", code, "serve-epp", "--port", str(port), *more]
        process = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        assert process.stderr is not None
        assert "endpoint picker on" in process.stderr.readline()
        return process

    async def run() -> None:
        async with AsyncExitStack() as stack:
            backends = [await stack.enter_async_context(Backend(seed)) for seed in range(2)]
            addresses = [one.address for one in backends]
            # a policy that always takes the first, so that round robin is seen to be another's
            first = tmp_path / "first.py"
            first.write_text("def score(kv_utilization):\n    return 0 * kv_utilization\n")
            only = ("--endpoints", ",".join(addresses), "--router", f"{first}:score")
            process = await asyncio.to_thread(start, *only)
            envoy = Envoy(addresses, picker=port, fail_open=fail_open)
            await asyncio.to_thread(envoy.__enter__)
            stack.callback(envoy.__exit__, None, None, None)
            session = await stack.enter_async_context(aiohttp.ClientSession(envoy.url))

            async def ask(count: int) -> tuple[set[int], list[int]]:
                before = [one.served for one in backends]
                statuses = set()
                for _ in range(count):
                    async with session.post("/v1/completions", data=b"{}") as answer:
                        statuses.add(answer.status)
                        await answer.read()
                return statuses, [one.served - b for one, b in zip(backends, before, strict=True)]

            try:
                await asyncio.sleep(0.5)
                assert await ask(10) == ({200}, [10, 0])
                process.kill()
                await asyncio.to_thread(process.wait)
                statuses, shares = await ask(10)
                if fail_open:
                    assert statuses == {200} and shares == [5, 5]
                else:
                    assert statuses <= {500, 503} and shares == [0, 0]
                process.communicate()
                process = await asyncio.to_thread(start, *only)
                for _ in range(50):  # Envoy connects again in its own time
                    statuses, shares = await ask(4)
                    if (statuses, shares) == ({200}, [4, 0]):
                        break
                    await asyncio.sleep(0.2)
                assert (statuses, shares) == ({200}, [4, 0])
            finally:
                process.send_signal(signal.SIGTERM)
                _, said = await asyncio.to_thread(process.communicate)
            assert process.returncode == 0 and "Traceback" not in said

    asyncio.run(run())


def test_answers_that_the_picker_does_not_see_count_until_their_end() -> None:
    async def run() -> None:
        async with Backend(1) as only:
            only.hold = asyncio.Event()
            options: dict[str, Any] = {"envoy": {"answers": False}}
            async with behind([only.address], **options) as (picker, _, session):
                open_ = [await session.post("/v1/completions", data=b"{}") for _ in range(10)]
                await asyncio.sleep(0.2)
                assert picker.under_way > 5  # some answers are empty, and over
                only.hold.set()
                for answer in open_:
                    await answer.read()
                await until(lambda: picker.under_way == 0)
                await until(lambda: b'end="answered"} 10.0' in picker.metrics.text())

    asyncio.run(run())


def test_shed_requests_are_429_to_their_clients() -> None:
    async def run() -> None:
        async with Backend(1) as only:
            only.hold = asyncio.Event()
            async with behind([only.address], shed_above=3) as (picker, _, session):
                open_: list[aiohttp.ClientResponse] = []
                while picker.under_way < 3:
                    open_.append(await session.post("/v1/completions", data=b"{}"))
                async with session.post("/v1/completions", data=b"{}") as answer:
                    assert answer.status == 429
                    assert (await answer.json())["error"]["code"] == 429
                only.hold.set()
                for one in open_:
                    await one.read()
                await until(lambda: picker.under_way == 0)
                async with session.post("/v1/completions", data=b"{}") as answer:
                    assert answer.status == 200

    asyncio.run(run())


def test_requests_that_wait_at_the_picker_are_answered_in_their_turn() -> None:
    """Longer than Envoy waits for a message: bodies that are streamed have no such limit."""

    async def run() -> None:
        async with Backend(1) as only:
            only.hold = asyncio.Event()
            options: dict[str, Any] = {
                "hold_above": 2, "queue": 4, "queue_timeout_s": 60.0,
                "envoy": {"message_timeout": "0.2s"},
            }  # fmt: skip
            async with behind([only.address], **options) as (picker, _, session):
                open_: list[aiohttp.ClientResponse] = []
                while picker.under_way < 2:  # some answers are empty, and over
                    open_.append(await session.post("/v1/completions", data=b"{}"))
                late = [
                    asyncio.create_task(session.post("/v1/completions", data=b"{}"))
                    for _ in range(4)
                ]
                await until(lambda: len(picker.queue) == 4)
                served = only.served
                async with session.post("/v1/completions", data=b"{}") as answer:
                    assert answer.status == 429
                    assert int(answer.headers["retry-after"]) >= 1
                late[1].cancel()  # its client leaves
                await until(lambda: len(picker.queue) == 3)
                await asyncio.sleep(0.5)
                assert only.served == served and not any(task.done() for task in (late[0], late[2]))
                only.hold.set()
                for task in (late[0], late[2], late[3]):
                    answer = await task
                    assert answer.status == 200
                    await answer.read()
                for one in open_:
                    await one.read()
                assert only.served == served + 3 and len(picker.queue) == 0

    asyncio.run(run())


def test_the_configuration_in_the_documentation_is_one(tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    (text,) = [one for one in blocks if "ext_proc" in one]
    file = tmp_path / "envoy.yaml"
    file.write_text(text)
    command = [str(binary()), "--mode", "validate", "-c", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
