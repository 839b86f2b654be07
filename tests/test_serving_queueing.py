"""The engine against queueing theory, in the configurations that reduce to known queues.

Each mean is estimated from independent seeds and must lie, with its Student 95% interval, on the
theoretical value; the intervals themselves must be narrow enough to tell disciplines apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import integrate, sparse, stats
from scipy.sparse import linalg

from lengthwise.policies import load_policy, load_router
from lengthwise.policy import RoutingPolicy, Score
from lengthwise.serving import Engine, Node, Records, System, run
from lengthwise.serving.records import PS
from lengthwise.serving.timing import LinearTiming
from lengthwise.workload import Workload

Floats = NDArray[np.float64]
SEEDS = range(100, 110)
SRPT = "srtf+preempt:price=0.0,protect_after=9.9"  # whenever it shortens the wait
WARM_UP = 0.1  # share of the requests left out while the queue fills


def never_full(workload: Workload, seats: int) -> Engine:
    """An engine with KV cache and tokens to spare."""
    tokens = int(workload["prompt_tokens"].max() + workload["output_tokens"].max())
    return Engine(
        max_num_seqs=seats,
        max_num_batched_tokens=max(tokens, 4096),
        num_gpu_blocks=4 * len(workload),
        block_size=tokens,
    )


def simulate(
    arrival_s: Floats, prompt: Any, output: Any, *, policy: str, timing: LinearTiming, seats: int
) -> Records:
    """A run with KV cache and tokens to spare; predictions are the service that a request needs."""
    workload = Workload({"arrival_s": arrival_s, "prompt_tokens": prompt, "output_tokens": output})
    system = System(
        (Node(never_full(workload, seats), timing, load_policy(policy)),),
        load_router("round-robin"),
    )
    predicted = workload["output_tokens"] * workload["prompt_tokens"]
    return run(workload, system, predicted, backend="reference")


def responses(records: Records) -> Floats:
    """Times in the system, s, once the queue has filled."""
    times: Floats = (records.finish_ps - records.arrival_ps) / PS
    return times[int(WARM_UP * len(times)) :]


def served_at_once(seed: int, rate: float, sizes: Floats, policy: str) -> tuple[Records, Floats]:
    """One server that does a request in one iteration of as long as its prompt.

    A prompt of k tokens takes k times 0.1 ms, and yields the only output token.
    """
    rng = np.random.default_rng((seed, 1))
    arrival = np.cumsum(rng.exponential(1 / rate, len(sizes)))
    prompt = np.maximum(np.rint(sizes / 1e-4), 1).astype(np.int64)
    records = simulate(
        arrival, prompt, np.ones_like(prompt), policy=policy, seats=1,
        timing=LinearTiming(per_prefill_token_s=1e-4),
    )  # fmt: skip
    return records, prompt * 1e-4


def served_in_steps(
    seed: int, rate: float, sizes: Floats, policy: str, *, seats: int, step_s: float
) -> Records:
    """A server that does ``step_s`` of a request's work in each of its iterations.

    One iteration yields one token of each running request; a preempted request's context is
    computed again within it, at no cost.
    """
    rng = np.random.default_rng((seed, 2))
    arrival = np.cumsum(rng.exponential(1 / rate, len(sizes)))
    output = np.maximum(np.rint(sizes / step_s), 1).astype(np.int64)
    timing = (
        LinearTiming(base_s=step_s)
        if seats == 1
        else LinearTiming(per_sequence_s=step_s, per_prefill_token_s=0.0)
    )
    return simulate(
        arrival, np.ones_like(output), output, policy=policy, seats=seats, timing=timing
    )


def assert_agrees(estimates: Sequence[float], theory: float, width: float) -> None:
    """Theory lies in the 95% interval of the mean, whose half-width is below ``width`` of it."""
    mean, error = float(np.mean(estimates)), float(stats.sem(estimates))
    half = float(stats.t.ppf(0.975, len(estimates) - 1)) * error
    assert half < width * theory, f"{mean} ± {half} is too wide to tell anything about {theory}"
    assert abs(mean - theory) < half, f"{mean} ± {half} does not hold {theory}"


def exponential(seed: int, count: int) -> Floats:
    return np.random.default_rng((seed, 3)).exponential(1.0, count)


def test_mm1_mean_and_tail() -> None:
    """M/M/1: mean response 1 / (mu - lambda), and responses are exponential."""
    rate = 0.7
    runs = [
        responses(served_at_once(seed, rate, exponential(seed, 10_000), "fcfs")[0])
        for seed in SEEDS
    ]
    assert_agrees([float(r.mean()) for r in runs], 1 / (1 - rate), 0.06)
    for level in (1.0, 5.0):
        share = [float((r > level).mean()) for r in runs]
        assert_agrees(share, float(np.exp(-(1 - rate) * level)), 0.12)


@pytest.mark.parametrize("shape", ["deterministic", "lognormal", "two-point"])
def test_mg1_fcfs(shape: str) -> None:
    """Pollaczek-Khinchine: mean wait lambda E[S^2] / (2 (1 - rho))."""
    draw: dict[str, Callable[[np.random.Generator, int], Floats]] = {
        "deterministic": lambda rng, n: np.full(n, 1.0),
        "lognormal": lambda rng, n: rng.lognormal(-0.32, 0.8, n),
        "two-point": lambda rng, n: rng.choice([0.5, 5.5], n, p=[0.9, 0.1]),
    }
    moments = {
        "deterministic": (1.0, 1.0),
        "lognormal": (float(np.exp(-0.32 + 0.32)), float(np.exp(2 * -0.32 + 4 * 0.32))),
        "two-point": (1.0, 0.9 * 0.25 + 0.1 * 30.25),
    }
    rate = 0.7
    mean, square = moments[shape]
    theory = mean + rate * square / (2 * (1 - rate * mean))
    estimates = []
    for seed in SEEDS:
        sizes = draw[shape](np.random.default_rng((seed, 4)), 6_000)
        estimates.append(float(responses(served_at_once(seed, rate, sizes, "fcfs")[0]).mean()))
    assert_agrees(estimates, theory, 0.12)


def test_shortest_job_first_without_preemption() -> None:
    """Cobham's priority classes, the sizes being the classes: W0 / ((1 - s_{k-1}) (1 - s_k))."""
    sizes, weights, rate = np.array([0.4, 1.0, 4.0]), np.array([0.6, 0.3, 0.1]), 0.8
    residual = rate * float(weights @ sizes**2) / 2
    load = np.concatenate(([0.0], np.cumsum(rate * weights * sizes)))
    waits: list[list[float]] = []
    for seed in SEEDS:
        drawn = np.random.default_rng((seed, 5)).choice(sizes, 8_000, p=weights)
        records, service = served_at_once(seed, rate, drawn, "sjf")
        wait = (records.scheduled_ps - records.arrival_ps) / PS
        settled = np.arange(len(wait)) >= WARM_UP * len(wait)
        waits.append([float(wait[settled & (abs(service - s) < 1e-9)].mean()) for s in sizes])
    for k in range(len(sizes)):
        theory = residual / ((1 - load[k]) * (1 - load[k + 1]))
        assert_agrees([row[k] for row in waits], theory, 0.2)


