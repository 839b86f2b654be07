"""Join the shortest queue, ties by the tokens that are owed there (Winston 1977, and a tie-break).

Plain ``jsq`` gives ties to the lowest index, and a light load has many.
"""

from typing import Annotated, Any

from lengthwise.policy import Between, RoutingPolicy, Score


def jsq_tokens(
    running_requests: Any,
    waiting_requests: Any,
    outstanding_tokens: Any,
    *,
    scale: Annotated[float, Between(1, 1e9)] = 1000.0,
) -> Any:
    """The fewest requests in the replica; among equals the fewest tokens outstanding.

    ``scale`` (tokens) sets where the tie-break is finest; it never outweighs a request.
    """
    return running_requests + waiting_requests + outstanding_tokens / (outstanding_tokens + scale)


JSQ_TOKENS = RoutingPolicy(Score.from_function(jsq_tokens, "jsq-tokens"))
