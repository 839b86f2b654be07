"""Scores inside a serving engine: the policy's own function, and what happens when it fails."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.policies.plugins import client
from lengthwise.policies.plugins.metrics import Counters
from lengthwise.policy import Score, wrong_score
from lengthwise.provider import Provider
from lengthwise.trained import TrainedOn

# whatever a user's function raises; sys.exit() in it is not the engine's end
RAISED = (Exception, SystemExit)
SLOW_ALLOWED = 3  # slow evaluations in a row before the policy is switched off


class Scorer:
    """Evaluates one score; a request whose score fails gets NaN, and is then served FCFS.

    ``off`` is set when evaluations keep taking longer than ``timeout_s``: a policy can't be
    interrupted, but it need not be called again. The first feature that lies beyond ``trained_on``
    is said once.
    """

    def __init__(
        self,
        score: Score,
        counters: Counters,
        timeout_s: float,
        trained_on: TrainedOn | None = None,
    ) -> None:
        self.score = score
        self.names = score.features
        self.by_clock = bool(score.changes & {"clock", "state"})  # changes while a request waits
        self.by_progress = bool(score.changes)  # changes while a request runs
        self.off = False
        self._counters = counters
        self._timeout_s = timeout_s
        self._slow = 0
        self._trained_on = trained_on  # None once it has been left

    def require(self, provider: Provider[Any]) -> None:
        """Raises ``InputError`` if the score reads a feature that ``provider`` can't tell."""
        provider.require(self.names, f"policy {self.score.name!r}")

    def one(self, values: Mapping[str, Any]) -> float:
        """The score of one request; NaN where the policy fails."""
        if self.off:
            return np.nan
        self._look(values)
        start = time.perf_counter()
        score = np.nan
        try:
            found = self.score.evaluate(values)
        except RAISED as error:  # that request is served FCFS
            self._failed(error)
        else:
            score = self._number(found)
        self._watch(time.perf_counter() - start)
        return score

    def many(self, values: Mapping[str, Any], count: int) -> NDArray[np.float64]:
        """The scores of ``count`` requests, from arrays (count,) or scalars by feature name."""
        if self.off:
            return np.full(count, np.nan)
        if count:
            self._look(values)
        start = time.perf_counter()
        try:
            found = self.score.evaluate(values)
            wrong = wrong_score(self.score.function, found, count)
        except RAISED as error:
            self._failed(error)
            self._watch(time.perf_counter() - start)
            rows = ({k: v if np.ndim(v) == 0 else v[i] for k, v in values.items()}
                    for i in range(count))  # fmt: skip
            return np.array([self.one(row) for row in rows])
        self._watch(time.perf_counter() - start)
        if wrong is not None:
            self._unscored(found)
            return np.full(count, np.nan)
        scores = np.broadcast_to(np.asarray(found, dtype=np.float64), (count,)).copy()
        if np.isnan(scores).any():
            self._unscored(np.nan)
        return scores

    def _look(self, values: Mapping[str, Any]) -> None:
        """Says once where a feature lies beyond what the policy was trained on."""
        if self._trained_on is None:
            return
        seen = {
            name: (float(np.min(values[name])), float(np.max(values[name])))
            for name, _, _ in self._trained_on.ranges
            if name in values
        }
        if said := self._trained_on.notice(f"policy {self.score.name!r}", seen):
            self._counters.warn("policy-beyond-training", said)
            self._trained_on = None

    def _number(self, found: Any) -> float:
        """A score as a number; NaN for what is none."""
        try:
            score = float(found)
        except RAISED:
            score = np.nan
        if score != score:
            self._unscored(found)
        return score

    def _unscored(self, found: Any) -> None:
        self._counters.warn(
            "policy-no-score",
            f"policy {self.score.name!r} gave {client.shown(found)} for a score; what it gives no "
            "number is served first come, first served",
        )

    def _failed(self, error: BaseException) -> None:
        self._counters.warn("policy-error", f"policy {self.score.name!r} raised {error!r}")

    def _watch(self, took_s: float) -> None:
        self._slow = self._slow + 1 if took_s > self._timeout_s else 0
        if self._slow == SLOW_ALLOWED:
            self.off = True
            self._counters.warn(
                "policy-slow",
                f"policy {self.score.name!r} took {took_s:.3g} s to score, more than "
                f"{self._timeout_s:g} s for the {SLOW_ALLOWED}th time: it is switched off",
            )
