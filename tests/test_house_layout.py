"""``lengthwise/`` is a map of the top-level folders: keep folders, map, links and wheel in step."""

import ast
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS: tuple[str, ...] = ast.literal_eval(
    (ROOT / "setup.py").read_text().split("PARTS = ")[1].split("\n")[0]
)


@pytest.mark.parametrize("part", PARTS)
def test_link_points_at_its_folder(part: str) -> None:
    assert os.readlink(ROOT / "lengthwise" / part) == f"../{part}"


@pytest.mark.parametrize("part", PARTS)
def test_every_folder_with_code_reaches_the_wheel(part: str) -> None:
    for py in (ROOT / part).rglob("*.py"):
        assert (py.parent / "__init__.py").is_file(), f"{py.parent} would be left out of the wheel"


def test_data_files_lie_where_the_wheel_takes_them_from() -> None:
    code = {".py", ".pyc", ".typed"}
    for part in PARTS:
        for path in (ROOT / part).rglob("*"):
            if path.is_file() and path.suffix not in code and "__pycache__" not in path.parts:
                held = path.parent if path.parent.name == "data" else path.parent.parent
                assert held.name == "data", f"{path} would be left out of the wheel"
                package = held.parent / "__init__.py"
                assert package.is_file(), f"{path} would be left out of the wheel"
