"""The exception tree: everything lengthwise raises on purpose is a ``LengthwiseError``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

LONGEST = 900  # characters of a message


class LengthwiseError(Exception):
    """Base of every error that lengthwise raises on purpose."""


class InputError(LengthwiseError, ValueError):
    """Bad input: one line that says what came and what is allowed. The CLI exits with 2.

    A line is one to be read, so what came is shortened in its middle where it is very long.
    """

    def __init__(self, message: object = "") -> None:
        line = str(message)
        if len(line) > LONGEST:
            line = f"{line[: LONGEST * 2 // 3]} ... {line[-LONGEST // 4 :]}"
        super().__init__(line)


class UnknownNameError(InputError):
    """A name that no table holds; the message lists the allowed names and the nearest one.

    ``kind`` may say whose it is: "tunable of policy 'srtf'", "column in trace.csv".
    """

    def __init__(self, kind: str, name: str, allowed: Iterable[str]) -> None:
        name = str(name)  # a file may hold a number where a name belongs
        names = sorted(allowed)
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        listed = ", ".join(names) if names else "none"
        what, *whose = re.split("(?= (?:of|in) )", kind, maxsplit=1)
        super().__init__(f"unknown {what} {name!r}{''.join(whose)}{hint} (allowed: {listed})")


class InvariantError(LengthwiseError, AssertionError):
    """The simulated engine broke one of its own invariants: a bug, please report it."""
