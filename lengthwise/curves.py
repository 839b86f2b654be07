"""Curves over generated tokens: what is expected to come, tabulated before a run and looked up."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lengthwise.errors import InputError, UnknownNameError

Between = Literal["step", "linear", "falling"]
BETWEEN: tuple[Between, ...] = get_args(Between)


@dataclass(frozen=True)
class Curve:
    """For each of n requests tokens still to come, as a function of those generated: 1 or more.

    Curve k of the m in ``values`` (m, K) holds at ``edges`` (K,), generated tokens that ascend from
    0; request i follows curve ``row[i]``, so that many requests can share few. From one edge to the
    next a curve stays ("step"), falls by 1 a token ("falling") or runs straight ("linear"); after
    the last edge it stays or, if falling, falls on.

    Engines and plugins evaluate this table, in this order of operations, to the same bits.
    """

    edges: NDArray[np.float64]
    values: NDArray[np.float64]
    row: NDArray[np.int32]
    between: Between = "linear"

    @classmethod
    def table(
        cls,
        edges: ArrayLike,
        values: ArrayLike,
        row: ArrayLike | None = None,
        between: Between = "linear",
    ) -> Curve:
        """A curve of checked arrays; without ``row`` each request has its own."""
        if between not in BETWEEN:
            raise UnknownNameError("way between the edges of a curve", str(between), BETWEEN)
        e, v = np.array(edges, dtype=np.float64), np.array(values, dtype=np.float64)
        if e.ndim != 1 or not len(e) or e[0] != 0 or not (np.diff(e) > 0).all():
            raise InputError("a curve's edges must ascend from 0, in generated tokens")
        if v.ndim != 2 or v.shape[1] != len(e):
            raise InputError(f"a curve of {len(e)} edges has values (n, {len(e)}), not {v.shape}")
        if not np.isfinite(e).all() or not np.isfinite(v).all():
            raise InputError("a curve's edges and values must be finite")
        r = np.arange(len(v)) if row is None else np.asarray(row)
        if r.ndim != 1 or (len(r) and not 0 <= int(r.min()) <= int(r.max()) < len(v)):
            raise InputError(f"a curve's rows must lie in 0 to {len(v) - 1}")
        return cls(e, v, r.astype(np.int32), between)

    def __len__(self) -> int:
        return len(self.row)

    def at(self, requests: Any, generated_tokens: ArrayLike) -> NDArray[np.float64]:
        """Values for ``requests`` (numpy index) that have generated so many tokens each."""
        done = np.asarray(generated_tokens, dtype=np.float64)
        row = self.row[requests]
        place = np.searchsorted(self.edges, done, side="right") - 1
        value = self.values[row, place]
        past = done - self.edges[place]
        if self.between == "falling":
            value = value - past
        elif self.between == "linear":
            after = np.minimum(place + 1, len(self.edges) - 1)
            width = np.where(after > place, self.edges[after] - self.edges[place], 1.0)
            value = value + (self.values[row, after] - value) / width * past
        return np.asarray(np.maximum(value, 1.0))

    def select(self, index: Any) -> Curve:
        """The curves of some of the requests, by numpy index or mask."""
        return Curve(self.edges, self.values, self.row[index], self.between)


class RequestCurve:
    """The linear curve of one request, for an engine that asks for one number at a time.

    ``edges`` and ``values`` (K,) are as of ``Curve``, which gives the same bits.
    """

    __slots__ = ("_edges", "_values")

    def __init__(self, edges: Sequence[float], values: Sequence[float]) -> None:
        self._edges, self._values = edges, values

    @property
    def values(self) -> Sequence[float]:
        """At its edges, (K,)."""
        return self._values

    def at(self, generated_tokens: int) -> float:
        """The value after so many tokens."""
        edges, values = self._edges, self._values
        place = bisect_right(edges, generated_tokens) - 1
        value = values[place]
        if place + 1 < len(edges):
            edge = edges[place]
            slope = (values[place + 1] - value) / (edges[place + 1] - edge)
            value = value + slope * (generated_tokens - edge)
        return value if value > 1.0 else 1.0
