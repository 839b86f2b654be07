"""What a plugin keeps about one request, beside what the engine keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lengthwise.curves import RequestCurve
from lengthwise.picoseconds import picoseconds
from lengthwise.policies.plugins import client
from lengthwise.policies.plugins.accuracy import UNKNOWN
from lengthwise.policies.plugins.metrics import Counters
from lengthwise.starvation import Waiter


@dataclass(slots=True, eq=False, kw_only=True)
class Entry(Waiter):
    """One request: its features that the engine doesn't hold, its score and its waiting.

    ``predicted_tokens`` is the default until a prediction comes.
    """

    request: Any  # the engine's own object
    arrival_s: float
    priority: float
    deadline_s: float
    # "ready" is scored by the policy; "pending" awaits its prediction; "failed" is served FCFS
    state: Literal["ready", "pending", "failed"] = "ready"
    source: str = "default"  # who predicted: "client", "predictor", or nobody
    # by feature, where its length is a distribution
    curves: Mapping[str, RequestCurve] = field(default_factory=dict)
    limit: float = math.inf  # tokens that it may generate
    abstained: bool = False  # the predictor gave the typical length, for it knows no better
    doubted_tokens: float = 0.0  # what a predictor said that is not followed for now
    interval: tuple[float, float] = UNKNOWN  # where the predictor said the length would lie
    known: Mapping[str, Any] = field(default_factory=dict)  # beside its prompt (``Context``)
    score: float = 0.0
    turn: bool = False  # FCFS would have started it by now
    version: int = 0  # of its place in the queue
    column: int = -1  # its place in the arrays of a queue whose scores change with the clock

    @property
    def predicted(self) -> bool:
        """Whether ``predicted_tokens`` is anything but the default."""
        return self.source != "default"

    def left(self, feature: str) -> float:
        """What a curve of its prediction says now; of a single length, what is left of it."""
        done: int = self.request.num_output_tokens
        if (curve := self.curves.get(feature)) is None:
            return max(self.predicted_tokens - done, 1.0)
        return min(curve.at(done), max(self.limit - done, 1.0))

    @property
    def gone(self) -> bool:
        """Whether the engine is done with the request."""
        return bool(self.request.is_finished())

    @property
    def whole_tokens(self) -> int:
        """The predicted length, rounded up; 0 while it is but the default."""
        return math.ceil(self.predicted_tokens) if self.predicted else 0

    @property
    def rank(self) -> float:
        """Its place in the waiting queue, lowest first: the score, but for FCFS and the guard."""
        if self.ahead or (self.turn and self.state != "ready"):
            return float("-inf")
        return self.score if self.state == "ready" else float("inf")


def entry_of(request: Any, sequence: int, arrival_s: float, counters: Counters) -> Entry:
    """The entry of a request that arrives, which is also the request's ``lengthwise`` from now on.

    Its length is not predicted yet.
    """
    due_in_s = client.sent(request.sampling_params).get("deadline_s")
    seconds = client.number(due_in_s)
    if seconds is None and due_in_s is not None:
        counters.add("ignored", "deadline_s")
        counters.warn("bad-deadline", f"vllm_xargs deadline_s={client.shown(due_in_s)} is no time")
    entry = request.lengthwise = Entry(
        request=request,
        sequence=sequence,
        arrival_ps=picoseconds(arrival_s),
        arrival_s=arrival_s,
        priority=client.number(request.priority) or 0.0,
        deadline_s=math.inf if seconds is None else arrival_s + seconds,
        predicted_tokens=1.0,
    )
    return entry


def bare_entry(request: Any, sequence: int, now_s: float) -> Entry:
    """The entry of a request of which nothing is believed: it is served first come, first served.

    It has come just now, and is the request's ``lengthwise`` from now on.
    """
    entry = request.lengthwise = Entry(
        request=request, sequence=sequence, arrival_ps=picoseconds(now_s), arrival_s=now_s,
        priority=0.0, deadline_s=math.inf, predicted_tokens=1.0, state="failed",
    )  # fmt: skip
    return entry
