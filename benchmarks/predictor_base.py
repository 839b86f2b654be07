"""The base on each source that it was trained without, with 0 to 1000 rows of that source.

``python benchmarks/predictor_base.py DATA/prompts --cache embeddings.npz``

Prints Kendall's tau on the source's unseen half, a ridge on the same rows beside it, and, with no
rows, SJF's mean and P99 latency over FCFS's and the coverage of 90% intervals. Abstention of fitted
predictors is off, so that the two are compared on all prompts.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from predictor_transfer import coverage, half, latency_ratios, sources

from lengthwise.eval.prediction_metrics import kendall_tau
from lengthwise.predictors import folder, load_predictor, make_predictor
from lengthwise.training.base import SOURCES, embedded, read, train

SAME = {"gsm8k_example_solutions": "zeroeval_gsm", "zeroeval_gsm": "gsm8k_example_solutions"}


def main() -> None:
    """One line a source."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--rows", type=int, default=400, help="of each source to test on")
    given = parser.parse_args()
    for name, rows in sources(given.folder).items():
        others = read(given.folder, name if name in SOURCES else None)
        others = others[others["source"] != SAME.get(name)].reset_index(drop=True)
        state, arrays = train(others, embedded(list(others["prompt"]), given.cache))
        own, test = half(rows, 0), half(rows, 1)
        test = test.sample(min(len(test), given.rows), random_state=0)
        length = test["output_tokens"].to_numpy(float)
        with tempfile.TemporaryDirectory() as made:
            folder.write(folder.Saved("base", {"target": "exact"}, state, arrays), f"{made}/base")
            base: Any = load_predictor(f"{made}/base")
            said = base.predict(list(test["prompt"]))
            found = {"0 rows": kendall_tau(said.order, length), "coverage": coverage(said, length)}
            found |= latency_ratios(test, base, 3, 1.0)
            for n in (30, 100, 1000):
                if n <= 1.2 * len(own):
                    for kind in ("base", "ridge"):
                        taus = []
                        for seed in range(3):
                            drawn = own.sample(min(n, len(own)), random_state=seed)
                            fitted: Any = (
                                load_predictor(f"{made}/base")
                                if kind == "base"
                                else make_predictor("ridge")
                            )
                            fitted.fit(list(drawn["prompt"]), drawn["output_tokens"].to_numpy())
                            fitted.novelty_ = None
                            order = fitted.predict(list(test["prompt"])).order
                            taus.append(kendall_tau(order, length))
                        found[f"{n} rows, {kind}"] = float(np.mean(taus))
        print(
            f"{name:24}",
            {key: np.round(value, 3).tolist() for key, value in found.items()},
            flush=True,
        )


if __name__ == "__main__":
    main()
