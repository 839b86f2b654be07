"""Parts of the evaluation by hand: defaults, checks of a policy, searches, intervals, mocks."""

from __future__ import annotations

import asyncio
import inspect
import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from scipy import stats

from lengthwise.errors import InputError, LengthwiseError
from lengthwise.eval import capacity as capacity_module
from lengthwise.eval import check, judge, metrics, mock, prediction_metrics, tune
from lengthwise.eval.bound import _edges
from lengthwise.eval.capacity import Capacity, Probe, capacity, save
from lengthwise.eval.compare import Comparison, Contender, compare
from lengthwise.eval.ground import beyond_measured
from lengthwise.eval.output import check_writable
from lengthwise.eval.prediction_metrics import prediction_metrics as measured
from lengthwise.eval.reproduce import PAPERS, reproduce
from lengthwise.eval.setting import Setting
from lengthwise.eval.simulate import simulate, simulate_on
from lengthwise.eval.statistics import Interval, paired_difference, paired_ratio, t_interval
from lengthwise.eval.tuned import tune_policy
from lengthwise.eval.windows import Window, Windows, windows_of
from lengthwise.picoseconds import LONGEST_S
from lengthwise.policies import load_policy, load_router
from lengthwise.prediction import Prediction
from lengthwise.predictors.predict import predict
from lengthwise.serving import Engine, Node, System
from lengthwise.serving.mock.api import Call
from lengthwise.serving.mock.driver import Row
from lengthwise.serving.mock.server import Serving
from lengthwise.serving.mock.text import Prompt
from lengthwise.serving.options import DEFAULT_TIMING
from lengthwise.serving.records import Iterations
from lengthwise.serving.timing import LinearTiming
from lengthwise.serving.timing import timing as load_timing
from lengthwise.workload import MOST_TOKENS, Workload

ONE = Engine(max_num_seqs=1, num_gpu_blocks=500)
TICK = LinearTiming(base_s=1.0)


def burst(*output: int) -> Workload:
    n = len(output)
    return Workload(
        {"arrival_s": np.zeros(n), "prompt_tokens": np.ones(n, int), "output_tokens": output}
    )


def told(function: Callable[..., Any], **wanted: Any) -> bool:
    """Whether these are the defaults of these arguments."""
    found = inspect.signature(function).parameters
    assert {name: found[name].default for name in wanted} == wanted
    return True


SYSTEM = {
    "engine": None, "timing": DEFAULT_TIMING, "replicas": 1, "router": "round-robin",
    "backend": "auto", "nodes": None, "metrics_interval_s": 0.0, "failures": None,
}  # fmt: skip


def test_what_is_not_given_is_as_documented() -> None:
    assert told(simulate, **{
        **SYSTEM, "policy": "fcfs", "predictor": None, "seed": 0, "log_iterations": False,
        "predicted_tokens": None,
    })  # fmt: skip
    assert told(compare, **{
        **SYSTEM, "policies": ("fcfs", "sjf", "srtf", "mlfq"), "predictors": ("oracle",),
        "rates": (), "seeds": 5, "processes": 1, "slo": None, "progress": None, "routers": (),
        "tuning": False, "budget": 64, "metric": "e2e_mean",
    })  # fmt: skip
    assert told(capacity, **{
        **SYSTEM, "predictor": None, "seeds": 5, "tolerance": 0.01, "processes": 1,
        "start_rate": 1.0, "progress": None,
    })  # fmt: skip
    assert told(tune.tune, **{
        "metric": "e2e_mean", "budget": 64, "seed": 0
    })  # fmt: skip
    assert told(tune_policy, **{
        **{name: given for name, given in SYSTEM.items() if name != "backend"},
        "metric": "e2e_mean", "budget": 64, "rates": (), "requests": 1000, "seeds": 5,
        "predictor": "oracle", "seed": 0, "progress": None, "cells": None,
    })  # fmt: skip
    assert told(measured, **{
        "edges": None, "groups": None, "resamples": 500, "seed": 0
    })  # fmt: skip
    assert told(windows_of, **{"tuning": 0})
    assert told(metrics.service_gap, **{
        "window_s": 60.0, "input_weight": 1.0, "output_weight": 2.0
    })  # fmt: skip
    assert told(reproduce, **{
        "seeds": 5, "processes": 1, "progress": None, "papers": PAPERS
    })  # fmt: skip
    for interval in (t_interval, paired_difference, paired_ratio):
        assert told(interval, confidence=0.95)
    plain = Setting()
    assert (plain.engine, plain.timing, plain.replicas, plain.router) == (
        Engine(), DEFAULT_TIMING, 1, "round-robin"
    )  # fmt: skip
    assert (plain.nodes, plain.metrics_interval_s, plain.failures) == (None, 0.0, None)
    assert metrics.STATISTICS == ("mean", "p50", "p90", "p95", "p99", "max")


# Checking a policy


def made(*checks: check.Check, problems: Any = ()) -> check.Checked:
    return check.Checked("spec", "policy", "x.py:3", ("now_s",), problems, checks)


