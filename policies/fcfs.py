"""First come, first served: the order of every stock engine.

So vLLM serves (Kwon et al., SOSP 2023, section 4.5), and others are compared with it.
"""

from typing import Any

from lengthwise.policy import SchedulingPolicy, Score


def fcfs(arrival_s: Any) -> Any:
    """Earliest arrival first."""
    return arrival_s


FCFS = SchedulingPolicy(Score.from_function(fcfs), queue="fcfs")
