"""Latencies alone and the hindsight bound, against the engine and against scheduling theory."""

from __future__ import annotations

import heapq
from itertools import count, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from lengthwise.eval import metrics
from lengthwise.eval.alone import alone_s
from lengthwise.eval.bound import (
    FOUR,
    THREE,
    _batching,
    _cells,
    _corners,
    _hull,
    _Iterations,
    _mean_busy_times,
    _Needs,
    _needs,
    _one_machine,
    _Program,
    _Room,
    _room,
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


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6), seats=st.integers(1, 24), budget=st.integers(24, 400),
    tight=st.booleans(), rate=st.sampled_from((3.0, 30.0, 3000.0)),
    name=st.sampled_from(tuple(TIMINGS)),
    policy=st.sampled_from(("fcfs", "sjf", "work", "srtf+preempt:price=0", "las",
                            "mlfq+preempt:mode=swap")),
)  # fmt: skip
def test_no_schedule_beats_the_bound_whatever_the_engine(
    seed: int, seats: int, budget: int, tight: bool, rate: float, name: str, policy: str
) -> None:
    workload = random_workload(np.random.default_rng(seed), 40, rate)
    longest = int((workload["prompt_tokens"] + workload["output_tokens"]).max())
    blocks = -(-longest // 16) + 1 if tight else 4000
    engine = Engine(max_num_seqs=seats, max_num_batched_tokens=budget, num_gpu_blocks=blocks)
    bound = mean_latency_bound_s(
        workload, engine, TIMINGS[name], alone_s(workload, engine, TIMINGS[name])
    )
    run = simulate(workload, policy, "oracle", engine, TIMINGS[name])
    assert 0 < bound <= metrics.e2e_s(run.records).mean() * (1 + 1e-9)


def test_a_cache_that_is_full_first_sets_the_bound() -> None:
    """Seats for 32 and blocks for 4: it is that of 4 seats or more, and twice the one of 32."""
    model = LinearTiming(0.01, num_gpu_blocks=4000)
    workload = Workload(
        {"arrival_s": np.zeros(200), "prompt_tokens": [160] * 200, "output_tokens": [2] * 200}
    )

    def of(seats: int, blocks: int) -> float:
        engine = Engine(max_num_seqs=seats, max_num_batched_tokens=8192, num_gpu_blocks=blocks)
        return mean_latency_bound_s(workload, engine, model, None)

    assert of(32, 41) > 2 * of(32, 4000)
    assert of(32, 41) == pytest.approx(of(4, 4000), rel=0.35)


TINY = LinearTiming(0.01, 0.003, 0.002, 0.0005, num_gpu_blocks=100)


def optimum_s(
    requests: list[tuple[float, int, int]], seats: int, budget: int, tokens: int
) -> float:
    """The least mean latency of all schedules of (arrival, prompt, output) requests, s.

    Dijkstra over what each request has computed, and the clock. Of every iteration any requests
    take any part within seats and budget, and what computes fits the cache, ``tokens``; who does
    not keeps what it has for nothing, so that no real schedule is better.
    """
    start = (0.0, (0,) * len(requests))
    queue = [(0.0, 0, *start)]
    ties, best = count(1), {start: 0.0}
    while queue:
        cost, _, now, done = heapq.heappop(queue)
        left = [k for k, (_, p, o) in enumerate(requests) if done[k] < p + o - 1]
        if not left:
            return cost / len(requests)
        if cost > best[now, done]:
            continue
        ready = [k for k in left if requests[k][0] <= now]
        later = [requests[k][0] for k in left if requests[k][0] > now]
        nexts = [(cost, later and min(later), done)] if later else []
        parts = [range(max(requests[k][1] - done[k], 1) + 1) for k in ready]
        for chosen in product(*parts):
            if not 0 < sum(chosen) <= budget or sum(part > 0 for part in chosen) > seats:
                continue
            batch, held, after = [0, 0, 0, 0, 0], 0, list(done)
            for k, part in zip(ready, chosen, strict=True):
                if part:
                    after[k] = done[k] + part
                    held += after[k]
                    if part == 1 and after[k] >= requests[k][1]:
                        batch[2], batch[3] = batch[2] + 1, batch[3] + after[k]
                    else:
                        batch[0], batch[1] = batch[0] + part, batch[1] + 1
            if held > tokens:
                continue
            end = round(now + TINY.iteration_time(Batch(*batch)), 9)
            ended = [k for k in ready if after[k] == sum(requests[k][1:]) - 1]
            gained = sum(end - requests[k][0] for k in ended if k in left)
            nexts.append((cost + gained, end, tuple(after)))
        for total, then, state in nexts:
            if total < best.get((then, state), np.inf):
                best[then, state] = total
                heapq.heappush(queue, (total, next(ties), then, state))
    raise AssertionError("no schedule ends")


@pytest.mark.parametrize("seed", range(12))
def test_the_bound_is_below_the_optimum_of_small_cases_and_that_below_the_engine(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, seats = (3, 2) if seed % 2 else (2, 1)
    arrival = np.sort(rng.choice([0.0, 0.0, 0.015, 0.04], n))
    prompt, output = rng.integers(1, 4, n), rng.integers(1, 4, n)
    tokens = int((prompt + output).max()) + (0 if seed % 3 else 20)
    requests = list(zip(arrival.tolist(), prompt.tolist(), output.tolist(), strict=True))
    best = optimum_s(requests, seats, 4, tokens)
    workload = Workload({"arrival_s": arrival, "prompt_tokens": prompt, "output_tokens": output})
    engine = Engine(
        max_num_seqs=seats, max_num_batched_tokens=4, num_gpu_blocks=tokens, block_size=1
    )
    alone = alone_s(workload, engine, TINY)
    assert mean_latency_bound_s(workload, engine, TINY, alone) <= best * (1 + 1e-9)
    assert mean_latency_bound_s(workload, engine, TINY, None) > 0.2 * best
    for policy in ("fcfs", "work"):
        run = simulate(workload, policy, "oracle", engine, TINY)
        assert metrics.e2e_s(run.records).mean() >= best * (1 - 1e-6)


# The pieces of the bound, by hand.


def needs(prompt: list[float], steps: list[float], attention: float) -> _Needs:
    """Requests that attend to nothing but by ``attention`` seconds of prefill."""
    nothing = np.zeros(len(prompt))
    return _Needs(np.array(prompt), nothing, np.array(steps), nothing + attention)


def test_what_a_request_needs_by_hand() -> None:
    two = Workload({"arrival_s": [0, 0], "prompt_tokens": [10, 1], "output_tokens": [5, 1]})
    nothing = np.zeros(9, dtype=np.int64)
    tables = TimingTables(nothing, nothing, {"context": 3000, "chunk_context": 7000})
    found = _needs(two, tables, shared=False)
    assert found.steps.tolist() == [4, 0]  # the first token comes with the prompt's last chunk
    # token k of the prompt attends to k, but for the last one; four steps to 11, 12, 13, 14
    assert (found.prefill_attention_s * PS).tolist() == pytest.approx([7000 * 45, 0])
    assert found.attended().tolist() == [11 + 12 + 13 + 14, 0]
    assert found.totals().tolist() == [11, 2, 4, 50]
    assert found.steps_s(2.0, 0.5).tolist() == [2 * 4 + 0.5 * 50, 0]
    # a prompt of one token is decoded, or prefills, whichever is cheaper
    assert found.first_s(1.0, 3.0, 2.0, 0.5) == pytest.approx([13 + 7000 * 45 / PS, 2.5])
    assert found.first_s(1.0, 0.5, 2.0, 0.5)[1] == 1.5
    cached = _needs(two, tables, shared=True)
    assert cached.prompt.tolist() == [1, 1] and not cached.prefill_attention_s.any()
    assert cached.attended().tolist() == found.attended().tolist()
    engine = Engine(num_gpu_blocks=3, block_size=8)
    assert _room(found, engine, TINY, shared=False) == _Room(1, 14, 24)
    assert _room(found, engine, TINY, shared=True).all == np.inf
    least, most = _Room(1, 14, 24).of(np.array([1.0, 3.0]))
    assert (least.tolist(), most.tolist()) == ([1, 3], [14, 24])


def test_mean_busy_times_by_hand() -> None:
    """The short job interrupts the long one: 1 s of that by t = 1, the other 3 s from 2 to 5."""
    found = _mean_busy_times(np.array([0.0, 1.0, 9.0]), np.array([4.0, 1.0, 0.0]))
    assert found.tolist() == pytest.approx([(1 * 0.5 + 3 * 3.5) / 4, 1.5, 9.0])


@pytest.mark.parametrize(("steps", "replicas"), [(1.0, 1), (1.0, 2), (4.0, 1)])
def test_one_machine_by_hand(steps: float, replicas: int) -> None:
    """Three prompt tokens and the steps take a second each, with half a second of attention."""
    alike = _Iterations(
        amounts=np.array([[0.0, 0, 1, 0], [0, 0, 1, 9], [1, 1, 0, 0]]), seconds=np.ones(3),
        sequences=np.ones(3),
    )  # fmt: skip
    found = _one_machine(np.array([2.0]), needs([3.0], [steps], 0.5), alike, replicas)
    work = 3.5 + steps
    # a is 1 and e 0: 3.5 s before all the steps, each step's own second before those after it
    after = (3.5 * steps + steps * (steps - 1) / 2) / work
    assert found == pytest.approx(work / replicas / 2 + after)


def test_batching_by_hand() -> None:
    """At a price of y a sequence costs 1 + y, and a prompt token nothing beside it."""
    one = _Iterations(np.array([[0.0, 1, 0], [0, 1, 9], [1, 1, 0]]), np.ones(3), np.ones(3))
    arrival = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 30.0])
    six = needs([1.0] * 6, [4.0] * 6, 0.0)
    # five need 5 (1 + y) each, the last is too late, and 30 s cost y each: the more y the less
    assert _batching(arrival, six, one, 1) == pytest.approx((5 * 10 - 30) / 6)
    assert _batching(arrival + 7.0, six, one, 1) == pytest.approx((5 * 10 - 30) / 6)
    assert _batching(arrival, six, one, 2) == 0
    # 20 s: 5 x 5 (1 + y) - 20 y rises until all five are unfinished, at y = 3
    early = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 20.0])
    assert _batching(early, six, one, 1) == pytest.approx((5 * 20 - 20 * 3) / 6, rel=0.1)
    assert _batching(early, six, one, 1) <= (5 * 20 - 20 * 3) / 6


