"""What a predictor is trained to say, and how its raw outputs become a ``Prediction``.

Each target gives labels to train on, says what raw outputs mean, and is calibrated on raw outputs
for rows that the model did not see:

- exact: raw (n, 1) is the log length; tokens are its exponential, about the conditional median.
- bucket: raw (n, buckets) are probabilities; calibrated by a temperature (Guo et al., ICML 2017);
  tokens are the mean lengths of the buckets, weighted. SSJF (Qiu et al., 2024) has the default
  edges.
- rank: raw (n, 1) is a score, higher = longer; tokens by isotonic regression.
- quantile: raw (n, levels) are log lengths; calibrated by a shift of each level (conformalized
  quantile regression: Romano et al., NeurIPS 2019); tokens are the mean of the distribution.

Each also learns how lengths lie around what it says (``spreads``), from which what is still to come
of an answer is expected while it grows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.prediction import Prediction
from lengthwise.predictors import spreads
from lengthwise.predictors.isotonic import Isotonic
from lengthwise.spread import Spread

Floats = NDArray[np.float64]

TARGETS = ("exact", "bucket", "rank", "quantile")
PERCENTILES = (25.0, 50.0, 75.0, 99.0)
LEVELS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)

State = dict[str, Any]
Arrays = Mapping[str, NDArray[Any]]


class Target(Protocol):
    """One thing to predict; made from training lengths, frozen."""

    @property
    def outputs(self) -> int:
        """How many raw numbers a request has."""
        ...

    def calibrated(self, raw: Floats, tokens: Floats) -> Self:
        """Calibrated on held-out raw outputs (n, outputs) and the lengths (n,) that came."""
        ...

    def prediction(self, raw: Floats) -> Prediction:
        """What raw outputs (n, outputs) say."""
        ...

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All that ``restored`` needs."""
        ...


@dataclass(frozen=True)
class Exact:
    """The length itself, within the range of the training lengths."""

    low: float  # tokens
    high: float
    outputs: int = 1
    spread: Spread | None = None
    line: tuple[float, float] = (0.0, 1.0)  # of log lengths: ``recalibration``

    def calibrated(self, raw: Floats, tokens: Floats) -> Self:
        said = self.prediction(raw).predicted_tokens
        return replace(self, spread=spreads.of_ratios(said, tokens, self.high))

    def moved(self, level: float, slope: float) -> Self:
        """The same, its log lengths times ``slope`` plus ``level``."""
        before, times = self.line
        return replace(self, line=(level + slope * before, slope * times))

    @property
    def longest(self) -> float:
        """The most that it says, tokens."""
        return float(np.exp(self.line[0] + self.line[1] * np.log(self.high)))

    def prediction(self, raw: Floats) -> Prediction:
        low, high = self._logs
        logs = np.minimum(np.maximum(raw[:, 0], low), high)
        return Prediction.exact(np.exp(self.line[0] + self.line[1] * logs), spread=self.spread)

    @cached_property
    def _logs(self) -> tuple[float, float]:
        return float(np.log(self.low)), float(np.log(self.high))

    def arrays(self) -> dict[str, NDArray[Any]]:
        made = {"range": np.array([self.low, self.high]), **spreads.arrays(self.spread)}
        return made if self.line == (0.0, 1.0) else made | {"line": np.array(self.line)}


@dataclass(frozen=True)
class Bucket:
    """Which of the intervals ``(edges[k], edges[k + 1]]`` the length falls into."""

    edges: Floats  # (buckets + 1,) tokens
    means: Floats  # (buckets,) tokens
    temperature: float = 1.0
    spread: Spread | None = None

    @property
    def outputs(self) -> int:
        return len(self.means)

    def labels(self, tokens: Floats) -> NDArray[np.int64]:
        """The bucket of each length, (n,)."""
        return bucket_of(tokens, self.edges)

    def calibrated(self, raw: Floats, tokens: Floats) -> Self:
        labels, rows = self.labels(tokens), np.arange(len(tokens))
        tried = np.exp(np.linspace(np.log(0.25), np.log(8.0), 61))
        losses = [-np.log(_tempered(raw, t)[rows, labels]).mean() for t in tried]
        return replace(self, temperature=float(tried[int(np.argmin(losses))]))

    def prediction(self, raw: Floats) -> Prediction:
        said = _tempered(raw, self.temperature)
        return Prediction.bucketed(said, self.edges, self.means, spread=self.spread)

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {
            "edges": self.edges,
            "means": self.means,
            "temperature": np.array([self.temperature]),
            **spreads.arrays(self.spread),
        }


