"""What generated scores do with rows and numbers in memory, and with the bits of a number."""

# numba's extension points carry no types
# mypy: disable-error-code="no-untyped-call, untyped-decorator, call-overload, call-arg"

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from lengthwise.serving.fast.state import FEATURE_ROW

WORD, DOUBLE = ir.IntType(64), ir.DoubleType()
LANES = 32  # neurons at a time: eight registers of four numbers


@intrinsic
def feature_row(typingctx: Any, address: Any, index: Any) -> Any:
    """One of the rows of ``FEATURE_ROW`` that begin at an address."""
    row = numba.from_dtype(FEATURE_ROW)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        offset = builder.mul(arguments[1], WORD(FEATURE_ROW.itemsize))
        return builder.inttoptr(builder.add(arguments[0], offset), context.get_value_type(row))

    return row(types.int64, types.int64), generate


@intrinsic
def get(typingctx: Any, numbers: Any, index: Any) -> Any:
    """One of the float64 numbers that begin at an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_place(builder, *arguments))

    return types.float64(types.int64, types.int64), generate


@intrinsic
def put(typingctx: Any, numbers: Any, index: Any, value: Any) -> Any:
    """Writes one of the float64 numbers that begin at an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], _place(builder, *arguments[:2]))
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, types.float64), generate


@intrinsic(prefer_literal=True)
def scratch(typingctx: Any, count: Any) -> Any:
    """The address of ``count`` (a literal) float64 numbers, the function's own while it runs."""
    if not isinstance(count, types.IntegerLiteral):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        with builder.goto_entry_block():
            made = builder.alloca(ir.ArrayType(DOUBLE, count.literal_value))
            made.align = 64
        return builder.ptrtoint(made, WORD)

    return types.int64(count), generate


@intrinsic(prefer_literal=True)
def linear(
    typingctx: Any, numbers: Any, first: Any, x: Any, y: Any, inputs: Any, outputs: Any
) -> Any:
    """A layer of neurons: y = bias + weight @ x, as ``policies.learned`` sums it.

    ``numbers[first:]`` holds weights (inputs, outputs) and then biases; both counts are literals.
    Neurons lie beside each other in registers, so that no sum is in another order than input by
    input; LLVM neither reorders nor contracts what carries no flag that allows it.
    """
    if not all(isinstance(one, types.IntegerLiteral) for one in (inputs, outputs)):
        return None
    rows, width = inputs.literal_value, outputs.literal_value

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        weights = _place(builder, *arguments[:2])
        x, y = (builder.inttoptr(one, DOUBLE.as_pointer()) for one in arguments[2:4])
        whole = width // LANES
        with cgutils.for_range(builder, WORD(whole)) as block:
            first = builder.mul(block.index, WORD(LANES))
            _neurons(builder, weights, x, y, (rows, width), LANES, first)
        if width % LANES:
            first = WORD(whole * LANES)
            _neurons(builder, weights, x, y, (rows, width), width % LANES, first)
        return context.get_dummy_value()

    plain = types.int64, types.int64, types.int64, types.int64
    return types.none(*plain, inputs, outputs), generate


def _neurons(
    builder: Any, weights: Any, x: Any, y: Any, shape: tuple[int, int], lanes: int, first: Any
) -> None:
    """Some neurons beside each other, from ``first`` on, of a layer of shape (inputs, outputs)."""
    rows, width = shape
    kind = ir.VectorType(DOUBLE, lanes)
    none, lane = ir.Constant(kind, ir.Undefined), ir.IntType(32)
    spread = ir.Constant(ir.VectorType(lane, lanes), [0] * lanes)

    def at(start: Any, index: Any) -> Any:
        return builder.bitcast(builder.gep(start, [index]), kind.as_pointer())

    bias = at(weights, builder.add(first, WORD(rows * width)))
    total = cgutils.alloca_once_value(builder, builder.load(bias, align=8))
    with cgutils.for_range(builder, WORD(rows)) as loop:
        one = builder.load(builder.gep(x, [loop.index]))
        same = builder.insert_element(none, one, lane(0))
        place = builder.add(builder.mul(loop.index, WORD(width)), first)
        weight = builder.load(at(weights, place), align=8)
        product = builder.fmul(builder.shuffle_vector(same, none, spread), weight)
        builder.store(builder.fadd(builder.load(total), product), total)
    builder.store(builder.load(total), at(y, first), align=8)


def _place(builder: Any, numbers: Any, index: Any) -> Any:
    return builder.gep(builder.inttoptr(numbers, DOUBLE.as_pointer()), [index], inbounds=True)


@intrinsic
def bits(typingctx: Any, value: Any) -> Any:
    """The 64 bits of a float64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], WORD)

    return types.int64(types.float64), generate


@intrinsic
def of_bits(typingctx: Any, value: Any) -> Any:
    """The float64 that has these 64 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], DOUBLE)

    return types.float64(types.int64), generate


@njit(_nrt=False)
def frexp(value: Any) -> Any:
    """numpy's: a number in [1/2, 1) and a power of two, whose product is ``value``."""
    x, shift = float(value), 1022
    if x == 0.0 or x - x != 0.0:  # or infinite, or NaN
        return x, 0
    if abs(x) < 2.2250738585072014e-308:
        x, shift = x * 18014398509481984.0, 1022 + 54
    word: Any = bits(x)
    power = (word >> 52) & 2047
    return of_bits(word + ((1022 - power) << 52)), power - shift
