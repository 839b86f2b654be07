"""What predictors do where they were not trained: each source's on each other source.

``python benchmarks/predictor_transfer.py DATA/prompts --model ridge --out transfer.json``

A predictor is trained on half of the prompts of a source (answers of one model, default settings)
and used on the other half of each source, as the simulator uses it, and with its abstention
switched off ("before"). SJF's mean and P99 latency are ratios to FCFS's on the same requests: drawn
with replacement, Poisson arrivals at ``--load`` of what FCFS completes when all are there at once.
Intervals are percentiles over bootstrap draws of the prompts.
"""

from __future__ import annotations

import argparse
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import lengthwise as lw
from lengthwise.errors import InputError
from lengthwise.eval import metrics
from lengthwise.eval.prediction_metrics import kendall_tau
from lengthwise.eval.simulate import simulate
from lengthwise.prediction import Prediction
from lengthwise.predictors import load_predictor, make_predictor
from lengthwise.predictors.predict import predict
from lengthwise.workload import Workload

Table = pd.DataFrame
ENGINE = lw.Engine(max_num_seqs=64)


def sources(folder: Path) -> dict[str, Table]:
    """Answers of one model to the prompts of each source: the middle name of the complete ones."""
    found = {}
    for path in sorted(folder.glob("*_lengths.csv.gz")):
        name = path.name.removesuffix("_lengths.csv.gz")
        lengths = pd.read_csv(path, keep_default_na=False)
        prompts = pd.read_json(folder / f"{name}_prompts.jsonl.gz", lines=True)
        lengths["prompt_id"] = lengths["prompt_id"].astype(str)
        prompts["prompt_id"] = prompts["prompt_id"].astype(str)
        rows = lengths[lengths["output_tokens"] > 0].drop_duplicates(["model", "prompt_id"])
        rows = rows.merge(prompts[["prompt_id", "prompt", "prompt_tokens"]], on="prompt_id")
        counts = rows["model"].value_counts()
        whole = sorted(counts[counts >= 0.8 * counts.max()].index)
        found[name] = rows[rows["model"] == whole[len(whole) // 2]].reset_index(drop=True)
    return found


def half(rows: Table, side: int) -> Table:
    """Half of the prompts, by a hash of their text."""
    mark = np.array([zlib.crc32(prompt.encode()) % 2 for prompt in rows["prompt"]])
    return rows[mark == side].reset_index(drop=True)


def workload(rows: Table, seed: int, load: float, requests: int = 2000) -> Workload:
    """Requests drawn from rows, arriving at ``load`` times what FCFS can complete."""
    rng = np.random.default_rng(seed)
    drawn = rows.iloc[rng.integers(0, len(rows), requests)]
    columns: dict[str, Any] = {
        "arrival_s": np.zeros(requests), "prompt": drawn["prompt"].to_numpy(object),
        "prompt_tokens": drawn["prompt_tokens"].to_numpy(),
        "output_tokens": drawn["output_tokens"].to_numpy(),
    }  # fmt: skip
    last = metrics.e2e_s(simulate(Workload(columns), "fcfs", engine=ENGINE).records).max()
    columns["arrival_s"] = np.cumsum(rng.exponential(last / requests / load, requests))
    return Workload(columns)


def latency_ratios(rows: Table, predictor: Any, seeds: int, load: float) -> dict[str, float]:
    """SJF's mean and P99 latency over FCFS's, and the share of requests abstained from."""
    found = []
    for seed in range(seeds):
        drawn = workload(rows, seed, load)
        said = predict(predictor, drawn)
        assert said is not None
        times = [
            metrics.e2e_s(simulate(drawn, name, engine=ENGINE, predicted_tokens=given).records)
            for name, given in (("sjf", said), ("fcfs", None))
        ]
        p99 = np.percentile(times[0], 99) / np.percentile(times[1], 99)
        found.append((times[0].mean() / times[1].mean(), p99, said.abstained_share))
    return dict(zip(("mean", "p99", "abstained"), np.mean(found, axis=0).tolist(), strict=True))


def tau_interval(said: Prediction, length: Any, draws: int = 100) -> list[float]:
    """Kendall's tau and its 95% bootstrap interval."""
    rng = np.random.default_rng(0)
    tokens, n = said.order, len(length)
    rows = [rng.integers(0, n, n) for _ in range(draws)]
    taus = [kendall_tau(tokens[row], length[row]) for row in rows]
    return [kendall_tau(tokens, length), *np.quantile(taus, (0.025, 0.975)).tolist()]


def coverage(said: Prediction, length: Any, level: float = 0.9) -> float:
    """Share of lengths within their intervals; NaN of predictions without any."""
    try:
        low, high = said.interval(level)
    except InputError:
        return float("nan")
    return float(((length >= low) & (length <= high)).mean())


def judged(predictor: Any, rows: Table, seeds: int, load: float) -> dict[str, Any]:
    """One cell of the matrix."""
    stream = getattr(predictor, "stream", None)
    used = predictor if stream is None else stream()
    said = used.predict(list(rows["prompt"]), prompt_tokens=rows["prompt_tokens"].to_numpy())
    length = rows["output_tokens"].to_numpy(float)
    return {
        "tau": tau_interval(said, length), "coverage": coverage(said, length),
        "width": float(np.median(np.divide(*said.interval(0.9)[::-1]))),
        **latency_ratios(rows, predictor, seeds, load),
    }  # fmt: skip


def main() -> None:
    """Prints the matrix and writes it to --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="ridge")
    parser.add_argument("--target", default="exact")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--load", type=float, default=1.0)
    parser.add_argument("--rows", type=int, default=500, help="of each source to test on")
    parser.add_argument("--out", type=Path, default=Path("transfer.json"))
    given = parser.parse_args()
    data = sources(given.folder)
    tests = {name: half(rows, 1) for name, rows in data.items()}
    tests = {n: t.sample(min(len(t), given.rows), random_state=0) for n, t in tests.items()}
    cells = []
    for name, rows in data.items():
        train = half(rows, 0)
        fitted: Any = make_predictor(given.model, target=given.target)
        fitted.fit(list(train["prompt"]), train["output_tokens"].to_numpy())
        blind: Any = load_predictor(fitted)
        for other, test in tests.items():
            after = judged(fitted, test, given.seeds, given.load)
            kept, blind.novelty_ = blind.novelty_, None
            before = judged(blind, test, given.seeds, given.load)
            blind.novelty_ = kept
            cells.append({"train": name, "test": other, "before": before, "after": after})
            print(
                f"{name:24} {other:24} tau {before['tau'][0]:+.2f} {after['tau'][0]:+.2f}"
                f"  mean {before['mean']:.3f} {after['mean']:.3f}"
                f"  p99 {before['p99']:.2f} {after['p99']:.2f}"
                f"  coverage {before['coverage']:.2f} {after['coverage']:.2f}"
                f"  abstained {after['abstained']:.2f}",
                flush=True,
            )
    settings = {k: str(v) for k, v in vars(given).items()}
    sizes = {name: len(rows) for name, rows in tests.items()}
    given.out.write_text(json.dumps({"settings": settings, "tested": sizes, "cells": cells}))
    for when in ("before", "after"):
        out = [c for c in cells if c["train"] != c["test"]]
        own = [c[when]["coverage"] for c in cells if c["train"] == c["test"]]
        print(
            f"{when}: worst mean {max(c[when]['mean'] for c in out):.3f}, above 1.02: "
            f"{sum(c[when]['mean'] > 1.02 for c in out)} of {len(out)}; coverage in source "
            f"{min(own):.2f} to {max(own):.2f}, out of it median "
            f"{np.median([c[when]['coverage'] for c in out]):.2f}"
        )


if __name__ == "__main__":
    main()
