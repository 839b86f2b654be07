"""Single mistakes that a tired programmer makes: what can be planted in a source file, and where.

Only what changes behaviour is planted: no annotation, no docstring, no text of an error, nothing
that changes an appearance (a plot, a progress line, a representation) or only a speed (a cache, a
copy, the size of a chunk).
"""

import ast
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("lengthwise", "serving", "policies", "envs", "predictors", "eval", "training")

SWAPS: dict[type[ast.AST], tuple[str, str]] = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"), ast.In: ("in", "not in"), ast.NotIn: ("not in", "in"),
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "/"), ast.Mod: ("%", "*"), ast.And: ("and", "or"), ast.Or: ("or", "and"),
}  # fmt: skip

NAMES = {
    "min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "any": "all",
    "all": "any", "argmin": "argmax", "argmax": "argmin", "floor": "ceil", "ceil": "floor",
    "mean": "median", "median": "mean", "cumsum": "asarray",
}  # fmt: skip

# What is said and drawn, kept and hurried: by the names of methods, of receivers, of functions
# whose arguments are left alone, of keywords and of constants.
TEXTS = {"__repr__", "__str__", "_repr_html_"}
DRAWN = {"ax", "axes", "axis", "fig", "figure", "plt", "pyplot", "logger", "log", "bar", "progress"}
SAID = {"print", "sleep", "lru_cache", "cache", "warn", "_notice", "TypeVar", "filterwarnings",
        "errstate", "printoptions", "add_argument", "add_parser"}  # fmt: skip
LOOKS = {"stacklevel", "indent", "width", "flush", "maxsize", "copy", "strict", "frozen", "slots",
         "repr", "kw_only", "figsize", "dpi", "alpha", "color", "fontsize", "linewidth", "lw", "ms",
         "markersize", "pad", "pad_edge", "show_edge", "zorder", "help", "metavar", "rotation",
         "daemon", "capture_output", "exist_ok", "ensure_ascii", "sort_keys", "show_default",
         }  # fmt: skip
HURRIED = ("CHUNK", "BUFFER", "GROWTH", "CACHE", "LEVEL")


@dataclass(frozen=True)
class Mutant:
    """Bytes ``start`` to ``end`` of ``path`` become ``after``; ``text`` is the whole line."""

    path: str
    line: int
    kind: str
    start: int
    end: int
    before: str
    after: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.path}:{self.line} {self.kind}: {self.before!r} -> {self.after!r}"

    def planted(self, source: bytes) -> bytes:
        return source[: self.start] + self.after.encode() + source[self.end :]


