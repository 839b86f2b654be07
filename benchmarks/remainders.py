"""What is predicted to be left of answers that have come so far, against what is.

    python -m benchmarks.remainders DATA [--model ridge]

``DATA`` holds ``prompts/`` (../shared/data beside the checkout). For each target a predictor is
trained on the train split of one model's answers; of the test split's answers that have outlived
0, 64, 256 and 1,024 tokens, printed are the mean predicted remainder, the mean true one, and how
many of a hundred end within ``remaining_tokens_p90``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from lengthwise.prediction import Predictions
from lengthwise.predictors import make_predictor
from lengthwise.predictors.targets import TARGETS
from lengthwise.serving.workload import Prompts, read_prompts

SOURCES = {
    "MMLU-Pro": ("mmlu_pro", "Qwen1.5-72B-Chat"),
    "AlpacaEval": ("alpaca_eval", "gpt-4o-mini-2024-07-18"),
    "MATH level 5": ("zeroeval_math_l5", "Qwen2.5-3B-Instruct"),
}
AT = (0, 64, 256, 1024)
FEWEST = 10  # answers that a mean is told of


def answers(data: str, source: str) -> Prompts:
    """The answers of one model in one of ``SOURCES``."""
    file, model = SOURCES[source]
    path = Path(data) / "prompts" / f"{file}_responses.jsonl.gz"
    return read_prompts(path, model=model, drop_zero=True)


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.remainders")
    parser.add_argument("data")
    parser.add_argument("--model", default="ridge")
    given = parser.parse_args()
    print("| source | target | " + " | ".join(f"after {at}" for at in AT) + " |")
    print("|---|---|" + "---|" * len(AT))
    for source in SOURCES:
        rows = answers(given.data, source)
        train, test = rows.split("train", 0.5), rows.split("test", 0.5)
        for target in TARGETS:
            made = make_predictor(given.model, target=target, seed=0)
            made.fit(list(train.prompt), train.output_tokens, prompt_tokens=train.prompt_tokens)
            said = made.predict(list(test.prompt), prompt_tokens=test.prompt_tokens)
            cells = [_cell(said.of_run(), test.output_tokens, at) for at in AT]
            print(f"| {source} | {target} | " + " | ".join(cells) + " |", flush=True)


def _cell(run: Predictions, tokens: ArrayLike, at: int) -> str:
    lengths = np.asarray(tokens, dtype=np.float64)
    live = np.flatnonzero(lengths > at)
    if len(live) < FEWEST:
        return "-"
    left, done = lengths[live] - at, np.full(len(live), at)
    expected = run.at("expected_remaining_tokens", live, done)
    within = left <= run.at("remaining_tokens_p90", live, done)
    return f"{expected.mean():.0f} of {left.mean():.0f}, {100 * within.mean():.0f}%"


if __name__ == "__main__":
    main()
