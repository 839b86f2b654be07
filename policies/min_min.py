"""Min-min, as far as a router that places each request when it arrives can follow it.

Ibarra and Kim, JACM 1977; Maheswaran et al., JPDC 1999, section 3: in immediate mode (no batch of
requests to choose from) it is the minimum completion time. A baseline of Intelligent Router (Jain
et al. 2024).
"""

from typing import Any

import numpy as np

from lengthwise.policy import RoutingPolicy, Score


def min_min(
    outstanding_tokens: Any, prompt_tokens: Any, predicted_tokens: Any, decode_tokens_per_s: Any
) -> Any:
    """The replica that would be done with all it was sent and this request first."""
    tokens = outstanding_tokens + prompt_tokens + predicted_tokens
    return tokens / np.maximum(decode_tokens_per_s, 1.0)


MIN_MIN = RoutingPolicy(Score.from_function(min_min, "min-min"))
