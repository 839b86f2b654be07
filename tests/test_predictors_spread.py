"""Learned spreads: what is still to come against closed forms, and calibrated on lengths unseen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import integrate, stats

from lengthwise.prediction import CURVES, Prediction
from lengthwise.predictors import load_predictor, make_predictor, spreads, targets
from lengthwise.predictors.targets import TARGETS
from lengthwise.spread import TAIL_MASS, Spread, tail_ratios

SIGMA, LONGEST = 0.6, 1e5


def drawn(rows: int, seed: int) -> tuple[Any, Any]:
    """Predicted lengths and true ones, log-normal around them."""
    rng = np.random.default_rng(seed)
    predicted = np.exp(rng.uniform(np.log(40), np.log(1000), rows))
    return predicted, predicted * np.exp(SIGMA * rng.standard_normal(rows))


def remainder_of_log_normal(median: float, done: float) -> float:
    """E[L - done | L > done], by quadrature of the survival function."""
    law = stats.lognorm(SIGMA, scale=median)
    ahead, _ = integrate.quad(law.sf, done, np.inf)
    return float(ahead / law.sf(done))


@pytest.mark.parametrize("done", [0, 64, 256, 1024])
def test_the_remainder_is_that_of_the_distribution_that_was_drawn_from(done: float) -> None:
    predicted, tokens = drawn(20_000, 0)
    spread = spreads.of_ratios(predicted, tokens, LONGEST)
    asked = np.array([100.0, 300.0, 900.0])
    said = Prediction.exact(asked, spread=spread).refresh(np.full(3, done))
    true = [remainder_of_log_normal(median, done) for median in asked]
    within = done / asked < 3  # 97 of 100 rows; beyond is a tail taken for Pareto's
    np.testing.assert_allclose(said[within], np.array(true)[within], rtol=0.1)
    np.testing.assert_allclose(said[~within], np.array(true)[~within], rtol=1.2)


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_s_curve_is_calibrated_on_rows_it_never_saw(target: str) -> None:
    """The mean remainder of those that live, and the share that the 90% bound covers."""

    def raw_of(logs: Any, made: Any) -> Any:
        if target == "bucket":
            upto = stats.norm.cdf((np.log(made.edges[1:-1]) - logs[:, None]) / SIGMA)
            ends = np.ones((len(logs), 1))
            return np.diff(np.concatenate((0 * ends, upto, ends), axis=1), axis=1)
        return logs[:, None] + (np.zeros(made.outputs) if target == "quantile" else 0)

    predicted, tokens = drawn(4000, 1)
    made = targets.make_target(target, tokens)
    made = made.calibrated(raw_of(np.log(predicted), made), tokens)
    asked, truth = drawn(4000, 2)
    said = targets.restored(target, made.arrays()).prediction(raw_of(np.log(asked), made))
    run = said.of_run()
    for done in (0, 64, 256, 1024):
        live = np.flatnonzero(truth > done)
        left = truth[live] - done
        expected = run.at("expected_remaining_tokens", live, np.full(len(live), done))
        # within a bucket the lengths are spread alike, whatever else the predictor knows
        near = 0.3 if target == "bucket" and done > 256 else 0.15
        np.testing.assert_allclose(expected.mean(), left.mean(), rtol=near, err_msg=f"at {done}")
        bound = run.at("remaining_tokens_p90", live, np.full(len(live), done))
        assert 0.85 < (left <= bound).mean() < 0.95, done


def test_a_tail_has_the_mean_excess_that_it_is_made_for() -> None:
    """An exponential of log lengths: a fifth of its mass lies above 5 to the power of its mean."""
    cuts = np.log(tail_ratios(0.3))
    above = stats.expon(scale=0.3).sf(cuts)
    np.testing.assert_allclose(-np.diff(above), TAIL_MASS, atol=0.006)
    assert TAIL_MASS.sum() == pytest.approx(1)


@pytest.mark.parametrize("done", [0.0, 500.0, 2999.0])
def test_nobody_who_outlived_all_that_was_seen_is_thought_to_be_done(done: float) -> None:
    rng = np.random.default_rng(3)
    predicted, tokens = drawn(2000, 3)
    spread = spreads.of_ratios(predicted, np.minimum(tokens, 3000), 3000.0)
    many = Prediction.exact(rng.uniform(50, 2000, 20), spread=spread)
    assert (many.refresh(np.full(20, done)) >= 1).all()
    assert (many.refresh(np.full(20, 3500.0)) > 100).all()  # some tail is always left


def test_the_mass_of_cells_is_one_whatever_is_predicted() -> None:
    predicted, tokens = drawn(500, 4)
    spread = spreads.of_ratios(predicted, tokens, float(tokens.max()))
    buckets = targets.make_target("bucket", tokens)
    assert isinstance(buckets, targets.Bucket) and buckets.spread is not None
    raw = np.tile(np.log(predicted)[:, None], 8)
    ladder = targets.make_target("quantile", tokens).calibrated(raw, tokens).prediction(raw)
    assert ladder.quantiles is not None and ladder.levels is not None and ladder.spread is not None
    for pieces in (
        spread.around(predicted),
        buckets.spread.within(np.full((3, buckets.outputs), 1 / buckets.outputs)),
        ladder.spread.between(ladder.quantiles, ladder.levels),
    ):
        np.testing.assert_allclose(pieces.mass.sum(axis=1), 1.0)
        assert (pieces.low <= pieces.high).all() and (pieces.mass >= 0).all()
        assert (np.diff(pieces.low, axis=1) >= 0).all()


def test_a_long_table_is_made_in_parts_of_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    predicted, tokens = drawn(100, 5)
    made = Prediction.exact(predicted, spread=spreads.of_ratios(predicted, tokens, LONGEST))
    whole = {name: made.curve(name) for name in CURVES}
    monkeypatch.setattr("lengthwise.prediction.TABULATED", 7)
    for name, curve in whole.items():
        at = np.arange(100), np.arange(100) * 13
        np.testing.assert_array_equal(made.curve(name).at(*at), curve.at(*at))


@pytest.mark.parametrize("target", TARGETS)
def test_a_predictor_saved_before_there_were_spreads_says_what_it_said(
    target: str, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    prompts = [f"{'a long tale' if i % 2 else 'a word'} number {i}" for i in range(60)]
    lengths = np.where(np.arange(60) % 2, 300, 12) + np.arange(60) % 9
    made = make_predictor("ridge", target=target).fit(prompts, lengths)
    made.save(tmp_path / "new")
    file = tmp_path / "new" / "arrays.safetensors"
    kept = {name: value for name, value in load_file(file).items() if "spread" not in name}
    save_file(kept, file)
    old = load_predictor(tmp_path / "new")
    assert old is not None
    before, now = old.predict(prompts), made.predict(prompts)
    np.testing.assert_array_equal(before.predicted_tokens, now.predicted_tokens)
    assert before.spread is None and isinstance(now.spread, Spread)
    assert before.certain is (target in ("exact", "rank")) and not now.certain
