"""What commands say of a few requests is what they said: tables, JSON, CSV, files and figures."""

from __future__ import annotations

import json

import pytest

from tests.shown_again import FILE, FITTED, LINES, of_command, of_text

BEFORE: dict[str, dict[str, list[float]]] = json.loads(FILE.read_text())


@pytest.mark.parametrize("name", BEFORE)
def test_a_command_says_what_it_said(name: str) -> None:
    close = 1e-3 if name.split()[0].rstrip(",") in FITTED else 1e-8
    found = of_command(LINES[name])
    assert found.keys() == BEFORE[name].keys()
    for part, before in BEFORE[name].items():
        # sums that may cancel: as close as all of them together let one say
        assert found[part] == pytest.approx(before, rel=close, abs=close * before[-1]), part


def test_numbers_are_found_in_words() -> None:
    text = "v1 takes 1,234.5 s (95% of 2e-3), h200/llama-3.1-8b not, -7 and 80."
    assert list(of_text(text)) == [1234.5, 95, 2e-3, -7, 80]
