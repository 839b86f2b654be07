"""The parts of the endpoint picker by hand: what endpoints say, its books, and its messages."""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import grpc
import pytest
from aiohttp import web
from envoy.extensions.filters.http.ext_proc.v3.processing_mode_pb2 import ProcessingMode
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from lengthwise.errors import InputError
from lengthwise.policies.plugins.calls import Call
from lengthwise.policies.plugins.gateways import endpoints as endpoints_module
from lengthwise.policies.plugins.gateways import picker as picker_module
from lengthwise.policies.plugins.gateways import prefixes as prefixes_module
from lengthwise.policies.plugins.gateways import scrape as scrape_module
from lengthwise.policies.plugins.gateways import server as server_module
from lengthwise.policies.plugins.gateways.answer import TAIL, Answer
from lengthwise.policies.plugins.gateways.endpoints import Endpoint, Endpoints, joined
from lengthwise.policies.plugins.gateways.ext_proc import (
    HEADER,
    MOST_MESSAGE,
    ExternalProcessor,
    Limits,
    _Stream,
)
from lengthwise.policies.plugins.gateways.metrics import SECONDS, PickerMetrics
from lengthwise.policies.plugins.gateways.picker import Options, Pick, Picker, Refusal, _read
from lengthwise.policies.plugins.gateways.prefixes import Prefixes, blocks
from lengthwise.policies.plugins.gateways.scrape import Scraper, Seen, Unreachable, read
from lengthwise.policies.plugins.gateways.server import PickerServer, Serving, serve
from lengthwise.policies.plugins.prompt_lengths import Expected
from lengthwise.policy import RoutingPolicy, Score
from tests import gateway_fleet
from tests.gateway_fleet import Desk, addresses, ended, vllm


def sample(metrics: PickerMetrics, name: str, **labels: str) -> float | None:
    return metrics._registry.get_sample_value(f"lengthwise_epp_{name}", labels)


# An answer


def test_an_answer_s_tokens_are_read_of_its_end_and_events_of_all() -> None:
    answer = Answer()
    assert (answer.status, answer.events, answer.ended) == (0, 0, False)
    assert answer.generated_tokens is None and answer.prompt_tokens is None
    assert answer.finish_reason is None
    answer.feed(b"data: {}\n\ndata:")  # the first of all begins an event too
    assert answer.events == 2
    for byte in (b"\n", b"d", b"a", b"t", b"a", b":", b" ", b"\n", b"dat", b"a", b":"):
        answer.feed(byte)
    assert answer.events == 4
    usage = b'"usage": {"prompt_tokens": 12, "completion_tokens" : 34}'
    for data, found in (
        (usage, (12, 34)),
        (usage + b" " * (TAIL - len(usage)), (12, 34)),
        # its first bytes are what is kept no longer
        (usage + b" " * (TAIL - 27), (None, 34)),
        (usage + b" " * TAIL, (None, None)),
        (usage + usage.replace(b"34", b"35"), (12, 35)),
        (usage.replace(b"34", b"1" * 12), (12, int("1" * 12))),
        (usage.replace(b"34", b"1" * 13), (12, int("1" * 12))),  # the engine's mistake
        (b'\\"completion_tokens": 9', (None, None)),  # a model that speaks of it
    ):
        whole, split = Answer(), Answer()
        whole.feed(data)
        for place in range(0, len(data), 100):
            split.feed(data[place : place + 100])
        assert (whole.prompt_tokens, whole.generated_tokens) == found
        assert (split.prompt_tokens, split.generated_tokens) == found
    ended = Answer()
    ended.feed(b'"finish_reason": null, "finish_reason": "length", "finish_reason":"stop"')
    assert ended.finish_reason == "stop"
    assert TAIL == 16_384


# Prefixes


def test_prefixes_by_hand() -> None:
    text = "".join(chr(97 + k % 26) for k in range(640))
    assert len(blocks(text, 16)) == 10 and len(blocks(text[:-1], 16)) == 9
    assert len(blocks(text, 8)) == 20 and blocks(text[:63], 16) == []
    assert blocks(text, 16)[:3] == blocks(text[:192], 16)
    # a block is all that stands up to its end
    assert blocks("x" * 64 + text, 16)[1] != blocks("y" * 64 + text, 16)[1]
    long = blocks("x" * 4 * 4099, 1)
    assert len(long) == 4096 == len(set(long))
    known = Prefixes(most=3)
    known.size["b"] = 32
    assert known.cached_tokens(text, ["a", "b"]) == {"a": 0.0, "b": 0.0}
    known.sent(text[:256], "b")  # two of its own size
    assert known.cached_tokens(text, ["b", "a"]) == {"b": 64.0, "a": 0.0}
    known.sent(text[:192], "a")
    assert known.cached_tokens(text, ["a"]) == {"a": 48.0}
    known.sent("z" * 64, "a")  # the last block of those before is forgotten first
    assert known.cached_tokens(text, ["a"]) == {"a": 32.0}
    assert known.cached_tokens("z" * 64, ["a"]) == {"a": 16.0}
    known.sent(text[:64], "a")  # used again: it is what stays
    known.sent("y" * 128, "a")
    assert known.cached_tokens(text, ["a"]) == {"a": 16.0}
    known.keep(["a"])
    assert known.size == {} and known.cached_tokens(text, ["b"]) == {"b": 0.0}
    assert known.cached_tokens(text, ["a"]) == {"a": 16.0}
    known.size["a"] = 16
    known.keep(iter(["a", "c"]))
    assert known.size == {"a": 16}
    assert prefixes_module.MOST_BLOCKS == 50_000 == Prefixes()._most


# Endpoints


def test_addresses_have_a_host_and_a_port(tmp_path: Path) -> None:
    for good in ("10.0.0.1:1", "10.0.0.1:65535", "[::1]:80"):
        assert list(Endpoints([good]).known) == [good]
    for bad in ("10.0.0.1:0", "10.0.0.1:65536", ":80", "10.0.0.1", "10.0.0.1:8x", "10.0.0.1:-1"):
        with pytest.raises(InputError, match="an endpoint is IP:PORT or NAME:PORT"):
            Endpoints([bad])
        (tmp_path / "a.json").write_text(json.dumps([bad]))
        with pytest.raises(InputError, match="an endpoint is IP:PORT or NAME:PORT"):
            Endpoints(tmp_path / "a.json")
    assert joined("10.0.0.1", 5) == "10.0.0.1:5" and joined("2001::1", 5) == "[2001::1]:5"


def test_names_are_all_that_dns_knows_and_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    known = ["10.0.0.2", "10.0.0.1", "10.0.0.2", "::1"]
    asked = []

    def getaddrinfo(host: str, port: int, **more: Any) -> list[Any]:
        asked.append((host, port, more))
        if not known:
            raise socket.gaierror("nobody")
        return [(0, 0, 0, "", (one, port)) for one in known]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    made = Endpoints(["fleet:80", "10.9.9.9:1"])
    assert list(made.known) == ["10.0.0.1:80", "10.0.0.2:80", "[::1]:80", "10.9.9.9:1"]
    assert asked == [("fleet", 80, {"type": socket.SOCK_STREAM})]
    assert asyncio.run(made.refresh()) is False
    known.pop()
    assert asyncio.run(made.refresh()) is True
    assert list(made.known) == ["10.0.0.1:80", "10.0.0.2:80", "10.9.9.9:1"]
    known.clear()
    assert asyncio.run(made.refresh()) is True and list(made.known) == ["10.9.9.9:1"]
    asked.clear()
    plain = Endpoints(["10.9.9.9:1"])
    assert asyncio.run(plain.refresh()) is False and asked == []


