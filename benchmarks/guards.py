"""What keeps the tail near FCFS's, and what of the gain is left: guards, ageing, and counting work.

    python -m benchmarks.guards TRACE [--first N] [--windows W] [--rates 16,22] [--predictor SPEC]

Windows of 3,000 requests of a trace at each rate, on one simulated H200 with 64 seats. Mean and
P99 latency in FCFS's, geometric over windows with paired 95% intervals, and the share of what
``srtf`` gains in the mean.
"""

from __future__ import annotations

import argparse

import numpy as np

import lengthwise as lw
from lengthwise.eval.statistics import Interval, paired_ratio
from lengthwise.predictors.predict import predict

SPECS = (
    "fcfs", "srtf", "srtf+guard:ratio=1.5", "srtf+guard:ratio=1.25", "srtf+guard:ratio=1",
    "ageing:tokens_per_s=10", "ageing:tokens_per_s=40", "ageing:tokens_per_s=10+guard:ratio=1.25",
    "hrrn:floor_tokens=100", "work:b=0.3", "work:b=0.3+guard:ratio=1.5",
    "work:b=0.3+guard:ratio=1.25", "work+guard:ratio=1.25",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace")
    parser.add_argument("--first", type=int, default=0, help="requests that are passed over")
    parser.add_argument("--windows", type=int, default=1)
    parser.add_argument("--rates", default="16,22")
    parser.add_argument("--predictor", default="noisy-oracle:tau=0.45")
    given = parser.parse_args()
    trace, engine = lw.Workload.read(given.trace), lw.Engine(max_num_seqs=64)
    starts = [given.first + 3000 * k for k in range(given.windows)]
    for rate in map(float, given.rates.split(",")):
        windows = [trace.window(at, at + 3000).at_rate(rate) for at in starts]
        predicted = [predict(given.predictor, w, seed) for seed, w in enumerate(windows)]
        found = {}
        for spec in SPECS:
            ends = []
            for seed, (workload, lengths) in enumerate(zip(windows, predicted, strict=True)):
                summary = lw.simulate(
                    workload, policy=spec, predicted_tokens=None if spec == "fcfs" else lengths,
                    engine=engine, seed=seed,
                ).summary()  # fmt: skip
                ends.append((summary["e2e_mean_s"], summary["e2e_p99_s"]))
            found[spec] = np.array(ends)
        told(rate, found)


def told(rate: float, found: dict[str, np.ndarray]) -> None:
    print(f"\n**{rate:g} requests/s**\n\n| policy | mean × fcfs | P99 × fcfs | of srtf's gain |")
    print("|---|---:|---:|---:|")
    ratios = {
        spec: [paired_ratio(ends[:, k], found["fcfs"][:, k]) for k in (0, 1)]
        for spec, ends in found.items()
    }
    gain = 1 - ratios["srtf"][0].mean
    for spec, (mean, p99) in ratios.items():
        print(f"| {spec} | {said(mean)} | {said(p99)} | {(1 - mean.mean) / gain:.2f} |")


def said(ratio: Interval) -> str:
    spread = "" if np.isnan(ratio.low) else f" ({ratio.low:.2f} to {ratio.high:.2f})"
    return f"{ratio.mean:.2f}{spread}"


if __name__ == "__main__":
    main()
