"""How far prompts are from those that a predictor was trained on, and when it had better abstain.

Two measures of one prompt, each as its place among the training prompts' own: the share of its
words that no two other training prompts hold, and how far its shape (``features.SHAPE``) lies from
theirs. ``score`` is the mean of the two places. One measure of many prompts: how far their mean
shape has moved, in standard deviations. A narrow workload may consist of prompts each of which
could be one of the training prompts, while an order learned between unlike prompts says nothing, or
the contrary, of those that are all alike.

The thresholds are not tuned on any one source: docs/predictors.md has the sources on both sides.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.prediction import Floats, Prediction
from lengthwise.predictors import targets
from lengthwise.predictors.features import WORD, shape_of

ABSTAIN = 0.95  # scores above: in the mean, beyond 19 of 20 training prompts in both measures
FAMILIAR = 0.8  # scores up to here: intervals are as trained; between, they widen
SHIFT = 0.45  # standard deviations of the mean shape beyond which a workload is another
SHIFTING = 0.25  # from here on intervals widen
WINDOW = 256  # prompts that say what the workload is
FEWEST = 50  # of which nothing is said
KNOWN = 2  # training prompts, beside the own one, that must hold a word
LIMIT = 3.0  # standard deviations: a single odd prompt must not move the mean
GRID = np.linspace(0.0, 1.0, 201)
ARRAYS = ("known", "centre", "scale", "unseen", "outlying", "lengths", "rank")


@dataclass(frozen=True)
class Novelty:
    """What is kept of the training prompts; of words their hashes only."""

    known: NDArray[np.uint32]  # (words,) ascending CRC-32 of the words
    centre: Floats  # (SHAPE,)
    scale: Floats  # (SHAPE,)
    unseen: Floats  # (GRID,) quantiles of the training prompts' unseen share, own words left out
    outlying: Floats  # (GRID,) quantiles of their distance in shape
    lengths: Floats  # (GRID,) quantiles of the training lengths, tokens
    rank: Floats  # (1,) the middle rank, for the rank target

    @classmethod
    def fit(cls, prompts: Sequence[str], length: Floats, raw: Floats, weights: Floats) -> Novelty:
        """From n training prompts, lengths and weights (n,), and held-out raw outputs (m, k)."""
        documents: Counter[int] = Counter()
        held = [_words(prompt) for prompt in dict.fromkeys(prompts)]
        for words in held:
            documents.update(words.keys())
        known = sorted(word for word, seen in documents.items() if seen >= KNOWN)
        own = {word for word, seen in documents.items() if seen > KNOWN}
        shapes = np.array([shape_of(prompt) for prompt in dict.fromkeys(prompts)])
        spread = shapes.std(axis=0)
        scale = np.where(spread > 1e-9, spread, 1.0)
        far = _distance(_standard(shapes, shapes.mean(axis=0), scale))
        return cls(
            np.array(known, dtype=np.uint32), shapes.mean(axis=0), scale,
            np.quantile([_unseen(words, own) for words in held], GRID), np.quantile(far, GRID),
            _quantiles(length, weights), np.median(raw[:, :1], axis=0),
        )  # fmt: skip

    def shapes(self, prompts: Sequence[str]) -> Floats:
        """Standardised shapes (n, SHAPE), held within ``LIMIT``."""
        found = np.array([shape_of(prompt) for prompt in prompts])
        return _standard(found, self.centre, self.scale)

    def score(self, prompts: Sequence[str]) -> Floats:
        """How new each prompt is, (n,): 0 not at all, 1 beyond all training prompts."""
        unseen = np.array([_unseen(_words(prompt), self._known) for prompt in prompts])
        far = _distance(self.shapes(prompts))
        places = [
            np.searchsorted(among, values, side="left") / len(GRID)
            for among, values in ((self.unseen, unseen), (self.outlying, far))
        ]
        return np.asarray(np.mean(places, axis=0))

    def judged(self, found: Prediction, score: Floats, neutral: Prediction) -> Prediction:
        """Predictions of n requests, widened where ``score`` (n,) is high, or abstained from."""
        wider = np.clip((score - FAMILIAR) / (ABSTAIN - FAMILIAR), 0.0, 1.0)
        return replace(found, unfamiliar=wider).abstaining(score > ABSTAIN, neutral)

    def neutral(self, target: targets.AnyTarget) -> Prediction:
        """What is said of one request that nothing is known of: the training median."""
        middle = np.array([np.median(self.lengths)])
        if isinstance(target, targets.Bucket):
            shares = np.bincount(target.labels(self.lengths), minlength=target.outputs)
            made = Prediction.bucketed(shares[None] / shares.sum(), target.edges, target.means)
        elif isinstance(target, targets.Rank):
            made = Prediction.ranked(self.rank, middle)
        elif isinstance(target, targets.Quantile):
            at = np.quantile(self.lengths, target.levels)
            made = Prediction.distribution(at[None], target.levels)
        else:
            made = Prediction.exact(middle)
        return replace(made, tokens=middle)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What ``restored`` needs, under the names it is saved by."""
        return {f"novelty.{name}": getattr(self, name) for name in ARRAYS}

    @classmethod
    def restored(cls, arrays: Mapping[str, NDArray[Any]]) -> Novelty | None:
        """What was saved; None of a predictor that was saved before there was any."""
        if f"novelty.{ARRAYS[0]}" not in arrays:
            return None
        return cls(*(arrays[f"novelty.{name}"] for name in ARRAYS))

    @cached_property
    def _known(self) -> set[int]:
        return set(self.known.tolist())