def test_a_file_is_read_again_when_it_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.json"
    file.write_text('["10.0.0.1:80"]')
    made = Endpoints(file)
    stamp = file.stat().st_mtime_ns
    assert asyncio.run(made.refresh()) is False
    file.write_text('["10.0.0.2:80"]')  # as long as before
    os.utime(file, ns=(stamp, stamp + 1))
    assert asyncio.run(made.refresh()) is True and list(made.known) == ["10.0.0.2:80"]
    assert asyncio.run(made.refresh()) is False
    file.write_text('["10.0.0.2:80"] ')
    os.utime(file, ns=(stamp, stamp + 1))  # longer, in the same moment
    read: list[Path] = []
    plain = made._read

    def noted(path: Path) -> list[dict[str, Any]]:
        read.append(path)
        return plain(path)

    monkeypatch.setattr(made, "_read", noted)
    assert asyncio.run(made.refresh()) is False and read == [file]
    file.write_text("[")
    os.utime(file, ns=(stamp, stamp + 2))
    for _ in range(2):  # it is told every time until it can be read
        with pytest.raises(InputError, match="neither YAML nor JSON"):
            asyncio.run(made.refresh())
    assert list(made.known) == ["10.0.0.2:80"]
    file.unlink()
    with pytest.raises(InputError, match="can't read"):
        asyncio.run(made.refresh())
    file.write_text("[]")
    assert asyncio.run(made.refresh()) is True and made.known == {}


def test_so_many_endpoints_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert endpoints_module.MOST == 10_000
    monkeypatch.setattr(endpoints_module, "MOST", 2)
    file = tmp_path / "a.json"
    file.write_text('["10.0.0.1:80", "10.0.0.2:80"]')
    assert len(Endpoints(file).known) == 2
    file.write_text('["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]')
    with pytest.raises(InputError, match="a list of up to 2 endpoints"):
        Endpoints(file)


