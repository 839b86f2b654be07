"""The endpoint picker without a gateway: its endpoints, its books, and its protocol by gRPC."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.extensions.filters.http.ext_proc.v3.processing_mode_pb2 import ProcessingMode
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from envoy.service.ext_proc.v3 import external_processor_pb2_grpc as stubs
from grpc_health.v1 import health_pb2, health_pb2_grpc

import lengthwise as lw
from lengthwise.errors import InputError
from lengthwise.policies.plugins.gateways.answer import Answer
from lengthwise.policies.plugins.gateways.endpoints import Endpoints
from lengthwise.policies.plugins.gateways.ext_proc import HEADER, NAME, Limits
from lengthwise.policies.plugins.gateways.picker import Options, Picker
from lengthwise.policies.plugins.gateways.prefixes import Prefixes
from lengthwise.policies.plugins.gateways.scrape import read
from lengthwise.policies.plugins.gateways.server import PickerServer, Serving
from lengthwise.serving.workload import read_prompts
from lengthwise.training.commands.serve_epp import described
from tests.gateway_fleet import Endpoint, body, vllm

PROCESS = f"/{NAME}/Process"
Client = Callable[..., Awaitable[list[pb.ProcessingResponse]]]


# Endpoints


def test_endpoints_from_lists_files_and_slices(tmp_path: Path) -> None:
    assert list(Endpoints(["10.0.0.1:80", "[2001:db8::1]:81"]).known) == [
        "10.0.0.1:80", "[2001:db8::1]:81",
    ]  # fmt: skip
    assert "127.0.0.1:80" in Endpoints(["localhost:80"]).known
    slices = {
        "kind": "EndpointSliceList",
        "items": [
            {
                "ports": [{"port": 8000}],
                "endpoints": [
                    {"addresses": ["10.0.0.1"], "conditions": {"ready": True}},
                    {"addresses": ["10.0.0.2"], "conditions": {"ready": False}},
                    {"addresses": ["10.0.0.3"]},
                ],
            }
        ],
    }
    for name, text, expected in (
        (
            "a.yaml", "- 10.0.0.1:80\n- {address: 10.0.0.2:81, max_seats: 64}",
            ["10.0.0.1:80", "10.0.0.2:81"],
        ),
        ("b.json", json.dumps(slices), ["10.0.0.1:8000", "10.0.0.3:8000"]),
        ("c.json", json.dumps(slices["items"][0]), ["10.0.0.1:8000", "10.0.0.3:8000"]),  # type: ignore[index]
        ("d.yaml", "", []),
    ):  # fmt: skip
        (tmp_path / name).write_text(text)
        assert list(Endpoints(tmp_path / name).known) == expected
    assert Endpoints(tmp_path / "a.yaml").known["10.0.0.2:81"].numbers == {"max_seats": 64}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- 10.0.0.1", "IP:PORT"),
        ("- 10.0.0.1:99999", "IP:PORT"),
        ("- {address: 10.0.0.1:80, seats: 3}", "did you mean 'max_seats'"),
        ("- {address: 10.0.0.1:80, max_seats: -3}", "above 0"),
        ("- 7", "an endpoint is an address"),
        ("a: 3", "EndpointSlice"),
        ("[", "neither YAML nor JSON"),
        ("just text", "expected a list"),
    ],
)
def test_bad_endpoints_are_told(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError, match=said):
        Endpoints(tmp_path / "a.yaml")
    with pytest.raises(InputError, match="can't read"):
        Endpoints(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="needs endpoints"):
        Endpoints([])


def test_what_an_endpoint_is_follows_from_its_timing_and_options() -> None:
    node = {"timing": "h200/llama-3.1-8b", "max_num_seqs": 64}
    found = described(node)
    assert found["max_seats"] == 64
    slow = described({**node, "speed": 0.5})
    assert slow["decode_tokens_per_s"] == pytest.approx(found["decode_tokens_per_s"] / 2, rel=1e-3)
    assert described({"max_seats": 5}) == {"max_seats": 5}


# What they say, and what passes by


def test_metrics_of_each_engine() -> None:
    assert read(vllm(3, 4, 0.25)).features == {
        "running_requests": 3, "waiting_requests": 4, "kv_utilization": 0.25,
    }  # fmt: skip
    assert read(vllm()).block_size == 32
    ranks = vllm(3, 4, 0.5) + vllm(1, 2, 0.0).replace('engine="0"', 'engine="1"')
    assert read(ranks).features == {
        "running_requests": 4, "waiting_requests": 6, "kv_utilization": 0.25,
    }  # fmt: skip
    sglang = 'sglang:num_running_reqs{a="b"} 5\nsglang:num_queue_reqs 6.0\nsglang:token_usage 0.5\n'
    triton = (
        'nv_trt_llm_request_metrics{model="m",request_type="waiting",version="1"} 2\n'
        'nv_trt_llm_request_metrics{model="m",request_type="scheduled",version="1"} 3\n'
        'nv_trt_llm_request_metrics{model="m",request_type="max",version="1"} 512\n'
        'nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction",model="m"} 0.75\n'
        'nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max",model="m"} 6239\n'
    )
    assert read(sglang).features == {
        "running_requests": 5, "waiting_requests": 6, "kv_utilization": 0.5,
    }  # fmt: skip
    assert read(triton).features == {
        "running_requests": 3, "waiting_requests": 2, "kv_utilization": 0.75,
    }  # fmt: skip
    for lie in ("NaN", "-3", "+Inf", "1e999", "x", "9" * 5000):
        assert "running_requests" not in read(f"vllm:num_requests_running {lie}\n").features
    assert read("vllm:kv_cache_usage_perc 7\n").features == {}


@pytest.mark.parametrize("seed", range(20))
def test_an_answer_is_the_same_in_any_pieces(seed: int) -> None:
    rng = random.Random(seed)
    said = [
        {"choices": [{"text": f'"completion_tokens": 999, {"x" * rng.randrange(2000)}',
                      "finish_reason": None}]}
        for _ in range(rng.randrange(30))
    ]  # fmt: skip
    said.append({"choices": [{"text": "", "finish_reason": "length"}]})
    said.append({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 31}})
    events = [*(json.dumps(one) for one in said), "[DONE]"]
    data = "".join(f"data: {one}\n\n" for one in events).encode()
    answer = Answer()
    while data:
        cut = rng.choice((1, 2, 3, 50, 5000, 100_000))
        answer.feed(data[:cut])
        data = data[cut:]
    assert answer.events == len(events)
    assert (answer.prompt_tokens, answer.generated_tokens) == (7, 31)
    assert answer.finish_reason == "length"


def test_prefixes_are_those_that_were_sent() -> None:
    known = Prefixes(most=20)
    text = "".join(map(str, range(1000)))
    known.sent(text[:640], "a")  # ten blocks of 16 tokens of four characters
    known.sent(text[:128], "b")
    assert known.cached_tokens(text, ["a", "b", "c"]) == {"a": 160, "b": 32, "c": 0}
    assert known.cached_tokens("x" + text, ["a"]) == {"a": 0}
    for number in range(3):
        known.sent(str(number) * 640, "a")
    assert known.cached_tokens(text, ["a"])["a"] < 160
    known.keep(["b"])
    assert known.cached_tokens(text, ["a", "b"]) == {"a": 0, "b": 32}


# By gRPC


@asynccontextmanager
async def picking(
    count: int = 3, limits: Limits | None = None, log: Any = None, **options: Any
) -> AsyncIterator[tuple[list[Endpoint], PickerServer, Client]]:
    """A picker in front of so many endpoints that show metrics, and who speaks to it as Envoy."""
    fleet = [await Endpoint().__aenter__() for _ in range(count)]
    picker = Picker(
        Endpoints([one.address for one in fleet]),
        Options(**{"scrape_interval_s": 0.05, **options}), *([log] if log else []),
    )  # fmt: skip
    server = PickerServer(picker, Serving(port=0, metrics_port=0, limits=limits or Limits()))
    async with server:
        await picker.synced.wait()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub = stubs.ExternalProcessorStub(channel)

            async def client(*messages: pb.ProcessingRequest) -> list[pb.ProcessingResponse]:
                return [answer async for answer in stub.Process(iter(messages))]

            yield fleet, server, client
        # whatever happened, nobody is counted for ever
        await until(lambda: server.service.streams == 0)
        assert picker.under_way == 0 and server.service.held == 0
        assert all(picker.router.unfinished(one.address) == 0 for one in fleet)
    for one in fleet:
        await one.__aexit__(None, None, None)


async def until(true: Callable[[], Any]) -> None:
    for _ in range(1000):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came true")


async def rest(call: Any) -> list[pb.ProcessingResponse]:
    """What a picker still has to say."""
    found = []
    while (answer := await call.read()) is not grpc.aio.EOF:
        found.append(answer)
    return found


def headers(kind: str = "request_headers", end: bool = False, **more: str) -> pb.ProcessingRequest:
    message = pb.ProcessingRequest()
    said = getattr(message, kind)
    said.end_of_stream = end
    for name, value in more.items():
        said.headers.headers.add(key=name.replace("_", "-"), raw_value=value.encode())
    return message


def piece(data: bytes, end: bool = False, kind: str = "request_body") -> pb.ProcessingRequest:
    message = pb.ProcessingRequest()
    getattr(message, kind).body = data
    getattr(message, kind).end_of_stream = end
    return message


def asked(**more: Any) -> list[pb.ProcessingRequest]:
    """A request in two pieces."""
    data = json.dumps(body(**more)).encode()
    return [headers(), piece(data[:20]), piece(data[20:], end=True)]


def usage(generated: int, reason: str = "stop", status: str = "200") -> list[pb.ProcessingRequest]:
    """An answer."""
    answer = headers("response_headers")
    answer.response_headers.headers.headers.add(key=":status", raw_value=status.encode())
    said = {"choices": [{"finish_reason": reason}], "usage": {"completion_tokens": generated}}
    return [answer, piece(json.dumps(said).encode(), end=True, kind="response_body")]


def destination(response: pb.ProcessingResponse, kind: str = "request_headers") -> str:
    (option,) = getattr(response, kind).response.header_mutation.set_headers
    assert option.header.key == HEADER
    # one that came from a client is overwritten, and both ways say the same
    assert option.append_action == option.OVERWRITE_IF_EXISTS_OR_ADD
    said = option.header.raw_value.decode()
    assert response.dynamic_metadata["envoy.lb"][HEADER] == said
    return str(said)


def refusal(responses: list[pb.ProcessingResponse]) -> int:
    (response,) = responses
    said = json.loads(response.immediate_response.body)["error"]
    assert said["code"] == response.immediate_response.status.code
    return int(said["code"])


def test_the_body_goes_on_as_it_came_once_its_endpoint_is_known() -> None:
    async def run() -> None:
        async with picking() as (fleet, _, client):
            data = json.dumps(body(prompt="x" * 300_000)).encode()
            cuts = [data[start : start + 100_000] for start in range(0, len(data), 100_000)]
            sent = [piece(cut, end=cut is cuts[-1]) for cut in cuts]
            first, *rest = await client(headers(), *sent)
            assert destination(first) in [one.address for one in fleet]
            pieces = [one.request_body.response.body_mutation.streamed_response for one in rest]
            assert b"".join(one.body for one in pieces) == data
            assert [one.end_of_stream for one in pieces] == [False] * (len(pieces) - 1) + [True]
            assert all(len(one.body) <= 65_536 for one in pieces)
            # an empty body, trailers, no body at all, and what is no JSON
            first, last = await client(headers(), piece(b"", end=True))
            assert destination(first) and last.request_body.response.body_mutation.streamed_response
            trailers = pb.ProcessingRequest()
            trailers.request_trailers.SetInParent()
            first, _, last = await client(headers(), piece(b"{}"), trailers)
            assert destination(first) and last.HasField("request_trailers")
            (only,) = await client(headers(end=True))
            assert destination(only)
            for odd in (b"{", b"[" * 100_000, b'{"messages": 7, "max_tokens": "x"}', b"\xff\x00",
                        b'{"prompt": {"a": [1, null]}, "vllm_xargs": []}'):  # fmt: skip
                first, *_ = await client(headers(), piece(odd, end=True))
                assert destination(first)

    asyncio.run(run())


@pytest.mark.parametrize("mode", ["NONE", "STREAMED", "BUFFERED"])
def test_other_modes_are_spoken_if_the_gateway_says_so(mode: str) -> None:
    async def run() -> None:
        async with picking() as (_, _, client):
            opening = headers()
            config = opening.protocol_config
            number = ProcessingMode.BodySendMode.Value(mode)
            config.request_body_mode = config.response_body_mode = number
            data = piece(json.dumps(body()).encode(), end=True)
            sent = [opening] if mode == "NONE" else [opening, data]
            answers = await client(*sent, *usage(5))
            at = 1 if mode == "BUFFERED" else 0
            assert destination(answers[at], ("request_headers", "request_body")[at])
            assert len(answers) == len(sent) + 2
            assert not answers[-1].response_body.response.HasField("body_mutation")

    asyncio.run(run())


def test_who_may_not_be_picked_is_not() -> None:
    async def run() -> None:
        async with picking() as (fleet, _, client):
            last = fleet[-1].address

            def among(*addresses: str, text: bool = False) -> pb.ProcessingRequest:
                message = headers(end=True)
                hint = message.metadata_context.filter_metadata["envoy.lb.subset_hint"]
                key = "x-gateway-destination-endpoint-subset"
                if text:
                    hint[key] = ",".join(addresses)
                else:
                    hint.get_or_create_list(key).extend(addresses)
                return message

            for text in (False, True):
                for _ in range(5):
                    (answer,) = await client(among(last, "10.9.9.9:1", text=text))
                    assert destination(answer) == last
            assert refusal(await client(among())) == 503
            assert refusal(await client(among("10.9.9.9:1"))) == 503
            # nobody outside says where a request goes
            (answer,) = await client(
                headers(end=True, **{HEADER: "10.9.9.9:1", f"{HEADER}-subset": "10.9.9.9:1"})
            )
            assert destination(answer) in [one.address for one in fleet]

    asyncio.run(run())


def test_too_much_is_refused() -> None:
    async def run() -> None:
        limits = Limits(body=1000, memory=1500, streams=3)
        async with picking(limits=limits, shed_above=1) as (_, server, client):
            assert refusal(await client(headers(content_length="1001"))) == 413
            assert refusal(await client(headers(), piece(b"x" * 999), piece(b"x" * 9))) == 413
            gates = [asyncio.Event() for _ in range(3)]

            async def slow(gate: asyncio.Event, *first: Any) -> AsyncIterator[Any]:
                for message in first:
                    yield message
                await gate.wait()

            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                stub = stubs.ExternalProcessorStub(channel)
                # two wait for the rest of their bodies: the bytes of both are more than may wait
                holding = stub.Process(slow(gates[0], headers(), piece(b"x" * 900)))
                await until(lambda: server.service.held == 900)
                assert refusal(await client(headers(), piece(b"x" * 900))) == 429
                gates[0].set()
                assert await rest(holding) == []
                await until(lambda: server.service.streams == 0)
                # one is under way at each endpoint
                busy = [stub.Process(slow(gate, headers(end=True))) for gate in gates[1:]]
                for call in busy:
                    assert destination(await call.read())
                assert server.picker.under_way == 2
                (answer,) = await client(headers(end=True))
                assert destination(answer)
                gates[0] = asyncio.Event()
                third = stub.Process(slow(gates[0], headers(end=True)))
                assert destination(await third.read())
                assert refusal(await client(headers(end=True))) == 429
                server.service.limits = Limits(streams=100)
                assert refusal(await client(headers(end=True))) == 429  # every endpoint has one
                for gate in gates:
                    gate.set()
                for call in (*busy, third):
                    assert await rest(call) == []

    asyncio.run(run())


def test_broken_streams_leak_nothing() -> None:
    async def run() -> None:
        async with picking() as (_, server, client):
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                stub = stubs.ExternalProcessorStub(channel)

                async def never(*first: Any) -> AsyncIterator[Any]:
                    for message in first:
                        yield message
                    await asyncio.sleep(60)

                calls = [stub.Process(never(*asked())) for _ in range(20)]
                for call in calls:
                    assert destination(await call.read())
                half = [stub.Process(never(headers(), piece(b"x" * 1000))) for _ in range(20)]
                await until(lambda: server.service.held == 20_000)
                assert server.picker.under_way == 20
                for call in (*calls, *half):
                    call.cancel()
                await until(lambda: server.service.streams == 0)
            assert server.service.held == server.picker.under_way == 0
            for bad in ([pb.ProcessingRequest()], [piece(b"")], [headers(), headers()]):
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await client(*bad)
                assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT

    asyncio.run(run())


def test_ten_thousand_spoiled_messages_end_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        rng = random.Random(1)
        whole = [*asked(), *usage(30)]
        whole[0].request_headers.headers.headers.add(key="x-session-id", raw_value=b"s")
        whole[3].metadata_context.filter_metadata["envoy.lb"][
            "x-gateway-destination-endpoint-served"
        ] = "a"
        kept = [message.SerializeToString() for message in whole]

        def spoiled(data: bytes) -> bytes:
            found = bytearray(data)
            for _ in range(rng.choice((0, 1, 1, 2, 8))):
                place = rng.randrange(len(found) + 1)
                kind = rng.randrange(4)
                if kind == 0 and place < len(found):
                    found[place] = rng.randrange(256)
                elif kind == 1:
                    del found[place : place + rng.randrange(9)]
                elif kind == 2:
                    found[place:place] = rng.randbytes(rng.randrange(9))
                else:
                    found += found[:place]
            return bytes(found)

        async with picking() as (_, server, client):
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                call = channel.stream_stream(PROCESS, lambda data: data, lambda data: data)
                sent, codes = 0, {}
                while sent < 10_000:
                    order = kept if rng.random() < 0.7 else rng.choices(kept, k=rng.randrange(1, 9))
                    messages = [spoiled(one) if rng.random() < 0.5 else one for one in order]
                    sent += len(messages)
                    stream = call(iter(messages))
                    try:
                        async for _ in stream:
                            pass
                    except grpc.aio.AioRpcError:
                        pass
                    code = await stream.code()
                    codes[code.name] = codes.get(code.name, 0) + 1
            # the other end of a stream that was refused is INTERNAL to a client that still writes
            assert set(codes) <= {"OK", "INVALID_ARGUMENT", "INTERNAL"}, codes
            assert min(codes["OK"], codes["INVALID_ARGUMENT"]) > 20
            first, *_ = await client(*asked())
            assert destination(first)

    asyncio.run(run())
    assert "Unexpected" not in caplog.text  # what gRPC says of an exception in a handler


# The books


def test_requests_sent_since_the_last_scrape_count() -> None:
    async def run() -> None:
        async with picking(policy="jsq", scrape_interval_s=30.0) as (fleet, server, _):
            picker = server.picker
            picks = [await picker.pick(b"{}", {}) for _ in range(6)]
            addresses = [one.address for one in fleet]
            # with what they said alone, all six would have gone to the first
            assert [pick.endpoint for pick in picks] == addresses * 2
            picker.ended(picks[1])
            assert (await picker.pick(b"{}", {})).endpoint == addresses[1]
            for pick in [*picks, *(p for s in picker._states.values() for p in list(s.here))]:
                picker.ended(pick)

    asyncio.run(run())


def test_metrics_that_hang_lie_or_flood_do_not_keep_an_endpoint_out() -> None:
    async def run() -> None:
        async with picking(5, policy="jsq", scrape_interval_s=0.2) as (fleet, server, _):
            picker = server.picker
            fleet[0].metrics, fleet[1].metrics, fleet[2].metrics = "hang", "flood", 500
            fleet[3].metrics = vllm().replace(" 0.0", " -1e999")
            fleet[4].metrics = vllm(running=7)
            bad = [picker._states[one.address] for one in fleet[:4]]
            await until(lambda: all(state.unread >= 5 for state in bad))
            assert len(picker.ready) == 5
            # what they once said is forgotten: their own requests stand in for it
            picks = [await picker.pick(b"{}", {}) for _ in range(8)]
            assert fleet[4].address not in {pick.endpoint for pick in picks}
            assert len({pick.endpoint for pick in picks}) == 4
            for pick in picks:
                picker.ended(pick)
            # who is gone is out at once, and back as it comes back
            await fleet[4].__aexit__(None, None, None)
            await until(lambda: fleet[4].address not in picker.ready)
            picker.answered(picks[0], 503)
            fleet[4] = Endpoint(port=int(fleet[4].address.rpartition(":")[2]))
            await fleet[4].__aenter__()
            await until(lambda: fleet[4].address in picker.ready)

    asyncio.run(run())


def test_endpoints_come_and_go(tmp_path: Path) -> None:
    async def run() -> None:
        file = tmp_path / "fleet.json"
        async with Endpoint() as one, Endpoint() as other:
            file.write_text(json.dumps([one.address]))
            picker = Picker(
                Endpoints(file), Options("round-robin", scrape_interval_s=0.05, refresh_s=0.05)
            )
            async with picker:
                await picker.synced.wait()
                for _ in range(10):
                    picker.ended(await picker.pick(b"{}", {}))
                held = await picker.pick(b"{}", {})
                file.write_text("[")  # somebody writes it in place
                await asyncio.sleep(0.2)
                assert picker.ready == [one.address]
                file.write_text(json.dumps([one.address, other.address]))
                await until(lambda: len(picker.ready) == 2)
                # a new one has no ten requests to catch up with
                picks = [await picker.pick(b"{}", {}) for _ in range(4)]
                assert sum(pick.endpoint == one.address for pick in picks) in (1, 2)
                file.write_text(json.dumps([other.address]))
                await until(lambda: picker.ready == [other.address])
                picker.served_by(picks[0], "10.9.9.9:1")
                for pick in (held, *picks):
                    picker.ended(pick)
                assert picker.under_way == 0
                assert b'endpoint="%s"' % one.address.encode() not in picker.metrics.text()

    asyncio.run(run())


def test_routers_that_read_what_nobody_tells_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="say max_seats, or the timing"):
        Picker(Endpoints(["10.0.0.1:80"]), Options("jsew"))
    with pytest.raises(InputError, match="predictor"):
        Picker(Endpoints(["10.0.0.1:80"]), Options(predictor=str(tmp_path / "none")))
    file = tmp_path / "fleet.yaml"
    file.write_text("- {address: 10.0.0.1:80, timing: h200/llama-3.1-8b, max_num_seqs: 64}")
    Picker(Endpoints(file, described), Options("jsew"))


def test_lengths_order_and_prefixes_are_what_routers_are_told(tmp_path: Path) -> None:
    """A faster endpoint gets more, a long answer weighs more, and a prefix pulls."""

    async def run() -> None:
        async with Endpoint() as fast, Endpoint() as slow:
            file = tmp_path / "fleet.json"
            node = {"timing": "h200/llama-3.1-8b", "max_num_seqs": 64}
            rows = [{"address": fast.address}, {"address": slow.address, "speed": 0.25}]
            file.write_text(json.dumps([{**node, **row} for row in rows]))
            for policy, expected in (("least-requests", 8), ("least-tokens", 1)):
                picker = Picker(Endpoints(file, described), Options(policy))
                async with picker:
                    await picker.synced.wait()
                    first = json.dumps(body(vllm_xargs={"predicted_tokens": 5000}, max_tokens=9999))
                    picks = [await picker.pick(first.encode(), {})]
                    short = json.dumps(body(vllm_xargs={"predicted_tokens": 5})).encode()
                    picks += [await picker.pick(short, {}) for _ in range(9)]
                    here = sum(pick.endpoint == picks[0].endpoint for pick in picks)
                    assert here == expected, policy
                    for pick in picks:
                        picker.ended(pick)
            picker = Picker(Endpoints(file, described), Options("prefix-affinity"))
            async with picker:
                await picker.synced.wait()
                said = json.dumps(body(prompt="the same for all " * 100)).encode()
                first_pick = await picker.pick(said, {})
                picker.ended(first_pick)
                for _ in range(5):
                    pick = await picker.pick(said, {})
                    assert pick.endpoint == first_pick.endpoint
                    picker.ended(pick)

    asyncio.run(run())


@pytest.mark.parametrize("prompts", [False, True])
def test_it_learns_from_answers_and_keeps_nothing_else(
    tmp_path: Path, prompts: bool, caplog: pytest.LogCaptureFixture
) -> None:
    lines: list[Any] = []

    async def run() -> None:
        options = {"record": str(tmp_path / "log"), "record_prompts": prompts, "dry_run": True}
        async with picking(log=lines.append, **options) as (_, server, client):
            for number in range(30):
                sent = asked(prompt=f"secret-{number}", user="somebody", max_tokens=30)
                reason = "length" if number == 29 else "stop"
                answers = await client(*sent, *usage(number + 1, reason))
                assert not answers[0].request_headers.response.HasField("header_mutation")
            await client(*asked(), *usage(7, status="500"))
            await client(*asked(), *usage(0))
            await client(*asked())
            text = server.picker.metrics.text()
            assert b'lengthwise_epp_requests_total{answer="dry-run"} 33.0' in text
            assert b"secret" not in text

    with caplog.at_level(logging.DEBUG):
        asyncio.run(run())
    assert len(lines) == 33 and "secret" not in json.dumps(lines) + caplog.text
    assert lines[3]["output_tokens"] == 4 and lines[3]["served"] == lines[3]["chosen"]
    workload = lw.Workload.read(str(tmp_path / "log"))
    assert sorted(workload["output_tokens"]) == list(range(1, 31))
    assert (workload["max_tokens"] == 30).all()
    if prompts:
        rows = read_prompts(tmp_path / "log")
        assert set(rows.prompt) == {f"secret-{number}" for number in range(30)}
    else:
        assert "prompt" not in workload


def test_who_served_is_believed_of_the_gateway_alone() -> None:
    async def run() -> None:
        async with picking() as (fleet, server, _):
            picker = server.picker
            key = "x-gateway-destination-endpoint-served"
            for told in ("metadata", "attribute", "header"):
                for known in (True, False):
                    gate, answer = asyncio.Event(), headers("response_headers")

                    async def sent(
                        last: Any = answer, gate: asyncio.Event = gate
                    ) -> AsyncIterator[Any]:
                        for message in asked():
                            yield message
                        await gate.wait()
                        yield last
                        gate.clear()
                        await gate.wait()

                    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                        call = stubs.ExternalProcessorStub(channel).Process(sent())
                        chosen = destination(await call.read())
                        for _ in range(2):
                            await call.read()  # the body
                        other = next(one.address for one in fleet if one.address != chosen)
                        said = other if known else "10.9.9.9:1"
                        metadata = answer.metadata_context.filter_metadata
                        if told == "metadata":
                            metadata["envoy.lb"][key] = said
                        elif told == "attribute":
                            answer.attributes["envoy.filters.http.ext_proc"]["upstream.address"] = (
                                said
                            )
                        else:
                            found = answer.response_headers.headers.headers
                            found.add(key=key, raw_value=said.encode())
                        gate.set()
                        await call.read()
                        counted = [one for one, state in picker._states.items() if state.here]
                        believed = known and told != "header"
                        assert counted == [other if believed else chosen]
                        assert picker.router.unfinished(counted[0]) == 1
                        gate.set()
                        call.cancel()
                    await until(lambda: server.service.streams == 0)

    asyncio.run(run())


def test_health_follows_the_endpoints_and_the_drain() -> None:
    async def run() -> None:
        async with picking() as (_, server, client):
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                stub = health_pb2_grpc.HealthStub(channel)

                async def state(name: str) -> str:
                    answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
                    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

                names = ("", "readiness", NAME, "liveness")
                for _ in range(100):
                    if await state("") == "SERVING":
                        break
                    await asyncio.sleep(0.01)
                assert [await state(name) for name in names] == ["SERVING"] * 4
                gate = asyncio.Event()

                async def slow() -> AsyncIterator[Any]:
                    yield headers(end=True)
                    await gate.wait()

                call = stubs.ExternalProcessorStub(channel).Process(slow())
                assert destination(await call.read())
                assert await server.drain(0.0) == 1
                assert [await state(name) for name in names] == ["NOT_SERVING"] * 3 + ["SERVING"]
                draining = asyncio.create_task(server.drain(30))
                assert destination((await client(headers(end=True)))[0])  # those on their way
                gate.set()
                assert await rest(call) == [] and await draining == 0

    asyncio.run(run())