@dataclass(frozen=True)
class Rank:
    """Which answers are longer than which."""

    curve: Isotonic | None = None
    outputs: int = 1
    spread: Spread | None = None

    def labels(self, tokens: Floats) -> Floats:
        """Each length's place among the lengths, in (0, 1), ties at their middle, (n,)."""
        _, inverse, counts = np.unique(tokens, return_inverse=True, return_counts=True)
        below = np.cumsum(counts) - counts
        return np.asarray((below[inverse] + counts[inverse] / 2) / len(tokens))

    def calibrated(self, raw: Floats, tokens: Floats) -> Self:
        curve = Isotonic.fit(raw[:, 0], tokens)
        said = np.maximum(curve(raw[:, 0]), 1.0)
        return replace(self, curve=curve, spread=spreads.of_ratios(said, tokens, curve.high))

    def moved(self, level: float, slope: float) -> Self:
        """The same, its log lengths times ``slope`` plus ``level``."""
        assert self.curve is not None  # fit always calibrates
        return replace(self, curve=self.curve.scaled(level, slope))

    @property
    def longest(self) -> float:
        """The most that it says, tokens."""
        assert self.curve is not None
        return self.curve.high

    def prediction(self, raw: Floats) -> Prediction:
        tokens = None if self.curve is None else self.curve(raw[:, 0])
        return Prediction.ranked(raw[:, 0], tokens, spread=self.spread)

    def arrays(self) -> dict[str, NDArray[Any]]:
        assert self.curve is not None  # fit always calibrates
        return {
            "knots": self.curve.knots,
            "values": self.curve.values,
            "range": np.array([self.curve.low, self.curve.high]),
            **spreads.arrays(self.spread),
        }


@dataclass(frozen=True)
class Quantile:
    """The distribution of the length, at ``levels``."""

    levels: Floats
    shift: Floats = field(default_factory=lambda: np.zeros(0))  # (levels,) log tokens
    spread: Spread | None = None

    @property
    def outputs(self) -> int:
        return len(self.levels)

    def calibrated(self, raw: Floats, tokens: Floats) -> Self:
        missed = np.log(tokens)[:, None] - raw  # (n, levels)
        found = [np.quantile(missed[:, k], level) for k, level in enumerate(self.levels)]
        shifted = replace(self, shift=np.array(found))
        quantiles = shifted.prediction(raw).quantiles
        assert quantiles is not None
        return replace(shifted, spread=spreads.of_quantiles(quantiles, tokens))

    def prediction(self, raw: Floats) -> Prediction:
        logs = raw + (self.shift if len(self.shift) else 0.0)
        quantiles = np.exp(np.clip(logs, 0.0, 20.0))
        return Prediction.distribution(quantiles, self.levels, spread=self.spread)

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"levels": self.levels, "shift": self.shift, **spreads.arrays(self.spread)}


AnyTarget = Exact | Bucket | Rank | Quantile


def make_target(
    name: str,
    tokens: Floats,
    *,
    buckets: int | Sequence[float] | None = None,
    levels: Sequence[float] = LEVELS,
) -> AnyTarget:
    """The target called ``name`` for training lengths (n,); raises for an unknown name."""
    match check_target(name):
        case "exact":
            return Exact(float(tokens.min()), float(tokens.max()))
        case "bucket":
            edges = bucket_edges(tokens, buckets)
            labels = bucket_of(tokens, edges)
            means = np.bincount(labels, tokens) / np.bincount(labels)
            means = np.clip(means, edges[:-1], edges[1:])  # which a mean of equals may miss
            return Bucket(edges, means, spread=spreads.of_buckets(edges, labels, tokens))
        case "rank":
            return Rank()
        case _:
            return Quantile(checked_levels(levels))


def restored(name: str, arrays: Arrays) -> AnyTarget:
    """The target that ``arrays()`` described."""
    spread = spreads.restored(arrays)
    match check_target(name):
        case "exact":
            low, high = (float(value) for value in arrays["range"])
            level, slope = arrays.get("line", (0.0, 1.0))
            return Exact(low, high, spread=spread, line=(float(level), float(slope)))
        case "bucket":
            return Bucket(arrays["edges"], arrays["means"], arrays["temperature"].item(), spread)
        case "rank":
            low, high = (float(value) for value in arrays["range"])
            return Rank(Isotonic(arrays["knots"], arrays["values"], low, high), spread=spread)
        case _:
            return Quantile(arrays["levels"], arrays["shift"], spread)


