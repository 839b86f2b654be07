"""A routing policy in the router of vLLM's production stack: its books, and the real router."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from lengthwise.errors import InputError
from lengthwise.policies.load import load_policy
from lengthwise.policies.plugins.production_stack import StackRouting, Watch, main, routing_of
from lengthwise.serving.mock.server import MockServer, Serving
from lengthwise.serving.options import Engine
from lengthwise.serving.system import Node
from lengthwise.serving.timing.load import timing
from lengthwise.serving.vllm import VllmUnavailable
from tests.engines import stack_environment
from tests.engines.envoy import free_ports

ROOT = Path(__file__).resolve().parent.parent
URLS = ["http://a", "http://b"]
ENDPOINTS = [SimpleNamespace(url=url) for url in URLS]


def asked(routing: StackRouting, scope: dict[str, Any], **said: Any) -> str:
    """Where a request goes; the scrape says that the first engine is full."""
    stats = {"http://a": SimpleNamespace(num_running_requests=9, num_queuing_requests=9)}
    request = SimpleNamespace(scope=scope, headers={})
    return asyncio.run(routing.route_request(ENDPOINTS, stats, {}, request, said))


def test_a_request_counts_until_it_ends_and_only_where_it_is() -> None:
    routing = routing_of({"policy": "least-tokens"})
    first, second = {"state": {}}, {"state": {}}
    assert asked(routing, first, vllm_xargs={"predicted_tokens": 900}) == "http://a"
    assert asked(routing, second) == "http://b"
    # an engine did not take it: it is asked for again, and counts at the other alone
    assert asked(routing, first) == "http://a"
    assert [routing.ranking.unfinished(url) for url in URLS] == [1, 1]
    assert routing._numbers == 2
    for scope in (first, second, first):
        routing.ended(id(scope["state"]), SimpleNamespace(ended=False))  # type: ignore[arg-type]
    assert [routing.ranking.unfinished(url) for url in URLS] == [0, 0]


def test_what_engines_report_is_believed_where_it_is_asked_for() -> None:
    assert asked(routing_of({"policy": "jsq"}), {"state": {}}) == "http://a"
    believed = routing_of({"policy": "jsq", "reports": ["running_requests", "waiting_requests"]})
    assert asked(believed, {"state": {}}) == "http://b"


@pytest.mark.parametrize("how", ["whole", "raises", "cancelled"])
def test_the_end_of_a_request_is_heard_however_it_ends(how: str) -> None:
    routing = routing_of({"policy": "least-tokens"})
    judged: list[tuple[float, float]] = []
    routing._lengths.ended = lambda expected, n: judged.append((expected.answer, n))  # type: ignore[method-assign]
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        request = SimpleNamespace(scope=scope, headers={})
        said = {"vllm_xargs": {"predicted_tokens": 30}}
        await routing.route_request(ENDPOINTS, {}, {}, request, said)
        assert routing.ranking.unfinished("http://a") == 1
        await send({"type": "http.response.start", "status": 200})
        await send(
            {"type": "http.response.body", "body": b'{"usage": {"completion', "more_body": True}
        )
        if how == "raises":
            raise RuntimeError("no")
        if how == "cancelled":
            await asyncio.sleep(60)
        await send({"type": "http.response.body", "body": b'_tokens": 31}}'})

    async def send(message: Any) -> None:
        sent.append(message)

    async def run() -> None:
        watch = Watch(app, routing)
        task = asyncio.create_task(watch({"type": "http"}, None, send))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
    assert routing.ranking.unfinished("http://a") == 0 and not routing._under_way
    assert judged == ([(30, 31)] if how == "whole" else [])
    assert [one.get("body", b"") for one in sent][:2] == [b"", b'{"usage": {"completion']


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--lengthwise", '{"policy": "lest-tokens"}'], "did you mean 'least-tokens'"),
        (["--lengthwise={"], "takes JSON"),
        (["--lengthwise", "[]"], "takes an object"),
        (["--lengthwise", "{}"], "takes a policy"),
        (["--lengthwise", '{"polici": "jsq"}'], "did you mean 'policy'"),
        (["--lengthwise", '{"policy": "jsq", "reports": ["kv_use"]}'], "unknown report"),
        (["--lengthwise", '{"policy": "jsq", "seed": "a"}'], "must be a number"),
        (["--lengthwise", '{"policy": "jsq", "predictor": "/nowhere"}'], "/nowhere"),
        (["--lengthwise", '{"policy": "jsew"}'], "decode_tokens_per_s"),
        (["--port", "1"], "say what is to route"),
        (["--routing-logic", "session"], "leave it out"),
        (["--lengthwise", '{"policy": "jsq"}'], "git\\+https://github.com/vllm-project"),
    ],
)
def test_what_can_t_work_is_one_line(
    given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(given)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    with pytest.raises(InputError, match=said):
        raise InputError(line)


def test_our_class_stands_in_for_the_stack_s_and_hears_the_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a router with as much in it as is touched."""
    from lengthwise.policies.plugins import production_stack

    class Singleton(type): ...

    class Base(metaclass=Singleton):
        def __init__(self) -> None:
            raise AssertionError("the router's own is not begun")

    added: list[Any] = []
    started: list[list[str]] = []
    application = SimpleNamespace(
        app=SimpleNamespace(add_middleware=lambda cls, **given: added.append((cls, given))),
        main=lambda: started.append(list(sys.argv)),
    )
    name, logic = production_stack.INSTEAD
    routers = SimpleNamespace(**{name: Base, "initialize_routing_logic": None})
    for path, module in {
        "vllm_router": SimpleNamespace(app=application),
        "vllm_router.app": application,
        "vllm_router.routers": SimpleNamespace(routing_logic=routers),
        "vllm_router.routers.routing_logic": routers,
    }.items():
        monkeypatch.setitem(sys.modules, path, module)  # type: ignore[arg-type]
    monkeypatch.setattr(
        sys, "argv", ["x", "--port", "1", '--lengthwise={"policy": "jsq"}', "--host", "h"]
    )
    main()
    assert started == [["vllm-router", "--routing-logic", logic, "--port", "1", "--host", "h"]]
    ((middleware, given),) = added
    assert middleware is Watch and isinstance(given["routing"], StackRouting)
    made = getattr(routers, name)()
    assert isinstance(made, Base) and type(made).__name__ == "LengthwiseRouter"
    request = SimpleNamespace(scope={"state": {}}, headers={})
    went = asyncio.run(made.route_request(ENDPOINTS, {}, {}, request, {}))
    assert went in URLS and given["routing"].ranking.unfinished(went) == 1
    for missing in (name, "initialize_routing_logic"):
        bare = SimpleNamespace(**{n: v for n, v in vars(routers).items() if n != missing})
        modules = {"vllm_router.routers": SimpleNamespace(routing_logic=bare)}
        with monkeypatch.context() as patched:
            for path, module in modules.items():
                patched.setitem(sys.modules, path, module)  # type: ignore[arg-type]
            with pytest.raises(InputError, match=f"has no {name}; tried with"):
                production_stack.install(given["routing"])


