"""Lengths cut at max_tokens: ignoring the cut biases predictions, and ours are not biased."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.stats import norm, truncnorm

from lengthwise.predictors import make_predictor
from lengthwise.predictors.censoring import drawn_logs, expected_logs

WORDS = ("short", "medium", "long", "endless")
MEANS = np.array([3.0, 4.0, 5.0, 6.0])  # log tokens
SIGMA = 0.6
CUT = 200.0  # tokens; about 70% of the "endless" answers and 30% of the "long" ones are cut


def data(n: int = 2000, seed: int = 0) -> tuple[list[str], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    kind = rng.integers(4, size=n)
    prompts = [f"write a {WORDS[k]} answer number {i}" for i, k in enumerate(kind)]
    return prompts, np.exp(MEANS[kind] + rng.normal(0, SIGMA, n)) + 1, kind


def test_em_is_the_maximum_of_the_tobit_likelihood() -> None:
    """Against the likelihood maximised directly, for two groups with one variance."""
    rng = np.random.default_rng(0)
    group = rng.integers(2, size=600)
    true = np.where(group == 0, 4.0, 5.0) + rng.normal(0, 0.7, 600)
    logs, cut = np.minimum(true, 5.0), true > 5.0

    def fitted(y: np.ndarray) -> np.ndarray:
        return np.where(group == 0, y[group == 0].mean(), y[group == 1].mean())

    filled, mu, sigma = expected_logs(logs, cut, fitted)

    def loss(p: np.ndarray) -> float:
        m, s = np.where(group == 0, p[0], p[1]), np.exp(p[2])
        seen, over = norm.logpdf(logs, m, s), norm.logsf(logs, m, s)
        return float(-np.where(cut, over, seen).sum())

    best = minimize(loss, [4, 5, 0.0], method="BFGS").x
    assert mu[group == 0][0] == pytest.approx(best[0], abs=0.01)
    assert mu[group == 1][0] == pytest.approx(best[1], abs=0.01)
    assert sigma == pytest.approx(np.exp(best[2]), rel=0.02)
    assert (filled[cut] > logs[cut]).all()
    np.testing.assert_array_equal(filled[~cut], logs[~cut])


def test_filled_values_are_the_expectation_above_the_cut() -> None:
    logs, cut = np.array([1.0, 2.0, 3.0, 4.0]), np.array([False, True, False, False])
    filled, mu, sigma = expected_logs(logs, cut, lambda y: np.full(4, y.mean()))

    def density(x: float) -> float:
        return float(norm.pdf(x, mu[0], sigma) / norm.sf(2.0, mu[0], sigma))

    expected = quad(lambda x: x * density(x), 2.0, 60.0)[0]
    assert filled[1] == pytest.approx(expected, rel=0.01)


def test_draws_follow_the_normal_above_the_cut() -> None:
    logs, cut = np.full(20_000, 1.5), np.ones(20_000, dtype=bool)
    drawn = drawn_logs(logs, cut, np.full(20_000, 1.0), 0.8, np.random.default_rng(0))
    truth = truncnorm((1.5 - 1.0) / 0.8, np.inf, loc=1.0, scale=0.8)
    assert drawn.min() >= 1.5
    assert drawn.mean() == pytest.approx(truth.mean(), abs=0.01)
    assert drawn.std() == pytest.approx(truth.std(), rel=0.03)
    far = drawn_logs(np.array([50.0]), np.array([True]), np.zeros(1), 1.0, np.random.default_rng(0))
    assert np.isfinite(far).all() and far[0] >= 50


@pytest.mark.parametrize("target", ["exact", "bucket", "rank", "quantile"])
def test_censored_lengths_do_not_bias_and_ignoring_them_does(target: str) -> None:
    prompts, true, _ = data()
    seen, cut = np.minimum(true, CUT), true > CUT
    fresh, _, kind = data(400, seed=1)
    # what the target's tokens estimate: the median for exact, the mean for the others
    spread = 0.0 if target == "exact" else SIGMA**2 / 2
    truth = np.exp(MEANS[3] + spread)

    def said(censored: np.ndarray | None) -> float:
        options = {"buckets": 12} if target == "bucket" else {}
        fitted = make_predictor("ridge", target=target, **options)
        fitted.fit(prompts, seen, censored=censored)
        return float(fitted.predict(fresh).predicted_tokens[kind == 3].mean())

    ignored, ours = said(None), said(cut)
    assert ignored < 0.55 * truth
    # a rank's filled lengths are medians of the cut answers, so its mean stays a little low
    assert ours == pytest.approx(truth, rel=0.25 if target == "rank" else 0.15)


def test_order_between_kinds_that_are_both_cut_is_kept() -> None:
    """Of two kinds beyond the cut, the one that is cut more often is predicted longer."""
    rng = np.random.default_rng(0)
    prompts = [f"{'long' if i % 2 else 'longer'} answer {i}" for i in range(1000)]
    true = np.exp(np.where(np.arange(1000) % 2, 5.5, 6.5) + rng.normal(0, 0.6, 1000))
    fitted = make_predictor("ridge").fit(prompts, np.minimum(true, CUT), censored=true > CUT)
    long, longer = fitted.predict(["long answer 2000", "longer answer 2001"]).predicted_tokens
    assert long == pytest.approx(np.exp(5.5), rel=0.2)
    assert longer == pytest.approx(np.exp(6.5), rel=0.35)


@pytest.mark.parametrize(
    ("censored", "message"),
    [
        ([True] * 20, "all 20 lengths are censored"),
        ([True] * 3, "censored has 3 rows, the prompts 20"),
        ([2] * 20, "censored must be true or false"),
    ],
)
def test_bad_masks_are_refused(censored: list[object], message: str) -> None:
    prompts = [f"prompt {i}" for i in range(20)]
    with pytest.raises(ValueError, match=message):
        make_predictor("ridge").fit(prompts, np.arange(1, 21), censored=censored)  # type: ignore[arg-type]
