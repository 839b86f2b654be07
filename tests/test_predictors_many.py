"""Many rows: a penalty chosen on some of them is the one that all choose, or nearly as good."""

from __future__ import annotations

import numpy as np
import pytest

from lengthwise.predictors import text


def test_some_rows_are_enough_to_choose_a_penalty(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 300, (1500, 6))
    prompts = [" ".join(f"word{k}" for k in row) for row in drawn]
    labels = (rng.normal(size=300)[drawn].sum(axis=1) + rng.normal(0, 2, 1500))[:, None]
    design = text.Design.of(prompts, 0)
    alpha, held_out = design.best_alpha(labels)
    monkeypatch.setattr(text, "MANY", 1000)
    quick, unseen = design.best_alpha(labels)
    assert np.isfinite(unseen).all()
    errors = [float(((said - labels) ** 2).mean()) for said in (held_out, unseen)]
    assert errors[1] <= 1.02 * errors[0]
    if quick == alpha:
        assert np.allclose(unseen, held_out, atol=0.005)  # solved less closely
