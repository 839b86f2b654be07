"""What is wrong with a user's score function, in the user's own lines, and what to write instead.

A score is called with arrays of requests, with single numbers, and compiled. What Python says of
one that can stand only some of these is about arrays inside lengthwise; what is told here is which
line of the function it is, and what says the same of a number and of an array.
"""

from __future__ import annotations

import ast
import copy
import inspect
import linecache
import os
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import CodeType
from typing import Any, Literal

# Which rule of a score a line breaks: it takes the truth of an array, or a number of one; writes
# into its arguments; asks a number for what only arrays have; divides by 0; is not pure; or gives
# no number.
Kind = Literal["truth", "number", "write", "attribute", "zero", "impure", "score", "nan", "other"]
NUMPY_OF = {
    "pow": "power", "asin": "arcsin", "acos": "arccos", "atan": "arctan", "atan2": "arctan2",
    "asinh": "arcsinh", "acosh": "arccosh", "atanh": "arctanh", "dist": "hypot",
}  # fmt: skip
# functions of math that numpy has under the same name
SAME = frozenset(
    "exp expm1 exp2 log log2 log10 log1p sqrt cbrt sin cos tan sinh cosh tanh ceil floor trunc "
    "fabs fmod hypot copysign isnan isinf isfinite radians degrees".split()
)
IMPURE = frozenset({"random", "time", "datetime", "secrets", "uuid"})
ROUNDED = {"int": "np.trunc({})", "round": "np.rint({})", "float": "{}", "bool": "({} != 0)"}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: ``file`` and ``line`` (0: unknown), and what to write instead."""

    kind: Kind
    what: str
    instead: str = ""
    file: str = ""
    line: int = 0

    @property
    def where(self) -> str:
        """``mine.py:3``; empty where nothing is known of it."""
        return f"{self.file}:{self.line}" if self.line else self.file

    def __str__(self) -> str:
        said = f"{self.what}: write {self.instead}" if self.instead else self.what
        return f"{self.where}: {said}" if self.where else said


def code_of(function: Any) -> CodeType | None:
    """The code of a function, of what a partial calls, or of an object's ``__call__``."""
    while isinstance(function, partial):
        function = function.func
    function = inspect.unwrap(function) if callable(function) else function
    found = getattr(function, "__code__", None)
    if found is None:
        found = getattr(vars(type(function)).get("__call__"), "__code__", None)
    return found if isinstance(found, CodeType) else None


def place_of(function: Any) -> tuple[str, int]:
    """The file, as it was named when it was loaded, and the line in which a function begins."""
    code = code_of(function)
    return ("", 0) if code is None else (_shown(code.co_filename), code.co_firstlineno)


def blamed(error: BaseException, function: Any) -> Problem:
    """What raised in a score: the last line of the user's own file on the way."""
    code = code_of(function)
    file, line = ("", 0) if code is None else (code.co_filename, code.co_firstlineno)
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    kinds = _kinds(error)
    for node in _nodes_at(file, line):
        found = rule(node, lambda _: True, raised=True)
        if found is not None and found.kind in kinds:
            return Problem(found.kind, found.what, found.instead, _shown(file), line)
    said = " ".join(str(error).split())
    what = f"raises {type(error).__name__}{f': {said}' if said else ''}"
    return Problem("zero" if "zero" in kinds else "other", what, "", _shown(file), line)


def at_return(function: Any, what: str, instead: str = "", kind: Kind = "score") -> Problem:
    """What is wrong with what a function returns, at its ``return`` if it has just one."""
    file, line = place_of(function)
    tree = _tree(function)
    if tree is not None:
        returns = [node for node in _own(tree) if isinstance(node, ast.Return)]
        line = returns[0].lineno if len(returns) == 1 else line
    return Problem(kind, what, instead, file, line)


def suspects(function: Any, reads: tuple[str, ...]) -> list[Problem]:
    """Every line of a function that breaks a rule as far as its text tells, in order.

    What depends on the features ``reads`` is followed through assignments; other functions are not
    looked into.
    """
    tree = _tree(function)
    if tree is None:
        return []
    file, _ = place_of(function)
    known, fresh = set(reads), set(reads)  # names that hold features; that still are the arguments
    found: list[Problem] = []

    def depends(node: ast.AST) -> bool:
        return any(isinstance(n, ast.Name) and n.id in known for n in ast.walk(node))

    for node in _own(tree):
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            written = node.target.id in fresh
            if depends(node.value):
                known.add(node.target.id)
            if not written:
                continue
        problem = rule(node, depends)
        if problem is not None:
            line = getattr(node, "lineno", 0)
            found.append(Problem(problem.kind, problem.what, problem.instead, file, line))
        for name in _assigned(node):
            fresh.discard(name)
            value = getattr(node, "value", None) or getattr(node, "iter", None)
            if value is not None and depends(value):
                known.add(name)
    first: dict[tuple[int, str], Problem] = {}
    for problem in found:
        first.setdefault((problem.line, problem.kind), problem)
    return [first[key] for key in sorted(first)]


