"""A routing policy at a real router: what it knows of its replicas, and which it takes.

A router knows what it sent and what came back; what a replica's batch and cache look like it knows
only if the replica reports it. Shared by the Ray Serve and LiteLLM plugins; use it for others.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lengthwise.errors import InputError
from lengthwise.policies.load import load_router
from lengthwise.policies.plugins.metrics import Counters
from lengthwise.policies.plugins.scorer import Scorer
from lengthwise.policy import RoutingPolicy

REQUEST = ("prompt_tokens", "predicted_tokens", "priority", "arrival_s", "now_s")
REPORTED = ("running_requests", "waiting_requests", "kv_utilization")
ALWAYS = ("routed_requests", "outstanding_tokens", "random_draw")
LOST_S = 1800.0  # a request that nobody reported ended for so long is no load any more


@dataclass
class Replica:
    """What the router knows of one replica."""

    routed: int = 0
    owed: dict[Hashable, float] = field(default_factory=dict)  # request -> its tokens, unfinished
    reported: dict[str, float] = field(default_factory=dict)


class ReplicaRouter:
    """Ranks replicas for each request by a routing policy; safe to call from several threads.

    ``reports`` names the features that replicas report (through ``report``). Of those,
    ``waiting_requests`` and ``running_requests`` have stand-ins where they are not reported: all
    unfinished requests, and 0. Raises ``InputError`` for a policy that reads something else.
    """

    def __init__(
        self,
        policy: str | RoutingPolicy,
        *,
        reports: Sequence[str] = (),
        seed: int = 0,
        policy_timeout_s: float = 0.1,
    ) -> None:
        self.policy = load_router(policy)
        self.counters = Counters()
        self._scorer = Scorer(self.policy.score, self.counters, policy_timeout_s)
        known = (*REQUEST, *ALWAYS, "running_requests", "waiting_requests", *reports)
        self._scorer.require(known, "a router without such reports")
        unknown = [name for name in reports if name not in REPORTED]
        if unknown:
            raise InputError(f"replicas report {', '.join(REPORTED)}, not {', '.join(unknown)}")
        self._random = random.Random(seed)
        self._replicas: dict[Hashable, Replica] = {}
        self._sent: dict[Hashable, tuple[Hashable, float]] = {}  # request -> replica, when (s)
        self._lock = threading.Lock()

    def rank(self, candidates: Sequence[Hashable], **request: float) -> list[Hashable]:
        """The candidates, best first; ties by their order. ``request`` holds its features."""
        with self._lock:
            self._forget_lost()
            chosen = list(candidates)
            if 0 < self.policy.choices < len(chosen):
                first = self._random.sample(chosen, self.policy.choices)
                chosen = [c for c in chosen if c in first]  # ties go to the earlier candidate
            known = [self._replicas.setdefault(c, Replica()) for c in chosen]
            values = {name: self._values(name, known, request) for name in self._scorer.names}
            scores = self._scorer.many(values, len(chosen))
            if np.isnan(scores).any():  # the policy failed: each replica in turn
                self.counters.add("fallbacks", "policy")
                scores = np.array([float(replica.routed) for replica in known])
            best = [chosen[i] for i in np.argsort(scores, kind="stable").tolist()]
            return best + [c for c in candidates if c not in best]

    def sent(self, replica: Hashable, request: Hashable, tokens: float = 0.0) -> None:
        """A request goes to a replica; ``tokens`` are those of its prompt and predicted answer."""
        with self._lock:
            self._end(request)
            known = self._replicas.setdefault(replica, Replica())
            known.routed += 1
            known.owed[request] = tokens
            self._sent[request] = (replica, time.monotonic())

    def moved(self, replica: Hashable, request: Hashable) -> None:
        """A request went to another replica than ``sent`` said; ignored once it has ended."""
        with self._lock:
            before = self._replicas.get(self._sent.get(request, (None, 0.0))[0])
            known = self._replicas.setdefault(replica, Replica())
            if before is None or before is known or request not in before.owed:
                return
            before.routed -= 1
            known.routed += 1
            known.owed[request] = before.owed.pop(request)
            self._sent[request] = (replica, self._sent[request][1])

    def done(self, request: Hashable) -> None:
        """A request ended, well or not; unknown ones are ignored (a replica that was forgotten)."""
        with self._lock:
            self._end(request)

    def report(self, replica: Hashable, **values: float) -> None:
        """A replica's own word on its ``REPORTED`` features."""
        with self._lock:
            self._replicas.setdefault(replica, Replica()).reported.update(values)

    def keep(self, replicas: Sequence[Hashable]) -> None:
        """Forgets replicas that are gone. A new one starts at the least that others were sent."""
        with self._lock:
            if self._replicas.keys() == set(replicas):
                return
            self._replicas = {r: known for r, known in self._replicas.items() if r in replicas}
            least = min((known.routed for known in self._replicas.values()), default=0)
            for replica in replicas:
                self._replicas.setdefault(replica, Replica(routed=least))

    def unfinished(self, replica: Hashable) -> int:
        """Requests sent to a replica and not done."""
        with self._lock:
            return len(self._replicas.get(replica, Replica()).owed)

    def _end(self, request: Hashable) -> None:
        replica, _ = self._sent.pop(request, (None, 0.0))
        if replica in self._replicas:
            self._replicas[replica].owed.pop(request, None)

    def _forget_lost(self) -> None:
        """Not every router tells of a client that hung up."""
        late = time.monotonic() - LOST_S
        while self._sent:
            request, (_, since) = next(iter(self._sent.items()))
            if since > late:
                return
            self._end(request)
            self.counters.add("fallbacks", "request-lost")

    def _values(self, name: str, known: list[Replica], request: Mapping[str, float]) -> Any:
        if name == "random_draw":
            return np.array([self._random.random() for _ in known])
        if name == "routed_requests":
            return np.array([replica.routed for replica in known], dtype=np.float64)
        if name == "outstanding_tokens":
            return np.array([sum(replica.owed.values()) for replica in known], dtype=np.float64)
        if name == "waiting_requests":
            values = [replica.reported.get(name, len(replica.owed)) for replica in known]
            return np.array(values, dtype=np.float64)
        if name in REPORTED:
            return np.array([replica.reported.get(name, 0.0) for replica in known])
        return request.get(name, 0.0)
