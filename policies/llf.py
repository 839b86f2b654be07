"""Least laxity first, also called least slack: whoever must start first in order not to be late.

Mok, "Fundamental Design Problems of Distributed Systems for the Hard-Real-Time Environment", MIT
1983. Slack is the time to the deadline less that of the work that is left; the time of day, which
all requests share, changes no order and is left out.
"""

from typing import Annotated, Any

from lengthwise.policy import Between, SchedulingPolicy, Score


def llf(
    deadline_s: Any,
    expected_remaining_tokens: Any,
    *,
    token_s: Annotated[float, Between(0, 100)] = 0.02,
) -> Any:
    """The latest start first that meets the deadline, at ``token_s`` seconds a token."""
    return deadline_s - token_s * expected_remaining_tokens


LLF = SchedulingPolicy(Score.from_function(llf))
