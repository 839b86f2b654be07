"""What a predictor says about the answers to come, and how that becomes features of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lengthwise import remaining
from lengthwise.curves import Curve
from lengthwise.errors import InputError, UnknownNameError
from lengthwise.remaining import Pieces
from lengthwise.spread import Spread

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Features that change with every generated token, and how a distribution of lengths gives them.
CURVES: dict[str, Callable[[Pieces, Floats], Floats]] = {
    "expected_remaining_tokens": remaining.expected,
    "gittins_index": remaining.gittins,
    "remaining_tokens_p90": lambda pieces, done: remaining.quantile(pieces, done, 0.9),
}
# Generated tokens at which distributions are tabulated: 16 apart at first, then 2 a doubling.
EDGES = np.array(
    [0, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192,
     12288, 16384, 32768], dtype=np.float64,
)  # fmt: skip
# Quantiles of answer lengths in tokens over nine public sets of prompts, each with the same weight:
# all that is known of an answer whose prompt is like no other.
ANY_LEVELS = np.array(
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975, 0.99, 0.995]
)
ANY_LENGTH = np.array(
    [1, 2, 6, 13, 32, 72, 156, 384, 1318, 1699, 2043, 2573, 3225], dtype=np.float64
)
TABULATED = 1 << 16  # requests tabulated at a time, which bounds the memory it takes


@dataclass(frozen=True)
class Prediction:
    """Predictions for n requests: exact lengths, buckets, ranks or quantiles.

    Build one with ``exact``, ``bucketed``, ``ranked`` or ``distribution``; the other fields are
    then None. ``tokens`` is the point estimate in tokens, shape (n,); for ranks it is there only
    once they were calibrated. With a ``spread`` lengths are distributed as it says: around a
    length, within buckets, between quantiles. ``abstained`` marks requests that the predictor knows
    too little of to order: they all say the same, see ``abstaining``.
    """

    tokens: Floats | None = None  # (n,)
    bucket: NDArray[np.int64] | None = None  # (n,)
    edges: Floats | None = None  # (buckets + 1,) tokens, ascending
    probabilities: Floats | None = None  # (n, buckets)
    means: Floats | None = None  # (buckets,) tokens, the mean length within each bucket
    rank: Floats | None = None  # (n,) higher = longer
    quantiles: Floats | None = None  # (n, levels) tokens, ascending along the row
    levels: Floats | None = None  # (levels,) in (0, 1), ascending
    abstained: Mask | None = None  # (n,), None where every request is predicted
    spread: Spread | None = None
    unfamiliar: Floats | None = None  # (n,) 0: as those trained on, to 1: like none of them
    limits: Floats | None = None  # (n,) tokens that no answer exceeds, infinite where none is set

    @classmethod
    def exact(cls, tokens: ArrayLike, *, spread: Spread | None = None) -> Prediction:
        """Lengths in tokens, shape (n,)."""
        return cls(tokens=_finite("tokens", tokens, 1), spread=spread)

    @classmethod
    def bucketed(
        cls, probabilities: ArrayLike, edges: ArrayLike, means: ArrayLike | None = None,
        *, spread: Spread | None = None,
    ) -> Prediction:  # fmt: skip
        """Bucket probabilities (n, buckets) between ``edges`` (buckets + 1,), in tokens.

        ``means`` (buckets,) are the mean lengths seen in each bucket; midpoints stand in for them.
        """
        p, e = _finite("probabilities", probabilities, 2), _finite("edges", edges, 1)
        if p.shape[1] + 1 != len(e):
            raise InputError(f"{p.shape[1]} buckets need {p.shape[1] + 1} edges, not {len(e)}")
        if (np.diff(e) <= 0).any():
            raise InputError("bucket edges must ascend")
        if (p < 0).any() or not np.allclose(p.sum(axis=1), 1.0, atol=1e-6):
            raise InputError("bucket probabilities must be 0 or more and sum to 1 for each request")
        m = (e[:-1] + e[1:]) / 2 if means is None else _finite("means", means, 1)
        if m.shape != (p.shape[1],) or (m < e[:-1]).any() or (m > e[1:]).any():
            raise InputError("bucket means must lie within their buckets, one for each")
        return cls(
            tokens=p @ m, bucket=p.argmax(axis=1), edges=e, probabilities=p, means=m, spread=spread
        )

    @classmethod
    def ranked(
        cls, rank: ArrayLike, tokens: ArrayLike | None = None, *, spread: Spread | None = None
    ) -> Prediction:
        """Relative order, shape (n,), higher = longer; ``tokens`` if the ranks were calibrated."""
        calibrated = None if tokens is None else _finite("tokens", tokens, 1)
        return cls(rank=_finite("rank", rank, 1), tokens=calibrated, spread=spread)

    @classmethod
    def distribution(
        cls, quantiles: ArrayLike, levels: ArrayLike, *, spread: Spread | None = None
    ) -> Prediction:
        """Quantiles (n, levels) in tokens at ``levels`` (levels,), e.g. 0.1, 0.5, 0.9."""
        q, at = _finite("quantiles", quantiles, 2), _finite("levels", levels, 1)
        if q.shape[1] != len(at) or (np.diff(at) <= 0).any() or at[0] <= 0 or at[-1] >= 1:
            raise InputError("levels must ascend within (0, 1), one for each column of quantiles")
        q = np.maximum.accumulate(q, axis=1)  # crossing quantiles are an artefact of separate fits
        return cls(tokens=q @ _quantile_weights(at), quantiles=q, levels=at, spread=spread)

    def abstaining(self, mask: ArrayLike, neutral: Prediction) -> Prediction:
        """The same, but requests marked in ``mask`` (n,) say what ``neutral``, of one, says.

        So policies that sort by length serve these first come, first served among each other.
        """
        out = np.asarray(mask, dtype=bool)
        if out.shape != (len(self),):
            raise InputError(f"mask has shape {out.shape}, the predictions {(len(self),)}")
        changed: dict[str, Any] = {}
        for name in ("tokens", "bucket", "probabilities", "rank", "quantiles"):
            own, other = getattr(self, name), getattr(neutral, name)
            if own is not None:
                at = out[:, None] if own.ndim == 2 else out
                changed[name] = np.where(at, other[0], own)
        return replace(self, **changed, abstained=out)

    def __len__(self) -> int:
        for values in (self.tokens, self.rank):
            if values is not None:
                return len(values)
        return 0

    @property
    def kind(self) -> str:
        """ "exact", "bucket", "rank" or "quantile"."""
        if self.rank is not None:
            return "rank"
        if self.probabilities is not None:
            return "bucket"
        return "quantile" if self.quantiles is not None else "exact"

    @property
    def order(self) -> Floats:
        """Values that order the requests, shortest first, shape (n,): every kind has them."""
        if self.rank is not None:
            return self.rank
        return self.predicted_tokens

    @property
    def predicted_tokens(self) -> Floats:
        """The feature ``predicted_tokens``, shape (n,), at least 1 token.

        Raises ``InputError`` for uncalibrated ranks, which can only order.
        """
        if self.tokens is None:
            raise InputError(
                "these predictions are uncalibrated ranks: they order requests but give no "
                "predicted_tokens; fit the predictor with output_tokens to calibrate them"
            )
        return np.maximum(self.tokens, 1.0)

    def refresh(self, generated_tokens: ArrayLike) -> Floats:
        """Expected tokens still to come, given those generated already, both of shape (n,).

        They are conditioned on having outlived ``generated_tokens``. Without a ``spread`` lengths
        are uniform below and above a bucket's mean, and stand at their quantiles. A length that was
        outlived leaves 1 token, the least that a running request still owes.
        """
        generated = np.asarray(generated_tokens, dtype=np.float64)
        left = remaining.expected(self.pieces, generated)
        return left if self.limits is None else np.clip(self.limits - generated, 1.0, left)

    def interval(self, level: float = 0.9) -> tuple[Floats, Floats]:
        """From where to where lengths are with probability ``level``, tokens, (n,) each.

        Split conformal (Vovk et al., 2005): the quantiles of what held-out rows showed. They hold
        for requests like those; the more ``unfamiliar`` one is, the more they widen towards
        ``ANY_LENGTH``. Raises ``InputError`` for single lengths of which no spread is known.
        """
        if not 0 < level < 1:
            raise InputError(f"level must lie in (0, 1), not {level!r}")
        if self.certain:
            raise InputError("these predictions are single lengths: no interval is known of them")
        ends, tails, pieces = [], ((1 - level) / 2, (1 + level) / 2), self.pieces
        for tail, wider in zip(tails, (np.minimum, np.maximum), strict=True):
            at = np.log(remaining.quantile(pieces, np.zeros(len(self)), tail))
            if self.unfamiliar is not None:
                far = wider(at, np.interp(tail, ANY_LEVELS, np.log(ANY_LENGTH)))
                at = at + self.unfamiliar * (far - at)
            end = np.exp(at)
            ends.append(end if self.limits is None else np.minimum(end, self.limits))
        return ends[0], ends[1]

    @property
    def certain(self) -> bool:
        """Whether each request has one length, and no distribution of it."""
        return self.spread is None and self.probabilities is None and self.quantiles is None

    @property
    def pieces(self) -> Pieces:
        """The distributions of the lengths; one length with certainty where that is predicted."""
        if self.spread is not None:
            if self.probabilities is not None:
                return self.spread.within(self.probabilities)
            if self.quantiles is not None and self.levels is not None:
                return self.spread.between(self.quantiles, self.levels)
            return self.spread.around(self.predicted_tokens)
        if self.probabilities is not None and self.edges is not None and self.means is not None:
            cuts, shares = _halves(self.edges, self.means)
            mass = np.repeat(self.probabilities, 2, axis=1) * shares
            return Pieces(cuts[None, :-1], cuts[None, 1:], mass)
        if self.quantiles is not None and self.levels is not None:
            mass = np.broadcast_to(_quantile_weights(self.levels), self.quantiles.shape)
            return Pieces(self.quantiles, self.quantiles, mass)
        tokens = self.predicted_tokens[:, None]
        return Pieces(tokens, tokens, np.ones_like(tokens))

    def curve(self, feature: str, edges: ArrayLike | None = None) -> Curve:
        """A feature of ``CURVES`` tabulated at ``edges`` (K,) of generated tokens.

        One predicted length needs no table: what is left of it falls by 1 a token. Distributions
        are exact at the edges, and straight between them.
        """
        try:
            of = CURVES[feature]
        except KeyError:
            raise UnknownNameError("curve", feature, CURVES) from None
        if self.certain:
            return Curve.table([0.0], self.predicted_tokens[:, None], between="falling")
        at = EDGES if edges is None else np.asarray(edges, dtype=np.float64)
        rows, tables, begun = [], [np.empty((0, len(at)))], 0
        for start in range(0, len(self), TABULATED):
            pieces, row = self.select(slice(start, start + TABULATED)).pieces.distinct()
            n = len(pieces.mass)
            tables.append(np.stack([of(pieces, np.full(n, edge)) for edge in at], axis=1))
            rows.append(row + begun)
            begun += n
        return Curve.table(at, np.concatenate(tables), np.concatenate(rows or [np.zeros(0, int)]))

    def of_run(self) -> Predictions:
        """What a run reads: ``predicted_tokens``, and curves, tabulated when one is asked for."""
        columns = {"predicted_tokens": self.predicted_tokens}
        return Predictions(columns, Tabulated(self), abstained=self.abstained)

    def select(self, index: Any) -> Prediction:
        """The predictions of some of the requests, by numpy index or mask."""

        def pick(values: Any) -> Any:
            return None if values is None else values[index]

        return Prediction(
            tokens=pick(self.tokens), bucket=pick(self.bucket), edges=self.edges,
            probabilities=pick(self.probabilities), means=self.means, rank=pick(self.rank),
            quantiles=pick(self.quantiles), levels=self.levels, abstained=pick(self.abstained),
            spread=self.spread, unfamiliar=pick(self.unfamiliar), limits=pick(self.limits),
        )  # fmt: skip


class Tabulated(Mapping[str, Curve]):
    """The curves of a prediction by feature, each made when it is first asked for."""

    def __init__(self, prediction: Prediction) -> None:
        self.prediction = prediction
        self._made: dict[str, Curve] = {}

    def __getitem__(self, feature: str) -> Curve:
        if feature not in CURVES:
            raise KeyError(feature)
        if feature not in self._made:
            self._made[feature] = self.prediction.curve(feature)
        return self._made[feature]

    def __contains__(self, feature: object) -> bool:
        return feature in CURVES

    def __iter__(self) -> Iterator[str]:
        return iter(CURVES)

    def __len__(self) -> int:
        return len(CURVES)


@dataclass(frozen=True)
class Predictions:
    """What a run of n requests knows of their lengths.

    ``columns``: (n,) tokens by feature name, ``predicted_tokens`` among them. ``curves``: features
    that change while a request generates. ``max_tokens`` (n,): the clients' own limits, which no
    prediction exceeds. ``abstained`` (n,): requests that the predictor did not order.
    """

    columns: Mapping[str, Floats]
    curves: Mapping[str, Curve] = field(default_factory=dict)
    max_tokens: NDArray[np.int64] | None = None
    abstained: Mask | None = None

    def __post_init__(self) -> None:
        # a part of a table is strided, and lengths are often whole: compiled code takes neither
        columns = {
            name: np.require(_numbers(name, values), None, "C")
            for name, values in self.columns.items()
        }
        object.__setattr__(self, "columns", columns)
        n = len(self)
        if self.abstained is not None and self.abstained.shape != (n,):
            raise InputError(f"abstained has shape {self.abstained.shape}, not {(n,)}")
        for name, values in self.columns.items():
            if values.shape != (n,):
                raise InputError(f"{name} have shape {values.shape}, not {(n,)}")
            if not np.isfinite(values).all() or (values < 0).any():
                raise InputError(f"{name} must be finite and 0 or more")
        if isinstance(self.curves, Tabulated):
            return
        for name, curve in self.curves.items():
            if name not in CURVES:
                raise UnknownNameError("curve", name, CURVES)
            if len(curve) != n:
                raise InputError(f"{name} has curves of {len(curve)} requests, not {n}")

    @classmethod
    def given(
        cls, predictions: Predictions | ArrayLike | None, requests: int
    ) -> Predictions | None:
        """What a caller passed for so many requests; an array is one certain length each."""
        if predictions is None:
            return None
        if not isinstance(predictions, cls):
            tokens = np.asarray(predictions, dtype=np.float64)
            if tokens.shape != (requests,):
                raise InputError(
                    f"predicted_tokens have shape {tokens.shape}; there are {requests} requests"
                )
            predictions = cls({"predicted_tokens": tokens}, Tabulated(Prediction(tokens=tokens)))
        if len(predictions) != requests:
            raise InputError(
                f"predicted_tokens have shape {(len(predictions),)}; there are {requests} requests"
            )
        return predictions

    def __len__(self) -> int:
        return len(self.columns["predicted_tokens"])

    @property
    def predicted_tokens(self) -> Floats:
        """Predicted length of each whole answer, (n,)."""
        return self.columns["predicted_tokens"]

    @property
    def features(self) -> frozenset[str]:
        """The features that these predictions give."""
        return frozenset(self.columns) | frozenset(self.curves)

    @property
    def abstained_share(self) -> float:
        """Share of the requests that the predictor did not order, 0 to 1."""
        return 0.0 if self.abstained is None or not len(self) else float(self.abstained.mean())

    def at(self, feature: str, requests: Any, generated_tokens: ArrayLike) -> Floats:
        """A feature of ``requests`` (numpy index) that have generated so many tokens each."""
        if feature in self.columns:
            return np.asarray(self.columns[feature][requests])
        value = self.curves[feature].at(requests, generated_tokens)
        if self.max_tokens is None:
            return value
        left = self.max_tokens[requests] - np.asarray(generated_tokens)
        return np.asarray(np.minimum(value, np.maximum(left, 1)))

    def capped(self, max_tokens: ArrayLike) -> Predictions:
        """The same, but nothing beyond the clients' limits (n,)."""
        limit = np.asarray(max_tokens, dtype=np.int64)
        columns = {name: np.minimum(values, limit) for name, values in self.columns.items()}
        return replace(self, columns=columns, max_tokens=limit)

    def select(self, index: Any) -> Predictions:
        """Those of some of the requests, by numpy index or mask."""
        curves: Mapping[str, Curve]
        if isinstance(self.curves, Tabulated):
            curves = Tabulated(self.curves.prediction.select(index))
        else:
            curves = {name: curve.select(index) for name, curve in self.curves.items()}
        return Predictions(
            {name: values[index] for name, values in self.columns.items()},
            curves,
            None if self.max_tokens is None else self.max_tokens[index],
            None if self.abstained is None else self.abstained[index],
        )


