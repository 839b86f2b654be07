"""Expected length plus a weight on the tail: a long answer that may be short waits less.

TIE (ICML 2026) orders by E + beta CVaR of a log-t distribution. What predictions tell of the tail
here is the 90th percentile of what is left. Of tails that fall as a power a, which a log-t's
nearly do, CVaR is that percentile times a / (a - 1), so that beta takes the factor up.
"""

from typing import Annotated, Any

from lengthwise.policy import Between, SchedulingPolicy, Score


def tie(
    expected_remaining_tokens: Any,
    remaining_tokens_p90: Any,
    *,
    beta: Annotated[float, Between(0, 100)] = 0.5,
) -> Any:
    """Tokens that are expected, and ``beta`` for each token of the 90th percentile."""
    return expected_remaining_tokens + beta * remaining_tokens_p90


TIE = SchedulingPolicy(Score.from_function(tie))