def srpt_mean(rate: float) -> float:
    """Schrage and Miller 1966, for exponential sizes of mean 1."""

    def load(x: float) -> float:
        return rate * (1 - (1 + x) * float(np.exp(-x)))

    def response(x: float) -> float:
        square = 2 - (x * x + 2 * x + 2) * float(np.exp(-x))  # E[S^2; S < x]
        wait = rate * (square + x * x * float(np.exp(-x))) / (2 * (1 - load(x)) ** 2)
        stay, _ = integrate.quad(lambda t: 1 / (1 - load(t)), 0, x)
        return wait + float(stay)

    mean, _ = integrate.quad(lambda x: response(x) * np.exp(-x), 0, 40, limit=200)
    return float(mean)


def test_shortest_remaining_processing_time() -> None:
    """SRPT on one seat, preemption free: well below FCFS at this load."""
    rate, step_s = 0.7, 1 / 20
    estimates = [
        float(
            responses(
                served_in_steps(
                    seed, rate, exponential(seed, 1_500), SRPT, seats=1, step_s=step_s
                )
            ).mean()
        )
        for seed in SEEDS
    ]  # fmt: skip
    theory = srpt_mean(rate)
    assert theory < 0.7 / (1 - rate)
    assert_agrees(estimates, theory, 0.1)


@pytest.mark.parametrize("shape", ["exponential", "two-point"])
def test_processor_sharing(shape: str) -> None:
    """M/G/1-PS: a request of size x takes x / (1 - rho), whatever the distribution of sizes."""
    rate, step_s = 0.6, 1 / 20
    estimates, slow = [], []
    for seed in SEEDS:
        rng = np.random.default_rng((seed, 6))
        sizes = rng.exponential(1.0, 1_500)
        if shape == "two-point":
            sizes = rng.choice([0.5, 5.5], 1_500, p=[0.9, 0.1])
        records = served_in_steps(seed, rate, sizes, "fcfs", seats=500, step_s=step_s)
        size = records.output_tokens[int(WARM_UP * len(sizes)) :] * step_s
        estimates.append(float(responses(records).mean()))
        slow.append(float(responses(records)[size > 1].sum() / size[size > 1].sum()))
    assert_agrees(estimates, 1 / (1 - rate), 0.12)
    assert_agrees(slow, 1 / (1 - rate), 0.12)


# Nodes that differ: one does a request's work in half the time


SPEEDS = (2.0, 1.0)


def fastest_first(running_requests: Any, waiting_requests: Any, replica_speed: Any) -> Any:
    """Where a request would end soonest if those before it took a mean service each."""
    return (running_requests + waiting_requests + 1) / replica_speed


