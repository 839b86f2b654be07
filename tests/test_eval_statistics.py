"""Intervals against scipy, and their coverage against theory."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from lengthwise.errors import InputError
from lengthwise.eval.statistics import paired_difference, paired_ratio, t_interval


def test_t_interval_is_scipys() -> None:
    values = np.random.default_rng(0).normal(5, 2, 7)
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = t_interval(values)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert found.mean == pytest.approx(values.mean())
    assert found.half == pytest.approx((expected.high - expected.low) / 2)


def test_paired_difference_is_scipys() -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(5, 2, 9)
    b = a + rng.normal(0.3, 0.1, 9)
    expected = scipy.stats.ttest_rel(a, b).confidence_interval(0.95)
    found = paired_difference(a, b)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-9)
    # common random numbers pay: the unpaired interval is several times as wide
    unpaired = scipy.stats.ttest_ind(a, b).confidence_interval(0.95)
    assert found.half < (unpaired.high - unpaired.low) / 6


def test_one_value_has_no_interval() -> None:
    found = t_interval([3.0])
    assert found.mean == 3
    assert np.isnan(found.half)
    with pytest.raises(InputError):
        t_interval([])


def test_intervals_cover_as_often_as_they_say() -> None:
    rng = np.random.default_rng(2)
    covered = [t_interval(rng.exponential(1.0, 30)).contains(1.0) for _ in range(2000)]
    normal = [t_interval(rng.normal(1.0, 3.0, 5)).contains(1.0) for _ in range(2000)]
    assert np.mean(normal) == pytest.approx(0.95, abs=0.015)
    assert 0.90 < np.mean(covered) < 0.96  # skewed values cover slightly less


def test_ratio_covers_the_true_ratio_of_paired_values() -> None:
    rng = np.random.default_rng(3)
    hits = []
    for _ in range(1000):
        common = rng.lognormal(0, 1, 6)
        hits.append(paired_ratio(0.7 * common * rng.lognormal(0, 0.05, 6), common).contains(0.7))
    assert np.mean(hits) == pytest.approx(0.95, abs=0.02)


def test_ratio_refuses_what_has_none() -> None:
    with pytest.raises(InputError, match="positive"):
        paired_ratio([1.0, 0.0], [1.0, 1.0])
    with pytest.raises(InputError, match="pairs"):
        paired_ratio([1.0], [1.0, 1.0])
