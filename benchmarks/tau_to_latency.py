"""From Kendall's tau to latency: what an order is worth, and whose lengths are misjudged.

    python -m benchmarks.tau_to_latency DATA [--source MMLU-Pro] [--models ridge,gbdt] [--seeds 3]

``DATA`` holds ``prompts/`` (../shared/data beside the checkout). Predictors are trained on the
train split of one model's answers; ``--requests`` of the test split's answers, drawn anew for each
seed, arrive by a Poisson process at shares of what one replica with ``--seats`` seats can serve.
Beside them stand noisy oracles, and oracles that err on one kind of answers alone, by as much as
brings them to the same tau. Prints tables in Markdown: ratios to fcfs, paired by seed, with 95%
intervals.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from benchmarks.remainders import SOURCES, answers
from lengthwise.eval.judge import Trial, Values, measured
from lengthwise.eval.statistics import Interval, paired_ratio, t_interval
from lengthwise.eval.tables import ratio_cell
from lengthwise.policies import load_policy, load_router
from lengthwise.prediction import Prediction, Predictions
from lengthwise.predictors import make_predictor
from lengthwise.predictors.oracle import NoisyOracle
from lengthwise.serving import Engine, Node, System
from lengthwise.serving.saturation import saturation_rate
from lengthwise.serving.timing import timing
from lengthwise.serving.workload import Prompts
from lengthwise.workload import Workload

Floats = NDArray[np.float64]
TAUS = (0.0, 0.2, 0.4, 0.6, 0.8)
EQUAL = (0.4, 0.6)  # where whom it misjudges is told apart
SHOWN = (
    ("mean", "mean_latency_s"),
    ("s/token", "mean_normalized_latency_s"),
    ("P99", "p99_latency_s"),
)


@dataclass(frozen=True)
class Drawn:
    """One seed's requests: rows of the test split, and their answers' lengths, (n,)."""

    rows: NDArray[np.int64]
    tokens: Floats
    seed: int


# Oracles that err on some answers alone. Each takes the ranks of the answers by length, in [0, 1),
# shortest first, and how much it errs, in [0, 1]; it returns places to order by.
def _shuffled(inside: NDArray[np.bool_], ranks: Floats, rng: np.random.Generator) -> Floats:
    lot = rng.random(len(ranks))[inside]  # each one's own, whoever else is inside
    found = ranks.copy()
    found[inside] = np.sort(ranks[inside])[np.argsort(np.argsort(lot))]
    return found


def among_long(ranks: Floats, error: float, rng: np.random.Generator) -> Floats:
    """The longest answers are ordered at random among themselves."""
    return _shuffled(ranks >= 1 - error, ranks, rng)


def among_short(ranks: Floats, error: float, rng: np.random.Generator) -> Floats:
    """The shortest answers are ordered at random among themselves."""
    return _shuffled(ranks < error, ranks, rng)


def long_for_short(ranks: Floats, error: float, rng: np.random.Generator) -> Floats:
    """Some of the longer half are taken for the shortest."""
    moved = (ranks >= 0.5) & (rng.random(len(ranks)) < error)
    return np.where(moved, ranks - 2.0, ranks)


def short_for_long(ranks: Floats, error: float, rng: np.random.Generator) -> Floats:
    """Some of the shorter half are taken for the longest."""
    moved = (ranks < 0.5) & (rng.random(len(ranks)) < error)
    return np.where(moved, ranks + 2.0, ranks)


KINDS: dict[str, Callable[[Floats, float, np.random.Generator], Floats]] = {
    "long ones among themselves": among_long,
    "short ones among themselves": among_short,
    "long ones taken for short": long_for_short,
    "short ones taken for long": short_for_long,
}


def misjudged(kind: str, tokens: Floats, tau: float, seed: int) -> Floats:
    """Predicted lengths (n,) with errors of one kind and about this tau; the truth's values."""
    rng = np.random.default_rng([seed, list(KINDS).index(kind)])
    order = np.lexsort((rng.random(len(tokens)), tokens))  # ties by lot
    ranks = np.empty(len(tokens))
    ranks[order] = np.arange(len(tokens)) / len(tokens)
    low, high, found = 0.0, 1.0, tokens
    for _ in range(12):
        middle = (low + high) / 2
        places = KINDS[kind](ranks, middle, np.random.default_rng([seed, 7]))
        found = np.empty(len(tokens))
        found[np.argsort(places, kind="stable")] = np.sort(tokens)
        low, high = (middle, high) if _tau(found, tokens) > tau else (low, middle)
    return found


def _tau(predicted: Any, tokens: Floats) -> float:
    return float(kendalltau(predicted, tokens).statistic)


def draw(test: Prompts, requests: int, seed: int) -> Drawn:
    """Answers of the test split, none twice in a seed."""
    rng = np.random.default_rng([seed, 11])
    rows = rng.choice(len(test), min(requests, len(test)), replace=False)
    return Drawn(rows, np.asarray(test.output_tokens, np.float64)[rows], seed)


