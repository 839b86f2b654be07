"""What a client says with its request, which may be anything."""

from __future__ import annotations

import math
from typing import Any


def number(value: Any) -> float | None:
    """A finite number, or text that spells one, as proxies make of it; None for all else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def length(value: Any) -> float | None:
    """A number of tokens, above 0; None for what is none."""
    found = number(value)
    return found if found is not None and found > 0 else None
