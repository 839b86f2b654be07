"""A learned score without layers: a weighted sum of terms that are scores of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.policies.terms import TERMS
from lengthwise.policy import Score


@dataclass(frozen=True)
class Blend:
    """``score = sum of weights[k] * term k``, over terms of ``policies.terms`` by name.

    It has no bound, so its order holds beyond what it was trained on, and with non-negative weights
    it is monotone in each term. Shortest first, ``predicted + b prompt``, join the shortest queue,
    least tokens and the shortest expected wait are blends of one to three terms.

    The order of operations is part of the contract: from 0, term by term, each product rounded
    before it is added. Engines compile it (``policy.Weighted``) with the weights apart from the
    code, and give the same bits. Raises ``InputError`` for weights that are not finite
    or not as many as terms, ``UnknownNameError`` for an unknown term.
    """

    terms: tuple[str, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in self.terms:
            if name not in TERMS:
                raise UnknownNameError("term of a score", name, TERMS)
        if not self.terms or len(self.terms) != len(self.weights):
            raise InputError(f"{len(self.terms)} terms can't have {len(self.weights)} weights")
        if not all(map(math.isfinite, self.weights)):
            raise InputError(f"a term's weight must be a finite number, not {self.weights!r}")

    @property
    def parts(self) -> tuple[Score, ...]:
        """The terms."""
        return tuple(TERMS[name] for name in self.terms)

    @property
    def features(self) -> tuple[str, ...]:
        """The features that the terms read, each once, in order of first use."""
        return tuple(dict.fromkeys(name for part in self.parts for name in part.features))

    def __call__(self, *values: Any) -> Any:
        """The score from a value of each of ``features``: scalars, or arrays of shape (n,)."""
        given = dict(zip(self.features, values, strict=True))
        total: Any = 0.0
        for part, weight in zip(self.parts, self.weights, strict=True):
            total = total + weight * np.asarray(part.evaluate(given), np.float64)
        return total if np.ndim(total) else float(total)

    def score(self, name: str = "blend") -> Score:
        """A policy's score of it."""
        return Score(name, self, self.features)


def blend(weights: dict[str, float], name: str = "blend") -> Score:
    """The score of terms by name and their weights: ``blend({"predicted": 1, "prompt": 0.08})``."""
    return Blend(tuple(weights), tuple(map(float, weights.values()))).score(name)


def spelled(terms: Sequence[str], weights: Sequence[float]) -> str:
    """``predicted + 0.08 prompt``: the terms whose weight is not 0."""
    told = [
        name if weight == 1 else f"{weight:.3g} {name}"
        for name, weight in zip(terms, weights, strict=True)
        if weight
    ]
    return " + ".join(told) or "0"
