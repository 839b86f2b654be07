"""Routers: the same scores, over the features of one replica; the lowest-scored replica is taken.

Ties go to the replica with the lowest index. Turn by turn, at random, the shortest queue and the
least work left are the textbook's (Harchol-Balter, Performance Modeling and Design of Computer
Systems, 2013, chapter 24); joining the shortest queue is optimal for equal servers and exponential
work (Winston, 1977), and two choices at random come close to it (Mitzenmacher, 2001).
"""

from typing import Any

from lengthwise.policy import RoutingPolicy, Score


def round_robin(routed_requests: Any) -> Any:
    """The replica that was sent the fewest requests: each in turn."""
    return routed_requests


def random(random_draw: Any) -> Any:
    """Any replica, uniformly."""
    return random_draw


def jsq(running_requests: Any, waiting_requests: Any) -> Any:
    """Join the shortest queue: the fewest requests in the replica (Winston 1977)."""
    return running_requests + waiting_requests


def least_tokens(outstanding_tokens: Any) -> Any:
    """The fewest prompt and predicted tokens sent and not finished."""
    return outstanding_tokens


ROUND_ROBIN = RoutingPolicy(Score.from_function(round_robin, "round-robin"))
RANDOM = RoutingPolicy(Score.from_function(random))
JSQ = RoutingPolicy(Score.from_function(jsq))
LEAST_TOKENS = RoutingPolicy(Score.from_function(least_tokens, "least-tokens"))
# Mitzenmacher 2001: two random choices come close to the shortest queue for a tenth of the looks.
POWER_OF_TWO = RoutingPolicy(Score.from_function(jsq, "power-of-two"), choices=2)
