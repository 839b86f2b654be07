"""A routing policy at a real router: what it knows of its replicas, and which it takes.

A router knows what it sent and what came back; what a replica's batch and cache look like it knows
only if the replica reports it. Shared by the Ray Serve and LiteLLM plugins; use it for others.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.policies.load import load_router
from lengthwise.policies.plugins import client
from lengthwise.policies.plugins.metrics import Counters
from lengthwise.policies.plugins.scorer import Scorer
from lengthwise.policy import RoutingPolicy
from lengthwise.provider import Provider

LOST_S = 1800.0  # a request that nobody reported ended for so long is no load any more


@dataclass
class Replica:
    """What the router knows of one replica."""

    name: Hashable = None
    routed: int = 0
    owed: dict[Hashable, float] = field(default_factory=dict)  # request -> its tokens, unfinished
    reported: dict[str, float] = field(default_factory=dict)


Accessor = Callable[["ReplicaRouter", Sequence[Replica], Mapping[str, Any]], Any]


def _of_pair(name: str) -> Accessor:
    """A feature of the request at each replica, which the caller of ``rank`` must have told."""

    def told(router: ReplicaRouter, known: Sequence[Replica], request: Mapping[str, Any]) -> Any:
        if name not in request:
            policy = router.policy.name
            raise InputError(f"router {policy!r} reads {name}, which rank() was not given")
        return [float(request[name].get(replica.name, 0.0)) for replica in known]

    return told


def _told(name: str) -> Accessor:
    """A feature of the request, which the caller of ``rank`` must have told."""

    def told(router: ReplicaRouter, known: Sequence[Replica], request: Mapping[str, Any]) -> Any:
        if name not in request:
            policy = router.policy.name
            raise InputError(f"router {policy!r} reads {name}, which rank() was not given")
        return request[name]

    return told


def _reported(name: str) -> Accessor:
    """What replicas report; before the first report nothing is in them."""
    return lambda router, known, request: [replica.reported.get(name, 0.0) for replica in known]


# What a router knows by itself: a value for all replicas, or one for each. Who runs it tells the
# features of the request.
ASKED = ("prompt_tokens", "predicted_tokens", "priority", "arrival_s", "now_s")
DUE = ("deadline_s",)  # told as well, by those who hear of objectives
OWN: Mapping[str, Accessor] = {
    "routed_requests": lambda router, known, request: [replica.routed for replica in known],
    "outstanding_requests": lambda router, known, request: [len(replica.owed) for replica in known],
    "outstanding_tokens": lambda router, known, request: [
        sum(replica.owed.values()) for replica in known
    ],
    "oldest_request_s": lambda router, known, request: [
        router.longest_s(replica) for replica in known
    ],
    "random_draw": lambda router, known, request: [router.draws.random() for _ in known],
}
REPORTED: Mapping[str, Accessor] = {
    "running_requests": _reported("running_requests"),
    "waiting_requests": lambda router, known, request: [
        replica.reported.get("waiting_requests", len(replica.owed)) for replica in known
    ],
    **{
        name: _reported(name)
        for name in (
            "kv_utilization", "prefill_backlog_tokens", "decode_backlog_tokens", "free_seats",
            "max_seats", "decode_tokens_per_s",
        )
    },
}  # fmt: skip
PAIRS = ("cached_tokens",)  # told as well, by those who know: a mapping from replica to value
STAND_IN = ("running_requests", "waiting_requests")  # where replicas do not report them
VALUES: Provider[Accessor] = Provider(
    "a router",
    {
        **{name: _told(name) for name in (*ASKED, *DUE)},
        **{name: _of_pair(name) for name in PAIRS},
        **OWN,
        **REPORTED,
    },
)


class ReplicaRouter:
    """Ranks replicas for each request by a routing policy; safe to call from several threads.

    ``reports`` names the features that replicas report (through ``report``), ``tells`` those of
    the request that every call of ``rank`` is given. ``waiting_requests`` and ``running_requests``
    have stand-ins where they are not reported: all unfinished requests, and 0. Raises
    ``InputError`` for a policy that reads something else.
    """

    draws: random.Random

    def __init__(
        self,
        policy: str | RoutingPolicy,
        *,
        reports: Sequence[str] = (),
        tells: Sequence[str] = ASKED,
        seed: int = 0,
        policy_timeout_s: float = 0.1,
    ) -> None:
        self.policy = load_router(policy)
        self.counters = Counters()
        self._timeout_s = policy_timeout_s
        self._scorer = Scorer(
            self.policy.score, self.counters, policy_timeout_s, self.policy.trained_on
        )
        unknown = [name for name in reports if name not in REPORTED]
        if unknown:
            raise InputError(f"replicas report {', '.join(REPORTED)}, not {', '.join(unknown)}")
        known = (*tells, *OWN, *STAND_IN, *reports)
        self._values = Provider("this router", {name: VALUES[name] for name in known})
        self._scorer.require(self._values)
        self.draws = random.Random(seed)
        self._replicas: dict[Hashable, Replica] = {}
        # request -> replica, when (s), tokens
        self._sent: dict[Hashable, tuple[Hashable, float, float]] = {}
        self._lock = threading.Lock()

    def rank(self, candidates: Sequence[Hashable], **request: Any) -> list[Hashable]:
        """The candidates, best first; ties by their order. ``request`` holds its features.

        Those of a pair are mappings from replica to value, 0 where they say nothing.
        """
        ranked, _ = self._ranked(candidates, request)
        return ranked

    def rank_or_hold(self, candidates: Sequence[Hashable], **request: Any) -> list[Hashable]:
        """As ``rank``; nobody where the policy takes none of them now: all score infinity."""
        ranked, held = self._ranked(candidates, request)
        return [] if held else ranked

    def scorer(self, spec: str) -> Scorer:
        """Another function of what this router knows, for ``scores``.

        Raises ``InputError`` for one that reads something else.
        """
        policy = load_router(spec)
        made = Scorer(policy.score, self.counters, self._timeout_s, policy.trained_on)
        made.require(self._values)
        return made

    def scores(
        self, scorer: Scorer, candidates: Sequence[Hashable], **request: Any
    ) -> NDArray[np.float64]:
        """What such a function gives for each candidate, (n,); NaN where it fails."""
        with self._lock:
            return self._scores(scorer, candidates, request)

    def _ranked(
        self, candidates: Sequence[Hashable], request: Mapping[str, Any]
    ) -> tuple[list[Hashable], bool]:
        """The candidates, best first, and whether the policy takes none of them."""
        with self._lock:
            self._forget_lost()
            chosen = list(candidates)
            if 0 < self.policy.choices < len(chosen):
                first = self.draws.sample(chosen, self.policy.choices)
                chosen = [c for c in chosen if c in first]  # ties go to the earlier candidate
            scores = self._scores(self._scorer, chosen, request)
            if np.isnan(scores).any():  # the policy failed: each replica in turn
                self.counters.add("fallbacks", "policy")
                scores = np.array([float(self._replicas[one].routed) for one in chosen])
            best = [chosen[i] for i in np.argsort(scores, kind="stable").tolist()]
            ranked = best + [c for c in candidates if c not in best]
            return ranked, bool(np.isposinf(scores).all())

    def _scores(
        self, scorer: Scorer, chosen: Sequence[Hashable], request: Mapping[str, Any]
    ) -> NDArray[np.float64]:
        known = [self._replicas.setdefault(c, Replica(c)) for c in chosen]
        values: dict[str, Any] = {}
        for name in scorer.names:
            value = self._values[name](self, known, request)
            values[name] = value if np.isscalar(value) else np.array(value, dtype=np.float64)
        return scorer.many(values, len(chosen))

    def sent(self, replica: Hashable, request: Hashable, tokens: float = 0.0) -> None:
        """A request goes to a replica; ``tokens`` are those of its prompt and predicted answer.

        One that is under way already is placed anew: it went nowhere before.
        """
        with self._lock:
            self._take_back(request)
            self._count(replica, request, tokens)

    def moved(self, replica: Hashable, request: Hashable) -> None:
        """A request went to another replica than ``sent`` said; ignored once it has ended."""
        with self._lock:
            if request in self._sent:
                self._count(replica, request, self._take_back(request))

    def done(self, request: Hashable, replica: Hashable = None) -> None:
        """A request ended, well or not; unknown ones are ignored (a replica that was forgotten).

        With a ``replica``, only what was tried there ended: ignored if it counts elsewhere by now.
        """
        with self._lock:
            if replica is None or self._sent.get(request, (replica,))[0] == replica:
                self._end(request)

    def report(self, replica: Hashable, **values: Any) -> None:
        """A replica's own word on its ``REPORTED`` features; what is no number is ignored."""
        sound = {}
        for name, value in values.items():
            number = client.number(value)
            if number is None:
                self.counters.add("ignored", name)
                self.counters.warn("bad-report", f"a replica reports {name}={client.shown(value)}")
            else:
                sound[name] = number
        with self._lock:
            self._replicas.setdefault(replica, Replica(replica)).reported.update(sound)

    def forget(self, replica: Hashable, names: Iterable[str]) -> None:
        """What a replica said of these features is too old; the stand-ins take their place."""
        with self._lock:
            for name in names:
                self._replicas.setdefault(replica, Replica(replica)).reported.pop(name, None)

    def keep(self, replicas: Sequence[Hashable]) -> None:
        """Forgets replicas that are gone. A new one starts at the least that others were sent."""
        with self._lock:
            if self._replicas.keys() == set(replicas):
                return
            self._replicas = {r: known for r, known in self._replicas.items() if r in replicas}
            least = min((known.routed for known in self._replicas.values()), default=0)
            for replica in replicas:
                self._replicas.setdefault(replica, Replica(replica, routed=least))

    def unfinished(self, replica: Hashable) -> int:
        """Requests sent to a replica and not done."""
        with self._lock:
            return len(self._replicas.get(replica, Replica()).owed)

    def longest_s(self, replica: Replica) -> float:
        """How long the oldest of a replica's unfinished requests is under way; 0 if none is."""
        since = [self._sent[request][1] for request in replica.owed]
        return time.monotonic() - min(since) if since else 0.0

    def _count(self, replica: Hashable, request: Hashable, tokens: float) -> None:
        known = self._replicas.setdefault(replica, Replica(replica))
        known.routed += 1
        known.owed[request] = tokens
        self._sent[request] = (replica, time.monotonic(), tokens)

    def _take_back(self, request: Hashable) -> float:
        replica, _, tokens = self._sent.pop(request, (None, 0.0, 0.0))
        if replica in self._replicas and request in self._replicas[replica].owed:
            self._replicas[replica].routed -= 1
            del self._replicas[replica].owed[request]
        return tokens

    def _end(self, request: Hashable) -> None:
        replica, *_ = self._sent.pop(request, (None,))
        if replica in self._replicas:
            self._replicas[replica].owed.pop(request, None)

    def _forget_lost(self) -> None:
        """Not every router tells of a client that hung up."""
        late = time.monotonic() - LOST_S
        while self._sent:
            request, (_, since, _) = next(iter(self._sent.items()))
            if since > late:
                return
            self._end(request)
            self.counters.add("fallbacks", "request-lost")
