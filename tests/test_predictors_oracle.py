"""Oracles with noise of a chosen size, measured by scipy; and the predictors that read no text."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import kendalltau, kstest

from lengthwise.errors import InputError
from lengthwise.predictors import load_predictor
from lengthwise.predictors.oracle import NoisyOracle, normal_by_row


def lengths(n: int, seed: int = 0) -> NDArray[np.float64]:
    return np.ceil(np.random.default_rng(seed).lognormal(5, 1, n))


def told(spec: str, truth: NDArray[np.float64]) -> NDArray[np.float64]:
    predictor = load_predictor(spec)
    assert predictor is not None
    return predictor.predict([], output_tokens=truth).predicted_tokens


def test_oracle_tells_the_truth() -> None:
    np.testing.assert_array_equal(told("oracle", lengths(50)), lengths(50))


@pytest.mark.parametrize("tau", [-0.3, 0.0, 0.3, 0.5, 0.62, 0.9, 1.0])
@pytest.mark.parametrize("n", [200, 5000])
def test_noisy_oracle_has_the_kendall_tau_it_was_asked_for(tau: float, n: int) -> None:
    truth = lengths(n)
    found = kendalltau(truth, told(f"noisy-oracle:tau={tau}", truth)).statistic
    assert found == pytest.approx(tau, abs=0.01)


def test_tau_holds_for_lengths_with_many_ties_and_many_rows() -> None:
    tied = np.random.default_rng(1).integers(1, 30, 4000).astype(float)
    assert kendalltau(tied, told("noisy-oracle:tau=0.4", tied)).statistic == pytest.approx(
        0.4, abs=0.01
    )
    many = lengths(120_000)
    assert kendalltau(many, told("noisy-oracle:tau=0.5", many)).statistic == pytest.approx(
        0.5, abs=0.01
    )


def test_predictions_are_distributed_like_the_lengths() -> None:
    truth = lengths(20_000)
    noisy = told("noisy-oracle:tau=0.5", truth)
    assert np.log(noisy).mean() == pytest.approx(np.log(truth).mean(), abs=0.02)
    assert np.log(noisy).std() == pytest.approx(np.log(truth).std(), rel=0.02)


def test_log_normal_error_has_the_chosen_sigma() -> None:
    truth = lengths(20_000) + 50  # far from 1 token, below which a prediction is cut
    error = np.log(told("noisy-oracle:sigma=0.4", truth) / truth)
    assert error.std() == pytest.approx(0.4, rel=0.02)
    assert abs(error.mean()) < 4 * 0.4 / np.sqrt(20_000)


def test_noise_is_standard_normal_and_a_function_of_seed_and_row() -> None:
    z = normal_by_row(7, 50_000)
    assert kstest(z, "norm").pvalue > 0.001
    assert abs(np.corrcoef(z[:-1], z[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(z, normal_by_row(8, 50_000))[0, 1]) < 0.02
    np.testing.assert_array_equal(z[:100], normal_by_row(7, 100))
    first = np.array([normal_by_row(seed, 2) for seed in range(-2000, 2000)])
    assert kstest(first[:, 0], "norm").pvalue > 0.001 and np.abs(first).max() < 5


def test_row_noise_does_not_depend_on_other_rows() -> None:
    truth = lengths(500)
    other = truth.copy()
    other[250:] = 3
    first, second = (told("noisy-oracle:sigma=0.5,seed=3", values) for values in (truth, other))
    np.testing.assert_array_equal(first[:250], second[:250])
    assert (told("noisy-oracle:sigma=0.5,seed=4", truth) != first).any()


def test_fit_fixes_the_noise_for_later_lengths() -> None:
    fitted = NoisyOracle(tau=0.5).fit([], lengths(5000))
    short = lengths(5000, seed=1)[:4]
    blend = fitted.blend_
    assert fitted.predict([], output_tokens=short).tokens is not None and fitted.blend_ == blend
    later = fitted.predict([], output_tokens=lengths(5000, seed=1)).predicted_tokens
    assert kendalltau(later, lengths(5000, seed=1)).statistic == pytest.approx(0.5, abs=0.03)


def test_constant_takes_the_median_and_survives_censoring() -> None:
    truth = np.random.default_rng(0).lognormal(5, 0.8, 20_000)
    predictor = load_predictor("constant:tokens=200")
    assert predictor is not None
    assert predictor.predict(["a", "b"]).predicted_tokens.tolist() == [200, 200]
    cut = np.minimum(truth, 200)
    said = predictor.fit([], cut, censored=truth > 200).predict(["a"]).predicted_tokens[0]
    assert said == pytest.approx(np.exp(5), rel=0.03)
    assert predictor.fit([], cut).predict(["a"]).predicted_tokens[0] == np.median(cut)


def test_prompt_length_finds_the_power_law() -> None:
    rng = np.random.default_rng(0)
    asked = rng.integers(5, 2000, 5000)
    came = np.exp(1 + 0.7 * np.log(asked) + rng.normal(0, 0.5, 5000))
    predictor = load_predictor("prompt-length")
    assert predictor is not None
    unfitted = predictor.predict([], prompt_tokens=asked).predicted_tokens
    np.testing.assert_allclose(unfitted, asked, rtol=1e-12)
    limit = 150.0
    fits = {
        "whole": predictor.fit([], np.maximum(came, 1), prompt_tokens=asked),
        "cut": load_predictor("prompt-length").fit(  # type: ignore[union-attr]
            [], np.clip(came, 1, limit), prompt_tokens=asked, censored=came > limit
        ),
    }
    for fitted in fits.values():
        said = fitted.predict([], prompt_tokens=[10, 1000]).predicted_tokens
        np.testing.assert_allclose(said, np.exp(1 + 0.7 * np.log([10, 1000])), rtol=0.08)


@pytest.mark.parametrize(
    ("spec", "truth", "message"),
    [
        ("noisy-oracle:tau=0.5", [7, 7, 7], "all 3 lengths are equal"),
        ("noisy-oracle:tau=0.85", [1] * 500 + [2] * 500, "tau=0.85 can't be had"),
        ("oracle", None, "oracle reads output_tokens, which the data do not have"),
        ("oracle", [], "no requests to predict"),
        ("oracle", [3, -1], "row 1 is -1; a length is a finite number of tokens, 1 or more"),
        ("oracle", [float("nan"), 2, 0], "row 0 is nan.*2 such rows"),
        ("oracle", ["a"], "not numbers"),
        ("prompt-length", [3], "prompt-length reads prompt_tokens"),
    ],
)
def test_bad_lengths_are_refused(spec: str, truth: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_predictor(spec).predict([], output_tokens=truth)  # type: ignore


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("noisy-oracle", "either tau or sigma"),
        ("noisy-oracle:tau=0.5,sigma=1", "either tau or sigma"),
        ("noisy-oracle:tau=1.5", r"tau must lie in \[-1, 1\]"),
        ("noisy-oracle:tau=much", "tau must be a finite number, not 'much'"),
        ("noisy-oracle:sigma=-1", "sigma must be 0 or more"),
        ("constant:tokens=0", "tokens must be 1 or more"),
        ("constant:tokens=inf", "tokens must be a finite number"),
    ],
)
def test_bad_options_are_refused(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_predictor(spec)
