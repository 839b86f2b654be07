"""Predictors that are told the answer: the truth itself, and the truth with chosen noise.

How much of the order the noise leaves is said by Kendall's τ with the truth (Biometrika, 1938), the
measure by which Fu et al. (NeurIPS 2024) judge predictors for scheduling.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from lengthwise.context import Context
from lengthwise.errors import InputError
from lengthwise.prediction import Floats, Prediction
from lengthwise.predictors import columns, folder

GAMMA = np.uint64(0x9E3779B97F4A7C15)  # SplitMix64's step
CALIBRATION_ROWS = 50_000  # Kendall's tau of so many rows has a standard error below 0.005


class Oracle:
    """Predicts the true length: the bound that no predictor beats."""

    needs = frozenset({"output_tokens"})

    def fit(
        self,
        prompts: Sequence[str],
        output_tokens: ArrayLike,
        *,
        prompt_tokens: ArrayLike | None = None,
        censored: ArrayLike | None = None,
        context: Context | None = None,
    ) -> Self:
        """Learns nothing."""
        return self

    def predict(
        self,
        prompts: Sequence[str],
        *,
        prompt_tokens: ArrayLike | None = None,
        output_tokens: ArrayLike | None = None,
        context: Context | None = None,
    ) -> Prediction:
        """The lengths themselves; ``prompts`` may be empty."""
        return Prediction.exact(_truth(prompts, output_tokens, "oracle"))

    def save(self, path: str | Path) -> None:
        """Writes the folder that ``load_predictor`` reads."""
        folder.write(folder.Saved("oracle", {}), path)

    @classmethod
    def restore(cls, saved: folder.Saved, path: Path) -> Self:
        """The predictor in a saved folder."""
        return cls(**saved.options)


class NoisyOracle:
    """The truth with noise of a chosen size; give ``tau`` or ``sigma``.

    ``tau``: Kendall's τ_b between prediction and truth, in [-1, 1]. The log lengths are blended
    with Gaussian noise of their own mean and spread, so that predictions are distributed like the
    lengths, and the blend is calibrated on the lengths given to ``predict`` (or on those given to
    ``fit``, if it was fitted) until τ is within 0.01, as far as so many requests can show it.

    ``sigma``: predictions are ``length * exp(sigma * z)``, z standard normal.

    Noise is a function of ``seed`` and the request's row alone. Without a ``seed`` of its own it is
    that of the run (``seeded``), and 0 where there is none.
    """

    needs = frozenset({"output_tokens"})

    def __init__(
        self, tau: float | None = None, sigma: float | None = None, *, seed: int | None = None
    ) -> None:
        if (tau is None) == (sigma is None):
            raise InputError("noisy-oracle takes either tau or sigma, e.g. noisy-oracle:tau=0.5")
        if tau is not None and not -1 <= columns.number(tau, name="tau", of="noisy-oracle") <= 1:
            raise InputError(f"noisy-oracle: tau must lie in [-1, 1], not {tau!r}")
        if sigma is not None and columns.number(sigma, name="sigma", of="noisy-oracle") < 0:
            raise InputError(f"noisy-oracle: sigma must be 0 or more, not {sigma!r}")
        self.tau, self.sigma, self.seed = tau, sigma, seed
        self.blend_: tuple[float, float, float] | None = None  # weight of the truth, mean, spread

    def seeded(self, seed: int) -> NoisyOracle:
        """The same with the noise of a run's seed, unless it has a seed of its own."""
        if self.seed is not None:
            return self
        made = copy(self)
        made.seed = seed
        return made

    def fit(
        self,
        prompts: Sequence[str],
        output_tokens: ArrayLike,
        *,
        prompt_tokens: ArrayLike | None = None,
        censored: ArrayLike | None = None,
        context: Context | None = None,
    ) -> Self:
        """Calibrates the noise on these lengths, for all later predictions."""
        if self.tau is not None:
            self.blend_ = self._calibrated(np.log(_truth((), output_tokens, "noisy-oracle")))
        return self

    def predict(
        self,
        prompts: Sequence[str],
        *,
        prompt_tokens: ArrayLike | None = None,
        output_tokens: ArrayLike | None = None,
        context: Context | None = None,
    ) -> Prediction:
        """The lengths with noise; ``prompts`` may be empty."""
        truth = _truth(prompts, output_tokens, "noisy-oracle")
        noise = normal_by_row(self.seed or 0, len(truth))
        if self.sigma is not None:
            return Prediction.exact(truth * np.exp(self.sigma * noise))
        log = np.log(truth)
        blend = self.blend_ or self._calibrated(log)
        return Prediction.exact(np.exp(_blend(log, noise, *blend)))

    def save(self, path: str | Path) -> None:
        """Writes the folder that ``load_predictor`` reads."""
        options = {"tau": self.tau, "sigma": self.sigma, "seed": self.seed}
        folder.write(folder.Saved("noisy-oracle", options, {"blend": self.blend_}), path)

    @classmethod
    def restore(cls, saved: folder.Saved, path: Path) -> Self:
        """The predictor in a saved folder."""
        made = cls(**saved.options)
        if saved.state["blend"] is not None:
            weight, mean, spread = saved.state["blend"]
            made.blend_ = float(weight), float(mean), float(spread)
        return made

    def _calibrated(self, log: Floats) -> tuple[float, float, float]:
        """The blend whose τ_b with the truth is nearest ``tau``, by bisection on its weight."""
        from scipy.stats import kendalltau

        assert self.tau is not None
        wanted = self.tau
        mean, spread = float(log.mean()), float(log.std())
        if spread == 0:
            raise InputError(
                f"noisy-oracle: all {len(log)} lengths are equal, so no noise gives them a "
                "Kendall tau; use sigma"
            )
        rows = np.unique(np.linspace(0, len(log) - 1, CALIBRATION_ROWS).astype(np.int64))
        shown, noise = log[rows], normal_by_row(self.seed or 0, len(log))[rows]

        def tau(weight: float) -> float:
            return float(kendalltau(shown, _blend(shown, noise, weight, mean, spread)).statistic)

        low, high = -1.0, 1.0
        tried = {low: tau(low), high: tau(high)}
        for _ in range(40):
            middle = (low + high) / 2
            tried[middle] = tau(middle)
            if abs(tried[middle] - wanted) < 1e-3:
                break
            low, high = (middle, high) if tried[middle] < wanted else (low, middle)
        weight = min(tried, key=lambda at: abs(tried[at] - wanted))
        if abs(tried[weight] - wanted) > 0.01 + 2 / len(shown):
            raise InputError(
                f"noisy-oracle: tau={wanted:g} can't be had on these {len(log)} lengths, of "
                f"which many are equal; the nearest is {tried[weight]:.3f}"
            )
        return weight, mean, spread


