"""Numbers that were chosen once: by a measurement, a library's own, or what the docs promise.

Who changes one, or a default, changes what was measured with it, and says so: ``python -m
tests.numbers`` writes the file, and a reader sees in it what is another number now.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.numbers import FILE, modules, of_module, text

CHOSEN: dict[str, dict[str, str]] = json.loads(FILE.read_text())


@pytest.mark.parametrize("module", modules())
def test_a_number_that_was_chosen_is_that_number(module: str) -> None:
    try:
        there = of_module(module)
    except ImportError as error:
        pytest.skip(f"needs {error.name}")
    chosen = CHOSEN.get(module, {})  # what is new is held once the file is written anew
    assert {name: there.get(name) for name in chosen} == chosen


def test_every_module_in_the_file_is_there() -> None:
    assert CHOSEN.keys() <= set(modules())


@pytest.mark.parametrize(("value", "written"), [
    (0.1 + 0.2, "0.3"), (True, "True"), (np.float32(0.5), "0.5"),
    ([1, (2.0, "a")], "(1, (2, 'a'))"), (None, "None"),
    ({"b": 1, "a": frozenset({3, 2})}, "{'b': 1, 'a': {2, 3}}"), ("a sentence", "..."),
    (np.arange(100), "int64(100,): 0 ... 99, 4950 together"), (np.eye(1), "((1))"), (len, "..."),
])  # fmt: skip
def test_values_are_written_alike_everywhere(value: object, written: str) -> None:
    assert text(value) == written
