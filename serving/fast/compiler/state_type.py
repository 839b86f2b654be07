"""How compiled functions take the state: one pointer, whose attributes are tables.

A numba array is seven words and a reference count; forty of them as arguments cost more than the
work, and minutes of compilation. Here a function takes the address of ``address_table`` and reads
a table's place where it needs it. Elements are words of 64 bits, or rows whose fields are
attributes; 32-bit tables widen on the way. The memory belongs to the caller.
"""

# numba's extension points carry no types
# mypy: disable-error-code="no-untyped-call, override, untyped-decorator"

from __future__ import annotations

import operator
import os
from typing import Any

import numba
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core.imputils import lower_getattr_generic
from numba.core.typing.templates import (
    AbstractTemplate,
    AttributeTemplate,
    infer_getattr,
    infer_global,
    signature,
)
from numba.extending import intrinsic, lower_builtin, models, register_model

from lengthwise.serving.fast.state import KINDS, NODE, REPLICA

COLUMNS = 3  # of the address table: address and shape
CHECKED = os.environ.get("NUMBA_BOUNDSCHECK") == "1"
WORD, SHORT = ir.IntType(64), ir.IntType(32)


class StateType(types.Type):
    """The address of an address table."""

    def __init__(self) -> None:
        super().__init__(name="lengthwise.State")


class TableType(types.Type):
    """The address of one row of an address table."""

    def __init__(self, name: str) -> None:
        super().__init__(name=f"lengthwise.Table.{name}")
        kind, self.dimensions = KINDS[name]
        self.stored = numba.from_dtype(kind)
        self.itemsize = kind.itemsize
        self.element = types.int64 if self.stored == types.int32 else self.stored


class NodeType(types.Type):
    """The address of a row of ``NODE``: constants, which compiled code reads but once."""

    def __init__(self) -> None:
        super().__init__(name="lengthwise.Node")


STATE, NODE_ROW = StateType(), NodeType()
FIELDS = {name: (place, TableType(name)) for place, name in enumerate(KINDS)}


@register_model(StateType)
@register_model(TableType)
@register_model(NodeType)
class _PointerModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, WORD.as_pointer())


@infer_getattr
class _StateAttributes(AttributeTemplate):
    key = StateType

    def generic_resolve(self, kind: Any, name: str) -> Any:
        if name not in FIELDS:
            return None
        table = FIELDS[name][1]
        return table if table.dimensions else table.element


@infer_getattr
class _NodeAttributes(AttributeTemplate):
    key = NodeType

    def generic_resolve(self, kind: Any, name: str) -> Any:
        return numba.from_dtype(NODE[name]) if name in (NODE.names or ()) else None


@lower_getattr_generic(NodeType)
def _load_constant(context: Any, builder: Any, kind: Any, value: Any, name: str) -> Any:
    word = _constant(builder, value, (NODE.names or ()).index(name))  # all fields are words
    return builder.bitcast(word, ir.DoubleType()) if NODE[name].kind == "f" else word


@lower_getattr_generic(StateType)
def _load_field(context: Any, builder: Any, kind: Any, value: Any, name: str) -> Any:
    place, table = FIELDS[name]
    row = builder.gep(value, [SHORT(place * COLUMNS)])
    if table.dimensions:
        return row
    return builder.inttoptr(_constant(builder, row, 0), context.get_value_type(table.element))


def _constant(builder: Any, row: Any, column: int) -> Any:
    """A word that is not written to while compiled code runs, as those of the address table."""
    word = builder.load(builder.gep(row, [SHORT(column)]))
    word.set_metadata("invariant.load", builder.module.add_metadata([]))
    return word


@infer_global(len)
class _Length(AbstractTemplate):
    def generic(self, arguments: Any, keywords: Any) -> Any:
        if len(arguments) == 1 and isinstance(arguments[0], TableType):
            return signature(types.int64, arguments[0])
        return None


