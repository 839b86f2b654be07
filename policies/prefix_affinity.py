"""Where the prompt's prefix is cached, up to a break-even against load.

The trade of SGLang's cache-aware load balancer (SGLang 0.4, 2024), which switches from cache to
balance at a threshold; here the two are weighed. A session's next turn begins with its last, so
this is session affinity as well.
"""

from typing import Annotated, Any

from lengthwise.policy import Between, RoutingPolicy, Score


def prefix_affinity(
    cached_tokens: Any,
    running_requests: Any,
    waiting_requests: Any,
    *,
    break_even: Annotated[float, Between(1, 1e9)] = 256.0,
) -> Any:
    """The fewest requests, each weighed against ``break_even`` cached tokens of the prompt."""
    return (running_requests + waiting_requests) - cached_tokens / break_even


PREFIX_AFFINITY = RoutingPolicy(Score.from_function(prefix_affinity, "prefix-affinity"))