def test_numbers_of_endpoints_are_above_0(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("- {address: 10.0.0.1:80, max_seats: 0.5, decode_tokens_per_s: '7'}")
    assert Endpoints(file).known["10.0.0.1:80"].numbers == {
        "max_seats": 0.5, "decode_tokens_per_s": 7,
    }  # fmt: skip
    for bad in ("0", "-1", "x", "true"):
        file.write_text(f"- {{address: 10.0.0.1:80, max_seats: {bad}}}")
        with pytest.raises(InputError, match="max_seats of an endpoint must be above 0"):
            Endpoints(file)
    for bad in ("- {max_seats: 3}", "- {address: 80}", "- [10.0.0.1:80]"):
        file.write_text(bad)
        with pytest.raises(InputError, match="an endpoint is an address"):
            Endpoints(file)


def test_slices_have_ready_endpoints_at_their_first_port(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    one = {
        "ports": [{"name": "unset"}, {"port": 8000}, {"port": 9000}],
        "endpoints": [
            {"addresses": ["10.0.0.1", "2001::1"], "conditions": {}},
            {"addresses": ["10.0.0.2"], "conditions": {"ready": None}},
            {"addresses": ["10.0.0.3"], "conditions": {"ready": False}},
        ],
    }
    file.write_text(json.dumps({"items": [one, {"ports": [{"port": 1}], "endpoints": None}]}))
    assert list(Endpoints(file).known) == ["10.0.0.1:8000", "[2001::1]:8000", "10.0.0.2:8000"]
    for bad in ({"ports": [], "endpoints": [{"addresses": ["10.0.0.1"]}]}, {"ports": 3}):
        file.write_text(json.dumps(bad))
        with pytest.raises(InputError, match="neither a list nor an EndpointSlice"):
            Endpoints(file)


# What endpoints say


def test_metrics_are_summed_shares_averaged_and_the_first_name_known_counts() -> None:
    text = vllm(3, 0, 0.5) + "sglang:num_running_reqs 9\nvllm:gpu_cache_usage_perc 0.9\n"
    assert read(text).features == {
        "running_requests": 3, "waiting_requests": 0, "kv_utilization": 0.5,
    }  # fmt: skip
    assert read("vllm:gpu_cache_usage_perc 0.9\nsglang:token_usage 0.1\n").features == {
        "kv_utilization": 0.9
    }
    for share, found in ((0.0, 0.0), (1.0, 1.0), (1.0001, 1.0), (1.0002, None)):
        features = read(f"sglang:token_usage {share}\n").features
        assert features.get("kv_utilization") == found
    assert read("vllm:kv_cache_usage_perc 0.2\nvllm:kv_cache_usage_perc 2.0\n").features == {}
    assert read("vllm:num_requests_running 0\n").features == {"running_requests": 0}
    info = 'vllm:cache_config_info{{a="b",block_size="{}",c="d"}} 1.0\n'
    assert [read(info.format(n)).block_size for n in (0, 1, 16, "None")] == [None, 1, 16, None]
    assert read("").features == {} and read("").block_size is None


def test_a_scrape_is_read_whole_or_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        said: dict[str, Any] = {"text": vllm(2), "status": 200}

        async def show(http: web.Request) -> web.StreamResponse:
            if said["status"] == 302:
                raise web.HTTPFound("/other")
            if said["text"] is None:
                await asyncio.sleep(30)
            return web.Response(text=said["text"], status=said["status"])

        async def other(http: web.Request) -> web.Response:
            return web.Response(text=vllm(9))

        app = web.Application()
        app.add_routes([web.get("/m", show), web.get("/other", other)])
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        here = Endpoint(f"127.0.0.1:{runner.addresses[0][1]}")
        async with Scraper("/m", timeout_s=0.15) as scraper:
            seen = await scraper.seen(here)
            assert seen.features["running_requests"] == 2 and seen.block_size == 32
            monkeypatch.setattr(scrape_module, "MOST_BYTES", len(vllm(2)))
            assert (await scraper.seen(here)).features["running_requests"] == 2
            for text, status, why in (
                (vllm(2) + " ", 200, "more than"), (vllm(2), 503, "status 503"),
                (vllm(2), 302, "status 302"), ("up 1\n", 200, "no metrics of an engine"),
                (None, 200, "no answer in time"),
            ):  # fmt: skip
                said.update(text=text, status=status)
                with pytest.raises(ValueError, match=why):
                    await scraper.seen(here)
            await runner.cleanup()
            with pytest.raises(Unreachable):
                await scraper.seen(here)

    assert scrape_module.MOST_BYTES == 8 * 2**20
    asyncio.run(run())


# The books


def body(**more: Any) -> bytes:
    return json.dumps({"prompt": "x" * 40, "max_tokens": 50, **more}).encode()


async def until(true: Callable[[], Any]) -> None:
    for _ in range(500):
        if true():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came true")


def test_who_was_sent_since_a_scrape_waits_there_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of the scrape's question: what was sent at that moment is not in its answer yet."""

    async def run() -> None:
        desk = Desk(monkeypatch)
        (here,) = addresses(1)
        async with desk.open(Endpoints([here]), policy="jsq") as picker:
            state = picker._states[here]
            for when in (101.0, 102.0, 103.0):
                desk.now[0] = when
                await picker.pick(b"", {})
            assert (state.waiting, state.asked_s, state.waiting_now) == (0.0, 100.0, 3.0)
            desk.said[here] = Seen({"waiting_requests": 7.0})
            desk.now[0] = 102.0
            desk.during[0] = lambda: desk.now.__setitem__(0, 110.0)  # the answer takes a while
            await picker._look(here)
            assert (state.waiting, state.asked_s, state.waiting_now) == (7.0, 102.0, 9.0)
            await picker.pick(b"", {})
            assert picker.router._replicas[here].reported["waiting_requests"] == 9.0
            desk.said[here] = Seen({"running_requests": 1.0})
            await picker._look(here)
            assert state.waiting is None and state.waiting_now is None
            assert picker.router._replicas[here].reported["running_requests"] == 1.0

    asyncio.run(run())


def test_a_pick_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    async def run() -> None:
        desk = Desk(monkeypatch)
        fleet = addresses(4)
        async with desk.open(
            Endpoints(fleet), policy="round-robin", fallbacks=2, default_tokens=20.0,
        ) as picker:  # fmt: skip
            rank = picker.router.rank_or_hold

            def ranked(candidates: Any, **told: Any) -> Any:
                seen.append((candidates, told))
                return rank(candidates, **told)

            monkeypatch.setattr(picker.router, "rank_or_hold", ranked)
            desk.now[0] = 107.0
            pick = await picker.pick(body(priority=-3), {"x-a": "b"})
            assert seen == [
                (fleet, {"prompt_tokens": 10.0, "predicted_tokens": 20.0, "priority": -3.0,
                         "arrival_s": 7.0, "deadline_s": math.inf, "now_s": 7.0}),
            ]  # fmt: skip
            assert (pick.endpoint, pick.fallbacks) == (fleet[0], tuple(fleet[1:3]))
            assert pick.header == ",".join(fleet[:3])
            assert (pick.arrival_s, pick.sent_s, pick.complete) == (7.0, 107.0, False)
            assert picker.router._replicas[fleet[0]].owed == {pick: 30.0}
            assert picker.under_way == 1 and list(picker._states[fleet[0]].here) == [pick]
            assert sample(picker.metrics, "requests_total", answer="picked") == 1
            assert sample(picker.metrics, "picks_total", endpoint=fleet[0]) == 1
            assert sample(picker.metrics, "decision_seconds_count") == 1
            # an answer is no longer than the client lets it be
            short = await picker.pick(body(max_tokens=3), {}, frozenset(fleet[2:]))
            assert seen[-1][0] == fleet[2:] and seen[-1][1]["predicted_tokens"] == 3.0
            assert seen[-1][1]["priority"] == 0.0
            assert short.endpoint == fleet[2] and short.header == ",".join(fleet[2:])
            assert picker.under_way == 2
            assert picker.ready == fleet

    asyncio.run(run())
    assert Pick("a", (), Call("", ""), Expected(1, 1), 0.0).header == "a"
    options = Options()
    assert (options.policy, options.default_tokens) == ("least-tokens", 256.0)
    assert (options.predict_timeout_s, options.scrape_interval_s, options.refresh_s) == (
        0.1, 0.5, 2.0,
    )  # fmt: skip
    assert (options.shed_above, options.fallbacks, options.seed) == (0, 0, 0)
    assert not options.dry_run and not options.record and not options.record_prompts


def test_a_decision_s_seconds_are_those_that_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        desk = Desk(monkeypatch)
        async with desk.open(Endpoints(addresses(1)), dry_run=True) as picker:
            of = picker._lengths.of

            async def slow(call: Call) -> Expected:
                desk.now[0] += 30.0  # 30 ms by the finer clock
                return await of(call)

            monkeypatch.setattr(picker._lengths, "of", slow)
            await picker.pick(b"", {})
            assert sample(picker.metrics, "decision_seconds_sum") == pytest.approx(0.03)
            assert sample(picker.metrics, "requests_total", answer="dry-run") == 1
            assert sample(picker.metrics, "requests_total", answer="picked") == 0

    asyncio.run(run())


def test_requests_are_counted_where_they_are_until_they_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run() -> None:
        desk = Desk(monkeypatch)
        a, b, c = addresses(3)
        async with desk.open(Endpoints([a, b, c]), policy="round-robin") as picker:

            def counts() -> list[tuple[int, int]]:
                return [
                    (len(picker._states[one].here), picker.router.unfinished(one))
                    for one in (a, b, c)
                ]

            picks = [await picker.pick(b"", {}) for _ in range(3)]
            assert counts() == [(1, 1)] * 3
            picker.served_by(picks[0], a)  # as it was told
            picker.served_by(picks[0], "10.9.9.9:1")  # nobody
            assert picks[0].endpoint == a and counts() == [(1, 1)] * 3
            picker.served_by(picks[0], b)
            assert picks[0].endpoint == b and counts() == [(0, 0), (2, 2), (1, 1)]
            picker.ended(picks[1])
            assert counts() == [(0, 0), (1, 1), (1, 1)]
            picker.served_by(picks[1], c)  # it ended before
            assert picks[1].endpoint == c and counts() == [(0, 0), (1, 1), (1, 1)]
            picker.ended(picks[0])
            picker.ended(picks[0])
            picker.ended(picks[2])
            assert counts() == [(0, 0)] * 3 and picker.under_way == 0
            for status, soon in ((200, False), (500, False), (502, True), (503, True), (504, True)):
                picker._soon[a].clear()
                picks[2].endpoint = a
                picker.answered(picks[2], status)
                assert picks[2].answer.status == status and picker._soon[a].is_set() is soon
            picks[2].endpoint = "gone"
            picker.answered(picks[2], 503)

    asyncio.run(run())


def test_only_whole_answers_are_learned_from_and_each_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    learned: list[Any] = []
    rows: list[Any] = []

    async def run() -> None:
        desk = Desk(monkeypatch)
        async with desk.open(
            Endpoints(addresses(2)), record=str(tmp_path / "log"), record_prompts=True
        ) as picker:
            monkeypatch.setattr(picker._lengths, "ended", lambda *a: learned.append(a))
            assert picker._rows is not None
            monkeypatch.setattr(picker._rows, "put", rows.append)
            broken = await picker.pick(b"", {})
            broken.answer.feed(b'"completion_tokens": 5')  # told as it goes, and then cut off
            broken.answer.status = 200
            picker.ended(broken)
            assert not broken.complete
            for status, tokens in ((500, 5), (200, 0), (0, 5)):
                picker.ended(ended(await picker.pick(b"", {}), tokens, status))
            assert learned == rows == []
            desk.now[0] = 104.5
            sent = body(
                model="m", temperature=0.5, session_id="s",
                vllm_xargs={"predicted_tokens": 30, "tenant": "t"},
            )  # fmt: skip
            good = await picker.pick(sent, {})
            picker.ended(ended(good, 7, reason="length"))
            picker.ended(good)
            assert learned == [(good.expected, 7)] and good.complete
            (row,) = rows
            assert row.pop("request_id").endswith("-4.500000")
            assert {name: value for name, value in row.items() if value is not None} == {
                "arrival_s": 4.5, "prompt": "x" * 40, "prompt_tokens": 10,
                "predicted_tokens": 30.0, "predicted_by": "client", "output_tokens": 7,
                "max_tokens": 50, "model": "m", "tenant": "t", "temperature": 0.5,
                "session_id": "s", "json_schema": 0.0, "finish_reason": "length",
            }  # fmt: skip
            plain = await picker.pick(json.dumps({"prompt": "y" * 7}).encode(), {})
            plain.answer.feed(b'"prompt_tokens": 9')
            picker.ended(ended(plain, 1, reason="content_filter"))
            row = rows[1]
            assert row["prompt_tokens"] == 9 and row["output_tokens"] == 1  # as the engine counted
            assert row["predicted_tokens"] is row["predicted_by"] is row["max_tokens"] is None
            assert row["finish_reason"] == "error" and row["model"] == ""

    asyncio.run(run())
    assert not list((tmp_path / "log").glob("*.parquet"))


def test_requests_are_shed_where_all_endpoints_have_so_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run() -> None:
        desk = Desk(monkeypatch)
        a, b = addresses(2)
        async with desk.open(Endpoints([a, b]), policy="round-robin", shed_above=2) as picker:
            picks = [await picker.pick(b"", {}) for _ in range(4)]
            for subset in (None, frozenset([a])):
                with pytest.raises(Refusal, match="as many requests as they may") as refused:
                    await picker.pick(b"", {}, subset)
                assert refused.value.status == 429
            picker.ended(picks[0])
            assert (await picker.pick(b"", {})).endpoint == a
            picker._states[a].up = picker._states[b].up = False
            with pytest.raises(Refusal, match="no endpoint is ready") as refused:
                await picker.pick(b"", {})
            assert refused.value.status == 503
            assert sample(picker.metrics, "requests_total", answer="429") == 2
            assert sample(picker.metrics, "requests_total", answer="503") == 1
            assert sample(picker.metrics, "requests_total", answer="picked") == 5

    asyncio.run(run())


def reads(*names: str) -> RoutingPolicy:
    """A router that reads features, and prefers where their sum is low."""
    space: dict[str, Any] = {}
    exec(f"def score({', '.join(names)}):\n    return {' + '.join(names)}", space)
    return RoutingPolicy(Score.from_function(space["score"]))


def test_backlogs_are_what_the_picker_has_sent_less_what_came_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run() -> None:
        desk = Desk(monkeypatch)
        policy = reads("prefill_backlog_tokens", "decode_backlog_tokens")
        a, b = addresses(2)
        async with desk.open(Endpoints([a, b]), policy=policy, default_tokens=8.0) as picker:
            waits, runs, late = [await picker.pick(body(), {}, frozenset([a])) for _ in range(3)]
            runs.answer.events, late.answer.events = 3, 11
            await picker.pick(body(), {}, frozenset([a, b]))
            said = {name: one.reported for name, one in picker.router._replicas.items()}
            # one whose prompt is to come; 8 tokens of it, 5 of the next, none of the last
            assert said[a]["prefill_backlog_tokens"] == 10.0
            assert said[a]["decode_backlog_tokens"] == 13.0
            assert said[b]["prefill_backlog_tokens"] == said[b]["decode_backlog_tokens"] == 0.0
            assert waits.answer.events == 0
            assert picker.predicts is True and picker._prefixes is None
        for name, told in (("least-tokens", False), ("jsq", True)):
            async with desk.open(Endpoints([a]), policy=name) as picker:
                await picker.pick(body(), {})
                assert "decode_backlog_tokens" not in picker.router._replicas[a].reported
                assert picker._waits is told

    asyncio.run(run())


def test_prefixes_are_counted_at_who_was_picked(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        desk = Desk(monkeypatch)
        a, b = addresses(2)
        desk.said[a] = Seen({"running_requests": 0.0}, block_size=8)
        async with desk.open(Endpoints([a, b]), policy="prefix-affinity") as picker:
            assert picker._prefixes is not None and picker._prefixes.size == {a: 8}
            await picker.pick(json.dumps({"prompt": "x" * 64}).encode(), {}, frozenset([b]))
            assert picker._prefixes.cached_tokens("x" * 64, [a, b]) == {a: 0.0, b: 16.0}
            picker.router.report(a, running_requests=1.0)
            again = await picker.pick(json.dumps({"prompt": "x" * 64}).encode(), {})
            assert again.endpoint == b
            picker.endpoints.known = {a: Endpoint(a)}
            picker._follow()
            assert picker._prefixes.cached_tokens("x" * 64, [b]) == {b: 0.0}

    asyncio.run(run())


def test_a_look_at_an_endpoint_by_hand(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        desk = Desk(monkeypatch)
        (a,) = addresses(1)
        (tmp_path / "a.json").write_text(json.dumps([{"address": a, "max_seats": 5}]))
        desk.said[a] = Seen({"running_requests": 3.0, "waiting_requests": 4.0})
        async with desk.open(
            Endpoints(tmp_path / "a.json"), policy=reads("free_seats", "waiting_requests"),
            scrape_interval_s=0.7, metrics_path="/m",
        ) as picker:  # fmt: skip
            state, said = picker._states[a], picker.router._replicas[a].reported
            assert said == {"max_seats": 5.0, "running_requests": 3.0, "waiting_requests": 4.0,
                            "free_seats": 2.0}  # fmt: skip
            assert state.up and state.unread == 0
            assert sample(picker.metrics, "endpoint_up", endpoint=a) == 1
            desk.said[a] = Seen({"running_requests": 9.0})
            await picker._look(a)
            assert said["free_seats"] == 0.0
            desk.said[a] = Seen({"kv_utilization": 0.5})
            await picker._look(a)
            assert said["free_seats"] == 0.0 and said["kv_utilization"] == 0.5
            desk.said[a] = ValueError("no metrics")
            for k in range(1, 7):
                state.waiting = 1.0 if k < 6 else None
                await picker._look(a)
                assert state.up and state.unread == k
                assert ("running_requests" in said) is (k < 5)
                assert (state.waiting is None) is (k >= 5)
            assert said == {"max_seats": 5.0, "free_seats": 0.0}
            desk.said[a] = Unreachable("refused")
            await picker._look(a)
            assert not state.up and state.unread == 7 and picker.ready == []
            assert sample(picker.metrics, "endpoint_up", endpoint=a) == 0
            desk.said[a] = Seen({"running_requests": 0.0})
            await picker._look(a)
            assert state.up and state.unread == 0 and said["free_seats"] == 5.0
            await picker._look("10.9.9.9:1")  # it is gone by now
            counts = [sample(picker.metrics, "scrapes_total", result=result)
                      for result in ("read", "unreadable", "unreachable")]  # fmt: skip
            assert counts == [4, 6, 1]
        assert desk.made == [("/m", 0.7), ("ended", 0.0)]
        for interval, timeout in ((0.05, 0.2), (30.0, 2.0)):
            async with desk.open(Endpoints([a]), scrape_interval_s=interval):
                assert desk.made[-1] == ("/metrics", timeout)

    asyncio.run(run())
    assert caplog.text.count("the metrics of 10.0.0.1:80 can't be read") == 1


def test_endpoints_that_come_and_go_are_followed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        desk = Desk(monkeypatch)
        a, b, c = addresses(3)
        desk.said[c] = Unreachable("refused")
        known = Endpoints([a, b])
        known.known = {one: Endpoint(one, {"max_seats": 4.0}) for one in (a, b)}
        async with desk.open(known, policy=reads("max_seats")) as picker:
            held = await picker.pick(b"", {}, frozenset([a]))
            watch = picker._watches[a]
            picker.endpoints.known = {b: Endpoint(b, {"max_seats": 6.0}), c: Endpoint(c)}
            picker._follow()
            assert list(picker._states) == list(picker._watches) == list(picker._soon) == [b, c]
            assert sample(picker.metrics, "endpoint_up", endpoint=a) is None
            assert sample(picker.metrics, "endpoint_up", endpoint=c) == 0
            assert picker.router._replicas[b].reported["max_seats"] == 6.0
            assert set(picker.router._replicas) == {b, c}
            await until(lambda: watch.cancelled() and picker._states[c].unread == 1)
            picker.served_by(held, b)  # which the gateway tried next
            assert picker.under_way == picker.router.unfinished(b) == 1
            picker.ended(held)
            assert picker.under_way == picker.router.unfinished(b) == 0
            assert picker.ready == [b]
        tasks = [*picker._watches.values(), picker._refreshing]
        assert all(task.done() for task in tasks)

    asyncio.run(run())
    assert "endpoint 10.0.0.3:80 does not say its max_seats, which count as 0" in caplog.text


def test_endpoints_that_can_t_be_read_stay_and_are_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        desk = Desk(monkeypatch)
        a, b = addresses(2)
        known = Endpoints([a])
        async with desk.open(known, refresh_s=0.005) as picker:
            tries = [0]

            async def refresh() -> bool:
                tries[0] += 1
                if tries[0] < 3:
                    raise InputError("no such file")
                known.known = {a: Endpoint(a), b: Endpoint(b)}
                return tries[0] == 4

            monkeypatch.setattr(known, "refresh", refresh)
            await until(lambda: tries[0] == 3)
            assert picker.ready == [a]  # it says that nothing is new
            await until(lambda: set(picker.ready) == {a, b})

    asyncio.run(run())
    assert caplog.text.count("the endpoints stay as they were: no such file") == 1


def test_a_picker_without_endpoints_is_synced_and_refuses(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[]")

    async def run() -> None:
        async with Picker(Endpoints(tmp_path / "a.json"), Options()) as picker:
            await asyncio.wait_for(picker.synced.wait(), 5)
            with pytest.raises(Refusal, match="no endpoint is ready"):
                await picker.pick(b"", {})

    asyncio.run(run())


def test_it_is_synced_once_every_endpoint_was_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        desk = Desk(monkeypatch)
        a, b, c = addresses(3)
        gate = asyncio.Event()
        desk.said[b] = Unreachable("refused")
        async with Picker(Endpoints([a, b, c]), Options(scrape_interval_s=0.03)) as picker:
            plain = picker._look

            async def look(address: str) -> None:
                if address == c:
                    await gate.wait()
                await plain(address)

            monkeypatch.setattr(picker, "_look", look)
            await until(lambda: picker.ready == [a] and picker._states[b].unread > 1)
            assert not picker.synced.is_set()
            gate.set()
            await asyncio.wait_for(picker.synced.wait(), 5)

    asyncio.run(run())


def test_an_endpoint_is_looked_at_each_interval_and_soon_when_it_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run() -> None:
        desk = Desk(monkeypatch)
        looks = [0]
        desk.during[0] = lambda: looks.__setitem__(0, looks[0] + 1)
        (a,) = addresses(1)
        async with desk.open(Endpoints([a]), scrape_interval_s=0.02) as picker:
            await until(lambda: looks[0] > 3)
            pick = await picker.pick(b"", {})
        looks[0] = 0
        async with desk.open(Endpoints([a])) as picker:  # every half a minute
            pick = await picker.pick(b"", {})
            await until(lambda: looks[0] == 1)
            for expected in (2, 3):
                picker.answered(pick, 503)
                await until(lambda n=expected: looks[0] >= n and not picker._soon[a].is_set())
                await asyncio.sleep(0.05)
                assert looks[0] == expected

    asyncio.run(run())


def test_an_endpoint_that_fails_in_the_last_moment_keeps_no_picker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run() -> None:
        desk = Desk(monkeypatch)
        async with desk.open(Endpoints(addresses(1))) as picker:
            pick = await picker.pick(b"", {})
            await asyncio.sleep(0.01)
            picker.answered(pick, 503)
        assert all(task.cancelled() for task in picker._watches.values())

    asyncio.run(asyncio.wait_for(run(), 10))


def test_a_router_is_told_what_endpoints_say_and_no_more(tmp_path: Path) -> None:
    for name, needs in (("free_seats", "max_seats"), ("max_seats", "max_seats"),
                        ("decode_tokens_per_s", "decode_tokens_per_s")):  # fmt: skip
        with pytest.raises(InputError, match=f"reads {name}: say {needs}, or the timing"):
            Picker(Endpoints(addresses(1)), Options(reads(name)))
        rows = [{"address": a, needs: 3} for a in addresses(2)]
        (tmp_path / "a.json").write_text(json.dumps(rows))
        Picker(Endpoints(tmp_path / "a.json"), Options(reads(name)))
        del rows[0][needs]  # all must say it
        (tmp_path / "a.json").write_text(json.dumps(rows))
        with pytest.raises(InputError, match=f"reads {name}"):
            Picker(Endpoints(tmp_path / "a.json"), Options(reads(name)))
    assert Picker(Endpoints(addresses(1)), Options("least-tokens")).predicts is True
    drawn = Picker(Endpoints(addresses(1)), Options("random", seed=7)).router.draws.random()
    assert drawn == random.Random(7).random()


@pytest.mark.parametrize(
    ("said", "prompt", "priority"),
    [
        (b'{"prompt": "ab", "priority": "4"}', "ab", 4.0),
        (b'{"prompt": "ab", "priority": true}', "ab", 0.0),
        (b'{"prompt": "ab", "priority": [1]}', "ab", 0.0),
        (b"", "", 0.0),
        (b'["ab"]', "", 0.0),
        (b"{", "", 0.0),
        (b'"prompt"', "", 0.0),
    ],
)
def test_a_body_is_read_or_is_nothing(said: bytes, prompt: str, priority: float) -> None:
    call, urgent, _ = _read(said, {"x-session-id": "s"})
    assert (call.text, urgent) == (prompt, priority)
    assert call.known["session_id"] == "s"  # of the headers, whatever the body is


def test_bodies_are_read_up_to_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    data = b'{"prompt": "ab"}'
    monkeypatch.setattr(picker_module, "READ_BODY", len(data))
    assert _read(data, {})[0].text == "ab"
    assert _read(data + b" ", {})[0].text == ""


def test_a_dry_run_s_line_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[Any] = []

    async def run() -> None:
        desk = Desk(monkeypatch)
        a, b = addresses(2)
        async with desk.open(Endpoints([a, b]), lines.append, fallbacks=1) as picker:
            pick = ended(await picker.pick(body(vllm_xargs={"predicted_tokens": 12.345}), {}), 9)
            picker.tell(pick, "r1")

    asyncio.run(run())
    assert lines == [
        {"request_id": "'r1'", "chosen": "10.0.0.1:80,10.0.0.2:80", "served": "10.0.0.1:80",
         "prompt_tokens": 10, "predicted_tokens": 12.3, "predicted_by": "client",
         "output_tokens": 9, "status": 200, "waited_s": 0.0},
    ]  # fmt: skip


# Messages


class Books:
    """A picker that picks ``10.0.0.1:80`` and keeps what it is told."""

    def __init__(self, **options: Any) -> None:
        self.metrics, self.options = PickerMetrics(), Options(**options)
        self.told: list[Any] = []
        self.refuses: Refusal | None = None

    async def pick(self, body: bytes, headers: Mapping[str, str], subset: Any) -> Pick:
        self.told.append(("pick", body, dict(headers), subset))
        if self.refuses is not None:
            raise self.refuses
        return Pick("10.0.0.1:80", ("10.0.0.2:80",), Call("", ""), Expected(1, 1), 0.0)

    def ended(self, pick: Pick) -> None:
        self.told.append(("ended", pick.answer.ended))

    def served_by(self, pick: Pick, address: str) -> None:
        self.told.append(("served", address))

    def answered(self, pick: Pick, status: int) -> None:
        self.told.append(("answered", status))

    def tell(self, pick: Pick, request_id: str) -> None:
        self.told.append(("tell", request_id))


def stream(books: Books, limits: Limits | None = None) -> _Stream:
    service = ExternalProcessor(books, limits)  # type: ignore[arg-type]
    service.streams = 1
    made = _Stream(service, books)  # type: ignore[arg-type]
    return made


def take(made: _Stream, *messages: pb.ProcessingRequest) -> list[list[pb.ProcessingResponse]]:
    async def run() -> list[list[pb.ProcessingResponse]]:
        return [await made.take(message) for message in messages]

    return asyncio.run(run())


def message(kind: str, data: bytes = b"", end: bool = False, **headers: str) -> Any:
    made = pb.ProcessingRequest()
    said = getattr(made, kind)
    said.SetInParent()
    if kind.endswith("body"):
        said.body = data
    if not kind.endswith("trailers"):
        said.end_of_stream = end
    for name, value in headers.items():
        said.headers.headers.add(key=name.replace("_", "-"), raw_value=value.encode())
    return made


def test_a_request_s_messages_by_hand() -> None:
    books = Books()
    made = stream(books)
    data = b"a" * (MOST_MESSAGE + 1)
    head = message("request_headers", X_A="1", x_a="2")
    head.request_headers.headers.headers.add(key="Old", value="text")
    first, held, whole = take(
        made, head, message("request_body", data), message("request_body", b"bc", end=True)
    )
    assert first == held == []
    assert books.told == [("pick", data + b"bc", {"x-a": "1", "old": "text"}, None)]
    answer, *pieces = whole
    (option,) = answer.request_headers.response.header_mutation.set_headers
    both = "10.0.0.1:80,10.0.0.2:80"
    assert (option.header.key, option.header.raw_value.decode()) == (HEADER, both)
    assert option.append_action == option.OVERWRITE_IF_EXISTS_OR_ADD
    assert answer.request_headers.response.clear_route_cache
    assert answer.dynamic_metadata["envoy.lb"][HEADER] == both
    streamed = [one.request_body.response.body_mutation.streamed_response for one in pieces]
    assert [(one.body, one.end_of_stream) for one in streamed] == [
        (b"a" * MOST_MESSAGE, False), (b"a", False), (b"bc", True),
    ]  # fmt: skip
    assert made._service.held == 0 and made._held == 0
    # what comes of it now goes on as it is
    ((later,),) = take(made, message("request_body", b"d", end=True))
    said = later.request_body.response.body_mutation.streamed_response
    assert (said.body, said.end_of_stream) == (b"d", True)
    assert MOST_MESSAGE == 65_536


def test_a_request_that_ends_in_trailers_is_picked_there_and_only_once() -> None:
    books = Books()
    made = stream(books)
    _, _, (answer, piece, trailers) = take(
        made, message("request_headers"), message("request_body", b"{}"),
        message("request_trailers"),
    )  # fmt: skip
    assert answer.HasField("request_headers") and trailers.HasField("request_trailers")
    assert piece.request_body.response.body_mutation.streamed_response.body == b"{}"
    ((again,),) = take(made, message("request_trailers"))
    assert again.HasField("request_trailers")
    assert [one[0] for one in books.told] == ["pick"]
    # a body of nothing is one piece of nothing, which ends it
    _, (answer, piece) = take(
        stream(Books()), message("request_headers"), message("request_body", end=True)
    )
    said = piece.request_body.response.body_mutation.streamed_response
    assert (said.body, said.end_of_stream) == (b"", True)


@pytest.mark.parametrize(
    ("mode", "answers"),
    [
        ("BUFFERED", [["request_headers"], ["request_body"]]),
        ("BUFFERED_PARTIAL", [["request_headers"], ["request_body"]]),
        ("STREAMED", [["request_headers"], ["request_body"]]),
        ("NONE", [["request_headers"], ["request_body"]]),
        ("FULL_DUPLEX_STREAMED", [[], ["request_headers", "request_body"]]),
    ],
)
def test_each_mode_of_bodies_by_hand(mode: str, answers: list[list[str]]) -> None:
    books = Books()
    head = message("request_headers")
    number = ProcessingMode.BodySendMode.Value(mode)
    head.protocol_config.request_body_mode = number
    head.protocol_config.response_body_mode = number
    made = stream(books)
    found = take(made, head, message("request_body", b"{}", end=True))
    assert [[one.WhichOneof("response") for one in some] for some in found] == answers
    whole = mode in ("BUFFERED", "BUFFERED_PARTIAL", "FULL_DUPLEX_STREAMED")
    assert books.told == [("pick", b"{}" if whole else b"", {}, None)]
    routed = [
        one.HasField("dynamic_metadata") and
        getattr(one, str(one.WhichOneof("response"))).response.clear_route_cache
        for some in found for one in some
    ]  # fmt: skip
    buffered = mode.startswith("BUFFERED")
    assert routed == [not buffered, buffered]
    if mode == "STREAMED":
        last = found[1][0].request_body.response
        assert last.status == pb.CommonResponse.CONTINUE and not last.HasField("body_mutation")
    # and of the answer's: whoever shows no body has shown all with the headers
    ((seen,),) = take(made, message("response_headers"))
    assert seen.HasField("response_headers") and made.settled is (mode == "NONE")
    ((seen,),) = take(made, message("response_body", b"xyz"))
    if mode == "FULL_DUPLEX_STREAMED":
        assert seen.response_body.response.body_mutation.streamed_response.body == b"xyz"
    else:
        assert not seen.response_body.response.HasField("body_mutation")
    # a message without a body goes where it goes at once
    head.request_headers.end_of_stream = True
    ((answer,),) = take(stream(Books()), head)
    assert answer.request_headers.response.clear_route_cache


def test_an_answer_s_messages_by_hand() -> None:
    books = Books()
    made = stream(books)
    take(made, message("request_headers", end=True))
    books.told.clear()
    head = message("response_headers")
    head.response_headers.headers.headers.add(key=":status", raw_value=b"201")
    metadata = head.metadata_context.filter_metadata["envoy.lb"]
    metadata["x-gateway-destination-endpoint-served"] = "10.0.0.9:80"
    ((answer,),) = take(made, head)
    assert answer.HasField("response_headers")
    assert books.told == [("served", "10.0.0.9:80"), ("answered", 201)] and not made.settled
    ((piece,),) = take(made, message("response_body", b'"completion_tokens": 3'))
    said = piece.response_body.response.body_mutation.streamed_response
    assert (said.body, said.end_of_stream) == (b'"completion_tokens": 3', False)
    assert made._pick is not None and made._pick.answer.generated_tokens == 3
    assert not made.settled
    ((piece,),) = take(made, message("response_body", b"", end=True))
    assert piece.response_body.response.body_mutation.streamed_response.end_of_stream
    assert made.settled and books.told[2:] == [("ended", True)]
    made.close()
    assert books.told[3:] == [("ended", True)]  # of which only the first counts
    # trailers end it as well, and headers without a body
    for last in (message("response_trailers"), message("response_headers", end=True)):
        books = Books()
        made = stream(books)
        take(made, message("request_headers", end=True))
        ((answer,),) = take(made, last)
        assert made.settled and ("ended", True) in books.told
        assert answer.WhichOneof("response") == last.WhichOneof("request")
    # one that is broken off has ended without an answer
    books = Books()
    made = stream(books)
    take(made, message("request_headers", end=True), message("response_headers"))
    assert ("answered", 0) in books.told and not made.settled
    made.close()
    assert books.told[-1] == ("ended", False)
    # an answer to nobody changes nothing
    made = stream(books := Books())
    take(made, message("response_headers"), message("response_body", b"x", end=True))
    made.close()
    assert books.told == [] and made.settled


def test_a_peer_counts_where_no_metadata_does() -> None:
    books = Books()
    made = stream(books)
    head = message("response_headers")
    head.attributes["other"]["else"] = "x"
    head.attributes["envoy.filters.http.ext_proc"]["upstream.address"] = "10.0.0.7:80"
    head.metadata_context.filter_metadata["envoy.lb"]["x"] = "y"
    take(made, message("request_headers", end=True), head)
    assert ("served", "10.0.0.7:80") in books.told


def test_a_dry_run_changes_no_request_and_tells_of_each() -> None:
    books = Books(dry_run=True)
    made = stream(books)
    ((answer,),) = take(made, message("request_headers", end=True, x_request_id="r9"))
    common = answer.request_headers.response
    assert not common.HasField("header_mutation") and not common.clear_route_cache
    assert common.status == pb.CommonResponse.CONTINUE
    assert not answer.HasField("dynamic_metadata")
    made.close()
    assert books.told[-2:] == [("ended", False), ("tell", "r9")]
    made = stream(books := Books())
    take(made, message("request_headers", end=True))
    made.close()
    assert books.told[-1] == ("ended", False)


@pytest.mark.parametrize(
    ("hint", "subset"),
    [
        (None, None), ({}, None), ([" 10.0.0.1:80 ", "b"], frozenset({"10.0.0.1:80", "b"})),
        ([], frozenset()), ("10.0.0.1:80, b,,", frozenset({"10.0.0.1:80", "b"})),
        ("", frozenset()),
    ],
)  # fmt: skip
def test_a_gateway_s_hint_is_who_may_be_picked(hint: Any, subset: Any) -> None:
    books = Books()
    head = message("request_headers", end=True)
    if hint is not None:
        struct = head.metadata_context.filter_metadata["envoy.lb.subset_hint"]
        key = "x-gateway-destination-endpoint-subset"
        if isinstance(hint, list):
            struct.get_or_create_list(key).extend(hint)
        elif isinstance(hint, str):
            struct[key] = hint
        else:
            struct["other"] = "x"
    take(stream(books), head)
    assert books.told[0][3] == subset


def refused(made: _Stream, *messages: pb.ProcessingRequest) -> tuple[int, str]:
    *_, (answer,) = take(made, *messages)
    said = answer.immediate_response
    error = json.loads(said.body)["error"]
    assert error["code"] == said.status.code and said.details == "lengthwise" and made.over
    option, *retry = said.headers.set_headers
    assert [one.header.raw_value for one in retry] == ([b"1"] if error["code"] == 429 else [])
    assert option.header.key == "content-type"
    assert option.header.raw_value == b"application/json"
    assert option.append_action == option.OVERWRITE_IF_EXISTS_OR_ADD
    return said.status.code, error["type"]


def test_limits_hold_to_the_byte() -> None:
    limits = Limits(body=10, streams=1, memory=15)
    books = Books()
    head, piece = message("request_headers"), message("request_body", b"x" * 10)
    made = stream(books, limits)
    assert take(made, message("request_headers", content_length="10"), piece) == [[], []]
    assert not made.over and made._service.held == 10
    too_long = (413, "request_too_large")
    assert refused(made, message("request_body", b"y")) == too_long
    made.close()
    assert made._service.held == 0
    said = stream(books, limits)
    assert refused(said, message("request_headers", content_length="11")) == too_long
    # nobody is held to what is no number
    assert take(stream(books, limits), message("request_headers", content_length="x")) == [[]]
    made = stream(books, limits)
    made._service.held = 5  # of others
    assert take(made, head, piece) == [[], []]
    made = stream(books, limits)
    made._service.held = 6
    assert refused(made, head, piece) == (429, "rate_limit_exceeded")
    made.close()
    assert made._service.held == 6
    crowded = stream(books, limits)
    crowded._service.streams = 2
    assert refused(crowded, head) == (429, "rate_limit_exceeded")
    books.refuses = Refusal(503, "nobody")
    assert refused(stream(books, limits), message("request_headers", end=True)) == (
        503, "service_unavailable",
    )  # fmt: skip
    counts = {n: sample(books.metrics, "requests_total", answer=n) for n in ("413", "429", "503")}
    assert counts == {"413": 2, "429": 2, "503": 0}  # the last is the picker's to count
    assert Limits() == Limits(16 * 2**20, 2048, 256 * 2**20)


def test_a_gateway_that_only_watches_gets_no_answer() -> None:
    head = message("request_headers", end=True)
    head.observability_mode = True
    books = Books()
    assert take(stream(books), head) == [[]] and books.told[0][0] == "pick"


class Context:
    """A gateway's end of a stream."""

    def __init__(self, *messages: bytes) -> None:
        self.messages = list(messages)
        self.written: list[Any] = []
        self.code: Any = None

    async def read(self) -> Any:
        return self.messages.pop(0) if self.messages else grpc.aio.EOF

    async def write(self, response: Any) -> None:
        self.written.append(response)

    async def abort(self, code: Any, why: str) -> None:
        self.code = code, why
        raise grpc.aio.AbortError


def test_streams_are_counted_by_how_they_ended() -> None:
    books = Books()
    service = ExternalProcessor(books, Limits(body=5))  # type: ignore[arg-type]
    head = message("request_headers", end=True).SerializeToString()
    last = message("response_body", end=True).SerializeToString()
    whole, cut, over = Context(head, last), Context(head), Context(
        message("request_headers", content_length="6").SerializeToString(), b"never read"
    )  # fmt: skip

    async def run() -> None:
        for context in (whole, cut, over):
            await service._process(None, context)
        assert [len(one.written) for one in (whole, cut, over)] == [2, 1, 1]
        assert over.messages == [b"never read"]
        under_way = []
        plain = books.pick

        async def pick(*args: Any) -> Pick:
            under_way.append(sample(books.metrics, "requests_under_way"))
            return await plain(*args)

        books.pick = pick  # type: ignore[assignment,method-assign]
        await service._process(None, Context(head))
        assert under_way == [1.0]
        for bad in (b"\xff", pb.ProcessingRequest().SerializeToString()):
            wrong = Context(head, bad)
            with pytest.raises(grpc.aio.AbortError):
                await service._process(None, wrong)
            assert wrong.code[0] == grpc.StatusCode.INVALID_ARGUMENT

    asyncio.run(run())
    assert service.streams == 0 and sample(books.metrics, "requests_under_way") == 0
    ends = ("answered", "broken off", "protocol error")
    assert [sample(books.metrics, "streams_total", end=end) for end in ends] == [2, 2, 2]


# Metrics and the server


def test_metrics_are_there_from_the_start_and_endpoints_while_they_are_known() -> None:
    metrics = PickerMetrics()
    text = metrics.text().decode()
    for answer in ("picked", "429", "413", "503", "dry-run"):
        assert f'lengthwise_epp_requests_total{{answer="{answer}"}} 0.0' in text
    for result in ("read", "unreadable", "unreachable"):
        assert f'lengthwise_epp_scrapes_total{{result="{result}"}} 0.0' in text
    for end in ("answered", "broken off", "protocol error"):
        assert f'lengthwise_epp_streams_total{{end="{end}"}} 0.0' in text
    assert "lengthwise_epp_requests_under_way 0.0" in text
    assert "lengthwise_predictions_total" in text  # what all plugins count
    for bound in SECONDS:
        assert f'lengthwise_epp_decision_seconds_bucket{{le="{bound}"}} 0.0' in text
    assert list(SECONDS) == sorted(SECONDS) and 0.0001 < SECONDS[0] < SECONDS[-1] < 1
    metrics.up.labels("a").set(1)
    metrics.picks.labels("a").inc()
    metrics.up.labels("b").set(1)
    metrics.forget("a")
    metrics.forget("never seen")
    assert sample(metrics, "endpoint_up", endpoint="a") is None
    assert sample(metrics, "picks_total", endpoint="a") is None
    assert sample(metrics, "endpoint_up", endpoint="b") == 1


def test_a_server_says_where_it_is_shows_itself_and_ends(tmp_path: Path) -> None:
    said: list[str] = []

    async def run() -> None:
        async with gateway_fleet.Endpoint() as one:
            picker = Picker(Endpoints([one.address]), Options(scrape_interval_s=60))
            server = PickerServer(picker, Serving(port=0, metrics_port=0))
            end = asyncio.Event()
            task = asyncio.create_task(serve(server, end, 0.0, said.append))
            await until(lambda: said or task.done())
            await picker.synced.wait()
            here = f"http://127.0.0.1:{server.metrics_port}"
            async with aiohttp.ClientSession() as http:
                async with http.get(f"{here}/metrics") as answer:
                    assert answer.content_type == "text/plain"
                    assert "lengthwise_epp_endpoint_up" in await answer.text()
                async with http.get(f"{here}/ready") as answer:
                    assert answer.status == 200
                picker._states[one.address].up = False
                async with http.get(f"{here}/ready") as answer:
                    assert answer.status == 503
            for taken in (
                Serving(port=server.port),
                Serving(port=0, metrics_port=server.metrics_port),
            ):
                other = Picker(Endpoints([one.address]), Options())
                with pytest.raises(InputError, match="can't listen on host"):
                    async with PickerServer(other, taken):
                        pass
            server.service.streams = 2
            end.set()
            await asyncio.wait_for(task, 10)
            assert said == [
                f"endpoint picker on 127.0.0.1:{server.port}, metrics on port "
                f"{server.metrics_port}",
                "2 requests were not answered",
            ]
            said.clear()
            quiet = PickerServer(Picker(Endpoints([one.address]), Options()), Serving(port=0))
            end = asyncio.Event()
            end.set()
            await serve(quiet, end, 5.0, said.append)
            assert said == [f"endpoint picker on 127.0.0.1:{quiet.port}"]

    asyncio.run(run())
    assert Serving() == Serving("127.0.0.1", 9002, None, "", "", Limits())


def test_a_drain_waits_for_streams_and_no_longer_than_it_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run() -> None:
        now = [0.0]
        made = PickerServer(Picker(Endpoints(["127.0.0.1:1"]), Options()), Serving(port=0))
        async with made:
            clock = SimpleNamespace(monotonic=lambda: now[0])
            monkeypatch.setattr(server_module, "time", clock)
            slept: list[float] = []

            async def sleep(seconds: float) -> None:
                slept.append(seconds)
                now[0] += seconds
                if len(slept) == 30:
                    made.service.streams = 0

            fake = SimpleNamespace(sleep=sleep)
            monkeypatch.setattr(server_module, "asyncio", fake)
            made.service.streams = 3
            assert await made.drain(1.05) == 3 and len(slept) == 11
            assert await made.drain(100.0) == 0 and len(slept) == 30
            monkeypatch.undo()

    asyncio.run(run())


def test_a_server_that_was_never_ready_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        picker = Picker(Endpoints(["127.0.0.1:1"]), Options())
        monkeypatch.setattr(picker, "synced", asyncio.Event())  # nobody ever looks
        async with PickerServer(picker, Serving(port=0)) as server:
            await asyncio.sleep(0)
            assert not server._watching.done()
        await asyncio.sleep(0)
        assert server._watching.cancelled()

    asyncio.run(run())


def test_tls_needs_two_files_that_can_be_read(tmp_path: Path) -> None:
    picker = Picker(Endpoints(addresses(1)), Options())
    there = tmp_path / "a.pem"
    there.write_text("x")
    for given in (Serving(certificate=str(there)), Serving(key=str(there))):
        with pytest.raises(InputError, match="TLS needs a certificate and its key"):
            PickerServer(picker, given)
    with pytest.raises(InputError, match="can't read"):
        PickerServer(picker, Serving(certificate=str(there), key=str(tmp_path / "none.pem")))
    assert PickerServer(picker, Serving())._credentials is None


def test_a_message_may_be_as_long_as_a_body() -> None:
    async def run() -> None:
        async with gateway_fleet.Endpoint() as one:
            picker = Picker(Endpoints([one.address]), Options(scrape_interval_s=0.05))
            limits = Limits(body=5 * 2**20)
            async with PickerServer(picker, Serving(port=0, limits=limits)) as server:
                await picker.synced.wait()
                async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                    call = channel.stream_stream(
                        "/envoy.service.ext_proc.v3.ExternalProcessor/Process",
                        pb.ProcessingRequest.SerializeToString, pb.ProcessingResponse.FromString,
                    )  # fmt: skip
                    sent = [
                        message("request_headers"),
                        message("request_body", b"x" * limits.body, end=True),
                    ]
                    answers = [answer async for answer in call(iter(sent))]
                    assert len(answers) == 1 + limits.body // MOST_MESSAGE

    asyncio.run(run())


@pytest.mark.parametrize(
    ("address", "named"),
    [("10.0.0.1:80", False), ("[::1]:80", False), ("server:80", True), ("a.b.example:1", True)],
)
def test_names_are_resolved_and_addresses_are_not(address: str, named: bool) -> None:
    assert endpoints_module._by_name({"address": address}) == named
