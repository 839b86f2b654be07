"""Join the shortest expected wait: queues of unequal servers compared in seconds.

Banawan and Zeidat, "A comparative study of load sharing in heterogeneous multicomputer systems",
ANSS 1992, section 2 (shortest expected delay); here the work ahead is prefill and decoding, and a
replica serves as many requests at once as it has seats.
"""

from typing import Annotated, Any

import numpy as np

from lengthwise.policy import Between, RoutingPolicy, Score


def jsew(
    prefill_backlog_tokens: Any,
    decode_backlog_tokens: Any,
    running_requests: Any,
    waiting_requests: Any,
    max_seats: Any,
    decode_tokens_per_s: Any,
    *,
    b: Annotated[float, Between(0, 100)] = 0.08,
    crowding: Annotated[float, Between(0, 10)] = 0.2,
) -> Any:
    """The shortest expected wait for a seat and for the prompts ahead, in seconds.

    A request that finds all seats taken waits for those ahead of it to end: their share of the
    tokens that are to be decoded, at the replica's nominal speed. Prompt tokens ahead count ``b``
    each. ``crowding`` is the share of the work in the replica that delays a request that has a
    seat: iterations of a fuller batch last longer.
    """
    speed = np.maximum(decode_tokens_per_s, 1.0)
    decode_s = decode_backlog_tokens / speed
    here = running_requests + waiting_requests
    ahead = np.maximum(here + 1 - max_seats, 0) / np.maximum(here, 1)
    return b * prefill_backlog_tokens / speed + decode_s * (ahead + crowding)


JSEW = RoutingPolicy(Score.from_function(jsew))
