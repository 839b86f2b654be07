"""What the routers' checks send to fake replicas; needs nothing but Python."""

from __future__ import annotations

import random

TOKEN_S = 0.004
SLOWNESS = (1, 1, 4)  # of the three replicas


def workload(seed: int, count: int, rate: float) -> list[tuple[float, int]]:
    """(arrival in s, output tokens): Poisson arrivals, lengths of a wide distribution, mean 20."""
    rng = random.Random(seed)
    at_s, jobs = 0.0, []
    for _ in range(count):
        at_s += rng.expovariate(rate)
        jobs.append((at_s, min(200, max(1, round(rng.lognormvariate(2.5, 1.0))))))
    return jobs
