"""The text predictors against scikit-learn, and on lengths that follow a known rule."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import kendalltau
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import Ridge as SklearnRidge
from threadpoolctl import threadpool_limits

from lengthwise.predictors import boosting, make_predictor, targets
from lengthwise.predictors.boosting import probabilities
from lengthwise.predictors.features import SHAPE, TextFeatures, shape_of
from lengthwise.predictors.isotonic import Isotonic, pooled
from lengthwise.predictors.learned import folds_of
from lengthwise.predictors.text import Design, solve
from lengthwise.predictors.trees import Trees
from lengthwise.protocols import Predictor

TASKS = {
    "Translate this word into French": 6, "Say yes or no": 3, "Summarize the article": 80,
    "Write a long story about dragons": 700, "Explain how engines work": 300,
    "List ten ideas for dinner": 150,
}  # fmt: skip
NOISE = 0.4  # of the log length


def prompts_and_lengths(n: int, seed: int = 0) -> tuple[list[str], NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    kinds = list(TASKS)
    picked = rng.integers(len(kinds), size=n)
    filler = rng.choice(["please", "now", "today", "for me", "quickly", "as you like"], size=(n, 2))
    prompts = [
        f"{kinds[k]} {a}, {b}: case {i}"
        for i, (k, (a, b)) in enumerate(zip(picked, filler, strict=True))
    ]
    mean = np.log([TASKS[kinds[k]] for k in picked])
    return prompts, np.ceil(np.exp(mean + rng.normal(0, NOISE, n)))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with threadpool_limits(1):
        yield


@cache
def fitted(name: str, target: str) -> Predictor:
    return make_predictor(name, target=target).fit(TRAIN, LENGTHS)


TRAIN, LENGTHS = prompts_and_lengths(400)
TEST, TRUTH = prompts_and_lengths(400, seed=1)


def test_tf_idf_equals_scikit_learns() -> None:
    odd = ["", "x", "É è ñ Straße", "under_score a_b don't 3.14", "\n\t", "AA aa Aa"]
    texts = TRAIN[:80] + odd * 2
    ours = TextFeatures.fit(texts)
    theirs = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True).fit(texts)
    assert list(ours.terms) == list(theirs.get_feature_names_out())
    rows = ours.rows(texts)
    dense = rows.dot(np.eye(rows.width))[:, : len(ours.terms)]
    np.testing.assert_allclose(dense, theirs.transform(texts).toarray(), atol=1e-12)


def test_shape_by_hand() -> None:
    shape = dict(zip(SHAPE, shape_of("Is 42 > 7?\n- Yes\n- NO {a}; é"), strict=True))
    assert shape["log_lines"] == math.log1p(2) and shape["question_marks"] == math.log1p(1)
    assert shape["log_number"] == math.log1p(42) and shape["has_number"] == 1
    assert shape["list_marks"] == math.log1p(2) and shape["code_marks"] == math.log1p(2)
    assert shape["starts_with_question"] == 1 and shape["log_words"] == math.log1p(10)
    assert shape["digits"] == 3 / 28 and shape["capitals"] == 4 / 28
    assert shape["beyond_ascii"] == 1 / 28 and shape["punctuation"] == 7 / 28
    assert all(np.isfinite(shape_of("")))


def test_ridge_is_scikit_learns_on_the_same_columns() -> None:
    design = Design.of(TRAIN, 0)
    logs = np.log(LENGTHS)[:, None]
    weights, intercept = solve(design.matrix, logs, 2.0)
    exact = SklearnRidge(alpha=2.0, solver="cholesky").fit(design.matrix.toarray(), logs)
    said = design.rows.dot(weights) + intercept
    np.testing.assert_allclose(
        said[:, 0], exact.predict(design.matrix.toarray()).ravel(), atol=1e-3
    )


def test_a_prompts_prediction_does_not_depend_on_its_company() -> None:
    for name in ("ridge", "gbdt"):
        model = fitted(name, "bucket")
        together = model.predict(TEST[:30]).probabilities
        alone = [model.predict([prompt]).probabilities for prompt in TEST[:30]]
        np.testing.assert_array_equal(together, np.concatenate(alone))  # type: ignore[arg-type]


@pytest.mark.parametrize("quantile", [None, 0.9])
def test_trees_equal_scikit_learns_regressor(quantile: float | None) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 7))
    y = 2 * x[:, 0] + np.abs(x[:, 1]) + rng.normal(size=600)
    loss = {"loss": "quantile", "quantile": quantile} if quantile else {}
    theirs = HistGradientBoostingRegressor(max_iter=40, random_state=0, **loss).fit(x, y)
    fresh = rng.normal(size=(500, 7)) * 3
    np.testing.assert_array_equal(Trees.of(theirs)(fresh)[:, 0], theirs.predict(fresh))


def test_a_value_at_a_threshold_goes_where_scikit_learn_sends_it() -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(300, 1))
    theirs = HistGradientBoostingRegressor(max_iter=5, random_state=0).fit(x, np.sin(3 * x[:, 0]))
    ours = Trees.of(theirs)
    edges = np.unique(ours.threshold[np.isfinite(ours.threshold)])[:, None]
    assert len(edges) > 5
    np.testing.assert_array_equal(ours(edges)[:, 0], theirs.predict(edges))


@pytest.mark.parametrize("weighted", [False, True])
def test_what_is_held_out_does_not_hear_the_lengths_of_its_fold(weighted: bool) -> None:
    """A ridge's guess, and the ensembles that begin at it: each fold of five, lengths made up."""
    rng = np.random.default_rng(5)
    prompts = [f"{'long' if k % 3 else 'short'} story {k % 40} number {k % 7}" for k in range(120)]
    weights = rng.uniform(0.5, 2, 120) if weighted else None
    design = Design.of(prompts, 0, weights)
    labels = rng.normal(4, 1, 120)
    for fold in range(5):
        out = design.folds == fold
        assert 0 < out.sum() < 120
        made_up = np.where(out, rng.permutation(labels) + 3.0, labels)
        before, after = (design.held_out_mean(each) for each in (labels, made_up))
        np.testing.assert_array_equal(before[out], after[out])
        assert (before[~out] != after[~out]).any()