def mostly_fast(random_draw: Any, replica_speed: Any) -> Any:
    """Random with probabilities by speed: the first of two exponential clocks of that rate."""
    return -np.log1p(-random_draw) / replica_speed


def unequal(seed: int, rate: float, router: RoutingPolicy, count: int) -> Records:
    """Two single servers of ``SPEEDS``, exponential work of mean 1, Poisson arrivals."""
    rng = np.random.default_rng((seed, 7))
    arrival = np.cumsum(rng.exponential(1 / rate, count))
    prompt = np.maximum(np.rint(exponential(seed, count) / 1e-4), 1).astype(np.int64)
    workload = Workload(
        {"arrival_s": arrival, "prompt_tokens": prompt, "output_tokens": np.ones_like(prompt)}
    )
    engine = never_full(workload, 1)
    nodes = tuple(
        Node(engine, LinearTiming(per_prefill_token_s=1e-4 / speed), load_policy("fcfs"))
        for speed in SPEEDS
    )
    return run(workload, System(nodes, router), seed=seed, backend="reference")


def markov_mean(rate: float, chosen: Callable[[int, int], int], most: int = 60) -> float:
    """Mean time in two servers' system, from the stationary chain of their queue lengths.

    ``chosen`` says which queue an arrival joins. Queues are cut off at ``most``.
    """
    size = most + 1
    rows, columns, rates = [], [], []
    for i in range(size):
        for j in range(size):
            moves = []
            ahead = (i + 1, j) if chosen(i, j) == 0 else (i, j + 1)
            if max(ahead) < size:
                moves.append((ahead, rate))
            if i:
                moves.append(((i - 1, j), SPEEDS[0]))
            if j:
                moves.append(((i, j - 1), SPEEDS[1]))
            for (k, m), speed in moves:  # columns of the generator's transpose are origins
                rows += [k * size + m, i * size + j]
                columns += [i * size + j] * 2
                rates += [speed, -speed]
    balance = sparse.coo_matrix((rates, (rows, columns)), (size**2, size**2)).tolil()
    balance[0, :] = 1.0  # probabilities sum to 1
    wanted = np.zeros(size**2)
    wanted[0] = 1.0
    probability = linalg.spsolve(balance.tocsc(), wanted).reshape(size, size)
    queues = np.add.outer(np.arange(size), np.arange(size))
    return float((probability * queues).sum()) / rate


def test_the_arbiter_knows_two_equal_queues() -> None:
    """The chain itself: with one server never chosen it is M/M/1."""
    assert markov_mean(1.2, lambda i, j: 0) == pytest.approx(1 / (2.0 - 1.2), rel=1e-6)


def test_random_routing_to_unequal_nodes() -> None:
    """Two M/M/1 with arrivals split at random, evenly: 1/2 each to mu = 2 and mu = 1."""
    rate = 1.4
    router = load_router("random")
    theory = 0.5 / (2.0 - rate / 2) + 0.5 / (1.0 - rate / 2)
    runs = [responses(unequal(seed, rate, router, 10_000)) for seed in SEEDS]
    assert_agrees([float(r.mean()) for r in runs], theory, 0.1)


def test_random_routing_by_speed() -> None:
    """Split in proportion to speed both have the same load: 2/3 to mu = 2, 1/3 to mu = 1."""
    rate = 2.1
    router = RoutingPolicy(Score("mostly-fast", by_speed(mostly_fast), ("random_draw",)))
    theory = 2 / 3 / (2.0 - 2 / 3 * rate) + 1 / 3 / (1.0 - 1 / 3 * rate)
    found = [unequal(seed, rate, router, 10_000) for seed in SEEDS]
    assert_agrees([float((r.replica == 0).mean()) for r in found], 2 / 3, 0.02)
    assert_agrees([float(responses(r).mean()) for r in found], theory, 0.1)


def test_fastest_first_routing() -> None:
    """Each request joins the queue that it would leave soonest, as the chain solves it."""
    rate = 2.1

    def chosen(i: int, j: int) -> int:
        return 0 if (i + 1) / SPEEDS[0] <= (j + 1) / SPEEDS[1] else 1

    names = ("running_requests", "waiting_requests")
    router = RoutingPolicy(Score("fastest-first", by_speed(fastest_first), names))
    theory = markov_mean(rate, chosen)
    assert theory < 0.8 * (2 / 3 / (2.0 - 2 / 3 * rate) + 1 / 3 / (1.0 - 1 / 3 * rate))
    estimates = [float(responses(unequal(seed, rate, router, 10_000)).mean()) for seed in SEEDS]
    assert_agrees(estimates, theory, 0.1)


def by_speed(score: Callable[..., Any]) -> Callable[..., Any]:
    """A score over both nodes, which come in order, with their speeds."""
    return lambda *values: score(*values, replica_speed=np.array(SPEEDS))
