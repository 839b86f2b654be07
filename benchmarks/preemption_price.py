"""SRTF's price of preemption: mean and P99 latency over SJF's, on the same requests.

    python -m benchmarks.preemption_price [--seeds 10] [--requests 2000] [--jobs N] [--out FILE]
    python -m benchmarks.preemption_price --served DATA [...]

Lengths are those of ``benchmarks.refresh`` (drawn from buckets, or log-normal around a length,
short and five times as long) and are told in three ways: truly (``true``), with an oracle's noise
of Kendall's tau 0.6 (``noisy``), or as the distribution that they were drawn from, so that what is
left is refreshed with every token (``refreshed``). Paired over seeds, 95% intervals. One replica
of 32 seats on an H200; arrivals are Poisson's at ``load`` times what it serves.

With ``--served`` they are the presets' and those of six traces in ``DATA/traces``, each with its
own arrivals at ``load`` times what 64 seats serve, told truly or at tau 0.5 and 0.7, where a
preempted request computes everything again and where it finds its blocks in the prefix cache
(``cached``). Last comes, for each price, on how many rows it is better and worse than ``AGAINST``.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import lengthwise as lw
from benchmarks.refresh import LOADS, around, bucketed, latencies
from lengthwise.eval.statistics import paired_ratio
from lengthwise.policies import load_policy, load_router
from lengthwise.policy import SchedulingPolicy
from lengthwise.prediction import Prediction
from lengthwise.predictors.oracle import NoisyOracle
from lengthwise.serving import Engine, Node, System, run
from lengthwise.workload import Workload
from lengthwise.writing import whole_file

PRICES = (0.003, 0.01, 0.02, 0.03, 0.06)
AGAINST = 0.01
CASES = {
    "buckets, mean 600": bucketed(1.0), "buckets, mean 3,000": bucketed(5.0),
    "around a length, mean 530": around(300.0), "around a length, mean 2,600": around(1500.0),
}  # fmt: skip
TOLD = ("true", "noisy", "refreshed")
PRESETS = (
    "azure-conv-2023", "azure-code-2023", "mooncake-conversation", "burstgpt", "reasoning",
    "sharegpt", "lmsys-chat",
)  # fmt: skip
TRACES = (
    "azure2023_conv_a.csv.gz", "azure2023_code_a.csv.gz", "mooncake_conversation_a.jsonl.gz",
    "mooncake_arxiv_toolagent_a.csv.gz", "servegen_deepseek_r1_day.csv.gz",
    "servegen_m_large.csv.gz",
)  # fmt: skip
SEATS = 64
TAUS = {"true": 1.0, "tau 0.7": 0.7, "tau 0.5": 0.5}


def tried() -> list[SchedulingPolicy]:
    """sjf, and srtf at each price."""
    srtf = load_policy("srtf")
    at = [replace(srtf, preemption=replace(srtf.preemption, price=price)) for price in PRICES]
    return [load_policy("sjf"), *at]


def told(how: str, said: Prediction, tokens: Any, seed: int) -> Prediction:
    """What the policy is told of the lengths."""
    if how == "refreshed":
        return said
    if how == "true":
        return Prediction.exact(tokens)
    return NoisyOracle(tau=0.6).seeded(seed).predict([], output_tokens=tokens)


def of_mean_and_p99(took: Sequence[Any]) -> Any:
    """(runs, 2), s."""
    return np.array([(one.mean(), np.percentile(one, 99)) for one in took])


def measured(requests: int, case: str, how: str, load: float, seed: int) -> Any:
    """(1 + prices, 2): mean and P99 of sjf, and of srtf at each price, s."""
    said, tokens = CASES[case](requests, seed)
    said = told(how, said, tokens, seed)
    _, whole_s = latencies(load_policy("fcfs"), said, tokens, np.zeros(len(tokens)), seed)
    gaps = np.random.default_rng([seed, 2]).exponential(size=len(tokens))
    arrival_s = np.cumsum(gaps) * whole_s / len(tokens) / load
    return of_mean_and_p99([
        latencies(policy, said, tokens, arrival_s, seed)[0] for policy in tried()
    ])  # fmt: skip


@functools.cache
def trace(path: str) -> Workload:
    """The requests of a file."""
    return lw.Workload.read(path)


def drawn(source: str, requests: int, seed: int) -> Workload:
    """A preset's requests, or a window of a trace's."""
    if source in PRESETS:
        return lw.Workload.preset(source, requests=requests, seed=seed)
    whole = trace(source)
    first = int(np.random.default_rng([seed, 3]).integers(0, len(whole) - requests))
    return whole.window(first, first + requests)


def served(requests: int, source: str, cached: bool, how: str, load: float, seed: int) -> Any:
    """As ``measured``, of a preset or a trace."""
    work = drawn(source, requests, seed)
    engine = Engine(max_num_seqs=SEATS, enable_prefix_caching=cached)

    def took(policy: SchedulingPolicy, work: Workload, said: Any) -> Any:
        node = Node(engine, lw.timing("h200/llama-3.1-8b"), policy)
        made = run(work, System((node,), load_router("round-robin")), said, seed=seed)
        return (made.finish_ps - made.arrival_ps) / 1e12

    said = work["output_tokens"].astype(np.float64)
    if TAUS[how] < 1:
        noisy = NoisyOracle(tau=TAUS[how]).seeded(seed)
        said = noisy.predict([], output_tokens=said).predicted_tokens
    at_once = work.replace(arrival_s=np.zeros(len(work)))
    whole_s = float(took(load_policy("fcfs"), at_once, said).max())
    work = work.at_rate(load * len(work) / whole_s)
    return of_mean_and_p99([took(policy, work, said) for policy in tried()])


def table(
    heads: Sequence[str], rows: Sequence[tuple[Any, ...]], found: Sequence[Any], seeds: int
) -> list[str]:
    """In Markdown, and below it how each price does against ``AGAINST``, row by row."""
    prices = " | ".join(f"{price:g}" for price in PRICES)
    lines = [f"| {' | '.join(heads)} | {prices} | P99: {prices} |"]
    lines.append("|---" * len(heads) + "|" + "---:|" * 2 * len(PRICES))
    base = 1 + PRICES.index(AGAINST)
    against = np.zeros((2, len(PRICES), len(rows), 2))  # mean and P99; better, worse
    logs = np.zeros((2, len(PRICES), len(rows)))
    for k, row in enumerate(rows):
        of = np.stack(found[k * seeds : (k + 1) * seeds])  # (seeds, policies, 2)
        cells = []
        for what in (0, 1):
            for p in range(len(PRICES)):
                ratio = paired_ratio(of[:, 1 + p, what], of[:, 0, what])
                cells.append(f"{ratio.mean:.3f} ({ratio.low:.3f} to {ratio.high:.3f})")
                beside = paired_ratio(of[:, 1 + p, what], of[:, base, what])
                against[what, p, k] = beside.high < 1 - 1e-6, beside.low > 1 + 1e-6
                logs[what, p, k] = np.log(ratio.mean)
        lines.append("| " + " | ".join(map(str, row)) + " | " + " | ".join(cells) + " |")
    names = ("price", f"better than {AGAINST:g}", "worse", "of", "mean over sjf", "worst row",
             "P99: better", "worse", "over sjf")  # fmt: skip
    lines += ["", f"| {' | '.join(names)} |", "|" + "---:|" * len(names)]
    for p, price in enumerate(PRICES):
        (better, worse), (better_p99, worse_p99) = against[:, p].sum(axis=1).astype(int)
        mean, worst, p99 = np.exp([logs[0, p].mean(), logs[0, p].max(), logs[1, p].mean()])
        lines.append(
            f"| {price:g} | {better} | {worse} | {len(rows)} | {mean:.4f} | {worst:.3f} | "
            f"{better_p99} | {worse_p99} | {p99:.4f} |"
        )
    return lines


def main() -> None:
    """Prints, and writes where ``--out`` says so, tables in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.preemption_price")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--served", type=Path, metavar="DATA")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    one: Callable[..., Any] = measured
    rows: list[tuple[Any, ...]]
    if given.served is None:
        heads = ["lengths", "told", "load"]
        rows = [(case, how, load) for case in CASES for how in TOLD for load in LOADS]
    else:
        one, heads = served, ["requests", "cached", "told", "load"]
        sources = [*PRESETS, *(str(given.served / "traces" / name) for name in TRACES)]
        rows = [
            (source, cached, how, load)
            for source in sources for cached in (False, True) for how in TAUS for load in LOADS
        ]  # fmt: skip
    jobs = [(given.requests, *row, seed) for row in rows for seed in range(given.seeds)]
    with ProcessPoolExecutor(given.jobs) as pool:
        found = list(pool.map(functools.partial(_apply, one), jobs))
    named = [(Path(row[0]).name.split(".")[0], *row[1:]) for row in rows]
    lines = table(heads, named, found, given.seeds)
    print("\n".join(lines))
    if given.out is not None:
        with whole_file(given.out) as fresh:
            fresh.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _apply(one: Callable[..., Any], job: tuple[Any, ...]) -> Any:
    return one(*job)


if __name__ == "__main__":
    main()
