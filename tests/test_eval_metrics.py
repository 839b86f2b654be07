"""Metrics against hand-computed cases, numpy and scipy, and Little's law."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.eval import metrics
from lengthwise.eval.simulate import simulate
from lengthwise.serving import Engine, Iterations, Records
from lengthwise.serving.records import PS
from lengthwise.serving.timing import LinearTiming
from lengthwise.workload import Workload


def records(**changed: object) -> Records:
    """Two requests: one of five tokens, one of one token that waited."""
    columns: dict[str, object] = {
        "replica": np.zeros(2, dtype=np.int64),
        "arrival_ps": np.array([0, 1]) * PS,
        "scheduled_ps": np.array([0, 4]) * PS,
        "first_token_ps": np.array([2, 6]) * PS,
        "finish_ps": np.array([10, 6]) * PS,
        "prompt_tokens": np.array([100, 50]),
        "output_tokens": np.array([5, 1]),
        "predicted_tokens": np.full(2, np.nan),
        "preemptions": np.array([1, 0]),
        "recomputed_tokens": np.array([7, 0]),
        "cached_tokens": np.zeros(2, dtype=np.int64),
        "backend": "reference",
    }
    return Records(**{**columns, **changed})  # type: ignore[arg-type]


def test_per_request_metrics_by_hand() -> None:
    run = records()
    assert metrics.ttft_s(run).tolist() == [2, 5]
    assert metrics.e2e_s(run).tolist() == [10, 5]
    assert metrics.wait_s(run).tolist() == [0, 3]
    assert metrics.normalized_latency_s(run).tolist() == [2, 5]
    tpot = metrics.tpot_s(run)
    assert tpot[0] == 2  # 8 s for the four tokens after the first
    assert np.isnan(tpot[1])  # one token has no time between tokens


def test_summary_by_hand() -> None:
    found = metrics.summary(records(), alone_s=np.array([5.0, 5.0]), slo={"ttft": 2.5})
    assert found["makespan_s"] == 10
    assert found["throughput_requests_per_s"] == 0.2
    assert found["throughput_tokens_per_s"] == 0.6
    assert found["e2e_mean_s"] == 7.5
    assert found["wait_max_s"] == 3
    assert found["tpot_mean_s"] == 2  # over the answers that have one
    assert found["preemptions"] == 1
    assert found["recomputed_tokens"] == 7
    assert found["slowdown_mean"] == 1.5  # slowdowns 2 and 1
    assert found["jain_index"] == pytest.approx(9 / 10)  # (2 + 1)^2 / (2 (4 + 1))
    assert found["slo_attainment"] == 0.5
    assert found["goodput_requests_per_s"] == 0.1
    assert "kv_utilization_mean" not in found


def test_percentiles_are_scipys() -> None:
    values = np.random.default_rng(0).lognormal(size=1001)
    found = metrics.describe("x", values)
    for percent in metrics.PERCENTILES:
        expected = scipy.stats.scoreatpercentile(values, percent)
        assert found[f"x_p{percent}"] == pytest.approx(expected, rel=1e-12)
    assert found["x_mean"] == pytest.approx(scipy.stats.tmean(values), rel=1e-12)
    assert found["x_max"] == values.max()


def test_weighted_percentile_is_that_of_repeated_values() -> None:
    rng = np.random.default_rng(1)
    values, weights = rng.random(50), rng.integers(1, 9, 50)
    repeated = np.repeat(values, weights)
    for percent in (1, 10, 50, 90, 99, 100):
        expected = np.percentile(repeated, percent, method="inverted_cdf")
        assert metrics.weighted_percentile(values, weights, percent) == expected


def test_jain_index_of_textbook_cases() -> None:
    assert metrics.jain_index([3, 3, 3]) == 1
    assert metrics.jain_index([1, 0, 0, 0]) == 0.25
    assert metrics.jain_index([0, 0]) == 1  # nobody has more than another
    # Jain, Chiu, Hawe 1984: if k of n users share equally and the others get nothing, k/n
    assert metrics.jain_index([2] * 30 + [0] * 70) == pytest.approx(0.3)


def test_inter_token_latency_and_kv_utilization_by_hand() -> None:
    log = Iterations(
        replica=np.zeros(3, dtype=np.int64),
        start_ps=np.array([0, 2, 8]) * PS,
        duration_ps=np.array([2, 1, 2]) * PS,
        prefill_tokens=np.array([10, 0, 0]),
        decode_seqs=np.array([0, 3, 1]),
        running=np.array([1, 3, 1]),
        waiting=np.zeros(3, dtype=np.int64),
        used_blocks=np.array([4, 8, 2]),
        preempted=np.zeros(3, dtype=np.int64),
    )
    found = metrics.summary(
        records(iterations=log), num_gpu_blocks=10, alone_s=np.array([5.0, 5.0]),
        slo={"ttft": 2.5}, tenants=np.array(["a", "b"]), deadline_s=np.array([9.0, 9.0]),
        downtime_s=0.0,
    )  # fmt: skip
    moved = np.array([[0, 0, 1, 2 * PS, 3 * PS, 5 * PS, 7 * 10**9, 6 * PS]])
    found |= metrics.summary(records(moved=moved))
    bare = {name.removesuffix("_requests_per_s") for name in found if "goodput" in name}
    bare |= {name if name.endswith("per_s") else name.removesuffix("_s") for name in found}
    goodput = {f"{name}_requests_per_s" for name in ("goodput", "deadline_goodput")}
    assert bare - goodput == set(metrics.OF_RUNS)
    assert (found["transfers"], found["transferred_gb"]) == (1, 7.0)
    assert found["transfer_mean_s"] == found["transfer_max_s"] == 3.0
    assert found["itl_mean_s"] == pytest.approx((3 * 1 + 1 * 2) / 4)
    assert found["itl_p50_s"] == 1
    assert found["itl_max_s"] == 2
    # 4 blocks for 2 s, 8 for 1 s, nothing from 3 s to 8 s, 2 for 2 s; over 10 s of 10 blocks
    assert found["kv_utilization_mean"] == pytest.approx((8 + 8 + 4) / 100)
    assert found["kv_utilization_max"] == 0.8


def test_kv_utilization_is_of_each_node_s_own_blocks() -> None:
    """Two nodes at once, of 10 and 40 blocks: 5 used on the small one, 10 on the large one."""
    log = Iterations(
        replica=np.array([0, 1]),
        start_ps=np.array([0, 0]) * PS,
        duration_ps=np.array([4, 2]) * PS,
        prefill_tokens=np.array([5, 5]),
        decode_seqs=np.zeros(2, dtype=np.int64),
        running=np.ones(2, dtype=np.int64),
        waiting=np.zeros(2, dtype=np.int64),
        used_blocks=np.array([5, 10]),
        preempted=np.zeros(2, dtype=np.int64),
    )
    found = metrics.kv_utilization(log, [10, 40])
    assert found["kv_utilization_mean"] == pytest.approx((5 * 4 + 10 * 2) / 4 / 50)
    assert found["kv_utilization_max"] == 0.5  # 5 of 10, not 10 of 10 nor 10 of 40
    frame = log.to_frame()
    assert frame["start_s"].tolist() == [0, 0]
    assert frame["duration_s"].tolist() == [4, 2]  # seconds


def test_a_limit_that_is_just_met_is_met() -> None:
    run = records()
    assert metrics.meets_slo(run, {"ttft": 5.0}).tolist() == [True, True]
    assert metrics.meets_slo(run, {"ttft": 4.999}).tolist() == [True, False]
    # the answer of one token has no TPOT to miss; the other one's is 2
    assert metrics.meets_slo(run, {"tpot": 2.0}).tolist() == [True, True]
    assert metrics.meets_slo(run, {"tpot": 1.0}).tolist() == [False, True]
    assert metrics.meets_slo(run, {"e2e": 9.0, "ttft": 2.0}).tolist() == [False, False]


def test_a_run_of_three_requests_by_hand() -> None:
    """One seat, a prompt in one iteration of 1 s, then 1 s a token: everything in its column."""
    workload = Workload(
        {"arrival_s": [0.0, 0.5, 10.0], "prompt_tokens": [4, 4, 4], "output_tokens": [3, 1, 2]}
    )
    result = simulate(
        workload, "fcfs", engine=Engine(max_num_seqs=1, block_size=2),
        timing=LinearTiming(base_s=1.0, num_gpu_blocks=20), log_iterations=True,
    )  # fmt: skip
    rows = result.requests
    assert rows["arrival_s"].tolist() == [0, 0.5, 10]
    assert rows["scheduled_s"].tolist() == [0, 3, 10]  # not when its first token came
    assert rows["first_token_s"].tolist() == [1, 4, 11]
    assert rows["finish_s"].tolist() == [3, 4, 12]
    log = result.iterations
    assert log is not None
    assert log["start_s"].tolist() == [0, 1, 2, 3, 10, 11]
    assert log["duration_s"].tolist() == [1.0] * 6
    found = result.summary({"e2e": 2.0})
    assert found["wait_mean_s"] == pytest.approx(2.5 / 3)
    assert found["slo_attainment"] == pytest.approx(1 / 3)
    assert found["goodput_requests_per_s"] == pytest.approx(1 / 12)
    assert found["slowdown_max"] == 3.5  # 3.5 s where 1 s is enough


def test_alone_is_on_the_engine_that_serves() -> None:
    """In chunks of 10 a prompt of 100 tokens takes ten iterations: alone as well as here."""
    workload = Workload({"arrival_s": [0.0], "prompt_tokens": [100], "output_tokens": [3]})
    small = Engine(max_num_seqs=1, max_num_batched_tokens=10, block_size=32)
    timing = LinearTiming(base_s=1.0, num_gpu_blocks=21)
    result = simulate(workload, "fcfs", engine=small, timing=timing, log_iterations=True)
    found = result.summary()
    assert found["e2e_mean_s"] == 12
    assert found["slowdown_mean"] == 1
    # a timing model counts blocks of 16 tokens: 21 of them are 10 of 32, of which 4 hold 102
    assert result.num_gpu_blocks.tolist() == [10]
    assert found["kv_utilization_max"] == pytest.approx(0.4)


def two_waiting() -> Records:
    return records(
        arrival_ps=np.array([0, 0]) * PS,
        scheduled_ps=np.array([0, 70]) * PS,
        first_token_ps=np.array([10, 80]) * PS,
        finish_ps=np.array([110, 130]) * PS,
        prompt_tokens=np.array([100, 100]),
        output_tokens=np.array([200, 50]),
    )


def test_service_gap_by_hand() -> None:
    # tenant a is served 300 weighted tokens in the first minute, b none although it waits
    gap = metrics.service_gap(two_waiting(), np.array(["a", "b"], dtype=object))
    # first minute: a gets its prompt (100) and half of 2 x 200; the second isn't a's to the end
    assert gap["service_gap_max"] == pytest.approx(100 + 200, rel=1e-6)
    assert gap["service_gap_mean"] == gap["service_gap_max"]


@pytest.mark.parametrize("odd", [float("nan"), "\0", ["a"], {"a": 1}])
def test_service_gap_of_tenants_with_odd_names(odd: Any) -> None:
    """NaN equals nothing, numpy cuts null characters off, and lists have no hash."""
    tenants = np.empty(2, dtype=object)
    tenants[0], tenants[1] = odd, "b"
    assert metrics.service_gap(records(), tenants).keys() == {
        "service_gap_mean", "service_gap_max",
    }  # fmt: skip
    named = metrics.service_gap(two_waiting(), np.array(["a", "b"], dtype=object))
    assert metrics.service_gap(two_waiting(), tenants) == named


def test_service_gap_needs_two_backlogged_tenants() -> None:
    gap = metrics.service_gap(records(), np.array(["a", "a"], dtype=object))
    assert np.isnan(gap["service_gap_max"])


def test_slo_is_read_and_checked() -> None:
    allowed = tuple(metrics.PER_REQUEST)
    assert metrics.parse_slo("ttft=1,tpot=0.05", allowed) == {"ttft": 1.0, "tpot": 0.05}
    with pytest.raises(UnknownNameError, match=r"did you mean 'ttft'"):
        metrics.parse_slo("tft=1", allowed)
    for wrong in ("ttft=x", "ttft", "ttft=-1", ""):
        with pytest.raises(InputError):
            metrics.parse_slo(wrong, allowed)


@pytest.mark.parametrize("policy", ["fcfs", "sjf", "mlfq"])
def test_littles_law(policy: str) -> None:
    """L = lambda W: the queue in the iteration log against the latencies of the requests."""
    workload = Workload.preset("lmsys-chat", requests=1500, rate=12.0, seed=3)
    timing = LinearTiming(
        base_s=0.01, per_prefill_token_s=2e-5, per_sequence_s=1e-4, num_gpu_blocks=2000
    )
    result = simulate(
        workload, policy, "oracle", Engine(max_num_seqs=32), timing, log_iterations=True
    )
    log, found = result.records.iterations, result.summary()
    assert log is not None
    present = (log.running + log.waiting) * (log.duration_ps / PS)
    mean_number = present.sum() / found["makespan_s"]
    arrival_rate = len(workload) / found["makespan_s"]
    # an arrival is in the log from the next iteration on: half an iteration late on average
    assert mean_number == pytest.approx(arrival_rate * found["e2e_mean_s"], rel=0.02)
