"""The tests that would notice a mistake on a line: those that run it, most telling ones first."""

import json
import re
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
# These test files run what is compiled, for maps that were made without the marks of ``compiled``.
COMPILED = {
    "serving/fast/": ["test_serving_kernel", "test_serving_run", "test_serving_curves",
                      "test_envs_vector", "test_serving_translate", "test_starvation"],
    "lengthwise/": ["test_serving_kernel", "test_exact", "test_starvation", "test_preemption"],
    "policies/": ["test_policies_agree", "test_policies_baselines", "test_policies_learned"],
    "envs/": ["test_envs_vector", "test_envs_policies"],
}  # fmt: skip
# These hold one engine to the other, and cost more than tests that run the same lines in short.
TWINS = {
    "test_serving_kernel", "test_serving_run", "test_serving_features", "test_serving_curves",
    "test_serving_events", "test_serving_live", "test_serving_invariants", "test_starvation",
    "test_preemption", "test_policies_agree", "test_envs_vector", "test_envs_policies",
}  # fmt: skip
ENGINES = ("serving/fast/", "serving/reference/")
FEW = 10  # tests of a file: then those of who names it are asked as well
MORE = 3  # times as long for mistakes in the engines: their twins' tests, beside the nearest ones
# This one looks at a module's numbers, whoever imported it.
NUMBERS = "tests/test_numbers.py::test_a_number_that_was_chosen_is_that_number[{}]"
SHARED = "training/commands/"  # an option that is made in one file is a command's in another
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
        self.named: dict[str, list[str]] = {}

    def learn(self, path: str, test: str) -> None:
        """A test noticed a mistake in a file."""
        if test in self.seconds:
            self.noticed[path][test] += 1

    def tests(self, path: str, line: int, seconds: float, *, once: bool = False) -> list[str]:
        """Tests for a mistake in ``line`` of ``path`` that take about ``seconds`` together.

        Where no test runs the line by itself, or it is run ``once``, as its module is imported by
        whatever test comes first, those that run anything of its file; where these are few, of the
        files that name it, too, which read its numbers or run it as a process. First comes what
        noticed mistakes in this file before, then what runs little else for the time that it takes.
        In the second half of the time, files of tests take turns. For the engines, those that hold
        one to the other come behind.
        """
        by_line = self.lines.get(path, {})
        found, here = set(by_line.get(line, ())), self.here[path]
        if not found or once:
            found = found.union(*by_line.values())
            module = path.removesuffix(".py").replace("/", ".")
            found |= self.seconds.keys() & {NUMBERS.format(module)}
            for name in self._names_it(path) if len(found) < FEW else ():
                found |= self.here[name].keys()
                here = here + self.here[name]
        for folder, names in COMPILED.items():
            if path.startswith(folder) and not found:
                found |= {test for test in self.seconds if _file(test) in names}
        beside = []
        if path.startswith(SHARED):
            mark = NUMBERS.format(SHARED.replace("/", "."))[:-1]
            beside = sorted(test for test in self.seconds if test.startswith(mark))
        noticed = self.noticed[path]

        def price(test: str) -> float:
            share = (here[test] + 1) / (self.all[test] + 1)
            return (self.seconds[test] + BEGIN) / share / (1 + 10 * noticed[test])

        ranked = sorted(found, key=lambda test: (price(test), test))
        chosen = self._in_turns([test for test in ranked if test not in beside], seconds) + beside
        if path.startswith(ENGINES):
            if path.startswith("serving/fast/compiler/"):  # run by whoever compiled first
                ranked = sorted(self.seconds, key=lambda test: (price(test), test))
            left = [test for test in ranked if _file(test) in TWINS and test not in chosen]
            chosen += self._in_turns(left, (MORE - 1) * seconds)
        return chosen

    def _names_it(self, path: str) -> list[str]:
        """Files of ours that hold a module's name: they import it, or run it as a process."""
        if path not in self.named:
            name = re.compile(rf"\b{re.escape(Path(path).stem)}\b")
            self.named[path] = [
                other for other in list(self.here)
                if other != path and Path(path).parts[0] in ("lengthwise", Path(other).parts[0])
                and name.search((ROOT / other).read_text() if (ROOT / other).exists() else "")
            ]  # fmt: skip
        return self.named[path]

    def _in_turns(self, ranked: list[str], seconds: float) -> list[str]:
        chosen: list[str] = []
        left = seconds
        for test in ranked:  # the best ones, for half of the time
            cost = self.seconds[test] + 0.02
            if left - cost < seconds / 2:
                break
            left -= cost
            chosen.append(test)
        by_file = defaultdict(list)
        for test in ranked[len(chosen) :]:
            by_file[test.split("::")[0]].append(test)
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


def _file(test: str) -> str:
    return Path(test.split("::")[0]).stem
