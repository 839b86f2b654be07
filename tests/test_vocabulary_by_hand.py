"""The vocabulary, each word by hand: what it says, at which end it stops, and the line it gives."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import pytest

from lengthwise import (
    context,
    errors,
    features,
    picoseconds,
    policy,
    reading,
    registry,
    sampled,
    served_text,
    sessions,
    starvation,
    workload,
)
from lengthwise.errors import InputError, UnknownNameError
from lengthwise.policy import (
    Admission,
    Between,
    Guard,
    Preemption,
    RoutingPolicy,
    SchedulingPolicy,
    Score,
)
from lengthwise.provider import Provider
from lengthwise.sessions import SECONDS_PER_TOKEN, Answers, Sessions, earlier_answers
from lengthwise.starvation import StarvationGuard, Waiter
from lengthwise.trained import TrainedOn, widened


def line_of(make: Callable[[], Any]) -> str:
    """What an input that is refused is told, whole."""
    with pytest.raises(InputError) as caught:
        make()
    return str(caught.value)


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        (reading, "MOST_BYTES", 67_108_864),  # 64 MiB
        (errors, "LONGEST", 900),
        (picoseconds, "PS", 1_000_000_000_000),
        (picoseconds, "LONGEST_S", 9_200_000),
        (picoseconds, "LAST_PS", 9_200_000_000_000_000_000),
        (picoseconds, "MOST_PS", 9_007_199_254_740_992),
        (policy, "LONGEST_FLOOR_S", 1_000_000),
        (policy, "MOST_COUNT", 2_147_483_647),
        (policy, "LARGEST", 9_007_199_254_740_992),
        (starvation, "WINDOW", 1000),
        (starvation, "UNKNOWN_TOKENS", 256),
        (starvation, "FOREVER_PS", 4_611_686_018_427_387_904),
        (sessions, "SECONDS_PER_TOKEN", 0.05),
        (sessions, "MOST_SESSIONS", 10_000),
        (context, "MOST_TOKENS", 1_073_741_824),
        (workload, "MOST", 4_611_686_018_427_387_904),
        (served_text, "HEAD", 8000),
        (served_text, "TAIL", 4000),
    ],
)
def test_numbers_that_are_promised(module: Any, name: str, value: float) -> None:
    assert getattr(module, name) == value


# Files


def test_a_file_is_told_by_what_it_is(tmp_path: Path) -> None:
    assert line_of(lambda: reading.plain_bytes(tmp_path, "profile")) == (
        f"profile {str(tmp_path)!r} is a folder, not a file"
    )
    path = tmp_path / "a"
    path.write_bytes(b"1234")
    assert reading.plain_bytes(path, "trace", 4) == b"1234" == reading.plain_bytes(path, "trace")
    assert line_of(lambda: reading.plain_bytes(path, "trace", 3)) == (
        f"trace {str(path)!r} has 4 bytes; 3 are the most"
    )
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    # a writer, so that who opens it all the same does not wait for one
    held = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    assert line_of(lambda: reading.plain_bytes(pipe, "trace")) == (
        f"trace {str(pipe)!r} is a pipe or a device, not a file"
    )
    os.close(held)
    with pytest.raises(FileNotFoundError):
        reading.plain_bytes(tmp_path / "none", "trace")
    assert line_of(lambda: reading.plain_bytes(Path("a\0b"), "trace")) == (
        "trace 'a\\x00b' can't be read: embedded null byte"
    )
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    assert line_of(lambda: reading.plain_bytes(circle, "trace")) == (
        f"trace {str(circle)!r} can't be read: Too many levels of symbolic links"
    )


def test_what_a_file_describes_is_read_or_told(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf[1]")  # with a byte order mark
    assert reading.read_described(path, "profile") == [1]
    assert reading.read_described(path, "profile", len) == 3
    path.write_text("[1")
    assert line_of(lambda: reading.read_described(path, "profile")) == (
        f"profile {str(path)!r} can't be read: Expecting ',' delimiter: line 1 column 3 (char 2)"
    )
    none = tmp_path / "none"
    assert line_of(lambda: reading.read_described(none, "profile")) == (
        f"profile {str(none)!r}: No such file or directory"
    )


# Errors


def test_a_long_message_keeps_its_ends() -> None:
    assert str(InputError("x" * 900)) == "x" * 900
    said = str(InputError("a" * 600 + "b" * 200 + "c" * 225))
    assert said == "a" * 600 + " ... " + "c" * 225


def test_an_unknown_name_says_whose_it_is() -> None:
    assert str(UnknownNameError("column in a.csv", "rat", ["rate", "b"])) == (
        "unknown column 'rat' in a.csv; did you mean 'rate'? (allowed: b, rate)"
    )
    assert str(UnknownNameError("part", "zzz", [])) == "unknown part 'zzz' (allowed: none)"
    # half of the letters agree, and one less
    assert "did you mean 'abcd'" in str(UnknownNameError("name", "abxy", ["abcd"]))
    assert str(UnknownNameError("kind of a in b", "x", ["y"])) == (
        "unknown kind 'x' of a in b (allowed: y)"
    )
    assert "did you mean" not in str(UnknownNameError("name", "axyz", ["abcd"]))


# Features


def test_when_scores_change_and_what_they_read() -> None:
    assert features.changes(["arrival_s", "prompt_tokens"]) == frozenset()
    assert features.changes(["arrival_s", "now_s", "kv_utilization"]) == {"clock", "state"}
    assert not features.reads_prediction(["arrival_s", "priority"])
    assert features.reads_prediction(["arrival_s", "predicted_tokens"])
    assert features.reads_prediction(["outstanding_tokens"])


def test_a_router_counts_by_itself_what_it_sends_and_what_ends() -> None:
    """All else that is a replica's is as old as the last look at it."""
    assert {name for name, one in features.FEATURES.items() if one.counted} == {
        "routed_requests", "outstanding_requests", "outstanding_tokens", "oldest_request_s",
    }  # fmt: skip


