"""``tests/quick.txt``, what ``make quick`` runs: files and tests that are there, and none slow."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINES = (ROOT / "tests" / "quick.txt").read_text().splitlines()
FILES = [line for line in LINES if not line.startswith("--deselect=")]
LEFT_OUT = [line.removeprefix("--deselect=") for line in LINES if line not in FILES]
PACKAGES = ("lengthwise", "serving", "policies", "envs", "predictors", "eval", "training")
HEAVY = {"transformers", "vllm", "sglang", "ray", "litellm", "torchrl"}


def test_every_line_names_what_is_there_once() -> None:
    assert sorted(FILES) == FILES and len(set(LINES)) == len(LINES)
    for name in FILES:
        assert (ROOT / name).is_file(), name
    for name in LEFT_OUT:
        path, _, test = name.partition("::")
        assert path in FILES and f"def {test}(" in (ROOT / path).read_text(), name


@pytest.mark.parametrize("name", FILES)
def test_no_file_imports_what_takes_long_to_import(name: str) -> None:
    """At its head; and whole files that are marked slow have no place in the list."""
    tree = ast.parse((ROOT / name).read_text())
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            named = getattr(node, "module", None) or node.names[0].name
            assert named.split(".")[0] not in HEAVY, named
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
            assert "slow" not in ast.unparse(node.value)


def test_every_package_has_its_quick_tests() -> None:
    text = "\n".join((ROOT / name).read_text() for name in FILES)
    for package in PACKAGES:
        named = package if package == "lengthwise" else f"lengthwise.{package}"
        assert f"from {named}" in text, package


def test_the_command_is_the_one_that_is_documented() -> None:
    assert "-m pytest -n 2 --dist worksteal" in (ROOT / "Makefile").read_text()
    for page in ("Makefile", "README.md", "CONTRIBUTING.md", "docs/tests.md"):
        assert "quick" in (ROOT / page).read_text(), page
