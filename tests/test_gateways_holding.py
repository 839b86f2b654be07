"""Requests that wait at the picker, sessions that stay, and functions that shed."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lengthwise.errors import InputError
from lengthwise.policies.plugins.calls import call_of
from lengthwise.policies.plugins.gateways import sessions as sessions_module
from lengthwise.policies.plugins.gateways import waiting as waiting_module
from lengthwise.policies.plugins.gateways.endpoints import Endpoints
from lengthwise.policies.plugins.gateways.picker import Options, Pick, Picker, Refusal
from lengthwise.policies.plugins.gateways.prefixes import Prefixes
from lengthwise.policies.plugins.gateways.scrape import Seen
from lengthwise.policies.plugins.gateways.sessions import Sticky
from lengthwise.policies.plugins.gateways.waiting import Asked, Waiting
from lengthwise.policies.plugins.metrics import Counters
from lengthwise.policies.plugins.prompt_lengths import Expected
from tests.gateway_fleet import Desk, addresses, ended

A, B = addresses(2)


def asked(**more: Any) -> bytes:
    return json.dumps({"prompt": "x" * 40, "max_tokens": 50, **more}).encode()


def function(folder: Path, text: str) -> str:
    """A user's function in a file."""
    file = folder / f"gate_{len(list(folder.iterdir()))}.py"
    file.write_text(f"import numpy as np\n\n\n{text}\n")
    return f"{file}:score"


def seen(**features: float) -> Seen:
    return Seen(features)


async def turns() -> None:
    """Lets everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


def waiting_for(picker: Picker, **more: Any) -> asyncio.Task[Pick]:
    headers = more.pop("headers", {})
    subset = more.pop("subset", None)
    return asyncio.create_task(picker.pick(asked(**more), headers, subset))


async def refused(work: Any) -> Refusal:
    with pytest.raises(Refusal) as found:
        await work
    return found.value


# Holding


def test_requests_wait_until_an_endpoint_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        desk = Desk(monkeypatch)
        options = {"policy": "least-tokens", "hold_above": 2, "queue": 3}
        async with desk.open(Endpoints([A, B]), **options) as picker:
            under_way = [await picker.pick(asked(), {}) for _ in range(4)]
            late = [waiting_for(picker, max_tokens=n + 1) for n in range(3)]
            await turns()
            assert len(picker.queue) == 3 and not any(one.done() for one in late)
            desk.now[0] += 2.5
            # one more than may wait: when the first of them came, is when it may ask again
            told = await refused(picker.pick(asked(), {}))
            assert (told.status, told.retry_after) == (429, 3)
            picker.ended(ended(under_way[1]))
            await turns()
            assert late[0].done() and (await late[0]).endpoint == under_way[1].endpoint
            assert (await late[0]).waited_s == 2.5 and not late[1].done()
            # one whose client leaves waits no longer, and is sent nowhere
            late[1].cancel()
            await turns()
            assert len(picker.queue) == 1 and picker.under_way == 4
            picker.ended(under_way[0])
            await turns()
            assert (await late[2]).expected.answer == 3
            assert picker.under_way == 4 and len(picker.queue) == 0
            text = picker.metrics.text()
            assert b"lengthwise_epp_queue 0.0" in text
            assert b"lengthwise_epp_queue_seconds_count 3.0" in text
            assert b'lengthwise_epp_requests_total{answer="picked"} 6.0' in text
            assert b'lengthwise_epp_requests_total{answer="429"} 1.0' in text

    asyncio.run(run())


def test_who_waits_too_long_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        desk = Desk(monkeypatch)
        options = {"policy": "least-tokens", "hold_above": 1, "queue_timeout_s": 0.05}
        async with desk.open(Endpoints([A]), **options) as picker:
            under_way = await picker.pick(asked(), {})
            told = await refused(picker.pick(asked(), {}))
            assert (told.status, told.retry_after, str(told)) == (
                429, 1, "no endpoint was free for 0.05 s",
            )  # fmt: skip
            waits = waiting_for(picker)
            await turns()
            picker._states[A].up = False
            assert (await refused(waits)).status == 503
            assert len(picker.queue) == 0 and picker.under_way == 1
            picker.ended(under_way)

    asyncio.run(run())


def test_a_turn_and_a_time_out_that_come_at_once_leak_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run() -> None:
        desk = Desk(monkeypatch)
        async with desk.open(Endpoints([A]), policy="round-robin", hold_above=1) as picker:
            under_way = await picker.pick(asked(), {})
            waits = waiting_for(picker)
            await turns()
            picker.ended(under_way)  # its turn comes,
            waits.cancel()  # and its client is gone
            with pytest.raises(asyncio.CancelledError):
                await waits
            assert picker.under_way == 0 and picker.router.unfinished(A) == 0

    asyncio.run(run())


def test_those_that_may_go_elsewhere_do_not_wait_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run() -> None:
        desk = Desk(monkeypatch)
        async with desk.open(Endpoints([A, B]), policy="least-tokens", hold_above=1) as picker:
            under_way = [await picker.pick(asked(), {}) for _ in range(2)]
            only_a = waiting_for(picker, subset=frozenset([A]))
            await turns()
            both = waiting_for(picker)
            await turns()
            (at_b,) = [pick for pick in under_way if pick.endpoint == B]
            picker.ended(at_b)
            await turns()
            assert both.done() and (await both).endpoint == B and not only_a.done()
            only_a.cancel()

    asyncio.run(run())


def test_a_policy_that_takes_no_endpoint_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Infinity for every endpoint; for some, it is the others' turn."""
    spec = function(
        tmp_path,
        "def score(running_requests, outstanding_requests):\n"
        "    return np.where(running_requests > 4, np.inf, outstanding_requests)",
    )

    async def run() -> None:
        desk = Desk(monkeypatch)
        desk.said[A] = seen(running_requests=5)
        async with desk.open(Endpoints([A, B]), policy=spec) as picker:
            assert {(await picker.pick(asked(), {})).endpoint for _ in range(3)} == {B}
            desk.said[B] = seen(running_requests=9)
            await picker._look(B)
            waits = waiting_for(picker)
            await turns()
            assert not waits.done()
            desk.said[A] = seen(running_requests=4)
            await picker._look(A)  # what it says of itself releases too
            assert (await waits).endpoint == A
        # a dry run holds nobody
        desk.said[A] = seen(running_requests=5)
        async with desk.open(Endpoints([A]), policy=spec, dry_run=True) as picker:
            assert (await picker.pick(asked(), {})).endpoint == A

    asyncio.run(run())