def _halves(edges: Floats, means: Floats) -> tuple[Floats, Floats]:
    """Each bucket cut at its mean, and the share of its probability in each of the two parts.

    Uniform within the parts, these shares give the bucket the mean it has:
    ((m - a)(m + b) + (b - m)(a + m)) / 2(b - a) = m for a bucket (a, b] cut at m.
    """
    width = np.diff(edges)
    cut = np.clip(means, edges[:-1] + 1e-6 * width, edges[1:] - 1e-6 * width)
    cuts = np.empty(2 * len(means) + 1)
    cuts[::2], cuts[1::2] = edges, cut
    below = (edges[1:] - cut) / width
    return cuts, np.stack((below, 1 - below), axis=1).ravel()


def _quantile_weights(levels: Floats) -> Floats:
    """The share of probability that each quantile stands for: its cell between mid-levels."""
    cuts = np.concatenate(([0.0], (levels[:-1] + levels[1:]) / 2, [1.0]))
    return np.diff(cuts)


def _numbers(label: str, values: ArrayLike) -> Floats:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{label} must be numbers: {error}") from None


def _finite(label: str, values: ArrayLike, dimensions: int) -> Floats:
    array = _numbers(label, values)
    if array.ndim != dimensions:
        raise InputError(f"{label} must have {dimensions} dimension(s), not {array.ndim}")
    if not np.isfinite(array).all():
        raise InputError(f"{label} hold {int((~np.isfinite(array)).sum())} NaN or infinite values")
    return array