def test_what_nobody_tells_is_told_once_with_the_nearest() -> None:
    told = Provider("an abacus", {"now_s": 0, "waiting_requests": 1})
    assert list(told) == ["now_s", "waiting_requests"] and len(told) == 2
    assert told["waiting_requests"] == 1
    assert told.lacks(["now_s"], "policy 'x'") is None
    told.require(["now_s", "waiting_requests"], "policy 'x'")
    given = ["kv_utilization", "running_requests", "kv_utilization"]
    assert told.lacks(given, "policy 'x'") == (
        "policy 'x' reads kv_utilization (of a replica), running_requests (of a replica), and an "
        "abacus can't tell; nearest: waiting_requests (it has: now_s, waiting_requests)"
    )
    assert told.lacks(["kv_utilization"], "b") == (
        "b reads kv_utilization (of a replica), and an abacus can't tell (it has: now_s, "
        "waiting_requests)"
    )
    assert line_of(lambda: told.require(["deadline_s"], "b")) == told.lacks(["deadline_s"], "b")


def test_values_to_try_a_score_on_are_of_the_sizes_of_runs() -> None:
    """Ten to a power that is uniform from 0 to 4, times a uniform number: theory for its share."""
    n = 20_000
    found = sampled.columns(n, seed=3)
    assert found.keys() == features.FEATURES.keys()
    for name, values in found.items():
        feature = features.get(name)
        assert values.shape == (n,) and values.dtype == feature.dtype and (values >= 0).all()
        if feature.unit == "1" and feature.dtype == "float64":
            assert values.max() < 1 and values.mean() == pytest.approx(0.5, abs=0.02)
        elif name not in ("now_s", "predicted_tokens"):
            assert 9000 < values.max() <= 10_000
            # P(u 10^v < 1) = E 10^-v; a count is 0 where u (10^v + 1) < 1: E 1 / (10^v + 1)
            v = np.linspace(0, 4, 100_001)
            below = 10.0**-v if feature.dtype == "float64" else 1 / (10.0**v + 1)
            assert (values < 1).mean() == pytest.approx(below.mean(), abs=0.01)
    assert (found["now_s"] >= found["arrival_s"]).all() and found["predicted_tokens"].min() == 1
    again, other = sampled.columns(n, seed=3), sampled.columns(n, seed=4)
    assert all((found[name] == again[name]).all() for name in found)
    assert all((found[name] != other[name]).any() for name in found)


