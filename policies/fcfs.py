"""First come, first served: the order of every stock engine."""

from typing import Any

from lengthwise.policy import SchedulingPolicy, Score


def fcfs(arrival_s: Any) -> Any:
    """Earliest arrival first."""
    return arrival_s


FCFS = SchedulingPolicy(Score.from_function(fcfs), queue="fcfs")
