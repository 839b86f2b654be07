"""FastServe as it was published: skip-join feedback queues without a price, and its promotion.

Wu et al., "Fast Distributed Inference Serving for Large Language Models", NSDI 2026 (arXiv
2305.05920), section 4 (skip-join, and a request that has starved goes to the first queue).
It moves the victim's keys and values to host memory: ``fastserve+preempt:mode=swap`` where the
engine can. ``mlfq`` is the same order with our price on preemption. Theirs promotes who has waited
so long since it last ran, here it is since the arrival.
"""

from typing import Annotated, Any

import numpy as np

from lengthwise.policy import Between, Preemption, SchedulingPolicy, Score


def fastserve(
    generated_tokens: Any,
    prompt_tokens: Any,
    now_s: Any,
    arrival_s: Any,
    *,
    quantum: Annotated[int, Between(1, 2**20)] = 32,
    levels: Annotated[int, Between(1, 32)] = 8,
    prefill_ratio: Annotated[int, Between(1, 2**20)] = 64,
    starved_s: Annotated[float, Between(0, 1e6)] = 60.0,
) -> Any:
    """The service at which the request's level began, in tokens; 0, the first level, for whoever
    has waited ``starved_s`` and generated less than a quantum.
    """
    served = generated_tokens + prompt_tokens // prefill_ratio
    start = 0 * served
    for level in range(1, levels):
        bound = quantum * (2**level - 1)
        start = start + (served >= bound) * (quantum * 2 ** (level - 1))
    starved = (now_s - arrival_s > starved_s) * (generated_tokens < quantum)
    return np.where(starved, 0, start)


FASTSERVE = SchedulingPolicy(
    Score.from_function(fastserve),
    Preemption(mode="recompute", price=0.0, protect_after=1e9, max_per_step=1024),
)
