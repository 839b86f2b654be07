"""Trains the router that ``benchmarks.gpu_routers`` takes along, on simulated replicas alone.

    python -m benchmarks.gpu_routers_train OUT [TIMING] [GENERATIONS]

Two replicas, of 64 and of 16 seats, at loads from 0.6 to 1.1 of what they sustain, under presets
that the measurement does not use, true and noisy lengths, metrics 20 ms old. The score is one
linear layer over logarithms of what a router knows, found by the cross-entropy method
(Rubinstein 1999) with the compiled engine as fitness: the mean log ratio of mean latency to the
best of the baselines, scenario by scenario. Writes a bundle, and prints ratios on other seeds.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import lengthwise as lw
from lengthwise.policies.bundle import write_bundle
from lengthwise.policies.learned import MLP
from lengthwise.policies.load import load_router
from lengthwise.policy import RoutingPolicy, Score
from lengthwise.serving import run
from lengthwise.serving.records import PS
from lengthwise.serving.timing import timing as load_timing

FEATURES = (
    "outstanding_tokens", "prefill_backlog_tokens", "decode_backlog_tokens", "running_requests",
    "waiting_requests", "free_seats", "max_seats", "decode_tokens_per_s",
)  # fmt: skip
BASELINES = ("jsq-tokens", "least-tokens", "jsew", "least-load", "min-min")
WORKLOADS = ("lmsys-chat", "azure-conv-2023", "burstgpt")
SEATS = (64, 16)
LONGEST = 2048, 1024
POPULATION, ELITE = 30, 6
Floats = NDArray[np.float64]
Nodes = tuple[lw.Node, ...]


@dataclass(frozen=True)
class Case:
    """A workload on the replicas, and the best baseline's mean latency there."""

    name: str
    workload: lw.Workload
    predicted: Floats
    best: float = float("nan")


def router(weights: Floats) -> RoutingPolicy:
    """Two neurons over log features, and a linear path through the flat part of a third."""
    count = len(FEATURES)
    hidden = weights[: 3 * (count + 1)].reshape(3, count + 1)
    last = weights[3 * (count + 1) :][None, :]
    mlp = MLP(
        np.zeros(count), np.full(count, 4.0), np.ones(count, dtype=bool),
        ((hidden[:, :count].copy(), hidden[:, count].copy()), (last.copy(), np.zeros(1))),
    )  # fmt: skip
    return RoutingPolicy(Score("two-replicas", mlp, FEATURES))


def replicas(timing: str) -> Nodes:
    """The two of them."""
    model, policy = load_timing(timing), lw.load_policy("fcfs")
    engines = [
        lw.Engine.of_vllm("0.26.0", max_num_seqs=n, async_scheduling=True) for n in SEATS
    ]  # fmt: skip
    return tuple(lw.Node(engine, model, policy) for engine in engines)


def cases(nodes: Nodes, seeds: range, requests: int = 1000) -> list[Case]:
    """Scenarios; capacity is what the replicas sustain of a burst, each alone."""
    found = []
    for seed in seeds:
        rng = np.random.default_rng([seed, 7])
        name = WORKLOADS[seed % len(WORKLOADS)]
        work = lw.Workload.preset(name, requests=requests, rate=1.0, seed=seed)
        cut = {
            "prompt_tokens": np.minimum(work["prompt_tokens"], LONGEST[0]),
            "output_tokens": np.minimum(work["output_tokens"], LONGEST[1]),
        }
        burst = lw.Workload({"arrival_s": np.zeros(requests), **cut})
        capacity = sum(sustained(burst, node) for node in nodes)
        load = float(rng.uniform(0.6, 1.1))
        arrivals = np.sort(rng.uniform(0, requests / (load * capacity), requests))
        noise = rng.choice([0.0, 0.5])
        predicted = cut["output_tokens"] * np.exp(noise * rng.standard_normal(requests))
        workload = lw.Workload({"arrival_s": arrivals, **cut})
        case = Case(f"{name} at {load:.2f}, noise {noise:g}", workload, predicted)
        best = min(latency(case, nodes, spec) for spec in BASELINES)
        found.append(Case(case.name, workload, predicted, best))
    return found


def sustained(burst: lw.Workload, node: lw.Node) -> float:
    """Requests/s of a burst, its emptying end left out."""
    done = np.sort(run(burst, lw.System((node,), load_router("random"))).finish_ps) / PS
    return 0.8 * len(burst) / float(done[int(0.8 * len(burst))])


def latency(case: Case, nodes: Nodes, routing: str | RoutingPolicy) -> float:
    """Mean latency, s."""
    records = run(case.workload, lw.System(nodes, load_router(routing), 0.02), case.predicted)
    return float((records.finish_ps / PS - case.workload["arrival_s"]).mean())


def ratios(weights: Floats, nodes: Nodes, over: list[Case]) -> Floats:
    """Of mean latency to the best baseline's, each case."""
    routing = router(weights)
    return np.array([latency(case, nodes, routing) / case.best for case in over])


def main(out: Path, timing: str = "h200/llama-3.1-8b", generations: int = 25) -> None:
    """Trains and writes."""
    nodes = replicas(timing)
    train, test = cases(nodes, range(12)), cases(nodes, range(100, 118))
    rng = np.random.default_rng(0)
    size = 3 * (len(FEATURES) + 1) + 3
    mean, spread = np.zeros(size), np.full(size, 0.4)
    mean[0], mean[-3] = 1.0, 1.0  # begins as least tokens
    best = mean.copy(), float("inf")
    for generation in range(generations):
        crowd = mean + spread * rng.standard_normal((POPULATION, size))
        crowd[0] = mean
        costs = np.array([np.log(ratios(one, nodes, train)).mean() for one in crowd])
        elite = crowd[np.argsort(costs)[:ELITE]]
        if costs.min() < best[1]:
            best = crowd[costs.argmin()], float(costs.min())
        mean = 0.3 * mean + 0.7 * elite.mean(axis=0)
        spread = 0.3 * spread + 0.7 * (elite.std(axis=0) + 0.02)
        print(f"{generation}: {np.exp(costs.min()):.4f} {np.exp(costs[0]):.4f}", flush=True)
    finals = [ratios(one, nodes, train) for one in (mean, best[0])]
    weights = mean if np.log(finals[0]).mean() <= np.log(finals[1]).mean() else best[0]
    write_bundle(router(weights), out)
    for case, ratio in zip(test, ratios(weights, nodes, test), strict=True):
        print(f"{case.name}: {ratio:.3f} of the best of {', '.join(BASELINES)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:3], *map(int, sys.argv[3:4]))
