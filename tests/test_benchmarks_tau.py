"""Oracles that err on some answers alone: by as much as was asked, and on no others."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kendalltau

from benchmarks.tau_to_latency import KINDS, misjudged

TOKENS = np.round(np.random.default_rng(0).lognormal(5, 1, 1500))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tau", [0.4, 0.6])
def test_errors_of_a_kind_have_the_tau_that_was_asked_for(kind: str, tau: float) -> None:
    found = misjudged(kind, TOKENS, tau, seed=3)
    assert kendalltau(found, TOKENS).statistic == pytest.approx(tau, abs=0.01)
    assert np.array_equal(np.sort(found), np.sort(TOKENS))  # the lengths are the truth's
    assert np.array_equal(found, misjudged(kind, TOKENS, tau, seed=3))


def test_only_those_that_are_named_are_misjudged() -> None:
    short, long = np.quantile(TOKENS, [0.2, 0.8])
    among_long = misjudged("long ones among themselves", TOKENS, 0.6, seed=3)
    assert kendalltau(among_long[TOKENS < short], TOKENS[TOKENS < short]).statistic > 0.99
    among_short = misjudged("short ones among themselves", TOKENS, 0.6, seed=3)
    assert kendalltau(among_short[TOKENS > long], TOKENS[TOKENS > long]).statistic > 0.99
    # the error goes in one direction for those who are moved
    under = misjudged("long ones taken for short", TOKENS, 0.6, seed=3)
    over = misjudged("short ones taken for long", TOKENS, 0.6, seed=3)
    assert (under[TOKENS > long] < short).any()
    assert not (under[TOKENS < short] > long).any()
    assert (over[TOKENS < short] > long).any()
    assert not (over[TOKENS > long] < short).any()
