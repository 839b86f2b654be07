"""Highest response ratio next: short answers first, ageing with the time waited.

Brinch Hansen 1971. SGLang's ``hrrn`` schedule policy (pull request 32911) is the same ratio over
the prompt tokens that are not in its cache, ours over the predicted answer.
"""

from typing import Annotated, Any

from lengthwise.policy import Between, SchedulingPolicy, Score


def hrrn(
    now_s: Any,
    arrival_s: Any,
    predicted_tokens: Any,
    *,
    floor_tokens: Annotated[float, Between(1e-3, 1e6)] = 1.0,
) -> Any:
    """Longest wait for each predicted token first (the classical ratio less its constant 1)."""
    return -(now_s - arrival_s) / (predicted_tokens + floor_tokens)


HRRN = SchedulingPolicy(Score.from_function(hrrn))
