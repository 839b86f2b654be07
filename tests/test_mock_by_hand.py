"""The parts of the mock server, by hand: calls, replies, lengths, tokens, metrics, its driver."""

from __future__ import annotations

import array
import asyncio
import json
import math
from collections.abc import Callable
from hashlib import blake2b
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("prometheus_client")

from prometheus_client.parser import text_string_to_metric_families

from lengthwise.errors import InputError, InvariantError
from lengthwise.picoseconds import LAST_PS, PS
from lengthwise.policies import load_policy
from lengthwise.serving import Engine, Node
from lengthwise.serving.draws import uniform
from lengthwise.serving.live import Asked, LiveNode
from lengthwise.serving.mock import api, driver, metrics, server
from lengthwise.serving.mock.api import Refused, Reply, call_of
from lengthwise.serving.mock.lengths import lengths
from lengthwise.serving.mock.text import Answer, Prompt
from lengthwise.serving.timing import LinearTiming


def called(*, chat: bool = False, headers: Any = None, **body: Any) -> api.Call:
    given = {"messages": [{"role": "user", "content": "q"}]} if chat else {"prompt": "q"}
    return call_of(json.dumps({**given, **body}).encode(), headers or {}, "m", chat=chat)


def refused(make: Callable[[], Any]) -> tuple[int, str]:
    with pytest.raises(Refused) as caught:
        make()
    said = json.loads(caught.value.body)["error"]
    assert said["code"] == caught.value.status and said["message"] == str(caught.value)
    assert said["type"] == {400: "BadRequestError", 404: "NotFoundError",
                            503: "ServiceUnavailableError"}[caught.value.status]  # fmt: skip
    return caught.value.status, str(caught.value)


# Calls


def test_what_a_client_left_open_is_open() -> None:
    made = called()
    assert (made.chat, made.limit, made.least, made.told) == (False, 16, 0, None)
    assert (made.ignore_eos, made.stream, made.usage, made.priority) == (False, False, False, 0)
    assert made.due_in_s == math.inf and made.text == "q" and made.messages is None
    talk = called(chat=True)
    assert talk.limit is None and talk.messages == [{"role": "user", "content": "q"}]
    assert talk.text == "<|user|>q<|assistant|>" and talk.prompt == Prompt.of_text(talk.text)


def test_what_a_client_said_is_heard() -> None:
    made = called(
        max_tokens=7, min_tokens=0, priority=-3, ignore_eos=True, stream=True,
        stream_options={"include_usage": True}, vllm_xargs={"output_tokens": "9", "deadline_s": 2},
    )  # fmt: skip
    assert (made.limit, made.least, made.told, made.priority, made.due_in_s) == (7, 0, 9, -3, 2.0)
    assert made.ignore_eos and made.stream and made.usage
    assert called(headers={"x-output-tokens": "5"}).told == 5
    assert called(headers={"x-output-tokens": "5"}, vllm_xargs={"output_tokens": 4}).told == 4
    assert called(chat=True, max_tokens=7, max_completion_tokens=3).limit == 3
    assert called(max_tokens=7, max_completion_tokens=3).limit == 7
    assert called(model="m", n=1, best_of=None, vllm_xargs=3).limit == 16
    for due in (True, "soon", math.nan, math.inf, -math.inf):
        assert called(vllm_xargs={"deadline_s": due}).due_in_s == math.inf
    assert called(vllm_xargs={"deadline_s": -1}).due_in_s == -1
    assert not called(stream=1, ignore_eos="yes", stream_options={"include_usage": 1}).stream
    most = 2**40
    assert called(max_tokens=most, priority=most).limit == most
    assert called(vllm_xargs={"output_tokens": most}).told == most


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"model": "x"}, 404, "The model `x` does not exist."),
        ({"n": 2}, 400, "n above 1: this server gives one answer"),
        ({"best_of": 2}, 400, "best_of above 1"),
        ({"prompt": ["a", "b"]}, 400, "prompt must be one text, or one list of token ids"),
        ({"prompt": []}, 400, "prompt must be"), ({"prompt": [True]}, 400, "prompt must be"),
        ({"prompt": [-1]}, 400, "prompt must be"), ({"prompt": [2**63]}, 400, "prompt must be"),
        ({"max_tokens": 0}, 400, "max_tokens must be a whole number of at least 1"),
        ({"max_tokens": True}, 400, "max_tokens must be"),
        ({"max_tokens": 1.5}, 400, "max_tokens must be"),
        ({"max_tokens": 2**40 + 1}, 400, "max_tokens must be"),
        ({"min_tokens": -1}, 400, "min_tokens must be a whole number of at least 0"),
        ({"priority": -(2**40) - 1}, 400, "priority must be"),
        ({"vllm_xargs": {"output_tokens": 0}}, 400, "output_tokens must be a whole number"),
        ({"vllm_xargs": {"output_tokens": "x"}}, 400, "output_tokens must be"),
        ({"vllm_xargs": {"output_tokens": 2**40 + 1}}, 400, "output_tokens must be"),
    ],
)  # fmt: skip
def test_what_can_not_be_answered_is_refused(body: Any, status: int, said: str) -> None:
    found = refused(lambda: called(**body))
    assert found[0] == status and said in found[1]


