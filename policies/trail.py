"""TRAIL as it was published: shortest predicted remaining time with limited preemption.

Shahout et al., "Don't Stop Me Now: Embedding Based Scheduling for LLMs", ICLR 2025, section 4
(SPRPT): a request may be preempted while it has generated less than a share c = 0.8 of what was
predicted at first, and whatever is longer gives way, without a price. ``srtf`` has the price.
"""

from lengthwise.policies.srtf import srtf
from lengthwise.policy import Preemption, SchedulingPolicy, Score

TRAIL = SchedulingPolicy(
    Score.from_function(srtf, "trail"),
    Preemption(mode="recompute", price=0.0, protect_after=0.8, max_per_step=1024),
)
