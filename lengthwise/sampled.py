"""Values of features of the sizes that runs see, to try a score on."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.features import FEATURES

# What is never 0 in a run.
LEAST = {"prompt_tokens": 1, "predicted_tokens": 1, "max_seats": 1, "decode_tokens_per_s": 1}


def columns(n: int, *, seed: int) -> dict[str, NDArray[Any]]:
    """``n`` values of every feature, (n,) each, in the feature's own type."""
    rng = np.random.default_rng(seed)
    found: dict[str, NDArray[Any]] = {}
    for feature in FEATURES.values():
        scale = 10.0 ** rng.uniform(0, 4, n)
        if feature.unit == "1" and feature.dtype == "float64":
            values = rng.random(n)
        elif feature.dtype == "float64":
            values = rng.random(n) * scale
        else:
            values = np.floor(rng.random(n) * (scale + 1))
        found[feature.name] = values.astype(feature.dtype)
    found["now_s"] += found["arrival_s"]
    found["predicted_tokens"] = np.maximum(found["predicted_tokens"], 1.0)
    return found


def with_edges(n: int, *, seed: int) -> dict[str, NDArray[Any]]:
    """The same, but the first are 0 in all that may be, and the second 1."""
    found = columns(n, seed=seed)
    for name, values in found.items():
        values[:2] = 0, 1
        found[name] = np.maximum(values, LEAST.get(name, 0))
    return found
