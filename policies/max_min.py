"""Max-min: the largest requests to the least loaded replica, which the small ones leave alone.

Maheswaran et al., JPDC 1999, section 3, in immediate mode: no batch of requests is there to take
the largest from, so a size says which are large. A baseline of Intelligent Router (Jain et al.
2024).
"""

from typing import Annotated, Any

import numpy as np

from lengthwise.policy import Between, RoutingPolicy, Score


def max_min(
    outstanding_tokens: Any,
    free_seats: Any,
    waiting_requests: Any,
    predicted_tokens: Any,
    *,
    large_tokens: Annotated[float, Between(0, 1e9)] = 512.0,
) -> Any:
    """Large requests: the fewest tokens outstanding. Others: the most, where a seat is free.

    Large are predictions of ``large_tokens`` or more. A small request that finds no free seat
    anywhere goes to the least loaded replica as well.
    """
    packed = (predicted_tokens < large_tokens) & (free_seats > waiting_requests)
    return np.where(packed, -outstanding_tokens - 1.0, outstanding_tokens)


MAX_MIN = RoutingPolicy(Score.from_function(max_min, "max-min"))
