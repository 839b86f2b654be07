"""Fair by tenant: whose virtual token counter is lowest goes next; weighted where tenants are.

VTC: Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, algorithm 2 (the counter
is ``tenant_service``) and section 4.3 (weights). Theirs is looked at before each admission, ours
once an iteration, so that a tenant may be ahead by one iteration's prompts more.
"""

from typing import Any

from lengthwise.policy import SchedulingPolicy, Score


def vtc(tenant_service: Any) -> Any:
    """Least served tenant first; ties by arrival."""
    return tenant_service


VTC = SchedulingPolicy(Score.from_function(vtc))
