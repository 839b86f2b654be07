"""What a text predictor sees of a prompt: TF-IDF of words and word pairs, and the text's shape.

Scripts that put no blanks between words have no words: of those, runs of one to three characters.

TF-IDF as in scikit-learn's ``TfidfVectorizer`` with sublinear term frequency (a test holds them
equal), in plain Python, so that a saved predictor needs nothing but numpy.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

WORD = re.compile(r"\b\w\w+\b")
# Chinese, Japanese, Korean, Thai, Lao, Burmese, Khmer
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]+"
)
GRAMS = (1, 2, 3)  # characters of such a run that are a term
VERSION = 2  # of what the terms are; 1 took each run of such a script for one word
NUMBER = re.compile(r"\d+")
MAX_TERMS = 20_000
SHAPE_WEIGHT = 0.1  # the SHAPE columns together weigh about a third of the unit-length TF-IDF
LIMIT = 5 * SHAPE_WEIGHT  # no prompt is farther out than five standard deviations
SHAPE = (
    "log_characters", "log_words", "log_lines", "word_length", "digits", "capitals", "punctuation",
    "beyond_ascii", "question_marks", "code_marks", "list_marks", "has_number", "log_number",
    "starts_with_question",
)  # fmt: skip
QUESTION = re.compile(r"\s*(?:who|what|when|where|which|why|how|is|are|do|does|can)\b", re.I)
LIST_MARK = re.compile(r"^\s*(?:[-*•]|\(?\w\)|\d+[.)])\s", re.M)
# of each character below 128: 1 digit, 2 capital, 3 punctuation, 0 neither
KIND = bytes(
    [1 if c.isdigit() else 2 if c.isupper() else 3 * (c in string.punctuation)
     for c in map(chr, range(128))] + [0] * 128
)  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """A sparse matrix (n, columns) by rows: row i holds ``values[starts[i]:starts[i + 1]]``."""

    starts: Ints  # (n + 1,)
    columns: NDArray[np.int32]  # (entries,)
    values: Floats  # (entries,)
    width: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    def select(self, rows: Ints) -> Rows:
        """Some of the rows, by their numbers."""
        parts = [slice(self.starts[row], self.starts[row + 1]) for row in rows]
        starts = np.concatenate(([0], np.cumsum(np.diff(self.starts)[rows])))
        columns = np.concatenate([self.columns[part] for part in parts])
        values = np.concatenate([self.values[part] for part in parts])
        return Rows(starts, columns, values, self.width)

    def dot(self, weights: Floats) -> Floats:
        """``self @ weights``, (n, k) of weights (width, k).

        Row by row, so that a prompt's numbers do not depend on its company in the batch.
        """
        out = np.empty((len(self), weights.shape[1]))
        for i, (a, b) in enumerate(zip(self.starts, self.starts[1:], strict=False)):
            np.add.reduce(self.values[a:b, None] * weights[self.columns[a:b]], axis=0, out=out[i])
        return out


@dataclass(frozen=True)
class TextFeatures:
    """Columns learned from training prompts: one for each term, then those of ``SHAPE``."""

    terms: tuple[str, ...]
    idf: Floats  # (terms,)
    shift: Floats  # (SHAPE,) mean over the training prompts
    scale: Floats  # (SHAPE,) standard deviation over SHAPE_WEIGHT
    version: int = VERSION

    @classmethod
    def fit(cls, prompts: Sequence[str], *, max_terms: int = MAX_TERMS) -> TextFeatures:
        """Terms that at least two prompts hold, the most frequent ``max_terms`` of them."""
        documents: Counter[str] = Counter()
        totals: Counter[str] = Counter()
        for prompt in prompts:
            found = terms_of(prompt)
            totals.update(found)
            documents.update(set(found))
        kept = [term for term, seen in documents.items() if seen >= 2]
        kept.sort(key=lambda term: (-totals[term], term))
        terms = tuple(sorted(kept[:max_terms]))
        seen = np.array([documents[term] for term in terms], dtype=np.float64)
        idf = np.log((1 + len(prompts)) / (1 + seen)) + 1
        shapes = shapes_of(prompts)
        spread = shapes.std(axis=0)
        scale = np.where(spread > 1e-9, spread, 1.0) / SHAPE_WEIGHT
        return cls(terms, idf, shapes.mean(axis=0), scale)

    @cached_property
    def _place(self) -> dict[str, int]:
        return {term: i for i, term in enumerate(self.terms)}

    def rows(self, prompts: Sequence[str]) -> Rows:
        """The prompts as rows: unit-length TF-IDF, then standardised shape."""
        starts, columns, values, find = [0], [], [], self._place.get
        shape_columns = np.arange(len(SHAPE), dtype=np.int32) + np.int32(len(self.terms))
        for prompt in prompts:
            found = [at for at in map(find, terms_of(prompt, self.version)) if at is not None]
            distinct = set(found)
            at = np.array(sorted(distinct), dtype=np.int32)
            weight = self.idf[at]
            if len(distinct) < len(found):
                counts = Counter(found)
                weight = (1 + np.log([counts[term] for term in at.tolist()])) * weight
            norm = np.sqrt(np.add.reduce(weight * weight))
            shape = (np.array(shape_of(prompt)) - self.shift) / self.scale
            columns += [at, shape_columns]
            values += [
                weight / norm if norm > 0 else weight,
                np.maximum(np.minimum(shape, LIMIT), -LIMIT),
            ]
            starts.append(starts[-1] + len(at) + len(SHAPE))
        return Rows(
            np.array(starts), np.concatenate(columns), np.concatenate(values),
            len(self.terms) + len(SHAPE),
        )  # fmt: skip


def terms_of(prompt: str, version: int = VERSION) -> list[str]:
    """The words of two letters or more, in lower case, then the pairs of neighbours.

    Where there are no words, all runs of one to three neighbouring characters.
    """
    runs: list[str] = []
    if version > 1 and not prompt.isascii():
        prompt = prompt.lower()
        runs = [
            run[start : start + size]
            for run in UNSPACED.findall(prompt)
            for size in GRAMS
            for start in range(len(run) - size + 1)
        ]
        prompt = UNSPACED.sub(" ", prompt)
    words = words_of(prompt)
    return [*runs, *words, *map(" ".join, pairwise(words))]


def shapes_of(prompts: Sequence[str]) -> Floats:
    """``shape_of`` each, (n, SHAPE), row by row: as tuples many take five times the memory."""
    out = np.empty((len(prompts), len(SHAPE)))
    for i, prompt in enumerate(prompts):
        out[i] = shape_of(prompt)
    return out


@lru_cache(maxsize=64)  # a batch: features and novelty ask for it
def words_of(prompt: str) -> tuple[str, ...]:
    """The words of two letters or more, in lower case."""
    return tuple(WORD.findall(prompt.lower()))


@lru_cache(maxsize=64)  # a batch: features, novelty and the workload's drift each ask for it
def shape_of(prompt: str) -> tuple[float, ...]:
    """The numbers that ``SHAPE`` names; letters, digits and punctuation are those of ASCII."""
    characters = max(len(prompt), 1)
    words = prompt.split()
    numbers = [min(int(digits[:6]), 5000) for digits in NUMBER.findall(prompt[:20_000])]
    kinds = prompt.encode("ascii", "ignore").translate(KIND)
    return (
        math.log1p(len(prompt)),
        math.log1p(len(words)),
        math.log1p(prompt.count("\n")),
        min(sum(map(len, words)) / max(len(words), 1), 30.0),
        kinds.count(1) / characters,
        kinds.count(2) / characters,
        kinds.count(3) / characters,
        (len(prompt) - len(kinds)) / characters,
        math.log1p(prompt.count("?")),
        math.log1p(prompt.count("```") + prompt.count(";") + prompt.count("{")),
        math.log1p(len(LIST_MARK.findall(prompt))),
        float(bool(numbers)),
        math.log1p(max(numbers, default=0)),
        float(QUESTION.match(prompt) is not None),
    )
