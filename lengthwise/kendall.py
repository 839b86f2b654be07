"""How sure a Kendall's tau is."""

from __future__ import annotations

import math


def tau_error(n: int) -> float:
    """Standard error of tau over n independent pairs (Kendall, Biometrika 1938); n is 2 or more."""
    return math.sqrt(2 * (2 * n + 5) / (9 * n * (n - 1)))