def random_tables(rng: np.random.Generator, seats: int, tokens: int) -> TimingTables:
    """Tables that also fall, as measured ones do."""
    terms = {
        "prefill_seq": 5, "decode_seq": int(rng.integers(-3, 4)), "floor": int(rng.integers(0, 60)),
        "floor_seq": 4, "context": 2, "mixed_context": 1,
    }  # fmt: skip
    rising = np.arange(1, tokens + 2) * int(rng.integers(0, 5))
    return TimingTables(
        rng.integers(50, 100, seats + 1), rising + rng.integers(50, 100, tokens + 1), terms
    )


def test_no_iteration_costs_less_than_its_price() -> None:
    """Iterations drawn at random, against the prices that are best for totals drawn at random."""
    rng = np.random.default_rng(1)
    for _ in range(25):
        seats, budget = int(rng.integers(2, 9)), int(rng.integers(9, 60))
        engine = Engine(max_num_seqs=seats, max_num_batched_tokens=budget)
        tables, room = random_tables(rng, seats, budget), _Room(3, 9, float(rng.integers(9, 60)))
        context_ps = np.full(seats + 1, 2.0)
        corners = _corners(engine, tables, context_ps, room)
        cells = _cells(engine, tables, context_ps, room)
        four = _Program(corners, rng.uniform(1, 99, 4), FOUR).prices(corners.seconds)
        price = float(rng.uniform(0, 20))
        cost = cells.seconds * (cells.sequences + price)
        three = _Program(cells, rng.uniform(1, 99, 3), THREE).prices(cost)
        a, _, b, f = four
        assert 0 <= f <= a <= b and 0 <= three[2] <= three[0] <= three[1]
        for _ in range(150):
            d = int(rng.integers(0, min(seats, room.all // room.least) + 1))
            q = int(rng.integers(0 if d else 1, seats - d + 1)) if d < seats else 0
            p = int(rng.integers(q, budget - d + 1)) if q else 0
            if p < q or (not d and not q):
                continue
            if 3 * d + p > room.all:
                continue
            c = int(rng.integers(3 * d, min(9 * d, room.all - p) + 1))
            took = tables.iteration_ps(Batch(p, q, d, c, 0)) / PS * (1 + 1e-9)
            assert four @ [p, q, d, c] <= took
            assert three @ [p, d + q, c] <= took * (d + q + price)


def test_the_hull_lies_below_its_table() -> None:
    rng = np.random.default_rng(5)
    table = rng.integers(1, 1000, 200)
    sizes, hull = _hull(table)
    n = np.arange(1, 200)
    below = np.interp(n, sizes, hull)
    assert (below <= table[1:]).all() and (np.diff(below, 2) >= -1e-9).all()
    assert hull[-1] == table[-1] and (np.diff(hull) >= 0).all()
    straight = np.array([9, 10, 20, 30, 90])
    assert [each.tolist() for each in _hull(straight)] == [[1, 3, 4], [10, 30, 90]]


def test_prices_are_those_of_the_linear_program() -> None:
    rng = np.random.default_rng(2)
    for _ in range(10):
        engine = Engine(max_num_seqs=5, max_num_batched_tokens=40)
        tables, room = random_tables(rng, 5, 40), _Room(2, 9, 30)
        found = _corners(engine, tables, np.full(6, 2.0), room)
        totals, side = rng.uniform(1, 100, 4), np.array([1.0, -3, 1, -1])
        prices = _Program(found, totals, FOUR, side).prices(found.seconds)
        best = linprog(
            -totals @ FOUR, np.vstack((found.amounts @ FOUR, side)),
            np.append(found.seconds * PS, 0), bounds=(0, None),
        )  # fmt: skip
        assert totals @ prices * PS == pytest.approx(-best.fun, rel=1e-5)
        a, e, b, f = prices
        assert b <= (e + (a - f) * 4) * (1 + 1e-6)  # computing 4 tokens again costs no less
