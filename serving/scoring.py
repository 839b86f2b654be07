"""What a policy sees of requests and replicas, and the scores it gives them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.features import FEATURES, get
from lengthwise.policy import Score
from lengthwise.prediction import CURVES, Predictions
from lengthwise.provider import Provider
from lengthwise.serving.draws import uniform
from lengthwise.serving.records import PS
from lengthwise.serving.reference.request import Request
from lengthwise.workload import Workload

if TYPE_CHECKING:
    from lengthwise.serving.reference.replica import Replica

# Features that take a walk over a replica's requests: a view has them where they are asked for.
BACKLOGS = frozenset({"prefill_backlog_tokens", "decode_backlog_tokens"})
# Sums of predicted tokens are kept in integers of this fraction of a token, so that they are exact.
FRACTION = 1024


MOST_RESERVED = float(1 << 40)  # tokens, at one decision: sums of them stay integers of 64 bits
ADMISSION = "admission with reserve > 0"  # what is said of who reads, in errors


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
    unfinished: int  # requests sent there and not finished
    outstanding: int  # tokens x FRACTION
    oldest_ps: int  # the arrival of the request that is there longest; ``now_ps`` if none is
    backlogs: tuple[int, int] | None  # of prefill and decoding, in tokens; where they are read
    pulled: int  # of those that wait, those that have blocks and a seat and await their KV
    replica: Replica  # for what stands still, and its cache as it is now


@dataclass(frozen=True, slots=True)
class Tenants:
    """Whose each request is, (n,), and the weights of them all, (tenants,)."""

    of: NDArray[np.int64]
    shares: NDArray[np.float64]


def tenants_of(workload: Workload) -> Tenants:
    """The tenants of a workload that names them, in the order in which they come."""
    numbers: dict[str, int] = {}
    named = map(str, workload["tenant"].tolist())  # as text: a list has no hash
    of = np.array([numbers.setdefault(name, len(numbers)) for name in named], np.int64)
    shares = np.ones(len(numbers))
    if "tenant_weight" in workload:
        shares[of] = workload["tenant_weight"]
    return Tenants(of, shares)


class Features:
    """Values of features, from the columns of a workload and the state of requests and replicas."""

    def __init__(self, workload: Workload, predictions: Predictions | None, seed: int) -> None:
        self.seed = seed
        self.columns: dict[str, NDArray[Any]] = {"prompt_tokens": workload["prompt_tokens"]}
        self._predictions = predictions
        if predictions is not None:
            self.columns |= predictions.columns
        for feature in FEATURES.values():
            if feature.given == "column" and feature.name in workload:
                self.columns[feature.name] = workload[feature.name]
        self.tenants: Tenants | None = None
        if "tenant" in workload:
            self.tenants = tenants_of(workload)
            self.columns["tenant_weight"] = self.tenants.shares[self.tenants.of]

    def require(self, names: Iterable[str], reader: str) -> None:
        """Raises ``InputError`` unless all features that ``reader`` reads have values here."""
        REFERENCE.require(names, reader)
        for name in names:
            given = get(name).given
            if given == "column" and name not in self.columns:
                raise InputError(f"{reader} reads {name}, and the workload has no such column")
            if given == "tenant" and self.tenants is None:
                raise InputError(f"{reader} reads {name}, and the workload has no column tenant")
            if given == "prediction" and self._predictions is None:
                raise InputError(f"{reader} reads {name}, which needs a predictor")
            if name in CURVES and name not in self.predictions.curves:
                raise InputError(f"{reader} reads {name}, and the predictions have no such curve")

    @property
    def predictions(self) -> Predictions:
        """The run's predictions; ``require`` has seen that there are some."""
        assert self._predictions is not None
        return self._predictions

    def at_arrival(
        self, names: Iterable[str], arrival_ps: NDArray[np.int64]
    ) -> dict[str, NDArray[Any]]:
        """Request features of the whole workload when nothing has been computed yet, (n,) each."""
        return {
            name: np.broadcast_to(ARRIVING[name](self, arrival_ps), arrival_ps.shape)
            for name in names
        }

    def of_requests(
        self, names: Iterable[str], requests: Sequence[Request], view: ReplicaView
    ) -> dict[str, NDArray[Any]]:
        """Features of requests in a replica, (n,) each; those of the replica are broadcast."""
        found: dict[str, NDArray[Any]] = {}
        for name in names:
            values = REFERENCE[name](self, requests, view)
            found[name] = np.full(len(requests), values, dtype=get(name).dtype)
        return found

    def of_replicas(
        self, names: Iterable[str], requests: Sequence[Request], views: Sequence[ReplicaView]
    ) -> dict[str, NDArray[Any]]:
        """Features of replicas for a request to be routed, (replicas,) each; its own broadcast.

        ``requests`` is the request as each of the replicas would take it.
        """
        found: dict[str, NDArray[Any]] = {}
        for name in names:
            feature, value = get(name), REFERENCE[name]
            pairs = list(zip(requests, views, strict=True))
            differs = pairs[:1] if feature.of == "request" else pairs
            values = [value(self, (request,), view) for request, view in differs]
            found[name] = np.empty(len(views), dtype=feature.dtype)
            found[name][:] = np.ravel(values)
        return found


