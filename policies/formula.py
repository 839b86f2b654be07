"""A score as data: an expression tree over features and numbers, with what it means checked.

Trees are read from a function's text and written as one, so that what a search finds is a policy
file like any other. Evaluated in the order in which it is written, as IEEE 754 says, it gives the
bits of the function.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from lengthwise import features
from lengthwise.errors import InputError
from lengthwise.policy import Score

Op = Literal["feature", "number", "literal", "+", "-", "*", "/", "min", "max", "sqrt", "neg"]
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide,
    "min": np.minimum, "max": np.maximum,
}  # fmt: skip
UNARY: dict[str, Callable[[Any], Any]] = {"sqrt": np.sqrt, "neg": np.negative}
# What engines take steps by; a feature's stands behind them, in the order of the table.
CODES = {op: place for place, op in enumerate(("number", *BINARY, *UNARY))}
LONGEST = 4000  # characters of one that is read from a bundle
_STRENGTH = {"+": 1, "-": 1, "*": 2, "/": 2, "neg": 3}
_CALLS = {"minimum": "min", "maximum": "max", "sqrt": "sqrt"}
_INFIX: dict[type[ast.operator], Op] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


@dataclass(frozen=True)
class Node:
    """A feature by ``name``, a ``value``, or an operation on ``args``.

    A "number" is free: a tunable, in whatever unit makes the sum right. A "literal" is part of the
    form, such as the least value of a denominator.
    """

    op: Op
    args: tuple[Node, ...] = ()
    name: str = ""
    value: float = 0.0

    def __iter__(self) -> Iterator[Node]:
        """The node and all below it, itself first."""
        yield self
        for one in self.args:
            yield from one

    @cached_property
    def size(self) -> int:
        """How many nodes there are."""
        return sum(1 for _ in self)


def feature(name: str) -> Node:
    """A feature; an unknown one is told the nearest name."""
    return Node("feature", name=features.get(name).name)


def number(value: float, name: str = "") -> Node:
    """A number that may be tuned."""
    return Node("number", value=float(value), name=name)


@dataclass(frozen=True)
class Formula:
    """A tree that is called like a score function: with a value of each of ``features``.

    Engines run it step by step (``policy.Stepwise``) without compiling anything, which is for
    searches: the function that ``source`` writes gives the same bits, compiled.
    """

    tree: Node

    @cached_property
    def features(self) -> tuple[str, ...]:
        """The features that the tree reads, each once, in order of first use."""
        return tuple(dict.fromkeys(node.name for node in self.tree if node.op == "feature"))

    @cached_property
    def steps(self) -> tuple[tuple[int, float], ...]:
        """(code, number) by step of a stack; ``CODES`` says which code does what."""
        names = list(features.FEATURES)
        return tuple(
            (len(CODES) + names.index(node.name), 0.0) if node.op == "feature"
            else (CODES["number"], node.value) if node.op in ("number", "literal")
            else (CODES[node.op], 0.0)
            for node in _last_first(self.tree)
        )  # fmt: skip

    def __call__(self, *values: Any) -> Any:
        """The score: from scalars a float, from arrays (n,) an array."""
        given = {name: np.asarray(value, np.float64)
                 for name, value in zip(self.features, values, strict=True)}  # fmt: skip
        found = _value(self.tree, given)
        return found if np.ndim(found) else float(found)

    def score(self, name: str = "score") -> Score:
        """A policy's score of it."""
        return Score(name, self, self.features)

    def __str__(self) -> str:
        return written(self.tree, lambda node: f"{node.value:.6g}", plain=True)


def _last_first(node: Node) -> Iterator[Node]:
    for one in node.args:
        yield from _last_first(one)
    yield node


def _value(node: Node, given: Mapping[str, Any]) -> Any:
    if node.op == "feature":
        return given[node.name]
    if node.op in ("number", "literal"):
        return np.float64(node.value)
    values = [_value(one, given) for one in node.args]
    return BINARY[node.op](*values) if len(values) == 2 else UNARY[node.op](*values)


def written(node: Node, numbers: Callable[[Node], str], plain: bool = False) -> str:
    """The tree as Python; ``numbers`` says how a free number is spelled, ``plain`` leaves ``np.``
    away."""
    return _written(node, numbers, "" if plain else "np.")[0]


