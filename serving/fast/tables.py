"""Parts of the fast engine's source that are written from tables: features and timing terms.

In the compiled modules these functions stand for what they return: ``compiler.build`` puts it in
the place of a call. So a new feature or a new term needs no edit there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lengthwise.errors import InvariantError
from lengthwise.serving.timing.terms import Part, When, terms_of


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


# By name; they are called with the source text of their arguments, strings as they are.
WRITTEN: dict[str, Callable[..., str]] = {
    function.__name__: function for function in (sum_of_terms,)
}
