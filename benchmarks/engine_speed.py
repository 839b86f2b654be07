"""The fast engine beside the reference, in one run.

    python -m benchmarks.engine_speed

Short answers near saturation, on one core; requests/s are medians of three runs.
"""

from __future__ import annotations

import statistics
import time

import numpy as np

import lengthwise as lw
from lengthwise.policies import load_policy, load_router
from lengthwise.serving import run

TIMING = lw.LinearTiming(
    base_s=6.5e-3, per_prefill_token_s=21e-6, per_sequence_s=40e-6, num_gpu_blocks=56_105
)
CASES = (
    ("fcfs", 1, "round-robin", 600.0),
    ("fcfs", 8, "jsq", 4800.0),
    ("srtf", 1, "round-robin", 600.0),
    ("mlfq", 1, "round-robin", 600.0),
)


def workload(requests: int, rate: float) -> lw.Workload:
    """Poisson arrivals, prompts of 16 to 63 tokens, geometric answers of 24 tokens on average."""
    rng = np.random.default_rng(0)
    return lw.Workload(
        {
            "arrival_s": np.cumsum(rng.exponential(1 / rate, requests)),
            "prompt_tokens": rng.integers(16, 64, requests),
            "output_tokens": np.minimum(rng.geometric(1 / 24, requests), 400),
        }
    )


def speed(requests: lw.Workload, policy: str, backend: str, replicas: int, router: str) -> float:
    """Requests/s, the median of three runs."""
    rates = []
    for _ in range(3):
        begin = time.perf_counter()
        run(
            requests,
            policy=load_policy(policy),
            routing=load_router(router),
            engine=lw.Engine(),
            timing=TIMING,
            predicted_tokens=requests["output_tokens"].astype(float),
            replicas=replicas,
            backend=backend,  # type: ignore[arg-type]
        )
        rates.append(len(requests) / (time.perf_counter() - begin))
    return statistics.median(rates)


def main() -> None:
    """Prints the table in Markdown."""
    print("| policy | replicas, router | reference, requests/s | fast, requests/s | ratio |")
    print("|---|---|---:|---:|---:|")
    for policy, replicas, router, rate in CASES:
        few, many = workload(4_000, rate), workload(300_000, rate)
        speed(few, policy, "fast", replicas, router)  # compiles
        slow = speed(few, policy, "reference", replicas, router)
        fast = speed(many, policy, "fast", replicas, router)
        print(
            f"| {policy} | {replicas}, {router} | {slow:,.0f} | {fast:,.0f} | {fast / slow:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
