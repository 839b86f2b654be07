"""How much of MiniLM the base needs: layers and tokens of a prompt, against tau and latency.

    OMP_NUM_THREADS=1 python benchmarks/base_variants.py DATA/prompts [--most 1500] [--jobs N]

For each variant the base's score is trained on all sources but one (both GSM8K files count as one)
and orders the prompts of that one: Kendall's tau with the lengths there, averaged over sources,
with no rows of the source. Latency is that of tokenizer and encoder, CPU time of this process at
one thread, ms a prompt, the median over prompts one at a time and in batches of 32. ``int8`` are
dynamically quantised linear layers, a prompt at a time, so that its numbers do not depend on its
company.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from predictor_base import SAME

from lengthwise.eval.prediction_metrics import kendall_tau
from lengthwise.predictors.base import Pretrained
from lengthwise.predictors.encoder import pretrained
from lengthwise.training.base import read, train

LAYERS = 6  # MiniLM has
VARIANTS = [(5, 128, ""), (5, 128, "int8"), (4, 128, ""), (3, 128, ""), (3, 64, ""), (2, 64, ""),
            (3, 64, "int8")]  # fmt: skip
Variant = tuple[int, int, str]


def encoder(variant: Variant) -> Any:
    """MiniLM with so many layers, shown so many tokens."""
    layers, tokens, kind = variant
    made = pretrained("minilm", max_tokens=tokens, drop_layers=LAYERS - layers)
    made.backbone.eval()
    if kind == "int8":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            made.backbone = torch.ao.quantization.quantize_dynamic(
                made.backbone, {torch.nn.Linear}, dtype=torch.qint8
            )
    return made


def embed(made: Any, prompts: Sequence[str], kind: str) -> Any:
    """Embeddings (n, width)."""
    ids = made.tokens(prompts)
    parts = [ids] if kind != "int8" else [[one] for one in ids]
    return np.concatenate([made.embedded(part).numpy() for part in parts]).astype(np.float64)


def part_of(job: tuple[Variant, list[str]]) -> Any:
    """The embeddings of some of the prompts."""
    torch.set_num_threads(1)
    return embed(encoder(job[0]), job[1], job[0][2])


def taus(rows: Any, embedding: Any) -> dict[str, float]:
    """By source, tau of a base that was trained on the others."""
    found = {}
    for name in dict.fromkeys(rows["source"]):
        own = (rows["source"] == name).to_numpy()
        others = ~own & (rows["source"] != SAME.get(name)).to_numpy()
        state, arrays = train(rows[others].reset_index(drop=True), embedding[others])
        score = Pretrained.restored(state, arrays)(list(rows["prompt"][own]), embedding[own])
        found[name] = kendall_tau(score, rows["label"][own].to_numpy())
    return found


def latency(variant: Variant, prompts: list[str], batch: int) -> float:
    """Median CPU time, ms a prompt."""
    made, spent = encoder(variant), []
    for at in range(0, len(prompts) - batch + 1, batch):
        begun = time.process_time_ns()
        embed(made, prompts[at : at + batch], variant[2])
        spent.append((time.process_time_ns() - begun) / 1e6 / batch)
    return float(np.median(spent[1:]))


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(prog="python benchmarks/base_variants.py")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--most", type=int, default=1500, help="prompts of a source")
    parser.add_argument("--timed", type=int, default=256, help="prompts")
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = read(given.folder).groupby("source").head(given.most).reset_index(drop=True)
    prompts = list(rows["prompt"])
    drawn = rows.sample(given.timed, random_state=0)["prompt"].tolist()
    print("| layers | tokens | | tau, mean over sources | least | batch 1, ms | batch 32, ms |")
    print("|---:|---:|---|---:|---:|---:|---:|")
    for variant in VARIANTS:
        parts = [(variant, prompts[at :: 4 * given.jobs]) for at in range(4 * given.jobs)]
        embedding = np.empty((len(prompts), 384))
        with ProcessPoolExecutor(given.jobs, get_context("spawn")) as pool:
            for at, part in enumerate(pool.map(part_of, parts)):
                embedding[at :: 4 * given.jobs] = part
        found = taus(rows, embedding)
        one, many = latency(variant, drawn[:64], 1), latency(variant, drawn, 32)
        worst = min(found, key=lambda name: found[name])
        print(f"| {variant[0]} | {variant[1]} | {variant[2]} | {np.mean([*found.values()]):.3f} | "
              f"{found[worst]:.2f} ({worst}) | {one:.1f} | {many:.1f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