@lower_builtin(len, TableType)
def _length(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    return _constant(builder, arguments[0], 1)


def _index(table: Any, index: Any) -> Any:
    plain = types.unliteral(index)
    if table.dimensions == 1 and isinstance(plain, types.Integer):
        return types.int64
    if isinstance(plain, types.BaseTuple) and len(plain) == table.dimensions:
        return types.UniTuple(types.int64, table.dimensions)
    return None


@infer_global(operator.getitem)
class _GetItem(AbstractTemplate):
    def generic(self, arguments: Any, keywords: Any) -> Any:
        table, index = arguments
        if isinstance(table, TableType) and _index(table, index):
            return signature(table.element, table, _index(table, index))
        return None


@infer_global(operator.setitem)
class _SetItem(AbstractTemplate):
    def generic(self, arguments: Any, keywords: Any) -> Any:
        table, index, _ = arguments
        if isinstance(table, TableType) and _index(table, index):
            return signature(types.none, table, _index(table, index), table.element)
        return None


def _place(context: Any, builder: Any, table: Any, row: Any, index: Any) -> Any:
    """The address of an element, as a pointer to its stored type."""
    indices = [index] if table.dimensions == 1 else [
        builder.extract_value(index, i) for i in range(table.dimensions)
    ]  # fmt: skip
    if CHECKED:
        for axis, one in enumerate(indices):
            inside = builder.icmp_unsigned("<", one, _constant(builder, row, 1 + axis))
            with builder.if_then(builder.not_(inside), likely=False):
                message = f"index outside of {table.name}"
                context.call_conv.return_user_exc(builder, IndexError, (message,))
    offset = indices[0]
    if table.dimensions == 2:
        offset = builder.add(builder.mul(offset, _constant(builder, row, 2)), indices[1])
    address = builder.add(_constant(builder, row, 0), builder.mul(offset, WORD(table.itemsize)))
    if isinstance(table.stored, types.Record):
        return builder.inttoptr(address, context.get_value_type(table.stored))
    return builder.inttoptr(address, context.get_data_type(table.stored).as_pointer())


@lower_builtin(operator.getitem, TableType, types.Any)
def _get(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    table = signature.args[0]
    pointer = _place(context, builder, table, *arguments)
    if isinstance(table.stored, types.Record):
        return pointer
    value = builder.load(pointer)
    return builder.sext(value, WORD) if table.stored != table.element else value


@lower_builtin(operator.setitem, TableType, types.Any, types.Any)
def _set(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    table = signature.args[0]
    row, index, value = arguments
    pointer = _place(context, builder, table, row, index)
    if table.stored != table.element:
        value = builder.trunc(value, SHORT)
    builder.store(value, pointer)
    return context.get_dummy_value()


@intrinsic
def as_state(typingctx: Any, address: Any) -> Any:
    """The state whose address table lies at this address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], WORD.as_pointer())

    return STATE(types.int64), generate


@intrinsic
def _node_of(typingctx: Any, state: Any, replica: Any) -> Any:
    """The row of a replica's node; which one it is does not change, so it is read but once."""
    (rows, table), (nodes, node) = FIELDS["replica"], FIELDS["node"]
    column = (REPLICA.names or ()).index("node")  # all fields are words

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        state, index = arguments
        row = builder.gep(state, [SHORT(rows * COLUMNS)])
        place = _place(context, builder, table, row, index)
        which = _constant(builder, builder.bitcast(place, WORD.as_pointer()), column)
        row = builder.gep(state, [SHORT(nodes * COLUMNS)])
        made = _place(context, builder, node, row, which)
        return builder.bitcast(made, WORD.as_pointer())

    return NODE_ROW(STATE, types.int64), generate


node_of: Any = _node_of


@intrinsic
def feature_row(typingctx: Any, address: Any, index: Any) -> Any:
    """One of the rows of ``FEATURE_ROW`` that begin at an address."""
    row = FIELDS["rows"][1]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.add(arguments[0], builder.mul(arguments[1], WORD(row.itemsize)))
        return builder.inttoptr(place, context.get_value_type(row.stored))

    return row.stored(types.int64, types.int64), generate


@intrinsic
def put_score(typingctx: Any, address: Any, index: Any, score: Any) -> Any:
    """Writes one of the scores that begin at an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.add(arguments[0], builder.mul(arguments[1], WORD(8)))
        builder.store(arguments[2], builder.inttoptr(place, ir.DoubleType().as_pointer()))
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, types.float64), generate
