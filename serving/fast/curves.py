"""Features that are curves over generated tokens, looked up as ``lengthwise.curves`` does."""

# compiled from its text; to mypy every number that an array yields is Any
# mypy: disable-error-code="no-any-return, return-value, call-arg"

from __future__ import annotations

from typing import Any

import numpy as np

from lengthwise.serving.fast.compiler.jit import hot, kernel

LINEAR, FALLING = 1, 2  # places in lengthwise.curves.BETWEEN


@kernel
def curve_at(S: Any, which: int, id: int, generated: int) -> float:
    """``Predictions.at`` for one request; ``which`` is a feature's place in ``CURVES``."""
    curve, data = S.curve[which], S.curve_data
    done = np.float64(generated)
    place, beyond = 0, curve.points
    while beyond - place > 1:  # the last edge that is reached
        middle = (place + beyond) >> 1
        if data[curve.edges_at + middle] <= done:
            place = middle
        else:
            beyond = middle
    start = curve.values_at + S.curve_row[which, id] * curve.points
    edge = data[curve.edges_at + place]
    value = data[start + place]
    past = done - edge
    if curve.between == FALLING:
        value = value - past
    elif curve.between == LINEAR and place + 1 < curve.points:
        width = data[curve.edges_at + place + 1] - edge
        value = value + (data[start + place + 1] - value) / width * past
    value = max(value, 1.0)
    if len(S.limit):
        value = min(value, np.float64(max(S.limit[id] - generated, 1)))
    return value


@hot
def fill_curves(S: Any, row: int, id: int, generated: int) -> None:
    """Writes those curves that are tabulated."""
    to = S.rows[row]
    if S.curve[0].points > 0:
        to.expected_remaining_tokens = curve_at(S, 0, id, generated)
    if S.curve[1].points > 0:
        to.gittins_index = curve_at(S, 1, id, generated)
    if S.curve[2].points > 0:
        to.remaining_tokens_p90 = curve_at(S, 2, id, generated)
