"""Every test can fail: it holds an assertion, or calls a helper of the tests that holds one."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
CHECKS = ("raises", "warns", "fail")  # of pytest
OF_OTHERS = ("check_env", "check_env_specs", "check_call", "check_output")  # what they find, raises


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def functions(path: Path) -> dict[str, ast.AST]:
    """Functions and classes of a file of tests, and those that it imports from another."""
    found: dict[str, ast.AST] = {}
    nodes = list(ast.walk(parsed(path)))
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tests":
            there = TESTS.parent.joinpath(*(node.module or "").split(".")).with_suffix(".py")
            if there.is_file():
                theirs = functions(there)
                names = {one.name: one.asname or one.name for one in node.names}
                found |= {mine: theirs[name] for name, mine in names.items() if name in theirs}
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[node.name] = node
    return found


def can_fail(body: ast.AST, known: dict[str, ast.AST], seen: frozenset[str]) -> bool:
    for node in ast.walk(body):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", "") or getattr(node.func, "attr", "")
            if name in CHECKS or name.startswith("assert_") or name.endswith(OF_OTHERS):
                return True
            for word in node.keywords:  # a command that must end with 0
                if word.arg == "check" and getattr(word.value, "value", None) is True:
                    return True
            if name in known and name not in seen and can_fail(known[name], known, seen | {name}):
                return True
    return False


def _tests(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if node.name.startswith("test"):
                yield node


@pytest.mark.parametrize("path", sorted(TESTS.glob("test_*.py")), ids=lambda path: path.stem)
def test_every_test_can_fail(path: Path) -> None:
    known = functions(path)
    tests = list(_tests(path))
    idle = [one.name for one in tests if not can_fail(one, known, frozenset({one.name}))]
    assert tests and not idle, f"{path.name}: no assertion in {', '.join(idle)}"


@pytest.mark.parametrize(
    ("text", "can"),
    [
        ("def test(): f(1)", False),
        ("def test(): assert f(1)", True),
        ("def test():\n with pytest.raises(ValueError): f(1)", True),
        ("def test(): helper()\ndef helper(): assert f(1)", True),
        ("def test(): helper()\ndef helper(): return f(1)", False),
        ("def test(): a()\ndef a(): b()\ndef b(): a()", False),
        ("def test(): np.testing.assert_allclose(f(1), 2)", True),
        ("def test(): subprocess.run(command, check=True)", True),
        ("def test(): subprocess.run(command)", False),
    ],
)
def test_what_counts_as_an_assertion(text: str, can: bool, tmp_path: Path) -> None:
    path = tmp_path / "test_one.py"
    path.write_text(text)
    (one,) = [test for test in _tests(path) if test.name == "test"]
    assert can_fail(one, functions(path), frozenset({"test"})) is can
