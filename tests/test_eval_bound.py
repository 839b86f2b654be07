"""Latencies alone and the hindsight bound, against the engine and against scheduling theory."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linprog

from lengthwise.eval import metrics
from lengthwise.eval.alone import alone_s
from lengthwise.eval.bound import (
    _batching,
    _Cells,
    _cells,
    _mean_busy_times,
    _Needs,
    _needs,
    _one_machine,
    _prices,
    mean_latency_bound_s,
)
from lengthwise.eval.simulate import simulate
from lengthwise.protocols import Batch, TimingModel
from lengthwise.serving import Engine
from lengthwise.serving.records import PS
from lengthwise.serving.timing import LinearTiming, timing
from lengthwise.serving.timing.model import TimingTables
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


# The pieces of the bound on cells of at most one prompt token and one decoding sequence: alone
# either takes 1 s, both together 3 s, so A = B = 1.
CELLS = _Cells(
    least_s=np.array([[np.inf, 1.0], [1.0, 3.0]]),
    decode=np.array([[0.0], [1.0]]),
    prefill=np.array([[0.0, 1.0]]),
    sequences=np.array([[0.0, 1.0], [1.0, 2.0]]),
)


def needs(prompt: list[float], steps: list[float], attention: float) -> _Needs:
    """``attention`` seconds of either kind."""
    extra = np.full(len(prompt), attention)
    return _Needs(np.array(prompt), np.array(steps), extra, extra.copy())


def test_what_a_request_needs_by_hand() -> None:
    two = Workload({"arrival_s": [0, 0], "prompt_tokens": [10, 1], "output_tokens": [5, 1]})
    nothing = np.zeros(9, dtype=np.int64)
    terms = {"context": 3000, "mixed_context": 2000, "chunk_context": 7000}
    tables = TimingTables(nothing, nothing, terms)
    found = _needs(two, Engine(), tables)
    assert found.steps.tolist() == [4, 0]  # the first token comes with the prompt's last chunk
    # token k of the prompt attends to k; each of 4 steps to 10 tokens at least
    assert (found.prefill_attention_s * PS).tolist() == pytest.approx([7000 * 55, 7000])
    assert (found.decode_attention_s * PS).tolist() == pytest.approx([2000 * 10 * 4, 0])
    cached = _needs(two, Engine(enable_prefix_caching=True), tables)
    assert not cached.prompt.any() and not cached.prefill_attention_s.any()
    assert cached.decode_attention_s.tolist() == found.decode_attention_s.tolist()


def test_mean_busy_times_by_hand() -> None:
    """The short job interrupts the long one: 1 s of that by t = 1, the other 3 s from 2 to 5."""
    found = _mean_busy_times(np.array([0.0, 1.0, 9.0]), np.array([4.0, 1.0, 0.0]))
    assert found.tolist() == pytest.approx([(1 * 0.5 + 3 * 3.5) / 4, 1.5, 9.0])


@pytest.mark.parametrize(("steps", "replicas", "expected"), [
    (1.0, 1, 2.5 + 0.7),  # 5 s of work, of which 3.5 before the one step of 1 s
    (1.0, 2, 1.25 + 0.7),  # twice as fast, but a step takes as long as before
    (3.0, 1, 3.5 + 2.0),  # 7 s: 3.5 before three steps, 3.5 before one on average
])  # fmt: skip
def test_one_machine_by_hand(steps: float, replicas: int, expected: float) -> None:
    found = _one_machine(np.array([2.0]), needs([3.0], [steps], 0.5), CELLS, replicas)
    assert found == pytest.approx(expected)


def test_batching_by_hand() -> None:
    """At a price of y, A = B = 1 + y: five requests need 5 (1 + y) each, the last is too late."""
    arrival = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 30.0])
    six = needs([3.0] * 6, [1.0] * 6, 0.5)
    assert _batching(arrival, six, CELLS, 1) == pytest.approx((5 * 5 * 2 - 30) / 6)  # y = 1
    assert _batching(arrival, six, CELLS, 2) == 0  # two replicas cost 60 s
    # unfinished at 10 s, none of them counts more than that
    early = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 10.0])
    assert _batching(early, six, CELLS, 1) == pytest.approx((5 * 10 - 10) / 6)
    assert _batching(early, six, CELLS, 2) == pytest.approx((5 * 10 - 20) / 6)
    assert _batching(early + 7.0, six, CELLS, 2) == pytest.approx((5 * 10 - 20) / 6)


def random_tables(rng: np.random.Generator, seats: int, tokens: int) -> TimingTables:
    """Tables that also fall, as measured ones do."""
    return TimingTables(
        rng.integers(1, 100, seats + 1),
        rng.integers(1, 100, tokens + 1),
        {"prefill_seq": 5, "decode_seq": 3, "floor": 20, "floor_seq": 4},
    )


def test_cells_are_the_least_of_what_lies_in_and_above_them() -> None:
    """Small enough that each cell is one iteration: then the grid is the tables, made monotone."""
    engine = Engine(max_num_seqs=4, max_num_batched_tokens=9)
    rng = np.random.default_rng(0)
    for _ in range(20):
        tables = random_tables(rng, 4, 9)
        cells = _cells(engine, tables)
        assert cells.decode[:, 0].tolist() == [0, 1, 2, 3, 4]
        assert cells.prefill[0].tolist() == list(range(10))
        assert cells.least_s[0, 0] == np.inf
        for d in range(5):
            mixed = {}
            for p in range(1, 10 - d):
                mixed[p] = tables.mixed_ps[d + p :].min() + 5 + 3 * d
                expected = max(mixed[p], 20 + 4 * (d + 1))
                assert cells.least_s[d, p] * PS == pytest.approx(expected)
                assert cells.sequences[d, p] == d + 1
            if d:
                least = min(int(tables.decode_ps[d:].min()), *mixed.values())
                assert cells.least_s[d, 0] * PS == pytest.approx(max(least, 20 + 4 * d))
            assert (cells.least_s[d, 10 - d :] == np.inf).all()  # more than the budget


def test_no_iteration_is_shorter_than_its_cell() -> None:
    engine = Engine(max_num_seqs=60, max_num_batched_tokens=200)
    rng = np.random.default_rng(1)
    tables = random_tables(rng, 60, 200)
    cells = _cells(engine, tables)
    for _ in range(500):
        d = int(rng.integers(0, 61))
        p = int(rng.integers(0 if d else 1, 201 - d))
        row = int(np.searchsorted(cells.decode[:, 0], d))
        column = int(np.searchsorted(cells.prefill[0], p))
        batch = Batch(prefill_tokens=p, prefill_seqs=min(p, 1), decode_seqs=d)
        assert cells.least_s[row, column] * PS <= tables.iteration_ps(batch) * (1 + 1e-9)
        assert cells.sequences[row, column] <= d + min(p, 1)


def test_prices_are_those_of_the_linear_program() -> None:
    """Feasible in every cell, and within the grid of 64 steps of what scipy finds best."""
    rng = np.random.default_rng(2)
    for _ in range(10):
        engine = Engine(max_num_seqs=5, max_num_batched_tokens=12)
        cells = _cells(engine, random_tables(rng, 5, 12))
        prompt, steps = rng.uniform(1, 100, 2)
        a, b = _prices(cells, cells.least_s, prompt, steps)
        assert a >= 0 and b >= 0
        p, d = np.broadcast_arrays(cells.prefill, cells.decode)
        real = np.isfinite(cells.least_s)
        assert (a * p + b * d <= cells.least_s + 1e-18)[real].all()
        best = linprog(
            [-prompt, -steps],
            np.stack((p[real], d[real]), axis=1),
            cells.least_s[real] * PS,
            bounds=(0, None),
        )
        assert (a * prompt + b * steps) * PS == pytest.approx(-best.fun, rel=0.03)
