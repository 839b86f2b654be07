"""SRTF's price of preemption: mean and P99 latency over SJF's, on the same requests.

    python -m benchmarks.preemption_price [--seeds 10] [--requests 2000] [--jobs N] [--out FILE]

Lengths are those of ``benchmarks.refresh`` (drawn from buckets, or log-normal around a length,
short and five times as long) and are told in three ways: truly (``true``), with an oracle's noise
of Kendall's tau 0.6 (``noisy``), or as the distribution that they were drawn from, so that what is
left is refreshed with every token (``refreshed``). Paired over seeds, 95% intervals. One replica
of 32 seats on an H200; arrivals are Poisson's at ``load`` times what it serves.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.refresh import LOADS, around, bucketed, latencies
from lengthwise.eval.statistics import paired_ratio
from lengthwise.policies import load_policy
from lengthwise.prediction import Prediction
from lengthwise.predictors.oracle import NoisyOracle
from lengthwise.writing import whole_file

PRICES = (0.003, 0.01, 0.02, 0.03, 0.06)
CASES = {
    "buckets, mean 600": bucketed(1.0), "buckets, mean 3,000": bucketed(5.0),
    "around a length, mean 530": around(300.0), "around a length, mean 2,600": around(1500.0),
}  # fmt: skip
TOLD = ("true", "noisy", "refreshed")


def told(how: str, said: Prediction, tokens: Any, seed: int) -> Prediction:
    """What the policy is told of the lengths."""
    if how == "refreshed":
        return said
    if how == "true":
        return Prediction.exact(tokens)
    return NoisyOracle(tau=0.6).seeded(seed).predict([], output_tokens=tokens)


def measured(job: tuple[str, str, float, int, int]) -> Any:
    """(1 + prices, 2): mean and P99 of sjf, and of srtf at each price, s."""
    case, how, load, seed, requests = job
    said, tokens = CASES[case](requests, seed)
    said = told(how, said, tokens, seed)
    sjf, srtf = load_policy("sjf"), load_policy("srtf")
    _, whole_s = latencies(load_policy("fcfs"), said, tokens, np.zeros(len(tokens)), seed)
    gaps = np.random.default_rng([seed, 2]).exponential(size=len(tokens))
    arrival_s = np.cumsum(gaps) * whole_s / len(tokens) / load
    tried = [sjf]
    tried += [replace(srtf, preemption=replace(srtf.preemption, price=price)) for price in PRICES]
    found = (latencies(policy, said, tokens, arrival_s, seed)[0] for policy in tried)
    return np.array([(took.mean(), np.percentile(took, 99)) for took in found])


def main() -> None:
    """Prints, and writes where ``--out`` says so, a table in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.preemption_price")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows = [(case, how, load) for case in CASES for how in TOLD for load in LOADS]
    jobs = [(*row, seed, given.requests) for row in rows for seed in range(given.seeds)]
    with ProcessPoolExecutor(given.jobs) as pool:
        found = list(pool.map(measured, jobs))
    prices = " | ".join(f"{price:g}" for price in PRICES)
    lines = [f"| lengths | told | load | {prices} | P99: {prices} |"]
    lines.append("|---|---|---:|" + "---:|" * 2 * len(PRICES))
    for k, (case, how, load) in enumerate(rows):
        of = np.stack(found[k * given.seeds : (k + 1) * given.seeds])  # (seeds, policies, 2)
        ratios = [
            paired_ratio(of[:, 1 + p, what], of[:, 0, what])
            for what in (0, 1) for p in range(len(PRICES))
        ]  # fmt: skip
        cells = (f"{ratio.mean:.3f} ({ratio.low:.3f} to {ratio.high:.3f})" for ratio in ratios)
        lines.append(f"| {case} | {how} | {load:g} | " + " | ".join(cells) + " |")
    print("\n".join(lines))
    if given.out is not None:
        with whole_file(given.out) as fresh:
            fresh.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
