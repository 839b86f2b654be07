"""Least load for the seats there are, with a penalty on a KV cache that runs full.

The signals and the threshold are those of the Kubernetes Gateway API Inference Extension's endpoint
picker (queue depth, KV utilisation, saturated at 0.8), in one score.
"""

from typing import Annotated, Any

import numpy as np

from lengthwise.policy import Between, RoutingPolicy, Score


def least_load(
    running_requests: Any,
    waiting_requests: Any,
    max_seats: Any,
    kv_utilization: Any,
    *,
    penalty: Annotated[float, Between(0, 1e6)] = 5.0,
    threshold: Annotated[float, Between(0, 1)] = 0.8,
) -> Any:
    """The fewest requests for each seat, and ``penalty`` for KV use above ``threshold``."""
    over = np.maximum(kv_utilization - threshold, 0.0)
    return (running_requests + waiting_requests) / np.maximum(max_seats, 1) + penalty * over


LEAST_LOAD = RoutingPolicy(Score.from_function(least_load, "least-load"))
