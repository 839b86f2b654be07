"""Verdicts by hand-made tables: what is said of each; JSON and CSV hold the same numbers."""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lengthwise.errors import InputError
from lengthwise.eval.compare import BOUND, Comparison, Contender, compare
from lengthwise.eval.statistics import Interval
from lengthwise.eval.tables import heading, rows_of
from lengthwise.eval.verdict import (
    _beside_best,
    gains,
    judged_verdict,
    run_verdict,
    share,
    verdict,
)
from lengthwise.policies import load_policy
from lengthwise.policies.bundle import write_bundle
from lengthwise.serving import Engine, Node, System
from lengthwise.serving.saturation import saturation_rate
from lengthwise.serving.timing import LinearTiming
from lengthwise.serving.timing.load import timing_on
from lengthwise.training.cli import main
from lengthwise.workload import Workload

FCFS = Contender("fcfs", None, "fcfs", "none")
SJF = Contender("sjf", "oracle", "sjf", "oracle")
SRTF = Contender("srtf", "oracle", "srtf", "oracle")
MINE = Contender("sjf", "./p", "sjf", "./p")


def table(
    means: dict[Contender, tuple[float, ...]], *, wait: float = 5.0, capacity: float = math.nan,
    rate: float = 8.0, **more: dict[Contender, tuple[float, ...]],
) -> Comparison:  # fmt: skip
    """A comparison with these mean latencies by seed; P99 is four times, the longest wait twice."""
    rows: list[dict[str, Any]] = []
    for who, values in means.items():
        for seed, mean in enumerate(values):
            rows.append(
                {"rate": rate, "offered_rate": rate, "seed": seed, "policy": who.policy_name,
                 "predictor": who.predictor_name, "requests": 100.0, "e2e_mean_s": mean,
                 "e2e_p99_s": 4 * mean, "wait_mean_s": wait, "wait_max_s": 2 * mean,
                 **{name: given[who][seed] for name, given in more.items()}}
            )  # fmt: skip
    rows += [
        {"rate": rate, "offered_rate": rate, "seed": seed, "policy": BOUND, "predictor": "none",
         "e2e_mean_s": 1.0}
        for seed in range(len(means[FCFS]))
    ]  # fmt: skip
    return Comparison(
        "t", pd.DataFrame(rows), tuple(means), {}, {"replicas": 1, "timing": "x"},
        capacity=capacity,
    )  # fmt: skip


def said(found: Comparison) -> str:
    return verdict(found, found.rates[0])


def test_a_gain_is_said_with_its_interval_and_its_price() -> None:
    # ratios 0.5 and 0.5 exp(±d): log mean ln 0.5, half 12.706 * s / sqrt(2)
    step = math.exp(0.01)
    found = table({FCFS: (10.0, 10.0), MINE: (5.0 * step, 5.0 / step), SJF: (4.0, 4.0)})
    half = 12.7062 * 0.01 * math.sqrt(2) / math.sqrt(2)
    low, high = 50 * math.exp(-half), 50 * math.exp(half)
    assert said(found) == (
        f"8 requests/s: a queue forms; sjf with ./p takes the mean latency to 50% ({low:.0f} to "
        f"{high:.0f}) of fcfs's, sjf with exact lengths to 40%, its P99 to 50% and the longest "
        "wait from 20.0 to 10.0 s."
    )


def test_rows_that_ran_alike_are_named_together() -> None:
    found = table({FCFS: (10.0, 10.0), SJF: (5.0, 5.02), SRTF: (5.0, 5.02)})
    assert "sjf = srtf with exact lengths takes the mean latency to 50%" in said(found)
    assert [line.names for line in rows_of(found, 8.0)] == [
        ("fcfs", ""), ("sjf = srtf", "oracle"), (BOUND, ""),
    ]  # fmt: skip
    one = table({FCFS: (10.0, 10.0), SJF: (10.0, 10.0), SRTF: (10.0, 10.0)}, wait=0.1)
    assert said(one) == "8 requests/s: no queue forms; all rows ran the same schedule."


