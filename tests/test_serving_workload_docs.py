"""docs/workloads.md: its tables name what there is."""

from __future__ import annotations

from pathlib import Path

from lengthwise.serving.workload import preset_names
from lengthwise.serving.workload.arrivals import CLOSED, PROCESSES
from lengthwise.serving.workload.layouts import LAYOUTS
from lengthwise.workload import OPTIONAL, REQUIRED

TEXT = (Path(__file__).parents[1] / "docs" / "workloads.md").read_text()


def test_the_document_names_everything_there_is() -> None:
    names = [*preset_names(), *LAYOUTS, *REQUIRED, *OPTIONAL]
    assert [name for name in names if f"`{name}`" not in TEXT] == []
    assert [name for name in (*PROCESSES, CLOSED) if f"`{name}:" not in TEXT] == []
