"""Weighted shortest job first: predicted length over the weight that the client's priority gives.

Smith, "Various optimizers for single-stage production", Naval Research Logistics Quarterly 1956:
on one machine this order has the least weighted sum of completion times.
"""

from typing import Annotated, Any

import numpy as np

from lengthwise.policy import Between, SchedulingPolicy, Score


def weighted_sjf(
    predicted_tokens: Any, priority: Any, *, step: Annotated[float, Between(0, 1000)] = 1.0
) -> Any:
    """Shortest predicted answer over its weight first.

    The weight is 1 at priority 0, ``1 / (1 + step p)`` at priority p > 0 (low values go first, as
    in vLLM) and ``1 + step |p|`` below 0.
    """
    weight = 1.0 + step * np.abs(priority)
    return np.where(priority >= 0, predicted_tokens * weight, predicted_tokens / weight)


WEIGHTED_SJF = SchedulingPolicy(Score.from_function(weighted_sjf, "weighted-sjf"))