def test_a_policy_is_right_where_nothing_is_wrong_with_it() -> None:
    ok, note, wrong, unseen = (
        check.Check(verdict, verdict, f"said {verdict}")  # type: ignore[arg-type]
        for verdict in ("ok", "note", "wrong", "not checked")
    )
    assert made().ok and made(ok, note, unseen).ok and not made(ok, wrong).ok
    assert made(ok, wrong, wrong).lines == ["wrong: said wrong"] * 2
    assert made(ok, note, unseen).lines == []
    problem: Any = check.Problem(*["a.py", 3, "is wrong", "do this", "x"][: len(
        inspect.signature(check.Problem).parameters)])  # fmt: skip
    bad = made(wrong, problems=(problem,))
    assert not bad.ok and bad.lines == [str(problem)]  # what follows from it is left out
    assert not made(ok, problems=(problem,)).ok
    told = made(ok).as_json()
    assert told == {
        "policy": "spec", "kind": "policy", "where": "x.py:3", "ok": True, "reads": ["now_s"],
        "problems": [], "checks": [{"name": "ok", "verdict": "ok", "said": "said ok"}],
    }  # fmt: skip


def lines_of(monkeypatch: pytest.MonkeyPatch, spec: str, **given: Any) -> check.Checked:
    """Without what takes long: each step says its name."""
    for step in ("_compiled", "_engines", "_vllm", "_speed"):
        monkeypatch.setattr(check, step, lambda *of, step=step: iter([check.Check(step, "ok", "")]))
    return check.check_policy(spec, **given)


def test_what_is_looked_at_and_in_which_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "mine.py"
    path.write_text("\n\ndef mine(prompt_tokens):\n    return prompt_tokens\n")
    found = lines_of(monkeypatch, str(path))
    assert (found.policy, found.kind, found.reads) == (f"{path}:mine", "policy", ("prompt_tokens",))
    assert found.where.endswith("mine.py:3") and found.ok
    assert [one.name for one in found.checks] == [
        "function", "_compiled", "_engines", "_vllm", "features", "_speed"
    ]  # fmt: skip
    assert found.checks[0].verdict == "ok"
    assert check.check_policy("jsq").kind == "router"
    assert lines_of(monkeypatch, "jsq:choices=2").kind == "router"
    assert lines_of(monkeypatch, "sjf").kind == "policy"

    def raises(score: Any) -> Any:
        raise LengthwiseError("too bad")

    monkeypatch.setattr(check, "_speed", raises)
    (last,) = [one for one in check.check_policy("sjf").checks if one.verdict == "wrong"]
    assert (last.name, last.said) == ("speed", "too bad")
    path.write_text("def mine(running_requests):\n    return running_requests\n")
    assert lines_of(monkeypatch, f"{path}:mine", router=True).kind == "router"


def run_like(**changed: Any) -> Any:
    names = ("replica", "scheduled_ps", "first_token_ps", "finish_ps", "preemptions")
    columns: dict[str, Any] = {name: np.arange(60) for name in names}
    for name, row in changed.items():
        columns[name] = columns[name].copy()
        columns[name][row] += 1
    return SimpleNamespace(**columns)


def test_two_runs_differ_at_the_first_request_that_does() -> None:
    assert check._differs(run_like(), run_like()) is None
    for name in ("replica", "scheduled_ps", "first_token_ps", "finish_ps", "preemptions"):
        assert check._differs(run_like(), run_like(**{name: 2})) == 2
    assert check._differs(run_like(), run_like(replica=3, finish_ps=1)) == 1
    assert check._differs(run_like(preemptions=0), run_like()) == 0


def test_engines_agree_on_three_workloads_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = check._engines(load_policy("sjf"))
    assert found == check.Check(
        "engines", "ok", "reference and compiled twin agree on 180 requests, to the picosecond"
    )
    asked: list[tuple[int, str]] = []

    def run(workload: Any, system: Any, predictions: Any, *, seed: int, backend: str) -> Any:
        asked.append((seed, backend))
        return run_like(finish_ps=7) if (seed, backend) == (1, "fast") else run_like()

    monkeypatch.setattr(check, "run", run)
    (found,) = check._engines(load_policy("sjf"))
    assert found.verdict == "wrong" and "differ at request 7 of workload 1:" in found.said
    assert asked == [(seed, backend) for seed in (0, 1) for backend in ("reference", "fast")]


def test_vllm_is_held_to_the_reference_where_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    from lengthwise.serving.vllm import environment

    differs: list[int] = []
    lengths: list[Any] = []

    def run(workload: Any, system: Any, *, backend: str, predictions: Any) -> Any:
        lengths.append((workload["output_tokens"], predictions))
        return run_like(finish_ps=differs[0]) if differs and backend == "vllm" else run_like()

    monkeypatch.setattr(check, "run", run)

    def said(policy: Any) -> tuple[str, str]:
        (found,) = check._vllm(policy)
        assert found.name == f"vLLM {environment.NEWEST}"
        return found.verdict, found.said

    monkeypatch.setattr(environment, "is_made", lambda: False)
    verdict, text = said(load_policy("sjf"))
    assert verdict == "not checked" and text.startswith("python -m lengthwise.serving.vllm")
    assert said(load_router("jsq")) == ("not checked", "a router stands before it")
    unable = said(load_policy(lambda outstanding_tokens: outstanding_tokens))
    assert unable[0] == "note" and unable[1].startswith("it reads outstanding_tokens")
    assert "(it has" not in unable[1]
    assert not lengths
    monkeypatch.setattr(environment, "is_made", lambda: True)
    assert said(load_policy("sjf")) == (
        "ok", "its scheduler and the reference agree on 60 requests"
    )  # fmt: skip
    for output, told in lengths:
        assert told.tolist() == np.maximum(1, np.rint(output * 1.25)).tolist()
    differs.append(5)
    assert said(load_policy("sjf")) == (
        "wrong", "its scheduler and the reference differ at request 5"
    )  # fmt: skip
    inexact = said(load_policy("hrrn"))  # reads clocks
    assert inexact[0] == "note"
    assert inexact[1].startswith("its scheduler differs at request 5: its arrival_s, now_s differ")
    assert {"arrival_s", "now_s", "kv_utilization", "deadline_s"} == check.INEXACT