async def routed(url: str, nodes: list[MockServer]) -> dict[str, Any]:
    """Where the real router sends requests while a long one is under way, and after it was left."""
    found: dict[str, Any] = {}
    logs = [one.keep_log() for one in nodes]
    async with aiohttp.ClientSession(url) as client:
        for _ in range(600):
            try:
                async with client.get("/v1/models") as answer:
                    if answer.status == 200:
                        break
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)

        def body(tokens: int, predicted: int, **more: Any) -> dict[str, Any]:
            return {"model": "mock", "prompt": "go", "max_tokens": tokens, "ignore_eos": True,
                    "vllm_xargs": {"predicted_tokens": predicted}, **more}  # fmt: skip

        async def ask() -> None:
            async with client.post("/v1/completions", json=body(3, 3)) as answer:
                assert answer.status == 200, await answer.text()
                assert (await answer.json())["usage"]["completion_tokens"] == 3

        long = await client.post("/v1/completions", json=body(50_000, 50_000, stream=True))
        await long.content.readany()
        for _ in range(6):
            await ask()
        found["while it is read"] = sorted(len(log) for log in logs)
        async with client.post(
            "/v1/chat/completions",
            json={"model": "mock", "messages": [{"role": "user", "content": "go"}],
                  "max_tokens": 40, "ignore_eos": True, "stream": True},
        ) as answer:  # fmt: skip
            found["stream"] = (await answer.read()).endswith(b"data: [DONE]\n\n")
        long.close()
        for _ in range(600):  # its engine hears of it, and then so have we
            if sum(len(log) for log in logs) == 8:
                break
            await asyncio.sleep(0.1)
        await asyncio.sleep(1)
        before = [len(log) for log in logs]
        await asyncio.gather(*(ask() for _ in range(20)))
        found["after"] = min(len(log) - n for log, n in zip(logs, before, strict=True))
    return found


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_real_router(tmp_path: Path) -> None:
    try:
        python, files = stack_environment.python(), stack_environment.files()
    except VllmUnavailable as error:
        pytest.skip(f"the production stack can't be had: {error}")
    (port,) = free_ports(1)

    async def run() -> dict[str, Any]:
        node = Node(Engine(), timing("h200/llama-3.1-8b"), load_policy("fcfs"))
        async with (
            MockServer(node, Serving(port=0)) as one,
            MockServer(node, Serving(port=0)) as two,
        ):
            command = [
                str(python), "-m", "lengthwise.policies.plugins.production_stack",
                "--lengthwise", '{"policy": "least-tokens"}', "--host", "127.0.0.1",
                "--port", str(port), "--service-discovery", "static",
                "--static-backends", f"{one.url},{two.url}", "--static-models", "mock,mock",
                "--engine-stats-interval", "1",
            ]  # fmt: skip
            with (tmp_path / "log").open("w") as log, subprocess.Popen(
                command, stdout=log, stderr=log, cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": f"{ROOT}:{files}"},
            ) as process:  # fmt: skip
                try:
                    return await routed(f"http://127.0.0.1:{port}", [one, two])
                except BaseException:
                    print((tmp_path / "log").read_text()[-4000:])
                    raise
                finally:
                    process.kill()

    found = asyncio.run(run())
    # the long answer counts until its client leaves: nobody else goes there, then all do again
    assert found["while it is read"] == [0, 6] and found["stream"]
    assert found["after"] >= 5
