"""From the functions of the fast engine to LLVM: the small Python that they are written in.

They know whole numbers of 64 bits (``//``, ``%`` and ``>>`` as in Python, overflow wraps), floats,
truth, rows and tables of the state. A variable keeps the kind of what it was first given; a
condition that is constant leaves out what stands behind it. Anything else is refused with its line.
numba can do a thousand times more, and took most of a cold start to find that out.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]

from lengthwise.errors import InvariantError
from lengthwise.serving.fast.compiler.memory import Memory
from lengthwise.serving.fast.state import KINDS

WORD, DOUBLE, TRUTH, BYTES = ir.IntType(64), ir.DoubleType(), ir.IntType(1), ir.IntType(8)
PLACE = BYTES.as_pointer()
STORED = {"int": WORD, "uint": WORD, "float": DOUBLE, "bool": TRUTH}
RETURNED = {n: n for n in ("int", "float", "bool")} | {"None": "none", "np.uint64": "uint"}
MARKS = ("kernel", "hot")
FOLDED: dict[type, Callable[..., Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Add: operator.add, ast.Sub: operator.sub,
    ast.Mult: operator.mul, ast.LShift: operator.lshift, ast.Pow: operator.pow,
}  # fmt: skip
COMPARED = {
    ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=",
    ast.Is: "==", ast.IsNot: "!=",
}  # fmt: skip


@dataclass(frozen=True)
class Value:
    """A value in machine code: "int", "uint", "float", "bool", "none", "state", or the name of a
    table after "table:", "row:", or "constants:" (a row that is not written to)."""

    kind: str
    code: Any = None


@dataclass
class Function:
    """A function that was translated: what it returns is known when its first ``return`` is."""

    code: Any = None
    kind: str = "none"


def translate(text: str, entries: Sequence[str], names: Mapping[str, Any], stem: str) -> Any:
    """The LLVM module of a source text; ``entries`` take and return one 64-bit integer.

    ``names`` are the values of global constants that the text imports; its own assignments come on
    top. An entry is called ``lengthwise_<stem>_<name>``.
    """
    module = Module(text, names, stem)
    for name in entries:
        module.entry(name)
    return module.code


class Module:
    """The functions of a text, translated as they are called for."""

    def __init__(self, text: str, names: Mapping[str, Any], stem: str) -> None:
        self.code = ir.Module(stem)
        self.stem = stem
        self.memory = Memory(self.code)
        self.constants = dict(names)
        self._sources: dict[str, ast.FunctionDef] = {}
        self._made: dict[tuple[str, ...], Function] = {}
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef) and any(
                isinstance(mark, ast.Name) and mark.id in MARKS for mark in node.decorator_list
            ):
                self._sources[node.name] = node
            elif isinstance(node, ast.Assign):
                self._define(node.targets[0], node.value)

    def _define(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, part in zip(target.elts, value.elts, strict=True):
                self._define(one, part)
        elif isinstance(target, ast.Name):
            self.constants[target.id] = self.constant(value)

    def entry(self, name: str) -> None:
        """Makes a function that can be called from outside."""
        inner = self.function(name, ("int",))
        kind = ir.FunctionType(WORD, [WORD])
        outer = ir.Function(self.code, kind, f"lengthwise_{self.stem}_{name}")
        builder = ir.IRBuilder(outer.append_basic_block())
        found = builder.call(inner.code, outer.args)
        builder.ret(self.memory.checked(builder, found if inner.kind == "int" else WORD(0)))

    def function(self, name: str, kinds: tuple[str, ...]) -> Function:
        """A function for arguments of these kinds."""
        key = (name, *kinds)
        if key not in self._made:
            self._made[key] = Function()
            Body(self, self._sources[name], kinds, self._made[key]).translate()
        return self._made[key]

    def has(self, name: str) -> bool:
        """Whether the text defines this function."""
        return name in self._sources

    def constant(self, node: ast.expr, local: frozenset[str] | set[str] = frozenset()) -> Any:
        """The value of an expression that is one before anything runs; None for others."""
        if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
            return node.value
        if isinstance(node, ast.Name) and node.id not in local:
            return self.constants.get(node.id)
        if isinstance(node, ast.UnaryOp):
            value = self.constant(node.operand, local)
            if value is not None:
                return -value if isinstance(node.op, ast.USub) else not value
        if isinstance(node, ast.BoolOp):
            return self._truth([self.constant(one, local) for one in node.values], node.op)
        pair: tuple[ast.expr, ast.expr] | None = None
        kind: type = type(None)
        if isinstance(node, ast.BinOp):
            pair, kind = (node.left, node.right), type(node.op)
        elif isinstance(node, ast.Compare) and len(node.ops) == 1:
            pair, kind = (node.left, node.comparators[0]), type(node.ops[0])
        if pair is not None and kind in FOLDED:
            left, right = (self.constant(one, local) for one in pair)
            if left is not None and right is not None:
                return FOLDED[kind](left, right)
        return None

    @staticmethod
    def _truth(values: list[Any], how: ast.boolop) -> bool | None:
        decides = isinstance(how, ast.Or)  # the value that makes the others irrelevant
        for value in values:
            if value is None:
                return None
            if bool(value) is decides:
                return decides
        return not decides


@dataclass
class Loop:
    """Where ``continue`` and ``break`` go."""

    again: Any
    after: Any


class Body:
    """One function on its way to machine code."""

    def __init__(
        self, module: Module, source: ast.FunctionDef, kinds: tuple[str, ...], made: Function
    ) -> None:
        self.module, self.source, self.kinds, self.made = module, source, kinds, made
        self.memory = module.memory
        self.variables: dict[str, Value] = {}  # a variable's kind and where it lies
        self.local = {a.arg for a in source.args.args} | {
            node.id
            for node in ast.walk(source)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
        self.loops: list[Loop] = []
        self.builder: Any = None
        self.first: Any = None  # the block of variables
        self.found: list[tuple[Any, Value]] = []  # blocks that return, and what

    def translate(self) -> None:
        """Makes the function; its kind is that of what it returns."""
        # its type is known at its end: the body is made in a function that is replaced then
        kinds = [self._stored(kind) for kind in self.kinds]
        name = "_".join((self.source.name, *(k.replace(":", "_") for k in self.kinds)))
        returns = self._returned()
        made = ir.Function(
            self.module.code,
            ir.FunctionType(ir.VoidType() if returns == "none" else self._stored(returns), kinds),
            name,
        )
        made.linkage = "linkonce_odr"  # not "internal": what is called once is not hot for that
        if any(isinstance(d, ast.Name) and d.id == "hot" for d in self.source.decorator_list):
            made.attributes.add("alwaysinline")
        self.made.code, self.made.kind = made, returns
        self.first = made.append_basic_block("variables")
        start = made.append_basic_block("start")
        self.builder = ir.IRBuilder(start)
        for argument, kind, code in zip(self.source.args.args, self.kinds, made.args, strict=True):
            self._assign(argument.arg, Value(kind, code))
        self.block(self.source.body)
        if not self.builder.block.is_terminated:
            if returns == "none":
                self.builder.ret_void()
            else:
                self.builder.unreachable()
        ir.IRBuilder(self.first).branch(start)

    def _returned(self) -> str:
        """The kind that the annotation promises."""
        note = self.source.returns
        text = "None" if note is None else ast.unparse(note)
        if text not in RETURNED:
            raise self.refused(self.source, f"returns {text}")
        return RETURNED[text]

    def refused(self, node: ast.AST, why: str) -> InvariantError:
        """What is wrong with a piece of source."""
        text = ast.unparse(node).splitlines()[0]
        return InvariantError(f"the fast engine's {self.source.name}: {text!r} {why}")

    # Statements

    def block(self, statements: Sequence[ast.stmt]) -> None:
        """Statements in order, until one leaves."""
        for one in statements:
            if self.builder.block.is_terminated:
                return
            method = getattr(self, f"do_{type(one).__name__}", None)
            if method is None:
                raise self.refused(one, "is no statement that it may use")
            method(one)

    def do_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):
            self.value(node.value)

    def do_Return(self, node: ast.Return) -> None:
        if self.made.kind == "none":
            self.builder.ret_void()
        else:
            assert node.value is not None
            self.builder.ret(self.convert(self.value(node.value), self.made.kind, node))

    def do_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            if isinstance(target, ast.Tuple):
                if not isinstance(node.value, ast.Tuple):
                    raise self.refused(node, "takes apart what is no tuple")
                values = [self.value(one) for one in node.value.elts]
                for one, value in zip(target.elts, values, strict=True):
                    self.store(one, value)
                return
        value = self.value(node.value)
        for target in node.targets:
            self.store(target, value)

    def do_AnnAssign(self, node: ast.AnnAssign) -> None:
        assert node.value is not None
        self.store(node.target, self.value(node.value))

    def do_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):
            before = self.name(node.target)
            self.store(node.target, self.operate(before, node.op, self.value(node.value), node))
            return
        place, kind = self.place(node.target)
        before = self.memory.load(self.builder, place, kind)
        after = self.operate(Value(kind.kind, before), node.op, self.value(node.value), node)
        self.memory.store(self.builder, place, kind, self.convert(after, kind.kind, node))

    def do_If(self, node: ast.If) -> None:
        known = self.module.constant(node.test, self.local)
        if known is not None:
            self.block(node.body if known else node.orelse)
            return
        test = self.truth(node.test)
        if test is True or test is False:
            self.block(node.body if test else node.orelse)
            return
        yes, after = self._blocks("then", "after")
        no = self._blocks("else")[0] if node.orelse else after
        self.builder.cbranch(test, yes, no)
        for block, statements in ((yes, node.body), (no, node.orelse)):
            if statements:
                self.builder.position_at_end(block)
                self.block(statements)
                if not self.builder.block.is_terminated:
                    self.builder.branch(after)
        self.builder.position_at_end(after)

    def do_While(self, node: ast.While) -> None:
        again, body, after = self._blocks("while", "do", "done")
        self.builder.branch(again)
        self.builder.position_at_end(again)
        test = self.truth(node.test)
        if test is True:
            self.builder.branch(body)
        elif test is False:
            self.builder.branch(after)
        else:
            self.builder.cbranch(test, body, after)
        self._loop(node.body, Loop(again, after), body)
        if not self.builder.block.is_terminated:
            self.builder.branch(again)
        self.builder.position_at_end(after)

    def do_For(self, node: ast.For) -> None:
        call = node.iter
        if not (isinstance(call, ast.Call) and ast.unparse(call.func) == "range"):
            raise self.refused(node, "goes through what is no range")
        bounds = [self.convert(self.value(one), "int", node) for one in call.args]
        start, end = (WORD(0), bounds[0]) if len(bounds) == 1 else bounds[:2]
        if len(bounds) > 2 or not isinstance(node.target, ast.Name):
            raise self.refused(node, "steps")
        counter = self._variable("int")
        self.builder.store(start, counter)
        again, body, further, after = self._blocks("for", "do", "next", "done")
        self.builder.branch(again)
        self.builder.position_at_end(again)
        count = self.builder.load(counter)
        self.builder.cbranch(self.builder.icmp_signed("<", count, end), body, after)
        self.builder.position_at_end(body)
        self._assign(node.target.id, Value("int", count))
        self._loop(node.body, Loop(further, after), body)
        if not self.builder.block.is_terminated:
            self.builder.branch(further)
        self.builder.position_at_end(further)
        self.builder.store(self.builder.add(self.builder.load(counter), WORD(1)), counter)
        self.builder.branch(again)
        self.builder.position_at_end(after)

    def _loop(self, statements: Sequence[ast.stmt], loop: Loop, body: Any) -> None:
        if self.builder.block is not body:
            self.builder.position_at_end(body)
        self.loops.append(loop)
        self.block(statements)
        self.loops.pop()

    def do_Break(self, node: ast.Break) -> None:
        self.builder.branch(self.loops[-1].after)

    def do_Continue(self, node: ast.Continue) -> None:
        self.builder.branch(self.loops[-1].again)

    # Places

    def store(self, target: ast.expr, value: Value) -> None:
        """Gives a variable, an attribute of a row or an element of a table its value."""
        if isinstance(target, ast.Name):
            self._assign(target.id, value)
            return
        place, kind = self.place(target)
        self.memory.store(self.builder, place, kind, self.convert(value, kind.kind, target))

    def place(self, node: ast.expr) -> Any:
        """Where an attribute or an element lies, and as what."""
        if isinstance(node, ast.Attribute):
            row = self.value(node.value)
            if row.kind.startswith(("row:", "constants:")):
                return self.memory.attribute(self.builder, row, node.attr)
        if isinstance(node, ast.Subscript):
            table = self.value(node.value)
            if table.kind.startswith("table:"):
                parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
                index = [self.convert(self.value(one), "int", node) for one in parts]
                return self.memory.element(self.builder, table, index)
        raise self.refused(node, "is no place in memory")

    def _assign(self, name: str, value: Value) -> None:
        if name not in self.variables:
            self.variables[name] = Value(value.kind, self._variable(value.kind))
        variable = self.variables[name]
        self.builder.store(self.convert(value, variable.kind, ast.Name(name)), variable.code)

    def _variable(self, kind: str) -> Any:
        return ir.IRBuilder(self.first).alloca(self._stored(kind))

    @staticmethod
    def _stored(kind: str) -> Any:
        return STORED.get(kind, PLACE)

    def _blocks(self, *names: str) -> list[Any]:
        return [self.builder.append_basic_block(name) for name in names]

    # Values

    def value(self, node: ast.expr) -> Value:
        """What an expression gives."""
        known = self.module.constant(node, self.local)
        if known is not None:
            return self.literal(known)
        method = getattr(self, f"of_{type(node).__name__}", None)
        if method is None:
            raise self.refused(node, "is no expression that it may use")
        found: Value = method(node)
        return found

    @staticmethod
    def literal(value: bool | int | float) -> Value:
        """A constant; integers from 2^63 on are bit patterns."""
        if isinstance(value, bool):
            return Value("bool", TRUTH(int(value)))
        if isinstance(value, int):
            return Value("int", WORD(value - 2**64 if value >= 2**63 else value))
        return Value("float", DOUBLE(value))

    def of_Name(self, node: ast.Name) -> Value:
        return self.name(node)

    def name(self, node: ast.Name) -> Value:
        """A variable's value."""
        if node.id not in self.variables:
            raise self.refused(node, "has no value here")
        variable = self.variables[node.id]
        return Value(variable.kind, self.builder.load(variable.code))

    def of_Attribute(self, node: ast.Attribute) -> Value:
        owner = self.value(node.value)
        if owner.kind == "state":
            if node.attr not in KINDS:
                raise self.refused(node, "is no table of the state")
            found: Value = self.memory.table(self.builder, owner, node.attr)
            return found
        return self._read(node)

    def of_Subscript(self, node: ast.Subscript) -> Value:
        return self._read(node)

    def _read(self, node: ast.expr) -> Value:
        place, kind = self.place(node)
        if kind.kind.startswith("row:"):
            return Value(kind.kind, place)
        return Value(kind.kind, self.memory.load(self.builder, place, kind))

    def of_UnaryOp(self, node: ast.UnaryOp) -> Value:
        if isinstance(node.op, ast.Not):
            return Value("bool", self.builder.not_(self.bit(node.operand)))
        if isinstance(node.op, ast.USub):
            value = self.value(node.operand)
            if value.kind == "float":
                return Value("float", self.builder.fneg(value.code))
            return Value("int", self.builder.neg(self.convert(value, "int", node)))
        raise self.refused(node, "is no operation that it may use")

    def of_BinOp(self, node: ast.BinOp) -> Value:
        return self.operate(self.value(node.left), node.op, self.value(node.right), node)

    def of_BoolOp(self, node: ast.BoolOp) -> Value:
        return Value("bool", self.bit(node))

    def of_Compare(self, node: ast.Compare) -> Value:
        left, result = self.value(node.left), None
        for how, other in zip(node.ops, node.comparators, strict=True):
            right = self.value(other)
            one = self._compare(left, how, right, node)
            result = one if result is None else self.builder.and_(result, one)
            left = right
        return Value("bool", result)

    def _compare(self, left: Value, how: ast.cmpop, right: Value, node: ast.AST) -> Any:
        kind, (a, b) = self._common(left, right, node)
        sign = COMPARED[type(how)]
        if kind == "float":
            unordered = sign == "!="
            return (self.builder.fcmp_unordered if unordered else self.builder.fcmp_ordered)(
                sign, a, b
            )
        return (self.builder.icmp_unsigned if kind == "uint" else self.builder.icmp_signed)(
            sign, a, b
        )

    def of_IfExp(self, node: ast.IfExp) -> Value:
        known = self.module.constant(node.test, self.local)
        test = self.truth(node.test) if known is None else bool(known)
        if test is True or test is False:
            return self.value(node.body if test else node.orelse)
        yes, no, after = self._blocks("yes", "no", "after")
        self.builder.cbranch(test, yes, no)
        found: list[tuple[Value, Any]] = []
        for block, one in ((yes, node.body), (no, node.orelse)):
            self.builder.position_at_end(block)
            found.append((self.value(one), self.builder.block))
        kind = self._wider(found[0][0], found[1][0], node)
        coming = []
        for value, block in found:
            self.builder.position_at_end(block)
            coming.append((self.convert(value, kind, node), block))
            self.builder.branch(after)
        self.builder.position_at_end(after)
        result = self.builder.phi(self._stored(kind))
        for code, block in coming:
            result.add_incoming(code, block)
        return Value(kind, result)

    # Calls

    def of_Call(self, node: ast.Call) -> Value:
        name = ast.unparse(node.func)
        if node.keywords:
            raise self.refused(node, "names its arguments")
        if self.module.has(name):
            arguments = [self.value(one) for one in node.args]
            kinds = tuple(one.kind for one in arguments)
            made = self.module.function(name, kinds)
            codes = [one.code for one in arguments]
            return Value(made.kind, self.builder.call(made.code, codes))
        built = getattr(self, f"call_{name.replace('.', '_')}", None)
        if built is None:
            raise self.refused(node, "calls what is not there")
        found: Value = built(node, [self.value(one) for one in node.args])
        return found

    def call_len(self, node: ast.Call, given: list[Value]) -> Value:
        return Value("int", self.memory.length(self.builder, given[0]))

    def call_as_state(self, node: ast.Call, given: list[Value]) -> Value:
        return Value("state", self.builder.inttoptr(given[0].code, PLACE))

    def call_node_of(self, node: ast.Call, given: list[Value]) -> Value:
        found: Value = self.memory.node_of(self.builder, *given)
        return found

    def call_min(self, node: ast.Call, given: list[Value]) -> Value:
        return self._best("<", node, given)

    def call_max(self, node: ast.Call, given: list[Value]) -> Value:
        return self._best(">", node, given)

    def _best(self, sign: str, node: ast.Call, given: list[Value]) -> Value:
        best = given[0]
        for other in given[1:]:
            kind, (a, b) = self._common(best, other, node)
            compare = self.builder.fcmp_ordered if kind == "float" else self.builder.icmp_signed
            best = Value(kind, self.builder.select(compare(sign, b, a), b, a))
        return best

    def call_np_float64(self, node: ast.Call, given: list[Value]) -> Value:
        return Value("float", self.convert(given[0], "float", node))

    def call_np_int64(self, node: ast.Call, given: list[Value]) -> Value:
        return Value("int", given[0].code)

    def call_np_uint64(self, node: ast.Call, given: list[Value]) -> Value:
        return Value("uint", given[0].code)

    def call_ceil(self, node: ast.Call, given: list[Value]) -> Value:
        return self._rounded("llvm.ceil", node, given)

    def call_floor(self, node: ast.Call, given: list[Value]) -> Value:
        return self._rounded("llvm.floor", node, given)

    def call_rint(self, node: ast.Call, given: list[Value]) -> Value:
        return self._rounded("llvm.rint", node, given)

    def _rounded(self, name: str, node: ast.Call, given: list[Value]) -> Value:
        function = self.module.code.declare_intrinsic(name, [DOUBLE])
        whole = self.builder.call(function, [self.convert(given[0], "float", node)])
        return Value("int", self.builder.fptosi(whole, WORD))

    def call_bits_of(self, node: ast.Call, given: list[Value]) -> Value:
        return Value("int", self.builder.bitcast(given[0].code, WORD))

    def call_float_of(self, node: ast.Call, given: list[Value]) -> Value:
        return Value("float", self.builder.bitcast(given[0].code, DOUBLE))

    def call_word_at(self, node: ast.Call, given: list[Value]) -> Value:
        place = self.builder.inttoptr(given[0].code, WORD.as_pointer())
        return Value("int", self.builder.load(place))

    def call_put_word(self, node: ast.Call, given: list[Value]) -> Value:
        place = self.builder.inttoptr(given[0].code, WORD.as_pointer())
        self.builder.store(given[1].code, place)
        return Value("none")

    def call_call_score(self, node: ast.Call, given: list[Value]) -> Value:
        pair = self.builder.inttoptr(given[0].code, WORD.as_pointer())
        code, numbers = (self.builder.load(self.builder.gep(pair, [WORD(i)])) for i in range(2))
        function = self.builder.inttoptr(code, ir.FunctionType(WORD, [WORD] * 4).as_pointer())
        codes = [self.convert(one, "int", node) for one in given[1:]]
        return Value("int", self.builder.call(function, [*codes, numbers]))

    # Operations

    def truth(self, node: ast.expr) -> Any:
        """Whether an expression holds: True or False if that is known by now, else one bit."""
        known = self.module.constant(node, self.local)
        if known is not None:
            return bool(known)
        if isinstance(node, ast.BoolOp):
            return self._chain(node)
        return self._bit(self.value(node), node)

    def bit(self, node: ast.expr) -> Any:
        """The same as one bit."""
        found = self.truth(node)
        return TRUTH(int(found)) if isinstance(found, bool) else found

    def _chain(self, node: ast.BoolOp) -> Any:
        """``and`` and ``or``: what comes later is looked at only where it matters."""
        decides = isinstance(node.op, ast.Or)
        coming: list[Any] = []
        after = None
        last: Any = not decides
        for one in node.values:
            if not isinstance(last, bool):  # it is known when it runs: go on unless it decides
                after = after or self._blocks("after")[0]
                further = self._blocks("further")[0]
                coming.append(self.builder.block)
                self.builder.cbranch(last, *((after, further) if decides else (further, after)))
                self.builder.position_at_end(further)
            last = self.truth(one)
            if last is decides:
                break
        if after is None:
            return last
        coming_last = self.builder.block
        self.builder.branch(after)
        self.builder.position_at_end(after)
        result = self.builder.phi(TRUTH)
        for block in coming:
            result.add_incoming(TRUTH(int(decides)), block)
        result.add_incoming(TRUTH(int(last)) if isinstance(last, bool) else last, coming_last)
        return result

    def _bit(self, value: Value, node: ast.AST) -> Any:
        if value.kind == "bool":
            return value.code
        if value.kind == "float":
            return self.builder.fcmp_unordered("!=", value.code, DOUBLE(0.0))
        return self.builder.icmp_signed("!=", self.convert(value, "int", node), WORD(0))

    def operate(self, left: Value, how: ast.operator, right: Value, node: ast.AST) -> Value:
        """Arithmetic on two values."""
        if isinstance(how, ast.Div):
            a, b = (self.convert(one, "float", node) for one in (left, right))
            return Value("float", self.builder.fdiv(a, b))
        kind, (a, b) = self._common(left, right, node)
        if kind == "bool":
            kind, (a, b) = "int", [self.convert(one, "int", node) for one in (left, right)]
        builder, name = self.builder, type(how).__name__
        simple = {
            "float": {"Add": builder.fadd, "Sub": builder.fsub, "Mult": builder.fmul},
            "int": {
                "Add": builder.add, "Sub": builder.sub, "Mult": builder.mul,
                "LShift": builder.shl, "RShift": builder.ashr, "BitAnd": builder.and_,
                "BitOr": builder.or_, "BitXor": builder.xor,
                "FloorDiv": self._floor_divide, "Mod": self._modulo,
            },
            "uint": {
                "Add": builder.add, "Sub": builder.sub, "Mult": builder.mul,
                "LShift": builder.shl, "RShift": builder.lshr, "BitAnd": builder.and_,
                "BitOr": builder.or_, "BitXor": builder.xor, "Mod": builder.urem,
            },
        }  # fmt: skip
        if name not in simple.get(kind, {}):
            raise self.refused(node, f"is no operation on {kind}")
        return Value(kind, simple[kind][name](a, b))

    def _floor_divide(self, a: Any, b: Any) -> Any:
        return self.builder.sub(
            self.builder.sdiv(a, b), self.builder.zext(self._rounds(a, b)[0], WORD)
        )

    def _modulo(self, a: Any, b: Any) -> Any:
        below, rest = self._rounds(a, b)
        return self.builder.add(rest, self.builder.select(below, b, WORD(0)))

    def _rounds(self, a: Any, b: Any) -> tuple[Any, Any]:
        """Whether a / b is rounded down where the processor rounds to zero; what it leaves."""
        rest = self.builder.srem(a, b)
        opposite = self.builder.icmp_signed("<", self.builder.xor(rest, b), WORD(0))
        return self.builder.and_(self.builder.icmp_signed("!=", rest, WORD(0)), opposite), rest

    def _common(self, left: Value, right: Value, node: ast.AST) -> tuple[str, list[Any]]:
        kind = self._wider(left, right, node)
        return kind, [self.convert(one, kind, node) for one in (left, right)]

    def _wider(self, left: Value, right: Value, node: ast.AST) -> str:
        kinds = {left.kind, right.kind}
        if len(kinds) == 1:
            return left.kind
        for wide, narrow in (("float", {"int", "bool"}), ("int", {"bool"})):
            if wide in kinds and kinds - {wide} <= narrow:
                return wide
        raise self.refused(node, f"mixes {left.kind} and {right.kind}")

    def convert(self, value: Value, kind: str, node: ast.AST) -> Any:
        """A value as one of another kind, where nothing is lost."""
        if value.kind == kind:
            return value.code
        if (value.kind, kind) == ("bool", "int"):
            return self.builder.zext(value.code, WORD)
        if (value.kind, kind) in (("int", "float"), ("uint", "float"), ("bool", "float")):
            whole = value.code
            if value.kind == "uint":
                return self.builder.uitofp(whole, DOUBLE)
            if value.kind == "bool":
                whole = self.builder.zext(whole, WORD)
            return self.builder.sitofp(whole, DOUBLE)
        raise self.refused(node, f"makes {kind} of {value.kind}")
