"""The parts of the engine that both share, by hand: options, nodes, events, draws, records."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.picoseconds import LONGEST_S, MOST_PS, PS
from lengthwise.policies import load_policy, load_router
from lengthwise.protocols import Batch
from lengthwise.serving import Engine, Node, Stops, System, answers, draws, events, listed
from lengthwise.serving.clock import SWAP_S_PER_TOKEN, Clock
from lengthwise.serving.events import (
    FAIL,
    LOST,
    NEVER_PS,
    NOTICE,
    UP,
    Fail,
    RandomEvents,
    Slow,
    downtime_ps,
    place_of,
    read_events,
    slow_windows,
    stretched,
    turns,
)
from lengthwise.serving.inputs import (
    block_keys,
    check_policy,
    gpu_blocks,
    node_blocks,
    predictions_of,
    prepare,
)
from lengthwise.serving.nodes import Kind, nodes_of, read_nodes
from lengthwise.serving.options import MOST, engine_of
from lengthwise.serving.records import Iterations, Records, lost_sums, with_lost
from lengthwise.serving.saturation import saturation_rate
from lengthwise.serving.system import HOLD, MOST_SEATS, Stop, Totals, check_seats
from lengthwise.serving.timing import LinearTiming
from lengthwise.serving.timing.model import Pipeline
from lengthwise.serving.transfer import KVTransfer
from lengthwise.workload import Workload

FCFS, SJF = load_policy("fcfs"), load_policy("sjf")
ONE = Node(Engine(max_num_seqs=1, num_gpu_blocks=100), LinearTiming(1.0), FCFS)


def line_of(make: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        make()
    return str(caught.value)


def workload(*rows: tuple[float, int, int], **more: Any) -> Workload:
    arrival, prompt, output = zip(*rows, strict=True)
    columns = {"arrival_s": arrival, "prompt_tokens": prompt, "output_tokens": output}
    return Workload({**columns, **more}, name="w")


# Options


@pytest.mark.parametrize(
    ("name", "least", "most", "beside"),
    [
        ("max_num_seqs", 1, 2**22, {"max_num_batched_tokens": 2**22}),
        ("max_num_batched_tokens", 1, 2**22, {"max_num_seqs": 1}),
        ("num_gpu_blocks", 1, 2**23, {}),
        ("block_size", 1, 2**40, {}),
        ("max_model_len", 1, 2**40, {}),
        ("long_prefill_token_threshold", 0, 2**40, {}),
    ],
)
def test_an_option_has_two_ends(name: str, least: int, most: int, beside: dict[str, Any]) -> None:
    for value in (least, most):
        assert getattr(Engine(**{**beside, name: value}), name) == value
    for value in (least - 1, most + 1, 1.5, True, "1"):
        with pytest.raises(InputError, match=name):
            Engine(**{**beside, name: value})
    assert (MOST, MOST_SEATS) == (2**40, 2**21)


def test_options_by_default_are_those_of_the_newest_vllm() -> None:
    made = Engine()
    assert (made.max_num_seqs, made.max_num_batched_tokens, made.block_size) == (256, 2048, 16)
    assert (made.num_gpu_blocks, made.max_model_len) == (None, None)
    assert made.enable_chunked_prefill and made.scheduler_reserve_full_isl
    assert not made.enable_prefix_caching and not made.async_scheduling
    assert (made.long_prefill_token_threshold, made.watermark) == (0, 0.0)
    assert Engine.of_vllm("0.33.0") == made == engine_of(None) == engine_of({}) == engine_of(made)
    old = Engine.of_vllm("0.26.0", max_num_seqs=8)
    assert old.long_prefill_applies_alone and not old.schedule_past_preemption
    assert not made.long_prefill_applies_alone and made.schedule_past_preemption
    assert old.max_num_seqs == 8 and engine_of({"block_size": 32}).block_size == 32
    assert Engine(watermark=0.999).watermark == 0.999
    for watermark in (-0.01, 1, True, "0", math.nan):
        with pytest.raises(InputError, match="watermark must be at least 0 and below 1"):
            Engine(watermark=watermark)  # type: ignore[arg-type]
    for name in ("enable_chunked_prefill", "async_scheduling", "schedule_past_preemption"):
        with pytest.raises(InputError, match=f"{name} must be true or false, not 1"):
            Engine(**{name: 1})
    with pytest.raises(InputError, match=r"\(7\) must be at least max_num_seqs \(8\)"):
        Engine(max_num_seqs=8, max_num_batched_tokens=7)
    assert Engine(max_num_seqs=8, max_num_batched_tokens=8).max_num_seqs == 8
    with pytest.raises(UnknownNameError, match="engine option 'block_sizes'; did you mean"):
        engine_of({"block_sizes": 3})
    with pytest.raises(UnknownNameError, match=r"unknown vLLM version '0\.1'"):
        Engine.of_vllm("0.1")


@pytest.mark.parametrize(
    ("gpu", "given", "seats", "tokens"),
    [
        ("h100", {}, 1024, 8192),  # 79 GiB
        ("h200", {}, 1024, 8192),
        ("a100", {}, 256, 2048),  # 79 GiB, but an A100
        ("l40s", {}, 256, 2048),
        ("h200", {"max_num_batched_tokens": 512}, 512, 512),  # no more seats than tokens
        ("h200", {"max_num_seqs": 7}, 7, 8192),
    ],
)
def test_what_a_server_chooses_by_itself(gpu: str, given: Any, seats: int, tokens: int) -> None:
    made = Engine.like("vllm-serve", gpu, **given)
    assert (made.max_num_seqs, made.max_num_batched_tokens) == (seats, tokens)
    assert made.async_scheduling and made.enable_prefix_caching
    assert not made.long_prefill_applies_alone
    assert Engine.like("vllm-serve", gpu, "0.26.0", **given).long_prefill_applies_alone


def test_no_server_of_that_name_gpu_or_version() -> None:
    with pytest.raises(UnknownNameError, match="'vllm'; did you mean 'vllm-serve'"):
        Engine.like("vllm", "h200")
    with pytest.raises(UnknownNameError, match="unknown GPU 'h20'; did you mean 'h200'"):
        Engine.like("vllm-serve", "h20")
    with pytest.raises(UnknownNameError, match="unknown vLLM version '9'"):
        Engine.like("vllm-serve", "h200", "9")


# Nodes and systems


def test_nodes_of_kinds_and_their_counts() -> None:
    kinds = (
        Kind(2, ONE.engine, ONE.timing, None, "both", "a"),
        Kind(1, ONE.engine, ONE.timing, SJF),
    )
    nodes = nodes_of(kinds, FCFS)
    assert [node.policy for node in nodes] == [FCFS, FCFS, SJF]
    assert [node.name for node in nodes] == ["a", "a", ""] and nodes[0] is nodes[1]
    for count in (0, -1, 1.0, True, "2"):
        with pytest.raises(InputError, match="count must be a whole number from 1"):
            Kind(count, ONE.engine, ONE.timing)  # type: ignore[arg-type]
    seats = Engine(max_num_seqs=2**11, num_gpu_blocks=9)
    assert Kind(2**10, seats, ONE.timing).count == 1024
    assert line_of(lambda: Kind(2**10 + 1, seats, ONE.timing)) == (
        "1025 nodes have 2099200 seats (max_num_seqs) in all; a run takes up to 2097152: fewer "
        "replicas, or fewer seats each"
    )


def test_nodes_are_spelled_made_and_described() -> None:
    engine = Engine(num_gpu_blocks=9)
    (one,) = read_nodes("h200/llama-3.1-8b", engine, ONE.timing)
    assert (one.count, one.engine, one.name, one.policy) == (1, engine, "", None)
    made, described = read_nodes([ONE, {"speed": 0.5, "max_num_seqs": 3}], engine, ONE.timing)
    assert (made.count, made.timing, made.policy, made.engine) == (1, ONE.timing, FCFS, ONE.engine)
    assert described.count == 1 and described.engine == replace(engine, max_num_seqs=3)
    assert described.timing.iteration_time(Batch(decode_seqs=1)) == 2.0
    first, second = read_nodes(
        [{"timing": "h200/llama-3.1-8b"}, {"timing": "h200/llama-3.1-8b"}], engine, ONE.timing
    )
    assert first.timing is second.timing
    with pytest.raises(UnknownNameError, match="unknown key 'sped' of node 1 in nodes; did you"):
        read_nodes([{}, {"sped": 1}], engine, ONE.timing)
    with pytest.raises(InputError, match="node 0 in nodes: timing must be a name, not 3"):
        read_nodes([{"timing": 3}], engine, ONE.timing)
    with pytest.raises(InputError, match="nodes: a system needs at least one node"):
        read_nodes(",", engine, ONE.timing)


def test_a_system_s_numbers_have_two_ends() -> None:
    router = load_router("jsq")
    assert System((ONE,), router, LONGEST_S).interval_ps == 9_200_000 * PS
    assert System((ONE,), router, 0.5).interval_ps == PS // 2 and System((ONE,), router).uniform
    for interval in (-0.1, LONGEST_S + 1, True, "1", math.nan):
        with pytest.raises(InputError, match="metrics_interval_s must be a number from 0 to"):
            System((ONE,), router, interval)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="replicas must be 1 or more, not 0"):
        System.replicated(ONE, 0, router)
    with pytest.raises(InputError, match="at least one node"):
        System((), router)
    check_seats(1, MOST_SEATS)
    with pytest.raises(InputError, match="1 nodes have 2097153 seats"):
        check_seats(1, MOST_SEATS + 1)
    named = System((replace(ONE, name="a"), ONE), router)
    assert named.names == ("a", "") and named.uniform
    assert (named.label(0), named.label(1)) == ("node 0 (a)", "node 1 (linear)")
    assert System.replicated(ONE, 3, router, 2.0).metrics_interval_s == 2.0
    with pytest.raises(UnknownNameError, match="unknown node role 'prefil'; did you mean"):
        replace(ONE, role="prefil")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "other",
    [
        {"engine": Engine(max_num_seqs=2, num_gpu_blocks=100)},
        {"timing": LinearTiming(2.0)},
        {"policy": SJF},
        {"role": "prefill"},
    ],
)
def test_nodes_of_two_kinds_are_not_uniform(other: dict[str, Any]) -> None:
    router = load_router("jsq")
    transfer = KVTransfer(1.0) if "role" in other else None
    assert not System((ONE, replace(ONE, **other)), router, kv_transfer=transfer).uniform
    equal = replace(ONE, engine=replace(ONE.engine), timing=LinearTiming(1.0))
    assert System((ONE, equal, ONE), router).uniform


def test_what_a_run_says_by_default() -> None:
    assert (HOLD, Stops().hold_ps, Stops().horizon_ps) == (-1, 20 * 10**9, None)
    assert not (Stops().route or Stops().admit or Stops().preempt)
    assert (Stop("done").node, Stop("done").request, Stop("done").candidates) == (-1, -1, 0)
    totals = Totals(*range(8))
    assert (totals.retries, totals.lost_tokens) == (0, 0)


def test_answers_name_nodes_and_places() -> None:
    due = Stop("route", -1, 4, candidates=3, closed=(1,))
    assert [answers.node(choice, due) for choice in (0, 2, -1, np.array([2]))] == [0, 2, -1, 2]
    assert line_of(lambda: answers.node([0, 2], due)) == "a route takes one node, not 2"
    for choice in (3, -2):
        assert "is not one of 0 to 2, nor HOLD (-1)" in line_of(
            lambda choice=choice: answers.node(choice, due)
        )
    assert line_of(lambda: answers.node(1, due)).startswith("node 1 is down, as nodes (1,) are")
    due = Stop("admit", 5, candidates=3)
    assert answers.places([2, 0], due) == [2, 0] and answers.places([], due) == []
    assert answers.places(1, due) == [1]
    for choice in ([3], [-1], [0, 0]):
        assert line_of(lambda choice=choice: answers.places(choice, due)).startswith(
            f"admit at node 5: {choice} is no answer; each must be one of 0 to 2, once"
        )


# Draws


def test_draws_are_of_the_published_generator() -> None:
    def splitmix(state: int) -> int:  # Vigna's C, with its one multiplication at a time
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
        return state ^ (state >> 31)

    assert draws.splitmix64(0) == 0xE220A8397B1DCDAF == splitmix(0)  # its first output for seed 0
    for seed, request, counter in ((0, 0, 0), (7, 5, 3), (2**64 + 7, 5, 3), (2**64 - 1, 9, 1)):
        key = splitmix((splitmix(seed % 2**64) + request) % 2**64)
        wanted = splitmix((key + counter) % 2**64)
        assert draws.draw(seed, request, counter) == wanted
        assert draws.uniform(seed, request, counter) == (wanted >> 11) / 2**53
    assert draws.draw(7, 5, 3) == draws.draw(2**64 + 7, 5, 3)


def test_a_sample_is_the_beginning_of_a_shuffle() -> None:
    for request in range(20):
        places = list("abcde")
        for k in range(3):
            other = k + draws.draw(4, request, 5 + k) % (5 - k)
            places[k], places[other] = places[other], places[k]
        found = draws.sample(4, request, 5, 3)
        assert ["abcde"[at] for at in found] == sorted(places[:3]) and len(set(found)) == 3
    assert draws.sample(4, 0, 3, 9) == [0, 1, 2]


def test_streams_are_numpy_s_own_and_seeds_are_whole() -> None:
    wanted = np.random.default_rng(np.random.SeedSequence(5, spawn_key=(1, 2))).random(3)
    assert draws.stream(5, 1, 2).random(3).tolist() == wanted.tolist()
    assert draws.stream(np.int64(5), 1, 2).random(3).tolist() == wanted.tolist()
    assert draws.stream(0).random() == np.random.default_rng(np.random.SeedSequence(0)).random()
    for seed in (-1, 1.0, True, "1", None):
        with pytest.raises(InputError, match="seed must be a whole number of 0 or more"):
            draws.stream(seed)  # type: ignore[arg-type]


# Lists in files


def test_lists_of_three_kinds_of_files(tmp_path: Path) -> None:
    rows = [{"a": 1, "b": 2.5}, {"a": "x"}]
    for name, text in (
        ("l.json", json.dumps(rows)), ("m.json", json.dumps({"events": rows})),
        ("l.yaml", "- {a: 1, b: 2.5}\n- {a: x}\n"), 
        ("l.yml", "events:\n- {a: 1, b: 2.5}\n- {a: x}"),
        ("l.csv", "a, b\n1, 2.5\nx,\n"),
    ):  # fmt: skip
        (tmp_path / name).write_text(text)
        assert listed.read_list(tmp_path / name, "events") == rows, name
    for name, text, said in (
        ("a.json", '{"event": []}', "unknown key 'event' of"),
        ("b.json", "3", "expected a list of events, not 3"),
        ("c.json", "{}", "expected a list of events, not None"),
        ("d.csv", "a,b\n1\n", "a row has other than the header's cells"),
        ("e.csv", "a,b\n1,2,3\n", "a row has other than the header's cells"),
        ("f.yaml", "[1", "can't be read"),
    ):
        (tmp_path / name).write_text(text)
        assert said in line_of(lambda name=name: listed.read_list(tmp_path / name, "events"))
    assert [listed._value(cell) for cell in ("3", " 4 ", "2.50", "x ")] == [3, 4, 2.5, "x"]


# Events


@pytest.mark.parametrize("kind", [Slow, Fail])
def test_times_of_events_have_two_ends(kind: Any) -> None:
    assert kind(0).at_s == 0 and kind(0).until_s is None and kind(0).ends_ps == NEVER_PS == 2**62
    assert kind(0, LONGEST_S - 1, LONGEST_S).ends_ps == 9_200_000 * PS
    assert kind(0, 0, 1e-12).ends_ps == 1
    for given, said in (
        ((0, -1), "at_s must be a number from 0 to 9.2e+06, not -1"),
        ((0, LONGEST_S * 2), "at_s must be a number"),
        ((0, True), "at_s must be a number"), ((0, "1"), "at_s must be a number"),
        ((0, 0, -1), "until_s must be a number from 0 to"),
        ((0, 0, LONGEST_S * 2), "until_s must be a number from 0 to"),
        ((0, 5, 5), "until_s must come after it, not 5"), ((0, 5, 4), "until_s must come after it"),
        ((0, 0, 0), "until_s must come after it"),
    ):  # fmt: skip
        assert said in line_of(lambda given=given: kind(*given))
    assert line_of(lambda: kind("n", 5, 4)).startswith(f"{kind.kind} of node 'n' at 5 s: ")


def test_factors_and_delays_have_two_ends() -> None:
    assert (
        Slow(0).factor == 2 and Slow(0, factor=1).factor == 1 and Slow(0, factor=1e6).factor == 1e6
    )
    for factor in (0.99, 1e6 + 1, True, math.nan, "2"):
        with pytest.raises(InputError, match="factor must be a number from 1 to 1e"):
            Slow(0, factor=factor)  # type: ignore[arg-type]
    for name in ("detected_after_s", "start_up_s"):
        assert getattr(Fail(0, **{name: LONGEST_S}), name) == LONGEST_S
        assert getattr(Fail(0), name) == 0
        for value in (-0.1, LONGEST_S + 1, True, "1"):
            with pytest.raises(InputError, match=f"{name} must be a number from 0 to"):
                Fail(0, **{name: value})  # type: ignore[arg-type]
    back = Fail(0, 2.0, 5.0, detected_after_s=1.0, start_up_s=0.5)
    assert (back.ends_ps, back.noticed_ps) == (5_500_000_000_000, 3 * PS)
    late = Fail(0, 2.0, 5.0, detected_after_s=9.0)
    assert late.noticed_ps == 5 * PS == late.ends_ps
    assert Fail(0, 2.0, detected_after_s=9.0).noticed_ps == 11 * PS


def test_stretching_is_rounded_to_the_nearest() -> None:
    shift = events.SHIFT
    assert shift == 20 and stretched(10, 1 << shift) == 10
    for duration, factor in (
        (10, 1.5),
        (3, 1.5),
        (2**40 + 12345, 2.75),
        (1, 1 + 2**-20),
        (7, 1.25),
    ):
        exact = duration * factor
        assert stretched(duration, round(factor * 2**shift)) == math.floor(exact + 0.5)


def test_nodes_of_events_by_place_or_name() -> None:
    names = ("a", "", "b", "a", "7")
    assert [place_of(node, names) for node in (0, 4, np.int64(2), "b", "1", "7")] == [
        0,
        4,
        2,
        2,
        1,
        4,
    ]
    for node in (5, -1, "5", "c", "", True, 1.0):
        with pytest.raises(UnknownNameError, match=r"unknown node .* of an event"):
            place_of(node, names)  # type: ignore[arg-type]
    assert line_of(lambda: place_of("a", names)) == (
        "2 nodes are called 'a': name one by its place, 0, 3"
    )
    assert line_of(lambda: place_of("a", ("a",) * 5)).endswith("0, 1, 2, 3 ...")
    assert line_of(lambda: place_of("a", ("a",) * 4)).endswith("0, 1, 2, 3")
    assert "(allowed: 0, 1, 2, 3, 4, 7, a, b)" in line_of(lambda: place_of("zz", names))


def test_a_timetable_by_hand() -> None:
    given = (
        Fail(1, 5.0, 9.0, detected_after_s=1.0), Fail(0, 5.0, 6.0), Slow(0, 1.0, 2.0, 1.5),
        Slow("b", 4.0), Slow(0, 0.5, 1.0, 3.0), Fail(0, 8.0, detected_after_s=0.5),
    )  # fmt: skip
    assert turns(given, ("", "b")) == (
        (5 * PS, FAIL, 1), (5 * PS, LOST, 0), (6 * PS, NOTICE, 1), (6 * PS, UP, 0),
        (8 * PS, FAIL, 0), (8 * PS + PS // 2, NOTICE, 0), (9 * PS, UP, 1),
    )  # fmt: skip
    assert (NOTICE, UP, FAIL, LOST) == (0, 1, 2, 3)
    one = 1 << 20
    assert slow_windows(given, ("", "b")) == (
        ((PS // 2, PS, 3 * one), (PS, 2 * PS, 3 * one // 2)), ((4 * PS, NEVER_PS, 2 * one),),
    )  # fmt: skip
    assert downtime_ps(given, 7 * PS) == 2 * PS + 1 * PS
    assert downtime_ps(given, 20 * PS) == 4 * PS + 1 * PS + 12 * PS
    assert downtime_ps(given, 5 * PS) == 0 == downtime_ps((), 9)
    system = System((ONE, ONE), load_router("jsq"), 0.0, given[1:2])
    assert system.downtime_s(5_500_000_000_000) == 0.5
    assert System((ONE,), load_router("jsq"), 0.0, (Slow(0),)).downtime_s(PS) is None


def test_events_that_no_system_can_have() -> None:
    def check(*given: Any, nodes: int = 2) -> None:
        events.check_events(given, ("",) * nodes)

    check(Fail(0, 0.0, 1.0), Fail(0, 1.0, 2.0), Slow(0, 0.5, 0.7), Fail(1, 0.5, 0.7))
    check(Fail(0), nodes=2)
    assert "slow of node 0 at 0.9 s: it overlaps the one at 0.0 s" in line_of(
        lambda: check(Slow(0, 0.9, 2.0), Slow(0, 0.0, 1.0))
    )
    assert "overlaps" in line_of(lambda: check(Fail(0, 0.0, 1.0, start_up_s=0.5), Fail(0, 1.2)))
    assert "every node fails and never comes back" in line_of(lambda: check(Fail(0), Fail(1)))
    assert "every node fails" in line_of(lambda: check(Fail(0), nodes=1))
    check(Fail(0, 0.0, 1.0), nodes=1)
    check(Slow(0), nodes=1)
    assert "an event must be one of slow, fail, not 3" in line_of(lambda: check(3))


def test_random_events_by_theory() -> None:
    """Times between are exponential; what a node is down is its share of its time."""
    given = RandomEvents(fail_every_s=10.0, fail_for_s=5.0, slow_every_s=20.0, slow_for_s=4.0)
    found = given.draw(np.random.default_rng(0), 3, 20_000.0)
    fails = [one for one in found if isinstance(one, Fail)]
    slows = [one for one in found if isinstance(one, Slow)]
    assert all(one.detected_after_s == 1.0 and one.until_s is not None for one in fails)
    assert {one.node for one in found} == {0, 1, 2} and max(one.at_s for one in found) < 20_000
    assert len(fails) == pytest.approx(3 * 20_000 / 15, rel=0.06)
    assert len(slows) == pytest.approx(3 * 20_000 / 24, rel=0.06)
    assert np.mean([one.until_s - one.at_s for one in fails]) == pytest.approx(5, rel=0.06)
    assert np.mean([one.until_s - one.at_s for one in slows]) == pytest.approx(4, rel=0.06)
    factors = [one.factor for one in slows]
    assert 1 <= min(factors) and max(factors) < 3 and np.mean(factors) == pytest.approx(2, rel=0.03)
    gaps = np.concatenate([
        np.diff([one.at_s for one in fails if one.node == node]) for node in range(3)
    ])  # fmt: skip
    assert gaps.min() > 0 and np.mean(gaps) == pytest.approx(15, rel=0.06)
    assert RandomEvents().draw(np.random.default_rng(0), 3, 1e6) == ()
    events.check_events(found, ("", "", ""))
    (window,) = events._windows(np.random.default_rng(1), 1e-3, 1e9, 1.0)
    assert window[1] == LONGEST_S and window[0] > 0


def test_random_events_numbers_have_two_ends() -> None:
    said = RandomEvents()
    assert (said.fail_for_s, said.slow_for_s, said.detected_after_s, said.slow_factor) == (
        30, 30, 1, 3,
    )  # fmt: skip
    for name in ("fail_every_s", "fail_for_s", "slow_every_s", "slow_for_s"):
        for value in (1e-3, LONGEST_S):
            assert getattr(RandomEvents(**{name: value}), name) == value
        for value in (9e-4, LONGEST_S + 1, True, "1"):
            with pytest.raises(InputError, match=f"{name} must be a number from 0.001 to"):
                RandomEvents(**{name: value})
    for name in ("fail_for_s", "slow_for_s"):
        with pytest.raises(InputError, match=f"{name} must be a number"):
            RandomEvents(**{name: None})
    with pytest.raises(InputError, match="detected_after_s must be"):
        RandomEvents(detected_after_s=-1)
    with pytest.raises(InputError, match="factor must be"):
        RandomEvents(slow_factor=0.5)
    assert RandomEvents.of({"fail_every_s": 3}).fail_every_s == 3 and RandomEvents.of(said) is said
    with pytest.raises(UnknownNameError, match="unknown key 'fail_every' of failures; did you"):
        RandomEvents.of({"fail_every": 3})
    with pytest.raises(InputError, match="failures must be keys and values, not 3"):
        RandomEvents.of(3)  # type: ignore[arg-type]


def test_events_are_read_from_what_they_say() -> None:
    assert read_events(None) == () == read_events([])
    made = read_events([{"kind": "slow", "node": 0, "at_s": 1}, Fail(0)])
    assert made == (Slow(0, 1), Fail(0))
    for given, said in (
        ("a.txt", "events are read from .yaml, .yml, .json, .csv files, not 'a.txt'"),
        (3, "events must be a file or a sequence, not 3"),
        ([3], "event 0 in events: expected the keys and values of an event, not 3"),
        ([{"kind": "slo"}], "unknown kind 'slo' of event 0 in events; did you mean 'slow'"),
        ([{"kind": "slow", "node": 0}], "event 0 in events: it needs at_s"),
        ([{"kind": "slow", "at_s": 0}], "event 0 in events: it needs node"),
        ([{"kind": "slow", "node": 0, "at_s": 0, "start_up_s": 1}], "unknown key 'start_up_s'"),
        ([Fail(0), {"kind": "slow", "node": 0, "at_s": -1}], "event 1 in events: slow of node 0"),
    ):
        assert said in line_of(lambda given=given: read_events(given))


# What a run starts from


def test_requests_that_could_never_run_are_refused_at_their_ends() -> None:
    def check(prompt: int, output: int, **options: Any) -> None:
        node = replace(ONE, engine=Engine(**{"num_gpu_blocks": 5, "max_num_seqs": 1, **options}))
        prepare(workload((0, 1, 1), (0, prompt, output)), System((node,), load_router("jsq")), None)

    check(60, 5)  # 65 tokens less the last are the 4 blocks of 16
    assert line_of(lambda: check(60, 6)) == (
        "request 1 has 60 prompt and 6 output tokens, but the KV cache has 4 usable blocks of 16 "
        "tokens (num_gpu_blocks 5 less vLLM's null block)"
    )
    check(20, 12, max_model_len=32)
    assert "but max_model_len is 32" in line_of(lambda: check(20, 13, max_model_len=32))
    whole = {"enable_chunked_prefill": False, "max_num_batched_tokens": 32}
    check(20, 12, **whole)
    assert "max_num_batched_tokens is 32 and chunked prefill is off" in line_of(
        lambda: check(20, 13, **whole)
    )
    check(20, 13, max_num_batched_tokens=32)
    two = System((ONE, replace(ONE, engine=Engine(max_num_seqs=1, num_gpu_blocks=2))),
                 load_router("jsq"))  # fmt: skip
    said = line_of(lambda: prepare(workload((0, 20, 1), (0, 20, 2)), two, None))
    assert said.startswith("node 1 (linear): request 0 has 20") and said.endswith("(and 1 more)")


def test_blocks_are_the_engine_s_or_the_timing_s() -> None:
    timing = LinearTiming(1.0, num_gpu_blocks=101)
    assert gpu_blocks(Engine(num_gpu_blocks=7), timing) == 7
    assert gpu_blocks(Engine(), timing) == 101 and gpu_blocks(Engine(block_size=32), timing) == 50
    assert gpu_blocks(Engine(block_size=8), timing) == 202
    with pytest.raises(InputError, match="timing 'linear' has no KV cache size"):
        gpu_blocks(Engine(), LinearTiming(1.0))
    big = replace(ONE, engine=Engine(block_size=32), timing=timing)
    assert node_blocks(System((ONE, big), load_router("jsq"))).tolist() == [100, 50]


def test_policies_that_no_node_can_follow() -> None:
    preempting = replace(load_policy("srtf"), queue="fcfs")
    assert "keeps the fcfs queue" in line_of(lambda: check_policy(preempting, "", predicted=True))
    check_policy(load_policy("srtf"), "", predicted=True)
    reserving = load_policy("sjf+admit:reserve=0.5")
    check_policy(reserving, "", predicted=True)
    assert line_of(lambda: check_policy(reserving, "n: ", predicted=False)).startswith(
        "n: admission"
    )
    check_policy(SJF, "", predicted=False)


def test_times_and_lengths_become_integers() -> None:
    given = workload((0.25, 1, 1), (1.5, 2, 2))
    made = prepare(given, System((ONE,), load_router("jsq")), [1.2, 7.0])
    assert made.arrival_ps.tolist() == [PS // 4, 3 * PS // 2] and not made.reach_ps.any()
    assert made.predicted_up.tolist() == [2, 7] and made.think_ps is None
    assert made.nodes[0].num_gpu_blocks == 100 and made.slow == ((),) and made.turns == ()
    silent = prepare(given, System((ONE,), load_router("jsq")), None)
    assert silent.predicted is None and silent.predicted_up.tolist() == [0, 0]
    limited = workload((0, 1, 1), (0, 1, 1), max_tokens=[3, 9])
    found = predictions_of(limited, [5.0, 5.0])
    assert found is not None and found.predicted_tokens.tolist() == [3, 5]
    assert predictions_of(limited, None) is None
    loop = workload((0, 1, 1), (0, 1, 1), parent=[-1, 0], think_s=[0, 0.5])
    think = prepare(loop, System((ONE,), load_router("jsq")), None).think_ps
    assert think is not None and think.tolist() == [0, PS // 2]
    with pytest.raises(InputError, match=r"a closed loop .parent. needs the column think_s"):
        prepare(loop.replace(think_s=None), System((ONE,), load_router("jsq")), None)
    far = workload((LONGEST_S, 1, 1))
    prepare(far, System((ONE,), load_router("jsq")), None)
    with pytest.raises(InputError, match=r"arrival_s reaches 9.3e.06 s; times may go up to"):
        prepare(workload((9.3e6, 1, 1)), System((ONE,), load_router("jsq")), None)


def test_block_keys_by_hand() -> None:
    """Hashes of 4 tokens, blocks of 2, 4 and 8."""
    given = workload(
        (0, 9, 1), (0, 9, 1), (0, 6, 1), (0, 3, 1), hash_block_tokens=[4] * 4,
        prefix_hashes=[(1, 2), (1, 3), (1, 2), ()],
    )  # fmt: skip
    two, four, eight = (block_keys(given, size) for size in (2, 4, 8))
    assert [len(row) for row in two] == [4, 4, 3, 0]
    assert two[0][:2] == two[1][:2] and two[0][2] != two[1][2] and two[2] == two[0][:3]
    assert [len(row) for row in four] == [2, 2, 1, 0] and four[0][0] == four[1][0] == four[2][0]
    assert [len(row) for row in eight] == [1, 1, 0, 0] and eight[0] != eight[1]
    assert len({key for row in two for key in row}) == 6
    apart = given.replace(prefix_hashes=[(1, 2), (9, 2), (), ()])
    assert block_keys(apart, 8)[0] != block_keys(apart, 8)[1]  # whole prefixes, not last hashes
    with pytest.raises(InputError, match="prefix_hashes need the column hash_block_tokens"):
        block_keys(given.replace(hash_block_tokens=None), 2)


# Clocks


def test_a_clock_by_hand() -> None:
    engine, timing = Engine(max_num_seqs=8, num_gpu_blocks=9), LinearTiming(0.5, 0.0, 0.25, 1e-3)
    clock = Clock.of(engine, timing)
    assert pytest.approx(128 * 1024 / 50e9) == SWAP_S_PER_TOKEN
    assert clock.swap_ps_per_token == round(128 * 1024 / 50e9 * PS) and clock.pipeline is None
    # 8 sequences of 1,000 tokens: 0.5 + 8 x 0.25 + 8000 x 1e-3 s
    assert clock.decode_tokens_per_s(engine) == pytest.approx(8 / 10.5)
    wide = replace(engine, max_num_seqs=100)
    assert Clock.of(wide, timing).decode_tokens_per_s(wide) == pytest.approx(32 / 40.5)
    swaps = SimpleNamespace(iteration_time=lambda batch: 1e-13, swap_s_per_token=3e-9, name="s")
    asked = Clock.of(engine, swaps)  # type: ignore[arg-type]
    assert asked.swap_ps_per_token == 3000 and asked.iteration_ps(Batch()) == 1


def test_iterations_of_hours_are_refused_with_what_slows_them() -> None:
    engine = Engine(max_num_seqs=1, max_num_batched_tokens=1, num_gpu_blocks=9)
    most = MOST_PS / PS
    for seconds, slowed, fits in ((most / 2, 2.0, True), (most / 2, 2.01, False), (1, 9e3, True)):
        timing = LinearTiming(seconds)
        clock = Clock.of(engine, timing)
        if fits:
            clock.check(engine, timing, 1, slowed)
        else:
            with pytest.raises(InputError, match=r"an iteration may take .* 9007 s are the most"):
                clock.check(engine, timing, 1, slowed)
    # attention of the longest request counts, in prefill and in decoding
    long = LinearTiming(0.0, per_context_token_s=1.0)
    Clock.of(engine, long).check(engine, long, 9000, 1.0)
    with pytest.raises(InputError, match="an iteration may take 9100 s"):
        Clock.of(engine, long).check(engine, long, 9100, 1.0)
    # what has no tables is asked as it goes
    live: Any = SimpleNamespace(iteration_time=lambda batch: 1e9, name="live")
    Clock.of(engine, live).check(engine, live, 1, 1.0)
    slow = prepare  # an event's factor reaches the check
    system = System((replace(ONE, timing=LinearTiming(9000.0)),), load_router("jsq"), 0.0,
                    (Slow(0, 0.0, 1.0, 1.0), Slow(0, 2.0, 3.0, 2.0)))  # fmt: skip
    with pytest.raises(InputError, match="an iteration may take 18000 s"):
        slow(workload((0, 1, 1)), system, None)


class TwoClocks(LinearTiming):
    """A linear timing with a front end: 3 ps a request and 2 a prompt token."""

    def pipeline(self, tokens: int, seqs: int) -> Pipeline:
        found = self.tables(tokens, seqs)
        zeros = np.zeros_like(found.decode_ps)
        return Pipeline(found.decode_ps, zeros, found.mixed_ps, np.zeros_like(found.mixed_ps),
                        {"arrival": 3, "arrival_token": 2})  # fmt: skip


def test_the_front_end_keeps_requests_in_order() -> None:
    engine = Engine(max_num_seqs=1, num_gpu_blocks=100, async_scheduling=True)
    node = replace(ONE, engine=engine, timing=TwoClocks(1.0))
    given = workload((0, 50, 1), (1e-12, 1, 1), (500e-12, 1, 1))
    made = prepare(given, System((node, ONE), load_router("jsq")), None)
    assert made.reach_ps.tolist() == [103, 102, 5]  # the second waits for the first
    one_clock = replace(node, engine=replace(engine, async_scheduling=False))
    assert not prepare(given, System((one_clock,), load_router("jsq")), None).reach_ps.any()


# Records


def records(**given: Any) -> Records:
    columns = {
        "replica": [1, 0], "arrival_ps": [0, PS], "scheduled_ps": [5 * PS, 2 * PS],
        "first_token_ps": [6 * PS, 3 * PS], "finish_ps": [9 * PS, 4 * PS], "prompt_tokens": [7, 8],
        "output_tokens": [3, 2], "predicted_tokens": [np.nan, 4.0], "preemptions": [1, 0],
        "recomputed_tokens": [5, 0], "cached_tokens": [0, 6],
    }  # fmt: skip
    made = {name: np.array(values) for name, values in (columns | given).items()}
    return Records(**made, backend="fast")


def test_a_record_says_where_each_request_was() -> None:
    plain = records()
    assert plain.retries.tolist() == [0, 0] == plain.lost_tokens.tolist()
    frame = plain.to_frame()
    assert frame["scheduled_s"].tolist() == [5, 2] and frame["first_token_s"].tolist() == [6, 3]
    assert frame["finish_s"].tolist() == [9, 4] and frame["arrival_s"].tolist() == [0, 1]
    assert frame["request_id"].tolist() == [0, 1] and frame["cached_tokens"].tolist() == [0, 6]
    assert plain.visits.finished.tolist() == [True, True]
    # request, node, start, finish, lost tokens, preemptions, recomputed tokens
    lost = [[0, 0, PS, 3 * PS, 2, 1, 4], [0, 1, -1, 4 * PS, 0, 0, 0]]
    made = records(lost=lost)
    assert made.retries.tolist() == [2, 0] and made.lost_tokens.tolist() == [2, 0]
    visits = made.visits.to_frame()
    assert visits["request_id"].tolist() == [0, 0, 0, 1]
    assert visits["node"].tolist() == [0, 1, 1, 0] and visits["lost_tokens"].tolist() == [
        2,
        0,
        0,
        0,
    ]
    assert visits["finished"].tolist() == [False, False, True, True]
    assert visits["finish_s"].tolist() == [3, 4, 9, 4] and visits["stage"].tolist() == ["both"] * 4
    assert (
        visits["start_s"][0] == 1 and np.isnan(visits["start_s"][1]) and visits["start_s"][2] == 5
    )
    # a stay that was lost at the very moment of the finish comes before it
    same = records(lost=[[0, 0, PS, 9 * PS, 2, 1, 4]]).visits
    assert same.finished.tolist() == [False, True, True]
    rows = np.array(lost)
    assert with_lost(np.array([3, 3]), rows, "preemptions").tolist() == [4, 3]
    assert with_lost(np.array([3, 3]), rows[:0], "preemptions").tolist() == [3, 3]
    assert lost_sums(rows, "recomputed_tokens", 3).tolist() == [4, 0, 0]
    assert made.to_frame()["retries"].tolist() == [2, 0]


def test_a_log_s_times_are_seconds() -> None:
    one = np.array([1])
    frame = Iterations(one, one * PS, one * PS // 2, *([one] * 6)).to_frame()
    assert frame["start_s"].tolist() == [1] and frame["duration_s"].tolist() == [0.5]
    assert "start_ps" not in frame and frame["running"].tolist() == [1]


# Saturation


def test_a_seat_serves_what_its_iterations_allow() -> None:
    """One seat, a second an iteration: a prompt of 4 and 3 answers' tokens take 3 s."""
    given = workload((0, 4, 3), (0, 4, 3))
    router = load_router("jsq")
    assert saturation_rate(given, System((ONE,), router)) == pytest.approx(1 / 3)
    half = replace(ONE, timing=LinearTiming(0.5), policy=SJF)
    assert saturation_rate(given, System((ONE, half, ONE), router)) == pytest.approx(4 / 3)
    four = replace(ONE, engine=Engine(max_num_seqs=4, num_gpu_blocks=100))
    assert saturation_rate(given, System((four,), router)) == pytest.approx(4 / 3)
    mixed = workload((0, 4, 1), (0, 4, 5))  # 1 s and 5 s: every second request is a long one
    assert saturation_rate(mixed, System((ONE,), router)) == pytest.approx(1 / 3, rel=0.2)
