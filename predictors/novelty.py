"""How far prompts are from those that a predictor was trained on, and when it had better abstain.

Two measures of one prompt, each as its place among the training prompts' own: the share of its
words that no two other training prompts hold, and how far its shape (``features.SHAPE``) lies from
theirs. ``score`` is the mean of the two places. One measure of many prompts: how far their mean
shape has moved, in standard deviations. A narrow workload may consist of prompts each of which
could be one of the training prompts, while an order learned between unlike prompts says nothing, or
the contrary, of those that are all alike.

The thresholds lie midway between what did no harm and what did, over pairs of ten public sources;
``benchmarks/predictor_transfer.py`` chooses them anew with each source left out, and applies them
to that one (docs/predictors.md).
"""

from __future__ import annotations

import math
import zlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.prediction import Floats, Prediction
from lengthwise.predictors import targets
from lengthwise.predictors.features import shapes_of, words_of

ABSTAIN = 0.95  # scores above: in the mean, beyond 19 of 20 training prompts in both measures
FAMILIAR = 0.8  # scores up to here: intervals are as trained; between, they widen
SHIFT = 0.3  # standard deviations of the mean shape beyond which a workload is another
REACH = 1.8  # the same of several sources, from the nearest of them
SHIFTING = 2 / 3  # of these, from where on intervals widen
WINDOW = 256  # prompts that say what the workload is
FEWEST = 50  # of which nothing is said
KNOWN = 2  # training prompts, beside the own one, that must hold a word
LIMIT = 3.0  # standard deviations: a single odd prompt must not move the mean
GRID = np.linspace(0.0, 1.0, 201)
ARRAYS = ("known", "centre", "scale", "unseen", "outlying", "lengths", "rank")
CENTRES = "novelty.centres"


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
    centres: Floats | None = None  # (sources, SHAPE) mean standardised shapes, where they are many

    @classmethod
    def fit(cls, prompts: Sequence[str], length: Floats, raw: Floats, weights: Floats) -> Novelty:
        """From n training prompts, lengths and weights (n,), and held-out raw outputs (m, k)."""
        documents: Counter[int] = Counter()
        held = [_words(prompt) for prompt in dict.fromkeys(prompts)]
        for words in held:
            documents.update(words.keys())
        known = sorted(word for word, seen in documents.items() if seen >= KNOWN)
        own = {word for word, seen in documents.items() if seen > KNOWN}
        shapes = shapes_of(list(dict.fromkeys(prompts)))
        spread = shapes.std(axis=0)
        scale = np.where(spread > 1e-9, spread, 1.0)
        far = _distance(_standard(shapes, shapes.mean(axis=0), scale))
        return cls(
            np.array(known, dtype=np.uint32), shapes.mean(axis=0), scale,
            np.quantile([_unseen(words, own) for words in held], GRID), np.quantile(far, GRID),
            _quantiles(length, weights), np.median(raw[:, :1], axis=0),
        )  # fmt: skip

    def among(self, prompts: Sequence[str], source: Sequence[str]) -> Novelty:
        """The same, knowing which of several sources each training prompt (n,) is from."""
        shapes, names = self.shapes(prompts), np.asarray(source)
        centres = np.stack([shapes[names == name].mean(axis=0) for name in dict.fromkeys(source)])
        return replace(self, centres=centres)

    def window(self) -> Window:
        """What watches a workload move away, which has seen nothing yet."""
        if self.centres is None:
            return Window(np.zeros((1, len(self.centre))), SHIFT)
        return Window(np.concatenate((np.zeros((1, len(self.centre))), self.centres)), REACH)

    def shapes(self, prompts: Sequence[str]) -> Floats:
        """Standardised shapes (n, SHAPE), held within ``LIMIT``."""
        found = shapes_of(prompts)
        return _standard(found, self.centre, self.scale)

    def score(self, prompts: Sequence[str], shapes: Floats | None = None) -> Floats:
        """How new each prompt is, (n,): 0 not at all, 1 beyond all training prompts.

        ``shapes`` are those of the prompts, where they are known.
        """
        far = _distance(self.shapes(prompts) if shapes is None else shapes).tolist()
        unseen, outlying = self._places
        return np.array(
            [
                (bisect_left(unseen, _unseen(_words(prompt), self._known)) / len(GRID)
                 + bisect_left(outlying, distance) / len(GRID)) / 2
                for prompt, distance in zip(prompts, far, strict=True)
            ]
        )  # fmt: skip

    def judged(self, found: Prediction, score: Floats, target: targets.AnyTarget) -> Prediction:
        """Predictions of n requests, widened where ``score`` (n,) is high, or abstained from."""
        # np.clip takes longer than all of this for one prompt
        wider = np.minimum(np.maximum((score - FAMILIAR) / (ABSTAIN - FAMILIAR), 0.0), 1.0)
        out = score > ABSTAIN
        if not out.any():
            return replace(found, unfamiliar=wider, abstained=out)
        return replace(found, unfamiliar=wider).abstaining(out, self.neutral(target))

    def neutral(self, target: targets.AnyTarget) -> Prediction:
        """What is said of one request that nothing is known of: the training median."""
        middle = self._middle
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
        made = {f"novelty.{name}": getattr(self, name) for name in ARRAYS}
        return made if self.centres is None else made | {CENTRES: self.centres}

    @classmethod
    def restored(cls, arrays: Mapping[str, NDArray[Any]]) -> Novelty | None:
        """What was saved; None of a predictor that was saved before there was any."""
        if f"novelty.{ARRAYS[0]}" not in arrays:
            return None
        found = cls(
            **{name: arrays[f"novelty.{name}"] for name in ARRAYS}, centres=arrays.get(CENTRES)
        )
        if found.centres is not None and found.centres.shape[1:] != found.centre.shape:
            raise ValueError(f"{CENTRES} has shape {found.centres.shape}")
        return found

    @cached_property
    def _middle(self) -> Floats:
        return np.array([np.median(self.lengths)])

    @cached_property
    def _places(self) -> tuple[list[float], list[float]]:
        return self.unseen.tolist(), self.outlying.tolist()

    @cached_property
    def _known(self) -> set[int]:
        return set(self.known.tolist())