def test_who_can_tell_what_a_score_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    sjf, jsq = load_policy("sjf").score, load_router("jsq").score
    (found,) = check._carried(sjf, "policy")
    assert found.said == "told by reference, fast, vllm, sglang, transformers"
    (found,) = check._carried(jsq, "router")
    assert found.said == "told by reference, fast, router, environment"
    known = {"reference": {"predicted_tokens"}, "vllm": {"predicted_tokens", "more"}}
    monkeypatch.setattr(
        check.registry, "load", lambda kind, name: known.get(name, {"nothing"})
    )  # fmt: skip
    (found,) = check._carried(sjf, "policy")
    assert found.verdict == "ok"
    assert found.said == (
        "told by reference, vllm; refused by fast (no predicted_tokens), sglang (no "
        "predicted_tokens), transformers (no predicted_tokens)"
    )


def test_a_slow_score_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def said(*seconds: float, score: Any = None) -> tuple[str, str]:
        times = iter(seconds)

        def timed(call: Callable[[], Any]) -> float:
            call()
            return next(times)

        monkeypatch.setattr(check, "_seconds", timed)
        (found,) = check._speed(score or load_policy("sjf").score)
        return found.verdict, found.said

    assert said(0.1, 0.0001, 9.0) == (
        "ok", "1e+05 us for 1000 requests, 100 us for one, 9e+06 us compiled"
    )  # fmt: skip
    verdict, text = said(0.11, 0.1, 0.001)
    assert verdict == "wrong" and text.endswith("switch off what takes more than 0.1 s")
    assert said(0.05, 0.11, 0.001)[0] == "wrong"
    python = load_policy(lambda prompt_tokens: np.log1p(prompt_tokens)).score
    assert said(0.002, 0.001, score=python) == (
        "ok", "2e+03 us for 1000 requests, 1e+03 us for one"
    )  # fmt: skip


def test_times_are_medians_of_five(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0, 5, 5, 6, 6, 9, 9, 11, 11, 15])  # 5, 1, 3, 2 and 4 s
    monkeypatch.setattr(check.time, "perf_counter", lambda: next(clock))
    calls: list[int] = []
    assert check._seconds(lambda: calls.append(1)) == 3 and len(calls) == 5