def test_bodies_and_chats_that_are_none() -> None:
    for body, said in ((b"{", "the body is no JSON"), (b"[]", "the body is no JSON object"),
                       (b"[" * 100_000, "the body is no JSON")):  # fmt: skip
        assert refused(lambda body=body: call_of(body, {}, "m", chat=False)) == (400, said)
    for messages in (None, [], "x", [3]):
        assert "messages must be a list of objects" in refused(
            lambda messages=messages: called(chat=True, messages=messages)
        )[1]  # fmt: skip
    assert called(prompt=["a"]).text == "a" and called(prompt=[[1, 2]]).prompt.tokens == 2
    ids = called(prompt=[0, 2**63 - 1])
    assert ids.prompt.unit == 8 and ids.text == ""


def events(data: bytes) -> list[Any]:
    return [json.loads(one.removeprefix("data: ")) for one in data.decode().split("\n\n") if one]


@pytest.mark.parametrize("chat", [True, False])
def test_replies_have_openai_s_shapes(chat: bool) -> None:
    reply = Reply("id", "m", 5, chat)
    usage = {"prompt_tokens": 1}
    whole = json.loads(reply.whole("hi", "stop", usage))
    kind = "chat.completion" if chat else "text_completion"
    text: dict[str, Any] = {"text": "hi"}
    if chat:
        text = {"message": {"role": "assistant", "content": "hi"}}
    assert whole == {
        "id": "id", "object": kind, "created": 5, "model": "m", "usage": usage,
        "choices": [{"index": 0, **text, "logprobs": None, "finish_reason": "stop"}],
    }  # fmt: skip
    streamed = "chat.completion.chunk" if chat else "text_completion"
    before, after = reply.pieces()
    (piece,) = events(before + b" word" + after)
    said = {"delta": {"content": " word"}} if chat else {"text": " word"}
    assert piece["object"] == streamed and piece["choices"] == [
        {"index": 0, **said, "logprobs": None, "finish_reason": None}
    ]
    (last,) = events(reply.last("end", "length"))
    assert last["choices"][0]["finish_reason"] == "length"
    assert last["choices"][0]["delta" if chat else "text"] == (
        {"content": "end"} if chat else "end"
    )
    (ended,) = events(reply.usage(usage))
    assert ended["choices"] == [] and ended["usage"] == usage and ended["object"] == streamed
    if chat:
        (opened,) = events(reply.opening())
        assert opened["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    else:
        assert reply.opening() == b""


# Lengths and tokens


def test_lengths_are_the_quantiles_of_what_was_spelled() -> None:
    assert [lengths("constant:7.6")(draw) for draw in (1e-9, 0.5)] == [8, 8]
    geometric = lengths("geometric:4")
    # P(n <= k) = 1 - (3/4)^k
    for k in (1, 2, 7):
        edge = 1 - 0.75**k
        assert geometric(edge - 1e-9) == k and geometric(edge + 1e-9) == k + 1
    assert geometric(1e-12) == 1 and lengths("geometric:1")(0.999) == 1
    draws = (np.arange(200_000) + 0.5) / 200_000
    made = np.array([lengths("lognormal:300,cv=0.5")(draw) for draw in draws.tolist()])
    assert made.mean() == pytest.approx(300, rel=0.005)
    assert made.std() / made.mean() == pytest.approx(0.5, rel=0.01)
    plain = lengths("lognormal:300")
    assert plain(0.5) == round(300 / math.sqrt(2)) and plain(1e-300) >= 1
    assert lengths("lognormal:300,cv=0")(0.3) == 300
    for spec, said in (
        ("constant:0.9", "lengths are spelled constant:MEAN of 1 or more"),
        ("constant:5,cv=1", "lengths are spelled"), ("lognormal:5,sd=1", "lengths are spelled"),
        ("constant:x", "'x' is no number from 0 to 1000000"), ("constant:-1", "'-1' is no number"),
        ("constant:1000001", "is no number"), ("lognormal:5,cv=x", "'x' is no number"),
    ):  # fmt: skip
        with pytest.raises(InputError) as caught:
            lengths(spec)
        assert said in str(caught.value)
    assert lengths("constant:1000000")(0.5) == 1_000_000 and lengths("constant:1")(0.5) == 1


def test_tokens_blocks_and_answers_of_bytes() -> None:
    assert [Prompt.of_text(text).tokens for text in ("", "a", "abcd", "abcde", "é" * 2)] == [
        1, 1, 1, 2, 1,
    ]  # fmt: skip
    ids = Prompt.of_ids([1, 2, 3])
    assert ids.tokens == 3 and ids.data == array.array("q", [1, 2, 3]).tobytes()
    text = Prompt.of_text("abcdefghij")
    keys, before = [], bytes([4])
    for part in (b"abcd", b"efgh"):
        before = blake2b(before + part, digest_size=8).digest()
        keys.append(int.from_bytes(before, "big"))
    assert text.block_keys(1) == tuple(keys) and len(text.block_keys(2)) == 1
    assert text.block_keys(3) == () and Prompt.of_ids([7]).block_keys(1) != ()
    digest = blake2b(text.data, digest_size=8, person=b"answer").digest()
    assert text.answer() == Answer(int.from_bytes(digest, "big"))
    answer = Answer(2**63 + 5)
    said = [answer.token(at) for at in range(500)]
    assert all(len(word) == 4 and word[:1] == b" " for word in said)
    assert len(set(said)) == 64 and answer.text(3).encode() == b"".join(said[:3])
    from lengthwise.serving.mock.text import WORDS

    assert said[2] == WORDS[((2**63 + 5 + 2 * 0x9E3779B97F4A7C15) % 2**64) // 2**58]


# The node, metrics and the driver


def node(**engine: Any) -> Node:
    options = Engine(**{"max_num_seqs": 2, "num_gpu_blocks": 10, **engine})
    return Node(options, LinearTiming(1.0), load_policy("fcfs"))


def asked(prompt: int, output: int, **more: Any) -> Asked:
    return Asked(prompt_tokens=prompt, output_tokens=output, **more)


def test_a_live_node_by_hand() -> None:
    made = LiveNode(node())
    assert made._features.seed == 0 and LiveNode(node(), seed=3)._features.seed == 3
    assert made.longest == 9 * 16 + 1 and made.next_ps is None and made.kv_utilization == 0
    assert LiveNode(node(max_model_len=100)).longest == 100
    whole = {"enable_chunked_prefill": False, "max_num_batched_tokens": 50}
    assert LiveNode(node(**whole)).longest == 50
    first = made.add(asked(20, 2), 0)
    second, third = made.add(asked(5, 1), 0), made.add(asked(5, 1), 0)
    assert made.waiting == 3 and made.running == 0 and made.next_ps == 0
    assert made.advance(0) == [] and (made.running, made.waiting) == (2, 1)
    assert made.next_ps == PS and made.kv_utilization == 3 / 9
    found = made.advance(PS)
    assert [(token.seen_ps, token.request, token.last) for token in found] == [
        (PS, first, False), (PS, second, True),
    ]  # fmt: skip
    assert (made.running, made.waiting) == (2, 0)
    found = made.advance(5 * PS)
    assert [(token.seen_ps, token.request, token.last) for token in found] == [
        (2 * PS, first, True), (2 * PS, third, True),
    ]  # fmt: skip
    assert made.running == 0 and made.next_ps is None and made.preemptions == 0
    with pytest.raises(InvariantError, match="a request came at"):
        made.add(asked(1, 1), PS)
    with pytest.raises(InputError, match="is longer than 145 tokens"):
        made.add(asked(144, 2), 5 * PS)
    made.add(asked(144, 1), 5 * PS)


def test_a_live_node_s_time_ends_with_that_of_runs() -> None:
    made = LiveNode(node())
    assert made.advance(LAST_PS) == []
    with pytest.raises(InputError, match=r"beyond 9.2e"):
        made.advance(LAST_PS + 1)


def test_a_deadline_is_so_long_after_the_arrival() -> None:
    """And lengths by what was told, drawn, at least or at most asked for."""
    heard: list[Any] = []
    made = object.__new__(server.MockServer)
    made.serving, made._count, made._predict = server.Serving(seed=3), 0, None
    made._node, made._length = LiveNode(node()), lambda draw: 40  # 145 tokens in all
    made._driver = SimpleNamespace(  # type: ignore[assignment]
        add=lambda asked, reason: heard.append((asked(5.0), reason))
    )
    for body, output, reason in (
        ({"vllm_xargs": {"deadline_s": 2.5, "output_tokens": 6}}, 6, "stop"),
        ({"max_tokens": 50}, 40, "stop"), ({"max_tokens": 40}, 40, "stop"),
        ({"max_tokens": 39}, 39, "length"), ({"max_tokens": 50, "min_tokens": 45}, 45, "stop"),
        ({"max_tokens": 9, "ignore_eos": True}, 9, "length"),
        ({"max_tokens": 144, "vllm_xargs": {"output_tokens": 200}}, 144, "length"),
    ):  # fmt: skip
        made._begin(called(**body))
        asked, said = heard[-1]
        assert (asked.output_tokens, said, asked.prompt_tokens) == (output, reason, 1), body
    assert heard[0][0].deadline_s == 7.5 and heard[1][0].deadline_s == math.inf
    status, said = refused(lambda: made._begin(called(max_tokens=145)))
    assert status == 400 and "maximum context length is 145 tokens" in said


def test_each_call_has_a_length_of_its_own_its_blocks_and_its_prediction() -> None:
    heard: list[Any] = []
    told: list[Any] = []
    made = object.__new__(server.MockServer)
    made.serving, made._count = server.Serving(seed=3), 5
    made._predict = lambda call, output, number: told.append((call.text, output, number))
    made._node, made._length = LiveNode(node()), lambda draw: 1 + int(100 * draw)
    made._driver = SimpleNamespace(  # type: ignore[assignment]
        add=lambda asked, reason: heard.append((asked(5.0), reason))
    )
    for _ in range(3):
        made._begin(called(max_tokens=144))
    drawn = [1 + int(100 * uniform(3, number, 0)) for number in (5, 6, 7)]
    assert [asked.output_tokens for asked, _ in heard] == drawn and len(set(drawn)) == 3
    assert told == [("q", length, number) for number, length in zip((5, 6, 7), drawn, strict=True)]
    # who ignores the end is told to end by its length alone
    made._begin(called(max_tokens=10, ignore_eos=True, vllm_xargs={"output_tokens": 4}))
    assert (heard[-1][0].output_tokens, heard[-1][1]) == (4, "length")
    # without a limit there is room for what the prompt leaves
    made._begin(called(chat=True, ignore_eos=True))
    asked, reason = heard[-1]
    assert asked.prompt_tokens + asked.output_tokens == made._node.longest and reason == "length"
    long = [{"role": "user", "content": "x" * 4 * 200}]
    _, said = refused(lambda: made._begin(called(chat=True, messages=long)))
    assert "requested 1 output tokens and your prompt contains 20" in said
    _, said = refused(lambda: made._begin(called(prompt="x" * 4 * 144, max_tokens=2)))
    assert "requested 2 output tokens and your prompt contains 144 input tokens" in said
    made._begin(called(prompt="x" * 4 * 144, max_tokens=1))
    assert heard[-1][0].block_keys == ()
    cached = Node(
        Engine(num_gpu_blocks=50, block_size=4, enable_prefix_caching=True), LinearTiming(0.01),
        load_policy("fcfs"),
    )  # fmt: skip
    made._node = LiveNode(cached)
    made._begin(called(prompt="x" * 4 * 9, max_tokens=1))
    assert heard[-1][0].block_keys == Prompt.of_text("x" * 36).block_keys(4)
    assert len(heard[-1][0].block_keys) == 2


def test_who_hangs_up_is_forgotten_wherever_it_is() -> None:
    made = LiveNode(node())
    coming, running, done = (made.add(asked(5, output), 0) for output in (3, 3, 1))
    made.remove(coming)
    made.advance(0)
    assert made.running == 2 and made.waiting == 0
    made.remove(running)
    found = made.advance(PS)
    assert [token.request for token in found] == [done] and made.running == 0
    made.remove(done)  # its answer is complete: nothing happens
    assert made.replica.outstanding == 0 and not made.replica.here


def shown(made: metrics.Metrics) -> dict[str, float]:
    return {
        sample.name + "".join(
            f"[{value}]" for key, value in sorted(sample.labels.items())
            if key in ("le", "finished_reason")
        ): sample.value
        for family in text_string_to_metric_families(made.text().decode())
        for sample in family.samples
    }  # fmt: skip


def test_metrics_by_hand() -> None:
    live: Any = SimpleNamespace(
        longest=145, num_gpu_blocks=10, engine=Engine(enable_prefix_caching=True), running=2,
        waiting=3, kv_utilization=0.25, preemptions=0,
    )  # fmt: skip
    made = metrics.Metrics(live, "m")
    one: Any = SimpleNamespace(arrival_ps=PS, scheduled_ps=2 * PS, prompt=7, cached=4, output=3)
    made.first_token(one, 3 * PS)
    made.token(PS // 2)
    made.token(PS)
    made.ended(one, "stop", 3 * PS, 5 * PS)
    other: Any = SimpleNamespace(arrival_ps=0, scheduled_ps=0, prompt=9, cached=-1, output=1)
    made.first_token(other, PS)
    made.ended(other, "length", PS, PS)
    made.ended(other, "abort", PS, PS)
    live.preemptions = 5
    found = shown(made)
    assert found["vllm:num_requests_running"] == 2 and found["vllm:num_requests_waiting"] == 3
    assert found["vllm:kv_cache_usage_perc"] == 0.25 and found["vllm:num_preemptions_total"] == 5
    assert found["vllm:prompt_tokens_total"] == 16 and found["vllm:generation_tokens_total"] == 4
    assert found["vllm:prefix_cache_queries_total"] == 16
    assert found["vllm:prefix_cache_hits_total"] == 4
    for name, total, count in (
        ("time_to_first_token_seconds", 2 + 1, 2), ("request_queue_time_seconds", 1 + 0, 2),
        ("inter_token_latency_seconds", 1.5, 2), ("e2e_request_latency_seconds", 4 + 1, 2),
        ("request_time_per_output_token_seconds", 1, 1), ("request_prompt_tokens", 16, 2),
        ("request_generation_tokens", 4, 2),
    ):  # fmt: skip
        assert found[f"vllm:{name}_sum"] == total and found[f"vllm:{name}_count"] == count
    ended = {reason: found[f"vllm:request_success_total[{reason}]"]
             for reason in ("stop", "length", "abort")}  # fmt: skip
    assert ended == {"stop": 1, "length": 1, "abort": 1}
    assert found["vllm:request_prompt_tokens_bucket[5.0]"] == 0
    assert found["vllm:request_prompt_tokens_bucket[10.0]"] == 2
    live.preemptions = 6
    assert (
        shown(made)["vllm:num_preemptions_total"] == 6 == shown(made)["vllm:num_preemptions_total"]
    )
    assert metrics._one_two_five(145) == [1, 2, 5, 10, 20, 50, 100]
    assert metrics._one_two_five(100)[-1] == 100 and metrics._one_two_five(99)[-1] == 50
    live.engine = Engine()
    silent = metrics.Metrics(live, "m")
    silent.first_token(one, 3 * PS)
    assert shown(silent)["vllm:prefix_cache_queries_total"] == 0


def test_a_driver_keeps_time_by_a_clock() -> None:
    async def drive() -> None:
        now = [100.0]
        live = LiveNode(node())
        books = metrics.Metrics(live, "m")
        made = driver.Driver(live, books, 8.0, clock=lambda: now[0])
        log = made.log = []
        assert made.now_ps() == 0 and made.under_way == 0
        told: list[float] = []

        def come(output: int) -> Callable[[float], Asked]:
            def of(at_s: float) -> Asked:
                told.append(at_s)
                return asked(5, output)

            return of

        now[0] += 0.0625  # half a second of the engine
        first = made.add(come(2), "stop")
        second = made.add(come(9), "length")
        assert told == [0.5, 0.5] and made.under_way == 2 and not first.complete
        now[0] += 0.140625  # 1.125 s on; the second came as the iteration began
        made.look()
        assert (first.tokens, second.tokens) == (1, 0)
        assert first.first_ps == first.last_ps == PS + PS // 2
        now[0] += 0.125
        made.look()
        assert first.complete and first.last_ps == 2 * PS + PS // 2 and made.under_way == 1
        await first.all()
        await second.more()
        made.leave(first)  # it has all of it
        made.leave(second)
        assert made.under_way == 0 and live.running == 0
        assert log == [
            driver.Row(0.5, 5, 2, 1.5, 2.5, "stop"), driver.Row(0.5, 5, 1, 2.5, -1.0, "abort"),
        ]  # fmt: skip
        third = made.add(come(1), "stop")
        made.leave(third)
        assert log[-1] == driver.Row(2.625, 5, 0, -1.0, -1.0, "abort")
        found = shown(books)
        assert found["vllm:inter_token_latency_seconds_count"] == 1
        assert found["vllm:time_to_first_token_seconds_sum"] == 1 + 2
        made.close()

    asyncio.run(drive())


def test_a_driver_looks_when_something_happens() -> None:
    async def drive() -> float:
        live = LiveNode(Node(Engine(max_num_seqs=2, num_gpu_blocks=10), LinearTiming(0.5),
                             load_policy("fcfs")))  # fmt: skip
        made = driver.Driver(live, metrics.Metrics(live, "m"), 50.0)
        served = made.add(lambda at_s: asked(5, 3), "stop")
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.wait_for(served.all(), 30)
        made.close()
        return loop.time() - began

    assert asyncio.run(drive()) >= 3 * 0.5 / 50 * 0.9


def test_an_engine_that_ends_tells_everybody() -> None:
    async def drive() -> None:
        error = InputError("forever")
        heard: list[Any] = []
        live = LiveNode(node())
        made = driver.Driver(live, metrics.Metrics(live, "m"), on_failure=heard.append,
                             clock=lambda: 1.0)  # fmt: skip
        served = made.add(lambda at_s: asked(5, 3), "stop")

        def fails(until_ps: int) -> Any:
            raise error

        live.advance = fails  # type: ignore[method-assign]
        made.look()
        made.look()
        assert heard == [error] == [made.failed]
        with pytest.raises(InputError, match="forever"):
            await served.all()
        with pytest.raises(InputError, match="forever"):
            made.add(lambda at_s: asked(5, 3), "stop")
        made.log = []
        made.leave(served)  # nothing is left to be told
        assert made.log == [] and made.under_way == 1

    asyncio.run(drive())
