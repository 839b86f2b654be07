"""A real SGLang server on the CPU with the plugin: order, preemption, lengths, record."""

from __future__ import annotations

import asyncio
import json
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from lengthwise.predictors import make_predictor
from lengthwise.serving.vllm import VllmUnavailable
from tests.engines import live_model, live_server, sglang_environment

# the first test that needs the environment makes it, which may take long
pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(3000)]
Answer = tuple[float, int, dict[str, Any]]  # when it came, of how many tokens it was asked, and it


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """One seat, shortest remaining first; a short one displaces one with 30 tokens more to go."""
    folder, model = tmp_path_factory.mktemp("server"), tmp_path_factory.mktemp("model")
    prompts = [f"Tell me {'so ' * n}please" for n in range(40)]
    make_predictor("ridge").fit(prompts, 5 * np.arange(1, 41)).save(folder / "predictor")
    settings = {
        "policy": "srtf", "predictor": str(folder / "predictor"), "record": str(folder / "record"),
        "predict_timeout_s": 60.0,
    }  # fmt: skip
    try:
        with sglang_environment.serving(
            folder, live_model.make(model), settings, "--enable-priority-scheduling",
            "--schedule-low-priority-values-first", "--default-priority-value", "0",
            "--priority-scheduling-preemption-threshold", "30", "--max-running-requests", "1",
            "--enable-metrics",
        ) as url:  # fmt: skip
            yield url, folder
    except VllmUnavailable as error:
        pytest.skip(str(error))


async def _first(session: aiohttp.ClientSession, body: dict[str, Any], begun: asyncio.Event) -> Any:
    """The answer to a stream, which ``begun`` is told the beginning of."""
    async with session.post("/generate", json={**body, "stream": True}) as response:
        assert response.status == 200, await response.text()
        last = b""
        async for line in response.content:
            if line.startswith(b"data: {"):
                begun.set()
                last = line
    return json.loads(last.removeprefix(b"data: "))


def ask(
    url: str, first: tuple[str, int, float], *others: tuple[str, int, float | None]
) -> list[Answer]:
    """Answers as they came to requests: a text, tokens, what the client says of them. The others
    are sent one after the other as soon as the first one is being answered.
    """

    async def all_of_them() -> list[Answer]:
        begun = asyncio.Event()

        async def one(number: int, text: str, tokens: int, said: float | None) -> Answer:
            given: dict[str, Any] = {"max_new_tokens": tokens, "ignore_eos": True}
            if said is not None:
                given["custom_params"] = {"predicted_tokens": said}
            body = {"text": text, "sampling_params": given}
            if number == 0:
                answer = await _first(session, body, begun)
                return time.monotonic(), tokens, answer
            await begun.wait()
            await asyncio.sleep(0.02 * number)
            async with session.post("/generate", json=body) as response:
                assert response.status == 200, await response.text()
                answer = await response.json()
            return time.monotonic(), tokens, answer

        async with aiohttp.ClientSession(url) as session:
            asked = (one(number, *given) for number, given in enumerate((first, *others)))
            return sorted(await asyncio.gather(*asked), key=lambda one: one[0])

    return asyncio.run(all_of_them())


def retracted(answer: Answer) -> int:
    return int(answer[2]["meta_info"]["num_retractions"])


def whole(answers: list[Answer]) -> bool:
    return all(len(answer["output_ids"]) == tokens for _, tokens, answer in answers)


def test_its_hooks_are_in_the_places_where_sglang_looks(server: tuple[str, Path]) -> None:
    said = (server[1] / "log").read_text()
    hooked = re.findall(r"Applied 1 hook\(s\) to sglang\.srt\.managers\.(\S+) \(from: plug", said)
    assert {name.split(".", 1)[1] for name in hooked} == {
        "SchedulePolicy.__init__", "SchedulePolicy.calc_priority", "ScheduleBatch.release_req",
        "PrefillAdder.preempt_to_schedule", "TokenizerManager.__init__",
        "TokenizerManager._tokenize_one_request", "TokenizerManager._batch_tokenize_and_process",
        "TokenizerManager._handle_batch_output",
    }  # fmt: skip


def test_who_is_said_to_be_shortest_goes_first_and_displaces_a_long_one(
    server: tuple[str, Path],
) -> None:
    """Arrivals are 50, 10, 35, 20, 30 while a long one is served; all are as long as was said."""
    waiting = [("abc", n, n) for n in (50, 10, 35, 20, 30)]
    found = ask(server[0], ("abc", 1000, 1000), *waiting)
    assert [tokens for _, tokens, _ in found] == [10, 20, 30, 35, 50, 1000]
    assert whole(found)
    assert retracted(found[-1]) > 0 and not any(map(retracted, found[:4]))


def test_below_the_threshold_nobody_is_displaced(server: tuple[str, Path]) -> None:
    """What runs is held to have at most 25 tokens more to go than what comes."""
    found = ask(server[0], ("abc", 900, 40), ("abc", 20, 20), ("abc", 15, 15))
    assert [tokens for _, tokens, _ in found] == [900, 15, 20]
    assert whole(found) and not any(map(retracted, found))


def test_the_predictor_orders_whom_no_client_speaks_for(server: tuple[str, Path]) -> None:
    """Prompts that the predictor holds to be long come first and are served last; then the record
    has each of them with its prediction, and the server's own metrics page tells whose it was."""
    url, folder = server
    texts = [f"Tell me {'so ' * n}please" for n in (12, 1, 6)]
    waiting = [(text, 70 + i, None) for i, text in enumerate(texts)]
    found = ask(url, ("abc", 1000, 0.5), *waiting)  # it is taken for the shortest of all
    assert [tokens for _, tokens, _ in found] == [1000, 71, 72, 70]
    assert whole(found)

    def recorded() -> list[dict[str, Any]]:
        rows = live_server.rows(folder / "record")
        mine = [row for row in rows if 70 <= row["output_tokens"] <= 72]
        return mine if len(mine) == len(texts) else []  # it is written every two seconds

    rows = live_server.wait_for(recorded)
    rows.sort(key=lambda row: row["output_tokens"])
    assert [row["predicted_by"] for row in rows] == ["predictor"] * 3
    long, short, middle = (row["predicted_tokens"] for row in rows)
    assert 0 < short < middle < long <= 70
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    asked = [line for line in lines if line.startswith("lengthwise_predictions_total{")]
    assert any('source="predictor"' in line and float(line.split()[-1]) >= 3 for line in asked)
