"""A pytest plugin: which tests pass, how long each takes, and which lines of ours each one runs.

``python -m pytest -p tests.mutants.cover`` with ``LENGTHWISE_COVER=FOLDER`` writes one file a
process into the folder. Lines of the fast engine count when they run as machine code.
"""

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import coverage
import pytest

from tests.mutants.compiled import Marks
from tests.mutants.plant import PACKAGES

ROOT = Path(__file__).parents[2]


class Cover:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.coverage = coverage.Coverage(
            data_file=None,
            source=[str(ROOT / package) for package in PACKAGES],
            config_file=False,
        )
        self.seconds: dict[str, float] = {}
        self.marks = Marks(ROOT)
        self.marked: dict[str, set[tuple[str, int]]] = {}
        self.coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.coverage.switch_context(item.nodeid)
        self.marks.clear()
        self.marks.compiling = 0.0
        try:
            return (yield)
        finally:
            self.marked[item.nodeid] = self.marks.found()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self.seconds[report.nodeid] = max(report.duration - self.marks.compiling, 0.0)

    def pytest_sessionfinish(self) -> None:
        self.coverage.stop()
        data = self.coverage.get_data()
        number = {test: i for i, test in enumerate(self.seconds)}
        lines: dict[str, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
        for path in data.measured_files():
            by_line = lines[str(Path(path).resolve().relative_to(ROOT))]
            for line, tests in data.contexts_by_lineno(path).items():
                by_line[line] |= {number[test] for test in tests if test in number}
        for test in self.marked.keys() & number.keys():
            for name, line in self.marked[test]:
                lines[name][line].add(number[test])
        self.folder.mkdir(parents=True, exist_ok=True)
        written = json.dumps({"seconds": self.seconds, "lines": lines}, default=sorted)
        (self.folder / f"{os.getpid()}.json").write_text(written)


def pytest_configure(config: pytest.Config) -> None:
    folder = os.environ.get("LENGTHWISE_COVER")
    controls = hasattr(config, "workerinput") or not config.getoption("numprocesses", 0)
    if folder and controls:
        config.pluginmanager.register(Cover(Path(folder)))