def _written(node: Node, numbers: Callable[[Node], str], np_: str) -> tuple[str, int]:
    """The text, and how strongly it holds together."""
    if node.op == "feature":
        return node.name, 9
    if node.op in ("number", "literal"):
        text = numbers(node) if node.op == "number" else repr(node.value)
        return text, 9
    parts = [_written(one, numbers, np_) for one in node.args]
    if node.op in ("min", "max", "sqrt"):
        name = next(call for call, op in _CALLS.items() if op == node.op)
        name = name if np_ or node.op == "sqrt" else node.op
        return f"{np_}{name}({', '.join(text for text, _ in parts)})", 9
    own = _STRENGTH[node.op]
    if node.op == "neg":
        return f"-{_inside(parts[0], own)}", own
    # what is on the right is evaluated first, also where + or * would be associative
    return f"{_inside(parts[0], own)} {node.op} {_inside(parts[1], own + 1)}", own


def _inside(part: tuple[str, int], least: int) -> str:
    text, strength = part
    return text if strength >= least else f"({text})"


def read(function: Callable[..., Any], tunables: Mapping[str, Any] | None = None) -> Formula | None:
    """The formula that a score function returns; None where its text is anything more than one.

    Its tunables are free numbers, with the values of ``tunables`` where it has them. What may stand
    there: features, numbers, ``+ - * /``, ``np.minimum``, ``np.maximum`` and ``np.sqrt``.
    """
    if isinstance(function, Formula):
        return function
    try:
        found = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
        assert isinstance(found, ast.FunctionDef)
        body = [
            one
            for one in found.body
            if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))
        ]
        if len(body) != 1 or not isinstance(body[0], ast.Return) or body[0].value is None:
            return None
        bound = {
            name: one.default for name, one in inspect.signature(function).parameters.items()
            if one.kind is one.KEYWORD_ONLY
        } | dict(tunables or {})  # fmt: skip
        return Formula(of_ast(body[0].value, bound))
    except (OSError, TypeError, SyntaxError, IndexError, AssertionError, InputError):
        return None


def spelled(tree: Node) -> str:
    """The tree as a text that ``of_text`` reads, its numbers to the last bit."""
    return written(tree, lambda node: repr(node.value))


def of_text(text: Any) -> Node:
    """The tree of a text, which is parsed and never run; raises ``InputError`` for no formula."""
    if not isinstance(text, str) or len(text) > LONGEST:
        raise InputError(f"a formula is a text of up to {LONGEST} characters")
    try:
        return of_ast(ast.parse(text.strip(), mode="eval").body, {})
    except InputError:
        raise
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{text[:60]!r} is no formula: {type(error).__name__}") from None


def of_ast(node: ast.expr, bound: Mapping[str, Any]) -> Node:
    """The tree of Python's own; raises ``InputError`` for what no formula has."""
    if isinstance(node, ast.Name):
        if node.id not in bound:
            return feature(node.id)
        if isinstance(bound[node.id], bool):
            raise InputError(f"a formula has numbers, not {node.id} = {bound[node.id]}")
        return number(bound[node.id], node.id)
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return Node("literal", value=float(node.value))  # type: ignore[arg-type]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return Node("neg", (of_ast(node.operand, bound),))
    if isinstance(node, ast.BinOp) and type(node.op) in _INFIX:
        pair = of_ast(node.left, bound), of_ast(node.right, bound)
        return Node(_INFIX[type(node.op)], pair)
    if (
        isinstance(node, ast.Call)
        and ast.unparse(node.func).startswith("np.")
        and not node.keywords
    ):
        op = _CALLS.get(ast.unparse(node.func).removeprefix("np."))
        args = tuple(of_ast(one, bound) for one in node.args)
        if op is not None and len(args) == (1 if op in UNARY else 2):
            return Node(op, args)  # type: ignore[arg-type]
    raise InputError(f"{ast.unparse(node)!r} is no formula of features and numbers")


def with_values(node: Node, values: Iterator[float]) -> Node:
    """The tree with other values of its free numbers, in the order in which they are met."""
    if node.op == "number":
        return replace(node, value=next(values))
    if not node.args:
        return node
    return replace(node, args=tuple(with_values(one, values) for one in node.args))


def values_of(node: Node) -> list[float]:
    """The values of the free numbers, in the order in which they are met."""
    return [one.value for one in node if one.op == "number"]
