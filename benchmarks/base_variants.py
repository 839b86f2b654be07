"""How much of MiniLM the base needs: layers and tokens of a prompt, against tau and latency.

    OMP_NUM_THREADS=1 python benchmarks/base_variants.py DATA/prompts [--most 1500] [--jobs N]

For each variant the base's score is trained on all sources but one (both GSM8K files count as one)
and orders the prompts of that one: Kendall's tau with the lengths there, averaged over sources,
with no rows of the source. ``whole`` is tau on the half of each source's prompts that the base does
not train on (by a hash) when it trains on the other halves of all. Latency is that of tokenizer and
encoder, CPU time of this process at one thread, ms a prompt, the median over prompts one at a time
and in batches of 32; variants take turns, so that a busy machine slows all alike. ``int8`` are
dynamically quantised linear layers, ``bf16`` all weights, each a prompt at a time, so that its
numbers do not depend on its company.
"""

from __future__ import annotations

import argparse
import time
import warnings
import zlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from predictor_transfer import SAME

from lengthwise.eval.prediction_metrics import kendall_tau
from lengthwise.predictors.base import Pretrained
from lengthwise.predictors.encoder import pretrained
from lengthwise.training.base import read, train

LAYERS = 6  # MiniLM has
VARIANTS = [
    (5, 128, ""), (5, 128, "bf16"), (5, 128, "int8"), (5, 64, ""), (4, 64, ""), (3, 128, ""),
    (3, 64, ""), (3, 64, "bf16"), (3, 64, "int8"), (2, 64, ""), (1, 64, ""),
]  # fmt: skip
Variant = tuple[int, int, str]


def encoder(variant: Variant) -> Any:
    """MiniLM with so many layers, shown so many tokens."""
    layers, tokens, kind = variant
    made = pretrained("minilm", max_tokens=tokens, drop_layers=LAYERS - layers)
    made.backbone.eval()
    if kind == "bf16":
        made.backbone.bfloat16()
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
    parts = [[one] for one in ids] if kind else [ids]
    return np.concatenate([made.embedded(part).numpy() for part in parts]).astype(np.float64)


def part_of(job: tuple[Variant, list[str]]) -> Any:
    """The embeddings of some of the prompts."""
    torch.set_num_threads(1)
    return embed(encoder(job[0]), job[1], job[0][2])


def tau_of(job: tuple[Any, Any, str]) -> float:
    """Tau on a source of a base that was trained on the others, or on halves of all."""
    rows, embedding, name = job
    own = (rows["source"] == name).to_numpy()
    if name:
        seen = ~own & (rows["source"] != SAME.get(name)).to_numpy()
    else:
        seen = np.array([zlib.crc32(prompt.encode()) % 2 == 0 for prompt in rows["prompt"]])
    state, arrays = train(rows[seen].reset_index(drop=True), embedding[seen])
    fitted = Pretrained.restored(state, arrays)

    def tau(asked: Any) -> float:
        score = fitted(list(rows["prompt"][asked]), embedding[asked])
        return kendall_tau(score, rows["label"][asked].to_numpy())

    if name:
        return tau(own)
    names = rows["source"].unique()
    return float(np.mean([tau(~seen & (rows["source"] == each).to_numpy()) for each in names]))


def latency(variants: Sequence[Variant], prompts: list[str], batch: int) -> list[float]:
    """Median CPU time of each variant, ms a prompt, in turns."""
    made = [encoder(variant) for variant in variants]
    spent: list[list[float]] = [[] for _ in made]
    for at in range(0, len(prompts) - batch + 1, batch):
        for one, variant, times in zip(made, variants, spent, strict=True):
            begun = time.process_time_ns()
            embed(one, prompts[at : at + batch], variant[2])
            times.append((time.process_time_ns() - begun) / 1e6 / batch)
    return [float(np.median(times[1:])) for times in spent]


def main() -> None:
    """Prints two tables in Markdown."""
    parser = argparse.ArgumentParser(prog="python benchmarks/base_variants.py")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--most", type=int, default=1500, help="prompts of a source")
    parser.add_argument("--timed", type=int, default=256, help="prompts")
    parser.add_argument("--variants", help="5:128:int8,... ; all by default")
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    variants: list[Variant] = VARIANTS
    if given.variants:
        cut = [one.split(":") for one in given.variants.split(",")]
        variants = [(int(layers), int(tokens), kind) for layers, tokens, kind in cut]
    rows = read(given.folder).groupby("source").head(given.most).reset_index(drop=True)
    prompts = list(rows["prompt"])
    drawn = rows.sample(given.timed, random_state=0)["prompt"].tolist()
    one, many = latency(variants, drawn[:64], 1), latency(variants, drawn, 32)
    print("| layers | tokens | | batch 1, ms | batch 32, ms a prompt |\n|---:|---:|---|---:|---:|")
    for variant, alone, together in zip(variants, one, many, strict=True):
        print(f"| {_told(variant)} | {alone:.2f} | {together:.2f} |", flush=True)
    names = list(rows["source"].unique())
    print("\n| layers | tokens | | tau, mean over sources left out | least | whole |")
    print("|---:|---:|---|---:|---:|---:|")
    with ProcessPoolExecutor(given.jobs, get_context("spawn")) as pool:
        for variant in variants:
            count = 4 * given.jobs
            embedding = np.empty((len(prompts), 384))
            jobs = [(variant, prompts[at::count]) for at in range(count)]
            for at, part in enumerate(pool.map(part_of, jobs)):
                embedding[at::count] = part
            *found, whole = pool.map(tau_of, [(rows, embedding, name) for name in [*names, ""]])
            worst = int(np.argmin(found))
            print(f"| {_told(variant)} | {np.mean(found):.3f} | "
                  f"{found[worst]:.2f} ({names[worst]}) | {whole:.3f} |", flush=True)  # fmt: skip


def _told(variant: Variant) -> str:
    return " | ".join(map(str, variant))


if __name__ == "__main__":
    main()
