"""One seat at a time, where the best order is known: shortest processing time first."""

from __future__ import annotations

import numpy as np

from lengthwise.serving import Engine
from lengthwise.serving.timing import LinearTiming
from lengthwise.workload import Workload

SEAT = Engine(max_num_seqs=1, max_num_batched_tokens=4096, num_gpu_blocks=200)
SLOW_PREFILL = LinearTiming(base_s=0.01, per_prefill_token_s=0.005)


def burst(requests: int, seed: int = 0) -> Workload:
    """Sixty at a time, each at once: on one seat, prompt tokens take half as long as answers'."""
    rng = np.random.default_rng(seed)
    return Workload(
        {
            "arrival_s": np.repeat(np.arange(requests / 60) * 1e4, 60)[:requests],
            "prompt_tokens": rng.integers(1, 400, requests),
            "output_tokens": rng.integers(1, 200, requests),
        },
        name="burst",
    )
