"""A saved predictor for a plugin: one that reads what engines and routers know."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from lengthwise.curves import RequestCurve
from lengthwise.errors import InputError
from lengthwise.policies.plugins.accuracy import LEVEL
from lengthwise.policies.plugins.metrics import Counters
from lengthwise.prediction import CURVES, Prediction
from lengthwise.protocols import Predictor
from lengthwise.registry import loader


def saved_predictor(folder: str | os.PathLike[str]) -> Predictor:
    """The predictor in a folder; raises ``InputError`` for one that reads more than prompts."""
    predictor: Predictor | None = loader("predictor")(os.fspath(folder))
    if predictor is None:
        raise InputError(f"predictor {os.fspath(folder)!r} is none")
    unmet = predictor.needs - {"prompt", "prompt_tokens"}
    if unmet:
        raise InputError(
            f"predictor {os.fspath(folder)!r} needs {', '.join(sorted(unmet))}, which no engine "
            "knows"
        )
    stream = getattr(predictor, "stream", None)
    return predictor if stream is None else stream()


def abstained(prediction: Prediction) -> NDArray[np.bool_]:
    """Which of the n requests the predictor did not order, (n,)."""
    none = np.zeros(len(prediction), dtype=bool)
    return none if prediction.abstained is None else prediction.abstained


def intervals(prediction: Prediction) -> NDArray[np.float64]:
    """From where to where each length is said to lie (``accuracy.LEVEL``), (n, 2); NaN if unknown.

    The observed share of lengths within is what shows whether a predictor still fits.
    """
    if prediction.certain:
        return np.full((len(prediction), 2), np.nan)
    return np.stack(prediction.interval(LEVEL), axis=1)


def curves_of(prediction: Prediction, features: Iterable[str]) -> dict[str, RequestCurve]:
    """Those of a prediction of one request by feature; none of a length without a distribution."""
    if prediction.certain:
        return {}
    curves = {name: prediction.curve(name) for name in features if name in CURVES}
    return {
        name: RequestCurve(curve.edges.tolist(), curve.values[curve.row[0]].tolist())
        for name, curve in curves.items()
    }


def count_abstained(counters: Counters, requests: int) -> None:
    """Counts requests that a predictor did not order; the first of them are said."""
    if requests:
        counters.add("abstained", "predictor", requests)
        counters.warn(
            "abstained",
            "a request is too unlike what the predictor was trained on, and counts as of typical "
            "length",
        )