def test_nothing_is_claimed_that_the_interval_does_not_hold() -> None:
    found = table({FCFS: (10.0, 10.0), SJF: (8.0, 11.0)})
    assert "no mean latency is lower for sure, the best is 94% (12 to 709) of fcfs's" in said(found)
    idle = table({FCFS: (10.0, 10.0), SJF: (9.95, 10.1)}, wait=0.1)
    assert said(idle) == (
        "8 requests/s: no queue forms; the order changes nothing, all means are within 2% of "
        "fcfs's."
    )
    worse = table({FCFS: (10.0, 10.0), SJF: (15.0, 15.1)})
    assert said(worse).endswith("; worse than fcfs: sjf with exact lengths (150%).")


def test_overload_is_named_with_what_can_be_served() -> None:
    found = table({FCFS: (10.0, 10.0), SJF: (5.0, 5.1)}, capacity=6.5)
    assert said(found).startswith("8 requests/s: overload, 6.50 can be served; sjf with exact")
    assert heading(found, 8.0).startswith("8 requests/s: more than the 6.50 that can be served (")
    assert "overload" not in said(replace(found, capacity=8.5))
    assert "overload" not in said(replace(found, capacity=math.nan))


def test_goodput_counts_where_the_mean_does_not_fall() -> None:
    means = {FCFS: (10.0, 10.0), SJF: (9.9, 10.0)}
    goods = {FCFS: (2.0, 3.0), SJF: (6.0, 7.0)}
    told = said(table(means, goodput_requests_per_s=goods))
    assert told.endswith(
        "but goodput goes from 2.50 to 6.50 requests/s with sjf with exact lengths."
    )
    gain = {FCFS: (10.0, 10.0), SJF: (5.0, 5.0)}
    assert said(table(gain, goodput_requests_per_s=goods)).endswith(
        "the longest wait from 20.0 to 10.0 s, goodput from 2.50 to 6.50 requests/s."
    )


def test_a_learned_row_is_held_to_the_best_that_was_not_trained(tmp_path: Path) -> None:
    bundle = str(write_bundle(load_policy("hrrn"), tmp_path / "bundle"))
    learned = Contender(bundle, None, "learned", "none")
    found = table({FCFS: (10.0, 10.0), SJF: (4.0, 4.0), learned: (20.0, 20.0)})
    assert said(found).endswith(
        "worse than fcfs: learned (200%); learned has 500% of the mean of the best that was not "
        "trained, sjf · oracle."
    )


def judged(policy: str, trained: bool, first: float, best: float, half: float) -> dict[str, Any]:
    row: dict[str, Any] = {"policy": policy, "trained": trained, "best": "jsq"}
    for name, value in (("ratio", first), ("ratio_best", best)):
        row |= {name: value, f"{name}_low": value - half, f"{name}_high": value + half}
    return row


def test_a_trained_policy_is_told_where_it_stands() -> None:
    base = judged("round-robin", False, 1.0, 6.0, 0.1)
    for best, tail in (
        (0.5, "50% (40 to 60) of that of the best baseline, jsq: it is better than all of them."),
        (5.9, "590% (580 to 600) of that of the best baseline, jsq: run that one."),
        (1.0, "100% (90 to 110) of that of the best baseline, jsq: no worse, as far as can be "
              "told."),
    ):  # fmt: skip
        assert judged_verdict([base, judged("mine", True, 0.3, best, 0.1)]) == [
            f"mine has 30% (20 to 40) of round-robin's mean latency and {tail}"
        ]


def test_a_run_in_a_sentence() -> None:
    found = {"wait_mean_s": 3.0, "e2e_mean_s": 10.0, "wait_max_s": 7.0}
    assert run_verdict(found, 8.0, 10.0) == (
        "A queue forms, at 80% of what can be served (10.0 requests/s): a request waits 3.00 s of "
        "its 10.0 s, the longest 7.00 s."
    )
    assert run_verdict({**found, "wait_mean_s": 0.001}, 8.0) == (
        "No queue forms: a request waits 0.00 s of its 10.0 s, the longest 7.00 s."
    )
    assert run_verdict(found, 12.0, 10.0).startswith(
        "Overload: 12.0 requests/s arrive and 10.0 can be served, so the queue grows"
    )
    assert run_verdict(found, math.inf, 10.0).startswith("A queue forms: a request waits")


