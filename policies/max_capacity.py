"""Maximum capacity: the replica with the most room left for keys and values.

A baseline of Intelligent Router (Jain et al. 2024).
"""

from typing import Any

from lengthwise.policy import RoutingPolicy, Score


def max_capacity(kv_utilization: Any, waiting_requests: Any) -> Any:
    """The largest free share of the KV cache; where requests wait there is none."""
    return kv_utilization + waiting_requests


MAX_CAPACITY = RoutingPolicy(Score.from_function(max_capacity, "max-capacity"))
