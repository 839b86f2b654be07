"""Least counter first: the tenant that was served least since the beginning goes next.

The baseline that VTC adds its lift to (Sheng et al., "Fairness in Serving Large Language Models",
OSDI 2024, section 5): a tenant who was away has saved up, and is served alone until it has caught
up with the others.
"""

from typing import Any

from lengthwise.policy import SchedulingPolicy, Score


def lcf(tenant_attained: Any) -> Any:
    """Tenant who attained least first; ties by arrival."""
    return tenant_attained


LCF = SchedulingPolicy(Score.from_function(lcf))
