"""The tests that would notice a mistake on a line: those that run it, most telling ones first."""

import json
from collections import Counter, defaultdict
from pathlib import Path

# Text that is written into machine code leaves no trace of its lines. These test files run it.
COMPILED = {
    "serving/fast/": ["test_serving_kernel", "test_serving_run", "test_serving_curves",
                      "test_envs_vector", "test_serving_translate", "test_starvation"],
    "lengthwise/": ["test_serving_kernel", "test_exact", "test_starvation", "test_preemption"],
    "policies/": ["test_policies_agree", "test_policies_baselines", "test_policies_learned"],
    "envs/": ["test_envs_vector", "test_envs_policies"],
}  # fmt: skip
# This one looks at a module's numbers, whoever imported it.
NUMBERS = "tests/test_numbers.py::test_a_number_that_was_chosen_is_that_number[{}]"
BEGIN = 0.1  # seconds that the cheapest test costs: none is so cheap that it beats what it tells


class Nearest:
    """Tests by the lines that they run, from the files that ``cover`` wrote."""

    def __init__(self, folder: Path) -> None:
        self.seconds: dict[str, float] = {}
        self.lines: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
        for path in sorted(folder.glob("*.json")):
            one = json.loads(path.read_text())
            self.seconds.update(one["seconds"])
            names = list(one["seconds"])
            for name, by_line in one["lines"].items():
                for line, tests in by_line.items():
                    self.lines[name][int(line)].update(names[i] for i in tests)
        self.all = Counter[str]()  # lines of ours that a test runs
        self.here: dict[str, Counter[str]] = defaultdict(Counter)  # the same in one file
        for name, by_line in self.lines.items():
            for tests in by_line.values():
                self.here[name].update(tests)
            self.all.update(self.here[name])
        self.noticed: dict[str, Counter[str]] = defaultdict(Counter)

    def learn(self, path: str, by: str) -> None:
        """A test (as pytest names what failed) noticed a mistake in a file."""
        test = by.removeprefix("FAILED ").removeprefix("ERROR ").split(" - ")[0]
        if test in self.seconds:
            self.noticed[path][test] += 1

    def tests(self, path: str, line: int, seconds: float, *, once: bool = False) -> list[str]:
        """Tests for a mistake in ``line`` of ``path`` that take about ``seconds`` together.

        Where no test runs the line by itself, or it is run ``once``, as its module is imported by
        whatever test comes first, those that run anything of its file. Files of tests
        take turns. First comes what noticed mistakes in this file before, then what runs little
        else for the time that it takes.
        """
        by_line = self.lines.get(path, {})
        found = set(by_line.get(line, ()))
        if not found or once:
            found = found.union(*by_line.values())
            module = path.removesuffix(".py").replace("/", ".")
            found |= self.seconds.keys() & {NUMBERS.format(module)}
        for folder, names in COMPILED.items():
            if path.startswith(folder) and not found:
                found |= {test for test in self.seconds if Path(test.split("::")[0]).stem in names}
        here, noticed = self.here[path], self.noticed[path]

        def price(test: str) -> float:
            share = (here[test] + 1) / (self.all[test] + 1)
            return (self.seconds[test] + BEGIN) / share / (1 + 10 * noticed[test])

        by_file = defaultdict(list)
        for test in sorted(found, key=lambda test: (price(test), test)):
            by_file[test.split("::")[0]].append(test)
        chosen: list[str] = []
        left = seconds
        queues = list(by_file.values())  # as they were begun: by their best
        while any(queues):
            for queue in queues:
                while queue:
                    test = queue.pop(0)
                    cost = self.seconds[test] + 0.02
                    if cost <= left or not chosen:
                        left -= cost
                        chosen.append(test)
                        break
        return chosen