def test_a_run_at_the_edges_of_its_words() -> None:
    found = {"wait_mean_s": 0.5, "e2e_mean_s": 10.0, "wait_max_s": 7.0}
    assert run_verdict(found, 10.0, 10.0).startswith("No queue forms, at 100% of what")
    assert run_verdict({**found, "wait_mean_s": 0.51}, 10.0, 10.0).startswith("A queue forms, at")
    assert run_verdict(found, 10.1, 10.0).startswith("Overload")
    assert "waits 0.0100 s" in run_verdict({**found, "wait_mean_s": 0.01}, 1.0)
    assert "waits 0.00 s" in run_verdict({**found, "wait_mean_s": 0.0099}, 1.0)


def test_a_gain_is_two_in_a_hundred_beyond_its_interval() -> None:
    def interval(mean: float, half: float = math.nan) -> Interval:
        return Interval(mean, mean - half, mean + half, 3)

    assert gains(interval(0.97, 0.009)) and not gains(interval(0.97, 0.011))
    assert gains(interval(0.979)) and not gains(interval(0.98))  # one seed has no interval
    assert not gains(Interval(0.97, 0.96, 0.98, 3))
    assert share(interval(0.6, 0.05)) == "60% (55 to 65)"
    assert share(interval(0.604, 0.004)) == share(interval(0.604)) == "60%"
    assert share(interval(1.25, 0.006)) == "125% (124 to 126)"
    tight = [_beside_best(interval(mean, 0.001)) for mean in (0.5, 1.01, 1.02, 1.03)]
    assert tight == [
        ": it is better than all of them", ": as good as it", ": as good as it", ": run that one",
    ]  # fmt: skip
    assert _beside_best(interval(1.5)) == ""


@pytest.mark.parametrize(
    ("mean", "worse"), [((10.4, 10.4, 10.5), True), ((10.1, 10.1, 10.2), False),
                        ((8.0, 10.0, 14.0), False)],
)  # fmt: skip
def test_rows_are_worse_two_in_a_hundred_above_and_for_sure(
    mean: tuple[float, ...], worse: bool
) -> None:
    found = said(table({FCFS: (10.0, 10.0, 10.0), SJF: (5.0, 5.0, 5.1), SRTF: mean}))
    assert ("; worse than fcfs: srtf with exact lengths (" in found) is worse


def test_means_that_differ_by_less_than_two_in_a_hundred_change_nothing() -> None:
    alike = {FCFS: (10.0, 10.0, 10.0), SJF: (9.9, 9.9, 9.85)}
    assert "the order changes nothing, all means are within 2% of fcfs's" in said(
        table(alike, wait=0.1)
    )
    for queued in (table(alike, wait=3.0), table({**alike, SRTF: (10.3, 10.3, 10.2)}, wait=0.1)):
        assert "no mean latency is lower for sure, the best is 99%" in said(queued)


def test_the_capacity_of_a_prefix_cache_is_not_that_of_a_repeated_request() -> None:
    """One seat, a second a prompt token: what is cached costs nothing, so capacity tells hits."""
    timing = LinearTiming(base_s=0.0, per_prefill_token_s=1.0, per_sequence_s=1.0,
                          per_context_token_s=0.0)  # fmt: skip
    engine = Engine(max_num_seqs=1, num_gpu_blocks=100, block_size=4, enable_prefix_caching=True)
    system = System((Node(engine, timing, load_policy("fcfs")),), _first())

    def capacity(hashes: list[tuple[int, ...]]) -> float:
        rows = len(hashes)
        return saturation_rate(
            Workload({
                "arrival_s": np.zeros(rows), "prompt_tokens": np.full(rows, 9),
                "output_tokens": np.ones(rows, dtype=int), "prefix_hashes": hashes,
                "hash_block_tokens": np.full(rows, 4),
            }), system,
        )  # fmt: skip

    nothing_shared = capacity([(1, 2)])
    assert nothing_shared == capacity([(1, 2), (3, 4)])
    # in each pair the second finds 8 of its 9 tokens
    assert capacity([(1, 2), (1, 2)]) > 1.5 * nothing_shared


