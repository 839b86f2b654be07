"""Least requests: what a proxy counts itself, over what a replica is worth.

``least_conn`` of nginx and ``LEAST_REQUEST`` of Envoy, with weights: requests sent and not
answered, over the weight; the weight is the replica's nominal speed. It needs neither metrics nor
predictions, and its count is never old: where metrics are, ``jsq`` sends all that arrive between
two scrapes to one replica (Mitzenmacher, "How Useful Is Old Information?", IEEE TPDS 2000).
"""

from typing import Any

import numpy as np

from lengthwise.policy import RoutingPolicy, Score


def least_requests(outstanding_requests: Any, decode_tokens_per_s: Any) -> Any:
    """The fewest requests sent there and not finished, this one counted, for its speed."""
    return (outstanding_requests + 1) / np.maximum(decode_tokens_per_s, 1.0)


LEAST_REQUESTS = RoutingPolicy(Score.from_function(least_requests, "least-requests"))
