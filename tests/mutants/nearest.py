"""The tests that would notice a mistake on a line: those that run it, cheap ones first."""

import json
from collections import defaultdict
from pathlib import Path

# Code that is compiled to machine code leaves no trace of its lines. These test files run it.
COMPILED = {
    "serving/fast/": ["test_serving_kernel", "test_serving_run", "test_serving_curves",
                      "test_envs_vector", "test_serving_translate", "test_starvation"],
    "lengthwise/": ["test_serving_kernel", "test_exact", "test_starvation", "test_preemption"],
    "policies/": ["test_policies_agree", "test_policies_baselines", "test_policies_learned"],
    "envs/": ["test_envs_vector", "test_envs_policies"],
}  # fmt: skip


class Nearest:
    """Tests by the lines that they run, from the files that ``cover`` wrote."""

    def __init__(self, folder: Path) -> None:
        self.seconds: dict[str, float] = {}
        self.lines: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
        for path in sorted(folder.glob("*.json")):
            one = json.loads(path.read_text())
            self.seconds.update(one["seconds"])
            for name, by_line in one["lines"].items():
                for line, tests in by_line.items():
                    self.lines[name][int(line)].update(tests)

    def tests(self, path: str, line: int, seconds: float) -> list[str]:
        """Tests for a mistake in ``line`` of ``path`` that take about ``seconds`` together.

        Where no test runs the line by itself, those that run anything of its file.
        """
        by_line = self.lines.get(path, {})
        found = set(by_line.get(line, ()))
        if not found:
            found = set().union(*by_line.values()) if by_line else set()
        for folder, names in COMPILED.items():
            if path.startswith(folder) and (folder == "serving/fast/" or not found):
                found |= {test for test in self.seconds if Path(test.split("::")[0]).stem in names}
        by_file = defaultdict(list)
        for test in sorted(found, key=lambda test: (self.seconds[test], test)):
            by_file[test.split("::")[0]].append(test)
        chosen: list[str] = []
        left = seconds
        queues = sorted(by_file.values(), key=lambda tests: self.seconds[tests[0]])
        while any(queues):
            for queue in queues:
                if queue:
                    test = queue.pop(0)
                    left -= self.seconds[test] + 0.02
                    if chosen and left < 0:
                        return chosen
                    chosen.append(test)
        return chosen
