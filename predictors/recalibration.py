"""What a predictor says set right on answers that came, with the order that it says as it was.

Lengths move by a line in their logarithm, and how they lie around what is said is learned anew;
nothing else is. Ratios come from rows that the line was not fitted to, so that intervals cover what
they name (split conformal prediction: Vovk et al., 2005; cross-conformal: Vovk, 2015). Answers that
were cut short are filled as in training (``censoring``).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.kendall import tau_error
from lengthwise.prediction import Floats
from lengthwise.predictors import spreads, targets
from lengthwise.predictors.censoring import drawn_logs, expected_logs

FEWEST = 30  # answers: of fewer the ends of a 90% interval are the ends of what was seen
PENALTY = 10.0  # rows of the slope 1, which the slope is drawn to
FLATTEST = 0.1  # slope: the order must stay


def line(said: Floats, logs: Floats) -> tuple[float, float]:
    """Intercept and slope of log lengths on what was said of them, (n,) both."""
    middle, spread = said.mean(), max(float(said.var()), 1e-9)
    left = float(((said - middle) * (logs - logs.mean() - (said - middle))).sum())
    slope = max(1 + left / (spread * (len(said) + PENALTY)), FLATTEST)
    return float(logs.mean() - slope * middle), slope


def filled(said: Floats, tokens: Floats, cut: NDArray[np.bool_], seed: int) -> Floats:
    """Lengths (n,) of which those that were cut are drawn from what they may have become."""
    if not cut.any():
        return tokens

    def fitted(labels: Floats) -> Floats:
        level, slope = line(said, labels)
        return level + slope * said

    logs = np.log(tokens)
    _, mu, sigma = expected_logs(logs, cut, fitted)
    return np.exp(drawn_logs(logs, cut, mu, sigma, np.random.default_rng(seed)))


def recalibrated(
    target: targets.AnyTarget, raw: Floats, tokens: Floats, folds: NDArray[np.int64]
) -> targets.AnyTarget:
    """``target`` for raw outputs (n, outputs) whose answers had ``tokens`` (n,); rows of one prompt
    share one of the ``folds`` (n,).
    """
    if isinstance(target, targets.Quantile):
        return target.calibrated(raw, tokens)
    said, logs = np.log(target.prediction(raw).predicted_tokens), np.log(tokens)
    if isinstance(target, targets.Bucket):
        return _buckets(target, raw, tokens, float(np.exp(np.median(logs - said))))
    unseen = np.empty_like(said)
    for fold in np.unique(folds):
        out = folds == fold
        level, slope = line(said[~out], logs[~out])
        unseen[out] = level + slope * said[out]
    moved = target.moved(*line(said, logs))
    longest = max(float(tokens.max()), moved.longest)
    spread = spreads.of_ratios(np.exp(unseen), tokens, longest, conformal=True)
    return replace(moved, spread=spread)


def scaled(target: targets.Bucket, by: float, longest: float) -> targets.Bucket:
    """Edges and means times ``by``, the last edge at least ``longest`` tokens."""
    top = max(float(target.edges[-1]) * by, longest)
    edges = np.concatenate((target.edges[:-1] * by, [top]))
    spread = target.spread
    if spread is not None:
        spread = replace(spread, cuts=spread.cuts * by, longest=top)
    return replace(target, edges=edges, means=target.means * by, spread=spread)


def _buckets(target: targets.Bucket, raw: Floats, tokens: Floats, by: float) -> targets.Bucket:
    """Edges times ``by``; the temperature, and what is within each bucket, anew."""
    moved = scaled(target, by, float(tokens.max()))
    labels = moved.labels(tokens)
    counts = np.bincount(labels, minlength=moved.outputs)
    if (counts >= FEWEST // 5).all():  # else what was known within them, scaled
        spread = spreads.of_buckets(moved.edges, labels, tokens)
        moved = replace(moved, means=np.bincount(labels, tokens) / counts, spread=spread)
    return moved.calibrated(raw, tokens)


def orders(said: Floats, tokens: Floats) -> bool:
    """Whether lengths (n,) come in the order that is said more often than by chance."""
    from scipy.stats import kendalltau

    tau = kendalltau(said, tokens).statistic
    return bool(tau > 2 * tau_error(len(said)))  # False of NaN: nothing is ordered


def check(rows: int, of: str) -> None:
    """Raises ``InputError`` where so few rows say nothing."""
    if rows < FEWEST:
        raise InputError(
            f"{of}: to recalibrate takes {FEWEST} answers or more, not {rows} (the command keeps "
            "half of the prompts to test on, unless told --test-share)"
        )
