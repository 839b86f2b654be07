"""A learned score as generated source: one text for all scores of a shape, numbers apart.

A training run exports networks by the dozen, of one shape: only the first is compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.policy import Layered, Score

MOST_STEPS = 256  # of a formula, and numbers on its stack
# In the order of ``policies.formula.CODES``, behind a number.
_BINARY = ("a + b", "a - b", "a * b", "a / b", "numpy.minimum(a, b)", "numpy.maximum(a, b)")
_UNARY = ("numpy.sqrt(a)", "-a")
WIDEST = 4096  # neurons of a layer: two layers lie on the stack


def body(net: Layered, names: tuple[str, ...]) -> str:
    """The statements of ``evaluate``, in the order of operations of ``policies.learned.MLP``."""
    width = len(names)
    widths = [width, *(len(bias) for _, bias in net.layers)]
    lines = [f"x, y = scratch({max(widths)}), scratch({max(widths)})", "for i in range(n):"]
    lines.append("    row = feature_row(rows, i)")
    for i, (name, log) in enumerate(zip(names, net.log.tolist(), strict=True)):
        value = f"_symlog(float(row.{name}))" if log else f"float(row.{name})"
        lines.append(f"    put(x, {i}, ({value} - get(numbers, {i})) / get(numbers, {width + i}))")
    if net.skip is not None:
        first = 2 * width + sum((inputs + 1) * outputs for inputs, outputs in pairwise(widths))
        lines.append("    skip = 0.0")
        for i in range(width):
            lines.append(f"    skip = skip + get(numbers, {first + i}) * get(x, {i})")
    at, x, y = 2 * width, "x", "y"
    for layer, (inputs, outputs) in enumerate(pairwise(widths), start=1):
        lines.append(f"    linear(numbers, {at}, {x}, {y}, {inputs}, {outputs})")
        if layer < len(net.layers):
            lines.append(f"    for j in range({outputs}):")
            lines.append(f"        put({y}, j, _tanh(get({y}, j)))")
        at, x, y = at + (inputs + 1) * outputs, y, x
    total = f"get({x}, 0)" if net.skip is None else f"get({x}, 0) + skip"
    lines.append(f"    put(out, i, {total})")
    return "\n".join(f"    {line}" for line in lines)


def numbers(net: Layered) -> NDArray[np.float64]:
    """What that text reads: shift, scale, and weights (inputs, outputs) and biases by layer."""
    parts: list[Any] = [net.shift, net.scale]
    for weight, bias in net.layers:
        parts += [weight.T.ravel(), bias]
    if net.skip is not None:
        parts.append(net.skip)
    return np.ascontiguousarray(np.concatenate(parts), np.float64)


def weighted(parts: Sequence[Score], entries: list[str]) -> str:
    """The statements of ``evaluate`` for a sum of scores, of which each is ``entries``' function,
    in the order of operations of ``policies.blend.Blend``."""
    lines = ["for i in range(n):", "    row = feature_row(rows, i)", "    total = 0.0"]
    for i, (part, entry) in enumerate(zip(parts, entries, strict=True)):
        values = ", ".join(f"row.{name}" for name in part.features)
        lines.append(f"    total = total + get(numbers, {i}) * float({entry}({values}))")
    lines.append("    put(out, i, total)")
    return "\n".join(f"    {line}" for line in lines)


def stepwise(names: Sequence[str]) -> str:
    """The statements of ``evaluate`` for formulas: the number of steps, and a code and a number for
    each, are read; ``names`` are those of a row, and codes those of ``policies.formula.CODES``.
    """
    lines = [
        f"stack = scratch({MOST_STEPS})",
        "steps = int(get(numbers, 0))",
        "for i in range(n):",
        "    row = feature_row(rows, i)",
        "    top = 0",
        "    for k in range(steps):",
        "        code = int(get(numbers, 1 + 2 * k))",
        "        if code == 0:",
        "            put(stack, top, get(numbers, 2 + 2 * k))",
        "            top = top + 1",
    ]
    for code, text in enumerate(_BINARY, start=1):
        lines += [f"        elif code == {code}:", "            b = get(stack, top - 1)",
                  "            a = get(stack, top - 2)", "            top = top - 1",
                  f"            put(stack, top - 1, {text})"]  # fmt: skip
    for code, text in enumerate(_UNARY, start=1 + len(_BINARY)):
        lines += [f"        elif code == {code}:", "            a = get(stack, top - 1)",
                  f"            put(stack, top - 1, {text})"]  # fmt: skip
    for code, name in enumerate(names, start=1 + len(_BINARY) + len(_UNARY)):
        lines.append(f"        elif code == {code}:")
        lines.append(f"            put(stack, top, float(row.{name}))")
        lines.append("            top = top + 1")
    lines.append("    put(out, i, get(stack, 0))")
    return "\n".join(f"    {line}" for line in lines)