def trials(
    drawn: list[Drawn], test: Prompts, system: System, load: float, said: list[Predictions | None]
) -> list[Trial]:
    """One run a seed, each at this share of what the system serves of its requests."""
    found = []
    for one, predictions in zip(drawn, said, strict=True):
        rng = np.random.default_rng([one.seed, 13])
        workload = Workload(
            {
                "arrival_s": np.cumsum(rng.exponential(1.0, len(one.rows))),
                "prompt_tokens": np.asarray(test.prompt_tokens)[one.rows],
                "output_tokens": one.tokens.astype(np.int64),
            },
            name="answers",
        )
        at = workload.at_rate(load * saturation_rate(workload, system))
        found.append(Trial(at, system, predictions, one.seed))
    return found


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tau_to_latency")
    parser.add_argument("data")
    parser.add_argument("--source", default="MMLU-Pro", choices=list(SOURCES))
    parser.add_argument("--models", default="ridge,gbdt")
    parser.add_argument("--target", default="exact")
    parser.add_argument("--loads", default="0.8,0.95,1.1")
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--seats", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--timing", default="h200/llama-3.1-8b")
    given = parser.parse_args()
    loads = [float(load) for load in given.loads.split(",")]
    rows = answers(given.data, given.source)
    train, test = rows.split("train", 0.5), rows.split("test", 0.5)
    drawn = [draw(test, given.requests, seed) for seed in range(given.seeds)]
    node = Node(Engine(max_num_seqs=given.seats), timing(given.timing), load_policy("fcfs"))
    system = System((node,), load_router("round-robin"))

    said: dict[str, list[Prediction]] = {}
    for tau in TAUS:
        said[f"noisy oracle {tau:g}"] = [
            NoisyOracle(tau=tau, seed=1000 + one.seed)
            .fit([], one.tokens)
            .predict([], output_tokens=one.tokens)
            for one in drawn
        ]
    said["oracle"] = [Prediction.exact(one.tokens) for one in drawn]
    for model in filter(None, given.models.split(",")):
        made = make_predictor(model, target=given.target, seed=0)
        made.fit(list(train.prompt), train.output_tokens, prompt_tokens=train.prompt_tokens)
        every = [
            made.predict(
                [test.prompt[row] for row in one.rows],
                prompt_tokens=np.asarray(test.prompt_tokens)[one.rows],
            )
            for one in drawn
        ]
        said[model] = every
    equal = {
        (kind, tau): [Prediction.exact(misjudged(kind, one.tokens, tau, one.seed)) for one in drawn]
        for tau in EQUAL
        for kind in KINDS
    }
    print(f"{given.source}: {len(drawn[0].rows):,} answers, mean "
          f"{np.mean([one.tokens.mean() for one in drawn]):.0f} tokens, {given.seats} seats, "
          f"{given.seeds} seeds\n")  # fmt: skip
    base = {
        load: measured(load_policy("fcfs"), trials(drawn, test, system, load, [None] * len(drawn)))
        for load in loads
    }

    def under(policy: str, predictions: list[Prediction], load: float) -> Values:
        runs = [each.of_run() for each in predictions]
        return measured(load_policy(policy), trials(drawn, test, system, load, runs))

    def ratios(found: Values, load: float) -> str:
        cells = [_cell(paired_ratio(found[c], base[load][c])) for _, c in SHOWN]
        return " | ".join(cells)

    def tau_of(predictions: list[Prediction]) -> str:
        each = [_tau(p.tokens, one.tokens) for p, one in zip(predictions, drawn, strict=True)]
        return f"{t_interval(each).mean:.2f}"

    sjf = {(name, load): under("sjf", p, load) for name, p in said.items() for load in loads}
    heads = [f"{head} at {load:g}" for load in loads for head, _ in SHOWN]
    print("| sjf with | τ | " + " | ".join(heads) + " |\n|---|---:" + "|---:" * len(heads) + "|")
    for name, predictions in said.items():
        cells = " | ".join(ratios(sjf[name, load], load) for load in loads)
        print(f"| {name} | {tau_of(predictions)} | {cells} |", flush=True)

    top = loads[-1]
    names = [head for head, _ in SHOWN]
    print(
        f"\n| errs on, at load {top:g} | τ | " + " | ".join(names) + " |\n|---|---:|---:|---:|---:|"
    )
    for (kind, _), predictions in sorted(equal.items(), key=lambda item: item[0][1]):
        found = ratios(under("sjf", predictions, top), top)
        print(f"| {kind} | {tau_of(predictions)} | {found} |", flush=True)

    heads = [f"srtf × sjf at {load:g}" for load in loads]
    print("\n| mean latency with | " + " | ".join(heads) + " |\n|---" + "|---:" * len(heads) + "|")
    for name, predictions in said.items():
        cells = [
            _cell(
                paired_ratio(
                    under("srtf", predictions, load)["mean_latency_s"],
                    sjf[name, load]["mean_latency_s"],
                )
            )
            for load in loads
        ]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def _cell(ratio: Interval) -> str:
    return ratio_cell(ratio).text


if __name__ == "__main__":
    main()
