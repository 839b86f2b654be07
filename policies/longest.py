"""Longest job first: the worst order for the mean, and the best for filling machines at the end.

LPT: Graham, "Bounds on Multiprocessing Timing Anomalies", SIAM Journal on Applied Mathematics 1969,
section 3: of m equal machines that take the longest job first, the last is done within 4/3 - 1/(3m)
of the least possible time. It bounds from above what an order can cost the mean.
"""

from typing import Any

from lengthwise.policy import SchedulingPolicy, Score


def longest(predicted_tokens: Any) -> Any:
    """Longest predicted answer first."""
    return -predicted_tokens


LONGEST = SchedulingPolicy(Score.from_function(longest))