def test_values_at_the_edges_come_first() -> None:
    found, plain = sampled.with_edges(5, seed=3), sampled.columns(5, seed=3)
    never = {"prompt_tokens", "predicted_tokens", "max_seats", "decode_tokens_per_s"}
    for name, values in found.items():
        assert values[0] == (name in never) and values[1] == 1
        least = 1 if name in never else 0
        assert values[2:].tolist() == np.maximum(plain[name][2:], least).tolist()


def test_names_are_loaded_and_told() -> None:
    from lengthwise.policies.sjf import SJF

    assert registry.load("policy", "sjf") is SJF is registry.resolve("lengthwise.policies.sjf:SJF")
    assert registry.names("router")[:2] == ["round-robin", "random"]
    assert registry.loader("policy")("sjf").name == "sjf"


# What a policy was trained on


def test_ranges_widen_and_what_leaves_them_is_told() -> None:
    seen = widened({"load": (1.0, 2.0), "nodes": (4.0, 4.0)}, {"load": (0.5, 1.5), "seats": (8, 9)})
    assert seen == {"load": (0.5, 2.0), "nodes": (4.0, 4.0), "seats": (8, 9)}
    assert widened({"load": (1.0, 2.0)}, {"load": (1.5, 3.0)}) == {"load": (1.0, 3.0)}
    made = TrainedOn.of({"load": (0.5, 2.0), "nodes": (4, 4)}, ["b", "a", "b"])
    assert made.ranges == (("load", 0.5, 2.0), ("nodes", 4.0, 4.0)) and made.workloads == ("a", "b")
    assert made.left({"load": (0.5, 2.0), "nodes": (4, 4), "other": (0, 9)}) == []
    assert made.notice("p", {"load": (0.5, 2.0)}) == ""
    assert made.left({"load": (0.4, 2.0)}) == ["load 0.4 to 2 (trained on 0.5 to 2)"]
    assert made.notice("p", {"load": (0.5, 2.5), "nodes": (8000, 8000)}) == (
        "p is used beyond what it was trained on: load 0.5 to 2.5 (trained on 0.5 to 2), "
        "nodes 8,000 (trained on 4)"
    )
    assert line_of(lambda: TrainedOn((("load", 2.0, 1.0),))) == (
        "trained on load from 2.0 to 1.0: that is no range"
    )


# Sessions


def test_answers_by_hand() -> None:
    none, two = Answers(), Answers().then(10).then(1000)
    assert none.row()["previous_answers"] == 0
    assert math.isnan(none.row()["previous_log_tokens"])
    assert math.isnan(none.row()["previous_tokens"])
    assert two.row() == {
        "previous_answers": 2.0,
        "previous_log_tokens": pytest.approx(math.log(100)),
        "previous_tokens": 1000.0,
    }


