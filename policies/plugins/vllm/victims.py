"""Which running request a policy preempts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lengthwise.policies.plugins.vllm.entry import Entry


class Victims:
    """The running requests, worst score first, without those that are protected.

    Protected are those that generated ``protect_after`` of their predicted tokens, those that the
    starvation guard sent ahead, and those that the policy gave no score.
    """

    def __init__(
        self, entries: Sequence[Entry], scores: NDArray[np.float64], protect_after: float
    ) -> None:
        self._entries = entries
        self._scores = np.where(np.isnan(scores), -np.inf, scores)  # (running,)
        self._share = protect_after
        self._place = 0
        self._masked = False

    def worst(self) -> Entry | None:
        """The next victim: highest score, then latest arrival, then first in the batch."""
        while len(self._scores):
            top = self._scores.max()
            if top == -np.inf:
                break
            tied = np.flatnonzero(self._scores == top).tolist()
            self._place = max(tied, key=lambda place: self._entries[place].arrival_s)
            entry = self._entries[self._place]
            if self._masked or not self._protected(entry):
                return entry
            self._scores[[self._protected(entry) for entry in self._entries]] = -np.inf
            self._masked = True
        return None

    @property
    def score(self) -> float:
        """The score of the last ``worst``."""
        return float(self._scores[self._place])

    def take(self) -> None:
        """The last ``worst`` is no longer a candidate."""
        self._scores[self._place] = -np.inf

    def _protected(self, entry: Entry) -> bool:
        if entry.ahead or entry.state != "ready":
            return True
        done = entry.request.num_output_tokens
        return entry.predicted and done >= self._share * math.ceil(entry.predicted_tokens)
