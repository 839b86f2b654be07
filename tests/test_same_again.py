"""What was made from a seed is made from it again: workloads, plans, predictors, whole runs."""

from __future__ import annotations

import json

import pytest

from tests.same_again import CASES, FILE

BEFORE: dict[str, list[float]] = json.loads(FILE.read_text())


@pytest.mark.parametrize("name", BEFORE)
def test_what_was_made_from_a_seed_is_made_again(name: str) -> None:
    """Whole picoseconds where nothing is fitted; what is fitted rests on the processor's sums."""
    close = 1e-4 if name.startswith("predictor") else 1e-9
    found = CASES[name]()
    assert found == pytest.approx(BEFORE[name], rel=close), "python -m tests.same_again"
