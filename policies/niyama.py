"""Earliest deadline first, blended with the work left, and relegation of who is late anyway.

Niyama: Goel et al., "Niyama: Breaking the Silos of LLM Inference Serving", arXiv 2503.22562,
hybrid prioritization (deadline and work blended) and eager relegation. Its dynamic chunk size, how
many tokens a step may have by the slack of those that generate, is no order of requests: here, as
in vLLM, ``max_num_batched_tokens`` is one number for a whole run.
"""

from typing import Annotated, Any

import numpy as np

from lengthwise.policy import Between, SchedulingPolicy, Score

RELEGATED_S = 1e9  # later than any deadline


def niyama(
    now_s: Any,
    deadline_s: Any,
    expected_remaining_tokens: Any,
    *,
    token_s: Annotated[float, Between(0, 100)] = 0.02,
    work: Annotated[float, Between(0, 100)] = 1.0,
) -> Any:
    """Deadline plus ``work`` times the time that is left at ``token_s`` seconds a token; whoever
    can't be done in time goes after all who can.
    """
    left_s = token_s * expected_remaining_tokens
    late = now_s + left_s > deadline_s
    return np.where(late, RELEGATED_S, 0.0) + deadline_s + work * left_s


NIYAMA = SchedulingPolicy(Score.from_function(niyama))
