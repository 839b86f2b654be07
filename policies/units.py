"""The units of formulas: tokens are not added to seconds, unless a number makes them tokens."""

from __future__ import annotations

from lengthwise import features
from lengthwise.errors import InputError
from lengthwise.policies.formula import Node, written

Exponents = tuple[float, float, float]  # of tokens, seconds, requests
Unit = Exponents | None  # None: what a free number makes it
TOKENS: Exponents = (1.0, 0.0, 0.0)
_NAMED = {"tokens": 0, "s": 1, "requests": 2}
_WORDS = ("token", "s", "request")


def unit_of_feature(name: str) -> tuple[float, float, float]:
    """The exponents of a feature's unit."""
    found = [0.0, 0.0, 0.0]
    for sign, part in zip((1, -1), features.get(name).unit.split("/"), strict=False):
        if part != "1":
            found[_NAMED[part]] += sign
    return found[0], found[1], found[2]


def unit_of(node: Node) -> Unit:
    """The unit of a tree; raises ``InputError`` where tokens are added to seconds, say.

    A number's unit is free, and every number occurs once, so that what is multiplied by one takes
    any unit.
    """
    if node.op == "feature":
        return unit_of_feature(node.name)
    if node.op in ("number", "literal"):
        return None
    if node.op == "neg":
        return unit_of(node.args[0])
    if node.op == "sqrt":
        inner = unit_of(node.args[0])
        return None if inner is None else (inner[0] / 2, inner[1] / 2, inner[2] / 2)
    left, right = (unit_of(one) for one in node.args)
    if node.op in ("*", "/"):
        if left is None or right is None:
            return None
        sign = 1 if node.op == "*" else -1
        return (left[0] + sign * right[0], left[1] + sign * right[1], left[2] + sign * right[2])
    if left is not None and right is not None and left != right:
        what = written(node, lambda one: f"{one.value:.3g}", plain=True)
        raise InputError(f"{what}: {spelled_unit(left)} beside {spelled_unit(right)}")
    return left if left is not None else right


def spelled_unit(unit: Unit) -> str:
    """``tokens/s``; "1" of a ratio, "any" of what a free number decides."""
    if unit is None:
        return "any"
    above = [_power(word, by) for word, by in zip(_WORDS, unit, strict=True) if by > 0]
    below = [_power(word, -by) for word, by in zip(_WORDS, unit, strict=True) if by < 0]
    if not above and not below:
        return "1"
    top = " ".join(above) or "1"
    top = {"token": "tokens", "request": "requests"}.get(top, top)
    return "/".join((top, *below))


def _power(word: str, by: float) -> str:
    return word if by == 1 else f"{word}^{by:g}"


def units_of_numbers(node: Node, wanted: Unit = None) -> dict[int, Unit]:
    """The unit that each free number of a tree has, by the node's ``id``; None is any."""
    found: dict[int, Unit] = {}
    _assign(node, wanted if wanted is not None else unit_of(node), found)
    return found


def _assign(node: Node, wanted: Unit, found: dict[int, Unit]) -> None:
    if node.op == "number":
        found[id(node)] = wanted
    if not node.args:
        return
    if len(node.args) == 1:
        inner = wanted
        if node.op == "sqrt" and wanted is not None:
            inner = (wanted[0] * 2, wanted[1] * 2, wanted[2] * 2)
        _assign(node.args[0], inner, found)
        return
    left, right = node.args
    units = unit_of(left), unit_of(right)
    if node.op not in ("*", "/"):
        known = next((one for one in (*units, wanted) if one is not None), None)
        for one in node.args:
            _assign(one, known, found)
        return
    sign = 1 if node.op == "*" else -1
    if units[0] is None and units[1] is None:  # the first takes what is left, the other has none
        units = None, (0.0, 0.0, 0.0)
    if units[0] is not None:
        _assign(left, units[0], found)
        other = None if wanted is None else _plus(wanted, units[0], -1)
        other = other if sign == 1 or other is None else _plus((0.0, 0.0, 0.0), other, -1)
        _assign(right, units[1] if units[1] is not None else other, found)
    else:
        _assign(right, units[1], found)
        assert units[1] is not None
        _assign(left, None if wanted is None else _plus(wanted, units[1], -sign), found)


def _plus(
    one: tuple[float, float, float], other: tuple[float, float, float], sign: int
) -> tuple[float, float, float]:
    return (one[0] + sign * other[0], one[1] + sign * other[1], one[2] + sign * other[2])
