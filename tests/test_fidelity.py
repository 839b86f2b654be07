"""The simulator replays runs of the real engine; see docs/fidelity.md for the table.

``MISSED`` holds the statistics that the simulator does not meet at 5% (P99: 10%), with the level
that it reaches instead. They are here so that nobody takes them for met, and so that they don't
grow; docs/fidelity.md says why each is missed.
"""

from __future__ import annotations

import pytest

from benchmarks import fidelity

ALLOWED = {"mean": 0.05, "P50": 0.05, "P90": 0.05, "P99": 0.10}
MISSED = {
    ("a-code-70", "ttft", "P50"): 0.09,
    ("a-conv-40", "ttft", "mean"): 0.09,
    ("a-conv-40", "ttft", "P50"): 0.13,
    ("a-conv-40", "ttft", "P90"): 0.09,
    ("a-conv-90", "ttft", "P50"): 0.07,
    ("a-conv-over", "ttft", "P50"): 0.07,
    ("b-conv-90", "ttft", "mean"): 0.14,
    ("b-conv-90", "ttft", "P50"): 0.08,
    ("b-conv-90", "ttft", "P90"): 0.19,
    ("b-conv-90", "ttft", "P99"): 0.15,
    ("q-code-bursty", "ttft", "P50"): 0.11,
}


@pytest.mark.parametrize("name", fidelity.conditions())
def test_latencies_are_those_of_the_real_engine(name: str) -> None:
    for (metric, statistic), error in fidelity.errors(name).items():
        allowed = MISSED.get((name, metric, statistic), ALLOWED[statistic])
        assert abs(error) <= allowed, f"{name}: {metric} {statistic} is off by {error:+.1%}"


def test_runs_on_an_h100_with_the_server_s_defaults() -> None:
    """docs/fidelity.md says which miss and why; end-to-end means are met but beside a slow CPU."""
    runs = fidelity.conditions("h100")
    assert len(runs) == 10
    assert {fidelity.about()["runs"][n]["max_num_batched_tokens"] for n in runs} == {8192}
    met, of = fidelity.within(runs)
    assert of == 120 and met >= 76
    by_cpu = {"s-short-32": 0.15, "t-short-24": 0.10, "t-burst": 0.08}
    for name in runs:
        assert abs(fidelity.errors(name)["e2e", "mean"]) <= by_cpu.get(name, 0.04), name


def test_misses_are_misses() -> None:
    met = [key for key in MISSED if abs(fidelity.errors(key[0])[key[1:]]) <= ALLOWED[key[2]]]
    assert not met, f"met by now, strike them off: {met}"


def test_conditions_are_as_many_and_as_different_as_promised() -> None:
    runs = [fidelity.about()["runs"][name] for name in fidelity.conditions()]
    eight = [run for run in runs if run["model"] == "llama-3.1-8b"]
    assert len(eight) >= 8
    assert sum(run["model"] == "qwen2.5-14b" for run in runs) >= 2
    assert {64, 256} <= {run["max_num_seqs"] for run in eight}
    assert any(run["num_gpu_blocks"] < 10_000 for run in eight)
    assert any(run["preemptions"] for run in eight)


@pytest.mark.parametrize(
    ("family", "policy"),
    [(family, policy) for family, policies in fidelity.RANKINGS.items() for policy in policies],
)
def test_gains_over_fcfs_are_those_of_the_real_engine(family: str, policy: str) -> None:
    for metric, (measured, simulated) in fidelity.gains(family, policy).items():
        assert simulated == pytest.approx(measured, rel=0.10), metric


@pytest.mark.parametrize("policy", ["srtf-naive", "mlfq-naive"])
def test_naive_preemption_in_overload(policy: str) -> None:
    real, ours = fidelity.measured(f"o-{policy}"), fidelity.simulated(f"o-{policy}")
    assert ours.e2e.mean() == pytest.approx(real.e2e.mean(), rel=0.15)


def test_mlfq_that_preempts_naively_is_worse_than_fcfs() -> None:
    measured, simulated = fidelity.gains("o-", "mlfq-naive")["e2e"]
    assert measured < 0.7
    assert simulated < 0.7
