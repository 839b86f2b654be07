"""What a policy sees of requests and replicas, and the scores it gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.features import get
from lengthwise.policy import Score
from lengthwise.serving.draws import uniform
from lengthwise.serving.records import PS
from lengthwise.serving.reference.request import Request
from lengthwise.workload import Workload

# Sums of predicted tokens are kept in integers of this fraction of a token, so that they are exact.
FRACTION = 1024


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """What a policy may know of one replica, at one moment."""

    index: int
    now_ps: int
    running: int
    waiting: int
    used_blocks: int
    total_blocks: int
    routed: int
    outstanding: int  # tokens x FRACTION


class Features:
    """Values of features, from the columns of a workload and the state of requests and replicas."""

    def __init__(
        self, workload: Workload, predicted_tokens: NDArray[np.float64] | None, seed: int
    ) -> None:
        self._seed = seed
        self._predicted = predicted_tokens is not None
        self._columns: dict[str, NDArray[Any]] = {"prompt_tokens": workload["prompt_tokens"]}
        if predicted_tokens is not None:
            self._columns["predicted_tokens"] = predicted_tokens
        for name in ("priority", "deadline_s"):
            if name in workload:
                self._columns[name] = workload[name]

    def require(self, names: Iterable[str], reader: str) -> None:
        """Raises ``InputError`` unless all features that ``reader`` reads have values here."""
        for name in names:
            get(name)
            if name in ("priority", "deadline_s") and name not in self._columns:
                raise InputError(f"{reader} reads {name}, and the workload has no such column")
            if name in ("predicted_tokens", "outstanding_tokens") and not self._predicted:
                raise InputError(f"{reader} reads {name}, which needs a predictor")

    def at_arrival(
        self, names: Iterable[str], arrival_ps: NDArray[np.int64]
    ) -> dict[str, NDArray[Any]]:
        """Request features of the whole workload when nothing has been computed yet, (n,) each."""
        zeros = np.zeros(len(arrival_ps), dtype=np.int64)
        return {
            name: arrival_ps / PS if name == "arrival_s" else self._columns.get(name, zeros)
            for name in names
        }

    def of_requests(
        self, names: Iterable[str], requests: Sequence[Request], view: ReplicaView
    ) -> dict[str, NDArray[Any]]:
        """Features of requests in a replica, (n,) each; those of the replica are broadcast."""
        ids = [request.id for request in requests]
        found: dict[str, NDArray[Any]] = {}
        for name in names:
            if name in self._columns:
                found[name] = self._columns[name][ids]
            elif name in _OF_REQUEST:
                value, dtype = _OF_REQUEST[name]
                found[name] = np.array([value(request) for request in requests], dtype=dtype)
            elif name == "random_draw":
                found[name] = np.array([uniform(self._seed, id, view.index) for id in ids])
            elif name == "now_s":
                found[name] = np.full(len(ids), float(view.now_ps) / PS)
            else:
                whole = self._of_replica(name, -1, view)
                found[name] = np.full(len(ids), whole, dtype=get(name).dtype)
        return found

    def of_replicas(
        self, names: Iterable[str], request: int, views: Sequence[ReplicaView]
    ) -> dict[str, NDArray[Any]]:
        """Features of replicas for a request to be routed, (replicas,) each; its own broadcast."""
        found: dict[str, NDArray[Any]] = {}
        for name in names:
            if get(name).of == "replica":
                values = [self._of_replica(name, request, view) for view in views]
                found[name] = np.array(values, dtype=get(name).dtype)
            else:
                found[name] = np.full(len(views), self._of_arrival(name, request, views[0]))
        return found

    def _of_arrival(self, name: str, request: int, view: ReplicaView) -> Any:
        """A feature of a request that arrives now."""
        if name in self._columns:
            return self._columns[name][request]
        return float(view.now_ps) / PS if name in ("arrival_s", "now_s") else 0

    def _of_replica(self, name: str, request: int, view: ReplicaView) -> float:
        if name == "running_requests":
            return view.running
        if name == "waiting_requests":
            return view.waiting
        if name == "kv_utilization":
            return view.used_blocks / view.total_blocks
        if name == "routed_requests":
            return view.routed
        if name == "outstanding_tokens":
            return view.outstanding / FRACTION
        if name == "random_draw":
            return uniform(self._seed, request, view.index)
        raise AssertionError(f"the features table holds {name}, but no engine computes it")


_OF_REQUEST: Mapping[str, tuple[Callable[[Request], float], type]] = {
    "arrival_s": (lambda r: float(r.arrival_ps) / PS, np.float64),
    "generated_tokens": (lambda r: r.known - r.prompt, np.int64),
    "computed_tokens": (lambda r: r.computed, np.int64),
    "preemptions": (lambda r: r.preemptions, np.int64),
}


class Scorer:
    """A scheduling score over a workload: evaluated as seldom as its features allow.

    ``changes`` is empty for a static score, which is evaluated once for all requests.
    """

    def __init__(self, score: Score, features: Features, arrival_ps: NDArray[np.int64]) -> None:
        features.require(score.features, f"policy {score.name!r}")
        self.changes = score.changes
        self.every_iteration = bool(self.changes & {"clock", "state"})
        self._score = score
        self._features = features
        self._initial: list[float] = []
        if not self.every_iteration:
            at_arrival = features.at_arrival(score.features, arrival_ps)
            self._initial = self._evaluate(at_arrival, len(arrival_ps)).tolist()

    def known_at_arrival(self, request: Request, planned_ps: int) -> float | None:
        """The score that was evaluated ahead for a request that arrives as planned, if one was."""
        if self.every_iteration:
            return 0.0  # it is evaluated before it is used
        return self._initial[request.id] if request.arrival_ps == planned_ps else None

    def update(self, requests: Sequence[Request], view: ReplicaView) -> None:
        """Sets the scores of requests in a replica."""
        if not requests:
            return
        values = self._features.of_requests(self._score.features, requests, view)
        for request, score in zip(
            requests, self._evaluate(values, len(requests)).tolist(), strict=True
        ):
            request.score = score

    def _evaluate(self, values: Mapping[str, Any], count: int) -> NDArray[np.float64]:
        scores = np.asarray(self._score.evaluate(values), dtype=np.float64)
        if scores.shape != (count,):
            scores = np.broadcast_to(scores, (count,))
        if np.isnan(scores).any():
            raise InputError(f"policy {self._score.name!r} gave NaN for a score")
        return scores
