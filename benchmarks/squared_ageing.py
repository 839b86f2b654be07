"""A policy file for ``benchmarks.guards``: a wait counts by its square, little while it is short.

python -m benchmarks.guards TRACE ... --policies benchmarks/squared_ageing.py:score:tokens=1
"""

from typing import Any


def score(predicted_tokens: Any, now_s: Any, arrival_s: Any, *, tokens: float = 0.5) -> Any:
    """Shortest first, and a wait of t seconds is worth ``tokens`` x t x t of them."""
    waited_s = now_s - arrival_s
    return predicted_tokens - tokens * waited_s * waited_s
