"""Parts of the fast engine's source that are written from tables: features and timing terms.

In the compiled modules these functions stand for what they return: ``compiler.build`` calls them
with the source text of their arguments, strings as they are, and puts the result in the place of
the call. So a new feature or a new term needs no edit there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from lengthwise.errors import InvariantError
from lengthwise.features import FEATURES, Feature
from lengthwise.serving.fast.features import ACCESSORS, BITS, mask
from lengthwise.serving.fast.state import REPLICA
from lengthwise.serving.timing.terms import Part, When, terms_of

# What the expressions of ``features.ACCESSORS`` see of the state, where ``S`` and ``r`` are.
ROWS = {"run": "S.run", "node": "node_of(S, r)", "rep": "S.replica[r]"}


def sum_of_terms(clock: Any, part: Part, when: When = "any", **quantities: Any) -> Any:
    """The terms of a part of the clock: coefficients in the row ``clock`` times quantities."""
    addends = []
    for term in terms_of(part, when):
        if term.times == "once":
            addends.append(f"{clock}.{term.name}_ps")
        elif term.times in quantities:
            addends.append(f"{clock}.{term.name}_ps * ({quantities[term.times]})")
        else:
            raise InvariantError(
                f"the timing term {term.name} multiplies {term.times}, which the fast engine does "
                f"not count where it sums up {part}"
            )
    return " + ".join(addends) or "0"


def write_features(to: Any, reads: Any, *of: str, **known: Any) -> Any:
    """Writes those features of requests, replicas or pairs to the row ``to`` that are in a mask.

    Stands where ``S``, ``r`` and, but for replicas, ``id`` are; ``known`` are further variables
    that the expressions of ``features.ACCESSORS`` see.
    """
    return _assignments(to, reads, _of(of), ROWS | known, lambda name: ACCESSORS[name])


def write_counted_features(to: Any, reads: Any) -> Any:
    """The same, for what a router counts itself of a replica."""
    counted = [feature for feature in _of(["replica"]) if feature.counted]
    return _assignments(to, reads, counted, ROWS, lambda name: ACCESSORS[name])


def copy_features(to: Any, seen: Any, reads: Any, *of: str) -> Any:
    """Copies those features of requests, replicas or pairs from another row."""
    return _assignments(to, reads, _of(of), {"seen": seen}, lambda name: f"seen.{name}")


def restore(to: Any, origin: Any, *kept: str) -> Any:
    """Copies the row ``origin`` of a replica to the row ``to``, but for the fields ``kept``."""
    names = [name for name in REPLICA.names or () if name not in kept]
    return "\n".join(f"{to}.{name} = {origin}.{name}" for name in names)


def is_read(reads: Any, *names: str) -> Any:
    """Whether any of these features is in the mask."""
    return f"{reads} & {mask(names)} != 0"


def is_read_of(reads: Any, *of: str) -> Any:
    """Whether any feature of requests, replicas or pairs is in the mask."""
    return is_read(reads, *(name for name, feature in FEATURES.items() if feature.of in of))


def _of(of: Sequence[str]) -> list[Feature]:
    """The features of requests, replicas or pairs that the fast engine can tell."""
    return [one for name, one in FEATURES.items() if name in ACCESSORS and one.of in of]


def _assignments(
    to: str, reads: str, told: Iterable[Feature], known: Mapping[str, str],
    value: Callable[[str], str],
) -> str:  # fmt: skip
    """One for each feature, behind its bit; those that change together behind a common mask too.

    What is at hand, a variable or a field of a row, is written whether it is read or not.
    """
    lines = [f"{name} = {text}" for name, text in {"to": to, "reads": reads, **known}.items()]
    for _, group in groupby(sorted(told, key=_kind), key=_kind):
        names = [feature.name for feature in group]
        free = all(value(name).isidentifier() for name in names)
        lines.append("if True:" if free else f"if reads & {mask(names)}:")
        for name in names:
            if not re.fullmatch(r"\w+(\.\w+)?", value(name)):
                lines.append(f"    if reads & {BITS[name]}:")
                lines.append(f"        to.{name} = {value(name)}")
            else:
                lines.append(f"    to.{name} = {value(name)}")
    return "\n".join(lines)


def _kind(feature: Feature) -> tuple[str, str]:
    return feature.of, feature.changes


WRITTEN: dict[str, Callable[..., str]] = {
    function.__name__: function
    for function in (
        sum_of_terms, write_features, write_counted_features, copy_features, restore, is_read,
        is_read_of,
    )
}  # fmt: skip
