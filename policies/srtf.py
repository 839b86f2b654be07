"""Shortest remaining time first, preemptive, with a price on preemption.

What remains is what a prediction says of it now: the expectation of what is still to come, given
that the answer has outlived what was generated; of one predicted length, that length less what was
generated, at least 1. TRAIL: Shahout et al., "Don't Stop Me Now: Embedding Based Scheduling for
LLMs", ICLR 2025, section 4 (its limit c on preemption is ``Preemption.protect_after``). The price
is ours: what a preemption recomputes against the waiting it saves (see
``lengthwise.policy.Preemption``).
"""

from typing import Any

from lengthwise.policy import Preemption, SchedulingPolicy, Score


def srtf(expected_remaining_tokens: Any) -> Any:
    """Fewest tokens expected to come first."""
    return expected_remaining_tokens


SRTF = SchedulingPolicy(Score.from_function(srtf), Preemption(mode="recompute"))
# The same order where lengths are distributions. Expectations differ less than lengths do, so that
# an exchange saves less for what it costs: at 0.03 it paid or did no harm where 0.01 did
# (docs/predictors.md). And whoever has outlived its prediction may have far to go: it is not
# protected.
SRTF_REFRESHED = SchedulingPolicy(
    Score.from_function(srtf, "srtf_refreshed"),
    Preemption(mode="recompute", price=0.03, protect_after=1e9),
)
