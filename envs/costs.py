"""What an agent pays for: a cost that accrues as a run goes on; the reward is minus its growth.

A cost is a function of a run's totals so far, so rewards telescope: the undiscounted return is
minus the cost of the whole run.
"""

from __future__ import annotations

from collections.abc import Callable

from lengthwise.errors import UnknownNameError
from lengthwise.serving.records import PS
from lengthwise.serving.system import Totals

Cost = Callable[[Totals], float]  # a run so far -> its cost so far


def latency(totals: Totals) -> float:
    """Seconds that requests have spent in the system so far, summed over requests.

    It is the time integral of the number of requests in the system, which by Little's law is the
    sum of the end-to-end latencies once all are done.
    """
    return totals.request_ps / PS


COSTS: dict[str, Cost] = {"latency": latency}


def cost_of(spec: str | Cost) -> Cost:
    """A cost from its name, or a cost function as it is."""
    if callable(spec):
        return spec
    if spec not in COSTS:
        raise UnknownNameError("cost", spec, COSTS)
    return COSTS[spec]
