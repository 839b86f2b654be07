"""Requests that a picker holds: a bounded queue, and when they may go on."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lengthwise.errors import InputError
from lengthwise.policies.load import load_policy
from lengthwise.policies.plugins.calls import Call
from lengthwise.policies.plugins.metrics import Counters
from lengthwise.policies.plugins.prompt_lengths import Expected
from lengthwise.policies.plugins.scorer import Scorer
from lengthwise.provider import Provider

MOST_TENANTS = 10_000  # whose service is remembered
ORDERED = (
    "arrival_s", "prompt_tokens", "predicted_tokens", "priority", "deadline_s", "now_s",
)  # fmt: skip


@dataclass(eq=False)
class Asked:
    """A request whose endpoint is wanted: what a policy may be told of it."""

    call: Call
    expected: Expected
    arrival_s: float
    priority: float = 0.0
    deadline_s: float = math.inf
    subset: frozenset[str] | None = None  # the endpoints that the gateway allows, None for all
    future: asyncio.Future[Any] | None = None  # while it waits: gets its pick

    def features(self, now_s: float) -> dict[str, float]:
        """Those of the request, by name."""
        return {
            "prompt_tokens": self.expected.prompt, "predicted_tokens": self.expected.answer,
            "priority": self.priority, "arrival_s": self.arrival_s, "deadline_s": self.deadline_s,
            "now_s": now_s,
        }  # fmt: skip

    @property
    def tenant(self) -> str:
        """Who it is from; "" where nobody says."""
        return str(self.call.known.get("tenant", ""))

    @property
    def tokens(self) -> float:
        """What serving it is expected to take."""
        return self.expected.prompt + self.expected.answer


class Waiting:
    """The queue: first come, first served, or by a scheduling policy that reads ``ORDERED``.

    ``fair``: of tenants that wait, the one that was served the fewest tokens goes first; whoever
    comes back does so with no more credit than those who waited (Sheng et al., OSDI 2024). Raises
    ``InputError`` for a policy that reads something else.
    """

    def __init__(self, order: str, fair: bool, counters: Counters, timeout_s: float) -> None:
        self._scorer: Scorer | None = None
        if order:
            policy = load_policy(order)
            scorer = Scorer(policy.score, counters, timeout_s, policy.trained_on)
            scorer.require(Provider("this queue", dict.fromkeys(ORDERED)))
            if policy.preemption.mode != "none":
                raise InputError(f"--order {order!r} preempts; nothing in this queue is running")
            self._scorer = scorer if scorer.names != ("arrival_s",) else None
        self._fair = fair
        self._served: OrderedDict[str, float] = OrderedDict()  # tenant -> tokens
        self._waiting: dict[Asked, None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def reads(self) -> tuple[str, ...]:
        """The features that its order reads."""
        return self._scorer.names if self._scorer else ()

    def add(self, asked: Asked) -> None:
        """It waits from now on."""
        tenants = {one.tenant for one in self._waiting}
        if self._fair and tenants and asked.tenant not in tenants:
            least = min(self._served.get(one, 0.0) for one in tenants)
            self._served[asked.tenant] = max(self._served.get(asked.tenant, 0.0), least)
        self._waiting[asked] = None

    def remove(self, asked: Asked) -> None:
        """It waits no longer."""
        self._waiting.pop(asked, None)

    def served(self, asked: Asked) -> None:
        """It goes to an endpoint, whether it waited or not."""
        if self._fair:
            before = self._served.get(asked.tenant, 0.0)
            self._served[asked.tenant] = before + asked.tokens
            self._served.move_to_end(asked.tenant)
            while len(self._served) > MOST_TENANTS:
                self._served.popitem(last=False)

    def in_order(self, now_s: float) -> Iterator[Asked]:
        """Those that wait, first the one whose turn it is; ``remove`` is allowed in between."""
        left = self._by_score(now_s)
        while left:
            place = 0
            if self._fair:
                served = [self._served.get(one.tenant, 0.0) for one in left]
                place = served.index(min(served))
            yield left.pop(place)

    def longest_s(self, now_s: float) -> float:
        """How long the one that came first has waited, 0 if none does."""
        first = next(iter(self._waiting), None)
        return 0.0 if first is None else now_s - first.arrival_s

    def _by_score(self, now_s: float) -> list[Asked]:
        rows = list(self._waiting)
        if self._scorer is None or len(rows) < 2:
            return rows
        told = [one.features(now_s) for one in rows]
        values = {name: np.array([row[name] for row in told]) for name in self._scorer.names}
        scores = self._scorer.many(values, len(rows))
        if np.isnan(scores).any():  # the policy failed
            return rows
        return [rows[place] for place in np.argsort(scores, kind="stable").tolist()]