def rule(
    node: ast.AST, depends: Callable[[ast.AST], bool], *, raised: bool = False
) -> Problem | None:
    """The rule that one piece of a function breaks if what ``depends`` says is an array.

    ``raised``: something in its line raised, so that what is right for most values is told too.
    """
    for check in (_truth, _number, _write, _impure):
        found = check(node, depends)
        if found is not None:
            return found
    if not raised:
        return None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div | ast.FloorDiv | ast.Mod):
        by = ast.unparse(node.right)
        return Problem("zero", f"divides by {by}, which may be 0", f"np.maximum({by}, 1)")
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("np", "math"):
        return Problem(
            "attribute",
            f"asks {ast.unparse(node.value)} for .{node.attr}, and engines give single numbers too",
            f"np.{node.attr}({ast.unparse(node.value)}, ...)",
        )
    return None


ALL = "a score gets the features of many requests as arrays"


def _truth(node: ast.AST, depends: Callable[[ast.AST], bool]) -> Problem | None:
    said = ""
    if isinstance(node, ast.If | ast.While | ast.Assert) and depends(node.test):
        word = type(node).__name__.lower()
        return Problem(
            "truth", f"`{word} {ast.unparse(node.test)}` on a feature; {ALL}",
            f"np.where({_for_arrays(node.test)}, ..., ...)",
        )  # fmt: skip
    if isinstance(node, ast.IfExp) and depends(node.test):
        said = f"`if {ast.unparse(node.test)}` on a feature"
    elif isinstance(node, ast.BoolOp) and depends(node):
        said = f"`{'and' if isinstance(node.op, ast.And) else 'or'}` between features"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not) and depends(node.operand):
        said = "`not` of a feature"
    elif isinstance(node, ast.Compare) and len(node.ops) > 1 and depends(node):
        said = f"`{ast.unparse(node)}` of features"
    elif isinstance(node, ast.Call) and _called(node) in ("min", "max") and depends(node):
        said = f"`{_called(node)}` of a feature" if len(node.args) > 1 else ""
    return Problem("truth", f"{said}; {ALL}", _for_arrays(node)) if said else None


def _number(node: ast.AST, depends: Callable[[ast.AST], bool]) -> Problem | None:
    if not isinstance(node, ast.Call) or not depends(node):
        return None
    called = _called(node)
    if called in ROUNDED and node.args:
        instead = ROUNDED[called].format(_for_arrays(node.args[0]))
        return Problem("number", f"`{called}` of a feature; {ALL}", instead)
    base, _, name = called.rpartition(".")
    if base == "math":
        instead = _for_arrays(node)
        instead = "" if instead.startswith("math.") else instead
        return Problem("number", f"math.{name} takes one number; {ALL}", instead)
    return None


def _write(node: ast.AST, depends: Callable[[ast.AST], bool]) -> Problem | None:
    if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
        name = node.target.id
        value = ast.unparse(ast.BinOp(ast.Name(name, ast.Load()), node.op, node.value))
        return Problem(
            "write", f"`{ast.unparse(node)}` writes into an argument, which is the engine's",
            f"{name} = {value}",
        )  # fmt: skip
    target: ast.expr | None = node.target if isinstance(node, ast.AugAssign) else None
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        target = node.targets[0]
    if isinstance(target, ast.Subscript) and depends(target.value):
        name, at = ast.unparse(target.value), ast.unparse(target.slice)
        value = ast.unparse(node.value)  # type: ignore[attr-defined]
        return Problem(
            "write", f"writes into {name}, which may be an argument or a single number",
            f"{name} = np.where({at}, {value}, {name})",
        )  # fmt: skip
    if isinstance(node, ast.Call):
        for word in node.keywords:
            if word.arg == "out" and depends(word.value):
                return Problem("write", f"writes into {ast.unparse(word.value)} by out=")
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("sort", "fill", "put"):
            base = ast.unparse(node.func.value)
            if depends(node.func.value) and base != "np":
                return Problem("write", f".{node.func.attr} writes into {base}")
    return None


def _impure(node: ast.AST, depends: Callable[[ast.AST], bool]) -> Problem | None:
    if isinstance(node, ast.Global | ast.Nonlocal):
        names = ", ".join(node.names)
        return Problem("impure", f"keeps {names} from one call to the next", "a tunable")
    called = _called(node)
    first, _, rest = called.partition(".")
    if called and (first in IMPURE or rest.startswith("random")):
        clock = first in ("time", "datetime")
        return Problem(
            "impure", f"{called} gives another value at each call",
            "now_s, a feature" if clock
            else "random_draw, a feature of simulated engines and routers",
        )  # fmt: skip
    return None


