"""The predictor that docs/predictors.md adds is a predictor."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lengthwise import registry
from lengthwise.predictors import load_predictor, make_predictor
from lengthwise.predictors.targets import TARGETS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "predictors.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)


@pytest.mark.parametrize("target", TARGETS)
def test_the_example_of_a_new_predictor_works(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("word_count_of_the_docs")
    (block,) = (one for one in BLOCKS if "class WordCount" in one)
    exec(block, module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(registry.TABLES["predictor"], "word-count", f"{module.__name__}:WordCount")
    rng = np.random.default_rng(0)
    words = rng.integers(1, 60, 200)
    prompts = [f"say {'word ' * n}{i}" for i, n in enumerate(words)]
    lengths = np.ceil(10 * words * np.exp(rng.normal(0, 0.2, 200)))
    predictor = make_predictor("word-count", target=target).fit(prompts, lengths)
    said = predictor.predict(prompts).predicted_tokens
    assert np.corrcoef(said, words)[0, 1] > 0.9
    predictor.save(tmp_path / "p")
    loaded = load_predictor(tmp_path / "p")
    assert loaded is not None
    np.testing.assert_array_equal(loaded.predict(prompts).predicted_tokens, said)


def test_the_table_lists_every_predictor() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in registry.names("predictor"):
        assert f"`{name}" in text
