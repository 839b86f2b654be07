"""Deficit longest prefix match: what the cache holds most of, of tenants whose turn it is.

DLPM: Cao et al., "Locality-aware Fair Scheduling in LLM Serving", arXiv 2501.14312, section 4: each
tenant may use up a quantum before those that have none left are given another. Tenants in the same
round of quanta go by longest prefix match; a small quantum is VTC, a large one is LPM.
"""

from typing import Annotated, Any

import numpy as np

from lengthwise.policy import Between, SchedulingPolicy, Score

FAR = 1e9  # tokens, more than any prompt has


def dlpm(
    tenant_service: Any,
    cached_tokens: Any,
    *,
    quantum: Annotated[float, Between(1, 1e9)] = 4096.0,
) -> Any:
    """Fewest quanta used up first, then most cached tokens."""
    return FAR * np.floor(tenant_service / quantum) - cached_tokens


DLPM = SchedulingPolicy(Score.from_function(dlpm))
