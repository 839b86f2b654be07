"""Shortest remaining time first, preemptive, with a price on preemption.

TRAIL: Shahout et al., "Don't Stop Me Now: Embedding Based Scheduling for LLMs", ICLR 2025,
section 4 (its limit c on preemption is ``Preemption.protect_after``). The price is ours: what a
preemption recomputes against the waiting it saves (see ``lengthwise.policy.Preemption``).
"""

from typing import Any

from lengthwise.policy import Preemption, SchedulingPolicy, Score


def srtf(predicted_tokens: Any, generated_tokens: Any) -> Any:
    """Fewest predicted tokens still to come first."""
    return predicted_tokens - generated_tokens


SRTF = SchedulingPolicy(Score.from_function(srtf), Preemption(mode="recompute"))
