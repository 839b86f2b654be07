"""Shortest first, with a bound on who may overtake: each second of waiting is worth some tokens.

Kleinrock, "A delay dependent queue discipline", Naval Research Logistics Quarterly 1964, with rates
that are alike: nobody is overtaken by who came more than (difference in tokens) / rate later.
"""

from typing import Annotated, Any

from lengthwise.policy import Between, SchedulingPolicy, Score


def ageing(
    predicted_tokens: Any,
    arrival_s: Any,
    *,
    tokens_per_s: Annotated[float, Between(0, 1e6)] = 20.0,
) -> Any:
    """Predicted tokens less ``tokens_per_s`` for each second waited.

    The time of day is the same for all, so that what counts is the arrival: the score is static.
    """
    return predicted_tokens + tokens_per_s * arrival_s


AGEING = SchedulingPolicy(Score.from_function(ageing))
