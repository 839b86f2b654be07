"""How compiled functions take the state: one pointer, whose attributes are tables.

Forty arrays as arguments cost more than the work. Here a function takes the address of
``address_table`` and reads a table's place where it needs it. Elements are words of 64 bits, or
rows whose fields are attributes; smaller ones widen. The memory belongs to the caller.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]

from lengthwise.errors import InvariantError
from lengthwise.serving.fast.state import FAULT, KINDS

COLUMNS = 3  # of the address table: address and shape
CHECKED = os.environ.get("NUMBA_BOUNDSCHECK") == "1"
WORD, SHORT, DOUBLE, BYTE = ir.IntType(64), ir.IntType(32), ir.DoubleType(), ir.IntType(8)
SINGLE = ir.FloatType()
PLACES = {name: place for place, name in enumerate(KINDS)}
# rows of one dtype are of one kind, called after the first table of them
ROWS = {name: next(k for k in KINDS if KINDS[k][0] == KINDS[name][0]) for name in KINDS}
STORED = {
    "int64": ("int", WORD), "int32": ("int", SHORT), "int8": ("int", BYTE),
    "float64": ("float", DOUBLE), "float32": ("float", SINGLE),
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """What lies at a place: the kind of its value, and how it is stored."""

    kind: str
    code: Any = None
    constant: bool = False


@dataclass(frozen=True)
class Table:
    """A table of the state: ``code`` points to its row of the address table."""

    kind: str
    code: Any


class Memory:
    """Loads and stores of a module. With ``NUMBA_BOUNDSCHECK=1`` each index is checked: one that is
    out of bounds reads and writes a place of its own, and entries return ``FAULT``."""

    def __init__(self, module: ir.Module) -> None:
        self._module = module
        self._invariant: Any = None
        if CHECKED:
            largest = max(kind.itemsize for kind, _ in KINDS.values())
            self._fault = self._global("fault", WORD)
            self._nowhere = self._global("nowhere", ir.ArrayType(BYTE, largest))

    def _global(self, name: str, kind: Any) -> Any:
        made = ir.GlobalVariable(self._module, kind, f"{self._module.name}_{name}")
        made.linkage, made.initializer = "internal", ir.Constant(kind, None)
        return made

    def checked(self, builder: Any, code: Any) -> Any:
        """What an entry returns."""
        if not CHECKED:
            return code
        wrong = builder.icmp_signed("!=", builder.load(self._fault), WORD(0))
        return builder.select(wrong, WORD(FAULT), code)

    def table(self, builder: Any, state: Any, name: str) -> Any:
        """A table, or its only row."""
        row = builder.gep(state.code, [SHORT(PLACES[name] * COLUMNS * WORD.width // 8)])
        if KINDS[name][1]:
            return Table(f"table:{name}", row)
        return Table(f"row:{ROWS[name]}", self._address(builder, row))

    def node_of(self, builder: Any, state: Any, replica: Any) -> Any:
        """The row of a replica's node; which one it is does not change while a run lasts."""
        row, _ = self.element(builder, self.table(builder, state, "replica"), [replica.code])
        place, _ = self.attribute(builder, Table("row:replica", row), "node")
        which = self._never_changes(builder.load(place))
        node, _ = self.element(builder, self.table(builder, state, "node"), [which])
        return Table("constants:node", node)

    def length(self, builder: Any, table: Any) -> Any:
        """The first of a table's dimensions."""
        return self._constant(builder, table.code, 1)

    def _constant(self, builder: Any, row: Any, column: int) -> Any:
        """A word of the address table, which is not written to while compiled code runs."""
        words = builder.bitcast(row, WORD.as_pointer())
        return self._never_changes(builder.load(builder.gep(words, [SHORT(column)])))

    def _address(self, builder: Any, row: Any) -> Any:
        start = builder.bitcast(row, BYTE.as_pointer().as_pointer())
        return self._never_changes(builder.load(start))

    def _never_changes(self, load: Any) -> Any:
        if self._invariant is None:
            self._invariant = self._module.add_metadata([])
        load.set_metadata("invariant.load", self._invariant)
        return load

    def element(self, builder: Any, table: Any, index: list[Any]) -> tuple[Any, Stored]:
        """Where an element of a table lies."""
        name = table.kind.removeprefix("table:")
        kind, dimensions = KINDS[name]
        assert len(index) == dimensions, name
        offset = index[0]
        if dimensions == 2:
            wide = self._constant(builder, table.code, 2)
            offset = builder.add(builder.mul(offset, wide), index[1])
        offset = builder.mul(offset, WORD(kind.itemsize))
        place = builder.gep(self._address(builder, table.code), [offset])
        if CHECKED:
            place = self._inside(builder, table, index, place)
        if kind.names is not None:
            return place, Stored(f"row:{ROWS[name]}")
        value, stored = STORED[kind.name]
        return builder.bitcast(place, stored.as_pointer()), Stored(value, stored)

    def _inside(self, builder: Any, table: Any, index: list[Any], place: Any) -> Any:
        for axis, one in enumerate(index):
            inside = builder.icmp_unsigned("<", one, self._constant(builder, table.code, 1 + axis))
            with builder.if_then(builder.not_(inside), likely=False):
                builder.store(WORD(1), self._fault)
            nowhere = builder.bitcast(self._nowhere, BYTE.as_pointer())
            place = builder.select(inside, place, nowhere)
        return place

    def attribute(self, builder: Any, row: Any, name: str) -> tuple[Any, Stored]:
        """Where a field of a row lies."""
        how, _, table = row.kind.partition(":")
        fields: Any = KINDS[table][0].fields or {}
        if name not in fields:
            raise InvariantError(f"rows of the fast engine's table {table} have no {name}")
        kind, offset = fields[name][:2]
        value, stored = STORED[kind.name]
        place = builder.gep(row.code, [SHORT(offset)])
        place = builder.bitcast(place, stored.as_pointer())
        return place, Stored(value, stored, constant=how == "constants")

    def load(self, builder: Any, place: Any, kind: Stored) -> Any:
        """The value at a place."""
        found = builder.load(place)
        if kind.constant:
            self._never_changes(found)
        if kind.code is SINGLE:
            return builder.fpext(found, DOUBLE)
        return builder.sext(found, WORD) if kind.code in (SHORT, BYTE) else found

    def store(self, builder: Any, place: Any, kind: Stored, value: Any) -> None:
        """Writes a value that has the place's kind."""
        if kind.code in (SHORT, BYTE):
            value = builder.trunc(value, kind.code)
        elif kind.code is SINGLE:
            value = builder.fptrunc(value, SINGLE)
        builder.store(value, place)