def test_sessions_of_tenants_and_those_used_last_stay() -> None:
    books = Sessions(most=2)
    assert books.before({}) == {} and len(books) == 0
    one, other = {"session_id": "s", "tenant": "a"}, {"session_id": "s", "tenant": "b"}
    assert books.before(one)["previous_answers"] == 0 and len(books) == 0
    books.finished({"tenant": "a"}, 5)  # of no session
    books.finished(one, 0)
    books.finished(one, float("nan"))
    assert len(books) == 0
    books.finished({"session_id": "u"}, 0.5)  # a part of a token is one, too
    assert len(books) == 1
    books.finished(one, 5)
    books.finished(other, 7)
    assert books.before(other)["previous_tokens"] == 7
    assert books.before(one)["previous_tokens"] == 5  # and is the one that was used last
    books.finished({"session_id": "t"}, 9)
    assert len(books) == 2 and books.before(other)["previous_answers"] == 0
    books.finished(one, 6)  # used again, so that the next takes the place of t
    books.finished({"session_id": "u"}, 9)
    assert books.before({"session_id": "t"})["previous_answers"] == 0
    assert books.before(one) == {
        "previous_answers": 2.0,
        "previous_log_tokens": pytest.approx(math.log(30) / 2),
        "previous_tokens": 6.0,
    }


NAN = float("nan")


def test_on_a_clock_rows_count_by_their_times() -> None:
    """Out of order in the file; ended just when the next arrives; names that are none."""
    end = 100 * SECONDS_PER_TOKEN
    found = earlier_answers(
        {
            "session_id": np.array(["s", "s", "", "", 7, "7", None, None, NAN, NAN], dtype=object),
            "arrival_s": [end, 0.0, 0.0, 99.0, 0.0, 50.0, 0.0, 99.0, 0.0, 99.0],
            "output_tokens": [3, 100, 5, 5, 4, 4, 5, 5, 5, 5],
        }
    )
    assert found["previous_answers"].tolist() == [1, 0, 0, 0, 0, 1, 0, 0, 0, 0]
    assert found["previous_tokens"][[0, 5]].tolist() == [100, 4]
    # answers are known in the order in which they end
    found = earlier_answers(
        {"session_id": ["s"] * 3, "arrival_s": [0.0, 1.0, 9e9], "output_tokens": [1000, 2, 1]}
    )
    assert found["previous_tokens"][2] == 1000 and found["previous_answers"][2] == 2
    assert found["previous_log_tokens"][2] == pytest.approx(math.log(2000) / 2)
    none = {"session_id": ["s"], "arrival_s": [0.0]}
    assert earlier_answers(none) == {} == earlier_answers({"output_tokens": [1]})
    assert earlier_answers({"output_tokens": [1], "session_id": ["s"]}) == {}
    assert earlier_answers({"output_tokens": [1], "arrival_s": [0.0]}) == {}


# The guard


NUMBERS = itertools.count()


class Here(Waiter):
    __slots__ = ()

    @property
    def gone(self) -> bool:
        return False


def waiter(at: int, tokens: float = 1.0) -> Here:
    return Here(sequence=next(NUMBERS), arrival_ps=at, predicted_tokens=tokens)


def test_a_waiter_begins_with_nothing() -> None:
    one = waiter(7)
    assert (one.ahead, one.running, one.waiting_since_ps, one.waited_ps) == (False, False, 0, 0)
    assert (one.work, one.owed, one.admissions) == (0, 0, 0)
    with pytest.raises(NotImplementedError):
        _ = Waiter(sequence=0, arrival_ps=0, predicted_tokens=1.0).gone


class Left(Here):
    """Its client hung up."""

    @property
    def gone(self) -> bool:
        return True


def test_who_left_before_anybody_served_it_is_passed_over() -> None:
    for admitted, begun in ((False, 0), (True, 5)):
        books: StarvationGuard[Here] = StarvationGuard(Guard(0.5, 0.0))
        one = Left(sequence=0, arrival_ps=0, predicted_tokens=5.0)
        books.arrived(one)
        if admitted:
            books.admitted(one, 0)
        found = books.turns(8)
        assert found == ([one] if admitted else []) and books._begun == begun
        # who was served counts as one that waited; and nobody sends ahead who is gone
        assert list(books._longest) == ([(1, 8)] if admitted else [])
        books.watch(one)
        assert books.send_ahead(10**6) == []


