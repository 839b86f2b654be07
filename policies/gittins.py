"""The Gittins index of what a prediction says is left: least work for a chance to finish, over it.

Gittins, "Bandit Processes and Dynamic Allocation Indices", JRSS B 1979; that it is optimal for the
mean in an M/G/1 queue is in Aalto, Ayesta and Righter, "On the Gittins index in the M/G/1 queue",
Queueing Systems 2009. Of known lengths it is SRPT, of exponential ones first come, first served.
SageSched (arXiv 2026) orders an LLM engine's queue by it. The price on preemption is ours, as for
``srtf``; nobody is protected, for whoever has outlived its prediction may have far to go.
"""

from typing import Any

from lengthwise.policy import Preemption, SchedulingPolicy, Score


def gittins(gittins_index: Any) -> Any:
    """Least Gittins index first."""
    return gittins_index


GITTINS = SchedulingPolicy(
    Score.from_function(gittins), Preemption(mode="recompute", protect_after=1e9)
)