def _first() -> Any:
    from lengthwise.policies import load_router

    return load_router("round-robin")


COMMANDS = {
    "compare t.csv --policies sjf --seeds 2 --processes 1 --rates 30 --max-num-seqs 2": 3,
    "simulate t.csv --policy sjf --predictor oracle": 1,
    "capacity t.csv --slo e2e_mean=0.5 --max-num-seqs 2 --seeds 2 --processes 1 --tolerance 0.5": 2,
    "evaluate policy b t.csv --requests 20 --seeds 2 --baselines fcfs,sjf --max-num-seqs 2": 3,
    "list routers": 15,
    "list": 40,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text(
        "arrival_s,prompt_tokens,output_tokens\n"
        + "".join(f"{i / 9},10,{3 + i % 7}\n" for i in range(60))
    )
    write_bundle(load_policy("hrrn"), tmp_path / "b")
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("line", COMMANDS)
def test_json_and_csv_stand_alone_and_agree(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    def out(more: str) -> str:
        with pytest.raises(SystemExit) as end:
            main(shlex.split(f"{line} {more}"))
        said = capsys.readouterr()
        assert end.value.code == 0, said.err
        return said.out

    document = json.loads(out("--json"))
    rows = list(csv.DictReader(io.StringIO(out("--csv"))))
    assert len(rows) >= COMMANDS[line]
    given = document if isinstance(document, list) else document.get("rows", document.get("seeds"))
    if isinstance(given, list):
        assert [list(row) for row in given] and len(given) == len(rows)
        for there, here in zip(given, rows, strict=True):
            for name, value in there.items():
                if isinstance(value, float):
                    assert float(here[name]) == value


@pytest.mark.usefixtures("folder")
def test_what_is_said_beside_a_document_goes_to_standard_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(shlex.split("simulate t.csv --json --out r"))
    out, err = capsys.readouterr()
    assert json.loads(out)["summary"]["requests"] == 60
    assert err == "wrote r\n"
    with pytest.raises(SystemExit):
        main(shlex.split("compare t.csv --policies sjf --seeds 2 --processes 1 --csv"))
    out, err = capsys.readouterr()
    assert out.startswith("requests_per_s,policy,predictor,")
    assert err.startswith("note: t.csv: the same requests for every seed")


def test_auto_rates_are_shares_of_the_capacity() -> None:
    """One seat and a second an iteration: ten tokens take ten seconds, so 0.1 requests/s."""
    timing = LinearTiming(base_s=1.0, per_prefill_token_s=0.0, per_sequence_s=0.0,
                          per_context_token_s=0.0)  # fmt: skip
    work = Workload({
        "arrival_s": np.arange(20) * 50.0, "prompt_tokens": np.full(20, 4),
        "output_tokens": np.full(20, 10),
    })  # fmt: skip
    found = compare(
        work, ("fcfs",), (), "auto", 1, Engine(max_num_seqs=1, num_gpu_blocks=100), timing
    )
    assert found.rates == [0.02, 0.08, 0.095, 0.11]
    assert found.capacity == pytest.approx(0.1)
    assert [found.overloaded(rate) for rate in found.rates] == [False, False, False, True]
    assert found.notices[0] == (
        "rates: 0.02 (its own), 0.08, 0.095, 0.11 requests/s (80%, 95%, 110% of the 0.1 that can "
        "be served)"
    )


def test_another_gpu_has_the_measured_profile_or_an_estimate() -> None:
    assert timing_on("h200", "roofline:h100/llama-3.1-8b") == "h200/llama-3.1-8b"
    assert timing_on("2xa100", "h200/qwen2.5-14b@0.26.0") == "roofline:2xa100/qwen2.5-14b"
    assert timing_on("l40s", "h200/llama-3.1-8b:cpu=1.5") == "roofline:l40s/llama-3.1-8b"
    for name in ("live:llama-3.1-8b", "my.json"):
        with pytest.raises(InputError, match="names none"):
            timing_on("h100", name)
