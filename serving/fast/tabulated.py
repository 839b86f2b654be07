"""The curves of a run's predictions as arrays of the fast engine's state."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.curves import BETWEEN
from lengthwise.prediction import CURVES, Predictions, Tabulated
from lengthwise.serving.fast.state import CURVE

CERTAIN = len(BETWEEN)  # in place of one: what is left of ``predicted``, and no table of it


def curve_arrays(predictions: Predictions | None, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Those of the state's arrays that hold the curves which ``names`` read; empty without any."""
    read = set(names) & set(CURVES)
    heads = np.zeros(len(CURVES), CURVE)
    if not read:
        return {
            "curve": heads, "curve_data": np.zeros(0), "curve_row": np.zeros((1, 0), np.int32),
            "limit": np.zeros(0, np.int64),
        }  # fmt: skip
    assert predictions is not None  # a feature without predictions is refused before
    if _is_certain(predictions):
        heads["between"], heads["points"] = CERTAIN, 1
        return {
            "curve": heads, "curve_data": np.zeros(0), "curve_row": np.zeros((1, 0), np.int32),
            "limit": np.zeros(0, np.int64),
        }  # fmt: skip
    rows = np.zeros((len(CURVES), len(predictions)), np.int32)
    parts: list[NDArray[np.float64]] = []
    begun: dict[int, int] = {}  # a curve that stands for several features is kept once
    size = 0
    for place, name in enumerate(CURVES):
        if name not in read:
            continue
        curve = predictions.curves[name]
        if id(curve) not in begun:
            begun[id(curve)] = size
            parts += [curve.edges, curve.values.ravel()]
            size += curve.edges.size + curve.values.size
        start, points = begun[id(curve)], len(curve.edges)
        heads[place] = (start, points, start + points, BETWEEN.index(curve.between))
        rows[place] = curve.row
    limit = predictions.max_tokens
    return {
        "curve": heads, "curve_data": np.concatenate(parts), "curve_row": rows,
        "limit": np.zeros(0, np.int64) if limit is None else limit,
    }  # fmt: skip


def _is_certain(predictions: Predictions) -> bool:
    """Whether all curves are what is left of one predicted length, the one in the columns."""
    curves = predictions.curves
    if not isinstance(curves, Tabulated) or not curves.prediction.certain:
        return False
    lengths = curves.prediction.predicted_tokens
    if predictions.max_tokens is not None:
        lengths = np.minimum(lengths, predictions.max_tokens)
    return bool((np.maximum(predictions.predicted_tokens, 1.0) == np.maximum(lengths, 1.0)).all())
