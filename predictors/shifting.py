"""Predictions moved in the logarithm of the length, or held below what a client allows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lengthwise.context import Context
from lengthwise.prediction import Floats, Prediction
from lengthwise.predictors.targets import Bucket


def capped(prediction: Prediction, context: Context | None) -> Prediction:
    """The same, but no length beyond its request's max_tokens; ``context`` of the same n requests.

    Bucket probabilities stay: they say how long the answer would be if it might.
    """
    limits = None if context is None else context.limits()
    if limits is None or prediction.tokens is None:
        return prediction
    quantiles = prediction.quantiles
    return replace(
        prediction,
        tokens=np.minimum(prediction.tokens, limits),
        limits=limits,
        quantiles=None if quantiles is None else np.minimum(quantiles, limits[:, None]),
    )


def shifted(prediction: Prediction, logs: Floats) -> Prediction:
    """Exact lengths, ranks or quantiles times exp(``logs``), (n,).

    A rank becomes the logarithm of its calibrated length, the one scale that a shift is on.
    """
    assert prediction.tokens is not None  # whoever was fitted is calibrated
    tokens = prediction.tokens * np.exp(logs)
    if prediction.rank is not None:
        return replace(prediction, tokens=tokens, rank=np.log(tokens))
    if prediction.quantiles is not None:
        longer = prediction.quantiles * np.exp(logs)[:, None]
        return replace(prediction, tokens=tokens, quantiles=longer)
    return replace(prediction, tokens=tokens)


def rebucketed(prediction: Prediction, logs: Floats, told: Bucket) -> Prediction:
    """Buckets times exp(``logs``), (n,), as probabilities of the buckets ``told``.

    Within a bucket the logarithm of the length counts as uniform.
    """
    assert prediction.edges is not None and prediction.probabilities is not None
    rows = len(prediction.probabilities)
    below = np.concatenate((np.zeros((rows, 1)), prediction.probabilities.cumsum(axis=1)), axis=1)
    below[:, -1] = 1.0
    at, asked = np.log(np.maximum(prediction.edges, 0.5)), np.log(np.maximum(told.edges, 0.5))
    reached = np.stack([np.interp(asked - logs[i], at, below[i]) for i in range(rows)])
    reached[:, 0], reached[:, -1] = 0.0, 1.0
    return Prediction.bucketed(np.diff(reached, axis=1), told.edges, told.means, spread=told.spread)
