"""Curves over generated tokens, by hand, by brute force and against what is known of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise import remaining
from lengthwise.curves import Curve, RequestCurve
from lengthwise.errors import InputError
from lengthwise.prediction import CURVES, EDGES, Prediction, Predictions
from lengthwise.remaining import Pieces


def test_between_the_edges_by_hand() -> None:
    edges, values, row = [0, 10, 30], [[100.0, 50.0, 70.0], [9.0, 8.0, 7.0]], [0, 1, 0]
    asked, done = np.array([0, 0, 0, 2, 1]), [0, 9, 10, 31, 29]
    step = Curve.table(edges, values, row, "step")
    np.testing.assert_array_equal(step.at(asked, done), [100, 100, 50, 70, 8])
    falling = Curve.table(edges, values, row, "falling")
    np.testing.assert_array_equal(falling.at(asked, done), [100, 91, 50, 69, 1])
    linear = Curve.table(edges, values, row, "linear")
    np.testing.assert_allclose(linear.at(asked, done), [100, 55, 50, 70, 7.05])
    np.testing.assert_array_equal(linear.select([2, 1]).at([0, 1], [10, 30]), [50, 7])


def test_one_request_s_curve_gives_the_bits_of_the_table() -> None:
    rng = np.random.default_rng(6)
    for points in (1, 2, 7):
        edges = np.concatenate(([0.0], np.cumsum(rng.integers(1, 40, points - 1))))
        values = rng.uniform(-5, 300, (20, points))
        table = Curve.table(edges, values)
        done = rng.integers(0, 400, 20)
        alone = [
            RequestCurve(edges.tolist(), row.tolist()).at(int(at))
            for row, at in zip(values, done, strict=True)
        ]
        np.testing.assert_array_equal(table.at(np.arange(20), done), alone)


def test_one_length_falls_by_one_a_token_to_one() -> None:
    made = Prediction.exact([5.0, 300.5]).of_run()
    for feature in CURVES:
        np.testing.assert_array_equal(
            made.at(feature, [0, 0, 1, 1], [0, 9, 0, 300]), [5, 1, 300.5, 1]
        )
    plain = Predictions.given([5.0, 300.5], 2)
    assert plain is not None
    np.testing.assert_array_equal(plain.at("gittins_index", [0, 1], [2, 100]), [3, 200.5])


def test_two_lengths_by_hand() -> None:
    """10 or 100 tokens with probabilities 0.8 and 0.2 (levels 0.6 and 1 - 1e-9, say)."""
    two = Pieces(np.array([[10.0, 100.0]]), np.array([[10.0, 100.0]]), np.array([[0.8, 0.2]]))
    at = [np.array([float(done)]) for done in (0, 4, 10, 70)]
    assert [remaining.expected(two, a)[0] for a in at] == pytest.approx([28, 24, 90, 30])
    # stop at 10: (10 - a) / 0.8; at 100: the expectation
    assert [remaining.gittins(two, a)[0] for a in at] == pytest.approx([12.5, 7.5, 90, 30])
    assert [remaining.quantile(two, a, 0.5)[0] for a in at] == pytest.approx([10, 6, 90, 30])
    assert [remaining.quantile(two, a, 0.9)[0] for a in at] == pytest.approx([100, 96, 90, 30])


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_the_index_is_the_least_quotient_of_all_that_were_tried(pieces: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    cuts = np.cumsum(rng.uniform(1, 100, pieces + 1))
    mass = rng.dirichlet(np.ones(pieces))
    made = Pieces(cuts[None, :-1], cuts[None, 1:], mass[None])
    done = rng.uniform(0, cuts[-1] - 1)
    low, high, left = (part[0] for part in made.left(np.array([done])))
    tried = []
    for d in np.append(np.linspace(0.01, cuts[-1] - done, 500), high[high > 0]):
        inside = np.clip((d - low) / np.where(high > low, high - low, 1), 0, 1)
        reached = (left * inside).sum()
        spent = (left * inside * (low + np.minimum(high, d)) / 2).sum() + (left.sum() - reached) * d
        tried.append(spent / reached if reached > 0 else np.inf)
    assert remaining.gittins(made, np.array([done]))[0] == pytest.approx(
        max(min(tried), 1.0), rel=1e-6
    )


def test_a_memoryless_length_has_a_constant_remainder_and_index() -> None:
    q = 0.99
    length = np.arange(1.0, 4001.0)[None]
    geometric = Pieces(length, length, (q ** (length - 1)) * (1 - q))
    for done in (0.0, 50.0, 400.0):
        at = np.array([done])
        assert remaining.expected(geometric, at)[0] == pytest.approx(100, rel=1e-3)
        assert remaining.gittins(geometric, at)[0] == pytest.approx(100, rel=1e-3)


def test_tables_are_exact_at_their_edges_and_near_between_them() -> None:
    rng = np.random.default_rng(0)
    edges = np.array([0.0, 60, 200, 700, 3000])
    made = Prediction.bucketed(np.repeat(rng.dirichlet(np.ones(4), 5), 3, axis=0), edges)
    curve = made.curve("expected_remaining_tokens")
    assert curve.values.shape == (5, len(EDGES))  # equal rows are kept once
    for edge in EDGES:
        done = np.full(15, edge)
        np.testing.assert_array_equal(curve.at(np.arange(15), done), made.refresh(done))
    done = np.full(15, 90.0)
    np.testing.assert_allclose(curve.at(np.arange(15), done), made.refresh(done), rtol=0.15)


def test_quantiles_and_buckets_agree_on_what_they_both_say() -> None:
    levels = np.linspace(0.005, 0.995, 100)
    fine = Prediction.distribution(np.atleast_2d(1000 * levels), levels)
    uniform = Prediction.bucketed([[1.0]], [0, 1000])
    for feature in ("expected_remaining_tokens", "remaining_tokens_p90"):
        ours, theirs = fine.of_run(), uniform.of_run()
        done = np.array([0, 100, 384, 768])
        zeros = np.zeros(4, int)
        np.testing.assert_allclose(
            ours.at(feature, zeros, done), theirs.at(feature, zeros, done), rtol=0.05
        )


def test_nothing_exceeds_the_clients_limits() -> None:
    made = Prediction.bucketed([[0.5, 0.5]] * 3, [0, 100, 2000]).of_run().capped([10, 200, 9999])
    np.testing.assert_array_equal(made.predicted_tokens, [10, 200, 550])
    for feature in CURVES:
        value = made.at(feature, [0, 0, 0, 1, 1, 2], [0, 7, 10, 0, 150, 0])
        assert (value <= [10, 3, 1, 200, 50, 9999]).all() and (value >= 1).all()
    some = made.select([2, 0])
    np.testing.assert_array_equal(some.predicted_tokens, [550, 10])
    assert some.at("gittins_index", [1], [4])[0] == 6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Curve.table([1, 2], [[1, 2]]), "ascend from 0"),
        (lambda: Curve.table([0, 0], [[1, 2]]), "ascend from 0"),
        (lambda: Curve.table([0, 2], [[1, 2, 3]]), r"values \(n, 2\)"),
        (lambda: Curve.table([0], [[np.nan]]), "finite"),
        (lambda: Curve.table([0], [[1.0]], [1]), "rows must lie in 0 to 0"),
        (lambda: Curve.table([0], [[1.0]], between="lineal"), "did you mean 'linear'"),
        (lambda: Prediction.exact([1]).curve("gittins_indx"), "did you mean 'gittins_index'"),
        (lambda: Prediction.ranked([1]).of_run(), "uncalibrated ranks"),
        (lambda: Predictions.given([1.0, 2.0], 3), r"have shape \(2,\); there are 3"),
        (lambda: Predictions.given([1.0, np.inf], 2), "finite and 0 or more"),
        (lambda: Predictions.given([-1.0], 1), "finite and 0 or more"),
    ],
)
def test_what_is_no_curve_is_refused(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]
