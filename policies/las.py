"""Least attained service, also called foreground-background: no prediction needed.

Nuyens and Wierman, "The foreground-background queue: A survey", Performance Evaluation 2008: of all
orders that know no lengths, it is the best for the mean where the hazard rate falls, and the worst
where it rises. Autellix (Luo et al., "Autellix: An Efficient Serving Engine for LLM Agents as
General Programs", 2025, section 4.1) attains by program; here a request is on its own.
"""

from typing import Annotated, Any

from lengthwise.policy import Between, Preemption, SchedulingPolicy, Score


def las(
    generated_tokens: Any,
    computed_tokens: Any,
    *,
    computed: Annotated[float, Between(0, 100)] = 0.0,
) -> Any:
    """Fewest tokens generated first, and ``computed`` for each token in the cache."""
    return generated_tokens + computed * computed_tokens


LAS = SchedulingPolicy(Score.from_function(las), Preemption(mode="recompute"))
