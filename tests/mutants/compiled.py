"""Which lines of the fast engine's source a test runs as machine code.

Machine code leaves no trace, so every statement of a function is given a mark: before it runs, it
writes a one at an address of its own. The addresses are the same in every process, so that what is
compiled with marks is kept and shared as any other kernel is.
"""

import ast
import ctypes
import mmap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lengthwise.serving.fast.compiler import build, score

ADDRESS = 0x7E00_0000_0000
BYTES = 8 * 2**15
NO_REPLACE = 0x10_0000  # MAP_FIXED_NOREPLACE of Linux: there, or not at all


class Marks:
    """The lines that were run since ``clear``, from when it is made on."""

    def __init__(self, root: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        given = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_REPLACE
        at = libc.mmap(ADDRESS, BYTES, mmap.PROT_READ | mmap.PROT_WRITE, given, -1, 0)
        assert at == ADDRESS, "the marks' address is taken"
        self.hits = (ctypes.c_int64 * (BYTES // 8)).from_address(ADDRESS)
        self.lines: list[tuple[str, range]] = []
        self.root = root
        self.files = {name: self._marked(build._file(name)) for name in build.PARTS}
        plain = build._file
        build._file = lambda name: self.files.get(name) or plain(name)
        self.compiling = 0.0  # seconds so far: what a test waits for is not what it costs
        build._build, score._build = map(self._timed, (build._build, score._build))

    def _timed(self, compile: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*given: Any) -> Any:
            begun = time.monotonic()
            try:
                return compile(*given)
            finally:
                self.compiling += time.monotonic() - begun

        return timed

    def _marked(self, path: Path) -> "Text":
        tree = ast.parse(path.read_text())
        name = str(path.resolve().relative_to(self.root))
        for function in tree.body:
            if isinstance(function, ast.FunctionDef) and function.decorator_list:
                for node in ast.walk(function):
                    for field in ("body", "orelse"):
                        block = getattr(node, field, None)
                        if isinstance(block, list):
                            setattr(node, field, self._block(name, block))
        return Text(ast.unparse(ast.fix_missing_locations(tree)))

    def _block(self, name: str, block: list[ast.stmt]) -> list[ast.stmt]:
        marked: list[ast.stmt] = []
        for statement in block:
            said = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            if not said:
                address = ADDRESS + 8 * len(self.lines)
                inside = getattr(statement, "body", None)  # an ``if`` is its condition's lines
                last = inside[0].lineno if inside else (statement.end_lineno or 0) + 1
                self.lines.append((name, range(statement.lineno, last)))
                marked += ast.parse(f"put_word({address}, 1)").body
            marked.append(statement)
        return marked

    def clear(self) -> None:
        ctypes.memset(ADDRESS, 0, BYTES)

    def found(self) -> set[tuple[str, int]]:
        hit = [where for where, mark in zip(self.lines, self.hits, strict=False) if mark]
        return {(name, line) for name, lines in hit for line in lines}


class Text:
    """A source file as ``build`` reads one."""

    def __init__(self, text: str) -> None:
        self.text = text

    def read_text(self) -> str:
        return self.text

    def read_bytes(self) -> bytes:
        return self.text.encode()
