"""SRTF with refreshed predictions against SRTF without, SJF and FCFS, on the same requests.

    python -m benchmarks.refresh DATA [--seeds 10] [--requests 2000]

Printed are mean latencies over SJF's, with 95% intervals over seeds (paired: each seed draws one
workload for all policies), on nodes of an H200. ``frozen`` is SRTF on the length predicted at
arrival, less what was generated. Lengths are drawn from their own predicted distributions
(buckets, and log-normal ones around a length), short and five times as long, or are true answers
with what a ridge, trained on others, says of them (``DATA`` as in ``benchmarks.remainders``).
Arrivals are Poisson's at ``load`` times what a node serves of these requests when all come at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np

import lengthwise as lw
from benchmarks.remainders import answers
from lengthwise.eval.statistics import paired_ratio
from lengthwise.policies import load_policy, load_router
from lengthwise.policy import Preemption, SchedulingPolicy, Score
from lengthwise.prediction import Prediction
from lengthwise.predictors import make_predictor, spreads
from lengthwise.serving import Engine, Node, System, run
from lengthwise.workload import Workload

Draw = Callable[[int, int], tuple[Prediction, Any]]  # (requests, seed) -> predictions, lengths
BUCKETS = np.array([0.0, 60, 200, 700, 3000])
SIGMA = 0.8  # of log lengths around what is predicted
LOADS, SEATS = (0.9, 1.1, 1.5), 32


def frozen(predicted_tokens: Any, generated_tokens: Any) -> Any:
    return predicted_tokens - generated_tokens


def gittins(gittins_index: Any) -> Any:
    return gittins_index


def policies() -> dict[str, SchedulingPolicy]:
    """By the name that the table has for them; all relative to ``sjf``."""
    low, high = Preemption("recompute"), load_policy("srtf-refreshed").preemption
    return {
        "fcfs": load_policy("fcfs"),
        "sjf": load_policy("sjf"),
        "frozen": SchedulingPolicy(Score.from_function(frozen), low),
        "srtf": load_policy("srtf"),
        "frozen, price 0.03": SchedulingPolicy(Score.from_function(frozen), high),
        "srtf-refreshed": load_policy("srtf-refreshed"),
        "gittins, price 0.03": SchedulingPolicy(Score.from_function(gittins), high),
    }


def bucketed(scale: float) -> Draw:
    """Lengths drawn from the buckets that are predicted for them."""

    def draw(requests: int, seed: int) -> tuple[Prediction, Any]:
        rng = np.random.default_rng(seed)
        said = Prediction.bucketed(rng.dirichlet(np.full(4, 0.5), requests), scale * BUCKETS)
        pieces = said.pieces
        reached = pieces.mass.cumsum(axis=1)
        piece = (reached < rng.random(requests)[:, None] * reached[:, -1:]).sum(axis=1)
        low, high = pieces.low[0, piece], pieces.high[0, piece]
        return said, np.ceil(low + rng.random(requests) * (high - low))

    return draw


def around(median: float) -> Draw:
    """Log-normal lengths around one that is predicted, with the spread that was learned of them."""
    rng = np.random.default_rng(0)
    past = median * np.exp(0.7 * rng.standard_normal(20_000))
    tokens = past * np.exp(SIGMA * rng.standard_normal(20_000))
    spread = spreads.of_ratios(past, tokens, float(tokens.max()))

    def draw(requests: int, seed: int) -> tuple[Prediction, Any]:
        rng = np.random.default_rng(seed)
        said = median * np.exp(0.7 * rng.standard_normal(requests))
        true = said * np.exp(SIGMA * rng.standard_normal(requests))
        return Prediction.exact(said, spread=spread), np.clip(np.ceil(true), 1, 30_000)

    return draw


def real(data: str, source: str, target: str) -> Draw:
    """Answers to prompts of the test split, drawn again and again."""
    rows = answers(data, source)
    train, test = rows.split("train", 0.5), rows.split("test", 0.5)
    made = make_predictor("ridge", target=target, seed=0)
    made.fit(list(train.prompt), train.output_tokens, prompt_tokens=train.prompt_tokens)
    said = made.predict(list(test.prompt), prompt_tokens=test.prompt_tokens)

    def draw(requests: int, seed: int) -> tuple[Prediction, Any]:
        chosen = np.random.default_rng(seed).integers(0, len(test), requests)
        return said.select(chosen), test.output_tokens[chosen]

    return draw


def latencies(
    policy: SchedulingPolicy, said: Prediction, tokens: Any, arrival_s: Any, seed: int
) -> tuple[Any, float]:
    """Each request's latency (n,), and when the last one is done, in s."""
    rng = np.random.default_rng([seed, 1])
    work = Workload({
        "arrival_s": arrival_s, "prompt_tokens": rng.integers(20, 500, len(tokens)),
        "output_tokens": np.asarray(tokens, dtype=np.int64),
    })  # fmt: skip
    node = Node(Engine(max_num_seqs=SEATS), lw.timing("h200/llama-3.1-8b"), policy)
    system = System((node,), load_router("round-robin"))
    made = run(work, system, said.of_run(), seed=seed, backend="fast")
    took = made.finish_ps - made.arrival_ps
    return took / 1e12, float(made.finish_ps.max()) / 1e12


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.refresh")
    parser.add_argument("data")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--requests", type=int, default=2000)
    given = parser.parse_args()
    cases = {
        "buckets, mean 600": bucketed(1.0), "buckets, mean 3,000": bucketed(5.0),
        "around a length, mean 530": around(300.0), "around a length, mean 2,600": around(1500.0),
        **{
            f"{source}, {target}": real(given.data, source, target)
            for source in ("MMLU-Pro", "MATH level 5") for target in ("exact", "bucket", "quantile")
        },
    }  # fmt: skip
    tried = policies()
    names = [name for name in tried if name != "sjf"]
    print("| lengths | load | sjf, s | " + " | ".join(names) + " |")
    print("|---|---:|---:|" + "---:|" * len(names))
    for label, draw in cases.items():
        for load in LOADS:
            found = np.empty((given.seeds, len(tried)))
            for seed in range(given.seeds):
                said, tokens = draw(given.requests, seed)
                _, whole_s = latencies(tried["fcfs"], said, tokens, np.zeros(len(tokens)), seed)
                gaps = np.random.default_rng([seed, 2]).exponential(size=len(tokens))
                arrival_s = np.cumsum(gaps) * whole_s / len(tokens) / load
                for k, policy in enumerate(tried.values()):
                    took, _ = latencies(policy, said, tokens, arrival_s, seed)
                    found[seed, k] = took.mean()
            base = found[:, list(tried).index("sjf")]
            cells = []
            for name in names:
                ratio = paired_ratio(found[:, list(tried).index(name)], base)
                cells.append(f"{ratio.mean:.3f} ({ratio.low:.3f} to {ratio.high:.3f})")
            print(f"| {label} | {load:g} | {base.mean():.2f} | " + " | ".join(cells) + " |",
                  flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
