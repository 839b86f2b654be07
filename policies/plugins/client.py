"""What a client says with its request, which may be anything."""

from __future__ import annotations

import math
from typing import Any


def sent(parameters: Any) -> dict[str, Any]:
    """What came as ``vllm_xargs`` in vLLM's ``SamplingParams``; empty for what is no object."""
    found = getattr(parameters, "extra_args", None)
    return found if isinstance(found, dict) else {}


def number(value: Any) -> float | None:
    """A finite number, or text that spells one, as proxies make of it; None for all else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def text(value: Any) -> str | None:
    """A name, as Unicode text that can be written down; None for what is none."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return str(value) if whole else None


def shown(value: Any) -> str:
    """The beginning of what a client said, for a log."""
    try:
        return f"{value!r:.60}"
    except Exception:  # Python spells out no integer of more than 4300 digits
        return f"a value of type {type(value).__name__}"


def length(value: Any) -> float | None:
    """A number of tokens, above 0; None for what is none."""
    found = number(value)
    return found if found is not None and found > 0 else None