def test_the_run_that_a_policy_is_checked_on_is_crowded() -> None:
    for policy, count in ((load_policy("sjf"), 1), (load_router("jsq"), 3)):
        for seed in (0, 1):
            workload, system, predictions = check._case(policy, seed)  # type: ignore[arg-type]
            rng = np.random.default_rng(seed)
            prompt, output = rng.integers(1, 90, 60), rng.integers(1, 60, 60)
            assert workload["prompt_tokens"].tolist() == prompt.tolist()
            assert workload["output_tokens"].tolist() == output.tolist()
            arrival = workload["arrival_s"]
            if seed:
                assert arrival.tolist() == np.sort(rng.uniform(0, 2.0, 60)).tolist()
            else:
                assert arrival.tolist() == [k * 0.01 for k in range(60)]
            due = workload["deadline_s"] - arrival
            assert 0.5 <= due.min() < 1 and 4 < due.max() <= 5
            assert set(workload["priority"]) == {0, 1, 2, 3}
            hashes = [list(one) for one in workload["prefix_hashes"]]
            assert [len(one) for one in hashes] == [tokens // 8 for tokens in prompt]
            blocks = [
                {int(one[k]) for one in hashes if len(one) > k} for k in range(4)
            ]  # of three kinds each
            assert all(len(kinds) > 2 for kinds in blocks)
            assert [kinds <= {k, 100 + k, 200 + k} for k, kinds in enumerate(blocks)] == [True] * 4
            engine = system.nodes[0].engine
            assert len(system.nodes) == count
            assert (engine.max_num_seqs, engine.max_num_batched_tokens) == (5, 64)
            assert (engine.num_gpu_blocks, engine.block_size) == (60, 8)
            assert engine.enable_prefix_caching is (count == 3)
            assert system.nodes[0].timing == LinearTiming(
                0.01, per_prefill_token_s=1e-4, per_sequence_s=1e-3
            )
            fcfs = load_policy("fcfs")
            assert system.nodes[0].policy == (policy if count == 1 else fcfs)
            assert system.routing == (policy if count == 3 else load_router("jsq"))
            said = predictions.predicted_tokens
            assert (said > 0).all() and not np.array_equal(said, output)
            assert 0.6 < stats.spearmanr(said, output).statistic < 1


def test_what_compiles_has_the_bits_of_python_and_the_rest_is_called() -> None:
    (found,) = check._compiled(load_policy("sjf").score)
    assert found == check.Check("machine code", "ok", "the same bits as Python")
    (found,) = check._compiled(load_policy(lambda prompt_tokens: np.log1p(prompt_tokens)).score)
    assert found.verdict == "note" and found.said.startswith("called as Python, which is slower: ")


# Capacity


def test_a_search_is_kept_with_every_rate_that_was_tried(tmp_path: Path) -> None:
    found = Capacity(
        Interval(2.0, 1.5, 2.5, 2), (1.5, 2.5),
        (Probe(1.0, 0, {"ttft_p99": 0.5}, True), Probe(4.0, 1, {"ttft_p99": math.nan}, False)),
    )  # fmt: skip
    folder = save(found, tmp_path / "out", {"seeds": [0, 1]}, "lengthwise capacity")
    assert folder == tmp_path / "out"
    assert pq.read_table(folder / "probes.parquet").column_names == [
        "rate", "seed", "met", "ttft_p99"
    ]  # fmt: skip
    rows = pd.read_parquet(folder / "probes.parquet")
    assert rows["rate"].tolist() == [1.0, 4.0] and rows["met"].tolist() == [True, False]
    assert json.loads((folder / "capacity.json").read_text()) == {
        "mean": 2.0, "low": 1.5, "high": 2.5, "count": 2, "per_seed": [1.5, 2.5]
    }  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    assert config["command"] == "lengthwise capacity" and config["seeds"] == [0, 1]


def test_rates_are_halved_until_the_last_request_would_arrive_too_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three requests arrive within two intervals, which may be as long as the engines' clock."""
    tried: list[float] = []

    def never(workload: Workload, *given: Any, **more: Any) -> Any:
        tried.append(workload.rate)
        return SimpleNamespace(records=None)

    monkeypatch.setattr(capacity_module, "simulate_on", never)
    monkeypatch.setattr(capacity_module, "_statistics", lambda records, slo: {"ttft_p99": 0.6})
    three = burst(1, 1, 1).replace(arrival_s=np.arange(3.0))
    slowest = 2 / LONGEST_S
    for start, count in ((8 * slowest, 4), (7.9 * slowest, 3)):
        tried.clear()
        with pytest.raises(InputError, match="misses the SLO even at"):
            capacity(three, "fcfs", {"ttft_p99": 0.5}, seeds=1, start_rate=start)
        assert tried == pytest.approx([start / 2**k for k in range(count)])


def test_what_a_search_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def seen(workload: Any, loaded: Any, policy: Any, predicted: Any, **more: Any) -> Any:
        asked.append({"system": loaded.config(), "policy": policy, "said": predicted, **more})
        return SimpleNamespace(records=workload.rate)

    monkeypatch.setattr(capacity_module, "simulate_on", seen)
    monkeypatch.setattr(
        capacity_module, "_statistics", lambda rate, slo: {"ttft_p99": rate, "e2e_max": 1.0}
    )
    told: list[tuple[int, int]] = []
    found = capacity(
        burst(1, 2, 3, 4).replace(arrival_s=np.arange(4.0)), "sjf",
        {"ttft_p99": 3.0, "e2e_max": 1.0}, predictor="noisy-oracle:sigma=1", seeds=3,
        tolerance=0.5, engine=ONE, timing=TICK,
        replicas=2, router="jsq", backend="reference", start_rate=2.0, metrics_interval_s=0.5,
        progress=lambda done, of: told.append((done, of)),
    )  # fmt: skip
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert found.per_seed == pytest.approx((2 * 2**0.5,) * 3)  # 2, 4 and between
    assert [(p.seed, p.met) for p in found.probes] == [
        (seed, met) for seed in range(3) for met in (True, False, True)
    ]
    assert {(one["policy"], one["backend"]) for one in asked} == {("sjf", "reference")}
    assert [one["seed"] for one in asked] == [0] * 3 + [1] * 3 + [2] * 3
    system = asked[0]["system"]
    assert (system["replicas"], system["router"]) == (2, "jsq")
    assert system["metrics_interval_s"] == 0.5 and system["engine"]["max_num_seqs"] == 1
    noise = [one["said"].predicted_tokens.tolist() for one in asked[::3]]
    assert noise[0] != noise[1] and asked[0]["said"] is asked[1]["said"]
    with pytest.raises(InputError, match="SLO metric 'ttft' is not one of ttft_mean"):
        capacity(burst(1), "fcfs", {"ttft": 1.0})


# Comparisons


def test_a_comparison_finds_its_values_by_rate_row_and_seed() -> None:
    rows = [
        {"rate": rate, "seed": seed, "policy": policy, "predictor": "none", "router": router,
         "offered_rate": rate + seed, "x": 100 * rate + 10 * (policy == "b") + seed
         + 1000 * (router == "jsq")}
        for rate in (2.0, 1.0) for seed in (1, 0) for policy in ("a", "b")
        for router in ("rr", "jsq")
    ]  # fmt: skip
    who = tuple(Contender(p, None, p, "none", r, r) for p in ("a", "b") for r in ("rr", "jsq"))
    found = Comparison("x", pd.DataFrame(rows), who, {}, {})
    assert (found.rates, found.seeds, found.routed) == ([1.0, 2.0], 2, True)
    assert found.baseline == "rr + a" and who[0].label == "rr + a"
    assert found.values(1.0, "b", "none", "x", "rr").tolist() == [110, 111]
    assert found.of(2.0, who[1], "x").tolist() == [1200, 1201]
    assert len(found.values(2.0, "a", "none", "x")) == 4
    assert found.offered_rate(2.0) == 2.5
    ratio = found.ratio(1.0, who[2], "x")
    assert ratio == paired_ratio([110, 111], [100, 101])
    assert found.ratio(1.0, who[2], "x", who[1]) == paired_ratio([110, 111], [1100, 1101])
    assert found.interval(1.0, who[2], "x") == t_interval([110, 111])
    plain = Contender("fcfs", None, "fcfs", "oracle", "jsq", "jsq")
    assert (plain.name, plain.label, plain.trained) == ("jsq", "jsq · oracle", False)
    assert Contender("sjf", None, "sjf", "none").label == "sjf"


def test_routers_are_put_before_every_policy() -> None:
    loaded = Setting(replicas=2).load()
    from lengthwise.eval.compare import contenders_of

    def rows(policies: Any, routers: Any, predictors: Any = ()) -> list[tuple[str, str, str]]:
        found = contenders_of(policies, predictors, loaded, routers)
        return [(one.router_name, one.policy_name, one.predictor_name) for one in found]

    assert rows(("sjf",), ()) == [("", "fcfs", "none"), ("", "sjf", "oracle")]
    assert rows(("sjf", "fcfs"), ("jsq",)) == [
        ("round-robin", "fcfs", "none"), ("jsq", "fcfs", "none"),
        ("round-robin", "sjf", "oracle"), ("jsq", "sjf", "oracle"),
    ]  # fmt: skip
    noisy = ("noisy-oracle:tau=0.5", "oracle")
    assert rows(("sjf",), (), noisy)[1:] == [("", "sjf", name) for name in noisy]
    assert rows(("fcfs",), ("least-tokens",))[1][2] == "oracle"  # a router that reads lengths
    with pytest.raises(InputError, match="at least one policy"):
        rows((), ())


# Settings


def test_a_setting_says_what_it_can_t_be() -> None:
    for replicas in (0, 1.5, -1):
        with pytest.raises(InputError, match="replicas must be a whole number of at least 1"):
            Setting(replicas=replicas).load()  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"give nodes or replicas \(2\), not both"):
        Setting(replicas=2, nodes=[{}]).load()
    assert len(Setting(replicas=1, nodes=[{}, {}]).load().kinds) == 2
    assert Setting(ONE, TICK, 3).load().kinds[0].count == 3


