"""Files that a user names: pipes, links in circles, depth and sizes are told in one line."""

import os
from pathlib import Path

import pytest

from lengthwise import reading
from lengthwise.envs.scenarios import read_scenarios
from lengthwise.errors import InputError
from lengthwise.serving import Engine
from lengthwise.serving.nodes import read_nodes
from lengthwise.serving.timing import timing
from lengthwise.serving.workload import read

READERS = {
    "trace.csv": read, "profile.json": timing, "scenarios.json": read_scenarios,
    "nodes.yaml": lambda path: read_nodes(path, Engine(), "h200/llama-3.1-8b"),
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_what_never_ends_is_not_begun(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    os.mkfifo(path)
    with pytest.raises(InputError, match="pipe or a device"):
        READERS[name](str(path))
    path.unlink()
    path.symlink_to(name)
    with pytest.raises(InputError, match="symbolic links"):
        READERS[name](str(path))


@pytest.mark.parametrize("name", sorted(set(READERS) - {"trace.csv"}))
def test_depth_size_and_bytes_that_are_no_text(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    path.write_text("[" * 100_000)
    with pytest.raises(InputError, match="nested too deeply"):
        READERS[name](str(path))
    path.write_bytes(b"[\xff]")
    with pytest.raises(InputError, match=r"not UTF-8 text \(byte 1\)"):
        READERS[name](str(path))
    monkeypatch.setattr(reading, "MOST_BYTES", 2)
    with pytest.raises(InputError, match="has 3 bytes; 2 are the most"):
        READERS[name](str(path))


def test_a_message_is_one_that_can_be_read() -> None:
    told = str(InputError("a" * 5000 + " is too long"))
    assert len(told) < 1000 and told.endswith(" is too long")
    assert str(InputError("short")) == "short"
