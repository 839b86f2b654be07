"""A learned score: a small neural network over features, evaluated by numpy alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.exact import symlog, tanh

Floats = NDArray[np.float64]

NUMBERS = 8192  # between two layers at a time: they stay in the processor's cache


@dataclass(frozen=True, eq=False)
class MLP:
    """``score = MLP((x - shift) / scale)`` over F features; where ``log``, x is the ``symlog`` of
    the feature: sign(x) log(1 + |x|).

    ``layers`` is a sequence of (weight (out, in), bias (out,)) pairs, as torch's ``Linear`` stores
    them; tanh between them, none after the last, whose output is one number: the score. ``skip``
    (F,) adds ``skip @ ((x - shift) / scale)``, which has no bound: beyond what a network was
    trained on tanh is flat, and order is the linear part's.

    The order of operations is part of the contract: a neuron begins with its bias and adds one
    input's product after the other, each rounded; the linear part is summed likewise, from 0, and
    added last. Engines compile the network (``policy.Layered``)
    and give the same bits, whatever stands beside a row. Networks of equal numbers are equal.
    """

    shift: Floats  # (F,)
    scale: Floats  # (F,)
    log: NDArray[np.bool_]  # (F,)
    layers: tuple[tuple[Floats, Floats], ...]
    skip: Floats | None = None  # (F,)

    def __call__(self, *values: Any) -> Any:
        """The score of each request or replica: scalars in, float out; (n,) arrays in, (n,) out."""
        x = np.stack(np.broadcast_arrays(*(np.asarray(v, np.float64) for v in values)), axis=-1)
        rows = x.reshape(-1, x.shape[-1])
        step = max(1, NUMBERS // max(len(bias) for _, bias in self.layers))
        parts = [self._rows(rows[i : i + step]) for i in range(0, len(rows), step)]
        score = np.concatenate(parts).reshape(x.shape[:-1]) if parts else np.zeros(x.shape[:-1])
        return score if score.ndim else float(score)

    def normalise(self, x: Floats) -> Floats:
        """What the first layer sees, from raw features of shape (..., F)."""
        x = np.array(x, np.float64)
        if self.log.any():
            x[..., self.log] = symlog(x[..., self.log])
        return np.asarray((x - self.shift) / self.scale)

    def _rows(self, x: Floats) -> Floats:
        """Scores (n,) of raw features (n, F)."""
        seen = h = np.ascontiguousarray(self.normalise(x).T)
        for weight, bias in self.layers[:-1]:
            h = tanh(_linear(weight, bias, h))
        scores: Floats = _linear(*self.layers[-1], h)[0]
        if self.skip is not None:
            scores += _linear(self.skip[None], np.zeros(1), seen)[0]
        return scores

    @cached_property
    def _content(self) -> tuple[Any, ...]:
        skip = () if self.skip is None else (self.skip,)
        arrays = (self.shift, self.scale, self.log, *sum(self.layers, ()), *skip)
        return tuple((array.shape, array.dtype.str, array.tobytes()) for array in arrays)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MLP) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self._content)


def _linear(weight: Floats, bias: Floats, h: Floats) -> Floats:
    """A layer of neurons (out, n) over inputs (in, n), input by input: no library's own order."""
    total = np.repeat(bias[:, None], h.shape[1], axis=1)
    product = np.empty_like(total)
    for column, one in zip(weight.T, h, strict=True):
        np.multiply(column[:, None], one, out=product)
        total += product
    return total
