"""The latency predictor's contract of llm-d: what is foretold, what is learned, what is refused."""

from __future__ import annotations

import asyncio
import io
import json
import math
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiohttp.test_utils import TestClient, TestServer

import lengthwise as lw
from lengthwise.errors import InputError
from lengthwise.eval.latency import FEWEST, Correction, LatencyModel, Seen
from lengthwise.eval.serve_latency import LatencyServer, serve

# 10 ms an iteration, 1 ms a prompt token, 2 ms a sequence, 0.1 ms a token of context
TIMING = lw.LinearTiming(
    base_s=0.01, per_prefill_token_s=0.001, per_sequence_s=0.002, per_context_token_s=0.0001
)
ENGINE = lw.Engine(max_num_seqs=4, max_num_batched_tokens=100, num_gpu_blocks=100, block_size=10)
ASK: dict[str, Any] = {
    "kv_cache_percentage": 0.5, "input_token_length": 200, "num_request_waiting": 4,
    "num_request_running": 1, "num_tokens_generated": 4, "prefix_cache_score": 0.7,
}  # fmt: skip


def model(**more: Any) -> LatencyModel:
    return LatencyModel(ENGINE, TIMING, **{"answer_tokens": 50.0, "quantile": None, **more})


def test_an_idle_server_computes_the_prompt_in_iterations_of_its_budget() -> None:
    ttft, tpot = model().plain(Seen(0.0, 150, 0, 0))
    # 100 tokens, and 50: an iteration each
    assert ttft == pytest.approx(2 * 0.01 + 0.15, rel=1e-6)
    assert tpot == pytest.approx(0.01 + 0.002 + 150 * 0.0001, rel=1e-6)
    cached, _ = model().plain(Seen(0.0, 150, 0, 0, cached_share=1.0))
    assert cached == pytest.approx(0.01 + 0.001, rel=1e-6)


def test_what_is_there_already_is_waited_for() -> None:
    alone = model().plain(Seen(0.0, 80, 0, 0))
    # 200 tokens of context decode beside it, and others' prompts come first
    beside = model().plain(Seen(0.2, 80, 0, 1))
    assert beside[0] == pytest.approx(alone[0] + 0.002 + 200 * 0.0001, rel=1e-6)
    assert beside[1] == pytest.approx(alone[1] + 0.002 + 200 * 0.0001, rel=1e-6)
    behind = model().plain(Seen(0.2, 80, 1, 1, prefill_tokens=300))
    assert behind[0] > beside[0] + 0.3 and behind[1] > beside[1]
    # who says nothing of tokens ahead: as many as the request has itself
    assert model().plain(Seen(0.2, 80, 1, 1))[0] == pytest.approx(
        model().plain(Seen(0.2, 80, 1, 1, prefill_tokens=80))[0], rel=1e-6
    )


def test_seats_are_waited_for_at_the_rate_at_which_answers_end() -> None:
    free, full = (model().plain(Seen(0.2, 10, 0, running))[0] for running in (3, 4))
    step = model()._step(5, 200 + 10)
    assert full - free == pytest.approx(50 / 4 * step + 0.002, rel=1e-3)
    soon = model().plain(Seen(0.2, 10, 0, 4, decode_tokens=8))[0]  # two tokens each are left
    assert full - soon == pytest.approx(48 / 4 * step, rel=1e-3)
    # a server that computes prompts alone has no seats to wait for, and nobody decodes beside it
    assert model().plain(Seen(0.2, 10, 0, 4, role="prefill"))[0] == pytest.approx(0.02, rel=1e-6)


def test_what_was_observed_corrects_what_follows() -> None:
    for quantile in (None, 0.9):
        made = model(quantile=quantile)
        rng = np.random.default_rng(0)
        seen = [
            Seen(0.1, int(rng.integers(10, 500)), 0, int(rng.integers(0, 4))) for _ in range(600)
        ]
        plain = [made.plain(one) for one in seen]
        for one, (ttft, tpot) in zip(seen, plain, strict=True):
            made.observe(one, 2 * ttft * math.exp(0.1 * rng.standard_normal()), 0.5 * tpot)
        assert made.observed == {"ttft": 600, "tpot": 600}
        ratios = np.array([np.divide(made.predict(one), made.plain(one)) for one in seen])
        expected = 2.0 if quantile is None else 2 * math.exp(0.128)
        np.testing.assert_allclose(ratios[:, 0].mean(), expected, rtol=0.02)
        np.testing.assert_allclose(ratios[:, 1], 0.5, rtol=0.01)


def test_little_or_nothing_corrects_nothing() -> None:
    made = model()
    one = Seen(0.1, 100, 0, 1)
    for _ in range(FEWEST - 1):
        made.observe(one, 5.0, 0.0)
    assert made.predict(one) == made.plain(one)
    made.observe(one, 5.0, 0.0)
    assert made.predict(one)[0] == pytest.approx(5.0, rel=0.01)
    assert made.predict(one)[1] == made.plain(one)[1]  # of which nothing was known
    wild = Correction(None)
    for _ in range(FEWEST):
        wild.add(np.array([1.0]), 50.0)
    assert wild.factor(np.array([1.0])) == pytest.approx(100.0)


# By HTTP


def asking(check: Any, quantile: float | None = 0.9) -> None:
    async def run() -> None:
        server = LatencyServer(model(quantile=quantile), quantile)
        async with TestClient(TestServer(server.app)) as client:
            await check(client)

    asyncio.run(run())


