"""A learned score: a small neural network over features, evaluated by numpy alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MLP:
    """``score = MLP((x - shift) / scale)`` over F features, x = log(1 + value) where ``log``.

    ``layers`` is a sequence of (weight (out, in), bias (out,)) pairs, as torch's ``Linear`` stores
    them; tanh between them, none after the last, whose output is one number: the score.
    """

    shift: Floats  # (F,)
    scale: Floats  # (F,)
    log: NDArray[np.bool_]  # (F,)
    layers: tuple[tuple[Floats, Floats], ...]

    def __call__(self, *values: Any) -> Any:
        """The score of each request or replica: scalars in, float out; (n,) arrays in, (n,) out."""
        x = np.stack(np.broadcast_arrays(*(np.asarray(v, np.float64) for v in values)), axis=-1)
        h = self.normalise(x)
        for weight, bias in self.layers[:-1]:
            h = np.tanh(h @ weight.T + bias)
        weight, bias = self.layers[-1]
        score = (h @ weight.T + bias)[..., 0]
        return score if score.ndim else float(score)

    def normalise(self, x: Floats) -> Floats:
        """What the first layer sees, from raw features of shape (..., F)."""
        x = np.where(self.log, np.sign(x) * np.log1p(np.abs(x)), x)
        return np.asarray((x - self.shift) / self.scale)
