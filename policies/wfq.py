"""Weighted fair queueing: the request that a fair share would finish first.

Demers, Keshav and Shenker, "Analysis and Simulation of a Fair Queueing Algorithm", SIGCOMM 1989;
Golestani, "A Self-Clocked Fair Queueing Scheme", INFOCOM 1994. A tenant's virtual time is what it
was served over its weight, and a request's finish is that and its own tokens, generated ones twice.
Within a tenant the short ones go first.
"""

from typing import Any

import numpy as np

from lengthwise.policy import SchedulingPolicy, Score


def wfq(tenant_service: Any, tenant_weight: Any, prompt_tokens: Any, predicted_tokens: Any) -> Any:
    """Earliest virtual finish first."""
    least = np.maximum(tenant_weight, 1e-9)  # a weight is above 0, but a score must bear 0
    return tenant_service + (prompt_tokens + 2.0 * predicted_tokens) / least


WFQ = SchedulingPolicy(Score.from_function(wfq))