def test_two_requests_that_look_alike_are_two() -> None:
    one, other = (Waiter(sequence=0, arrival_ps=0, predicted_tokens=1.0) for _ in range(2))
    assert one != other and len({one, other}) == 2


def test_a_guard_that_is_off_sends_nobody_ahead() -> None:
    for ratio, sent in ((0.0, 0), (1e-9, 1)):
        books: StarvationGuard[Here] = StarvationGuard(Guard(ratio, 0.0))
        one = waiter(0)
        books.arrived(one)
        books.watch(one)
        assert len(books.send_ahead(10)) == sent


def test_who_is_ahead_or_runs_is_not_sent_again() -> None:
    books: StarvationGuard[Here] = StarvationGuard(Guard(0.5, 0.0))
    first, second = waiter(0), waiter(0)
    for one in (first, second):
        books.arrived(one)
        books.watch(one)
    first.ahead = True
    books.watch(first)
    second.running = True
    assert books.send_ahead(10) == []
    books.admitted(second, 12)
    assert (second.waited_ps, second.admissions, second.running) == (12, 1, True)
    books.preempted(second, 0, 20)
    assert (second.waiting_since_ps, second.start_ps, second.running) == (20, 8, False)
    books.admitted(second, 15)  # a clock that goes back takes nothing away
    assert second.waited_ps == 12


def test_the_longest_wait_is_of_the_window_and_equal_ones_follow_each_other() -> None:
    books: StarvationGuard[Here] = StarvationGuard(Guard(1.0, 0.0))
    for wait in (5, 3, 3, 9, 2):
        one = waiter(0)
        books.arrived(one)
        books.admitted(one, wait)
        books.turns(wait)
    assert list(books._longest) == [(4, 9), (5, 2)]


# Policies


def test_a_range_holds_its_ends() -> None:
    assert str(Between(0, 100)) == "0 to 100" and str(Between(0.125, 1e20)) == "0.125 to 1e+20"
    assert 1 in Between(1, 9) and 9 in Between(1, 9) and 0.99 not in Between(1, 9)
    assert 9.01 not in Between(1, 9) and 3 in Between(3, 3)
    assert Between(1, 9).nearest(0) == 1 and Between(1, 9).nearest(12) == 9
    kept = Between(0, 9).nearest(4.5)
    assert kept == 4.5 and isinstance(Between(1.0, 9.0).nearest(12), int)
    for low, high in ((2, 1), (-math.inf, 0), (0, math.inf), (math.nan, 1), (0, math.nan)):
        with pytest.raises(InputError, match=r"range from .* is none"):
            Between(low, high)


def test_what_a_score_gives_is_checked_where_it_stands() -> None:
    def steep(prompt_tokens: Any, now_s: Any) -> Any:
        return np.where(np.asarray(prompt_tokens) > 8, np.nan, 1.0) * now_s

    score = Score.from_function(steep)
    fine = score.numbers({"prompt_tokens": np.array([1, 2]), "now_s": 3.0}, 2)
    assert fine.tolist() == [3.0, 3.0] and fine.dtype == np.float64
    constant = Score.from_function(lambda now_s: 4, "four")
    assert constant.numbers({"now_s": 0.0}, 3).tolist() == [4.0, 4.0, 4.0]
    said = line_of(lambda: score.numbers({"prompt_tokens": np.array([1, 9]), "now_s": 3.0}, 2))
    place = Path(__file__).name + f":{steep.__code__.co_firstlineno}"
    assert said.startswith("policy 'steep' gave NaN for a score (") and place in said
    assert said.endswith("where prompt_tokens 9, now_s 3)")

    def raises(now_s: Any) -> Any:
        raise InputError("of its own")

    assert line_of(lambda: Score.from_function(raises).numbers({"now_s": 0}, 1)) == "of its own"
    shaped = Score.from_function(lambda now_s: np.zeros(3), "shaped")
    assert "router 'shaped': " in line_of(lambda: shaped.numbers({"now_s": 0}, 2, "router"))
    bad = Score.from_function(lambda now_s: "x", "bad")
    assert "which is no number" in line_of(lambda: bad.numbers({"now_s": 0}, 1))
    assert policy.wrong_score(len, np.array([True]), 1) is None
    assert policy.wrong_score(len, np.float32(1), 5) is None
    assert policy.wrong_score(len, [[1], [1, 2]], 2) is not None
    assert policy.wrong_score(len, np.zeros((2, 1)), 2) is not None


