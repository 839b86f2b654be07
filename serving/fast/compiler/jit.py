"""The words that compiled functions use beside Python's own, and the numbers that they draw.

``compiler.translate`` knows the marks and the words; the modules of the fast engine that use them
are read as text, and never run as Python.
"""

# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import numpy as np

from lengthwise.errors import InvariantError

F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """Marks a function that is compiled."""
    return function


def hot(function: F) -> F:
    """The same, inlined wherever it is called."""
    return function


ceil = math.ceil  # the least integer that is not below a float
floor = math.floor  # the greatest integer that is not above a float
rint = round  # the nearest integer to a float, the even one of two


def call_score(address: Any, rows: Any, n: Any, out: Any) -> Any:
    """Calls the score whose ``CompiledScore.call`` lies at ``address``; all are 64-bit integers."""
    _only_compiled()


def bits_of(value: Any) -> Any:
    """The 64 bits of a float."""
    _only_compiled()


def float_of(bits: Any) -> Any:
    """The float that has these 64 bits."""
    _only_compiled()


def word_at(address: Any) -> Any:
    """The 64 bits that lie at an address."""
    _only_compiled()


def put_word(address: Any, value: Any) -> None:
    """Writes 64 bits to an address."""
    _only_compiled()


def as_state(address: Any) -> Any:
    """The state whose address table lies at this address."""
    _only_compiled()


def node_of(state: Any, replica: Any) -> Any:
    """The row of a replica's node: constants, which machine code reads but once."""
    _only_compiled()


def _only_compiled() -> NoReturn:
    raise InvariantError("only machine code follows an address")


@kernel
def splitmix64(x: Any) -> np.uint64:
    """``lengthwise.serving.draws.splitmix64`` on a uint64."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@kernel
def draw(seed: Any, request: Any, counter: Any) -> np.uint64:
    """``lengthwise.serving.draws.draw``: 64 bits from uint64 ``seed`` and two counters."""
    key = splitmix64(seed)
    key = splitmix64(key + np.uint64(request))
    return splitmix64(key + np.uint64(counter))


@kernel
def uniform(seed: Any, request: Any, replica: Any) -> float:
    """``lengthwise.serving.draws.uniform``."""
    return np.float64(draw(seed, request, replica) >> np.uint64(11)) / 9007199254740992.0