class _ForArrays(ast.NodeTransformer):
    """An expression as one would write it for arrays."""

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        op = ast.BitAnd() if isinstance(node.op, ast.And) else ast.BitOr()
        found: ast.expr = self.visit(node.values[0])
        for other in map(self.visit, node.values[1:]):
            found = ast.BinOp(found, op, other)
        return found

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        inner: ast.expr = self.visit(node.operand)
        if not isinstance(node.op, ast.Not):
            return ast.UnaryOp(node.op, inner)
        return ast.Compare(inner, [ast.Eq()], [ast.Constant(0)])

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        found: Any = None
        left = self.visit(node.left)
        for op, other in zip(node.ops, node.comparators, strict=True):
            right = self.visit(other)
            one = ast.Compare(left, [op], [right])
            found = one if found is None else ast.BinOp(found, ast.BitAnd(), one)
            left = right
        return found  # type: ignore[no-any-return]

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        return _numpy("where", [self.visit(part) for part in (node.test, node.body, node.orelse)])

    def visit_Call(self, node: ast.Call) -> ast.AST:
        called, arguments = _called(node), [self.visit(one) for one in node.args]
        if called in ("min", "max") and len(arguments) > 1:
            found, *others = arguments
            for other in others:
                found = _numpy("minimum" if called == "min" else "maximum", [found, other])
            return found  # type: ignore[no-any-return]
        base, _, name = called.rpartition(".")
        there = name if name in SAME else NUMPY_OF.get(name, "")
        if base == "math" and there:
            return _numpy(there, arguments)
        return ast.Call(node.func, arguments, node.keywords)


def _numpy(name: str, arguments: list[ast.expr]) -> ast.Call:
    function = ast.Attribute(ast.Name("np", ast.Load()), name, ast.Load())
    return ast.Call(function, arguments, [])


def _for_arrays(node: ast.AST) -> str:
    """What to write instead of an expression."""
    return ast.unparse(ast.fix_missing_locations(_ForArrays().visit(copy.deepcopy(node))))


def _called(node: ast.AST) -> str:
    """``math.exp`` of a call of it; empty for what is no call of a name."""
    if not isinstance(node, ast.Call):
        return ""
    return ast.unparse(node.func) if isinstance(node.func, ast.Name | ast.Attribute) else ""


def _kinds(error: BaseException) -> frozenset[str]:
    """The rules that may have been broken where Python raises such an error."""
    said = str(error)
    if isinstance(error, ZeroDivisionError):
        return frozenset({"zero"})
    if isinstance(error, AttributeError):
        return frozenset({"attribute"})
    if isinstance(error, ValueError) and "read-only" in said:
        return frozenset({"write"})
    if isinstance(error, ValueError) and "ambiguous" in said:
        return frozenset({"truth"})
    return frozenset({"number", "write"} if isinstance(error, TypeError) else ())


def _own(tree: ast.AST) -> Iterator[ast.AST]:
    """The pieces of a function in the order of its text, without functions inside it."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            continue
        yield node
        yield from _own(node)


def _assigned(node: ast.AST) -> Iterator[str]:
    """Names that a statement gives a value."""
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign | ast.For | ast.NamedExpr):
        targets = [node.target]
    for target in targets:
        yield from (one.id for one in ast.walk(target) if isinstance(one, ast.Name))


def _tree(function: Any) -> ast.FunctionDef | None:
    """A function as it is written, with the line numbers of its file; None if it can't be read."""
    code = code_of(function)
    if code is None:
        return None
    try:
        lines, start = inspect.getsourcelines(code)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError):
        return None
    ast.increment_lineno(tree, start - 1)
    first = tree.body[0] if tree.body else None
    return first if isinstance(first, ast.FunctionDef) else None


def _nodes_at(file: str, line: int) -> list[ast.AST]:
    """The pieces of a file that stand in a line, the larger ones first."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:
        return []
    return [
        node
        for node in ast.walk(tree)
        if (node.test.lineno if isinstance(node, ast.If | ast.While) else _line(node)) == line
    ]


def _line(node: ast.AST) -> int:
    return int(getattr(node, "lineno", 0))


def _shown(file: str) -> str:
    """A path, from here where that is shorter."""
    if not os.path.isabs(file):
        return file
    try:
        near = os.path.relpath(file)
    except (OSError, ValueError):  # the folder we are in is gone, or it lies on another drive
        return file
    return near if len(near) < len(file) else file