def test_functions_hold_and_shed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In seconds of work: above 0 at every endpoint, until it is not."""
    spec = function(
        tmp_path,
        "def score(outstanding_tokens, priority, *, most=150.0):\n"
        "    return (outstanding_tokens - most) / 50.0 - 1e9 * (priority < 0)",
    )

    async def run() -> None:
        desk = Desk(monkeypatch)
        # a request is 10 tokens of prompt and 50 of answer
        more = {"policy": "least-tokens", "default_tokens": 50.0}
        async with desk.open(Endpoints([A, B]), shed=spec, **more) as picker:
            under_way = [await picker.pick(asked(), {}) for _ in range(6)]
            told = await refused(picker.pick(asked(), {}))
            assert (told.status, told.retry_after) == (429, 1)  # (180 - 150) / 50 s
            picker.ended(await picker.pick(asked(priority=-1), {}))
            picker.ended(under_way[0])
            under_way[0] = await picker.pick(asked(), {})
        async with desk.open(Endpoints([A]), hold=spec, **more) as picker:
            under_way = [await picker.pick(asked(), {}) for _ in range(3)]
            waits = waiting_for(picker)
            await turns()
            assert not waits.done()
            picker.ended(under_way[0])
            await turns()
            assert waits.done()
        # one that fails keeps nobody
        broken = function(tmp_path, "def score(outstanding_tokens):\n    return 1 / 0")
        async with desk.open(Endpoints([A]), hold=broken, shed=broken) as picker:
            assert (await picker.pick(asked(), {})).endpoint == A
        nobody = function(tmp_path, "def score(decode_tokens_per_s):\n    return 0.0")
        with pytest.raises(InputError, match="say decode_tokens_per_s"):
            Picker(Endpoints([A]), Options(shed=nobody))

    asyncio.run(run())


def test_a_function_that_stops_working_keeps_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = function(
        tmp_path, "def score(outstanding_requests):\n    return outstanding_requests * 0 + 1"
    )

    async def run() -> None:
        desk = Desk(monkeypatch)
        async with desk.open(Endpoints([A]), hold=spec, queue=0, shed=spec) as picker:
            assert (await refused(picker.pick(asked(), {}))).status == 429
            for gate in (picker._hold, picker._shed):
                assert gate is not None
                gate.off = True  # as a slow one is
            assert (await picker.pick(asked(), {})).endpoint == A

    asyncio.run(run())


# The queue's order


def row(place: int, tenant: str = "", answer: float = 10.0, **more: Any) -> Asked:
    call = call_of({"prompt": "x" * 40, "headers": {"x-tenant-id": tenant} if tenant else {}})
    return Asked(call, Expected(10.0, answer), float(place), **more)


def order(queue: Waiting) -> list[float]:
    found = []
    for one in queue.in_order(100.0):
        queue.remove(one)
        queue.served(one)
        found.append(one.arrival_s)
    return found


def queue_of(spec: str = "", fair: bool = False) -> Waiting:
    return Waiting(spec, fair, Counters(), 0.1)


def test_the_queue_is_first_come_first_served_or_a_policy_s() -> None:
    for spec, expected in (("", [0, 1, 2]), ("fcfs", [0, 1, 2]), ("sjf", [1, 2, 0])):
        queue = queue_of(spec)
        for place, answer in enumerate((30.0, 10.0, 20.0)):
            queue.add(row(place, answer=answer))
        assert order(queue) == expected
    queue = queue_of("priority")
    for place, priority in enumerate((2.0, 1.0, 1.0)):
        queue.add(row(place, priority=priority))
    assert order(queue) == [1, 2, 0]
    assert queue_of("sjf").reads == ("predicted_tokens",) and queue_of().reads == ()
    with pytest.raises(InputError, match="expected_remaining_tokens"):
        queue_of("srtf")
    with pytest.raises(InputError, match="preempts"):
        queue_of("sjf+preempt")
    assert queue.longest_s(9.0) == 0.0
    queue.add(row(4))
    queue.add(row(5))
    assert queue.longest_s(9.0) == 5.0


def test_tenants_are_served_in_turns_and_save_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = queue_of(fair=True)
    for place in range(4):
        queue.add(row(place, "greedy"))
    queue.add(row(4, "modest"))
    queue.add(row(5, "modest"))
    assert order(queue) == [0, 4, 1, 5, 2, 3]
    # greedy was served 80 tokens by now, and modest 40; who comes back has no more credit than that
    queue.add(row(6, "greedy"))
    queue.add(row(7, "modest"))
    queue.add(row(8, "new"))
    queue.add(row(9, "new"))
    assert order(queue) == [6, 7, 8, 9]
    monkeypatch.setattr(waiting_module, "MOST_TENANTS", 2)
    queue.served(row(10, "other"))
    assert list(queue._served) == ["new", "other"]


# Objectives, tenants, sessions


@pytest.mark.parametrize(
    ("body", "headers", "due"),
    [
        ({}, {}, math.inf),
        ({}, {"x-slo-ttft-ms": "500"}, 0.5),
        ({}, {"x-llm-d-slo-ttft-ms": "500", "x-slo-tpot-ms": "20"}, 0.5 + 50 * 0.02),
        ({}, {"x-slo-tpot-ms": "20"}, 50 * 0.02),
        ({}, {"x-slo-ttft-ms": "soon", "x-slo-tpot-ms": "-3"}, math.inf),
        ({"vllm_xargs": {"deadline_s": 3}}, {"x-slo-ttft-ms": "500"}, 3.0),
        ({"vllm_xargs": [3]}, {}, math.inf),
    ],
)
def test_objectives_are_when_an_answer_is_due(
    body: dict[str, Any], headers: dict[str, str], due: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        told: list[dict[str, Any]] = []
        desk = Desk(monkeypatch)
        async with desk.open(Endpoints([A])) as picker:
            rank = picker.router.rank_or_hold

            def ranked(candidates: Any, **features: Any) -> Any:
                told.append(features)
                return rank(candidates, **features)

            monkeypatch.setattr(picker.router, "rank_or_hold", ranked)
            desk.now[0] += 7.0
            await picker.pick(asked(**body), headers)
        assert told[0]["deadline_s"] == 7.0 + due

    asyncio.run(run())


def test_fairness_ids_are_tenants(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        desk = Desk(monkeypatch)
        async with desk.open(Endpoints([A])) as picker:
            for name in ("x-gateway-inference-fairness-id", "x-llm-d-inference-fairness-id"):
                pick = await picker.pick(asked(), {name: "t"})
                assert pick.call.known["tenant"] == "t"

    asyncio.run(run())


def test_sessions_stay_while_it_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        desk = Desk(monkeypatch)
        said = {"policy": "round-robin", "default_tokens": 50.0}

        async def picked(picker: Picker, **headers: str) -> str:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return (await picker.pick(asked(), named)).endpoint

        async with desk.open(Endpoints([A, B]), **said) as picker:
            assert [await picked(picker, x_session_id="s") for _ in range(2)] == [A, B]
        async with desk.open(Endpoints([A, B]), sticky=math.inf, **said) as picker:
            assert [await picked(picker, x_session_id="s") for _ in range(3)] == [A, A, A]
            assert await picked(picker, x_session_id="t") == B
            assert await picked(picker) == B  # no session: the policy's choice
            # an endpoint that is gone is nobody's
            picker._states[A].up = False
            assert await picked(picker, x_session_id="s") == B
            picker._states[A].up = True
            assert await picked(picker, x_session_id="s") == B
        # 60 tokens a request: two of them are one too many
        async with desk.open(Endpoints([A, B]), sticky=119.0, **said) as picker:
            assert [await picked(picker, x_session_id="s") for _ in range(3)] == [A, A, B]
        async with desk.open(
            Endpoints([A, B]), sticky=math.inf, session_cookie="sid", **said
        ) as picker:
            cookie = "a=b; sid=s; c"
            assert [await picked(picker, cookie=cookie) for _ in range(2)] == [A, A]
            assert await picked(picker, cookie="xsid=s; sid=") == B
            assert await picked(picker, cookie=cookie, x_session_id="other") != "nowhere"
            # who really served is where it stays
            pick = await picker.pick(asked(), {"x-session-id": "moved"})
            other = B if pick.endpoint == A else A
            picker.served_by(pick, other)
            assert await picked(picker, x_session_id="moved") == other

    asyncio.run(run())


def test_so_many_sessions_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions_module, "MOST", 2)
    sticky = Sticky(0.0)
    for name in ("a", "b", "a", "c"):
        sticky.sent(name, name.upper())
    assert [sticky.endpoint(name) for name in "abc"] == ["A", None, "C"]


# Prompts that come as token ids


def test_prompts_of_token_ids_have_a_length_and_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    for said, expected in (
        (list(range(40)), 40.0), ([list(range(40))], 40.0), ([1, "a"], 1.0), ([], 1.0),
        ([[1, 2], [3]], 1.0), ([True, 2], 1.0),
    ):  # fmt: skip
        tokens = call_of({"prompt": said}).tokens
        assert (len(tokens) if tokens else 1.0) == expected, said
    known = Prefixes()
    ids = list(range(100))
    known.sent(ids, A)
    assert known.cached_tokens(ids, [A, B]) == {A: 96.0, B: 0.0}
    assert known.cached_tokens([*ids[:40], 7, *ids[41:]], [A])[A] == 32.0
    assert known.cached_tokens([2**80, *ids], [A])[A] == 0.0

    async def run() -> None:
        desk = Desk(monkeypatch)
        async with desk.open(Endpoints([A, B]), policy="prefix-affinity") as picker:
            pick = await picker.pick(asked(prompt=ids), {})
            assert pick.expected.prompt == 100.0
            picker.ended(pick)
            assert (await picker.pick(asked(prompt=ids), {})).endpoint == pick.endpoint

    asyncio.run(run())


def test_an_event_counts_for_the_tokens_that_it_brings(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine may send several tokens at a time; what answers that ended told is taken for it."""

    async def run() -> None:
        told: list[dict[str, Any]] = []
        desk = Desk(monkeypatch)
        async with desk.open(Endpoints([A]), policy="least-tokens", default_tokens=50.0) as picker:
            report: Callable[..., None] = picker.router.report

            def reported(address: Any, **values: Any) -> None:
                told.append(values)
                report(address, **values)

            monkeypatch.setattr(picker.router, "report", reported)
            first, second = [await picker.pick(asked(), {}) for _ in range(2)]
            picker._backlogs = True
            for pick in (first, second):
                pick.answer.feed(b"data: a\n\ndata: b\n\n")
            picker._report_backlogs([A])
            picker.ended(ended(first, 16))
            picker._report_backlogs([A])
            decode = [
                one["decode_backlog_tokens"] for one in told if "decode_backlog_tokens" in one
            ]
            assert decode[-2:] == [96.0, 34.0]  # 2 x (50 - 2), then 50 - 2 x 8

    asyncio.run(run())