def normal_by_row(seed: int, rows: int) -> Floats:
    """Standard normal numbers, shape (rows,): each a function of (seed, row) alone.

    The uniform bits are SplitMix64's (Steele, Lea, Flood, OOPSLA 2014), the transform Box–Muller's.
    """
    counter = np.arange(1, 2 * rows + 1, dtype=np.uint64).reshape(rows, 2)
    with np.errstate(over="ignore"):
        key = _splitmix(np.array([seed % 2**64], dtype=np.uint64) + GAMMA)
        bits = _splitmix(key + counter * GAMMA)
    u = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53  # in (0, 1)
    return np.asarray(np.sqrt(-2 * np.log(u[:, 0])) * np.cos(2 * np.pi * u[:, 1]))


def _splitmix(x: Any) -> Any:
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _blend(log: Floats, noise: Floats, weight: float, mean: float, spread: float) -> Floats:
    kept = weight * (log - mean) + np.sqrt(1 - weight * weight) * spread * noise
    return np.asarray(mean + kept)


def _truth(prompts: Sequence[str], output_tokens: ArrayLike | None, of: str) -> Floats:
    if output_tokens is None:
        raise InputError(f"{of} reads output_tokens, which the data do not have")
    rows = columns.count(prompts, output_tokens, of=of)
    return columns.lengths(output_tokens, rows=rows, name="output_tokens", of=of)