class Window:
    """The last ``WINDOW`` prompts of a workload; says how far it has moved."""

    def __init__(self) -> None:
        self._recent: Floats | None = None

    def score(self, shapes: Floats) -> Floats:
        """With each of n prompts in turn, how new the workload is, as ``Novelty.score``, (n,).

        ``shapes`` (n, SHAPE) are standardised. Of fewer than ``FEWEST`` prompts nothing is known.
        """
        before = shapes[:0] if self._recent is None else self._recent
        rows = np.concatenate((before, shapes))
        self._recent = rows[-WINDOW:]
        sums = np.concatenate((np.zeros((1, rows.shape[1])), rows.cumsum(axis=0)))
        last = np.arange(len(before), len(rows)) + 1
        first = np.maximum(last - WINDOW, 0)
        count = last - first
        mean = (sums[last] - sums[first]) / count[:, None]
        # the mean of so many would differ from 0 by chance alone
        effect = np.sqrt(np.maximum((mean**2).mean(axis=1) - 1 / count, 0.0))
        ramp = np.clip((effect - SHIFTING) / (SHIFT - SHIFTING), 0.0, 1.0)
        score = np.where(effect > SHIFT, 1.0, FAMILIAR + ramp * (ABSTAIN - FAMILIAR))
        return np.where((count < FEWEST) | (effect < SHIFTING), 0.0, score)


def _words(prompt: str) -> Counter[int]:
    return Counter(zlib.crc32(w.encode()) for w in WORD.findall(prompt.lower()))


def _unseen(words: Counter[int], known: set[int]) -> float:
    """The share of a text's words, repetition damped, that are not known; 1 of an empty text."""
    total = new = 0.0
    for word, count in words.items():
        weight = 1.0 + math.log(count)
        total += weight
        new += 0.0 if word in known else weight
    return new / total if total else 1.0


def _standard(shapes: Floats, centre: Floats, scale: Floats) -> Floats:
    return np.asarray(np.clip((shapes - centre) / scale, -LIMIT, LIMIT))


def _distance(standard: Floats) -> Floats:
    return np.asarray(np.sqrt((standard**2).mean(axis=1)))


def _quantiles(values: Floats, weights: Floats) -> Floats:
    """Quantiles at ``GRID`` of weighted values, (n,) both: interpolated between their middles."""
    order = np.argsort(values, kind="stable")
    below = np.cumsum(weights[order]) - weights[order] / 2
    return np.interp(GRID, below / weights.sum(), values[order])
