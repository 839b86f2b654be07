"""How the fast engine is compiled, calls scores by address, and draws random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.extending import intrinsic

from lengthwise.serving.fast.compiler.library import Shared

F = TypeVar("F", bound=Callable[..., Any])
OPTIONS: dict[str, Any] = {
    "_nrt": False,  # arrays belong to the caller, so references to them need not be counted
    "error_model": "numpy",
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
    "pipeline_class": Shared,
}


def kernel(function: F) -> F:
    """Compiles a function that only compiled functions call."""
    compiled: F = _once(njit(**OPTIONS)(function))
    return compiled


def hot(function: F) -> F:
    """The same, inlined wherever it is called."""
    compiled: F = _once(njit(**OPTIONS, forceinline=True)(function))
    return compiled


def _once(dispatcher: Any) -> Any:
    """Has the function compiled for 64-bit integers alone, not again for each literal and width."""
    resolve = dispatcher.get_call_template

    def widened(arguments: Any, keywords: Any) -> Any:
        return resolve(tuple(map(_wide, arguments)), keywords)

    dispatcher.get_call_template = widened
    return dispatcher


def _wide(kind: Any) -> Any:
    plain: Any = types.unliteral(kind)  # type: ignore[no-untyped-call]
    return types.int64 if isinstance(kind, types.Integer) and plain.signed else plain


@intrinsic
def call_score(typingctx: Any, address: Any, rows: Any, n: Any, out: Any) -> Any:
    """Calls the score whose ``CompiledScore.call`` lies at ``address``; all are 64-bit integers."""
    signature = types.int64(types.int64, types.int64, types.int64, types.int64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(64)
        pair = builder.inttoptr(arguments[0], word.as_pointer())
        code, numbers = (builder.load(builder.gep(pair, [word(i)])) for i in range(2))
        function = builder.inttoptr(code, ir.FunctionType(word, [word] * 4).as_pointer())
        return builder.call(function, [*arguments[1:], numbers])

    return signature, generate


@intrinsic
def ceil(typingctx: Any, value: Any) -> Any:
    """The least integer that is not below a float."""
    return types.int64(types.float64), _rounded("llvm.ceil")


@intrinsic
def rint(typingctx: Any, value: Any) -> Any:
    """The nearest integer to a float, the even one of two."""
    return types.int64(types.float64), _rounded("llvm.rint")


def _rounded(name: str) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = arguments[0]
        function = builder.module.declare_intrinsic(name, [value.type])
        return builder.fptosi(builder.call(function, [value]), ir.IntType(64))

    return generate


@kernel
def splitmix64(x: Any) -> Any:
    """``lengthwise.serving.draws.splitmix64`` on a uint64."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@kernel
def draw(seed: Any, request: Any, counter: Any) -> Any:
    """``lengthwise.serving.draws.draw``: 64 bits from uint64 ``seed`` and two counters."""
    key = splitmix64(seed)
    key = splitmix64(key + np.uint64(request))
    return splitmix64(key + np.uint64(counter))


@kernel
def uniform(seed: Any, request: Any, replica: Any) -> float:
    """``lengthwise.serving.draws.uniform``."""
    return np.float64(draw(seed, request, replica) >> np.uint64(11)) / 9007199254740992.0
