"""What values a formula may have, whatever its features are: finite, and never divided by 0."""

from __future__ import annotations

import math

from lengthwise import features
from lengthwise.errors import InputError
from lengthwise.policies.formula import Node, written

LARGEST_TOKENS, LARGEST_S = 2.0**31, 1e10
LEAST = {"predicted_tokens": 1.0}


def limits_of_feature(name: str) -> tuple[float, float]:
    """The least and the largest value that any run may have of a feature."""
    unit = features.get(name).unit
    most = LARGEST_S if unit == "s" else LARGEST_TOKENS
    least = -LARGEST_TOKENS if name == "priority" else LEAST.get(name, 0.0)
    return least, 1.0 if name in ("kv_utilization", "random_draw") else most


def limits(node: Node) -> tuple[float, float]:
    """Bounds of the tree's value whatever the features are (interval arithmetic).

    Raises ``InputError`` for a division by what may be 0, a root of what may be negative, and what
    may not be finite.
    """
    found = _limits(node)
    if not all(map(math.isfinite, found)):
        raise InputError(f"{_said(node)} may be infinite")
    return found


def _limits(node: Node) -> tuple[float, float]:
    if node.op == "feature":
        return limits_of_feature(node.name)
    if node.op in ("number", "literal"):
        return node.value, node.value
    inner = [limits(one) for one in node.args]
    low, high = inner[0]
    if node.op == "neg":
        return -high, -low
    if node.op == "sqrt":
        if low < 0:
            raise InputError(f"{_said(node)}: a root of what may be below 0")
        return math.sqrt(low), math.sqrt(high)
    other_low, other_high = inner[1]
    if node.op == "min":
        return min(low, other_low), min(high, other_high)
    if node.op == "max":
        return max(low, other_low), max(high, other_high)
    if node.op == "+":
        return low + other_low, high + other_high
    if node.op == "-":
        return low - other_high, high - other_low
    if node.op == "/" and other_low <= 0 <= other_high:
        raise InputError(f"{_said(node)}: a division by what may be 0")
    ends = [
        a * b if node.op == "*" else a / b for a in (low, high) for b in (other_low, other_high)
    ]
    return min(ends), max(ends)


def _said(node: Node) -> str:
    return written(node, lambda one: f"{one.value:.3g}", plain=True)