def test_nodes_are_alike_in_engine_and_timing() -> None:
    def alike(*nodes: dict[str, Any]) -> bool:
        return Setting(ONE, TICK, nodes=list(nodes)).load().alike

    assert alike({}) and alike({}, {"count": 2}) and alike({}, {"policy": "sjf"})
    assert not alike({}, {"max_num_seqs": 2}) and not alike({}, {"speed": 0.5})
    assert not alike({}, {}, {"speed": 0.5})


def test_a_setting_s_config_names_nodes_that_differ() -> None:
    one = Setting(ONE, TICK, replicas=2, router="jsq").load()
    assert one.config() == {
        "router": "jsq", "replicas": 2, "engine": one.config()["engine"], "timing": TICK.name
    }  # fmt: skip
    assert one.config()["engine"]["max_num_seqs"] == 1
    nodes: list[Any] = [{"count": 2, "name": "big"}, {"max_num_seqs": 4, "policy": "sjf"}]
    two = Setting(ONE, TICK, nodes=nodes, metrics_interval_s=0.5).load().config()
    assert two["replicas"] == 3 and two["metrics_interval_s"] == 0.5 and "engine" not in two
    assert two["timing"] == f"2 x {TICK.name} + 1 x {TICK.name}"
    first, second = two["nodes"]
    assert (first["count"], first["name"], first["role"]) == (2, "big", "both")
    assert "policy" not in first and "name" not in second and second["policy"] == "sjf"
    assert second["engine"]["max_num_seqs"] == 4
    system = Setting(ONE, TICK, nodes=nodes, metrics_interval_s=0.5).load().system("hrrn")
    assert [node.policy.name for node in system.nodes] == ["hrrn", "hrrn", "sjf"]
    assert system.metrics_interval_s == 0.5


def test_iterations_larger_than_were_measured_are_told() -> None:
    profile: Any = load_timing("h200/llama-3.1-8b")  # up to 512 sequences and 2,048 tokens

    def said(seats: int, tokens: int, model: Any = profile) -> tuple[str, ...]:
        engine = Engine(max_num_seqs=seats, max_num_batched_tokens=tokens)
        node = Node(engine, model, load_policy("fcfs"))
        other = Node(ONE, TICK, load_policy("fcfs"))
        return beyond_measured(System((other, node, node), load_router("jsq")))

    assert said(512, 2048) == ()
    (line,) = said(513, 2048)
    assert "this engine may go to 513 and 2,048" in line
    assert len(said(512, 2049)) == len(said(513, 2049)) == 1
    assert said(9999, 9999, replace(profile, about={})) == ()
    assert said(9999, 9999, replace(profile, about={"max_num_seqs": 4})) == ()


