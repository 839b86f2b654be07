"""Random formulas: units by counting in other ones, bounds at the corners, texts by Python."""

from __future__ import annotations

import ast
import inspect
import itertools
import math
from typing import Any

import numpy as np
import pytest

from lengthwise.errors import InputError
from lengthwise.policies import load
from lengthwise.policies.formula import (
    Formula,
    Node,
    feature,
    number,
    of_ast,
    of_text,
    spelled,
    values_of,
    with_values,
    written,
)
from lengthwise.policies.formula_file import source
from lengthwise.policies.limits import limits, limits_of_feature
from lengthwise.policies.units import TOKENS, unit_of, units_of_numbers

# How much larger every value is in a smaller unit: of tokens, seconds, requests.
SMALLER = (4.0, 9.0, 25.0)
BY = {
    "predicted_tokens": 4.0, "prompt_tokens": 4.0, "arrival_s": 9.0, "now_s": 9.0,
    "waiting_requests": 25.0, "kv_utilization": 1.0,
}  # fmt: skip
BINARY = ("+", "-", "*", "/", "min", "max")


def drawn(rng: np.random.Generator, depth: int, names: list[str], free: bool = True) -> Node:
    """A tree of up to ``depth`` levels; ``names`` are used up where numbers are not free."""
    kind = rng.random()
    if depth == 0 or kind < 0.15:
        if free and rng.random() < 0.4:
            return number(float(rng.uniform(0.5, 3.0)))
        place = int(rng.integers(len(names)))
        return feature(names[place] if free else names.pop(place))
    if kind < 0.3:
        op = "sqrt" if free and rng.random() < 0.5 else "neg"
        return Node(op, (drawn(rng, depth - 1, names, free),))  # type: ignore[arg-type]
    op = BINARY[int(rng.integers(6))]
    if not free and len(names) < 2**depth:
        return drawn(rng, 0, names, free)
    args = tuple(drawn(rng, depth - 1, names, free) for _ in range(2))
    return Node(op, args)  # type: ignore[arg-type]


def factor(unit: Any) -> float:
    return math.prod(by**power for by, power in zip(SMALLER, unit, strict=True))


def renumbered(node: Node, by: dict[int, float]) -> Node:
    values = [one.value * by.get(id(one), 1.0) for one in node if one.op == "number"]
    return with_values(node, iter(values))


def test_in_smaller_units_a_score_is_larger_by_its_unit() -> None:
    """Dimensional analysis: whoever counts in other units, numbers included, gets the same score,
    in the unit that it is said to have."""
    rng = np.random.default_rng(0)
    given = {name: rng.uniform(1.0, 9.0, 20) for name in BY}
    told = numbered = 0
    for _ in range(3000):
        tree = drawn(rng, 3, list(BY))
        try:
            own = unit_of(tree)
        except InputError:
            continue
        wanted = TOKENS if own is None else own
        by = {key: factor(unit) for key, unit in units_of_numbers(tree, wanted).items()
              if unit is not None}  # fmt: skip
        plain, smaller = Formula(tree), Formula(renumbered(tree, by))
        with np.errstate(all="ignore"):
            before = plain(*(given[name] for name in plain.features))
            after = smaller(*(given[name] * BY[name] for name in smaller.features))
            assert np.allclose(after, np.asarray(before) * factor(wanted), equal_nan=True), plain
        told += own is not None
        numbered += len(by) > 0
    assert told > 200 and numbered > 500


def test_what_would_differ_in_other_units_is_refused() -> None:
    """The other way round: without numbers, a tree is refused, or it has one unit everywhere."""
    rng = np.random.default_rng(1)
    given = {name: rng.uniform(1.0, 9.0, 50) for name in BY}
    refused = 0
    for name, other in itertools.product(BY, BY):
        for op in BINARY:
            tree = Node(op, (feature(name), feature(other)))  # type: ignore[arg-type]
            formula = Formula(tree)
            before = formula(*(given[key] for key in formula.features))
            after = formula(*(given[key] * BY[key] for key in formula.features))
            with np.errstate(all="ignore"):
                ratio = np.asarray(after) / np.asarray(before)
            alike = bool(np.allclose(ratio, ratio[0], equal_nan=True))
            try:
                unit_of(tree)
            except InputError:
                assert not alike, formula
                refused += 1
            else:
                assert alike, formula
    assert refused == 4 * (6 * 6 - 2 * 2 * 2 - 2)  # pairs of tokens, of seconds; two alone


