"""The runner of planted mistakes: what it plants, excuses and asks; each file's row in the docs."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from tests.mutants.nearest import Nearest
from tests.mutants.plant import PACKAGES, files, mutants, of_import, sample

ROOT = Path(__file__).resolve().parent.parent
EQUIVALENT = tomllib.loads((ROOT / "tests/mutants/equivalent.toml").read_text())["mistakes"]


@pytest.mark.parametrize("path", sorted({one["path"] for one in EQUIVALENT}))
def test_what_is_excused_can_be_planted(path: str) -> None:
    """A line that was written anew, or a mistake that none can make there, is excused no longer."""
    there = {(one.text, one.before, one.after) for one in mutants(path, (ROOT / path).read_bytes())}
    for one in EQUIVALENT:
        if one["path"] == path:
            assert (one["text"], one["before"], one["after"]) in there, one
            assert one["reason"]


def test_every_file_of_tests_has_its_row() -> None:
    rows = re.findall(r"^\| `(test_\w+)` \|", (ROOT / "docs/tests.md").read_text(), re.M)
    named = sorted(path.stem for path in (ROOT / "tests").glob("test_*.py"))
    assert sorted(rows) == named


def nearest(
    folder: Path, seconds: dict[str, float], lines: dict[str, dict[int, list[str]]]
) -> Nearest:
    """What knows of a map with these tests, by file and line."""
    number = {test: i for i, test in enumerate(seconds)}
    by_line = {
        name: {line: [number[test] for test in tests] for line, tests in one.items()}
        for name, one in lines.items()
    }
    (folder / "1.json").write_text(json.dumps({"seconds": seconds, "lines": by_line}))
    return Nearest(folder)


def test_the_tests_that_run_a_line_are_asked_cheap_and_telling_ones_first(tmp_path: Path) -> None:
    a, b, c, d = (f"tests/test_{x}.py::test" for x in "abcd")
    near = nearest(
        tmp_path, {a: 1.0, b: 1.0, c: 9.0, d: 1.0},
        {"eval/bound.py": {5: [a, b, c], 6: [d]}, "eval/judge.py": {n: [a] for n in range(20)}},
    )  # fmt: skip
    assert near.tests("eval/bound.py", 5, 100.0) == [b, c, a]  # a runs much else
    assert near.tests("eval/bound.py", 5, 3.0) == [b, a]
    assert near.tests("eval/bound.py", 5, 0.1) == [b]  # one at least
    assert set(near.tests("eval/bound.py", 5, 100.0, once=True)) == {a, b, c, d}
    assert set(near.tests("eval/bound.py", 99, 100.0)) == {a, b, c, d}  # run by none
    near.learn("eval/bound.py", a)
    assert near.tests("eval/bound.py", 5, 100.0)[0] == a


def test_the_most_telling_ones_have_half_of_the_time_and_files_take_turns_in_the_other(
    tmp_path: Path,
) -> None:
    own = [f"tests/test_own.py::test_{k}" for k in range(8)]
    other, third = "tests/test_other.py::test", "tests/test_third.py::test"
    named = [*own, other, third]
    elsewhere = {"eval/judge.py": {line: [other, third] for line in range(20)}}
    near = nearest(tmp_path, dict.fromkeys(named, 1.0), {"eval/bound.py": {5: named}, **elsewhere})
    assert near.tests("eval/bound.py", 5, 7.3) == [*own[:4], other, third, own[4]]


def test_what_runs_in_a_process_of_its_own_is_seen_by_who_starts_it(tmp_path: Path) -> None:
    a, b = "tests/test_a.py::test", "tests/test_b.py::test"
    near = nearest(
        tmp_path, {a: 1.0, b: 1.0},
        {"serving/workload/parquet.py": {30: [a]}, "serving/workload/split.py": {9: [b]}},
    )  # fmt: skip
    assert near.tests("serving/workload/parquet_child.py", 40, 9.0) == [a]


def test_mistakes_in_the_engines_are_put_to_their_twins(tmp_path: Path) -> None:
    a, twin = "tests/test_a.py::test", "tests/test_serving_kernel.py::test"
    lines = {"serving/fast/routing.py": {5: [a, twin]}, "serving/records.py": {5: [a, twin]}}
    near = nearest(tmp_path, {a: 1.0, twin: 15.0}, lines)
    assert near.tests("serving/fast/routing.py", 5, 10.0) == [a, twin]
    assert near.tests("serving/records.py", 5, 10.0) == [a]
    # what was compiled by another test before counts as well
    assert near.tests("serving/fast/compiler/translate.py", 5, 10.0)[-1] == twin


def test_a_sample_has_one_mistake_a_line_of_every_package() -> None:
    chosen = sample(ROOT, 3, 7, ("envs", "training"))
    assert chosen == sample(ROOT, 3, 7, ("envs", "training"))
    assert chosen[:3] != sample(ROOT, 3, 8, ("envs",))
    assert [one.path.split("/")[0] for one in chosen] == ["envs"] * 3 + ["training"] * 3
    assert len({(one.path, one.line) for one in chosen}) == len(chosen)
    for one in chosen:
        source = (ROOT / one.path).read_bytes()
        planted = one.planted(source)
        assert planted != source and compile(planted, one.path, "exec")
        assert source.splitlines()[one.line - 1].strip().decode() == one.text
    found = list(files(ROOT))
    assert {one.split("/")[0] for one in found} == set(PACKAGES) and len(set(found)) == len(found)
    assert {"policies/card.py", "policies/plugins/check.py", "lengthwise/exact.py"} <= set(found)


def test_what_is_planted_by_hand() -> None:
    text = b"""\
TOP = 2
def f(a: int = 1, *, width=3):
    '''No number 5 of this.'''
    if a < 4 and a:
        raise ValueError("above 4")
    print(7)
    return min(a, -a) + (8 if not a else 0.5)
"""
    found = {(one.line, one.before, one.after) for one in mutants("x.py", text)}
    assert found == {
        (1, "2", "3"), (2, "1", "2"), (2, "3", "4"), (4, "<", "<="), (4, "4", "5"),
        (4, "and", "or"), (4, "a < 4 and a", "False"), (7, "min", "max"), (7, "-", ""),
        (7, "+", "-"),
        (7, "not a", "not (not a)"), (7, "not ", ""), (7, "8", "9"), (7, "0.5", "1.0"),
    }  # fmt: skip
    assert [of_import(text, line) for line in (1, 2, 4, 7)] == [True, True, False, False]
