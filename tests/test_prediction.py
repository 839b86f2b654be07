"""What predictions say, against cases computed by hand and against sampling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.prediction import Prediction


def test_exact_lengths_are_at_least_one_token() -> None:
    made = Prediction.exact([0.2, 5, 300])
    assert made.kind == "exact" and len(made) == 3
    np.testing.assert_array_equal(made.predicted_tokens, [1, 5, 300])


def test_buckets_by_hand() -> None:
    made = Prediction.bucketed([[0.5, 0.5, 0.0], [0.0, 0.25, 0.75]], [0, 10, 30, 100])
    assert made.kind == "bucket"
    np.testing.assert_allclose(made.predicted_tokens, [0.5 * 5 + 0.5 * 20, 0.25 * 20 + 0.75 * 65])
    np.testing.assert_array_equal(made.bucket, [0, 2])
    other = Prediction.bucketed([[0.5, 0.5, 0.0]], [0, 10, 30, 100], means=[8, 12, 40])
    np.testing.assert_allclose(other.predicted_tokens, [10])


def test_ranks_order_and_need_calibration_for_tokens() -> None:
    ranks = Prediction.ranked([0.1, -3.0])
    np.testing.assert_array_equal(ranks.order, [0.1, -3.0])
    with pytest.raises(InputError, match="uncalibrated ranks"):
        _ = ranks.predicted_tokens
    np.testing.assert_array_equal(Prediction.ranked([1, 0], [70, 5]).predicted_tokens, [70, 5])


def test_quantiles_by_hand() -> None:
    made = Prediction.distribution([[10, 40, 100]], [0.25, 0.5, 0.75])
    # cells between the middles of the levels: 0.375, 0.25, 0.375
    np.testing.assert_allclose(made.predicted_tokens, [0.375 * 10 + 0.25 * 40 + 0.375 * 100])
    crossing = Prediction.distribution([[50, 40, 100]], [0.25, 0.5, 0.75])
    assert crossing.quantiles is not None
    np.testing.assert_array_equal(crossing.quantiles, [[50, 50, 100]])


def test_refresh_by_hand() -> None:
    exact = Prediction.exact([100, 100, 100])
    np.testing.assert_array_equal(exact.refresh([0, 60, 250]), [100, 40, 1])
    one = Prediction.bucketed([[1.0, 0.0]] * 3, [0, 100, 200])
    np.testing.assert_allclose(one.refresh([0, 50, 150]), [50, 25, 1])
    two = Prediction.bucketed([[0.5, 0.5]], [0, 100, 200])
    np.testing.assert_allclose(two.refresh([100]), [50])  # the first bucket is ruled out
    spread = Prediction.distribution([[10, 40, 100]], [0.25, 0.5, 0.75])
    np.testing.assert_allclose(spread.refresh([20]), [(0.25 * 20 + 0.375 * 80) / 0.625])


def test_refresh_agrees_with_sampling_the_buckets() -> None:
    """Draws from the buckets' own distribution, kept if they outlive what was generated."""
    edges, means, p = np.array([0.0, 50, 200, 800]), np.array([20.0, 140, 350]), [0.3, 0.5, 0.2]
    rng = np.random.default_rng(0)
    bucket = rng.choice(3, size=400_000, p=p)
    low, high, mean = edges[bucket], edges[bucket + 1], means[bucket]
    below = rng.random(len(bucket)) < (high - mean) / (high - low)
    length = np.where(below, rng.uniform(low, mean), rng.uniform(mean, high))
    made = Prediction.bucketed([p], edges, means)
    for done in (0, 30, 60, 180, 300):
        alive = length[length > done]
        spread = alive.std() / np.sqrt(len(alive))
        assert abs(made.refresh([done])[0] - (alive.mean() - done)) < 4 * spread


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_nothing_generated_yet_leaves_the_whole_prediction(buckets: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    edges = np.cumsum(rng.uniform(1, 100, buckets + 1))
    means = edges[:-1] + rng.uniform(0.01, 0.99, buckets) * np.diff(edges)
    p = rng.dirichlet(np.ones(buckets), size=4)
    made = Prediction.bucketed(p, edges, means)
    np.testing.assert_allclose(made.refresh(np.zeros(4)), made.predicted_tokens, rtol=1e-9)
    q = Prediction.distribution(np.sort(rng.uniform(2, 500, (4, 3)), axis=1), [0.1, 0.5, 0.9])
    np.testing.assert_allclose(q.refresh(np.zeros(4)), q.predicted_tokens, rtol=1e-9)


def test_select_keeps_what_belongs_to_a_request() -> None:
    made = Prediction.bucketed([[0.5, 0.5], [0.0, 1.0], [1.0, 0.0]], [0, 10, 30])
    some = made.select(np.array([2, 0]))
    np.testing.assert_array_equal(some.predicted_tokens, made.predicted_tokens[[2, 0]])
    np.testing.assert_array_equal(some.refresh([3, 3]), made.refresh([3, 3, 3])[[2, 0]])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Prediction.exact([1, float("nan")]), "1 NaN or infinite"),
        (lambda: Prediction.exact([[1, 2]]), "1 dimension"),
        (lambda: Prediction.bucketed([[1.0]], [0, 1, 2]), "1 buckets need 2 edges"),
        (lambda: Prediction.bucketed([[0.5, 0.5]], [0, 5, 5]), "must ascend"),
        (lambda: Prediction.bucketed([[0.2, 0.3, 0.5]], [0, 5, 4, 9]), "must ascend"),
        (lambda: Prediction.bucketed([[0.2, 0.3, 0.5]], [0, 5, 5, 9]), "must ascend"),
        (lambda: Prediction.bucketed([[0.5, 0.6]], [0, 5, 9]), "sum to 1"),
        (lambda: Prediction.bucketed([[0.5, 0.5], [0.5, 0.6]], [0, 5, 9]), "sum to 1"),
        (lambda: Prediction.bucketed([[0.5, 0.5], [-0.5, 1.5]], [0, 5, 9]), "0 or more"),
        (lambda: Prediction.bucketed([[0.5, 0.5]], [0, 5, 9], [3, 4]), "within their buckets"),
        (lambda: Prediction.bucketed([[0.5, 0.5]], [0, 5, 9], [6, 7]), "within their buckets"),
        (lambda: Prediction.distribution([[1, 2, 3]], [0.2, 0.5, 0.5]), "levels must ascend"),
        (lambda: Prediction.distribution([[1, 2, 3]], [0.2, 0.5, 0.4]), "levels must ascend"),
        (lambda: Prediction.distribution([[1, 2]], [0.0, 0.5]), "levels must ascend"),
        (lambda: Prediction.distribution([[1, 2]], [0.5, 1.0]), "levels must ascend"),
        (lambda: Prediction.bucketed([[0.5, 0.5]], [0, 5, 9], [7, 8]), "within their buckets"),
        (lambda: Prediction.distribution([[1, 2]], [0.5, 0.5]), "levels must ascend"),
        (lambda: Prediction.distribution([[1, 2]], [0.5]), "levels must ascend"),
    ],
)
def test_what_is_no_prediction_is_refused(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]
