"""Weighted round robin: each replica in turn, as often as it is fast.

Katevenis, Sidiropoulos and Courcoubetis, IEEE JSAC 1991; the request goes where its turn, counted
in requests over speed, ends first.
"""

from typing import Any

import numpy as np

from lengthwise.policy import RoutingPolicy, Score


def weighted_round_robin(routed_requests: Any, decode_tokens_per_s: Any) -> Any:
    """The fewest requests sent for the replica's nominal speed, this one counted."""
    return (routed_requests + 1) / np.maximum(decode_tokens_per_s, 1.0)


WEIGHTED_ROUND_ROBIN = RoutingPolicy(
    Score.from_function(weighted_round_robin, "weighted-round-robin")
)
