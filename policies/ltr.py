"""vLLM-LTR as it was published: preemptive shortest first, with its rule against starvation.

Fu et al., "Efficient LLM Scheduling by Learning to Rank", NeurIPS 2024, section 4: a request that
has starved for a threshold is promoted until it has had a quantum of service. Its scheduler sorts
by a static score, without a price on preemption. Theirs counts the steps that a request sat out
since it last ran, here it is seconds since the arrival: no feature tells when a request last ran.
"""

from typing import Annotated, Any

import numpy as np

from lengthwise.policy import Between, Preemption, SchedulingPolicy, Score

PROMOTED = 1e9  # tokens: more than any answer has


def ltr(
    predicted_tokens: Any,
    generated_tokens: Any,
    now_s: Any,
    arrival_s: Any,
    *,
    starved_s: Annotated[float, Between(0, 1e6)] = 20.0,
    quantum: Annotated[int, Between(1, 2**20)] = 32,
) -> Any:
    """Shortest predicted answer first; before all of them who has waited ``starved_s`` and has
    generated fewer than ``quantum`` tokens.
    """
    starved = (now_s - arrival_s > starved_s) * (generated_tokens < quantum)
    return predicted_tokens - np.where(starved, PROMOTED, 0.0)


LTR = SchedulingPolicy(
    Score.from_function(ltr),
    Preemption(mode="recompute", price=0.0, protect_after=1e9, max_per_step=1024),
)
