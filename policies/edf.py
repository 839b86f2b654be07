"""Earliest deadline first.

Jackson, "Scheduling a Production Line to Minimize Maximum Tardiness", UCLA report 43, 1955: on one
machine, without preemption and with all jobs there, no order has a smaller largest lateness. Liu
and Layland, JACM 1973, section 7: with preemption it meets all deadlines where any order does.
"""

from typing import Any

from lengthwise.policy import SchedulingPolicy, Score


def edf(deadline_s: Any) -> Any:
    """Earliest deadline first."""
    return deadline_s


EDF = SchedulingPolicy(Score.from_function(edf))