class _Finder:
    def __init__(self, path: str, source: bytes) -> None:
        self.path, self.source = path, source
        self.starts = [0]
        self.lines = source.splitlines(keepends=True)
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line))
        self.found: list[Mutant] = []

    def begin(self, node: ast.AST) -> int:
        return self.starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]

    def stop(self, node: ast.AST) -> int:
        return self.starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]

    def add(self, kind: str, start: int, end: int, after: str) -> None:
        before = self.source[start:end].decode()
        line = self.source.count(b"\n", 0, start) + 1
        text = self.lines[line - 1].decode()
        if "pragma: no cover" not in text:
            mutant = Mutant(self.path, line, kind, start, end, before, after, text.strip())
            self.found.append(mutant)

    def between(self, kind: str, left: ast.AST, right: ast.AST, operator: ast.AST) -> None:
        """Swaps an operator that stands between two operands."""
        if type(operator) not in SWAPS:
            return
        old, new = SWAPS[type(operator)]
        start, end = self.stop(left), self.begin(right)
        at = self.source[start:end].find(old.encode())
        if at >= 0:
            self.add(kind, start + at, start + at + len(old), new)

    def visit(self, node: ast.AST) -> None:
        match node:
            case ast.Raise() | ast.Assert() | ast.Import() | ast.ImportFrom() | ast.JoinedStr():
                return
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                return
            case ast.Call() if _is_looks(node.func):
                return
            case ast.Expr(value=ast.Call(func=function)) if _is_drawn(function):
                return
            case ast.keyword(arg=name) if name in LOOKS:
                return
            case ast.FunctionDef(name=name) if name in TEXTS:
                return
            case ast.Assign(targets=[ast.Name(id=name)]) if any(map(name.__contains__, HURRIED)):
                return
            case ast.Expr(value=ast.Constant()):
                return
            case ast.AnnAssign(value=value):
                if value is not None:
                    self.visit(value)
                return
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                inside = [*node.decorator_list, *node.args.defaults, *node.args.kw_defaults]
                for child in [*filter(None, inside), *node.body]:
                    self.visit(child)
                return
            case ast.Compare(left=left, ops=[operator], comparators=[right]):
                self.between("comparison", left, right, operator)
            case ast.BinOp(left=left, op=operator, right=right):
                if not any(_is_text(side) for side in (left, right)):
                    self.between("arithmetic", left, right, operator)
            case ast.BoolOp(op=operator, values=[first, second, *_]):
                self.between("logic", first, second, operator)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                self.add("logic", self.begin(node), self.begin(operand), "")
            case ast.UnaryOp(op=ast.USub(), operand=operand) if not isinstance(
                operand, ast.Constant
            ):
                self.add("sign", self.begin(node), self.begin(operand), "")
            case ast.Constant(value=bool() as value):
                self.add("constant", self.begin(node), self.stop(node), str(not value))
            case ast.Constant(value=int() as value):
                self.add("constant", self.begin(node), self.stop(node), str(value + 1))
            case ast.Constant(value=float() as value):
                self.add("constant", self.begin(node), self.stop(node), repr(value * 2 or 1.0))
            case ast.IfExp(test=test):
                text = self.source[self.begin(test) : self.stop(test)].decode()
                self.add("branch", self.begin(test), self.stop(test), f"not ({text})")
            case ast.If(test=test, orelse=[]):
                self.add("never", self.begin(test), self.stop(test), "False")
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in NAMES:
                end = self.stop(node.func)
                self.add("function", end - len(name), end, NAMES[name])
            case ast.Expr(value=ast.Call()) | ast.AugAssign():
                self.add("dropped", self.begin(node), self.stop(node), "pass")
            case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
                self.add("dropped", self.begin(node), self.stop(node), "pass")
            case _:
                pass
        for child in ast.iter_child_nodes(node):
            self.visit(child)


def _name(node: ast.AST) -> str:
    return getattr(node, "id", "") or getattr(node, "attr", "")


def _is_looks(function: ast.AST) -> bool:
    """Whether a call's arguments are only looked at: a text, an error that is made, a size."""
    return _name(function) in SAID or _name(function).endswith(("Error", "Warning"))


def _is_drawn(function: ast.AST) -> bool:
    """Whether a statement draws or reports: what it does is never read again."""
    owner = function.value if isinstance(function, ast.Attribute) else function
    return _name(owner) in DRAWN or _name(function) == "print"


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def mutants(path: str, source: bytes) -> list[Mutant]:
    """Every mistake that can be planted in ``path``; nearly each still is Python."""
    finder = _Finder(path, source)
    finder.visit(ast.parse(source))
    return finder.found


def _parses(source: bytes) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def of_import(source: bytes, line: int) -> bool:
    """Whether a line is run as its module is imported: it lies in no function's body."""
    return not any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        and (node.body if isinstance(node, ast.Lambda) else node.body[0]).lineno <= line
        and line <= (node.end_lineno or 0)
        for node in ast.walk(ast.parse(source))
    )


def files(root: Path, packages: tuple[str, ...] = PACKAGES) -> Iterator[str]:
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            name = path.relative_to(root)
            if not any(part.is_symlink() for part in [root / p for p in name.parents]):
                yield str(name)


def sample(root: Path, each: int, seed: int, packages: tuple[str, ...] = PACKAGES) -> list[Mutant]:
    """``each`` mistakes of every package, at most one on a line, drawn by ``seed``."""
    chosen = []
    for package in packages:
        rng = random.Random(f"{seed} {package}")
        found = [
            mutant
            for path in files(root, (package,))
            for mutant in mutants(path, (root / path).read_bytes())
        ]
        rng.shuffle(found)
        lines: dict[tuple[str, int], Mutant] = {}
        for mutant in found:
            if len(lines) == each:
                break
            source = (root / mutant.path).read_bytes()
            if (mutant.path, mutant.line) not in lines and _parses(mutant.planted(source)):
                lines[mutant.path, mutant.line] = mutant
        chosen += lines.values()
    return chosen
