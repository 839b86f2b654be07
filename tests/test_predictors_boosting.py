"""What boosting fits, holds out and stops at, against scikit-learn's models on the same rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.decomposition import TruncatedSVD
from sklearn.ensemble import HistGradientBoostingClassifier as Classifier
from sklearn.ensemble import HistGradientBoostingRegressor as Regressor

from lengthwise.predictors import boosting, targets, text
from lengthwise.predictors.boosting import Rowwise
from lengthwise.predictors.features import SHAPE
from lengthwise.predictors.text import GBDT, Design, Ridge

RNG = np.random.default_rng(4)
N = 120
COLUMNS = np.column_stack([RNG.normal(3, 1, N), RNG.normal(size=(N, 2))])
LENGTHS = np.ceil(np.exp(COLUMNS[:, 0] + 0.5 * COLUMNS[:, 1] + RNG.normal(0, 0.3, N)))
FOLDS = np.arange(N) % 5
WEIGHTS = RNG.uniform(0.5, 2, N)
FEW = {**boosting.OPTIONS, "random_state": 7}
MANY = {**FEW, "max_bins": 63}


@pytest.fixture(params=[False, True], ids=["few", "many"])
def many(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(boosting, "ITERATIONS", 12)
    monkeypatch.setattr(boosting, "QUANTILE_ITERATIONS", 6)
    monkeypatch.setattr(boosting, "MANY_ROWS", N - 1 if request.param else N)
    return bool(request.param)


def rows(values: Any, weights: Any = None, folds: Any = FOLDS) -> Rowwise:
    return Rowwise(COLUMNS, values, folds, weights)


def test_so_many_rows_are_many(many: bool) -> None:
    data = rows(LENGTHS)
    assert data.many is many
    assert data.parts.tolist() == (FOLDS % 2 if many else FOLDS).tolist()
    wanted = {**boosting.OPTIONS, "max_bins": 63} if many else boosting.OPTIONS
    assert data.options == wanted
    mask = FOLDS == 1
    columns, none = data.part(mask)
    assert none is None and columns.tolist() == COLUMNS[mask].tolist()
    _, some = rows(LENGTHS, WEIGHTS).part(mask)
    assert some is not None and some.tolist() == WEIGHTS[mask].tolist()


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["even", "weighted"])
def test_a_regression_stops_where_held_out_errors_are_least(many: bool, weights: Any) -> None:
    labels = np.log(LENGTHS)
    data = rows(labels, weights)
    trees, said = boosting._regression(data, labels, 7)
    left, parts = labels - COLUMNS[:, 0], data.parts
    staged = np.empty((12, N))
    options = MANY if many else FEW
    for fold in range(2 if many else 5):
        out = parts == fold
        heavy = None if weights is None else weights[~out]
        model = Regressor(max_iter=12, **options).fit(COLUMNS[~out], left[~out], heavy)
        staged[:, out] = list(model.staged_predict(COLUMNS[out]))
    errors = [np.average((one - left) ** 2, weights=weights) for one in staged]
    best = int(np.argmin(errors))
    assert said == pytest.approx(COLUMNS[:, 0] + staged[best], rel=1e-5)
    model = Regressor(max_iter=best + 1, **options).fit(COLUMNS, left, weights)
    assert trees(COLUMNS)[:, 0] == pytest.approx(model.predict(COLUMNS))
    made, unseen, held = boosting.boosted(data, targets.make_target("exact", LENGTHS), 7)
    assert len(made) == 1 and held.tolist() == list(range(N))
    assert unseen[:, 0] == pytest.approx(said)
    raw = boosting.raw_outputs(made, COLUMNS, targets.make_target("exact", LENGTHS))
    assert raw[:, 0] == pytest.approx(COLUMNS[:, 0] + model.predict(COLUMNS))


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["even", "weighted"])
def test_buckets_are_classified_and_stop_where_likelihood_is_most(many: bool, weights: Any) -> None:
    target = targets.make_target("bucket", LENGTHS, buckets=[10.0, 40.0])
    assert isinstance(target, targets.Bucket)
    labels = target.labels(LENGTHS)
    data = rows(LENGTHS, weights)
    trees, said = boosting._buckets(data, labels, 3, 7)
    staged = np.zeros((12, N, 3))
    options = MANY if many else FEW
    for fold in range(2 if many else 5):
        out = data.parts == fold
        heavy = None if weights is None else weights[~out]
        model = Classifier(max_iter=12, **options).fit(COLUMNS[~out], labels[~out], heavy)
        staged[:, out] = list(model.staged_predict_proba(COLUMNS[out]))
    chance = np.maximum(staged[:, np.arange(N), labels], 1e-4)
    best = int(np.argmax(np.average(np.log(chance), weights=weights, axis=1)))
    assert said == pytest.approx(staged[best], rel=1e-4) and said.dtype == np.float64
    model = Classifier(max_iter=best + 1, **options).fit(COLUMNS, labels, weights)
    raw = boosting.raw_outputs([trees], COLUMNS, target)
    assert raw == pytest.approx(model.predict_proba(COLUMNS))
    made, unseen, held = boosting.boosted(data, target, 7)
    assert len(made) == 1 and held.tolist() == list(range(N)) and unseen == pytest.approx(said)


def test_a_fold_may_lack_a_bucket_or_have_one_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boosting, "ITERATIONS", 3)
    labels = np.where(FOLDS == 0, 2, np.arange(N) % 2)  # the last comes in one fold alone
    _, said = boosting._buckets(rows(LENGTHS), labels, 3, 7)
    assert (said[FOLDS == 0, 2] == 0).all() and (said[FOLDS == 1, 2] > 0).all()
    assert said.sum(axis=1) == pytest.approx(np.ones(N))
    alone = np.where(FOLDS < 2, 0, 1)
    folds = np.where(FOLDS < 2, 0, 1)  # held out, each fold leaves a single bucket
    _, said = boosting._buckets(rows(LENGTHS, folds=folds), alone, 2, 7)
    assert said[folds == 0].tolist() == [[0.0, 1.0]] * int((folds == 0).sum())
    assert said[folds == 1].tolist() == [[1.0, 0.0]] * int((folds == 1).sum())


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["even", "weighted"])
def test_quantiles_are_of_what_the_middle_leaves(many: bool, weights: Any) -> None:
    target = targets.make_target("quantile", LENGTHS, levels=(0.1, 0.9))
    data = rows(LENGTHS, weights)
    made, unseen, held = boosting.boosted(data, target, 7)
    logs, options = np.log(LENGTHS), MANY if many else FEW
    centre, middle = boosting._regression(data, logs, 7)
    assert len(made) == 3
    assert made[0](COLUMNS) == pytest.approx(centre(COLUMNS))
    wanted = np.flatnonzero(FOLDS % 2 == 1) if many else np.arange(N)
    assert held.tolist() == wanted.tolist()
    raw = boosting.raw_outputs(made, COLUMNS, target)
    for k, level in enumerate((0.1, 0.9)):

        def fitted(mask: Any, level: float = level) -> Any:
            heavy = None if weights is None else weights[mask]
            model = Regressor(loss="quantile", quantile=level, max_iter=6, **options)
            return model.fit(COLUMNS[mask], (logs - middle)[mask], heavy)

        even, odd = FOLDS % 2 == 0, FOLDS % 2 == 1
        far = np.empty(N)
        far[odd] = fitted(even).predict(COLUMNS[odd])
        far[even] = fitted(odd).predict(COLUMNS[even])
        assert unseen[:, k] == pytest.approx((middle + far)[wanted], rel=1e-5)
        last = fitted(even if many else np.ones(N, bool))
        shift = COLUMNS[:, 0] + centre(COLUMNS)[:, 0]
        assert raw[:, k] == pytest.approx(shift + last.predict(COLUMNS))


# The trees on a text


PROMPTS = [f"{'word ' * (k % 9)}thing{k % 4} number{k % 30}" for k in range(60)]
COUNTS = np.ceil(np.exp(0.3 * (np.arange(60) % 9) + RNG.normal(2, 0.3, 60)))


@pytest.mark.parametrize("target", ["exact", "rank", "bucket", "quantile"])
def test_trees_see_the_guess_the_text_s_directions_and_its_shape(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Any] = []
    boosted = boosting.boosted

    def listen(data: Rowwise, goal: Any, seed: int) -> Any:
        heard.append((data, seed))
        return boosted(data, goal, seed)

    monkeypatch.setattr(text, "boosted", listen)
    monkeypatch.setattr(boosting, "ITERATIONS", 4)
    monkeypatch.setattr(boosting, "QUANTILE_ITERATIONS", 3)
    weights = np.linspace(0.5, 1.5, 60)
    made = GBDT(target, seed=3).fit(PROMPTS, COUNTS, weights=weights)
    heavy = weights / weights.mean()
    design = Design.of(PROMPTS, 3, heavy)
    goal = targets.make_target(target, COUNTS)
    labels = targets.regression_labels(goal, COUNTS)
    if target == "bucket":
        labels = np.log(COUNTS)[:, None]
    alpha, guess = design.best_alpha(labels)
    weight, intercept = design.solve(labels, alpha)
    ((data, seed),) = heard
    matrix = design.matrix.toarray()
    terms = len(design.features.terms)
    svd = TruncatedSVD(min(48, terms - 1, len(matrix) - 1), random_state=3)
    svd.fit(design.matrix[:, :terms])
    directions = matrix[:, :terms] @ svd.components_.T
    shape = matrix[:, -len(SHAPE) :]
    several = target in ("bucket", "quantile")
    first = design.first if not several else np.arange(60)
    at = np.arange(len(matrix)) if not several else design.row
    assert seed == 3
    assert data.columns[:, 0] == pytest.approx(guess[first, 0])
    assert data.columns[:, 1 : 1 + directions.shape[1]] == pytest.approx(directions[at], abs=1e-6)
    assert data.columns[:, -len(SHAPE) :] == pytest.approx(shape[at])
    assert data.folds.tolist() == design.folds[first].tolist()
    if several:
        assert data.values == pytest.approx(COUNTS) and data.weights == pytest.approx(heavy)
    else:
        assert data.values == pytest.approx(design.mean(labels)[:, 0])
        assert data.weights == pytest.approx(design.weights)
    columns = made._columns(made.features_.rows(PROMPTS[:5]))
    rows_ = np.asarray(design.features.rows(PROMPTS[:5]).dot(weight)) + intercept
    assert columns[:, 0] == pytest.approx(rows_[:, 0], abs=1e-6)
    raw = boosting.raw_outputs(made.ensembles_, columns, made._fitted())
    assert made._raw(PROMPTS[:5]) == pytest.approx(raw)


def test_of_very_many_rows_some_are_boosted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Rowwise] = []
    boosted = boosting.boosted

    def listen(data: Rowwise, goal: Any, seed: int) -> Any:
        heard.append(data)
        return boosted(data, goal, seed)

    monkeypatch.setattr(text, "boosted", listen)
    monkeypatch.setattr(boosting, "ITERATIONS", 3)
    for most in (60, 59, 40):
        monkeypatch.setattr(text, "MOST_ROWS", most)
        GBDT("bucket", seed=3).fit(PROMPTS, COUNTS)
        drawn = np.sort(np.random.default_rng(3).permutation(60)[:most])
        wanted = np.arange(60) if most == 60 else drawn
        assert heard[-1].values == pytest.approx(COUNTS[wanted])
        assert heard[-1].weights is None
        design = Design.of(PROMPTS, 3, np.ones(60))
        assert heard[-1].folds.tolist() == design.folds[wanted].tolist()
        guess = design.best_alpha(np.log(COUNTS)[:, None])[1][wanted, 0]
        assert heard[-1].columns[:, 0] == pytest.approx(guess)


# Ridges


def test_a_ridge_of_a_given_penalty_is_that_one() -> None:
    made = Ridge(alpha=30.0, seed=2).fit(PROMPTS, COUNTS)
    design = Design.of(PROMPTS, 2, np.ones(60))
    weight, intercept = design.solve(np.log(COUNTS)[:, None], 30.0)
    assert made.weights_ == pytest.approx(weight) and made.intercept_ == pytest.approx(intercept)
    unseen = design.held_out(np.log(COUNTS)[:, None], 30.0)
    goal = targets.make_target("exact", COUNTS).calibrated(unseen, COUNTS)
    linear = made._raw(PROMPTS)
    assert made._fitted().prediction(linear).predicted_tokens == pytest.approx(
        goal.prediction(linear).predicted_tokens
    )
    free = Ridge(seed=2).fit(PROMPTS, COUNTS)
    alpha, _ = design.best_alpha(np.log(COUNTS)[:, None])
    assert free.weights_ == pytest.approx(design.solve(np.log(COUNTS)[:, None], alpha)[0])
    assert Ridge(alpha=0).alpha == 0 and made._options()["alpha"] == 30.0
    for wrong in (-1, True, "x", float("inf"), float("nan")):
        with pytest.raises(ValueError, match="alpha must be a number of 0 or more"):
            Ridge(alpha=wrong)  # type: ignore[arg-type]


def test_saved_features_and_weights_are_looked_at() -> None:
    made = Ridge().fit(PROMPTS, COUNTS)
    state, arrays = made._state()
    assert state["features"] == 2
    back = text.restored_features(state, arrays)
    assert back.terms == made.features_.terms and back.version == 2
    assert text.restored_features({"terms": state["terms"]}, arrays).version == 1
    for version in (0, 3, "2"):
        with pytest.raises(ValueError, match="text features of version"):
            text.restored_features({**state, "features": version}, arrays)
    for name in ("idf", "shift", "scale"):
        short = {**arrays, f"features.{name}": arrays[f"features.{name}"][:-1]}
        with pytest.raises(ValueError, match="not as many as their terms"):
            text.restored_features(state, short)
    flat = {**arrays, "features.scale": arrays["features.scale"] * 0}
    with pytest.raises(ValueError, match="the features are malformed"):
        text.restored_features(state, flat)
    with pytest.raises(ValueError, match="the features are malformed"):
        text.restored_features({**state, "terms": [*state["terms"][:-1], 7]}, arrays)
    weights, intercept = text.restored_weights(back, arrays)
    assert weights is arrays["weights"] and intercept is arrays["intercept"]
    for bad in ({"weights": weights[:-1]}, {"weights": weights[:, 0]},
                {"intercept": intercept[None]}):  # fmt: skip
        with pytest.raises(ValueError, match="weights of shape"):
            text.restored_weights(back, {**arrays, **bad})


def test_even_weights_are_none_and_others_have_mean_1() -> None:
    assert Design.of(PROMPTS, 0).weights is None
    assert Design.of(PROMPTS, 0, np.full(60, 3.0)).weights is None
    twice = Design.of([*PROMPTS, PROMPTS[4]], 0)
    assert twice.weights is not None and twice.weights.mean() == pytest.approx(1)
    assert twice.weights[4] == pytest.approx(2 * twice.weights[0])
    assert twice.given.tolist() == [1.0] * 61


def test_so_many_distinct_prompts_choose_on_one_fold_and_not_one_fewer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels = np.log(COUNTS)[:, None]
    design = Design.of(PROMPTS, 0)
    monkeypatch.setattr(Design, "_alpha_of_some", lambda self, labels: 100.0)
    distinct = len(set(PROMPTS))
    for most, alphas in ((distinct, text.ALPHAS), (distinct - 1, (100.0,))):
        monkeypatch.setattr(text, "MANY", most)
        best, held = design.best_alpha(labels)
        errors = {a: float(((design.held_out(labels, a) - labels) ** 2).sum()) for a in alphas}
        assert best == min(errors, key=errors.__getitem__)
        assert held == pytest.approx(design.held_out(labels, best))
    assert best == 100.0
    # beyond so many rows a ridge is solved to fewer digits
    tolerances: list[float] = []
    from sklearn import linear_model

    class Solver(linear_model.Ridge):  # type: ignore[misc]
        def __init__(self, alpha: float, solver: str, tol: float) -> None:
            tolerances.append(tol)
            super().__init__(alpha=alpha, solver=solver, tol=tol)

    monkeypatch.setattr(linear_model, "Ridge", Solver)
    for most in (60, 59):
        monkeypatch.setattr(text, "MANY", most)
        text.solve(design.matrix[design.row], labels, 3.0)
    assert tolerances == [1e-6, 1e-4]


@pytest.mark.parametrize("offset", [0.0, 5.0, 100.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_penalty_of_some_is_that_of_scikit_learn_s_errors(
    offset: float, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sklearn.linear_model import Ridge as Solver

    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.5, 2, 60)
    design = Design.of(PROMPTS, seed, weights)
    labels = offset + rng.normal(size=60)[:, None] * (np.arange(60)[:, None] % 9)
    monkeypatch.setattr(text, "MANY", len(design.rows) - 5)
    some = design.some()
    matrix, means = design.matrix.toarray()[some], design.mean(labels)[some, 0]
    out = design.folds[design.first][some] == 0
    heavy = np.ones(len(some)) if design.weights is None else design.weights[some]
    errors = {}
    for alpha in text.ALPHAS:
        model = Solver(alpha=alpha, tol=1e-10).fit(matrix[~out], means[~out], heavy[~out])
        errors[alpha] = (heavy[out] * (model.predict(matrix[out]) - means[out]) ** 2).sum()
    assert design._alpha_of_some(labels) == min(errors, key=lambda alpha: errors[alpha])
