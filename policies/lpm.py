"""Longest prefix match: what the cache holds most of goes first, before it is evicted.

SGLang: Zheng et al., "SGLang: Efficient Execution of Structured Language Model Programs", NeurIPS
2024, section 3 (theorem 3.1: a depth-first order of the radix tree has the best hit rate, and this
order is one for a batch of requests). Its engine falls back on first come, first served where more
than 128 requests wait, for matching them all takes too long; here too.
"""

from typing import Annotated, Any

import numpy as np

from lengthwise.policy import Between, SchedulingPolicy, Score


def lpm(
    cached_tokens: Any,
    waiting_requests: Any,
    *,
    most_waiting: Annotated[int, Between(0, 2**31 - 1)] = 128,
) -> Any:
    """Most cached tokens first; in order of arrival where more than ``most_waiting`` wait."""
    return np.where(waiting_requests > most_waiting, 0, -cached_tokens)


LPM = SchedulingPolicy(Score.from_function(lpm))
