"""How compiled functions take the state: one pointer, whose attributes are arrays.

A numba array is seven words and a reference count; forty of them as arguments cost more than the
work, and minutes of compilation. Here a function takes the address of ``address_table`` and reads
an array's place and shape where it needs them. The arrays belong to the caller.
"""

# numba's extension points carry no types
# mypy: disable-error-code="no-untyped-call, override"

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.core.imputils import lower_getattr_generic
from numba.core.typing.templates import AttributeTemplate
from numba.extending import infer_getattr, intrinsic, models, register_model
from numba.np.arrayobj import get_itemsize, make_array, populate_array

from lengthwise.serving.kernel_state import KINDS

WORDS = 3  # of a row of the table


def _numba_type(name: str) -> Any:
    kind, dimensions = KINDS[name]
    element = numba.from_dtype(kind)
    return types.Array(element, dimensions, "C") if dimensions else element


class StateType(types.Type):
    """The address of an address table."""

    def __init__(self) -> None:
        super().__init__(name="lengthwise.State")


STATE = StateType()
FIELDS = {name: (place, _numba_type(name)) for place, name in enumerate(KINDS)}


@register_model(StateType)
class _StateModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, ir.IntType(64).as_pointer())


@infer_getattr
class _StateAttributes(AttributeTemplate):
    key = StateType

    def generic_resolve(self, kind: Any, name: str) -> Any:
        return FIELDS[name][1] if name in FIELDS else None


@lower_getattr_generic(StateType)  # type: ignore[untyped-decorator]
def _load_field(context: Any, builder: Any, kind: Any, value: Any, name: str) -> Any:
    place, field = FIELDS[name]
    words = [
        builder.load(builder.gep(value, [ir.Constant(ir.IntType(32), place * WORDS + i)]))
        for i in range(WORDS)
    ]
    for word in words:  # the table is not written to while compiled code runs
        word.set_metadata("invariant.load", builder.module.add_metadata([]))
    if not isinstance(field, types.Array):
        return builder.inttoptr(words[0], context.get_value_type(field))
    data = builder.inttoptr(words[0], context.get_data_type(field.dtype).as_pointer())
    itemsize = get_itemsize(context, field)
    shape = words[1 : 1 + field.ndim]
    strides = [ir.Constant(ir.IntType(64), itemsize)]
    if field.ndim == 2:
        strides.insert(0, builder.mul(shape[1], strides[0]))
    array = make_array(field)(context, builder)
    populate_array(
        array, data=data, shape=shape, strides=strides, itemsize=cgutils.intp_t(itemsize),
        meminfo=None,
    )  # fmt: skip
    return array._getvalue()


@intrinsic
def as_state(typingctx: Any, address: Any) -> Any:
    """The state whose address table lies at this address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())

    return STATE(types.int64), generate