def test_a_run_s_notices_and_config(monkeypatch: pytest.MonkeyPatch) -> None:
    found = simulate(burst(3, 1), "sjf", "oracle", ONE, TICK, seed=4)
    assert found.config["seed"] == 4 and found.config["predictor"] == "oracle"
    assert found.config["requests"] == 2 and found.config["policy"] == "sjf"
    assert "abstained_share" not in found.config and found.iterations is None
    assert found.config["guard"] is None or isinstance(found.config["guard"], dict)
    logged = simulate(burst(3, 1), engine=ONE, timing=TICK, log_iterations=True)
    assert logged.iterations is not None and len(logged.iterations) == 4
    assert simulate_on(
        burst(3, 1), Setting(ONE, TICK).load(), "fcfs", None, seed=0, backend="auto"
    ).iterations is None  # fmt: skip
    # of lengths that were made before, the predictor is not asked
    given = simulate(burst(3, 1), "sjf", None, ONE, TICK, predicted_tokens=[9.0, 1.0])
    assert given.records.finish_ps.tolist() == [4 * 10**12, 10**12]


# Intervals


def test_intervals_by_hand() -> None:
    one = Interval(2.0, 1.0, 4.0, 3)
    assert one.half == 1.5
    assert [one.contains(value) for value in (0.9, 1.0, 2.0, 4.0, 4.1)] == [
        False, True, True, True, False
    ]  # fmt: skip
    for wrong in ([], [[1.0, 2.0]], 3.0):
        with pytest.raises(InputError, match="an interval needs a row of values"):
            t_interval(wrong)
    alone = t_interval([3.0])
    assert (alone.mean, alone.count) == (3.0, 1) and math.isnan(alone.low + alone.high)
    low, high = stats.t.interval(0.8, 2, loc=2.0, scale=stats.sem([1.0, 2.0, 3.0]))
    found = t_interval([1.0, 2.0, 3.0], 0.8)
    assert (found.low, found.high, found.count) == pytest.approx((low, high, 3))
    ratio = paired_ratio([2.0, 8.0], [1.0, 2.0])
    assert ratio.mean == pytest.approx(8**0.5) and ratio.count == 2
    assert paired_difference([2.0, 8.0], [1.0, 2.0]).mean == 3.5
    for a, b in (([0.0, 1.0], [1.0, 1.0]), ([1.0, 1.0], [1.0, 0.0]), ([1.0, -1.0], [1.0, 1.0])):
        with pytest.raises(InputError, match="positive values"):
            paired_ratio(a, b)
    with pytest.raises(InputError, match="as many values on both sides"):
        paired_ratio([1.0], [1.0, 2.0])


def test_a_metric_s_interval_is_of_what_its_seed_draws() -> None:
    """Percentiles of 40 resamples, drawn by numpy's generator of that seed."""
    actual = np.array([4.0, 9.0, 30.0, 200.0, 51.0])
    said = np.array([5.0, 7.0, 90.0, 100.0, 101.0])
    found = measured(
        Prediction.exact(said), actual, resamples=40, seed=3, edges=[0, 10, 100, np.inf]
    )
    rng = np.random.default_rng(3)
    rows = [rng.integers(5, size=5) for _ in range(40)]
    drawn = [np.abs(said - actual)[one].mean() for one in rows]
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert found["mae"] == Interval(float(np.abs(said - actual).mean()), low, high, 5)
    assert found["within_50"].mean == 0.6 and found["within_100"].mean == 1.0
    # buckets up to 10, up to 100 and above: 0 0 1 1 2 was said, and 0 0 1 2 1 came
    assert found["bucket_accuracy"].mean == 0.6
    groups = ["a", "b", "a", "c", "b"]
    rng = np.random.default_rng(3)
    members = [[0, 2], [1, 4], [3]]
    again = [np.concatenate([members[g] for g in rng.integers(3, size=3)]) for _ in range(40)]
    assert [one.tolist() for one in prediction_metrics._draws(5, groups, 40, 3)] == [
        one.tolist() for one in again
    ]
    for lengths in ([1.0], [1.0, 0.5], [1.0, np.inf], [1.0, np.nan]):
        with pytest.raises(InputError, match="at least two lengths, each finite and 1 token"):
            measured(Prediction.exact(np.ones(len(lengths))), lengths)
    assert (
        measured(Prediction.exact(np.array([1.0, 2.0])), [1.0, 3.0], resamples=5)["mae"].mean == 0.5
    )


def test_judged_rows_have_waits_and_percentiles_beside_them() -> None:
    node = Node(ONE, TICK, load_policy("fcfs"))
    trial = judge.Trial(burst(3, 1, 2), System((node,), load_router("jsq")), None, 0)
    rows = judge.judge([load_policy("fcfs")], [load_policy("fcfs")] * 2, [trial, trial])
    assert [row["trained"] for row in rows] == [False, True, True, True]
    assert rows[3]["policy"] == "mean of 2" and rows[0]["best"] == "fcfs"
    for row in rows:  # first tokens at 1, 4 and 5 s; the second one has no time a token
        assert (row["max_wait_s"], row["p50_ttft_s"]) == (4.0, 4.0)
        assert row["p99_ttft_s"] == pytest.approx(4.98)
        assert row["p50_tpot_s"] == row["p99_tpot_s"] == pytest.approx(1.0)
        assert row["ratio"] == row["ratio_best"] == pytest.approx(1.0)
        assert "max_wait_s_ratio_best" not in row and "p99_latency_s_ratio_best" in row


# Windows, tuning