def test_boosted_outputs_are_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one iteration there is no choice of how many, in which all folds have a say."""
    monkeypatch.setattr(boosting, "ITERATIONS", 1)
    rng = np.random.default_rng(6)
    columns, folds = rng.normal(size=(200, 3)), np.arange(200) % 5
    labels = columns[:, 1] * 2 + rng.normal(size=200)
    out = folds == 2
    made_up = np.where(out, labels[::-1] + 5.0, labels)
    data = [boosting.Rowwise(columns, each, folds) for each in (labels, made_up)]
    before, after = (boosting._regression(each, each.values, 0)[1] for each in data)
    np.testing.assert_array_equal(before[out], after[out])
    assert (before[~out] != after[~out]).any()
    buckets = [np.digitize(each, [-1.0, 1.0]) for each in (labels, made_up)]
    before, after = (boosting._buckets(data[0], each, 3, 0)[1] for each in buckets)
    np.testing.assert_array_equal(before[out], after[out])
    even = folds % 2 == 0
    made_up = np.where(even, labels[::-1] + 5.0, labels)
    before, after = (boosting._quantile(data[0], each, 0.9, 0)[1] for each in (labels, made_up))
    np.testing.assert_array_equal(before[even], after[even])


@pytest.mark.parametrize("classes", [2, 5])
def test_trees_equal_scikit_learns_classifier(classes: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 5))
    y = np.digitize(x[:, 0] + 0.3 * rng.normal(size=600), np.linspace(-1, 1, classes - 1))
    theirs = HistGradientBoostingClassifier(max_iter=20, random_state=0).fit(x, y)
    fresh = rng.normal(size=(500, 5)) * 3
    ours = probabilities(Trees.of(theirs)(fresh))
    np.testing.assert_allclose(ours, theirs.predict_proba(fresh), rtol=1e-12)


def test_pooled_blocks_equal_scikit_learns_isotonic_regression() -> None:
    rng = np.random.default_rng(0)
    x = np.round(rng.normal(size=300), 1)  # many equal scores
    y = np.exp(x) + rng.normal(size=300)
    theirs = IsotonicRegression().fit(x, y)
    levels, centres = pooled(x, y)
    np.testing.assert_allclose(levels, np.unique(theirs.predict(x)), atol=1e-10)
    assert (np.diff(centres) > 0).all() and (np.diff(levels) > 0).all()


def test_the_isotonic_curve_rises_and_stays_within_the_lengths() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=200)
    tokens = np.exp(x + rng.normal(size=200))
    curve = Isotonic.fit(x, tokens)
    said = curve(np.linspace(-10, 10, 500))
    assert (np.diff(said) >= 0).all()
    assert said.min() >= tokens.min() and said.max() <= tokens.max()
    flat = Isotonic.fit(np.zeros(5), np.arange(5.0))
    np.testing.assert_array_equal(flat(np.array([-1.0, 0.0, 3.0])), [2.0, 2.0, 2.0])


def test_default_buckets_lie_at_ssjfs_percentiles() -> None:
    tokens = np.arange(1, 1001).astype(float)
    edges = targets.bucket_edges(tokens)
    np.testing.assert_allclose(edges, [0, *np.percentile(tokens, [25, 50, 75, 99]), 1000])
    shares = np.bincount(targets.bucket_of(tokens, edges)) / 1000
    np.testing.assert_allclose(shares, [0.25, 0.25, 0.25, 0.24, 0.01])
    np.testing.assert_array_equal(targets.bucket_edges(tokens, [100, 5000]), [0, 100, 1000])
    assert len(targets.bucket_edges(tokens, 10)) == 11
    tied = np.array([5.0] * 90 + [6, 7, 8, 9, 10, 11, 12, 13, 14, 100])
    assert (np.bincount(targets.bucket_of(tied, targets.bucket_edges(tied))) > 0).all()


@pytest.mark.parametrize(
    ("buckets", "message"),
    [
        (1, "2 or more"),
        ([9, 3], "ascending"),
        ([float("nan")], "ascending"),
        ([5000], "one bucket"),
    ],
)
def test_bad_buckets_are_refused(buckets: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        targets.bucket_edges(np.arange(1.0, 100), buckets)  # type: ignore[arg-type]


def test_rank_labels_are_the_places_of_scipy() -> None:
    from scipy.stats import rankdata

    tokens = np.random.default_rng(0).integers(1, 40, 200).astype(float)
    np.testing.assert_allclose(targets.Rank().labels(tokens), (rankdata(tokens) - 0.5) / 200)


def test_folds_keep_equal_prompts_together_and_are_even() -> None:
    prompts = [f"prompt {i % 50}" for i in range(200)]
    folds = folds_of(prompts, 3)
    assert all(len(set(folds[i::50])) == 1 for i in range(50))
    np.testing.assert_array_equal(np.bincount(folds), [40] * 5)
    assert (folds != folds_of(prompts, 4)).any()


@pytest.mark.parametrize("name", ["ridge", "gbdt"])
@pytest.mark.parametrize("target", targets.TARGETS)
def test_learns_the_rule_nearly_as_well_as_the_rule_itself(name: str, target: str) -> None:
    said = fitted(name, target).predict(TEST)
    rule = np.array([next(n for task, n in TASKS.items() if p.startswith(task)) for p in TEST])
    # a predictor orders prompts of one task too, by chance; so must the rule to be compared
    ties = np.random.default_rng(0).permutation(len(TEST)) * 1e-6
    ceiling = kendalltau(rule + ties, TRUTH).statistic
    assert kendalltau(said.predicted_tokens, TRUTH).statistic > 0.95 * ceiling
    assert said.predicted_tokens.mean() == pytest.approx(TRUTH.mean(), rel=0.2)


@pytest.mark.parametrize("name", ["ridge", "gbdt"])
def test_quantiles_cover_what_they_say(name: str) -> None:
    quantiles = fitted(name, "quantile").predict(TEST).quantiles
    assert quantiles is not None
    for k, level in enumerate(targets.LEVELS):
        covered = (TRUTH[:, None] <= quantiles)[:, k].mean()
        assert abs(covered - level) < 4 * np.sqrt(level * (1 - level) / len(TRUTH)) + 0.02


@pytest.mark.parametrize("name", ["ridge", "gbdt"])
def test_bucket_probabilities_are_calibrated(name: str) -> None:
    said = fitted(name, "bucket").predict(TEST)
    assert said.probabilities is not None and said.edges is not None
    came = targets.bucket_of(TRUTH, said.edges)
    shares = np.bincount(came, minlength=len(said.edges) - 1) / len(came)
    np.testing.assert_allclose(said.probabilities.mean(axis=0), shares, atol=0.08)
    right = (said.bucket == came).mean()
    assert right == pytest.approx(said.probabilities.max(axis=1).mean(), abs=0.1)
