"""Features that are curves over generated tokens, looked up as ``lengthwise.curves`` does."""

# compiled from its text; to mypy every number that an array yields is Any
# mypy: disable-error-code="no-any-return, return-value, call-arg"

from __future__ import annotations

from typing import Any

import numpy as np

from lengthwise.serving.fast.compiler.jit import kernel

LINEAR, FALLING = 1, 2  # places in lengthwise.curves.BETWEEN
CERTAIN = 3  # behind them: see ``tabulated``


@kernel
def curve_at(S: Any, which: int, id: int, generated: int) -> float:
    """``Predictions.at`` for one request; ``which`` is a feature's place in ``CURVES``."""
    curve, data = S.curve[which], S.curve_data
    done = np.float64(generated)
    if curve.between == CERTAIN:
        return max(S.predicted[id] - done, 1.0)
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