def test_windows_that_touch_share_nothing() -> None:
    one = burst(1)
    Windows("w", (Window(one, 1, (0, 10)),), (Window(one, 2, (10, 20)),))
    Windows("w", (Window(one, 1, (10, 20)),), (Window(one, 2, (0, 10)),))
    Windows("w", (Window(one, 1),), (Window(one, 2),))
    Windows("w", (Window(one, 1, (0, 10)),), (Window(one, 2),))
    for a, b in (((0, 10), (9, 19)), ((9, 19), (0, 10)), ((0, 10), (0, 10))):
        with pytest.raises(InputError, match="tuning and judging would share requests"):
            Windows("w", (Window(one, 1, a),), (Window(one, 2, b),))
    with pytest.raises(InputError, match="share"):
        Windows("w", (Window(one, 1),), (Window(one, 1),))


def test_candidates_are_drawn_from_the_seed() -> None:
    centre: dict[str, Any] = {"x": 2.0, "n": 8, "on": True, "none": 0, "less": -3, "off": 0.0}
    found = tune._near(centre, math.log(2), np.random.default_rng(1), {})
    rng = np.random.default_rng(1)
    draws = {}
    for name, value in centre.items():
        draw = float(rng.uniform(-math.log(2), math.log(2)))
        coin = rng.random() if isinstance(value, bool) else 0.0
        draws[name] = (draw, coin)
    assert found["x"] == float(f"{2 * math.exp(draws['x'][0]):.3g}")
    assert found["n"] == round(8 * math.exp(draws["n"][0]))
    assert found["on"] is bool(draws["on"][1] < 0.5)
    assert (found["none"], found["less"]) == (0, -3)
    assert found["off"] == float(f"{draws['off'][0] / math.log(8):.3g}")
    small = [tune._near({"n": 1}, 3.0, np.random.default_rng(k), {})["n"] for k in range(20)]
    assert min(small) == 1
    assert (tune.WIDE, tune.NEAR) == (math.log(8), math.log(1.6))


def test_metrics_that_are_tuned_for() -> None:
    records = simulate(burst(4, 1, 3), engine=ONE, timing=TICK).records  # ends at 4, 5 and 8 s
    found = {name: round(metric(records), 9) for name, metric in tune.METRICS.items()}
    by_hand = {
        "e2e_mean": round(17 / 3, 9), "e2e_p99": round(8 - 0.02 * 3, 9), "e2e_max": 8.0,
        "ttft_mean": round((1 + 5 + 6) / 3, 9), "ttft_p50": 5.0, "wait_max": 5.0,
        "normalized_latency_mean": round((1 + 5 + 8 / 3) / 3, 9), "tpot_mean": 1.0,
    }  # fmt: skip
    assert {name: found[name] for name in by_hand} == by_hand
    described = metrics.describe("e2e", metrics.e2e_s(records))
    assert {name: round(value, 9) for name, value in described.items()}.items() <= found.items()


@pytest.mark.parametrize(
    ("spec", "found", "name"),
    [
        ("hrrn", {"floor_tokens": 2.5}, "hrrn:floor_tokens=2.5"),
        ("mlfq:levels=3+guard:ratio=2", {"levels": 4, "skip_join": False},
         "mlfq:levels=4,skip_join=false+guard:ratio=2"),
    ],
)  # fmt: skip
def test_what_was_tuned_is_spelled_as_one_would_type_it(
    spec: str, found: dict[str, Any], name: str
) -> None:
    policy = load_policy(spec)
    tuned = tune.with_tunables(policy, {**policy.score.tunables, **found})
    wanted = dict(part.split("=") for part in name.partition("+")[0].partition(":")[2].split(","))
    assert {key: str(value).lower() for key, value in tuned.score.tunables.items()
            if key in wanted} == wanted  # fmt: skip
    assert tuned.name.partition("+")[2] == name.partition("+")[2]
    assert load_policy(tuned.name) == tuned