def test_bounds_are_the_values_at_the_corners_of_what_features_may_be() -> None:
    """Every feature stands once: then nothing is beyond the corners, and bounds are attained."""
    rng = np.random.default_rng(2)
    names = ["predicted_tokens", "prompt_tokens", "arrival_s", "priority", "random_draw",
             "kv_utilization", "running_requests", "now_s"]  # fmt: skip
    sound = 0
    for _ in range(600):
        tree = drawn(rng, 3, list(names), free=False)
        if rng.random() < 0.5:
            tree = Node("sqrt", (Node("max", (tree, Node("literal", value=2.0))),))
        try:
            low, high = limits(tree)
        except InputError:
            continue
        formula = Formula(tree)
        corners = itertools.product(*(limits_of_feature(name) for name in formula.features))
        values = [formula(*corner) for corner in corners]
        assert (low, high) == pytest.approx((min(values), max(values)), rel=1e-12), formula
        sound += 1
    assert sound > 200


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("predicted_tokens", (1.0, 2.0**31)), ("prompt_tokens", (0.0, 2.0**31)),
        ("arrival_s", (0.0, 1e10)), ("priority", (-(2.0**31), 2.0**31)),
        ("kv_utilization", (0.0, 1.0)), ("random_draw", (0.0, 1.0)),
    ],
)  # fmt: skip
def test_what_features_may_be(name: str, ends: tuple[float, float]) -> None:
    assert limits_of_feature(name) == ends


def test_a_text_is_what_python_makes_of_it() -> None:
    """Written, and run by Python itself, a tree gives its own bits; read again it is as before."""
    rng = np.random.default_rng(3)
    given = {name: rng.uniform(1.0, 9.0, 7) for name in BY}
    for _ in range(400):
        tree = drawn(rng, 4, list(BY))
        tree = with_values(tree, iter([-v if rng.random() < 0.5 else v for v in values_of(tree)]))
        text, formula = spelled(tree), Formula(tree)
        with np.errstate(all="ignore"):
            own = np.asarray(formula(*(given[name] for name in formula.features)))
            run = np.asarray(eval(text, {"np": np, **given}), np.float64)
            read = Formula(of_text(text))
            again = np.asarray(read(*(given[name] for name in read.features)))
        assert own.tobytes() == run.tobytes() == again.tobytes(), text
        short = written(tree, lambda node: repr(node.value), plain=True)
        assert short == text.replace("np.minimum", "min").replace("np.maximum", "max").replace(
            "np.sqrt", "sqrt"
        )


def test_free_numbers_are_met_in_order_and_nothing_else_is_changed() -> None:
    expression = ast.parse("a * now_s + np.minimum(2.0, -b) / 3.0 - np.sqrt(c)", mode="eval").body
    tree = of_ast(expression, {"a": 5, "b": 6.0, "c": 7.0})
    assert values_of(tree) == [5.0, 6.0, 7.0]
    other = with_values(tree, iter([1.5, 2.5, 3.5]))
    assert values_of(other) == [1.5, 2.5, 3.5]
    assert spelled(other) == "1.5 * now_s + np.minimum(2.0, -2.5) / 3.0 - np.sqrt(3.5)"


def test_numbers_of_one_unit_have_names_of_their_own() -> None:
    names = ("prompt_tokens", "predicted_tokens", "generated_tokens")
    parts = [Node("*", (number(k + 1.0), feature(name))) for k, name in enumerate(names)]
    total = Node("+", (Node("+", (parts[0], parts[1])), parts[2]))
    text = source(Node("+", (feature("computed_tokens"), total)), "score", "It.", "tokens")
    made: dict[str, Any] = {}
    exec(text, made)
    parameters = inspect.signature(made["score"]).parameters
    defaults = {name: one.default for name, one in parameters.items()
                if one.kind is one.KEYWORD_ONLY}  # fmt: skip
    assert defaults == {"weight": 1.0, "weight_2": 2.0, "weight_3": 3.0}
    assert made["score"](1.0, 10.0, 100.0, 1000.0) == 1 + 10 + 200 + 3000


def test_a_file_of_several_functions_is_told_them(tmp_path: Any) -> None:
    file = tmp_path / "two.py"
    file.write_text("def a(now_s):\n    return now_s\ndef b(now_s):\n    return now_s\n")
    with pytest.raises(InputError) as caught:
        load.only_function(str(file))
    assert str(caught.value).endswith(f"needs a function named: {file}:a, {file}:b")
    file.write_text("X = 1\n")
    with pytest.raises(InputError, match=r"needs a function named: none$"):
        load.only_function(str(file))
    with pytest.raises(InputError) as caught:
        load.load_policy(str(file))
    assert str(caught.value) == f"policy file {str(file)!r} needs a function: {file}:score"
