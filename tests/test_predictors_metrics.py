"""Metrics against scipy and scikit-learn, and their intervals against simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr
from sklearn.metrics import (
    accuracy_score,
    mean_absolute_error,
    r2_score,
    root_mean_squared_error,
)

from lengthwise.errors import InputError
from lengthwise.eval import prediction_metrics as m
from lengthwise.prediction import Prediction

RNG = np.random.default_rng(0)
ACTUAL = np.ceil(RNG.lognormal(5, 1, 400))
SAID = np.ceil(ACTUAL * np.exp(RNG.normal(0, 0.8, 400)))


def test_metrics_equal_scipys_and_scikit_learns() -> None:
    found = m.prediction_metrics(Prediction.exact(SAID), ACTUAL, resamples=20)
    theirs = {
        "mae": mean_absolute_error(ACTUAL, SAID),
        "rmse": root_mean_squared_error(ACTUAL, SAID),
        "r2_log": r2_score(np.log(ACTUAL), np.log(SAID)),
        "kendall_tau": kendalltau(ACTUAL, SAID).statistic,
        "spearman": spearmanr(ACTUAL, SAID).statistic,
        "within_50": np.mean(np.abs(ACTUAL - SAID) <= 50),
        "within_100": np.mean(np.abs(ACTUAL - SAID) <= 100),
    }
    assert set(found) == set(theirs)
    for name, value in theirs.items():
        assert found[name].mean == pytest.approx(value), name
        assert found[name].low <= value <= found[name].high


def test_bucket_accuracy_takes_the_predictions_own_buckets() -> None:
    p = np.eye(3)[RNG.integers(3, size=400)]
    edges = [0, 100, 300, ACTUAL.max()]
    found = m.prediction_metrics(Prediction.bucketed(p, edges), ACTUAL, resamples=5)
    came = np.digitize(ACTUAL, edges[1:-1], right=True)
    assert found["bucket_accuracy"].mean == accuracy_score(came, p.argmax(axis=1))
    other = m.prediction_metrics(Prediction.exact(SAID), ACTUAL, edges=edges, resamples=5)
    said = np.digitize(SAID, edges[1:-1], right=True)
    assert other["bucket_accuracy"].mean == accuracy_score(came, said)


def test_uncalibrated_ranks_have_the_order_alone() -> None:
    found = m.prediction_metrics(Prediction.ranked(np.log(SAID)), ACTUAL, resamples=5)
    assert set(found) == {"kendall_tau", "spearman"}
    assert found["kendall_tau"].mean == pytest.approx(kendalltau(SAID, ACTUAL).statistic)


def test_a_constant_orders_nothing() -> None:
    found = m.prediction_metrics(Prediction.exact(np.full(400, 99)), ACTUAL, resamples=5)
    assert found["kendall_tau"].mean == found["spearman"].mean == 0


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """The mean absolute error of |N(0, 1)| errors is sqrt(2 / pi); 95% of intervals hold it."""
    rng, held = np.random.default_rng(1), 0
    for seed in range(200):
        errors = rng.normal(size=120)
        said = Prediction.exact(500 + errors)
        made = m._interval(
            m.mae, said.predicted_tokens, np.full(120, 500.0), m._draws(120, None, 200, seed)
        )
        held += made.contains(np.sqrt(2 / np.pi))
    assert 0.90 <= held / 200 <= 0.99


def test_groups_are_resampled_whole() -> None:
    """Twenty answers of each prompt, all alike: 20 times the rows are no more information."""
    actual, said = np.repeat(ACTUAL[:40], 20), np.repeat(SAID[:40], 20)
    groups = np.repeat(np.arange(40), 20).tolist()
    apart = m.prediction_metrics(Prediction.exact(said), actual)["mae"]
    whole = m.prediction_metrics(Prediction.exact(said), actual, groups=groups)["mae"]
    once = m.prediction_metrics(Prediction.exact(SAID[:40]), ACTUAL[:40])["mae"]
    assert whole.half == pytest.approx(once.half, rel=0.15)
    assert whole.half > 3 * apart.half


@pytest.mark.parametrize(
    ("lengths", "message"),
    [([1, 2], "3 predictions"), ([1, 0, 2], "each finite and 1 token"), ([1, np.nan, 2], "finite")],
)
def test_bad_lengths_are_refused(lengths: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        m.prediction_metrics(Prediction.exact([5, 6, 7]), lengths)


def test_groups_must_fit() -> None:
    with pytest.raises(InputError, match="groups has 2 rows, not 3"):
        m.prediction_metrics(Prediction.exact([5, 6, 7]), [5, 6, 8], groups=[1, 2])
