"""Weighted fair queueing: the request that a fair share would finish first.

Demers, Keshav and Shenker, "Analysis and Simulation of a Fair Queueing Algorithm", SIGCOMM 1989;
Golestani, "A Self-Clocked Fair Queueing Scheme", INFOCOM 1994. A tenant's virtual time is what it
was served over its weight, and a request's finish is that and its own tokens, generated ones twice.
Within a tenant the short ones go first.
"""

from typing import Any

from lengthwise.policy import SchedulingPolicy, Score


def wfq(tenant_service: Any, tenant_weight: Any, prompt_tokens: Any, predicted_tokens: Any) -> Any:
    """Earliest virtual finish first."""
    return tenant_service + (prompt_tokens + 2.0 * predicted_tokens) / tenant_weight


WFQ = SchedulingPolicy(Score.from_function(wfq))
