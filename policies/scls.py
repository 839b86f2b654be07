"""Slice-level scheduling: answers come in slices, and a request goes back in line after each.

SCLS: Cheng et al., "Slice-Level Scheduling for High Throughput and Load Balanced LLM Serving",
arXiv 2406.13511, section 4. As published, whoever is due for another slice computes its tokens
again. Its batches by memory and time are the engine's here, and continuous.
"""

from typing import Annotated, Any

from lengthwise.policy import Between, Preemption, SchedulingPolicy, Score


def scls(generated_tokens: Any, *, slice: Annotated[int, Between(1, 2**20)] = 128) -> Any:
    """Fewest slices done first, in tokens; ties by arrival."""
    return generated_tokens // slice * slice


SCLS = SchedulingPolicy(
    Score.from_function(scls),
    Preemption(mode="recompute", price=0.0, protect_after=1e9, max_per_step=1024),
)
