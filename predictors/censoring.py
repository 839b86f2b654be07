"""Lengths cut at max_tokens: known to be at least so long, and used as that.

The model is log-normal with censoring on the right (Tobit: Tobin, Econometrica 1958; as a model of
durations, accelerated failure time): log length = mu(prompt) + sigma * z. EM alternates between
filling the cut lengths with what the model expects of them and fitting the model to the filled
lengths (Aitkin, Biometrics 1981).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

ROUNDS = 30
TOLERANCE = 1e-3  # of sigma: mean change of the filled values at which EM stops


def expected_logs(
    logs: Floats, censored: Mask, fitted: Callable[[Floats], Floats]
) -> tuple[Floats, Floats, float]:
    """Fills censored log lengths (n,) with E[log length | it is above the cut, prompt].

    ``fitted(labels)`` gives mu, shape (n,), of a model fitted to labels (n,); of one that did not
    see the row, if the model can overfit. Returns the filled logs, the last mu, and sigma.
    """
    filled = logs.copy()
    mu = fitted(filled)
    sigma = float(np.std(filled - mu))
    if not censored.any():
        return filled, mu, sigma
    for _ in range(ROUNDS):
        z = (logs[censored] - mu[censored]) / max(sigma, 1e-9)
        hazard = _hazard(z)
        before = filled[censored]
        filled[censored] = mu[censored] + sigma * hazard
        # what the filled value's own uncertainty adds to the spread
        within = sigma**2 * (1 + z * hazard - hazard**2)
        moved = float(np.abs(filled[censored] - before).mean())
        mu = fitted(filled)
        squares = (filled - mu) ** 2
        squares[censored] += np.maximum(within, 0)
        sigma = float(np.sqrt(squares.mean()))
        if moved < TOLERANCE * sigma:
            break
    return filled, mu, sigma


def drawn_logs(
    logs: Floats, censored: Mask, mu: Floats, sigma: float, rng: np.random.Generator
) -> Floats:
    """Censored log lengths replaced by draws from their distribution above the cut.

    For targets that are distributions (buckets, quantiles), which filling by the mean would narrow.
    """
    from scipy.special import ndtr, ndtri

    drawn = logs.copy()
    if censored.any():
        above = ndtr(-(logs[censored] - mu[censored]) / max(sigma, 1e-9))  # P(log > cut)
        u = 1 - rng.random(int(censored.sum()))  # in (0, 1]
        z = -ndtri(np.maximum(u * above, np.finfo(np.float64).tiny))
        drawn[censored] = np.maximum(mu[censored] + sigma * z, logs[censored])
    return drawn


def _hazard(z: Floats) -> Floats:
    """E[Z | Z > z] of a standard normal Z: its density over its upper tail."""
    from scipy.special import log_ndtr

    return np.asarray(np.exp(-0.5 * z * z - 0.5 * np.log(2 * np.pi) - log_ndtr(-z)))