def test_the_contract_s_answers() -> None:
    async def check(client: Any) -> None:
        status = await (await client.get("/status")).json()
        assert status["is_ready"] is True and all(status["models_exist"].values())
        # of the kinds that llm-d's client knows, the one that it asks over HTTP
        kind = {"model_type": "lightgbm", "objective_type": "quantile", "quantile": 0.9}
        assert kind.items() <= status.items()
        answer = await client.post("/predict", json=ASK)
        said = await answer.json()
        assert answer.status == 200 and kind.items() <= said.items()
        assert set(said) == {"ttft_ms", "tpot_ms", "predicted_at", "last_model_load", *kind}
        ttft, tpot = model().plain(Seen(0.5, 200, 4, 1, 4, 0.7))
        assert (said["ttft_ms"], said["tpot_ms"]) == pytest.approx((1000 * ttft, 1000 * tpot))
        for path in ("/predict/bulk/strict", "/predict/bulk"):
            answer = await client.post(path, json={"requests": [ASK] * 3})
            said = await answer.json()
            assert answer.status == 200 and len(said["predictions"]) == 3
            assert (said["total_requests"], said["successful_predictions"]) == (3, 3)
            assert said["failed_predictions"] == 0 and said["processing_time_ms"] >= 0
            assert said.get("errors") == (None if path.endswith("strict") else [])
        entry = {**ASK, "actual_ttft_ms": 100.0, "actual_tpot_ms": 0, "timestamp": "whenever"}
        answer = await client.post("/add_training_data_bulk", json={"entries": [entry] * 150})
        assert answer.status == 202
        assert await answer.json() == {"message": "Accepted 150 training samples."}
        said = await (await client.post("/predict", json=ASK)).json()
        assert said["ttft_ms"] == pytest.approx(100.0, rel=0.01)
        assert said["tpot_ms"] == pytest.approx(1000 * tpot)
        info = await (await client.get("/model/download/info")).json()
        assert all(info["model_status"].values()) and info["model_type"] == "lightgbm"
        for path in ("/healthz", "/readyz", "/"):
            assert (await client.get(path)).status == 200
        assert (await client.post("/reload")).status == 200
        text = await (await client.get("/metrics")).text()
        assert "lengthwise_latency_predictions_total 8\n" in text
        assert 'lengthwise_latency_observed_total{of="ttft"} 150\n' in text

    asking(check)


def test_a_mean_says_so() -> None:
    async def check(client: Any) -> None:
        said = await (await client.get("/status")).json()
        assert (said["objective_type"], said["quantile"]) == ("mean", 0.5)

    asking(check, None)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"prefix_cache_score": None}, ["prefix_cache_score"]),
        ({"kv_cache_percentage": 1.5}, ["kv_cache_percentage"]),
        ({"num_request_waiting": -1}, ["num_request_waiting"]),
        ({"input_token_length": 2.5}, ["input_token_length"]),
        ({"input_token_length": True}, ["input_token_length"]),
        ({"prefill_tokens_in_flight": "9"}, ["prefill_tokens_in_flight"]),
        ({"input_token_length": 10**400}, ["input_token_length"]),
        ({"pod_type": 7}, ["pod_type"]),
    ],
)
def test_what_is_not_of_the_contract_is_refused(change: dict[str, Any], where: list[str]) -> None:
    async def check(client: Any) -> None:
        row = {**ASK, **change}
        if None in change.values():
            del row[where[0]]
        answer = await client.post("/predict", json=row)
        assert answer.status == 422
        (told,) = (await answer.json())["detail"]
        assert told["loc"] == ["body", *where]
        answer = await client.post("/predict/bulk/strict", json={"requests": [ASK, row]})
        assert answer.status == 422
        assert (await answer.json())["detail"][0]["loc"] == ["body", "requests", 1, *where]

    asking(check)


def test_bodies_that_are_none_are_refused() -> None:
    async def check(client: Any) -> None:
        for path in ("/predict", "/predict/bulk/strict", "/add_training_data_bulk"):
            for data in (b"{", b"[]", b"7", b"[" * 10_000, b'{"requests": 3, "entries": {}}'):
                answer = await client.post(path, data=data)
                assert answer.status == 422, (path, data[:20])
        assert (await client.post("/predict/bulk", json={"requests": []})).status == 422
        too_many = io.BytesIO(json.dumps({"requests": [ASK] * 10_001}).encode())
        assert (await client.post("/predict/bulk", data=too_many)).status == 422
        short = {"entries": [ASK]}  # without what became of it
        assert (await client.post("/add_training_data_bulk", json=short)).status == 422

    asking(check)


def test_it_serves_until_it_is_told_to_end() -> None:
    async def run() -> None:
        said: list[str] = []
        ended = asyncio.Event()
        server = LatencyServer(model())
        task = asyncio.create_task(serve(server, "127.0.0.1", 0, ended, said.append))
        while not said:
            await asyncio.sleep(0.01)
        url = said[0].split()[-1]
        async with aiohttp.ClientSession() as session, session.get(f"{url}/healthz") as answer:
            assert json.loads(await answer.read())["status"] == "ok"
        port = int(url.rpartition(":")[2])
        with pytest.raises(InputError, match="can't listen"):
            await serve(LatencyServer(model()), "127.0.0.1", port, ended, said.append)
        ended.set()
        await task

    asyncio.run(run())
