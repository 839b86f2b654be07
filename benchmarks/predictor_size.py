"""What training on many rows costs: seconds, CPU seconds and peak memory, part by part.

    python -m benchmarks.predictor_size DATA/prompts --rows 100000 [--target quantile] [--answers]

Rows are distinct prompts, each of one to three sentences of public prompts, whose length is that of
the first sentence's answer times noise; ``--answers`` takes MMLU-Pro's answers instead, several to
a prompt. The last of them are left out: tau, and the pinball loss of the quantiles in log length.
"""

from __future__ import annotations

import argparse
import re
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lengthwise.eval.prediction_metrics import kendall_tau
from lengthwise.predictors import make_predictor
from lengthwise.training.base import answers

TESTED = 4000


def drawn(folder: Path, rows: int, seed: int = 0) -> tuple[list[str], Any]:
    """Distinct prompts made of sentences of public ones, and lengths."""
    rng = np.random.default_rng(seed)
    pieces, tokens = [], []
    for path in sorted(folder.glob("*_lengths.csv.gz")):
        name = path.name.removesuffix("_lengths.csv.gz")
        found = _answers(folder, name).drop_duplicates("prompt")
        for prompt, length in zip(found["prompt"], found["output_tokens"], strict=True):
            for sentence in re.split(r"(?<=[.?!])\s+", prompt)[:6]:
                pieces.append(sentence[:300])
                tokens.append(length)
    prompts: dict[str, float] = {}
    while len(prompts) < rows:
        at = rng.integers(0, len(pieces), rng.integers(1, 4))
        length = tokens[at[0]] * np.exp(rng.normal(0, 0.3))
        prompts[" ".join(pieces[k] for k in at)] = max(1.0, np.round(length))
    return list(prompts), np.array(list(prompts.values()))


def answered(folder: Path, rows: int) -> tuple[list[str], Any]:
    """MMLU-Pro's prompts and lengths."""
    found = _answers(folder, "mmlu_pro").head(rows)
    return list(found["prompt"]), found["output_tokens"].to_numpy(float)


def _answers(folder: Path, name: str) -> pd.DataFrame:
    return answers(folder, name).sample(frac=1, random_state=0)


def peak_mb() -> float:
    """Most resident memory so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Prints a line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.predictor_size")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--model", default="gbdt")
    parser.add_argument("--target", default="quantile")
    parser.add_argument("--answers", action="store_true")
    given = parser.parse_args()
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # whose memory does not count
        make = answered if given.answers else drawn
        prompts, length = pool.submit(make, given.folder, given.rows + TESTED).result()
    model = make_predictor(given.model, target=given.target)
    before, begun, spent = peak_mb(), time.perf_counter(), time.process_time()
    model.fit(prompts[:-TESTED], length[:-TESTED])
    took, cpu, peak = time.perf_counter() - begun, time.process_time() - spent, peak_mb()
    said, truth = model.predict(prompts[-TESTED:]), length[-TESTED:]
    told = f"tau {kendall_tau(said.order, truth):.4f}"
    if said.quantiles is not None and said.levels is not None:
        over = np.log(truth)[:, None] - np.log(said.quantiles)
        loss = np.maximum(said.levels * over, (said.levels - 1) * over).mean()
        told += f", pinball {loss:.4f}"
    print(
        f"{given.model} {given.target}, {len(prompts) - TESTED:,} rows: {took:.0f} s, "
        f"{cpu:.0f} CPU s, {peak:.0f} MB at most ({before:.0f} before), {told}"
    )


if __name__ == "__main__":
    main()