def test_tunables_keep_their_types_and_ranges() -> None:
    def mine(
        now_s: Any, *, k: Annotated[int, "said", Between(1, 9)] = 2, share: float = 0.5,
        flag: bool = False,
    ) -> Any:  # fmt: skip
        return now_s

    score = Score.from_function(mine)
    assert score.tunables == {"k": 2, "share": 0.5, "flag": False}
    assert score.ranges == {"k": Between(1, 9)} and score.name == "mine"
    given = score.with_tunables({"k": 9, "share": 3, "flag": True})
    assert given.tunables == {"k": 9, "share": 3.0, "flag": True} and given.ranges == score.ranges
    assert isinstance(given.tunables["share"], float)
    largest = 2**53
    assert score.with_tunables({"share": -largest}).tunables["share"] == -largest
    for wrong, said in (
        ({"share": largest + 1}, f"takes numbers up to {largest}, not {largest + 1}"),
        ({"share": -largest - 1}, f"takes numbers up to {largest}, not {-largest - 1}"),
        ({"share": math.nan}, "tunable mine:share takes numbers, not nan"),
        ({"share": True}, "tunable mine:share takes float, not True"),
        ({"k": True}, "tunable mine:k takes int, not True"),
        ({"k": 2.0}, "tunable mine:k takes int, not 2.0"),
        ({"flag": 1}, "tunable mine:flag takes bool, not 1"),
        ({"k": 0}, "tunable mine:k takes 1 to 9, not 0"),
    ):
        assert said in line_of(lambda wrong=wrong: score.with_tunables(wrong))
    assert "is a class" in line_of(lambda: Score.from_function(Between))
    assert "policy 'n' is 3; a policy is a function: def n(...)" in line_of(
        lambda: Score.from_function(3, "n")  # type: ignore[arg-type]
    )
    assert "takes *more" in line_of(lambda: Score.from_function(lambda **more: 0, "n"))


def test_what_a_score_sees_is_not_its_to_write() -> None:
    seen = []
    column = np.arange(3)
    Score.from_function(lambda now_s: seen.append(now_s) or now_s, "sees")(column)
    assert seen[0].flags.writeable is False and column.flags.writeable
    assert np.shares_memory(seen[0], column)


PREEMPTIONS = {
    "price": (0.0, math.inf), "margin": (0.0, math.inf), "protect_after": (0.0, math.inf),
    "overhead_tokens": (0, 2**31 - 1), "max_per_step": (1, 2**31 - 1),
}  # fmt: skip


@pytest.mark.parametrize("name", PREEMPTIONS)
def test_a_preemption_s_numbers_have_two_ends(name: str) -> None:
    low, high = PREEMPTIONS[name]
    for value in (low, high):
        assert getattr(Preemption(**{name: value}), name) == value
    beyond = [-0.01, math.nan, 10**309] if isinstance(low, float) else [low - 1, high + 1]
    for value in beyond:
        assert line_of(lambda value=value: Preemption(**{name: value})).startswith(
            f"preemption {name} must be {low:g} or more"
        )