class Window:
    """The last ``WINDOW`` prompts of a workload; says how far it has moved.

    That is how far their mean shape is from the nearest of ``centres`` (sources, SHAPE); beyond
    ``limit`` the workload is another one.
    """

    def __init__(self, centres: Floats, limit: float) -> None:
        self._centres, self._limit = centres, limit
        self._recent = np.zeros((centres.shape[1], WINDOW))  # a ring of columns
        self._seen = 0

    def drift(self, shapes: Floats) -> tuple[Floats, NDArray[np.int64]]:
        """With each of n prompts in turn, how far their mean has moved and of how many it is.

        Root mean square over the shape, in standard deviations, less what the mean of so many
        would differ from 0 by chance. ``shapes`` (n, SHAPE) are standardised.
        """
        if len(shapes) == 1:  # as an engine asks
            held, far = self._next(shapes[0])
            return np.array([far]), np.array([held])
        before = self._before()
        rows = np.concatenate((before, shapes))
        kept = rows[-WINDOW:]
        self._recent[:, : len(kept)], self._seen = kept.T, len(kept)
        sums = np.concatenate((np.zeros((1, rows.shape[1])), rows.cumsum(axis=0)))
        last = np.arange(len(before), len(rows)) + 1
        first = np.maximum(last - WINDOW, 0)
        count = last - first
        mean = (sums[last] - sums[first]) / count[:, None]
        square = np.stack([((mean - centre) ** 2).mean(axis=1) for centre in self._centres])
        return np.sqrt(np.maximum(square.min(axis=0) - 1 / count, 0.0)), count

    def score(self, shapes: Floats) -> Floats:
        """With each of n prompts in turn, how new the workload is, as ``Novelty.score``, (n,).

        Of fewer than ``FEWEST`` prompts nothing is known.
        """
        begin = SHIFTING * self._limit
        if len(shapes) == 1:
            held, far = self._next(shapes[0])
            if held < FEWEST or far < begin:
                return np.zeros(1)
            ramp = min((far - begin) / (self._limit - begin), 1.0)
            known = FAMILIAR + ramp * (ABSTAIN - FAMILIAR)
            return np.array([1.0 if far > self._limit else known])
        moved, count = self.drift(shapes)
        along = np.clip((moved - begin) / (self._limit - begin), 0.0, 1.0)
        score = np.where(moved > self._limit, 1.0, FAMILIAR + along * (ABSTAIN - FAMILIAR))
        return np.where((count < FEWEST) | (moved < begin), 0.0, score)

    def _next(self, shape: Floats) -> tuple[int, float]:
        """Of how many prompts the window is with this one, and how far their mean has moved."""
        self._recent[:, self._seen % WINDOW] = shape
        self._seen += 1
        held = min(self._seen, WINDOW)
        moved = np.add.reduce(self._recent[:, :held], axis=1) / held - self._centres
        near = float(np.add.reduce(moved * moved, axis=1).min()) / moved.shape[1]
        return held, math.sqrt(max(near - 1 / held, 0.0))

    def _before(self) -> Floats:
        """The window's prompts, the oldest first."""
        at = self._seen % WINDOW if self._seen > WINDOW else 0
        ring = self._recent[:, : self._seen]
        return np.concatenate((ring[:, at:], ring[:, :at]), axis=1).T


def _words(prompt: str) -> dict[int, int]:
    """How often each word comes, by its CRC-32."""
    found: dict[int, int] = {}
    for word, count in Counter(words_of(prompt)).items():
        key = zlib.crc32(word.encode())
        found[key] = found.get(key, 0) + count
    return found


def _unseen(words: Mapping[int, int], known: set[int]) -> float:
    """The share of a text's words, repetition damped, that are not known; 1 of an empty text."""
    total = new = 0.0
    for word, count in words.items():
        weight = 1.0 if count == 1 else 1.0 + math.log(count)
        total += weight
        new += 0.0 if word in known else weight
    return new / total if total else 1.0


def _standard(shapes: Floats, centre: Floats, scale: Floats) -> Floats:
    return np.asarray(np.minimum(np.maximum((shapes - centre) / scale, -LIMIT), LIMIT))


def _distance(standard: Floats) -> Floats:
    return np.asarray(np.sqrt(np.add.reduce(standard * standard, axis=1) / standard.shape[1]))


def _quantiles(values: Floats, weights: Floats) -> Floats:
    """Quantiles at ``GRID`` of weighted values, (n,) both: interpolated between their middles."""
    order = np.argsort(values, kind="stable")
    below = np.cumsum(weights[order]) - weights[order] / 2
    return np.interp(GRID, below / weights.sum(), values[order])