def test_a_policy_of_a_file_keeps_its_file_when_it_is_tuned(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def mine(prompt_tokens, *, k=1.0):\n    return prompt_tokens * k\n")
    tuned = tune.with_tunables(load_policy(f"{path}:mine:k=2.0"), {"k": 3.0})
    assert tuned.name.endswith("mine.py:mine:k=3.0") and tuned.score.tunables["k"] == 3.0
    assert load_policy(str(tuned.label)).score.tunables["k"] == 3.0


# The bound


def test_edges_go_by_steps_and_then_by_five_percent() -> None:
    assert _edges(0, 4).tolist() == [0, 1, 2, 3, 4, 5] and _edges(1, 1).tolist() == [1, 2]
    for low, high in ((0, 64), (1, 2048), (1, 8192)):
        found = _edges(low, high)
        assert found[0] == low and found[-1] == high + 1 and (np.diff(found) > 0).all()
        wide = found[found > 40]
        steps = wide[1:] / wide[:-1]
        assert steps.max() < 1.08 and steps[:-1].min() > 1.02
        assert np.log(steps).mean() == pytest.approx(0.05, abs=0.003)
        assert set(range(low, 12)) <= set(found.tolist())


def test_gaps_between_tokens_are_of_iterations_that_decode() -> None:
    three = np.zeros(3, dtype=np.int64)
    log = Iterations(
        replica=three, start_ps=three, duration_ps=np.array([9, 1, 2]) * 10**12,
        prefill_tokens=three, decode_seqs=np.array([0, 3, 1]), running=three, waiting=three,
        used_blocks=three, preempted=three,
    )  # fmt: skip
    gaps, tokens = metrics.itl_s(log)
    assert (gaps.tolist(), tokens.tolist()) == ([1, 2], [3, 1])


# Mock servers


def test_a_fleet_has_ports_and_seeds_one_after_the_other() -> None:
    nodes: list[Any] = [{"count": 2}, {"max_num_seqs": 3}]
    setting = Setting(Engine(num_gpu_blocks=100), TICK, nodes=nodes)
    servers = mock.fleet(setting, "fcfs", None, Serving(port=9000, seed=5, model="m"))
    assert [(one.serving.port, one.serving.seed, one.serving.model) for one in servers] == [
        (9000, 5, "m"), (9001, 6, "m"), (9002, 7, "m")
    ]  # fmt: skip
    assert [one._node.engine.max_num_seqs for one in servers] == [Engine().max_num_seqs] * 2 + [3]
    free = mock.fleet(setting, "fcfs", None, Serving(port=0))
    assert [one.serving.port for one in free] == [0, 0, 0]
    with pytest.raises(InputError, match="'sjf' reads predicted_tokens and no predictor was given"):
        mock.fleet(setting, "sjf", None, Serving())
    assert len(mock.fleet(setting, "sjf", "oracle", Serving())) == 3


def call(text: str, limit: int | None) -> Call:
    return Call(False, Prompt.of_text(text), limit, 0, None, False, False, False, 0, math.inf, text,
                None)  # fmt: skip


def test_calls_are_predicted_one_by_one() -> None:
    assert mock.predictions(None, 0) is None
    told = mock.predictions("noisy-oracle:sigma=1", 7)
    assert told is not None
    for number, limit in ((0, None), (3, None), (3, 20)):
        one = Workload(
            {"arrival_s": [0.0], "prompt_tokens": [3], "output_tokens": [10],
             "prompt": ["hello worlds"], "max_tokens": [limit or MOST_TOKENS]}
        )  # fmt: skip
        wanted: Any = predict("noisy-oracle:sigma=1", one, 7 + number)
        found = told(call("hello worlds", limit), 10, number)
        assert found.predicted_tokens.tolist() == wanted.predicted_tokens.tolist()
        assert found.max_tokens is None or found.max_tokens.tolist() == wanted.max_tokens.tolist()


class Server:
    """A server that fails, or leaves so many calls unanswered."""

    def __init__(self, name: str, left: int, fails: bool = False) -> None:
        self.serving, self.url = SimpleNamespace(model=name), f"http://{name}"
        self.left, self.fails, self.events = left, fails, [""]
        self.failed: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Server:
        self.failed = asyncio.get_running_loop().create_future()
        if self.fails:
            self.failed.set_exception(LengthwiseError("out of blocks"))
        return self

    async def __aexit__(self, *given: Any) -> None:
        self.events.append("closed")

    def keep_log(self) -> list[Row]:
        return [Row(2.0 - self.left, 5, 6, 2.5, 3.0, self.serving.model),
                Row(9.0, 7, 8, 9.5, 10.0, "stop")]  # fmt: skip

    async def drain(self, most_s: float) -> int:
        self.events.append(f"drained {most_s}")
        return self.left


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_servers_serve_until_they_are_told(number: int, tmp_path: Path) -> None:
    said: list[str] = []
    log = tmp_path / "log.csv"
    servers: list[Any] = [Server("a", 1), Server("b", 2)]

    async def told() -> None:
        asyncio.get_running_loop().call_later(0.02, os.kill, os.getpid(), number)
        await mock.serve(servers, 3.5, said.append, str(log))

    asyncio.run(told())
    assert said == ["a at http://a", "b at http://b", "3 requests were not answered"]
    assert [one.events for one in servers] == [["", "drained 3.5", "closed"]] * 2
    assert log.read_text().splitlines() == [
        "replica,arrival_s,prompt_tokens,output_tokens,first_token_s,finish_s,finish_reason",
        "1,0.0,5,6,2.5,3.0,b", "0,1.0,5,6,2.5,3.0,a", "0,9.0,7,8,9.5,10.0,stop",
        "1,9.0,7,8,9.5,10.0,stop",
    ]  # fmt: skip


def test_servers_end_with_what_an_engine_can_t_go_on_from(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(LengthwiseError, match="out of blocks"):
        asyncio.run(mock.serve([Server("a", 0), Server("b", 0, fails=True)], 1.0, said.append))  # type: ignore[list-item]
    with pytest.raises(InputError, match="can't write"):  # before anybody is served
        asyncio.run(mock.serve([], 1.0, said.append, str(tmp_path / "none" / "log.csv")))
    quiet: list[str] = []

    async def told() -> None:
        asyncio.get_running_loop().call_later(0.02, os.kill, os.getpid(), signal.SIGTERM)
        await mock.serve([Server("a", 0)], 1.0, quiet.append)  # type: ignore[list-item]

    asyncio.run(told())
    assert quiet == ["a at http://a"]  # all was answered


# Folders


def test_folders_that_results_can_go_to(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    for wrong in (file, file / "below"):
        with pytest.raises(InputError, match="can't write results to"):
            check_writable(wrong)
    assert check_writable(tmp_path / "a" / "b" / "c") == tmp_path / "a" / "b" / "c"
    assert not (tmp_path / "a").exists()
    (tmp_path / "empty").mkdir()
    check_writable(tmp_path / "empty")
    with pytest.raises(InputError, match="it holds other files"):
        check_writable(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    check_writable(str(tmp_path))
    assert not any(one.name.startswith(".lengthwise-") for one in tmp_path.iterdir())
