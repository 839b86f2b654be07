"""The scores that the fast engine calls: machine code where they compile, else Python, wrapped."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.policy import RoutingPolicy, SchedulingPolicy, Score
from lengthwise.serving.fast.compiler.score import NotCompilable, compile_score
from lengthwise.serving.fast.state import State

_PROTOTYPE = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 4)


def why_python(score: Score) -> str | None:
    """Why a score is called as Python; None if there is machine code for it."""
    try:
        compile_score(score)
    except NotCompilable as reason:
        return str(reason)
    return None


class ScoreCalls:
    """Addresses of a run's scores; ``why`` holds, by policy, why one is called as Python.

    A score that never changes and does not compile is evaluated ahead, as one array.
    """

    def __init__(
        self,
        policies: Sequence[SchedulingPolicy],
        routing: RoutingPolicy,
        replicas: int,
        decode_routing: RoutingPolicy | None = None,
    ) -> None:
        routers = [routing] if decode_routing is None else [routing, decode_routing]
        scores = dict.fromkeys(p.score.name for p in policies)
        scores |= dict.fromkeys(router.score.name for router in routers)
        self.names = " or ".join(map(repr, scores))
        self._error: BaseException | None = None
        self._columns: dict[str, NDArray[Any]] = {}  # of the rows that scores read
        self._out: NDArray[np.float64] = np.zeros(0)
        self._kept: list[Any] = []  # lives as long as it may be called
        found = [self._address(p.score) if p.queue == "priority" else (0, None) for p in policies]
        self.policy_at = [address for address, _ in found]  # 0 where arrival is the order
        self.why = [why for _, why in found]  # None where there is machine code, or no score
        found = [self._address(r.score, "router") for r in routers if replicas > 1]
        self.router_at, self.decode_at = ([address for address, _ in found] + [0, 0])[:2]

    def bind(self, state: State) -> None:
        """Takes the arrays that scores are called with."""
        self._columns = {name: state.rows[name] for name in state.rows.dtype.names or ()}
        self._out = state.out
        state.run[0]["rows_at"] = state.rows.ctypes.data
        state.run[0]["out_at"] = state.out.ctypes.data

    def reraise(self) -> NoReturn:
        """Raises what a score raised."""
        if self._error is not None:
            raise self._error
        raise InputError(f"policy or router {self.names} divided by zero or failed otherwise")

    def _address(self, score: Score, kind: str = "policy") -> tuple[int, str | None]:
        try:
            compiled = compile_score(score)
        except NotCompilable as reason:
            why = str(reason)
        else:
            self._kept.append(compiled)  # and its numbers, which only it holds
            return self._keep(compiled.call), None

        def call(rows: int, count: int, out: int, numbers: int) -> int:
            try:
                # contiguous, as the reference passes them: the last bit may depend on it
                values = {name: self._columns[name][:count].copy() for name in score.features}
                self._out[:count] = score.numbers(values, count, kind)
            except BaseException as error:  # it would vanish in machine code
                self._error = error
                return 1
            return 0

        wrapped = _PROTOTYPE(call)
        self._kept.append(wrapped)
        return self._keep(np.array([ctypes.cast(wrapped, ctypes.c_void_p).value or 0, 0])), why

    def _keep(self, call: NDArray[np.int64]) -> int:
        """The address of a score's ``CompiledScore.call``, which lives as long as this."""
        self._kept.append(call)
        return int(call.ctypes.data)
