"""The mock server: its answers, its metrics and its clients, and the simulator beside it."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pandas as pd
import pytest
from prometheus_client.parser import text_string_to_metric_families

import lengthwise as lw
from lengthwise.errors import InputError
from lengthwise.eval.mock import fleet
from lengthwise.eval.setting import Setting
from lengthwise.serving.mock import metrics
from lengthwise.serving.mock.lengths import lengths
from lengthwise.serving.mock.server import MockServer, Serving
from lengthwise.serving.mock.text import Prompt
from lengthwise.serving.vllm.environment import cache_folder
from lengthwise.workload import Workload

CHAT = {"messages": [{"role": "user", "content": "What is a queue?"}]}


def server(policy: str = "fcfs", predictor: Any = None, engine: Any = None, **options: Any) -> Any:
    given = Serving(**{"port": 0, "speed": 20.0, **options})
    (made,) = fleet(Setting(engine or lw.Engine()), policy, predictor, given)
    return made


def served(made: MockServer, clients: Callable[[aiohttp.ClientSession], Awaitable[Any]]) -> Any:
    """What clients found."""

    async def run() -> Any:
        async with made, aiohttp.ClientSession(made.url) as session:
            return await clients(session)

    return asyncio.run(run())


async def post(session: aiohttp.ClientSession, path: str, **body: Any) -> tuple[int, Any]:
    async with session.post(f"/v1/{path}", json=body) as answer:
        return answer.status, await answer.json()


async def events(session: aiohttp.ClientSession, path: str, **body: Any) -> list[Any]:
    async with session.post(f"/v1/{path}", json={**body, "stream": True}) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        lines = (await answer.read()).decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


@pytest.mark.parametrize("policy", ["fcfs", "srtf+guard"])
def test_it_serves_as_the_simulator_says(policy: str) -> None:
    rng = np.random.default_rng(7)
    count, rate, speed = 200, 60.0, 8.0
    sent_s = np.cumsum(rng.exponential(1 / rate, count)) / speed
    sizes = rng.integers(1, 300, (count, 2)).tolist()
    engine = lw.Engine(
        max_num_seqs=16, max_num_batched_tokens=512, async_scheduling=True,
        enable_prefix_caching=True,
    )  # fmt: skip

    made = server(policy, "oracle", engine, speed=speed)

    async def clients(session: aiohttp.ClientSession) -> Any:
        log, began = made.keep_log(), time.monotonic()

        async def one(number: int) -> tuple[int, float]:
            await asyncio.sleep(sent_s[number] - (time.monotonic() - began))
            prompt, output = sizes[number]
            start = time.monotonic()
            # all prompts differ from their first token on
            ids = [number, *rng.integers(0, 1000, prompt - 1).tolist()]
            body = {"prompt": ids, "max_tokens": output, "ignore_eos": True}
            if number % 2:
                said = await events(session, "completions", **body)
                tokens = len(said)
            else:
                _, said = await post(session, "completions", **body)
                tokens = said["usage"]["completion_tokens"]
            assert tokens == output
            return number, (time.monotonic() - start) * speed

        return log, await asyncio.gather(*map(one, range(count)))

    log, waited = served(made, clients)
    assert len(log) == len(waited) == count and {row.finish_reason for row in log} == {"length"}
    frame = pd.DataFrame(log).sort_values("arrival_s", kind="stable").reset_index(drop=True)
    columns = ["arrival_s", "prompt_tokens", "output_tokens"]
    workload = Workload.from_frame(frame[columns])
    told = lw.simulate(workload, policy, "oracle", engine).requests
    assert told["finish_s"].tolist() == frame["finish_s"].tolist()
    assert told["first_token_s"].tolist() == frame["first_token_s"].tolist()
    # nobody had an answer before its time
    took = np.sort(frame["finish_s"] - frame["arrival_s"])
    found = np.sort([seconds for _, seconds in waited])
    assert (found >= took).all()


def test_answers_are_as_long_as_they_are_asked_to_be() -> None:
    async def clients(session: aiohttp.ClientSession) -> Any:
        found = {}
        for path, body in (
            ("completions", {"prompt": "What is a queue?"}),
            ("chat/completions", CHAT),
        ):
            for name, more in (
                ("limited", {"max_tokens": 7, "ignore_eos": True}),
                ("told", {"max_tokens": 50, "vllm_xargs": {"output_tokens": 5}}),
                ("cut", {"max_tokens": 4, "vllm_xargs": {"output_tokens": 5}}),
                ("drawn", {"max_tokens": 2000}),
                ("least", {"max_tokens": 2000, "min_tokens": 45}),
            ):  # fmt: skip
                _, whole = await post(session, path, **body, **more)
                chunks = await events(
                    session, path, **body, **more, stream_options={"include_usage": True}
                )
                found[path, name] = whole, chunks
        async with session.post(
            "/v1/completions",
            json={"prompt": "a", "max_tokens": 9},
            headers={"x-output-tokens": "3"},
        ) as answer:
            found["header"] = (await answer.json())["usage"]["completion_tokens"]
        _, found["default"] = await post(session, "completions", prompt="a")
        return found

    found = served(server(output_tokens="constant:40"), clients)
    expected = {
        "limited": (7, "length"), "told": (5, "stop"), "cut": (4, "length"),
        "drawn": (40, "stop"), "least": (45, "stop"),
    }  # fmt: skip
    assert found.pop("header") == 3
    assert found.pop("default")["usage"]["completion_tokens"] == 16  # OpenAI's own default
    for (path, name), (whole, chunks) in found.items():
        tokens, reason = expected[name]
        choice, usage = whole["choices"][0], whole["usage"]
        assert (usage["completion_tokens"], choice["finish_reason"]) == (tokens, reason)
        *said, last = chunks
        assert last["choices"] == [] and last["usage"] == usage
        assert [one["choices"][0]["finish_reason"] for one in said[-2:]] == [None, reason]
        if path == "completions":
            assert usage["prompt_tokens"] == 4
            assert "".join(one["choices"][0]["text"] for one in said) == choice["text"]
            assert len(said) == tokens and len(choice["text"]) == 4 * tokens
        else:
            opening, *said = (one["choices"][0]["delta"] for one in said)
            assert opening == {"role": "assistant", "content": ""}
            assert "".join(one["content"] for one in said) == choice["message"]["content"]
        assert {one["object"] for one in chunks} == {
            "text_completion" if path == "completions" else "chat.completion.chunk"
        }


def test_bad_requests_are_refused_as_vllm_does() -> None:
    bad: list[tuple[str, bytes, int, str]] = [
        ("completions", b"{", 400, "no JSON"),
        ("completions", b"[" * 2000, 400, "no JSON"),
        ("completions", b"[]", 400, "no JSON object"),
        ("completions", b'{"prompt": "a", "model": "gpt"}', 404, "`gpt` does not exist"),
        ("completions", b'{"prompt": "a", "max_tokens": 0}', 400, "max_tokens"),
        ("completions", b'{"prompt": "a", "max_tokens": true}', 400, "max_tokens"),
        ("completions", b'{"prompt": "a", "max_tokens": 1000}', 400, "context length is 100 "),
        ("completions", b'{"prompt": ["a", "b"]}', 400, "one text"),
        ("completions", b'{"prompt": [1, -2]}', 400, "one text"),
        ("completions", b'{"prompt": "a", "n": 2}', 400, "one answer"),
        ("completions", b'{"prompt": "a", "vllm_xargs": {"output_tokens": "x"}}', 400, "output"),
        ("chat/completions", b'{"messages": []}', 400, "messages"),
        ("chat/completions", b'{"messages": [7]}', 400, "messages"),
        ("completions", b'{"prompt": "' + b"a" * 3000 + b'"}', 413, ""),
    ]  # fmt: skip

    async def clients(session: aiohttp.ClientSession) -> Any:
        for path, body, status, message in bad:
            async with session.post(f"/v1/{path}", data=body) as answer:
                assert answer.status == status, body[:80]
                if status != 413:
                    error = (await answer.json())["error"]
                    assert message in error["message"] and error["code"] == status
        # odd, but vLLM's own clients send as much
        status, _ = await post(
            session, "chat/completions",
            messages=[{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "x"}]},
                      {"role": None, "content": None}],
            max_tokens=2, priority=-3, vllm_xargs=None, stream_options=None, n=None,
        )  # fmt: skip
        return status

    made = server(engine=lw.Engine(max_model_len=100), most_body=2500)
    assert served(made, clients) == 200
    with pytest.raises(InputError, match="no predictor was given"):
        server("srtf")
    with pytest.raises(InputError, match="speed must be above 0"):
        server(speed=0.0)


def test_who_hangs_up_frees_the_engine_and_who_is_under_way_ends() -> None:
    made = server(engine=lw.Engine(max_num_seqs=4), speed=1.0)

    async def shown(session: aiohttp.ClientSession) -> dict[str, float]:
        async with session.get("/metrics") as answer:
            text = await answer.text()
        samples = [one for each in text_string_to_metric_families(text) for one in each.samples]
        return {
            one.name.removeprefix("vllm:") + one.labels.get("finished_reason", ""): one.value
            for one in samples
        }

    async def clients(session: aiohttp.ClientSession) -> Any:
        long = {"prompt": "a", "max_tokens": 100_000, "ignore_eos": True}
        tasks = [asyncio.create_task(post(session, "completions", **long)) for _ in range(3)]
        streams = [
            await session.post("/v1/completions", json={**long, "stream": True}) for _ in range(3)
        ]
        await streams[0].content.readany()
        while (before := await shown(session))["num_requests_running"] < 4:
            await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        for stream in streams:
            stream.close()
        while made._driver.under_way:
            await asyncio.sleep(0.01)
        after = await shown(session)
        last = asyncio.create_task(
            post(session, "completions", prompt="a", max_tokens=30, ignore_eos=True)
        )
        while not made._driver.under_way:
            await asyncio.sleep(0.001)
        draining = asyncio.create_task(made.drain(60))
        await asyncio.sleep(0)
        refused, _ = await post(session, "completions", prompt="a", max_tokens=1)
        async with session.get("/health") as health:
            pass
        return before, after, refused, health.status, await last, await draining

    before, after, refused, health, (status, _), left = served(made, clients)
    assert (before["num_requests_running"], before["num_requests_waiting"]) == (4, 2)
    assert before["kv_cache_usage_perc"] > 0
    assert (after["num_requests_running"], after["num_requests_waiting"]) == (0, 0)
    assert after["kv_cache_usage_perc"] == 0 and after["request_success_totalabort"] == 6
    assert (refused, health, status, left) == (503, 503, 200, 0)


def test_prompts_that_begin_alike_share_blocks() -> None:
    made = server(engine=lw.Engine(enable_prefix_caching=True))
    same = "This is what all of them begin with, and it is longer than a block of tokens. " * 4

    async def clients(session: aiohttp.ClientSession) -> str:
        for end in ("one", "another"):
            await post(session, "completions", prompt=same + end, max_tokens=1)
        async with session.get("/metrics") as answer:
            return await answer.text()

    text = served(made, clients)
    (hits,) = re.findall(r"^vllm:prefix_cache_hits_total\S* (\S+)$", text, re.M)
    assert float(hits) == len(same) // 64 * 16


def test_lengths_have_the_means_that_they_say() -> None:
    draws = (np.arange(100_000) + 0.5) / 100_000
    for spec, mean, deviation in (
        ("constant:200", 200, 0), ("lognormal:200,cv=0.5", 200, 100), ("geometric:50", 50, 49.5),
    ):  # fmt: skip
        drawn = np.array([*map(lengths(spec), draws.tolist())])
        assert drawn.mean() == pytest.approx(mean, rel=0.01)
        assert drawn.std() == pytest.approx(deviation, rel=0.02)
    assert lengths("geometric:1")(0.999) == 1
    preset = lw.Workload.preset("azure-conv-2023", requests=1000)["output_tokens"]
    assert lengths("azure-conv-2023")(0.5) == pytest.approx(np.median(preset), rel=0.3)
    for bad in ("constant", "lognormal:200,cv=x", "geometric:0", "constant:5,cv=1", "nothing"):
        with pytest.raises(InputError):
            lengths(bad)


def test_tokens_of_texts_and_ids() -> None:
    assert [Prompt.of_text(text).tokens for text in ("", "a", "abcd", "abcde", "ü" * 4)] == [
        1,
        1,
        1,
        2,
        2,
    ]
    assert Prompt.of_ids([1, 2, 3]).tokens == 3
    one, other = Prompt.of_text("a" * 128 + "b" * 64), Prompt.of_text("a" * 128 + "c" * 64)
    assert one.block_keys(16)[:2] == other.block_keys(16)[:2]
    assert one.block_keys(16)[2] != other.block_keys(16)[2]
    # blocks that read alike are not the same where what stands before them is not
    assert len({*one.block_keys(16)}) == 3
    assert one.answer().text(20) != other.answer().text(20)


def test_metrics_have_the_names_and_buckets_of_vllm() -> None:
    folder = cache_folder() / "vllm-0.33.0" / "vllm" / "v1" / "metrics"
    if not folder.is_dir():
        pytest.skip("the files of vLLM 0.33.0 are not there")
    names = set(re.findall(r'name="vllm:(\w+)"', (folder / "loggers.py").read_text()))
    ours = {*metrics.GAUGES, *metrics.COUNTERS, *metrics.HISTOGRAMS}
    assert ours <= names and "request_success" in names
    buckets = {
        node.target.id: ast.literal_eval(node.value)
        for node in ast.walk(ast.parse((folder / "buckets.py").read_text()))
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Tuple)
        and isinstance(node.target, ast.Name)
    }  # fmt: skip
    assert buckets["REQUEST_LATENCY_BUCKETS"] == metrics.LATENCY
    assert buckets["TIME_TO_FIRST_TOKEN_BUCKETS"] == metrics.FIRST_TOKEN
    assert buckets["INTER_TOKEN_LATENCY_BUCKETS"] == metrics.BETWEEN_TOKENS


def test_the_command_serves_until_it_is_told_and_keeps_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    code = "from lengthwise.training.cli import main; main()"
    command = [sys.executable, "-c", code, "mock-server", "--replicas", "2", "--port", "0", "--log",
               str(log), "--speed", "5", "--policy", "sjf", "--predictor", "oracle"]  # fmt: skip
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            urls = [process.stdout.readline().split()[-1] for _ in range(2)]

            async def clients() -> None:
                async with aiohttp.ClientSession() as session:
                    for url in (*urls, urls[0]):
                        body = {"prompt": "a", "max_tokens": 12, "ignore_eos": True}
                        async with session.post(f"{url}/v1/completions", json=body) as answer:
                            assert answer.status == 200

            asyncio.run(clients())
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
    rows = pd.read_csv(log)
    assert sorted(rows["replica"]) == [0, 0, 1] and (rows["output_tokens"] == 12).all()
    assert len(lw.Workload.read(str(log))) == 3
