"""Shortest expected remaining time first: what is still to come is expected anew with every token.

TRAIL: Shahout et al., "Don't Stop Me Now: Embedding Based Scheduling for LLMs", ICLR 2025, refines
its predictions while decoding. Here the refinement is a distribution's: its expectation, given that
the answer has outlived what was generated.
"""

from typing import Any

from lengthwise.policy import Preemption, SchedulingPolicy, Score


def srtf_refreshed(expected_remaining_tokens: Any) -> Any:
    """Fewest tokens expected to come first."""
    return expected_remaining_tokens


# Whoever has outlived its prediction may have far to go: it is not protected.
NEVER = 1e9
SRTF_REFRESHED = SchedulingPolicy(
    Score.from_function(srtf_refreshed), Preemption(mode="recompute", protect_after=NEVER)
)
