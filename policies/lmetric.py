"""New prefill tokens times batch size: cache and balance in one score, and nothing to tune.

Zhang et al., "LMetric: Simple is Better. Multiplication May Be All You Need for LLM Request
Scheduling", OSDI 2026 (arXiv 2603.15202).
"""

from typing import Any

from lengthwise.policy import RoutingPolicy, Score


def lmetric(
    prefill_backlog_tokens: Any,
    prompt_tokens: Any,
    cached_tokens: Any,
    running_requests: Any,
    waiting_requests: Any,
) -> Any:
    """The fewest new prefill tokens times requests in the replica.

    New are the prompt tokens that are queued there and those of this request that the replica's
    prefix cache does not hold. An empty replica scores 0: the request can't do better.
    """
    new_tokens = 1.0 * prefill_backlog_tokens + prompt_tokens - cached_tokens
    return new_tokens * (running_requests + waiting_requests)


LMETRIC = RoutingPolicy(Score.from_function(lmetric))
