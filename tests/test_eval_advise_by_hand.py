"""Advice by hand: what is chosen, and each sentence, of comparisons whose numbers are made up."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

import lengthwise.eval.compare as grids
from lengthwise.eval import advise as module
from lengthwise.eval.advise import Advice, advise, windows_of
from lengthwise.eval.compare import SAME, Comparison, Contender
from lengthwise.eval.setting import Setting
from lengthwise.eval.source import Cut, Fixed, Spelled
from lengthwise.eval.statistics import Interval
from lengthwise.eval.verdict import gains
from lengthwise.serving import Engine, Fail
from lengthwise.serving.timing import LinearTiming
from lengthwise.workload import Workload

OWN = math.nan
ONE = Engine(max_num_seqs=1, num_gpu_blocks=500)
TICK = LinearTiming(base_s=1.0)
HALF = "noisy-oracle:tau=0.5"


def burst(*output: int, **columns: Any) -> Workload:
    n = len(output)
    ones = np.ones(n, int)
    return Workload(
        {"arrival_s": np.zeros(n), "prompt_tokens": ones, "output_tokens": output, **columns},
        name="burst",
    )


def trace(n: int) -> Workload:
    return Workload(
        {"arrival_s": np.arange(n) * 2.0, "prompt_tokens": np.ones(n, int),
         "output_tokens": np.arange(n) % 9 + 1}, name="trace",
    )  # fmt: skip


# What is served


def test_what_can_be_served_is_looked_for_in_five_thousand_requests_without_failures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        grids, "saturation_rate", lambda workload, system: seen.append((workload, system)) or 8.0
    )
    failing = Setting(ONE, TICK, replicas=2, failures=[Fail(0, 1.0)]).load()
    assert grids.capacity_of(trace(grids.MIX + 50), failing) == 8.0
    workload, system = seen[0]
    assert len(workload) == grids.MIX and system.events == ()
    assert [node.policy.name for node in system.nodes] == ["fcfs", "fcfs"]


def test_limits_are_five_medians_at_little_load_or_what_is_noticed() -> None:
    seen: list[Workload] = []
    original = module.simulate_on

    def spied(workload: Workload, *given: Any, **more: Any) -> Any:
        seen.append(workload)
        return original(workload, *given, **more)

    loaded = Setting(ONE, LinearTiming(base_s=0.3219)).load()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "simulate_on", spied)
        found = module._light_slo(trace(2100), loaded, 0.02)
    assert len(seen[0]) == 2000 and seen[0].rate == pytest.approx(0.002)
    # the first token takes one iteration, as does each after it; 1.6095 with two digits
    assert found == {"ttft": 1.6, "tpot": 1.6}
    slight = Setting(ONE, LinearTiming(base_s=0.01)).load()
    assert module._light_slo(trace(50), slight, 0.02) == {"ttft": 1.0, "tpot": 0.05}
    single = trace(50).replace(output_tokens=np.ones(50, int))
    assert module._light_slo(single, loaded, 0.02) == {"ttft": 1.6, "tpot": 0.05}


def test_seeds_are_draws_or_windows_or_the_same() -> None:
    drawn = Spelled("burstgpt", {"requests": 30})
    assert module._cut(drawn, drawn.load(None, 0), 3) is drawn
    for count, seeds, kind in ((1500, 3, Cut), (1499, 3, Fixed), (500, 1, Cut)):
        whole = trace(count)
        found = module._cut(Fixed(whole), whole, seeds)
        assert type(found) is kind
        if isinstance(found, Cut):
            assert (found.name, len(found.windows)) == ("trace", seeds)
    long = windows_of(trace(10_100), 4)  # parts of 2,525, of which the middle 2,000 are run
    windows = [long.load(None, seed) for seed in (0, 1, 5)]
    assert [len(one) for one in windows] == [2000] * 3
    assert [int(one["output_tokens"][0]) for one in windows] == [
        262 % 9 + 1, 2787 % 9 + 1, 2787 % 9 + 1,
    ]  # fmt: skip
    assert windows[1]["arrival_s"][0] == 0.0
    # fewer where prompts are long, more where a window would have no rate
    heavy = trace(2000).replace(prompt_tokens=np.full(2000, 50_000))
    assert [len(window) for window in windows_of(heavy, 2).windows] == [359, 359]
    heavier = trace(2000).replace(prompt_tokens=np.full(2000, 10**6))
    assert [len(window) for window in windows_of(heavier, 2).windows] == [150, 150]
    piled = np.where(np.arange(2000) < 850, 0.0, np.arange(2000))
    assert [len(w) for w in windows_of(heavier.replace(arrival_s=piled), 2).windows] == [1000, 1000]
    assert type(module._native(heavy.head(718), 3)[0]) is Fixed
    assert type(module._native(heavy.head(719), 3)[0]) is Cut
    assert type(module._native(heavier, 3)[0]) is Cut and module._native(heavier, 3)[1] == 3
    (said,) = module._sampled(module._native(heavier, 3)[0], heavier)
    assert "runs are of 150 requests, 3 times over the trace" in said
    longer = trace(10_001)
    assert module._sampled(module._native(longer, 3)[0], longer) == [
        "trace: own: the first 10,000 of 10,001 requests"
    ]
    assert module._sampled(Fixed(longer), longer) == []
    loop = burst(1, 1).replace(parent=np.array([-1, 0]), think_s=np.array([0.0, 1.0]))
    source = Fixed(loop)
    assert module._cut(source, loop, 1) is source


# Comparisons


def grid(
    rows: Mapping[tuple[str, str], Mapping[str, Any]],
    *,
    rates: Sequence[float] = (OWN,),
    seeds: int = 2,
    notices: tuple[str, ...] = (),
) -> Comparison:
    """Metrics by (policy, predictor): one number, one a seed, or a function of the rate."""
    made = []
    for (policy, predictor), metrics in rows.items():
        for rate in rates:
            for seed in range(seeds):
                row: dict[str, Any] = {"rate": rate, "seed": seed, "policy": policy,
                                       "predictor": predictor,
                                       "requests": 300.0 + seed}  # fmt: skip
                for name, value in metrics.items():
                    one = value(rate) if callable(value) else value
                    row[name] = one[seed] if isinstance(one, list) else one
                made.append(row)
    who = tuple(Contender(policy, None, policy, predictor) for policy, predictor in rows)
    return Comparison("made", pd.DataFrame(made), who, {}, {}, notices)


def latency(mean: Any, p99: Any = 10.0, **more: Any) -> dict[str, Any]:
    return {"e2e_mean_s": mean, "e2e_p99_s": p99, "wait_mean_s": 1.0, "wait_max_s": 5.0,
            "normalized_latency_mean_s": 0.5, "ttft_mean_s": 0.25, "goodput_requests_per_s": 3.0,
            **more}  # fmt: skip


FCFS = ("fcfs", "none")


def at(rows: Mapping[tuple[str, str], Mapping[str, Any]], **more: Any) -> Any:
    return module._At(grid(rows, **more), OWN, 3.0, 4.0)


def test_the_best_is_of_those_that_pay_and_are_fair() -> None:
    rows = {
        FCFS: latency(10.0), ("sjf", HALF): latency(5.0, 15.1), ("sjf", "oracle"): latency(1.0),
        ("srtf+guard", HALF): latency(6.0, 15.0), ("mlfq", "none"): latency(7.0, 9.0),
    }  # fmt: skip
    # sjf is lower, but its P99 is 1.51 times fcfs's; the oracle is not for sale
    who, pays = module._choice(at(rows), HALF)
    assert ((who.policy_name, who.predictor_name), pays) == (("srtf+guard", HALF), True)
    who, _ = module._choice(at(rows), "oracle")
    assert (who.policy_name, who.predictor_name) == ("sjf", "oracle")
    # of those that don't pay the best is told all the same, fair or not
    rows = {FCFS: latency(10.0), ("sjf", HALF): latency(9.8, 99.0), ("mlfq", "none"): latency(9.9)}
    who, pays = module._choice(at(rows), HALF)
    assert (who.policy_name, pays) == ("sjf", False)
    rows[("sjf", HALF)] = latency(9.79, 14.0)
    assert module._choice(at(rows), HALF)[1]
    # the interval and all: ratios 0.9 and 1.0 are 0.95 in the mean, and their interval holds 1
    rows[("sjf", HALF)] = latency([9.0, 10.0])
    who, pays = module._choice(at(rows), HALF)
    assert (who.policy_name, pays) == ("sjf", False)


def test_what_pays_is_below_98_percent_interval_and_all() -> None:
    nan = math.nan
    for ratio, pays in (
        (Interval(0.9, 0.8, 0.979, 5), True), (Interval(0.9, 0.8, 0.98, 5), False),
        (Interval(0.979, nan, nan, 1), True), (Interval(0.98, nan, nan, 1), False),
    ):  # fmt: skip
        assert gains(ratio) is pays


def test_what_a_predictor_of_each_tau_gains() -> None:
    rows = {
        FCFS: latency(10.0), ("sjf", "noisy-oracle:tau=0.3"): latency(9.0),
        ("sjf", HALF): latency(8.0), ("sjf", "./mine"): latency(7.0),
        ("sjf", "oracle"): latency(5.0), ("srtf+guard", HALF): latency(1.0),
        ("sjf", "noisy-oracle:tau=0.7"): latency(6.0),
    }  # fmt: skip
    found = module._by_tau(at(rows), "sjf")
    assert {tau: round(ratio.mean, 9) for tau, ratio in found.items()} == {
        0.3: 0.9, 0.5: 0.8, 1.0: 0.5, 0.7: 0.6
    }  # fmt: skip
    assert module._by_tau(at(rows), "mlfq") == {}


# Sentences


def loads(waits: Mapping[float, float]) -> Comparison:
    rates = tuple(waits)
    row = {"e2e_mean_s": 10.0, "wait_mean_s": lambda rate: waits[rate]}
    return grid({FCFS: row}, rates=rates)


def test_the_first_sentence_says_whether_a_queue_forms() -> None:
    two = Setting(nodes="2xh200/llama-3.1-8b,roofline:l40s/llama-3.1-8b").load()
    kinds = "2 × h200/llama-3.1-8b + 1 × roofline:l40s/llama-3.1-8b"
    none = loads({3.2: 0.1, 3.8: 0.2, 4.4: 0.3})
    busy = loads({3.2: 0.1, 3.8: 0.6, 4.4: 3.0})
    queue = grid({FCFS: {"e2e_mean_s": 10.0, "wait_mean_s": 2.5}})
    quiet = grid({FCFS: {"e2e_mean_s": 10.0, "wait_mean_s": 0.009}})
    assert module._first(queue, busy, 6.6, 4.0, two) == (
        f"More arrives than can be served: 6.60 requests/s are 165% of what {kinds} can serve "
        "(4.00), so a queue grows as long as the run lasts (under fcfs a request waits 2.50 s of "
        "its 10.0 s), and 3 times as many are needed first."
    )
    assert module._first(queue, busy, 4.0, 4.0, two) == (
        f"A queue forms: its own 4.00 requests/s are 100% of what {kinds} can serve (4.00), and "
        "under fcfs a request waits 2.50 s of its 10.0 s."
    )
    said = f"2.00 requests/s are 50% of what {kinds} can serve (4.00)"
    waits = "under fcfs a request waits 0.00 s of its 10.0 s"
    assert module._first(quiet, busy, 2.0, 4.0, two) == (
        f"No queue forms: its own {said}, and {waits}; one forms at 3.80."
    )
    assert module._first(quiet, none, 2.0, 4.0, two) == (
        f"No queue forms: its own {said}, and {waits}; none does at 110% of it either."
    )
    # a load below the own rate is no news
    assert module._first(quiet, busy, 3.8, 4.0, two).endswith("; one forms at 4.40.")
    barely = grid({FCFS: {"e2e_mean_s": 10.0, "wait_mean_s": 0.01}})
    assert "waits 0.0100 s of" in module._first(barely, busy, 2.0, 4.0, two)


def test_the_second_sentence_says_what_is_gained_and_what_it_costs() -> None:
    rows = {
        FCFS: latency(10.0, 20.0),
        ("sjf", HALF): latency(
            [5.0, 6.0], 25.0, wait_max_s=45.0, normalized_latency_mean_s=0.2, ttft_mean_s=0.125,
            goodput_requests_per_s=3.456,
        ),
    }  # fmt: skip
    where = at(rows)
    sjf = where.found.contenders[1]
    ratio = where.ratio(sjf, "e2e_mean_s")
    share = f"{ratio.mean:.0%} ({100 * ratio.low:.0f} to {100 * ratio.high:.0f})"
    assert module._second(where, sjf, True, {"ttft": 1.0, "tpot": 0.05}) == (
        "At 3.00 requests/s (75% of capacity) sjf with lengths of Kendall τ 0.5 takes the mean "
        f"latency to {share} of fcfs's, latency a token to 40%, mean TTFT to 50%, and goodput "
        "(TTFT 1 s, TPOT 0.05 s) from 3.00 to 3.46 requests/s; it costs a P99 latency of 125% of "
        "fcfs's and a longest wait of 45.0 s in place of 5.00 s."
    )
    assert module._second(where, sjf, False, {}) == (
        "Nothing is gained for sure at 3.00 requests/s (75% of capacity): the best of sjf, "
        f"srtf+guard, mlfq has {share} of fcfs's mean latency."
    )
    alone = at(rows, seeds=1)
    assert "has 50% of fcfs's" in module._second(alone, sjf, False, {})


def ratios(**tau: float) -> dict[float, Interval]:
    return {
        float(name[1:]) / 10: Interval(mean, mean - 0.01, mean + 0.01, 5)
        for name, mean in tau.items()
    }


def test_the_third_sentence_says_what_to_know_and_to_do() -> None:
    rows = {
        FCFS: latency(10.0), ("srtf+guard", HALF): latency(6.0), ("mlfq", "none"): latency(7.0),
        ("sjf", "./mine"): latency(6.5), ("srtf+guard", "oracle"): latency(4.0),
    }  # fmt: skip
    where = at(rows)
    who = {one.policy_name: one for one in where.found.contenders}
    good, late, only, none = (
        ratios(t3=0.9, t5=0.8, t10=0.5), ratios(t3=0.975, t5=0.96, t10=0.5),
        ratios(t3=1.0, t10=0.96), ratios(t3=1.0, t5=0.99),
    )  # fmt: skip
    by = "τ 0.3 0.90, τ 0.5 0.80, exact lengths 0.50 of fcfs's mean"

    def said(whom: str, pays: bool, taus: Any, given: bool, queued: bool) -> str:
        return module._third(where, who[whom], pays, taus, given, queued, "sure")

    assert said("sjf", True, good, False, True) == (
        f"A predictor of Kendall τ 0.3 is enough ({by}): serve with sjf once you have such a "
        "predictor; sure."
    )
    assert said("sjf", True, good, True, True) == (
        f"A predictor of Kendall τ 0.3 is enough ({by}); yours has 0.65: serve with sjf; sure."
    )
    assert said("sjf", True, late, True, False).startswith("A predictor of Kendall τ 0.5 is enough")
    assert said("sjf", True, late, True, False).endswith(
        "; yours has 0.65: leave the order as it is until a queue forms; sure."
    )
    assert said("sjf", False, only, False, True) == (
        "Only exact lengths gain anything (τ 0.3 1.00, exact lengths 0.96 of fcfs's mean): leave "
        "the order as it is; sure."
    )
    assert said("sjf", False, none, False, False) == (
        "No predictor is good enough, exact lengths neither (τ 0.3 1.00, τ 0.5 0.99 of fcfs's "
        "mean): leave the order as it is; sure."
    )
    # who reads none is told what lengths would bring, and needs none
    assert said("mlfq", True, {}, True, True) == (
        "mlfq reads no predicted lengths (srtf+guard would have τ 0.5 0.60, exact lengths 0.40): "
        "serve with mlfq; sure."
    )


def test_how_sure_it_is() -> None:
    where = at({FCFS: latency(10.0)}, seeds=3)
    assert module._how_sure(where, Cut(trace(10), 2), 2) == (
        "intervals are over 2 windows of 302 requests of the trace"
    )
    assert module._how_sure(where, None, 7) == "intervals are over 3 draws of the workload"
    assert module._how_sure(where, Fixed(trace(10)), 7) == (
        "intervals are over 3 draws of the workload"
    )
    same = at({FCFS: latency(10.0)}, notices=("something", f"trace: {SAME}; intervals show"))
    assert module._how_sure(same, Fixed(trace(10)), 7) == (
        "one run of the same requests, whose own randomness is in no interval"
    )


def test_the_command_serves_so_or_leaves_it() -> None:
    begin = "vllm serve MODEL --scheduler-cls lengthwise.policies.plugins.vllm.scheduler "
    for policy, predictor, config in (
        ("srtf+guard", "./mine", '{"policy": "srtf", "predictor": "./mine"}'),
        ("sjf", None, '{"policy": "sjf", "predictor": "PREDICTOR"}'),
        ("sjf", "oracle", '{"policy": "sjf", "predictor": "PREDICTOR"}'),
        ("sjf", HALF, '{"policy": "sjf", "predictor": "PREDICTOR"}'),
        ("mlfq", "./mine", '{"policy": "mlfq"}'),
    ):
        assert module._command(policy, predictor, True, True) == (
            f"{begin}--additional-config '{{\"lengthwise\": {config}}}'"
        )
    left = "vllm serve MODEL    # leave the order as it is: "
    assert module._command("sjf", None, False, True) == f"{left}nothing is gained for sure"
    assert module._command("sjf", None, False, False) == f"{left}nothing is gained for sure"
    assert module._command("sjf", None, True, False) == f"{left}there is no queue to order"
    assert module._named(Contender("a", None, "sjf", "oracle")) == "sjf with oracle"
    assert module._named(Contender("a", None, "mlfq", "none")) == "mlfq"


# All of it


def advised(
    monkeypatch: pytest.MonkeyPatch, wait: float, rate: float, better: float = 6.0, **more: Any
) -> tuple[Advice, list[tuple[Any, ...]]]:
    """Advice on traffic of ``rate`` where 4 requests/s can be served."""
    calls: list[tuple[Any, ...]] = []

    def compared(*given: Any, **options: Any) -> Comparison:
        calls.append((given, options))
        rates = given[3] if len(given) > 3 else (OWN,)
        waits = {"wait_mean_s": wait}
        rows = {
            FCFS: latency(10.0, **waits), ("sjf", HALF): latency(better if len(given) > 3 else 5.0),
            ("sjf", "oracle"): latency(4.0), ("sjf", "p"): latency(7.0),
        }  # fmt: skip
        return grid(rows, rates=rates)

    monkeypatch.setattr(module, "compare", compared)
    monkeypatch.setattr(module, "capacity_of", lambda workload, loaded: 4.0)
    monkeypatch.setattr(module, "_elsewhere", lambda *given: "")
    monkeypatch.setattr(module, "load_predictor", lambda name: name, raising=False)
    return advise(trace(11_000).at_rate(rate), **more), calls


def test_traffic_is_compared_at_its_own_rate_and_at_shares_of_the_capacity(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    far: list[tuple[int, int]] = []
    found, calls = advised(
        monkeypatch, 3.0, 3.0, slo={"ttft": 2.0}, seeds=4, engine=ONE, replicas=1, router="jsq",
        metrics_interval_s=0.5, processes=3,
        progress=lambda done, of: far.append((done, of)),
    )  # fmt: skip
    (own, shared), (cut, again) = calls
    predictors = [f"noisy-oracle:tau={tau}" for tau in (0.3, 0.5, 0.7)] + ["oracle"]
    policies = ("fcfs", "sjf", "srtf+guard", "mlfq")
    assert own[1:] == (policies, predictors) and shared.pop("seeds") == 2
    assert isinstance(own[0], Fixed) and len(own[0].workload) == 10_000
    assert cut[1:] == (policies, predictors, [3.2, 3.8, 4.4], 4)
    assert isinstance(cut[0], Cut) and len(cut[0].windows) == 4
    shared.pop("progress")(1, 2)
    again.pop("progress")(4, 4)
    assert far == [(1, 30), (14, 30)]  # 2 seeds, 4 at three rates, and 4 on four hosts
    assert shared == again == {
        "engine": ONE, "timing": "h200/llama-3.1-8b", "replicas": 1, "router": "jsq", "nodes": None,
        "metrics_interval_s": 0.5, "processes": 3, "slo": {"ttft": 2.0}, "cells": None,
        "capacity": 4.0,
    }  # fmt: skip
    # a queue forms and all can be served: judged there
    assert (found.capacity, found.own_rate, found.rate) == pytest.approx((4.0, 3.0, 3.0))
    assert found.policy == "sjf" and '"policy": "sjf"' in found.command
    assert found.slo == {"ttft": 2.0}
    assert {tau: one.mean for tau, one in found.taus.items()} == pytest.approx({0.5: 0.5, 1.0: 0.4})
    first, second, third = found.sentences
    assert first.startswith("A queue forms") and "lengths of Kendall τ 0.5" in second
    assert second.startswith("At 3.00 requests/s (75% of capacity)")
    assert third.endswith("once you have such a predictor; intervals are over 2 draws of the "
                          "workload.")  # fmt: skip
    kept = found.to_dict()
    assert kept["mean_latency_ratio_by_tau"]["0.5"] == {
        name: pytest.approx(0.5) for name in ("mean", "low", "high")
    }
    assert list(kept["mean_latency_ratio_by_tau"]) == ["0.5", "1"]
    assert (kept["judged_at_requests_per_s"], kept["slo_s"]) == (found.rate, {"ttft": 2.0})
    assert kept["sentences"] == list(found.sentences) and kept["command"] == found.command
    assert kept["own_rate_requests_per_s"] == pytest.approx(3.0)
    assert kept["capacity_requests_per_s"] == 4.0 and kept["policy"] == "sjf"


def test_where_nothing_waits_or_too_much_arrives_95_percent_are_judged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quiet, _ = advised(monkeypatch, 0.1, 1.0)
    assert (quiet.rate, quiet.policy) == (3.8, "fcfs")  # no queue: as it is
    assert quiet.command.endswith("there is no queue to order")
    assert quiet.sentences[0].startswith("No queue forms")
    assert "intervals are over 5 windows of 301 requests" in quiet.sentences[2]
    assert quiet.taus[0.5].mean == pytest.approx(0.6)
    much, _ = advised(monkeypatch, 3.0, 4.1)
    assert (much.rate, much.policy) == (3.8, "sjf")
    assert much.sentences[0].startswith("More arrives") and "2 times as many" in much.sentences[0]
    just, _ = advised(monkeypatch, 3.0, 4.0)
    assert just.rate == pytest.approx(4.0)
    even, _ = advised(monkeypatch, 0.1, 4.5)  # it waits little in so short a run; it will queue
    assert (even.rate, even.policy) == (3.8, "sjf")
    useless, _ = advised(monkeypatch, 3.0, 4.1, better=9.9)
    assert useless.policy == "fcfs" and "Nothing is gained for sure" in useless.sentences[1]
    mine, calls = advised(monkeypatch, 3.0, 3.0, predictor="./p")
    assert calls[0][0][2][0] == "./p" and len(calls[0][0][2]) == 5
    assert '"predictor": "./p"' in mine.command and "; yours has 0.70" in mine.sentences[2]


def test_defaults_and_what_light_load_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_light_slo", lambda *given: {"ttft": given[2], "tpot": 9.0})
    found, calls = advised(monkeypatch, 3.0, 3.0)
    assert found.slo == {"ttft": 4.0, "tpot": 9.0} == calls[0][1]["slo"]
    assert calls[1][0][4] == 5
    told = inspect.signature(advise).parameters
    wanted = {
        "predictor": None, "slo": None, "seeds": 5, "engine": None,
        "timing": "h200/llama-3.1-8b", "replicas": 1, "router": "round-robin", "nodes": None,
        "metrics_interval_s": 0.0, "processes": 1, "progress": None,
    }  # fmt: skip
    assert {name: told[name].default for name in wanted} == wanted


def test_whether_advice_holds_on_other_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(
        ratio: float, *others: float | Interval, setting: Setting | None = None
    ) -> str:  # fmt: skip
        def of(share: float) -> Comparison:
            return grid({FCFS: latency(10.0), ("sjf", HALF): latency(10.0 * share)}, rates=(3.8,))

        def on_hosts(*given: Any) -> dict[str, Interval]:
            asked.append(given)
            sure = [
                one if isinstance(one, Interval) else Interval(one, one, one, 2) for one in others
            ]
            return {str(k): one for k, one in enumerate(sure)}

        monkeypatch.setattr(module, "on_hosts", on_hosts)
        at = module._At(of(ratio), 3.8, 3.8, 4.0)
        where = setting or Setting()
        hosts = module._hosts(where.load())
        return module._elsewhere(
            at, at.found.contenders[1], ratio < 0.98, hosts, Fixed(trace(10)), where, 2, print
        )

    asked: list[Any] = []
    seen = "hosts that were seen (GPU 0.95 to 1.05 and CPU 0.5 to 2.5 of the profile's times)"
    assert told(0.8, 0.7, 0.9) == f"it holds on all {seen}: 70 to 90% of fcfs's mean"
    assert told(0.8, 0.7, 0.99) == f"it doesn't hold on all {seen}: 70 to 99% of fcfs's mean"
    assert told(1.0, 0.99, 1.0) == f"nothing is gained on all {seen}: 99 to 100% of fcfs's mean"
    assert told(1.0, 0.9) == f"there is something to gain on some {seen}: 90 to 100% of fcfs's mean"
    unsure = Interval(0.94, 0.88, 1.01, 5)  # the advice is of gains for sure, here as elsewhere
    assert told(1.0, unsure) == f"nothing is gained on all {seen}: 94 to 100% of fcfs's mean"
    assert told(0.8, unsure) == f"it doesn't hold on all {seen}: 80 to 94% of fcfs's mean"
    source, who, rate, seeds, _, processes, moved = asked[0]
    assert (type(source), who.label, rate, processes) == (Fixed, f"sjf · {HALF}", 3.8, 2)
    assert seeds == 2 and moved is print
    assert told(0.8, 0.7, setting=Setting(timing=LinearTiming(1.0))) == ""
