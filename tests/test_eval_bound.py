"""Latencies alone and the hindsight bound, against the engine and against scheduling theory."""

from __future__ import annotations

import numpy as np
import pytest

from lengthwise.eval import metrics
from lengthwise.eval.alone import alone_s
from lengthwise.eval.bound import mean_latency_bound_s
from lengthwise.eval.simulate import simulate
from lengthwise.protocols import TimingModel
from lengthwise.serving import Engine
from lengthwise.serving.timing import LinearTiming, timing
from lengthwise.workload import Workload

TIMINGS: dict[str, TimingModel] = {
    "linear": LinearTiming(0.006, 2e-5, 4e-5, 1e-8, num_gpu_blocks=4000),
    "profile": timing("h200/llama-3.1-8b"),
    "roofline": timing("roofline:h100/llama-3.1-8b"),
}


def random_workload(rng: np.random.Generator, n: int, rate: float) -> Workload:
    return Workload(
        {
            "arrival_s": np.cumsum(rng.exponential(1 / rate, n)),
            "prompt_tokens": rng.integers(1, 600, n),
            "output_tokens": np.rint(rng.lognormal(4, 1, n)).astype(int) + 1,
        }
    )


@pytest.mark.parametrize("name", TIMINGS)
def test_alone_is_what_the_engine_takes_for_one_request(name: str) -> None:
    engine = Engine(max_num_batched_tokens=128, max_num_seqs=8)
    # around the edges of chunks: the last chunk may be one token, which is computed as decoding
    lengths = [(1, 1), (1, 7), (127, 3), (128, 2), (129, 1), (129, 9), (256, 5), (700, 40)]
    far_apart = Workload(
        {
            "arrival_s": 1000.0 * np.arange(len(lengths)),
            "prompt_tokens": [p for p, _ in lengths],
            "output_tokens": [o for _, o in lengths],
        }
    )
    run = simulate(far_apart, "fcfs", engine=engine, timing=TIMINGS[name])
    assert run.alone_s is not None
    assert metrics.e2e_s(run.records).tolist() == pytest.approx(run.alone_s.tolist(), rel=1e-9)


@pytest.mark.parametrize("name", TIMINGS)
@pytest.mark.parametrize("rate", [2.0, 15.0, 400.0])
def test_no_schedule_beats_the_bound(name: str, rate: float) -> None:
    engine = Engine(max_num_seqs=16, max_num_batched_tokens=256)
    for seed in range(3):
        workload = random_workload(np.random.default_rng(seed), 150, rate)
        alone = alone_s(workload, engine, TIMINGS[name])
        for replicas in (1, 3):
            bound = mean_latency_bound_s(workload, engine, TIMINGS[name], alone, replicas=replicas)
            for policy in ("fcfs", "sjf", "srtf", "mlfq", "hrrn"):
                run = simulate(
                    workload, policy, "oracle", engine, TIMINGS[name], replicas=replicas,
                    router="jsq",
                )  # fmt: skip
                assert bound <= metrics.e2e_s(run.records).mean() * (1 + 1e-9)


@pytest.mark.parametrize("rate", [2.0, 40.0])
def test_no_schedule_beats_the_bound_when_scheduled_ahead(rate: float) -> None:
    engine = Engine(max_num_seqs=16, max_num_batched_tokens=256, async_scheduling=True)
    workload = random_workload(np.random.default_rng(0), 60, rate)
    assert alone_s(workload, engine, TIMINGS["profile"]) is None
    bound = mean_latency_bound_s(workload, engine, TIMINGS["profile"], None)
    for policy in ("fcfs", "sjf"):
        run = simulate(workload, policy, "oracle", engine, TIMINGS["profile"])
        assert 0.1 * metrics.e2e_s(run.records).mean() < bound <= metrics.e2e_s(run.records).mean()


def test_bound_is_the_latency_alone_where_nothing_else_runs() -> None:
    engine, model = Engine(), TIMINGS["profile"]
    workload = random_workload(np.random.default_rng(0), 50, rate=0.01)
    alone = alone_s(workload, engine, model)
    assert alone is not None
    bound = mean_latency_bound_s(workload, engine, model, alone)
    assert bound == pytest.approx(alone.mean())
    run = simulate(workload, "fcfs", engine=engine, timing=model)
    assert metrics.e2e_s(run.records).mean() == pytest.approx(bound, rel=0.01)


def test_bound_is_tight_for_one_machine() -> None:
    """One sequence at a time and one token an answer: jobs of a length, on one machine.

    All arrive at once, so shortest job first is optimal (Smith 1956), and the engine under sjf by
    prompt length is at the optimum; the bound lies below by the half of each job that the mean
    busy time leaves out, and by the rounding of its cells.
    """
    rng = np.random.default_rng(4)
    n = 60
    model = LinearTiming(per_prefill_token_s=1e-3, per_sequence_s=1e-3, num_gpu_blocks=1000)
    engine = Engine(max_num_seqs=1, max_num_batched_tokens=2048)
    prompt = rng.integers(2, 1000, n)
    workload = Workload(
        {"arrival_s": np.zeros(n), "prompt_tokens": prompt, "output_tokens": np.ones(n)}
    )
    optimum = np.cumsum(np.sort(prompt * 1e-3)).mean()
    by_prompt = simulate(
        workload, "sjf", engine=engine, timing=model, predicted_tokens=prompt.astype(float)
    )
    assert metrics.e2e_s(by_prompt.records).mean() == pytest.approx(optimum)
    bound = mean_latency_bound_s(workload, engine, model, alone_s(workload, engine, model))
    half = prompt.mean() * 1e-3 / 2
    assert optimum - half == pytest.approx(bound, rel=0.06)
    assert bound <= optimum


def test_bound_is_not_given_where_arrivals_depend_on_the_schedule() -> None:
    loop = Workload(
        {
            "arrival_s": [0.0, 0.0],
            "prompt_tokens": [10, 10],
            "output_tokens": [5, 5],
            "parent": [-1, 0],
            "think_s": [0.0, 1.0],
        }
    )
    alone = alone_s(loop, Engine(), TIMINGS["linear"])
    assert np.isnan(mean_latency_bound_s(loop, Engine(), TIMINGS["linear"], alone))