def test_a_preemption_costs_what_it_says() -> None:
    rule = Preemption(price=0.5, overhead_tokens=10)
    # half a unit a token and request; 4 run for 1 that waits, so four times
    assert rule.cost(30, 4, 1) == 0.5 * 40 * 5 * 4
    assert rule.cost(30, 1, 4) == 0.5 * 40 * 5
    assert rule.cost(0, 2, 2) == 0.5 * 10 * 4
    half = Preemption(protect_after=0.5)
    assert half.protects(5, 10) and not half.protects(4, 10) and not half.protects(5, 0)
    assert Preemption(protect_after=0.0).protects(0, 1)
    said = Preemption()
    assert (said.mode, said.price, said.overhead_tokens, said.margin) == ("none", 0.01, 256, 0.0)
    assert (said.max_per_step, said.protect_after) == (8, 1.0)
    assert "unknown preemption mode 'swop'; did you mean 'swap'" in line_of(
        lambda: Preemption(mode="swop")  # type: ignore[arg-type]
    )


def test_admission_guard_and_choices_have_two_ends() -> None:
    assert Admission().reserve == 0.0 and Admission(math.inf).reserve == math.inf
    for reserve in (-0.01, math.nan, 10**309):
        with pytest.raises(InputError, match="admission reserve must be 0 or more"):
            Admission(reserve)
    assert Guard() == Guard(1.5, 0.5) and Guard(0, 0).floor_ps == 0
    assert Guard(1e308, 1e6).floor_ps == 10**18 and Guard(1, 0.25).floor_ps == 250_000_000_000
    for ratio, floor_s in ((-1, 0), (math.inf, 0), (1, -1), (1, 1e6 + 1), (math.nan, 0)):
        with pytest.raises(InputError, match="guard ratio must be 0 or more and finite"):
            Guard(ratio, floor_s)
    score = Score.from_function(lambda now_s: now_s, "s")
    for choices in (0, 2**31 - 1):
        assert RoutingPolicy(score, choices).choices == choices
    for choices in (-1, 2**31):
        with pytest.raises(InputError, match="a router's choices must be from 0 to 2147483647"):
            RoutingPolicy(score, choices)


def test_a_policy_is_called_as_it_was_spelled() -> None:
    score = Score.from_function(lambda now_s: now_s, "s")
    made = SchedulingPolicy(score)
    assert (made.name, made.queue, made.guard, made.acting_guard) == ("s", "priority", None, None)
    assert SchedulingPolicy(score, label="s:k=3").name == "s:k=3"
    assert (RoutingPolicy(score).name, RoutingPolicy(score, label="r").name) == ("s", "r")
    for ratio, queue, acts in ((1.0, "priority", True), (1.0, "fcfs", False), (0.0, "priority", 0)):
        guard = Guard(ratio)
        acting = SchedulingPolicy(score, guard=guard, queue=queue).acting_guard  # type: ignore[arg-type]
        assert acting is (guard if acts else None)


def test_picoseconds_are_rounded() -> None:
    assert picoseconds.picoseconds(1.5) == 1_500_000_000_000
    assert picoseconds.picoseconds(0.6e-12) == 1 and picoseconds.picoseconds(0.4e-12) == 0


def test_what_the_package_names_it_has() -> None:
    import lengthwise

    for name in lengthwise.__all__:
        assert getattr(lengthwise, name) is not None and name in dir(lengthwise)
    with pytest.raises(AttributeError, match="module 'lengthwise' has no attribute 'nothing'"):
        _ = lengthwise.nothing
    assert SimpleNamespace(**{name: 0 for name in lengthwise._WHERE}).simulate == 0


@pytest.mark.parametrize(("said", "tokens"), [(0.2, 1), (1.0, 1), (2.0, 2), (2.2, 3), (2.9, 3)])
def test_a_guard_counts_a_part_of_a_token_as_one(said: float, tokens: int) -> None:
    one = Waiter(sequence=0, arrival_ps=0, predicted_tokens=said)
    books: StarvationGuard[Waiter] = StarvationGuard(Guard(1.0, 0.0))
    books.arrived(one)
    books.admitted(one, 1)
    assert (one.work, one.owed) == (tokens, tokens)
