"""The parts of workloads by hand: arrivals, joins, tables, layouts, files, presets, prompts."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from hashlib import blake2b, sha256
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.serving.workload import files, layouts, load_workload, presets, prompts
from lengthwise.serving.workload.arrivals import arrivals, closed_loop, replayed
from lengthwise.serving.workload.join import join, with_arrivals
from lengthwise.serving.workload.presets import PRESETS, Sessions, lengths, preset
from lengthwise.serving.workload.readers import read_table
from lengthwise.serving.workload.split import in_split, split_of
from lengthwise.serving.workload.table import Table
from lengthwise.serving.workload.tokens import estimate_tokens
from lengthwise.workload import MOST_TOKENS, Workload

process = import_module("lengthwise.serving.workload.arrivals")  # a function has its name


def line_of(make: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        make()
    return str(caught.value)


def digest(*said: object) -> str:
    return sha256("\n".join(map(repr, said)).encode()).hexdigest()[:16]


# Arrivals


def test_processes_by_hand() -> None:
    assert process.constant(4, 2.0, np.random.default_rng(0)).tolist() == [0, 0.5, 1, 1.5]
    assert arrivals("burst", 3).tolist() == [0, 0, 0]
    gaps = np.random.default_rng(1).exponential(1.0, 5)
    assert (
        process.poisson(5, 4.0, np.random.default_rng(1)).tolist() == (np.cumsum(gaps) / 4).tolist()
    )
    gaps = np.random.default_rng(1).gamma(1 / 9, 9.0, 5)
    assert process.gamma(5, 4.0, np.random.default_rng(1), cv=3.0) == pytest.approx(
        np.cumsum(gaps) / 4
    )
    same = process.gamma(5, 4.0, np.random.default_rng(1), cv=1.0)
    assert same.tolist() == process.poisson(5, 4.0, np.random.default_rng(1)).tolist()
    for cv in (9e-7, 1.1e6):
        with pytest.raises(InputError, match="cv must be from 1e-06 to 1e"):
            process.gamma(5, 4.0, np.random.default_rng(1), cv=cv)
    for cv in (1e-6, 1e6):
        assert len(process.gamma(5, 4.0, np.random.default_rng(1), cv=cv)) == 5


def test_bursts_have_their_rates_and_shares() -> None:
    """In bursts a fifth of the time, at five times the rate outside: 100 = r (0.8 + 0.2 x 5)."""
    rng = np.random.default_rng(0)
    times = process.bursty(1_500_000, 100.0, rng, ratio=5.0, share=0.2, dwell_s=5.0)
    assert len(times) / times[-1] == pytest.approx(100, rel=0.06)
    counts = np.bincount(times.astype(int))
    calm = 100 / (0.8 + 0.2 * 5)
    within = counts > 2.5 * calm
    assert np.median(counts[~within]) == pytest.approx(calm, rel=0.03)
    assert np.median(counts[within]) == pytest.approx(5 * calm, rel=0.05)
    assert within.mean() == pytest.approx(0.2, abs=0.02)
    stays = np.diff(np.flatnonzero(np.diff(within.astype(int))))
    assert stays.mean() == pytest.approx((5 + 20) / 2, rel=0.2)  # in and out, less the shortest
    with pytest.raises(InputError, match="change more than 2097152 times in 1000000000 requests"):
        process.bursty(10**9, 1.0, _Still(), dwell_s=1e-3)  # type: ignore[arg-type]
    first = [process.bursty(1, 1.0, np.random.default_rng(k), share=0.999, ratio=1e6)[0]
             for k in range(50)]  # fmt: skip
    assert np.median(first) == pytest.approx(math.log(2), rel=0.5)  # it begins in equilibrium


class _Still:
    def exponential(self, scale: float, n: int) -> Any:
        return np.ones(1)

    def random(self) -> float:
        return 0.5


def test_traces_are_cycled_a_mean_gap_apart() -> None:
    trace = np.array([7.0, 3.0, 4.0])
    assert replayed(2, trace).tolist() == [0, 1] and replayed(3, trace).tolist() == [0, 1, 4]
    # a mean gap of 2 after the last
    assert replayed(7, trace).tolist() == [0, 1, 4, 6, 7, 10, 12]
    assert replayed(3, trace, 0.25).tolist() == [0, 2, 8]
    assert replayed(1, trace, 9.0).tolist() == [0]
    for n, rate in ((3, None), (2, 1.0)):
        with pytest.raises(InputError, match="arrive all at once"):
            replayed(n, np.zeros(2), rate)
    assert replayed(2, np.zeros(2)).tolist() == [0, 0]
    with pytest.raises(InputError, match="can't be cycled"):
        replayed(2, np.zeros(1))


def test_specs_of_arrivals_at_their_ends() -> None:
    for spec, said in (
        ("poisson", "need a rate in requests/s, e.g. poisson:8"),
        ("poisson:0", "0 must be a positive number"), ("poisson:inf", "inf must be a positive"),
        ("poisson:x", "'x' is not a number"), ("gamma:8,cv=0", "cv must be above 0, not 0"),
        ("gamma:8,cv=inf", "cv must be above 0, not inf"),
        ("bursty:8,share=1", "share must be above 0 and below 1, not 1"),
        ("gamma:8,cvs=1", "unknown parameter 'cvs' of arrivals"),
        ("gamma:8,9", "unknown parameter '9'"), ("closed:8", "a closed loop has no arrival times"),
        ("burst:3", "a burst arrives all at once"), ("poison:8", "did you mean 'poisson'"),
    ):  # fmt: skip
        assert said in line_of(lambda spec=spec: arrivals(spec, 3)), spec
    assert "a burst arrives all at once" in line_of(lambda: arrivals("burst", 3, rate=1.0))
    assert len(arrivals("gamma: 8 , cv = 3 ,", 3)) == 3
    for n, rate in ((0, None), (3, 0.0), (3, -1.0), (3, math.inf), (3, math.nan)):
        with pytest.raises(InputError, match="must be"):
            arrivals("poisson:1", n, rate=rate)
    assert len(arrivals("poisson", 1, rate=2.0)) == 1
    slow, fast = arrivals("poisson:1", 9, seed=3), arrivals("poisson:1", 9, rate=4.0, seed=3)
    assert fast == pytest.approx(slow / 4) and arrivals("poisson:1", 9, seed=4)[0] != slow[0]
    assert arrivals("poisson", 9, rate=4.0, seed=3) == pytest.approx(fast)
    assert arrivals([3.0, 1.0], 2).tolist() == [0, 2]
    trace = Workload({"arrival_s": [1.0, 3.0], "prompt_tokens": [1, 1], "output_tokens": [1, 1]})
    assert arrivals(trace, 2, rate=1.0).tolist() == [0, 1]


def test_clients_take_turns() -> None:
    made = closed_loop("closed:2,think_s=3", 20_000, seed=1)
    assert made["parent"][:6].tolist() == [-1, -1, 0, 1, 2, 3] and not made["arrival_s"].any()
    assert made["think_s"][:2].tolist() == [0, 0]
    assert made["think_s"][2:].mean() == pytest.approx(3, rel=0.03)
    assert not closed_loop("closed:2", 9)["think_s"].any()
    for spec in ("closed", "closed:1.5"):
        assert "need a whole number of clients" in line_of(lambda spec=spec: closed_loop(spec, 3))
    assert "think_s must be above 0, not 0" in line_of(lambda: closed_loop("closed:2,think_s=0", 3))
    assert closed_loop("closed:9", 3)["parent"].tolist() == [-1] * 3


# Tables and joins


def table(n: int = 4, **more: Any) -> Table:
    columns = {"prompt_tokens": np.arange(1, n + 1), "output_tokens": np.full(n, 5)} | {
        name: np.array(values) for name, values in more.items()
    }
    return Table("t", columns)


def test_children_of_dropped_requests_take_their_place() -> None:
    made = table(5, parent=[-1, 0, 1, 2, -1], think_s=[0, 1.0, 2.0, 4.0, 0], arrival_s=np.zeros(5))
    kept = made.select(np.array([0, 3, 4]))
    assert kept.columns["parent"].tolist() == [-1, 0, -1]
    assert kept.columns["think_s"].tolist() == [0, 7, 0]
    root = made.select(np.array([False, False, True, True, False]))
    assert root.columns["parent"].tolist() == [-1, 0]
    assert root.columns["think_s"].tolist() == [3, 4]
    assert len(made.select(slice(2))) == 2 and made.columns["parent"][3] == 2


def test_a_table_says_what_it_decided() -> None:
    assert "has no arrival times; give some" in line_of(table().workload)
    plain = table(3, arrival_s=[5.0, 6.0, 7.0], censored=[True, False, True]).workload()
    assert plain.notices == () and "censored" not in plain and plain["arrival_s"][0] == 5
    late = table(2, arrival_s=[1e7, 1e7 + 2], deadline_s=[1e7 + 1, 1e7 + 9]).workload()
    assert late["arrival_s"].tolist() == [0, 2] and late["deadline_s"].tolist() == [1, 9]
    assert late.notices == ("t: arrival_s is counted from its first, 10000000",)
    assert table(2, arrival_s=[1e7 - 1, 1e7]).workload().notices == ()
    same = table(4, arrival_s=[1.0, 1.0, 1.0, 2.0]).workload()
    assert same.notices == ("t: 2 arrivals coincide with another; in file order",)
    loop = table(2, arrival_s=[0.0, 0.0], parent=[-1, 0], think_s=[0, 1]).workload()
    assert loop.notices == ("t: every session starts at 0 s, unless arrivals are given",)
    begun = table(2, arrival_s=[0.0, 1.0], parent=[-1, 0], think_s=[0, 1]).workload()
    assert begun.notices == ()


def test_requests_are_drawn_without_replacement_in_rounds() -> None:
    made = join(table(), "burst", n=10, seed=1)
    rows = made["prompt_tokens"].tolist()
    assert sorted(rows[:4]) == sorted(rows[4:8]) == [1, 2, 3, 4] and len(rows) == 10
    assert made.notices == ("t: 10 requests from 4 rows; rows repeat",)
    assert join(table(), "burst", n=4).notices == () and len(join(table(), "burst")) == 4
    again = join(table(50), "burst", n=50, replace=True, seed=1)
    assert len(set(again["prompt_tokens"].tolist())) < 45 and again.notices == ()
    kept = join(table(prefix_hashes=[()] * 4, hash_block_tokens=[9] * 4), "burst", n=6)
    assert kept["prompt_tokens"].tolist() == [1, 2, 3, 4, 1, 2]
    assert len(join(table(), np.array([0.0, 1.0]))) == 2
    with pytest.raises(InputError, match="requests must be 1 or more, not 0"):
        join(table(), "burst", n=0)
    assert join(table(), "burst", n=10, seed=2)["prompt_tokens"].tolist() != rows


def test_deadlines_move_and_loops_take_none() -> None:
    given = table(2, arrival_s=[1.0, 2.0], deadline_s=[4.0, 3.0], censored=[True, True])
    made = with_arrivals(given, np.array([0.0, 10.0]))
    assert made["arrival_s"].tolist() == [0, 10] and made["deadline_s"].tolist() == [3, 11]
    assert "can't be moved" in line_of(
        lambda: with_arrivals(table(2, deadline_s=[1.0, 2.0]), np.array([0.0, 1.0]))
    )
    loop = with_arrivals(table(), "closed:1")
    assert loop["parent"].tolist() == [-1, 0, 1, 2]
    for refused in (lambda: with_arrivals(given, "closed:1"),
                    lambda: with_arrivals(table(), "closed:1", rate=2.0)):  # fmt: skip
        assert "a closed loop takes no rate and no deadlines" in line_of(refused)


def test_sessions_start_in_order_of_appearance() -> None:
    columns = {"parent": [-1, -1, 0, 1, -1], "think_s": [0.0] * 5, "arrival_s": [0.0] * 5}
    made = join(table(5, **columns), np.array([0.0, 3.0, 9.0]))
    assert made["arrival_s"].tolist() == [0, 0, 3, 3, 9]
    two = join(table(5, **columns), np.array([0.0, 3.0, 9.0]), n=2)
    assert two["arrival_s"].tolist() == [0, 0, 3, 3]
    assert "has 3 sessions, not 4" in line_of(lambda: join(table(5, **columns), "burst", n=4))
    own = Table("t", table(3, session_id=["a", "b", "a"], arrival_s=[0.0, 0.0, 2.0]).columns,
                (), session_clock=True)  # fmt: skip
    assert join(own, np.array([5.0, 6.0]))["arrival_s"].tolist() == [0, 1, 2]


# Loading


def test_what_the_command_line_calls_a_workload(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,1,1\n1,2,1\n4,3,1\n")
    assert load_workload(path, requests=2)["prompt_tokens"].tolist() == [1, 2]
    assert load_workload(path, requests=3).notices == ()
    assert load_workload(path, requests=4).notices == ("t.csv: has only 3 requests, not 4",)
    assert load_workload(path, rate=1.0)["arrival_s"].tolist() == [0, 0.5, 2]
    assert load_workload(path, rate=1.0, requests=2)["arrival_s"].tolist() == [0, 1]
    assert "requests must be 1 or more, not 0" in line_of(lambda: load_workload(path, requests=0))
    bare = tmp_path / "b.csv"
    bare.write_text("prompt,prompt_tokens,output_tokens\na,1,1\nb,2,1\n")
    made = load_workload(bare, rate=3.0)
    assert made.notices == ("b.csv: has no arrival times; Poisson, 3 requests/s",)
    assert made["arrival_s"] == pytest.approx(arrivals("poisson:3", 2))
    assert "a preset; it takes no model, drop_zero" in line_of(
        lambda: load_workload("sharegpt", model="m", drop_zero=True)
    )
    assert "no preset and no file 'sharegpts'; did you mean 'sharegpt'?" in line_of(
        lambda: load_workload("sharegpts")
    )
    assert "has no prompt texts, so no train split" in line_of(
        lambda: load_workload(path, split="train")
    )


def test_presets_take_arrivals_and_counts() -> None:
    assert len(load_workload("azure-conv-2023")) == 1000
    trace = np.array([0.0, 1.0, 2.0])
    given = Workload({"arrival_s": trace, "prompt_tokens": [1] * 3, "output_tokens": [1] * 3})
    made = load_workload("azure-conv-2023", arrivals=given)
    assert made["arrival_s"].tolist() == [0, 1, 2]
    assert made["prompt_tokens"].tolist() == (
        preset("azure-conv-2023", requests=3)["prompt_tokens"].tolist()
    )
    own = load_workload("sharegpt", arrivals="burstgpt", requests=5, seed=2)
    assert own["arrival_s"] == pytest.approx(arrivals(PRESETS["burstgpt"].arrivals, 5, seed=2))
    half = load_workload("synthetic-chat", requests=40, split="test")
    assert len(half) == 40 and in_split(half["prompt"], "test").all()


def test_halves_by_the_hash_of_a_prompt() -> None:
    for text in ("a", "b", "hello", "\ud800"):
        value = int.from_bytes(
            blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        )
        for share in (0.1, 0.5, 0.9):
            assert split_of(text, share) == ("test" if value / 2**64 < share else "train")
    assert in_split(["a", "b"], "test", 0.9).tolist() != in_split(["a", "b"], "train", 0.9).tolist()
    for share in (0, 1):
        with pytest.raises(InputError, match="test_share must be between 0 and 1"):
            in_split(["a"], "test", share)
    with pytest.raises(UnknownNameError, match="unknown split 'tests'; did you mean 'test'"):
        in_split(["a"], "tests")


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", 1), ("hello", 1), ("hello world", 2), ("abcdefghi", 1), ("abcdefghij", 2),
        ("abcdefghijklmnopqr", 3), ("123456", 2), ("1234", 2), ("a.b", 3), ("....", 2),
        ("a\n\nb", 3), ("a   b", 3), ("日本", 2), ("a b c", 3), ("été", 3), ("   ", 1), ("!!", 1),
    ],
)  # fmt: skip
def test_tokens_of_a_text_by_hand(text: str, tokens: int) -> None:
    assert estimate_tokens([text]).tolist() == [tokens]


# Layouts


def read(name: str = "m", **columns: Any) -> Table:
    options = {
        key: columns.pop(key) for key in ("turns", "closed_loop", "time_unit") if key in columns
    }
    return read_table({key: values for key, values in columns.items()}, **options)


def test_times_are_counted_from_the_first_in_their_unit() -> None:
    given = {"input_length": [1, 1, 1], "output_length": [1, 1, 1]}
    made = read(timestamp=[5000, 7000, 6000], **given)
    assert made.columns["arrival_s"].tolist() == [0, 2, 1]
    assert any("timestamp read as ms, 1 requests/s; time_unit" in line for line in made.notices)
    made = read(timestamp=[5.5, 7.0, 6.0], **given)  # no whole numbers: seconds
    assert made.columns["arrival_s"].tolist() == [0, 1.5, 0.5]
    made = read(timestamp=[5, 7, 6], turn=[1, 1, 1], **given)
    assert made.columns["arrival_s"].tolist() == [0, 2, 1]
    for unit, factor in (("s", 1), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9)):
        made = read(timestamp=[0, 2000], input_length=[1, 1], output_length=[1, 1], time_unit=unit)
        assert made.columns["arrival_s"][1] == pytest.approx(2000 * factor)
        assert not any("read as" in line for line in made.notices)
    dates = read(TIMESTAMP=["2023-11-16 18:00:00", "2023-11-16 18:00:01.5"], ContextTokens=[1, 1],
                 GeneratedTokens=[1, 1])  # fmt: skip
    assert dates.columns["arrival_s"].tolist() == [0, 1.5] and dates.notices == ()
    assert "at least one" in line_of(lambda: layouts.seconds("m", "t", np.array([], float)))
    assert "row 1: t is nan" in line_of(lambda: layouts.seconds("m", "t", np.array([1, math.nan])))
    assert "row 0: t is missing" in line_of(
        lambda: layouts.seconds("m", "t", np.array([None, "2023-11-16"], object))
    )


@pytest.mark.parametrize(
    ("first", "unit"),
    [(1e11 - 1, None), (1e11, "ms"), (9.9e13, "ms"), (1e14, "us"), (9.9e16, "us"), (1e17, "ns")],
)
def test_dates_in_numbers_tell_their_unit(first: float, unit: str | None) -> None:
    given = {"prompt_tokens": [1, 1], "output_tokens": [1, 1]}
    made = read(arrival_s=[first, first + 16], **given)
    if unit is None:
        assert made.columns["arrival_s"].tolist() == [first, first + 16]
        assert not any("read as" in line for line in made.notices)
    else:
        factor = {"ms": 1e-3, "us": 1e-6, "ns": 1e-9}[unit]
        assert made.columns["arrival_s"] == pytest.approx([0, 16 * factor])
        assert any(f"arrival_s read as {unit}" in line for line in made.notices)
    told = read(arrival_s=[first, first + 16], time_unit="s", **given)
    assert told.columns["arrival_s"].tolist() == [0, 16]


def test_dates_in_texts_are_seconds_from_the_first() -> None:
    given = {"prompt_tokens": [1, 1], "output_tokens": [1, 1]}
    made = read(arrival_s=["2024-01-01T00:00:00Z", "2024-01-01T00:00:02.5Z"], **given)
    assert made.columns["arrival_s"].tolist() == [0, 2.5]
    assert "row 1: t is 3.5; it must be a date" in line_of(
        lambda: layouts.seconds("m", "t", np.array(["2024-01-01", 3.5], object))
    )


def test_native_columns_and_what_they_can_not_hold() -> None:
    given = {"arrival_s": [0.0] * 3, "prompt_tokens": [40, 32, 5], "output_tokens": [1, 1, 1]}
    made = read(**given, finish_reason=["stop", "LENGTH", "max_tokens"], client_id=["a", "b", "c"],
                max_tokens=[5, None, math.nan]).columns  # fmt: skip
    assert made["censored"].tolist() == [False, True, True]
    assert made["tenant"].tolist() == ["a", "b", "c"]
    assert made["max_tokens"].tolist() == [5, MOST_TOKENS, MOST_TOKENS]
    eos = read(**given, ended_with_eos=[1, 0, 1]).columns
    assert eos["censored"].tolist() == [False, True, False]
    hashed = read(**given, hash_ids=[[1, 2, 3], [1, 2], [9]]).columns
    assert [len(one) for one in hashed["prefix_hashes"]] == [2, 2, 0]  # full blocks of 16
    assert hashed["hash_block_tokens"].tolist() == [16] * 3
    told = read(**given, hash_ids=["[1, 2]", "[3]", "[]"], hash_block_tokens=[20, 32, 5]).columns
    assert told["prefix_hashes"].tolist() == [(1, 2), (3,), ()]
    for ids, said in (
        ([[1], [1], [1, 2, 3, 4]], "fit no block size"),
        ([["x"], [], []], "row 0: hash_ids is ['x']; it must be a list of whole numbers"),
        ([[1.5], [], []], "it must be a list of whole numbers"),
    ):
        assert said in line_of(lambda ids=ids: read(**given, hash_ids=ids))
    few = {"arrival_s": [0.0], "prompt_tokens": [40], "output_tokens": [1]}
    assert "hash_ids fit blocks of 32, 64 tokens; say which" not in line_of(
        lambda: read(**few, hash_ids=[[1]])
    )  # 32, 64, 128 ... all fit one id
    assert "say which in a column hash_block_tokens" in line_of(lambda: read(**few, hash_ids=[[1]]))
    for parent, said in (
        ([0, -1, -1], "row 0: parent is 0; it must be an earlier row, or -1"),
        ([-1, 1, -1], "row 1: parent is 1"), ([-1, -2, -1], "row 1: parent is -2"),
    ):  # fmt: skip
        assert said in line_of(
            lambda parent=parent: read(**given, parent=parent, think_s=[0, 0, 0])
        )
    assert "parent needs a column think_s" in line_of(lambda: read(**given, parent=[-1, 0, 1]))


def test_agents_share_the_blocks_of_their_parents() -> None:
    given = dict(
        session_id=["s", "s", "t", "s"], idx=[0, 1, 0, 2], arrival_s=[0.0, 1.0, 0.0, 2.0],
        prompt_tokens=[128, 200, 64, 130], output_tokens=[1, 1, 1, 1], parent_idx=[-1, 0, -1, 1],
        shared_blocks=[0, 1, 0, 9], n_blocks=[2, 4, 1, 3], agent=["a", "b", "a", "a"],
        think_time_s=[9.0, 1.0, 9.0, 2.0],
    )  # fmt: skip
    made = read(**given)
    assert made.session_clock and made.columns["hash_block_tokens"].tolist() == [64] * 4
    hashes = made.columns["prefix_hashes"].tolist()
    # 2 new; the first of them and 3 new, of which full ones of 200 tokens; 1 new; 3 of 4 shared
    assert hashes == [(0, 1), (0, 2, 3), (5,), (0, 2)]
    loop = read(**given, closed_loop=True).columns
    assert loop["parent"].tolist() == [-1, 0, -1, 0]  # of its agent, or its session's last
    assert loop["think_s"].tolist() == [0, 1, 0, 2] and not loop["arrival_s"].any()
    assert "row 0: n_blocks is 4; its 128 prompt tokens fill 2 blocks of 64" in line_of(
        lambda: read(**given | {"n_blocks": [4, 4, 1, 3]})
    )
    assert read(**given | {"n_blocks": [3, 4, 1, 3]}).columns["prefix_hashes"][0] == (0, 1)
    assert "row 0: parent_idx 2 is no earlier row" in line_of(
        lambda: read(**given | {"parent_idx": [2, 0, -1, 1]})
    )


def test_turns_hold_their_session_s_history() -> None:
    made = read(session_id=["s", "t", "s"], turn=[2, 1, 1], prompt_tokens=[200, 64, 63],
                output_tokens=[3, 2, 1]).columns  # fmt: skip
    assert made["prompt_tokens"].tolist() == [63, 200, 64]  # by session, then by turn
    assert made["parent"].tolist() == [-1, 0, -1]
    assert made["prefix_hashes"].tolist() == [(), (0, 1, 2), (3,)]
    assert made["hash_block_tokens"].tolist() == [64] * 3


def test_conversations_become_questions_and_sessions() -> None:
    talk = [
        [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Q1"},
         {"from": "gpt", "value": "A1"}, {"from": "human", "value": "Q2"},
         {"from": "gpt", "value": "A2"}],
        [{"from": "gpt", "value": "A"}],
        [{"from": "human", "value": "Q3"}, {"from": "wizard", "value": "x"}],
        [{"from": "human", "value": "Q4"}, {"from": "gpt", "value": "A4"}],
    ]  # fmt: skip
    first = read(conversations=talk, id=["a", "b", "c", "d"])
    assert first.columns["prompt"].tolist() == ["Be brief.\nQ1", "Q4"]
    assert any("2 of 4 conversations passed over: no question and answer (unknown roles: wizard)"
               in line for line in first.notices)  # fmt: skip
    hashes = first.columns["system_hash"].tolist()
    assert hashes[1] is None and hashes[0] == blake2b(b"Be brief.", digest_size=8).hexdigest()
    every = read(conversations=talk, id=["a", "b", "c", "d"], turns="all").columns
    assert every["prompt"].tolist() == ["Be brief.\nQ1", "Be brief.\nQ1\nA1\nQ2", "Q4"]
    assert every["asked"].tolist() == ["Q1", "Q2", "Q4"]
    assert every["session_id"].tolist() == ["a", "a", "d"]
    assert every["parent"].tolist() == [-1, 0, -1]
    unnamed = read(conversations=talk, turns="all").columns
    assert unnamed["session_id"].tolist() == [0, 0, 3]
    assert "no conversation has a question and an answer (unknown roles: wizard)" in line_of(
        lambda: read(conversations=talk[1:3])
    )
    assert "row 0: conversations must be a list of messages" in line_of(
        lambda: read(conversations=["x"])
    )


def test_instructions_and_traces_by_their_columns() -> None:
    made = read(instruction=["do", "say"], input=["", "it"], output=["x", "y"]).columns
    assert made["prompt"].tolist() == ["do", "say\n\nit"]
    burst = {"Timestamp": [0, 5], "Request tokens": [1, 2], "Response tokens": [3, 4],
             "Model": ["m", "n"], "Session ID": [7, 8], "Log Type": ["a", "b"]}  # fmt: skip
    made = read_table(burst).columns
    assert made["arrival_s"].tolist() == [0, 5] and made["model"].tolist() == ["m", "n"]
    assert made["session_id"].tolist() == [7, 8] and made["tenant"].tolist() == ["a", "b"]
    made = read(timestamp=[0, 5], input_tokens=[1, 2], output_tokens=[3, 4], client_id=["x", "y"])
    assert made.columns["arrival_s"].tolist() == [0, 5]
    assert made.columns["tenant"].tolist() == ["x", "y"]
    both = {"timestamp": [0, 1000], "input_length": [600, 1024], "output_length": [1, 1]}
    assert read(**both, hash_ids=[[1, 2], [1, 2]]).columns["prefix_hashes"].tolist() == [
        (1,),
        (1, 2),
    ]
    assert layouts.LAYOUTS["azure"].described == (
        "azure (TIMESTAMP, ContextTokens, GeneratedTokens)"
    )
    assert layouts.LAYOUTS["native"].described.startswith("native (prompt_tokens or prompt, ")


def test_names_of_any_type() -> None:
    assert [layouts.hashable(one) for one in (3, "a", [1], {"b": 2})] == [3, "a", "[1]", "{'b': 2}"]
    assert layouts._codes(np.array(["b", "a", "b"], object)).tolist() == [0, 1, 0]


# Files


def columns_of(folder: Path, name: str, text: str | bytes, **options: Any) -> dict[str, list[Any]]:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return {key: values.tolist() for key, values in files.read_columns(path, **options).items()}


def test_cells_are_numbers_where_all_are(tmp_path: Path) -> None:
    made = columns_of(
        tmp_path, "a.csv",
        "n, f,mixed,prompt,user,empty,tenant\n1, 2.5,3,4,5,,6\n2,,x,5,6.5,,7\n",
    )  # fmt: skip
    assert made["n"] == [1, 2] and made["f"][0] == 2.5 and math.isnan(made["f"][1])
    assert made["mixed"] == ["3", "x"] and made["prompt"] == ["4", "5"]
    assert made["user"] == ["5", "6.5"] and made["tenant"] == [6, 7] and made["empty"] == ["", ""]
    assert columns_of(tmp_path, "b.csv", "a,b\n1,2,\n3,4,\n") == {"a": [1, 3], "b": [2, 4]}
    assert columns_of(tmp_path, "c.csv", "a,b\n") == {"a": [], "b": []}
    for text, said in (
        ("a,b\n1,2,\n3,4,5\n", "row 0 has 3 fields for 2 columns"),
        ("a,b\n1,2\n3\n", "row 1 has 1 fields for 2 columns"),
        ("a,a\n1,2\n", "two columns are called 'a'"),
        ("", "the file is empty"), ("version https://git-lfs", "a Git LFS pointer"),
    ):  # fmt: skip
        assert said in line_of(lambda text=text: columns_of(tmp_path, "d.csv", text))


def test_objects_in_lines_or_in_a_list(tmp_path: Path) -> None:
    rows = [{"a": 1, "b": "x"}, {"a": 2, "c": [1, 2]}]
    wanted = {"a": [1, 2], "b": ["x", None], "c": [None, [1, 2]]}
    lines = "\n".join(map(json.dumps, rows)) + "\n\n"
    assert columns_of(tmp_path, "a.jsonl", lines) == wanted == columns_of(tmp_path, "a.json", lines)
    assert columns_of(tmp_path, "b.json", json.dumps(rows)) == wanted
    assert columns_of(tmp_path, "c.json", '{"a": 1}') == {"a": [1]}
    for name, text, said in (
        ("d.json", "[1]", "row 0 is a JSON int, not an object"),
        ("e.jsonl", '{"a": 1}\n{"a": \n', "line 2 is not JSON: Expecting value (column"),
        ("f.json", '{"a": 1} x', "the file is not JSON: Extra data"),
        ("g.json", "[" * 100_000, "it is nested too deeply"),
    ):
        assert said in line_of(lambda name=name, text=text: columns_of(tmp_path, name, text))


def test_what_files_may_expand_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (files.EXPANDED_BYTES, files.EXPANSION, files.MOST_CHARACTERS) == (2**26, 100, 2**30)
    assert files._most(b"x" * 10, None) == 2**26 and files._most(b"x" * 10, 0.5) == 500_000
    assert files._most(b"x" * 2**20, None) == 100 * 2**20
    data = gzip.compress(b"a" * 1000)
    assert files._plain("a", data, 1000) == b"a" * 1000 and files._plain("a", b"x", 0) == b"x"
    assert f"its {len(data)} bytes expand to more than 999; allow" in line_of(
        lambda: files._plain("a", data, 999)
    )
    assert "not a gzip file, though its name ends in .gz" in line_of(
        lambda: files._plain("a.gz", b"x", 9)
    )
    assert "truncated" in line_of(lambda: files._plain("a.gz", data[:-9], 9999))
    for most in (0, -1, 1e12):
        with pytest.raises(InputError, match="max_expanded_mb must be above 0 and below 1e12"):
            files.read_columns({}, most)
    assert files.read_columns({"a": [1]}, 1e11)["a"].tolist() == [1]
    assert "did you mean" in line_of(lambda: files.read_columns(_beside(tmp_path, "trace.csv")))
    assert "there is no folder" in line_of(lambda: files.read_columns(tmp_path / "no" / "t.csv"))
    assert "unknown kind of file; it must end in .csv" in line_of(
        lambda: files.read_columns(tmp_path / "a.txt")
    )
    assert files.source_name(tmp_path / "a.csv") == "a.csv" and files.source_name("hf:x") == "hf:x"
    assert files.source_name({}) == "dict"
    with pytest.raises(InputError, match="can't read a workload from int"):
        files.read_columns(3)


def _beside(folder: Path, name: str) -> Path:
    (folder / name).write_text("")
    return folder / f"{name[1:]}"


def test_arrays_keep_numbers_and_objects_apart() -> None:
    assert files._array([1, 2]).dtype == np.int64 and files._array([1, 2.5]).dtype == np.float64
    assert files._array([True, False]).dtype == bool and files._array([1, None]).dtype == object
    assert files._array(pd.Series(["a"])).dtype == object
    lists = files._array([[1, 2], [3, 4]])
    assert lists.shape == (2,) and lists[1] == [3, 4]


# Presets and generated prompts


def test_tables_are_those_that_results_were_made_with() -> None:
    """As ``docs/workloads.md`` compares them with what was published: for all time."""
    drafts = (prompts._draft(Random(f"prompts {seed}")) for seed in range(6000))
    rounded = [(text, round(log, 6), sd) for text, log, sd in drafts]
    fitted = [item for item in presets.PRESETS.items() if item[0] != "overload"]
    assert digest(*fitted) == "a1bf3e7393cc8141"
    assert digest(*rounded) == "4f6fe750b7a43417"
    assert (prompts.MAX_OUTPUT_TOKENS, prompts.TOPIC_SD, prompts.BETWEEN_SD) == (4096, 0.2, 1.52)


def test_seeds_draw_what_they_always_drew() -> None:
    for name, wanted in DRAWN.items():
        made = preset(name, requests=400, seed=5)
        said = [made["prompt_tokens"].tolist(), made["output_tokens"].tolist(),
                np.round(made["arrival_s"], 6).tolist()]  # fmt: skip
        if "prefix_hashes" in made:
            said += [made["prefix_hashes"].tolist(), made["session_id"].tolist()]
        assert digest(*said) == wanted, name


DRAWN = {
    "azure-conv-2023": "20506abe7da174a0",
    "azure-code-2023": "49d3ff246f7fcecb",
    "mooncake-conversation": "271684a04ee46ceb",
    "burstgpt": "49c194818d38d384",
    "reasoning": "fc307425e0a73bba",
    "sharegpt": "411ccb748ff90518",
    "lmsys-chat": "852314440a2d6bdf",
    "synthetic-chat": "bfb1688cb04e97ac",
}


def test_lengths_are_straight_in_log_between_levels() -> None:
    table = tuple(np.exp(np.arange(19.0)).tolist())
    z = np.array([-50.0, 0.0, 50.0])
    assert lengths(table, z).tolist() == [1, round(math.exp(7)), round(math.exp(18))]
    quarter = 0.6744897501960817  # of the mass lies above: between 0.7 and 0.8, in the middle
    assert lengths(table, np.array([quarter])).tolist() == [round(math.exp(9.5))]
    assert len(presets.LEVELS) == 19 and (np.diff(presets.LEVELS) > 0).all()


def test_sessions_grow_and_share_their_blocks() -> None:
    rule = Sessions(turns=2.0, likeness=0.75, lag=40.0, block_tokens=10, common_blocks=2)
    z, owner = presets._session_scores(rule, 40_000, np.random.default_rng(0))
    assert z.mean() == pytest.approx(0, abs=0.02) and z.std() == pytest.approx(1, abs=0.02)
    sizes = np.bincount(owner)
    assert sizes[:-1].mean() == pytest.approx(2, rel=0.03)
    rows = pd.DataFrame({"z": z, "owner": owner, "place": np.arange(len(z))})
    grouped = rows.groupby("owner")
    assert grouped["z"].is_monotonic_increasing.all()
    gaps = grouped["place"].diff().dropna()
    assert gaps.mean() == pytest.approx(40, rel=0.1)  # requests in between
    pairs = grouped["z"].agg(list)
    two = np.array([one for one in pairs if len(one) == 2])
    # of two normal scores of correlation 0.75 the difference has sd sqrt(0.5)
    assert np.abs(np.diff(two)).mean() == pytest.approx(math.sqrt(0.5 * 2 / math.pi), rel=0.05)
    made = presets._prefixes(rule, np.array([35, 8, 52, 29]), np.array([0, 1, 0, 1]))
    assert made["prefix_hashes"] == [(0, 1, 2), (), (0, 1, 2, 3, 4), (0, 1)]
    assert list(made["hash_block_tokens"]) == [10] * 4
    apart = presets._prefixes(rule, np.array([35, 45]), np.array([0, 1]))
    assert apart["prefix_hashes"] == [(0, 1, 2), (0, 1, 5, 6)]


def test_a_clock_that_ticks_and_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "mooncake-conversation"
    made = preset(name, requests=200)
    assert (made["arrival_s"] % 3 == 0).all() and made["arrival_s"][0] == 0
    fast = preset(name, requests=200, rate=30.0)
    assert fast.rate == pytest.approx(30, rel=0.15)
    steps = np.unique(np.round(fast["arrival_s"] / fast["arrival_s"][fast["arrival_s"] > 0][0], 6))
    assert (np.abs(steps - np.round(steps)) < 1e-3).all()
    assert preset("burstgpt", requests=50, rate=2.0).rate == pytest.approx(2.0)
    assert len(preset("burstgpt", requests=1, rate=2.0)) == 1
    for given in ({"requests": 0}, {"requests": 10**8 + 1}, {"rate": 0.0}, {"rate": math.inf}):
        with pytest.raises(InputError, match="must be"):
            preset("burstgpt", **given)  # type: ignore[arg-type]
    assert presets.preset_names() == list(PRESETS)


def test_noise_agrees_as_two_samples_do() -> None:
    """Kendall's tau of normal pairs of correlation r is 2 / pi arcsin r."""
    for ceiling in (0.3, 0.74, 1.0):
        sd = prompts.noise_sd(ceiling)
        r = 1.52**2 / (1.52**2 + sd**2)
        assert 2 / math.pi * math.asin(r) == pytest.approx(ceiling)
    for n, ceiling in ((0, 0.5), (1, 0.0), (1, 1.01), (1, math.nan)):
        with pytest.raises(InputError, match="must be"):
            prompts.generate_prompts(n, ceiling=ceiling)
    (one,) = prompts.generate_prompts(1, ceiling=1.0).output_tokens
    assert 1 <= one <= 4096
    silent = prompts.generate_prompts(300, 2, ceiling=1.0)
    other = prompts.generate_prompts(300, 2, ceiling=1.0, sample=1)
    assert silent.output_tokens.tolist() == other.output_tokens.tolist()
    assert silent.name == "generated prompts (seed 2)"
    assert silent.prompt_tokens.tolist() == estimate_tokens(silent.prompt).tolist()
    noisy = [prompts.generate_prompts(4000, 2, sample=k) for k in (0, 1)]
    log = np.log([one.output_tokens for one in noisy])
    inside = (log > 0.1).all(axis=0) & (log < math.log(4000)).all(axis=0)
    spread = np.diff(log, axis=0)[0][inside].std() / math.sqrt(2)
    assert spread == pytest.approx(prompts.noise_sd(0.74), rel=0.08)
    assert noisy[0].output_tokens.max() == 4096 and noisy[0].output_tokens.min() >= 1
    cut = noisy[0].censored
    assert cut is not None and (noisy[0].output_tokens[cut] == 4096).all()


def test_scores_of_one_s_own_are_standard_normal() -> None:
    found = prompts._own_scores([f"prompt {k}" for k in range(20_000)])
    assert found.mean() == pytest.approx(0, abs=0.02) and found.std() == pytest.approx(1, abs=0.02)
    assert np.quantile(found, 0.975) == pytest.approx(1.96, abs=0.05)
    slants = np.log([prompts._slant(str(k)) for k in range(20_000)]) / 0.2
    assert slants.mean() == pytest.approx(0, abs=0.03) and slants.std() == pytest.approx(
        1, abs=0.02
    )
    assert prompts._slant("a", "b") == pytest.approx(prompts._slant("a") * prompts._slant("b"))
    rng = Random(1)
    drawn = [prompts._between(rng, 3, 5) for _ in range(300)]
    assert set(drawn) == {3, 4, 5} and {prompts._pick(rng, (1, 2)) for _ in range(50)} == {1, 2}
