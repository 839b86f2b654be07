"""The parts of predictors on a few rows: targets, curves, spreads, penalties, schedules, cards."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
import yaml
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import Ridge

from lengthwise.context import Context
from lengthwise.errors import InputError, UnknownNameError
from lengthwise.prediction import Prediction
from lengthwise.predictors import (
    boosting,
    card,
    censoring,
    columns,
    effects,
    encoder,
    features,
    folder,
    heads,
    load_predictor,
    optimize,
    oracle,
    recalibration,
    shifting,
    spreads,
    targets,
    text,
)
from lengthwise.predictors.baseline import Company, PromptLength
from lengthwise.predictors.isotonic import Isotonic, pooled
from lengthwise.predictors.novelty import (
    ABSTAIN,
    FAMILIAR,
    FEWEST,
    SHIFT,
    WINDOW,
    Novelty,
    Window,
)
from lengthwise.predictors.text import Design, solve
from lengthwise.predictors.trees import Trees

RNG = np.random.default_rng(0)
LENGTHS = np.sort(RNG.integers(1, 900, 60)).astype(float)

# Targets


def test_exact_lengths_are_held_within_training_s_and_moved_on_a_line() -> None:
    target = targets.Exact(10.0, 200.0)
    raw = np.log(np.array([[1.0], [50.0], [999.0]]))
    assert target.prediction(raw).predicted_tokens == pytest.approx([10, 50, 200])
    moved = target.moved(math.log(2), 0.5).moved(math.log(3), 2.0)
    # twice the root, then three times the square of that
    expected = 3 * (2 * np.sqrt([10, 50, 200])) ** 2
    assert moved.prediction(raw).predicted_tokens == pytest.approx(expected)
    assert moved.longest == pytest.approx(expected[-1])
    back = targets.restored("exact", moved.arrays())
    assert back.prediction(raw).predicted_tokens == pytest.approx(expected)
    assert "line" not in target.arrays()
    assert targets.make_target("exact", LENGTHS).arrays()["range"].tolist() == [
        LENGTHS.min(), LENGTHS.max()
    ]  # fmt: skip


def test_as_many_buckets_as_lengths_hold_their_means() -> None:
    lengths = np.exp(np.log(np.arange(20.0, 80.0)))  # as they come back from logarithms
    target = targets.make_target("bucket", np.repeat(lengths, 3), buckets=1000)
    raw = np.full((1, target.outputs), 1 / target.outputs)
    assert target.prediction(raw).predicted_tokens == pytest.approx([np.mean(np.arange(20, 80))])


def test_buckets_have_edges_that_hold_lengths() -> None:
    edges = targets.bucket_edges(LENGTHS)
    assert edges[0] == LENGTHS.min() - 1
    assert edges[-1] == LENGTHS.max()
    assert edges[1:4].tolist() == np.percentile(LENGTHS, [25, 50, 75]).tolist()
    for buckets in (2, 5):
        made = targets.bucket_edges(LENGTHS, buckets)
        assert len(made) == buckets + 1
        assert made[1:-1] == pytest.approx(np.quantile(LENGTHS, np.arange(1, buckets) / buckets))
    tokens = np.array([1.0, 2.0, 3.0, 10.0, 20.0])
    own = targets.bucket_edges(tokens, [3.0, 10.0, 15.0, 50.0])
    assert own.tolist() == [0, 3, 10, 20]  # nothing is between 10 and 15, or above 20
    assert targets.bucket_of(np.array([0, 3, 3.5, 10, 11, 99.0]), own).tolist() == [
        0,
        0,
        1,
        1,
        2,
        2,
    ]
    assert targets.bucket_edges(tokens, [1.0, 5.0]).tolist() == [0, 1, 5, 20]
    made_target = targets.make_target("bucket", tokens, buckets=[3.0, 10.0])
    assert isinstance(made_target, targets.Bucket)
    assert made_target.means.tolist() == [2, 10, 20]
    assert made_target.outputs == 3
    for wrong, said in (
        (1, "2 or more"), ([3.0, 3.0], "ascending"), ([math.inf], "ascending"),
        ("x", "must be num"),
        ([99.0], "fall into one bucket"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            targets.bucket_edges(tokens, wrong)  # type: ignore[arg-type]


def test_temperatures_make_the_likelihood_largest() -> None:
    rng = np.random.default_rng(1)
    target = targets.make_target("bucket", LENGTHS, buckets=3)
    assert isinstance(target, targets.Bucket)
    sure = rng.dirichlet([0.3, 0.3, 0.3], 400)
    warm = sure ** (1 / 3.0)
    warm /= warm.sum(axis=1, keepdims=True)
    drawn = np.array([rng.choice(3, p=p) for p in warm])
    tokens = target.means[drawn]
    found = target.calibrated(sure, tokens).temperature
    grid = np.exp(np.linspace(np.log(0.25), np.log(8.0), 61))

    def loss(t: float) -> float:
        powered = np.maximum(sure, 1e-4) ** (1 / t)
        powered /= powered.sum(axis=1, keepdims=True)
        return float(-np.log(powered[np.arange(400), drawn]).mean())

    assert found == pytest.approx(grid[np.argmin([loss(t) for t in grid])])
    assert 2 < found < 4.5
    back = targets.restored("bucket", dataclasses.replace(target, temperature=found).arrays())
    assert isinstance(back, targets.Bucket)
    assert back.temperature == found


def test_places_and_quantiles_by_hand() -> None:
    tokens = np.array([5.0, 1.0, 5.0, 9.0])
    assert targets.Rank().labels(tokens).tolist() == [0.5, 0.125, 0.5, 0.875]
    assert targets.Rank().labels(tokens) == pytest.approx((scipy.stats.rankdata(tokens) - 0.5) / 4)
    levels = np.array([0.1, 0.5, 0.9])
    raw = np.repeat(np.log(LENGTHS)[:, None] + RNG.normal(0, 0.5, (60, 1)), 3, axis=1)
    made = targets.Quantile(levels).calibrated(raw, LENGTHS)
    missed = np.log(LENGTHS) - raw[:, 0]
    assert made.shift == pytest.approx(np.quantile(missed, levels))
    said = made.prediction(raw[:2]).quantiles
    assert said == pytest.approx(np.exp(np.clip(raw[:2] + made.shift, 0, 20)))
    assert targets.checked_levels([0.1, 0.5]).tolist() == [0.1, 0.5]
    for wrong in ([], [0.5, 0.5], [0.0, 0.5], [0.5, 1.0], [[0.5]]):
        with pytest.raises(InputError, match=r"ascend within \(0, 1\)"):
            targets.checked_levels(wrong)  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="did you mean 'rank'"):
        targets.check_target("rnk")


def test_regressions_on_targets_and_back() -> None:
    bucket = targets.make_target("bucket", np.array([1.0, 5.0, 10.0, 20.0]), buckets=[5.0, 10.0])
    tokens = np.array([5.0, 6.0, 11.0])
    assert targets.regression_labels(bucket, tokens).tolist() == [[0, 0], [1, 0], [1, 1]]
    said = np.array([[0.7, 0.2], [0.3, 0.6], [1.4, -0.2]])
    assert targets.from_regression(bucket, said) == pytest.approx(
        np.array([[0.3, 0.5, 0.2], [0.7, 0.0, 0.3], [0.0, 1.0, 0.0]])
    )
    quantile = targets.make_target("quantile", tokens, levels=(0.25, 0.75))
    assert targets.regression_labels(quantile, tokens) == pytest.approx(np.log(tokens)[:, None])
    assert targets.from_regression(quantile, np.array([[3.0]])).tolist() == [[3.0, 3.0]]
    rank = targets.make_target("rank", tokens)
    assert targets.regression_labels(rank, tokens)[:, 0] == pytest.approx([1 / 6, 0.5, 5 / 6])


# Isotonic curves


@pytest.mark.parametrize("seed", range(3))
def test_pooled_blocks_are_scikit_learn_s(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 30, 80).astype(float)
    values = scores * 3 + rng.normal(0, 40, 80) + 200
    level, centre = pooled(scores, values)
    found = IsotonicRegression().fit(scores, values)
    for value, at in zip(level, centre, strict=True):
        nearest = scores[np.argmin(np.abs(found.predict(scores) - value))]
        assert found.predict([nearest])[0] == pytest.approx(value)
        inside = np.isclose(found.predict(scores), value)
        assert at == pytest.approx(scores[inside].mean())
    assert (np.diff(level) > 0).all()


def test_a_curve_goes_on_with_its_ends_slopes_within_the_lengths() -> None:
    curve = Isotonic(np.array([1.0, 2.0, 4.0]), np.array([10.0, 20.0, 100.0]), 4.0, 130.0)
    asked = np.array([1.5, 3.0, 0.5, 0.0, 4.5, 9.0])
    assert curve(asked).tolist() == [15, 60, 5, 4, 120, 130]
    scaled = curve.scaled(math.log(2), 0.5)
    assert scaled.values == pytest.approx(2 * np.sqrt([10, 20, 100]))
    assert (scaled.low, scaled.high) == pytest.approx((4.0, 2 * math.sqrt(130)))
    one = Isotonic(np.array([1.0]), np.array([10.0]), 10.0, 10.0)
    assert one(asked).tolist() == [10.0] * 6
    two = Isotonic(np.array([1.0, 2.0]), np.array([10.0, 20.0]), 4.0, 25.0)
    assert two(np.array([0.5, 1.5, 2.25, 3.0])).tolist() == [5.0, 15.0, 22.5, 25.0]
    low = Isotonic(np.array([1.0, 2.0]), np.array([0.5, 9.0]), 0.5, 9.0).scaled(0.0, 1.0)
    assert (low.low, low.values[0]) == (1.0, 1.0)


# Censoring


def test_cut_lengths_are_filled_with_what_scipy_expects() -> None:
    rng = np.random.default_rng(3)
    true = rng.normal(4.0, 0.8, 4000)
    cut = true > 4.5
    logs = np.minimum(true, 4.5)
    filled, mu, sigma = censoring.expected_logs(logs, cut, lambda y: np.full(len(y), y.mean()))
    assert mu[0] == pytest.approx(4.0, abs=0.05)
    assert sigma == pytest.approx(0.8, abs=0.05)
    beyond = scipy.stats.truncnorm((4.5 - mu[0]) / sigma, np.inf, mu[0], sigma)
    assert filled[cut] == pytest.approx(beyond.mean(), abs=0.02)
    assert filled[~cut].tolist() == logs[~cut].tolist()
    drawn = censoring.drawn_logs(logs, cut, mu, sigma, np.random.default_rng(0))
    assert drawn[cut].min() >= 4.5
    assert scipy.stats.kstest(drawn[cut], beyond.cdf).pvalue > 0.01
    assert drawn[~cut].tolist() == logs[~cut].tolist()
    whole = censoring.expected_logs(true, np.zeros(4000, bool), lambda y: np.full(len(y), y.mean()))
    assert whole[0].tolist() == true.tolist()
    assert whole[2] == pytest.approx(true.std())
    z = np.array([-2.0, 0.0, 3.0, 30.0])
    hazard = scipy.stats.norm.pdf(z[:3]) / scipy.stats.norm.sf(z[:3])
    assert censoring._hazard(z)[:3] == pytest.approx(hazard)
    assert censoring._hazard(z)[3] == pytest.approx(30.03, abs=0.01)


# Spreads


def test_spreads_of_ratios_and_their_tails() -> None:
    rng = np.random.default_rng(2)
    ratio = np.exp(rng.normal(0, 0.4, 5000))
    found = spreads.of_ratios(np.full(5000, 100.0), 100 * ratio, 1234.0)
    logs = np.log(ratio)
    assert found.cuts[: len(spreads.LEVELS)] == pytest.approx(
        np.exp(np.quantile(logs, spreads.LEVELS))
    )
    top = np.sort(logs)[-51:]  # a hundredth of them above the next
    assert found.tail == pytest.approx((top[1:] - top[0]).mean())
    assert found.longest == 1234.0
    assert found.mass.sum() == pytest.approx(1.0)
    wide = spreads.of_ratios(np.full(50, 100.0), 100 * ratio[:50], 1e4, conformal=True)
    narrow = spreads.of_ratios(np.full(50, 100.0), 100 * ratio[:50], 1e4)
    assert wide.cuts[4] < narrow.cuts[4]
    few = np.sort(logs[:30])[-21:]  # twenty at least
    assert spreads._tail(logs[:30]) == pytest.approx((few[1:] - few[0]).mean())
    assert spreads._tail(np.array([0.0, 0.0, 9.0])) == 0.5
    back = spreads.restored(spreads.arrays(found))
    assert back is not None
    assert back.cuts.tolist() == found.cuts.tolist()
    assert (back.longest, back.tail) == (found.longest, found.tail)
    assert spreads.restored({}) is None
    tokens = np.array([1.0, 2, 3, 4, 10, 20, 30, 40])
    edges, labels = np.array([0.0, 4.0, 40.0]), np.array([0] * 4 + [1] * 4)
    within = spreads.of_buckets(edges, labels, tokens)
    assert within.cuts[0].tolist()[1:] == np.quantile(tokens[:4], np.arange(1, 9) / 8).tolist()
    assert within.cuts[:, 0].tolist() == [0.0, 9.0]
    assert (within.longest, within.mass.sum()) == (40.0, 1.0)
    quantiles = np.full((100, 2), [50.0, 90.0])
    above = spreads.of_quantiles(quantiles, np.arange(1.0, 101.0))
    # ten lie above the last and fifty above the first
    excess = np.log(np.arange(51.0, 101.0) / 50)
    assert above.tail == pytest.approx(excess.mean())
    assert above.longest == 100.0
    many = spreads.of_quantiles(np.full((300, 2), [50.0, 90.0]), np.repeat(np.arange(1.0, 101), 3))
    assert many.tail == pytest.approx(np.log(np.arange(91.0, 101.0) / 90).mean())


# Recalibration


def test_a_line_is_drawn_to_slope_1_and_no_flatter_than_a_tenth() -> None:
    said = np.array([1.0, 2.0, 3.0, 4.0])
    logs = np.array([3.0, 5.0, 7.0, 9.0])
    level, slope = recalibration.line(said, logs)
    # the sum of squares is 5: ten rows of slope 1 beside these four
    assert slope == pytest.approx(1 + 5 / (1.25 * 14))
    assert level == pytest.approx(6 - slope * 2.5)
    assert recalibration.line(said, -9 * logs)[1] == 0.1
    assert recalibration.line(np.full(4, 2.0), logs)[1] == 1.0
    uncut = np.array([5.0, 6.0])
    assert recalibration.filled(said[:2], uncut, np.zeros(2, bool), 0) is uncut
    cut = np.arange(200) % 4 == 0
    tokens = np.exp(np.random.default_rng(0).normal(3, 0.3, 200))
    drawn = recalibration.filled(np.full(200, 3.0), tokens, cut, 0)
    assert drawn[~cut] == pytest.approx(tokens[~cut])
    assert (drawn[cut] >= tokens[cut] * (1 - 1e-12)).all()
    assert recalibration.orders(np.arange(50.0), np.arange(50.0))
    assert not recalibration.orders(np.arange(50.0), -np.arange(50.0))
    assert not recalibration.orders(np.ones(50), np.arange(50.0))
    with pytest.raises(InputError, match="takes 30 answers or more, not 29"):
        recalibration.check(29, "x")
    recalibration.check(30, "x")


def test_buckets_are_scaled_and_what_is_in_them_anew() -> None:
    tokens = np.repeat([1.0, 10.0, 100.0], 10)
    target = targets.make_target("bucket", tokens, buckets=[5.0, 50.0])
    assert isinstance(target, targets.Bucket)
    moved = recalibration.scaled(target, 2.0, 150.0)
    assert moved.edges.tolist() == [0, 10, 100, 200]
    assert moved.means.tolist() == [2, 20, 200]
    assert recalibration.scaled(target, 2.0, 999.0).edges[-1] == 999.0
    assert moved.spread is not None and target.spread is not None
    assert moved.spread.cuts == pytest.approx(2 * target.spread.cuts)
    assert moved.spread.longest == 200.0
    raw = np.eye(3)[np.repeat([0, 1, 2], 10)] * 0.8 + 0.1
    found = recalibration._buckets(target, raw, tokens * 3.0, 2.0)
    assert found.edges.tolist() == [0, 10, 100, 300]
    assert found.means.tolist() == [3, 30, 300]
    few = recalibration._buckets(target, raw[5:], tokens[5:] * 3.0, 2.0)
    assert few.means.tolist() == [2, 20, 200]  # five of the first are too few to say


def test_predictions_are_moved_and_held_below_limits() -> None:
    logs = np.log([2.0, 3.0])
    exact = shifting.shifted(Prediction.exact(np.array([10.0, 20.0])), logs)
    assert exact.predicted_tokens == pytest.approx([20, 60])
    ranked = shifting.shifted(Prediction.ranked(np.array([0.1, 0.2]), np.array([10.0, 20.0])), logs)
    assert ranked.rank == pytest.approx(np.log([20, 60]))
    levels = np.array([0.1, 0.5, 0.9])
    spread = Prediction.distribution(np.array([[5.0, 10, 20], [6, 12, 24]]), levels)
    longer = shifting.shifted(spread, logs)
    assert longer.quantiles == pytest.approx(np.array([[10, 20, 40], [18, 36, 72]]))
    assert longer.tokens == pytest.approx(spread.predicted_tokens * [2, 3])
    capped = shifting.capped(longer, Context(max_tokens=np.array([15.0, np.nan])))
    assert capped.quantiles == pytest.approx(np.array([[10, 15, 15], [18, 36, 72]]))
    assert capped.predicted_tokens[0] == 15.0
    assert capped.predicted_tokens[1] == pytest.approx(longer.predicted_tokens[1])
    assert shifting.capped(longer, None) is longer
    assert shifting.capped(longer, Context()) is longer
    edges, means = np.array([0.0, 10.0, 100.0]), np.array([5.0, 50.0])
    told = targets.Bucket(np.array([0.0, 20.0, 200.0]), np.array([10.0, 100.0]))
    said = Prediction.bucketed(np.array([[0.25, 0.75]]), edges, means)
    again = shifting.rebucketed(said, np.log([2.0]), told)
    assert again.probabilities == pytest.approx(np.array([[0.25, 0.75]]))
    still = shifting.rebucketed(said, np.zeros(1), told)
    # half of the way from 10 to 100 is at their root; 20 lies at 0.301 of it
    assert still.probabilities is not None
    assert still.probabilities[0, 0] == pytest.approx(0.25 + 0.75 * math.log(2) / math.log(10))


# Oracles


def test_noise_is_a_function_of_seed_and_row() -> None:
    drawn = oracle.normal_by_row(5, 1000)
    assert drawn[:10].tolist() == oracle.normal_by_row(5, 10).tolist()
    assert (drawn != oracle.normal_by_row(6, 1000)).all()
    assert scipy.stats.kstest(oracle.normal_by_row(0, 20_000), "norm").pvalue > 0.01
    assert len({*drawn.tolist()}) == 1000
    made = oracle.NoisyOracle(sigma=0.5)
    said = made.predict([], output_tokens=LENGTHS).predicted_tokens
    assert said == pytest.approx(LENGTHS * np.exp(0.5 * oracle.normal_by_row(0, 60)))
    own = oracle.NoisyOracle(sigma=0.5, seed=3)
    assert own.seeded(9) is own
    assert made.seeded(9).seed == 9
    assert made.seed is None
    tau = oracle.NoisyOracle(tau=0.5)
    assert tau.fit([], LENGTHS).blend_ is not None
    weight, mean, spread = tau.blend_  # type: ignore[misc]
    assert (mean, spread) == pytest.approx((np.log(LENGTHS).mean(), np.log(LENGTHS).std()))
    blended = oracle._blend(np.log(LENGTHS), oracle.normal_by_row(0, 60), weight, mean, spread)
    found = scipy.stats.kendalltau(blended, LENGTHS).statistic
    assert found == pytest.approx(0.5, abs=0.02)
    for wrong in ({}, {"tau": 0.5, "sigma": 1.0}):
        with pytest.raises(InputError, match="either tau or sigma"):
            oracle.NoisyOracle(**wrong)  # type: ignore[arg-type]
    for wrong, said_ in (({"tau": 1.01}, r"\[-1, 1\]"), ({"sigma": -0.1}, "0 or more")):
        with pytest.raises(InputError, match=said_):
            oracle.NoisyOracle(**wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="lengths are equal"):
        tau.fit([], np.full(9, 5.0))
    with pytest.raises(InputError, match="reads output_tokens"):
        made.predict([])


# Prompt lengths


def test_a_power_law_of_the_prompt_is_least_squares() -> None:
    rng = np.random.default_rng(4)
    prompt = rng.integers(5, 500, 100).astype(float)
    answer = np.maximum(3 * prompt**0.7 * np.exp(rng.normal(0, 0.2, 100)), 1)
    made = PromptLength().fit([], answer, prompt_tokens=prompt)
    slope, intercept, *_ = scipy.stats.linregress(np.log(prompt), np.log(answer))
    assert (made.slope_, made.intercept_) == pytest.approx((slope, intercept))
    said = made.predict([], prompt_tokens=[50.0, 1.0, 1e6]).predicted_tokens
    assert said[0] == pytest.approx(np.exp(intercept + slope * np.log(50)))
    assert said[2] == pytest.approx(answer.max())
    assert PromptLength().predict([], prompt_tokens=[50.0]).predicted_tokens == pytest.approx([50])
    company = made.company_
    assert company is not None
    logs = np.log(prompt)
    assert (company.middle, company.spread) == pytest.approx((logs.mean(), logs.std()))
    assert (company.typical, company.orders) == (np.median(answer), True)
    shapes = company.shapes(logs)
    assert shapes.mean(axis=0) == pytest.approx([0, 0], abs=1e-9)
    z = np.clip((logs - logs.mean()) / logs.std(), -3, 3)
    assert shapes[:, 1] == pytest.approx((z * z - 1) / math.sqrt(2) - company.square)
    assert not Company.of(logs, np.ones(100), answer).orders
    assert Company.of(logs[:1], logs[:1], answer[:1]).orders is False
    assert Company.of(np.ones(5), np.ones(5), np.ones(5)).spread == 1.0
    stream: Any = made.stream()
    same = stream.predict([], prompt_tokens=rng.permutation(prompt))
    assert not same.abstained.any()
    other = stream.predict([], prompt_tokens=np.full(300, 4000.0))
    assert other.abstained[-1]
    assert other.predicted_tokens[-1] == pytest.approx(np.median(answer))
    plain = PromptLength()
    assert plain.stream() is plain
    # log lengths that differ in their last digits are no spread to count in
    for spread, held in ((0.9e-9, 1.0), (1.5e-9, 1.5e-9)):
        logs = 5.0 + np.array([-spread, spread])
        said = Company.of(logs, np.ones(2), np.array([3.0, 7.0]))
        assert said.spread == pytest.approx(held, rel=1e-3)


# Windows and novelty


def test_a_window_says_how_far_the_mean_has_moved() -> None:
    rng = np.random.default_rng(5)
    shapes = rng.normal(0.4, 1.0, (600, 2))
    moved, count = Window(np.zeros((1, 2)), SHIFT).drift(shapes)
    for at in (0, 10, 255, 256, 599):
        rows = shapes[max(at + 1 - WINDOW, 0) : at + 1]
        square = (rows.mean(axis=0) ** 2).mean() - 1 / len(rows)
        assert moved[at] == pytest.approx(math.sqrt(max(square, 0.0)))
        assert count[at] == len(rows)
    parts = Window(np.zeros((1, 2)), SHIFT)
    some = np.concatenate([parts.drift(shapes[a : a + 70])[0] for a in range(0, 600, 70)])
    assert some == pytest.approx(moved)
    each = Window(np.zeros((1, 2)), SHIFT)
    assert [each.drift(row[None])[0][0] for row in shapes] == pytest.approx(moved.tolist())
    near = Window(np.array([[0.0, 0.0], [0.4, 0.4]]), SHIFT).drift(shapes)[0]
    assert near[-1] < moved[-1] / 2
    for size in (1, 600):
        window = Window(np.zeros((1, 2)), SHIFT)
        score = np.concatenate([window.score(shapes[a : a + size]) for a in range(0, 600, size)])
        begin = SHIFT * 2 / 3
        ramp = FAMILIAR + np.clip((moved - begin) / (SHIFT - begin), 0, 1) * (ABSTAIN - FAMILIAR)
        expected = np.where(moved > SHIFT, 1.0, ramp)
        expected = np.where((count < FEWEST) | (moved < begin), 0.0, expected)
        assert score == pytest.approx(expected)
    assert set(np.unique(expected)) >= {0.0, 1.0}


def test_judged_predictions_widen_and_then_abstain() -> None:
    prompts = [f"word{i % 5} other thing number {i}" for i in range(40)]
    length = np.linspace(10, 400, 40)
    raw = np.log(length)[:, None]
    made = Novelty.fit(prompts, length, raw, np.ones(40))
    found = made.judged(
        Prediction.exact(np.full(4, 50.0)), np.array([0.8, 0.875, 0.95, 0.96]),
        targets.Exact(10.0, 400.0),
    )  # fmt: skip
    assert found.unfamiliar == pytest.approx([0.0, 0.5, 1.0, 1.0])
    assert found.abstained is not None
    assert found.abstained.tolist() == [False, False, False, True]
    assert found.predicted_tokens[:3].tolist() == [50.0] * 3
    assert found.predicted_tokens[3] == pytest.approx(205.0, abs=6)
    quiet = made.judged(Prediction.exact(np.ones(2)), np.zeros(2), targets.Exact(1.0, 2.0))
    assert quiet.abstained is not None
    assert not quiet.abstained.any()
    assert made.score(prompts).mean() < 0.7
    assert made.score(["entirely unheard vocabulary " * 40])[0] > ABSTAIN
    back = Novelty.restored(made.arrays())
    assert back is not None
    assert back.score(prompts).tolist() == made.score(prompts).tolist()
    assert Novelty.restored({}) is None


# Ridge, trees and boosting


def test_a_ridge_holds_each_fold_out() -> None:
    prompts = [f"word{i % 7} thing{i % 3} w{i}" for i in range(40)] + ["word1 thing1 w1"] * 3
    labels = np.arange(43.0)[:, None]
    weights = np.linspace(1, 2, 43)
    design = Design.of(prompts, 0, weights)
    assert len(design.rows) == 40
    assert design.row[-3:].tolist() == [1, 1, 1]
    assert len({design.folds[i] for i in (1, 40, 41, 42)}) == 1
    means = design.mean(labels)
    at = [1, 40, 41, 42]
    assert means[1, 0] == pytest.approx(np.average(labels[at, 0], weights=weights[at]))
    assert means[0, 0] == 0.0
    out = design.held_out(labels, 3.0)
    matrix, folds = design.matrix.toarray(), design.folds[design.first]
    from sklearn.linear_model import Ridge

    assert design.weights is not None
    for fold in range(5):
        unseen = folds == fold
        model = Ridge(alpha=3.0, tol=1e-10).fit(
            matrix[~unseen], means[~unseen, 0], sample_weight=design.weights[~unseen]
        )
        assert out[design.first, 0][unseen] == pytest.approx(
            model.predict(matrix[unseen]), abs=0.05
        )
    best, held = design.best_alpha(labels)
    errors = [
        float((weights[:, None] * (design.held_out(labels, a) - labels) ** 2).sum())
        for a in text.ALPHAS
    ]
    assert best == text.ALPHAS[int(np.argmin(errors))]
    assert held == pytest.approx(design.held_out(labels, best))
    assert design.held_out_mean(labels[:, 0]) == pytest.approx(out[:, 0])
    coefficients, intercept = solve(design.matrix, np.hstack((means, 2 * means)), 3.0)
    assert coefficients.shape == (matrix.shape[1], 2)
    assert coefficients[:, 1] == pytest.approx(2 * coefficients[:, 0], abs=0.02)
    assert intercept.shape == (2,)
    even = Design.of([f"a{i} b{i % 2} c" for i in range(20)], 0)
    assert even.weights is None


def test_of_many_rows_some_choose_the_penalty_on_one_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "MANY", 30)
    design = Design.of([f"word{i % 7} thing{i % 3} w{i}" for i in range(40)], 0)
    labels = np.arange(40.0)[:, None]
    some = design.some()
    assert len(set(some.tolist())) == 30
    assert some.tolist() == sorted(some.tolist())
    matrix, out = design.matrix[some], design.folds[design.first][some] == 0
    errors = []
    for alpha in text.ALPHAS:
        coefficients, intercept = solve(matrix[~out], labels[some][~out], alpha)
        far = matrix[out] @ coefficients + intercept - labels[some][out]
        errors.append(float((far**2).sum()))
    best, held = design.best_alpha(labels)
    assert best == text.ALPHAS[int(np.argmin(errors))]
    assert held == pytest.approx(design.held_out(labels, best))


def test_up_to_many_rows_are_solved_more_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    matrix, labels = rng.normal(size=(41, 30)), rng.normal(size=(41, 2))
    monkeypatch.setattr(text, "MANY", 40)
    for rows, tol, other in ((40, 1e-6, 1e-4), (41, 1e-4, 1e-6)):
        heavy = np.linspace(0.5, 1.5, rows)
        theirs, rough = (
            Ridge(alpha=0.5, solver="sparse_cg", tol=one)
            .fit(matrix[:rows], labels[:rows], sample_weight=heavy)
            for one in (tol, other)
        )  # fmt: skip
        weights, intercept = solve(matrix[:rows], labels[:rows], 0.5, heavy)
        np.testing.assert_array_equal(weights, theirs.coef_.T)
        np.testing.assert_array_equal(intercept, theirs.intercept_)
        assert (weights != rough.coef_.T).any()


def test_trees_are_scikit_learn_s_and_nothing_else() -> None:
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(200, 3)), rng.normal(size=200)
    model = HistGradientBoostingRegressor(max_iter=7, random_state=0).fit(x, y)
    made = Trees.of(model)
    assert made(x)[:, 0].tolist() == model.predict(x).tolist()
    at = float(made.threshold[made.root[0]])
    edge = x[:1].copy()
    edge[0, made.feature[made.root[0]]] = at
    assert made(edge)[0, 0] == model.predict(edge)[0]
    arrays = made.arrays("t")
    back = Trees.restored("t", arrays, 3)
    assert back(x).tolist() == made(x).tolist()
    for name, value in (
        ("left", -1), ("right", len(made.left)), ("feature", 3), ("feature", -1),
        ("root", len(made.left)), ("output", 1), ("output", -1),
    ):  # fmt: skip
        spoiled = {key: np.array(array) for key, array in arrays.items()}
        spoiled[f"t.{name}"][0] = value
        with pytest.raises(ValueError, match="do not form trees"):
            Trees.restored("t", spoiled, 3)
    for name in ("value", "root"):
        short = {**arrays, f"t.{name}": arrays[f"t.{name}"][:-1]}
        with pytest.raises(ValueError, match="do not form trees"):
            Trees.restored("t", short, 3)


def test_probabilities_of_sums() -> None:
    sums = np.array([[0.0, 1.0, 2.0]])
    assert boosting.probabilities(sums) == pytest.approx(scipy.special.softmax(sums, axis=1))
    two = boosting.probabilities(np.array([[0.7]]))
    assert two[0, 1] == pytest.approx(1 / (1 + math.exp(-0.7)))
    assert boosting.probabilities(np.array([[1000.0, 0.0]])).tolist() == [[1.0, 0.0]]


def test_boosting_begins_at_the_guess_and_stops_where_held_out_errors_are_least() -> None:
    rng = np.random.default_rng(7)
    x = rng.normal(size=(300, 2))
    guess = x[:, 0]
    logs = guess + np.where(x[:, 1] > 0, 1.0, -1.0) + rng.normal(0, 0.1, 300)
    folds = np.arange(300) % 5
    data = boosting.Rowwise(np.column_stack((guess, x)), logs, folds)
    ensembles, held, rows = boosting.boosted(data, targets.Exact(1.0, 99.0), 0)
    assert held.shape == (300, 1)
    assert rows.tolist() == list(range(300))
    assert np.abs(held[:, 0] - logs).mean() < 0.3
    out = boosting.raw_outputs(ensembles, data.columns, targets.Exact(1.0, 99.0))
    left = out[:, 0] - guess
    assert left == pytest.approx(ensembles[0](data.columns)[:, 0])
    assert np.abs(out[:, 0] - logs).mean() <= np.abs(held[:, 0] - logs).mean()
    seen, weights = data.part(folds == 1)
    assert len(seen) == 60
    assert weights is None
    heavy = dataclasses.replace(data, weights=np.arange(300.0))
    assert heavy.part(folds == 1)[1].tolist() == np.arange(300.0)[folds == 1].tolist()  # type: ignore[union-attr]


# Effects of context


def test_effects_of_names_and_of_the_line() -> None:
    rng = np.random.default_rng(8)
    n = 600
    model = rng.choice(["a", "b", "c"], n).astype(object)
    effect = {"a": -0.5, "b": 0.0, "c": 0.5}
    temperature = rng.uniform(0, 1, n)
    logs = 4 + np.array([effect[m] for m in model]) + 0.8 * temperature + rng.normal(0, 0.1, n)
    context = Context(model=model, temperature=temperature)
    made = effects.Effects.fit(logs, context, lambda y: np.full(n, y.mean()), np.ones(n))
    found = made.intercepts["model"]
    assert found["c"] - found["a"] == pytest.approx(1.0, abs=0.06)
    assert made.of_names(context, n)[:3] == pytest.approx([found[m] for m in model[:3]])
    unknown = Context(model=np.array(["z", None], dtype=object))
    assert made.of_names(unknown, 2).tolist() == [0.0, 0.0]
    assert made.of_names(None, 2).tolist() == [0.0, 0.0]
    said = 4 + made.of_names(context, n)
    lined = made.with_line(logs, said, context, np.ones(n))
    assert lined.columns == ("temperature",)
    assert lined.shift == pytest.approx([temperature.mean()])
    assert lined.scale == pytest.approx([temperature.std()])
    line = lined.of_line(context, said)
    assert np.polyfit(temperature, line, 1)[0] == pytest.approx(0.8, abs=0.1)
    assert line.mean() == pytest.approx(0.0, abs=1e-9)
    assert lined.of_line(Context(temperature=np.array([np.nan])), np.zeros(1)).tolist() == [0.0]
    assert lined.of_line(None, np.zeros(2)).tolist() == [0.0, 0.0]
    assert lined.uses == {"model", "temperature"}
    back = effects.Effects.restored(lined.state(), lined.arrays())
    assert back.of_line(context, said).tolist() == line.tolist()
    for spoiled in (
        {"shift": np.array([np.nan])}, {"scale": np.array([0.0])}, {"weights": np.zeros(2)},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="malformed"):
            effects.Effects.restored(lined.state(), {**lined.arrays(), **spoiled})
    assert effects.tells_apart(context)
    assert not effects.tells_apart(Context(temperature=np.full(5, 0.5)))
    assert made.with_line(logs, said, Context(temperature=np.full(n, 0.5)), np.ones(n)) is made


def test_columns_of_the_line_by_hand() -> None:
    context = Context(
        max_tokens=np.array([100.0, np.nan, 7.0]), previous_answers=np.array([2.0, 0.0, np.nan]),
        previous_log_tokens=np.array([5.0, np.nan, 3.0]),
        previous_tokens=np.array([90.0, 0.0, 4.0]),
    )  # fmt: skip
    found = effects._line(context, np.array([4.0, 4.0, 4.0]))
    assert found["max_tokens"][[0, 2]] == pytest.approx(np.log([100, 7]))
    assert np.isnan(found["max_tokens"][1])
    assert found["has_previous"][:2].tolist() == [1.0, 0.0]
    assert np.isnan(found["has_previous"][2])
    assert found["log_answers"][:2] == pytest.approx([math.log(3), 0.0])
    assert found["from_mean"] == pytest.approx([1.0 * 2 / 3, 0, 0])
    assert found["from_last"] == pytest.approx([math.log(90) - 4, 0, 0])
    # one answer is enough to go by, and nothing is said of a request that has none
    one = Context(previous_answers=np.array([1.0, 0.0]), previous_tokens=np.array([20.0, 20.0]))
    assert effects._line(one, np.array([2.0, 2.0]))["from_last"] == pytest.approx(
        [math.log(20) - 2, 0]
    )


# Columns


def test_columns_are_checked_at_their_limits() -> None:
    assert columns.lengths([1.0, 2], rows=2, name="n", of="x").tolist() == [1, 2]
    for wrong, said in (
        ([0.99], r"row 0 is 0\.99; .*\(1 such row\)"), ([math.inf], "such row"),
        ([1.0, 2.0], "has 2 rows, the prompts 1"), ([[1.0]], "one-dimensional"),
        (["x"], "not numb"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            columns.lengths(wrong, rows=1, name="n", of="x")
    with pytest.raises(InputError, match=r"\(2 such rows\)"):
        columns.lengths([0.0, 0.0], rows=2, name="n", of="x")
    assert columns.mask(None, rows=2, of="x").tolist() == [False, False]
    assert columns.mask([1, 0], rows=2, of="x").tolist() == [True, False]
    for wrong, said in (
        ([1, 1], "all 2 lengths are censored"), ([2, 0], "true or false"),
        ([True], "censored has 1 rows, the prompts 2"), ([[1], [0]], "one-dimensional"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            columns.mask(wrong, rows=2, of="x")
    assert columns.weights(None, rows=2, of="x").tolist() == [1, 1]
    assert columns.weights([3, 0, 0], rows=3, of="x").tolist() == [3, 0, 0]
    for wrong, said in (
        ([1.0], "weights has 1 rows, the prompts 2"), ([[1.0], [2.0]], "one-dimensional"),
        (["x", "y"], "not numbers"), ([0, 0], "not all 0"), ([-1, 3], "0 or more"),
        ([1, math.inf], "finite"), ([1, math.nan], "finite"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            columns.weights(wrong, rows=2, of="x")
    tokens = np.arange(1.0, 11)
    texts = [f"p{i}" for i in range(10)]
    assert len(columns.fit_columns(texts, tokens, None, of="x")[0]) == 10
    for prompts, values, said in (
        (texts[:9], tokens[:9], "9 rows are too few"),
        (texts, np.full(10, 7.0), "all 10 lengths are 7"),
        (["a"] * 10, tokens, "the same text"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            columns.fit_columns(prompts, values, None, of="x")
    assert columns.count([], None, [1, 2, 3], of="x") == 3
    with pytest.raises(InputError, match="no requests to predict"):
        columns.count([], None, of="x")
    heavy = np.array([3.0, 1.0, 0.0, 0.0])
    drawn = columns.resampled(heavy, 0)
    assert np.bincount(drawn, minlength=4).tolist() == [3, 1, 0, 0]
    for wrong in (True, "1", math.inf, math.nan):
        with pytest.raises(InputError, match="must be a finite number"):
            columns.number(wrong, name="n", of="x")
    for number in (3, 1.7976931348623157e308, -1.7976931348623157e308):
        assert columns.number(number, name="n", of="x") == number
    for many in (10**309, -(10**309)):
        with pytest.raises(InputError, match="must be a finite number"):
            columns.number(many, name="n", of="x")


# Training on torch


class Line(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = torch.nn.Linear(1, 1, bias=False)
        self.head = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.ones_(self.backbone.weight)
        torch.nn.init.ones_(self.head.weight)


def test_the_best_epoch_is_kept_and_patience_ends(tmp_path: Path) -> None:
    """Validation losses are as told: the third is the best, and two more are waited for."""
    told = [5.0, 3.0, 1.0, 2.0, 2.0, 2.0, 0.0]
    seen: list[tuple[int, float]] = []
    weights: list[float] = []
    net = Line()

    def loss(rows: Any) -> torch.Tensor:
        if net.training:
            return (net.head.weight - 100).pow(2).sum() * 1e-4
        weights.append(float(net.head.weight.detach()))
        return torch.tensor(told[len(weights) - 1])

    schedule = optimize.Schedule(epochs=7, patience=2, batch_size=2, learning_rate=0.5)
    optimize.minimize(
        net, loss, np.arange(6), np.arange(3), schedule, seed=0,
        advance=lambda epoch, best: seen.append((epoch, best)),
    )  # fmt: skip
    assert seen == [(0, 5.0), (1, 3.0), (2, 1.0), (3, 1.0), (4, 1.0)]
    assert float(net.head.weight.detach()) == weights[2] != weights[-1]
    assert not net.training


def test_patience_counts_from_the_first_epoch_too() -> None:
    seen: list[tuple[int, float]] = []
    net, told = Line(), iter([1.0, 2.0, 3.0, 4.0, 5.0])

    def loss(rows: Any) -> torch.Tensor:
        return net.head.weight.sum() * 0 + (1.0 if net.training else next(told))

    schedule = optimize.Schedule(epochs=5, patience=2, batch_size=2)
    optimize.minimize(
        net, loss, np.arange(4), np.arange(3), schedule, seed=0,
        advance=lambda epoch, best: seen.append((epoch, best)),
    )  # fmt: skip
    assert seen == [(0, 1.0), (1, 1.0), (2, 1.0)]


def test_an_interrupted_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    rows = np.arange(8)
    x = torch.linspace(-1, 1, 8)[:, None]

    def trained(epochs: int, checkpoint: Path | None) -> torch.Tensor:
        torch.manual_seed(0)
        net = Line()

        def loss(some: Any) -> torch.Tensor:
            return (net.head(net.backbone(x[some])) - 3 * x[some]).pow(2).mean()

        schedule = optimize.Schedule(epochs=epochs, batch_size=3, learning_rate=0.05)
        optimize.minimize(net, loss, rows, rows, schedule, seed=1, checkpoint=checkpoint)
        return net.head.weight.detach().clone()

    whole = trained(6, None)
    path = tmp_path / "deep" / "c.pt"
    trained(3, path)
    assert path.is_file()
    assert trained(6, path).tolist() == whole.tolist()
    groups = optimize._groups(Line(), optimize.Schedule())
    assert [(len(g["params"]), g["lr"]) for g in groups] == [(1, 5e-5), (1, 1e-3)]
    assert [len(b) for b in optimize._batches(np.arange(7), 3)] == [4, 3]
    assert [len(b) for b in optimize._batches(np.arange(2), 3)] == [2]
    assert optimize.mixed(1, 2) != optimize.mixed(2, 1)
    for wrong in (
        {"epochs": 0}, {"patience": 0}, {"batch_size": True}, {"learning_rate": 0.0},
        {"backbone_rate": 1.0},
    ):  # fmt: skip
        with pytest.raises(InputError, match="must"):
            optimize.Schedule(**wrong)  # type: ignore[arg-type]


def test_heads_begin_and_are_read_by_hand() -> None:
    bucket = targets.make_target("bucket", LENGTHS, buckets=4)
    quantile = targets.make_target("quantile", LENGTHS, levels=(0.1, 0.5, 0.9))
    cuts = heads.Cuts(4)
    logits = cuts(torch.zeros(1, 1)).detach().numpy()[0]
    gap = math.log(2)
    assert logits == pytest.approx([1.0, 1.0 - gap, 1.0 - 2 * gap], abs=1e-6)
    said = heads.read("ordinal", np.array([[2.0, 0.0, -1.0]]), bucket)
    longer = 1 / (1 + np.exp(-np.array([2.0, 0.0, -1.0])))
    assert said[0] == pytest.approx(
        [1 - longer[0], longer[0] - longer[1], longer[1] - longer[2], longer[2]]
    )
    soft = heads.read("softmax", np.array([[1.0, 2.0, 3.0, 900.0]]), bucket)
    assert soft[0, 3] == pytest.approx(1.0)
    t = heads.read("log-t", np.array([[2.0, 0.3, 1.0]]), quantile)
    scale = math.log1p(math.exp(0.3)) + 1e-3
    df = 1.5 + math.log1p(math.exp(1.0))
    expected = scipy.stats.t(df, 2.0, scale).ppf([0.1, 0.5, 0.9])
    assert t[0] == pytest.approx(expected, rel=1e-5)
    made = heads.new_head("pinball", quantile, 5, 4, 0.1)
    assert made[-1].bias.tolist() == pytest.approx(scipy.stats.norm.ppf([0.1, 0.5, 0.9]), abs=1e-5)  # type: ignore[union-attr, operator]
    assert heads.new_head("log-t", quantile, 5, 4, 0.1)[-1].bias.tolist() == [0, 0, 1]  # type: ignore[union-attr, operator]
    assert isinstance(heads.new_head("ordinal", bucket, 5, 4, 0.1)[-1], heads.Cuts)
    assert heads.new_head(None, bucket, 5, 4, 0.1)[-1].out_features == 4
    assert heads.check_head(None, "exact") is None
    with pytest.raises(InputError, match="has one head"):
        heads.check_head("pinball", "exact")
    with pytest.raises(UnknownNameError):
        heads.check_head("pinball", "bucket")


# Cards


def test_a_card_holds_the_report_s_numbers() -> None:
    def said(value: float) -> dict[str, float]:
        return {"value": value, "low": value / 2, "high": value * 2}

    keys = list(card.METRICS)[:2]
    metrics = {key: said(0.5 + i) for i, key in enumerate(keys)}
    report: dict[str, Any] = {
        "data": "d.jsonl", "answers_by": "m", "seed": 7, "notices": ["a notice"],
        "train": {"rows": 1200, "prompts": 1100, "censored": 30},
        "test": {"rows": 1300, "prompts": 1000, "censored": 0}, "metrics": metrics,
        "baselines": {"constant": {keys[0]: said(0.25)}},
        "elsewhere": [{"data": "e", "metrics": {card.SHOWN[0]: said(0.125)},
                       "baselines": {"constant": {}}}],
        "by_source": {"s": {card.SHOWN[0]: said(0.75)}},
        "recalibrated": {"from": "old", "trained_on": None,
                         "before": {"coverage": 0.5, "factor": 1.5},
                         "after": {"coverage": None, "factor": 1.0}},
    }  # fmt: skip
    text = card.card("ridge", {"target": "rank", "model": "org/enc", "alpha": 0.5}, report)
    front = yaml.safe_load(text.split("---")[1])
    assert front["base_model"] == "org/enc"
    ((index),) = front["model-index"]
    assert index["name"] == "lengthwise-ridge-rank"
    assert [one["dataset"]["name"] for one in index["results"]] == ["d.jsonl", "e"]
    assert [m["value"] for m in index["results"][0]["metrics"]] == [0.5, 1.5]
    for line in (
        "- source: d.jsonl", "- answers by: m",
        "- recalibrated on 1,200 answers to 1,100 prompts, 30 of them cut short",
        "seed 7", "old, trained on data that its folder does not name", "- a notice",
        "On the test split (1,300 answers to 1,000 other prompts)",
        f"| {card.METRICS[keys[0]]} | 0.5 (0.25 to 1) | 0.25 (0.125 to 0.5) |",
        f"| {card.METRICS[keys[1]]} | 1.5 (0.75 to 3) | - |",
        "| before | 50% | 1.50 |", "| after | - | 1.00 |",
        f"| s | {card.METRICS[card.SHOWN[0]]} | 0.75 (0.375 to 1.5) |",
        f"| e | {card.METRICS[card.SHOWN[0]]} | 0.125 (0.0625 to 0.25) | - |",
        "- `alpha`: `0.5`",
    ):  # fmt: skip
        assert line in text, line
    bare = card.card("ridge", {}, None)
    assert "Not measured." in bare
    assert "Not recorded" in bare
    assert "## Options" not in bare
    assert "base_model" not in card.card("x", {"model": "./enc/x"}, None)
    assert "base_model" not in card.card("x", {"model": "a/b/c"}, None)
    alone = {k: v for k, v in report.items() if k not in ("elsewhere", "by_source", "recalibrated")}
    assert "On other sources it was not measured." in card.card("ridge", {}, alone)
    assert "- trained on 1,200" in card.card("ridge", {}, alone)


# Features and folders


def test_the_shape_of_a_prompt_by_hand() -> None:
    prompt = "How many? Take 12, 99999999 {x};\n- Élan ```\n1. B\n"
    characters = len(prompt)
    words = prompt.split()
    found = dict(zip(features.SHAPE, features.shape_of(prompt), strict=True))
    assert found == pytest.approx(
        {
            "log_characters": math.log1p(characters), "log_words": math.log1p(len(words)),
            "log_lines": math.log1p(3), "word_length": sum(map(len, words)) / len(words),
            "digits": 11 / characters, "capitals": 3 / characters,  # É is none of ASCII's
            "punctuation": 10 / characters, "beyond_ascii": 1 / characters,
            "question_marks": math.log1p(1), "code_marks": math.log1p(3),
            "list_marks": math.log1p(2),
            "has_number": 1.0, "log_number": math.log1p(5000), "starts_with_question": 1.0,
        }
    )  # fmt: skip
    empty = dict(zip(features.SHAPE, features.shape_of(""), strict=True))
    assert set(empty.values()) == {0.0}
    long = dict(zip(features.SHAPE, features.shape_of("x" * 99), strict=True))
    assert long["word_length"] == 30.0
    far = features.shape_of("a" * 20_000 + " 7")
    assert far[features.SHAPE.index("has_number")] == 0.0  # so far nobody reads


def test_a_number_in_a_prompt_is_read_of_six_digits() -> None:
    at = features.SHAPE.index("log_number")
    short, long, far = (features.shape_of(f"count {n}")[at] for n in ("000012", "0000123", "99999"))
    assert short == long == pytest.approx(math.log1p(12))
    assert far == pytest.approx(math.log1p(5000))


def test_terms_are_words_pairs_and_runs() -> None:
    assert features.terms_of("To be, or a bee") == [
        "to",
        "be",
        "or",
        "bee",
        "to be",
        "be or",
        "or bee",
    ]
    assert features.terms_of("日本語 ok") == ["日", "本", "語", "日本", "本語", "日本語", "ok"]
    assert features.terms_of("日本語 ok", 1) == ["日本語", "ok", "日本語 ok"]


def test_rows_are_unit_tf_idf_and_a_standardised_shape() -> None:
    texts = ["red red blue", "red green", "blue green green green", "odd one", "red"]
    made = features.TextFeatures.fit(texts)
    assert made.terms == ("blue", "green", "red")
    assert made.idf == pytest.approx([math.log(6 / (1 + n)) + 1 for n in (2, 2, 3)])
    rows = made.rows(["red red blue new", "nothing known"])
    weights = np.array([made.idf[0], (1 + math.log(2)) * made.idf[2]])
    first = rows.values[: rows.starts[1]]
    assert first[:2] == pytest.approx(weights / np.linalg.norm(weights))
    assert rows.columns[:2].tolist() == [0, 2]
    shapes = np.array([features.shape_of(t) for t in texts])
    spread = shapes.std(axis=0)
    scale = np.where(spread > 1e-9, spread, 1.0) / 0.1
    standard = (np.array(features.shape_of("red red blue new")) - shapes.mean(axis=0)) / scale
    assert first[2:] == pytest.approx(np.clip(standard, -0.5, 0.5))
    assert rows.starts.tolist() == [0, 2 + 14, 2 + 28]
    assert (len(rows), rows.width) == (2, 17)
    weight = np.arange(34.0).reshape(17, 2)
    dense = np.zeros((2, 17))
    for i in range(2):
        at = slice(rows.starts[i], rows.starts[i + 1])
        dense[i, rows.columns[at]] = rows.values[at]
    assert rows.dot(weight) == pytest.approx(dense @ weight)
    assert features.TextFeatures.fit(texts, max_terms=2).terms == ("green", "red")


def test_predictors_without_text_come_back_from_their_folders(tmp_path: Path) -> None:
    fitted = PromptLength().fit([], LENGTHS, prompt_tokens=np.arange(1.0, 61))
    fitted.save(tmp_path / "a")
    back: Any = load_predictor(tmp_path / "a")
    assert (back.slope_, back.intercept_, back.range_) == (
        fitted.slope_, fitted.intercept_, fitted.range_
    )  # fmt: skip
    assert back.company_ == fitted.company_
    PromptLength().save(tmp_path / "b")
    plain: Any = load_predictor(tmp_path / "b")
    assert plain.company_ is None
    assert plain.predict([], prompt_tokens=[7.0]).predicted_tokens == pytest.approx([7.0])
    oracle.NoisyOracle(tau=0.5, seed=4).fit([], LENGTHS).save(tmp_path / "c")
    noisy: Any = load_predictor(tmp_path / "c")
    assert (noisy.tau, noisy.sigma, noisy.seed) == (0.5, None, 4)
    assert noisy.blend_ == oracle.NoisyOracle(tau=0.5, seed=4).fit([], LENGTHS).blend_
    folder.write(folder.Saved("constant", {"tokens": 9.0}), tmp_path / "c")  # replaced whole
    assert folder.read(tmp_path / "c").name == "constant"
    empty = tmp_path / "empty"
    empty.mkdir()
    folder.write(folder.Saved("constant", {}, arrays={"x": np.arange(3.0)}), empty)
    assert folder.read(empty).arrays["x"].tolist() == [0, 1, 2]
    assert folder.is_saved(empty)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "thesis.tex").touch()
    (tmp_path / "file").touch()
    for taken in ("d", "file"):
        with pytest.raises(InputError, match="is no predictor; it is left as it is"):
            folder.write(folder.Saved("constant", {}), tmp_path / taken)
    assert not folder.is_saved(tmp_path / "d")
    assert folder.under("a.", {"a.x": np.ones(1), "b.x": np.ones(1)}).keys() == {"x"}


# An encoder's batches


def test_passes_are_of_similar_lengths_and_bounded() -> None:
    rng = np.random.default_rng(9)
    lengths = rng.integers(1, 400, 300).tolist()
    for close in (True, False):
        passes = list(encoder._passes(lengths, close))
        assert sorted(i for rows in passes for i in rows) == list(range(300))
        assert max(map(len, passes)) == encoder.BATCH if not close else True
        for rows in passes:
            each = [lengths[i] for i in rows]
            assert each == sorted(each)
            assert len(each) <= encoder.BATCH
            if close:
                assert each[-1] <= max(encoder.PADDED * each[0], each[0] + encoder.NEAR)
        for before, after in itertools.pairwise(passes):  # no batch ends early
            first, following = lengths[before[0]], lengths[after[0]]
            full = len(before) == encoder.BATCH
            far = following > max(encoder.PADDED * first, first + encoder.NEAR)
            assert full or (close and far)
    assert list(encoder._passes([], True)) == []
    assert list(encoder._passes([5], True)) == [[0]]


def test_an_encoder_pools_what_is_no_padding() -> None:
    class Backbone(torch.nn.Module):
        config = SimpleNamespace(hidden_size=2)

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            hidden = torch.stack((input_ids * 1.0, attention_mask * 1.0), dim=-1) * self.weight
            return SimpleNamespace(last_hidden_state=hidden)

    made: Any = object.__new__(encoder.Encoder)
    made.__dict__.update(
        backbone=Backbone().train(), tokenizer=SimpleNamespace(pad_token_id=None, eos_token_id=99),
    )  # fmt: skip
    assert made.pooled([[2, 4], [7]]).tolist() == [[3.0, 1.0], [7.0, 1.0]]  # 99 is where nothing is
    assert made._filler == 99
    done: list[int] = []
    out = made.embedded([[1, 3], [5], [6, 6, 9]], done.append)
    assert out[:, 0].tolist() == [2.0, 5.0, 7.0]
    assert done[-1] == 3
    assert not made.backbone.training


def test_seeds_of_what_a_seed_is_for_are_numpy_s() -> None:
    """Of any whole number: those beyond 63 bits, and below 0, as they are within."""
    sequence = np.random.SeedSequence([5, 2]).generate_state(1)[0]
    assert optimize.mixed(5, 2) == sequence == optimize.mixed(2**63 + 5, 2)
    assert optimize.mixed(-1, 2) == optimize.mixed(2**63 - 1, 2) != optimize.mixed(-1, 3)


def test_every_bucket_is_held_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares of every row sum to 1, whichever fold it lies in, and say what rows show."""
    monkeypatch.setattr(boosting, "ITERATIONS", 3)
    rng = np.random.default_rng(0)
    side = rng.integers(0, 2, 200)
    columns = np.column_stack((rng.normal(size=200), side.astype(float)))
    data = boosting.Rowwise(columns, side + 1.0, np.arange(200) % 5)
    _, held = boosting._buckets(data, side, 2, 0)
    assert held.sum(axis=1) == pytest.approx(np.ones(200), abs=1e-6)
    assert (held.argmax(axis=1) == side).all()
    # where the other folds have one bucket only, that one is certain
    alone = (data.folds == 0).astype(int)
    _, held = boosting._buckets(data, alone, 2, 0)
    assert held.sum(axis=1) == pytest.approx(np.ones(200), abs=1e-6)
    assert (held[data.folds == 0] == [1.0, 0.0]).all()


def test_no_quantile_is_beyond_what_a_number_of_tokens_may_be() -> None:
    target = targets.Quantile(np.array([0.5, 0.9]))
    found = target.prediction(np.array([[-5.0, 100.0], [1.0, 2.0]])).quantiles
    assert found == pytest.approx(np.array([[1.0, np.exp(20.0)], np.exp([1.0, 2.0])]))