# A feature's values for requests in (or at) a replica: one each, or one for all.
Accessor = Callable[[Features, Sequence[Request], ReplicaView], Any]


def _column(name: str) -> Accessor:
    return lambda f, requests, view: f.columns[name][[request.id for request in requests]]


def _curve(name: str) -> Accessor:
    return lambda f, requests, view: f.predictions.at(
        name, [request.id for request in requests], [request.generated for request in requests]
    )


def _seen(value: Callable[[ReplicaView], float]) -> Accessor:
    return lambda f, requests, view: value(view)


def _free_seats(view: ReplicaView) -> int:
    return view.replica.engine.max_num_seqs - view.running - view.pulled


def _backlogs(view: ReplicaView) -> tuple[int, int]:
    assert view.backlogs is not None, "a view that was made without them"
    return view.backlogs


REFERENCE: Provider[Accessor] = Provider(
    "the reference engine",
    {
        "arrival_s": lambda f, rs, view: [float(r.arrival_ps) / PS for r in rs],
        "prompt_tokens": _column("prompt_tokens"),
        "predicted_tokens": _column("predicted_tokens"),
        **{name: _curve(name) for name in CURVES},
        "priority": _column("priority"),
        "deadline_s": _column("deadline_s"),
        "generated_tokens": lambda f, rs, view: [r.generated for r in rs],
        "computed_tokens": lambda f, rs, view: [r.computed for r in rs],
        "preemptions": lambda f, rs, view: [r.preemptions for r in rs],
        "now_s": _seen(lambda view: float(view.now_ps) / PS),
        "running_requests": _seen(lambda view: view.running),
        "waiting_requests": _seen(lambda view: view.waiting),
        "kv_utilization": _seen(lambda view: view.used_blocks / view.total_blocks),
        "routed_requests": _seen(lambda view: view.routed),
        "outstanding_requests": _seen(lambda view: view.unfinished),
        "outstanding_tokens": _seen(lambda view: view.outstanding / FRACTION),
        "oldest_request_s": _seen(lambda view: float(view.now_ps - view.oldest_ps) / PS),
        "prefill_backlog_tokens": _seen(lambda view: _backlogs(view)[0]),
        "decode_backlog_tokens": _seen(lambda view: _backlogs(view)[1]),
        "free_seats": _seen(_free_seats),
        "max_seats": _seen(lambda view: view.replica.engine.max_num_seqs),
        "decode_tokens_per_s": _seen(lambda view: view.replica.decode_tokens_per_s),
        "random_draw": lambda f, rs, view: [uniform(f.seed, r.id, view.index) for r in rs],
        "cached_tokens": lambda f, rs, view: [view.replica.cached_tokens(r) for r in rs],
        "tenant_weight": _column("tenant_weight"),
        "tenant_service": lambda f, rs, view: view.replica.tenant_service(rs),
        "tenant_attained": lambda f, rs, view: view.replica.tenant_attained(rs),
    },
)


def _starting(name: str) -> Callable[[Features, NDArray[np.int64]], Any]:
    return lambda f, arrival_ps: f.predictions.at(name, slice(None), np.zeros(len(arrival_ps)))


# The same for requests that arrive, all of a workload at once: from their arrivals in ps, (n,).
ARRIVING: Provider[Callable[[Features, NDArray[np.int64]], Any]] = Provider(
    "the reference engine before a run",
    {
        "arrival_s": lambda f, arrival_ps: arrival_ps / PS,
        "prompt_tokens": lambda f, arrival_ps: f.columns["prompt_tokens"],
        "predicted_tokens": lambda f, arrival_ps: f.columns["predicted_tokens"],
        **{name: _starting(name) for name in CURVES},
        "priority": lambda f, arrival_ps: f.columns["priority"],
        "deadline_s": lambda f, arrival_ps: f.columns["deadline_s"],
        "tenant_weight": lambda f, arrival_ps: f.columns["tenant_weight"],
        "generated_tokens": lambda f, arrival_ps: np.int64(0),
        "computed_tokens": lambda f, arrival_ps: np.int64(0),
        "preemptions": lambda f, arrival_ps: np.int64(0),
    },
)


class Scorer:
    """A scheduling score over a workload: evaluated as seldom as its features allow.

    ``changes`` is empty for a static score, which is evaluated once for all requests.
    """

    def __init__(self, score: Score, features: Features, arrival_ps: NDArray[np.int64]) -> None:
        features.require(score.features, f"policy {score.name!r}")
        self.reads = score.features
        self.changes = score.changes
        self.every_iteration = bool(self.changes & {"clock", "state"})
        self._score = score
        self._features = features
        self._initial: list[float] = []
        if not self.every_iteration:
            ARRIVING.require(score.features, f"policy {score.name!r}")
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

    def rounded_up(self, curve: str, requests: Sequence[Request]) -> list[int]:
        """A feature of ``CURVES`` of each request, in whole tokens."""
        ids = [request.id for request in requests]
        done = [request.generated for request in requests]
        return [math.ceil(left) for left in self._features.predictions.at(curve, ids, done)]

    def _evaluate(self, values: Mapping[str, Any], count: int) -> NDArray[np.float64]:
        return self._score.numbers(values, count)
