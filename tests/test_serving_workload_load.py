"""What the command line calls a workload: joins, splits, rates, sessions, seeds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.serving.workload import join, load_workload, preset, read, read_prompts, split_of
from lengthwise.workload import Workload


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    rows = [
        {"prompt": f"question {i}", "prompt_tokens": i + 1, "output_tokens": 10 * i, "model": m}
        for i in range(1, 21)
        for m in "ab"
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    lines = [f"{i * i / 10},{i + 100},{i + 1}" for i in range(12)]
    path.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *lines]))
    return path


def test_a_trace_is_taken_as_it_is(trace: Path) -> None:
    whole = load_workload(trace)
    np.testing.assert_allclose(whole["arrival_s"], np.arange(12) ** 2 / 10)
    first = load_workload(str(trace), requests=5, rate=2.0, seed=9)
    assert list(first["prompt_tokens"]) == [100, 101, 102, 103, 104]
    assert first.rate == pytest.approx(2.0)


def test_prompts_take_the_arrivals_of_a_trace(prompts: Path, trace: Path) -> None:
    workload = load_workload(prompts, arrivals=str(trace), model="a", seed=1)
    assert len(workload) == 12
    np.testing.assert_allclose(workload["arrival_s"], np.arange(12) ** 2 / 10)
    # drawn without replacement, and every row stays together
    assert len(set(workload["prompt"])) == 12
    for text, given, made in zip(
        workload["prompt"], workload["prompt_tokens"], workload["output_tokens"], strict=True
    ):
        number = int(text.split()[1])
        assert (given, made) == (number + 1, 10 * number)
    again = load_workload(prompts, arrivals=str(trace), model="a", seed=1)
    np.testing.assert_array_equal(workload["prompt"], again["prompt"])
    other = load_workload(prompts, arrivals=str(trace), model="a", seed=2)
    np.testing.assert_array_equal(workload["arrival_s"], other["arrival_s"])
    assert list(other["prompt"]) != list(workload["prompt"])


def test_rows_repeat_evenly_when_they_run_out(prompts: Path) -> None:
    workload = load_workload(prompts, arrivals="poisson:5", requests=50, model="b")
    counts = np.unique(workload["prompt"], return_counts=True)[1]
    assert set(counts) == {2, 3}
    assert "50 requests from 20 rows; rows repeat" in workload.notices[-1]
    drawn = join(read_prompts_table(prompts), "poisson:5", n=2000, replace=True)
    counts = np.unique(drawn["prompt"], return_counts=True)[1]
    assert counts.std() > 3  # binomial about 100


def read_prompts_table(path: Path) -> Workload:
    found = read_prompts(path, model="b")
    return Workload(
        {"arrival_s": np.zeros(len(found)), "prompt_tokens": found.prompt_tokens,
         "output_tokens": found.output_tokens, "prompt": found.prompt}
    )  # fmt: skip


def test_without_arrivals_a_rate_means_poisson_and_nothing_is_an_error(prompts: Path) -> None:
    workload = load_workload(prompts, rate=4.0, seed=3)
    np.testing.assert_array_equal(
        workload["arrival_s"], load_workload(prompts, arrivals="poisson:4", seed=3)["arrival_s"]
    )
    assert workload.notices[-1].endswith("has no arrival times; Poisson, 4 requests/s")
    with pytest.raises(InputError, match="has no arrival times; give some"):
        load_workload(prompts)


def test_one_seed_at_two_rates_differs_by_time_alone(prompts: Path, trace: Path) -> None:
    for arrivals in ("poisson", "gamma:3,cv=2", "bursty:8", str(trace)):
        slow, fast = (
            load_workload(prompts, arrivals=arrivals, rate=rate, seed=5) for rate in (2.0, 6.0)
        )
        np.testing.assert_array_equal(slow["prompt"], fast["prompt"])
        np.testing.assert_allclose(slow["arrival_s"], 3 * fast["arrival_s"])


def test_halves_share_no_prompt_and_are_those_of_the_training_command(prompts: Path) -> None:
    halves = {
        split: set(load_workload(prompts, arrivals="burst", split=split)["prompt"])
        for split in ("train", "test")
    }
    assert not halves["train"] & halves["test"]
    assert halves["train"] | halves["test"] == {f"question {i}" for i in range(1, 21)}
    for split, texts in halves.items():
        assert all(split_of(text) == split for text in texts)
        assert texts == set(read_prompts(prompts).split(split).prompt)


def test_the_split_is_fixed_for_all_time_and_has_its_share() -> None:
    # b2sum -l 64 gives 40f8..., 8472..., 373f..., b5a5... and 1feb...; below 8000... is test
    splits = [split_of(text) for text in ("a", "b", "c", "d", "naïve 日本")]
    assert splits == ["test", "train", "test", "train", "test"]
    share = np.mean([split_of(f"prompt {i}", 0.2) == "test" for i in range(20_000)])
    assert share == pytest.approx(0.2, abs=0.01)


def test_split_errors(prompts: Path, trace: Path) -> None:
    with pytest.raises(UnknownNameError, match="split 'tset'; did you mean 'test'"):
        load_workload(prompts, rate=1, split="tset")
    with pytest.raises(InputError, match="has no prompt texts, so no test split"):
        load_workload(trace, split="test")
    with pytest.raises(InputError, match="test_share must be between 0 and 1"):
        load_workload(prompts, rate=1, split="test", test_share=1.0)
    with pytest.raises(InputError, match="the test split holds none of its 40 prompts"):
        load_workload(prompts, rate=1, split="test", test_share=1e-9)


def test_presets_by_name(trace: Path) -> None:
    workload = load_workload("azure-conv-2023", requests=300, rate=5.0, seed=2)
    same = preset("azure-conv-2023", requests=300, rate=5.0, seed=2)
    for column in same.columns:
        np.testing.assert_array_equal(workload[column], same[column])
    assert len(load_workload("sharegpt")) == 1000
    assert len(load_workload("sharegpt", arrivals=str(trace))) == 12
    moved = load_workload("sharegpt", arrivals="constant:2", requests=4, seed=1)
    np.testing.assert_allclose(moved["arrival_s"], [0, 0.5, 1, 1.5])
    np.testing.assert_array_equal(
        moved["output_tokens"], preset("sharegpt", requests=4, seed=1)["output_tokens"]
    )


def test_presets_lend_their_arrivals(prompts: Path) -> None:
    workload = load_workload(prompts, arrivals="azure-code-2023", requests=2000, rate=4)
    gaps = np.diff(workload["arrival_s"])
    assert gaps.std() / gaps.mean() > 5


def test_generated_prompts_split_into_halves_of_the_size_asked_for() -> None:
    train = load_workload("synthetic-chat", requests=300, split="train", seed=1)
    test = load_workload("synthetic-chat", requests=300, split="test", rate=9.0, seed=1)
    assert len(train) == len(test) == 300
    assert not set(train["prompt"]) & set(test["prompt"])
    assert test.rate == pytest.approx(9.0)


def test_wrong_names_are_one_clear_line(prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no preset and no file 'azure'; did you mean 'azure-co"):
        load_workload("azure")
    with pytest.raises(InputError, match="no such file"):
        load_workload(str(tmp_path / "prompt.jsonl"))
    with pytest.raises(InputError, match="'sharegpt' is a preset; it takes no model, drop_zero"):
        load_workload("sharegpt", model="a", drop_zero=True)
    with pytest.raises(InputError, match="requests must be 1 or more, not 0"):
        load_workload(prompts, arrivals="burst", requests=0)
    with pytest.raises(InputError, match="rate must be a positive number"):
        load_workload(prompts, rate=-1.0)


def test_requests_with_prefixes_keep_their_order() -> None:
    own = preset("mooncake-conversation", requests=50, seed=3)
    moved = join(own, "poisson:3", n=50, seed=9)
    assert list(moved["prefix_hashes"]) == list(own["prefix_hashes"])


def test_deadlines_move_with_their_arrivals(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens,deadline_s\n5,1,1,8\n6,2,2,7\n")
    workload = load_workload(path, arrivals="constant:1", requests=2)
    left = dict(
        zip(workload["prompt_tokens"], workload["deadline_s"] - workload["arrival_s"], strict=True)
    )
    assert left == {1: 3.0, 2: 1.0}


def test_sessions_start_when_the_arrivals_say(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        "arrival_s,prompt_tokens,output_tokens,parent,think_s\n"
        "0,1,1,-1,0\n0,2,1,0,1.5\n0,3,1,-1,0\n0,4,1,2,1\n0,5,1,1,1\n"
    )
    workload = load_workload(path, arrivals=[0.0, 10.0])
    assert list(workload["prompt_tokens"]) == [1, 2, 5, 3, 4]
    assert list(workload["arrival_s"]) == [0, 0, 0, 10, 10]
    assert list(workload["parent"]) == [-1, 0, 1, -1, 3]
    one = load_workload(path, arrivals="poisson:1", requests=1)
    assert list(one["prompt_tokens"]) == [1, 2, 5]
    with pytest.raises(InputError, match="has 2 sessions, not 3"):
        load_workload(path, arrivals="poisson:1", requests=3)
    assert "every session starts at 0 s" in read(path).notices[-1]


def test_clients_in_a_closed_loop_take_turns(prompts: Path) -> None:
    workload = load_workload(prompts, arrivals="closed:3,think_s=2", requests=3000, model="a")
    np.testing.assert_array_equal(workload["parent"], np.r_[[-1, -1, -1], np.arange(2997)])
    assert not workload["arrival_s"].any()
    assert not workload["think_s"][:3].any()
    assert workload["think_s"][3:].mean() == pytest.approx(2.0, rel=0.1)
    eager = load_workload("sharegpt", arrivals="closed:2", requests=5)
    assert list(eager["parent"]) == [-1, -1, 0, 1, 2]
    assert not eager["think_s"].any()
    for spec in ("closed", "closed:0", "closed:1.5", "closed:2,think=3", "closed:2,think_s=-1"):
        with pytest.raises(InputError, match=r"closed:?.*(clients|positive|above 0|think_s)"):
            load_workload(prompts, arrivals=spec)
    with pytest.raises(InputError, match="takes no rate"):
        load_workload(prompts, arrivals="closed:2", rate=3.0)


def test_asking_for_more_than_a_trace_has_is_said(trace: Path) -> None:
    workload = load_workload(trace, requests=20)
    assert len(workload) == 12
    assert "trace.csv: has only 12 requests, not 20" in workload.notices


def test_workloads_are_read_without_heavy_imports() -> None:
    code = (
        "import sys, lengthwise.serving.workload as w; w.load_workload('sharegpt', requests=5);"
        "heavy = {'torch', 'pandas', 'sklearn', 'datasets', 'numba', 'transformers', 'gymnasium'};"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
