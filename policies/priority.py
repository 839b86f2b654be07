"""The client's own priority, as vLLM's ``priority`` policy reads it: lowest value first.

Classes of customers, each served before the next, are Cobham's (Operations Research, 1954).
"""

from typing import Any

from lengthwise.policy import SchedulingPolicy, Score


def priority(priority: Any) -> Any:
    """Lowest priority value first; ties by arrival."""
    return priority


PRIORITY = SchedulingPolicy(Score.from_function(priority))
