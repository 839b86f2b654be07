"""What a prediction costs on one core: ridge, boosting and the base, a prompt at a time and by 32.

    OMP_NUM_THREADS=1 python -m benchmarks.predictor_latency DATA/prompts [--models ridge,gbdt,base]

Prompts are those of the sources that the base learned from, drawn evenly; half of them train ridge
and boosting. Each is asked as plugins ask (``stream``), timed by itself in this process's CPU time,
which other processes on the machine disturb less than the clock; printed are the least and the
median, ms a prompt. ``short`` are prompts below 400 characters.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lengthwise.predictors import load_predictor, make_predictor
from lengthwise.training.base import read

ROWS, SHORT, BATCH = 2000, 400, 32


def spent(ask: Callable[[list[str]], Any], prompts: list[str], batch: int) -> str:
    """Least and median CPU time, ms a prompt, after ten warm-up calls."""
    found = []
    for at in range(0, len(prompts) - batch + 1, batch):
        begun = time.process_time_ns()
        ask(prompts[at : at + batch])
        found.append((time.process_time_ns() - begun) / 1e6 / batch)
    kept = found[10:] or found[1:]
    return f"{min(kept):.3f} | {np.median(kept):.3f}"


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.predictor_latency")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", default="ridge,gbdt,base")
    parser.add_argument("--prompts", type=int, default=600)
    given = parser.parse_args()
    try:
        import torch

        torch.set_num_threads(1)
    except ImportError:
        pass  # ridge and boosting need none
    rows = read(given.folder)
    rows = rows.groupby("source").sample(frac=1, random_state=0).groupby("source").head(ROWS // 8)
    rows = rows.sample(frac=1, random_state=0)
    train, asked = rows[: len(rows) // 2], list(rows["prompt"][len(rows) // 2 :])[: given.prompts]
    short = [prompt for prompt in asked if len(prompt) < SHORT]
    print("| predictor | prompts | batch | least, ms a prompt | median |\n|---|---|---:|---:|---:|")
    for name in given.models.split(","):
        made: Any = load_predictor("base") if name == "base" else make_predictor(name)
        if name != "base":
            made.fit(list(train["prompt"]), train["tokens"].to_numpy())
        for label, prompts in (("short", short), ("all", asked)):
            for batch in (1, BATCH):
                cost = spent(made.stream().predict, prompts, batch)
                print(f"| `{name}` | {label}, {np.median([*map(len, prompts)]):.0f} characters | "
                      f"{batch} | {cost} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