def regression_labels(target: AnyTarget, tokens: Floats) -> Floats:
    """What a regression is fitted to, for lengths (n,): one or more columns (n, k).

    Log lengths for exact and quantile, places for rank, and for buckets whether the length exceeds
    each inner edge. ``from_regression`` takes what it says back to raw outputs.
    """
    if isinstance(target, Bucket):
        return (tokens[:, None] > target.edges[None, 1:-1]).astype(np.float64)
    if isinstance(target, Rank):
        return target.labels(tokens)[:, None]
    return np.log(tokens)[:, None]


def from_regression(target: AnyTarget, said: Floats) -> Floats:
    """Raw outputs (n, outputs) from what a regression on ``regression_labels`` says, (n, k)."""
    if isinstance(target, Bucket):
        longer = np.minimum.accumulate(np.clip(said, 0.0, 1.0), axis=1)
        ends = np.ones((len(said), 1))
        return -np.diff(np.concatenate((ends, longer, 0 * ends), axis=1), axis=1)
    if isinstance(target, Quantile):
        return np.repeat(said, target.outputs, axis=1)  # calibration spreads them
    return said


def check_target(name: str) -> str:
    """``name`` if it is a target; raises ``UnknownNameError`` with the nearest one."""
    if name not in TARGETS:
        raise UnknownNameError("target", name, TARGETS)
    return name


def checked_levels(levels: Sequence[float]) -> Floats:
    """Quantile levels as an array, if they ascend within (0, 1)."""
    at = _numbers(levels, "levels")
    if at.ndim != 1 or not len(at) or (np.diff(at) <= 0).any() or not (0 < at[0] <= at[-1] < 1):
        raise InputError(f"levels must ascend within (0, 1), not {levels!r}")
    return at


MOST_BUCKETS = 10_000


def bucket_edges(tokens: Floats, buckets: int | Sequence[float] | None = None) -> Floats:
    """Edges around the training lengths: at the default percentiles, at ``buckets`` equal shares,
    or at the given inner edges; none of the buckets is empty. Shape (buckets + 1,).

    Raises ``InputError`` where fewer than two buckets remain.
    """
    if buckets is None:
        inner = np.percentile(tokens, PERCENTILES)
    elif isinstance(buckets, int) and not isinstance(buckets, bool):
        if not 2 <= buckets <= MOST_BUCKETS:
            raise InputError(f"buckets must be 2 or more, up to {MOST_BUCKETS}, not {buckets}")
        inner = np.quantile(tokens, np.arange(1, buckets) / buckets)
    else:
        inner = _numbers(buckets, "bucket edges")
        if inner.ndim != 1 or not np.isfinite(inner).all() or (np.diff(inner) <= 0).any():
            raise InputError(f"bucket edges must be ascending numbers of tokens, not {buckets!r}")
    low, high = float(tokens.min()), float(tokens.max())
    edges = np.unique(np.concatenate(([low - 1], inner[(inner >= low) & (inner < high)], [high])))
    filled = np.bincount(bucket_of(tokens, edges), minlength=len(edges) - 1) > 0
    edges = np.concatenate((edges[:1], edges[1:][filled]))  # an empty bucket joins the next one
    edges[-1] = high
    if len(edges) < 3:
        raise InputError(
            f"the lengths ({low:g} to {high:g} tokens) fall into one bucket; give other edges"
        )
    return edges


def bucket_of(tokens: Floats, edges: Floats) -> NDArray[np.int64]:
    """The bucket of each length (n,); lengths outside the edges belong to the end buckets."""
    return np.searchsorted(edges[1:-1], tokens, side="left").astype(np.int64)


def _numbers(values: object, name: str) -> Floats:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be numbers, not {values!r}") from None


def _tempered(probabilities: Floats, temperature: float) -> Floats:
    """Probabilities to the power of 1/temperature, none of them zero, summing to 1."""
    powered = np.maximum(probabilities, 1e-4) ** (1.0 / temperature)
    return np.asarray(powered / powered.sum(axis=1, keepdims=True))
