"""``lengthwise/Routing-v0``: at each arrival, which replica takes the request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.envs.base import DecisionEnv
from lengthwise.envs.costs import Cost
from lengthwise.envs.episodes import Workloads
from lengthwise.policy import SchedulingPolicy
from lengthwise.protocols import Predictor, TimingModel
from lengthwise.serving import Engine, Stops
from lengthwise.workload import Workload

FEATURES_SEEN = ("running_requests", "waiting_requests", "outstanding_tokens", "kv_utilization")


class RoutingEnv(DecisionEnv):
    """Candidates are the replicas, in order; one decision a request.

    ``state`` is the share of replicas with a queue, the logarithm of the requests in the system a
    replica, and the logarithms of the arriving request's prompt and predicted tokens. The replicas
    schedule by ``policy``.
    """

    state_size = 4

    def __init__(
        self,
        workload: str | Workload | Workloads = "azure-conv-2023",
        *,
        replicas: int = 4,
        requests: int = 500,
        rate: float | None = None,
        timing: str | TimingModel = "h200/llama-3.1-8b",
        engine: Engine | Mapping[str, Any] | None = None,
        predictor: str | Predictor | None = "oracle",
        policy: str | SchedulingPolicy = "fcfs",
        features: Sequence[str] = FEATURES_SEEN,
        scales: Mapping[str, Sequence[float]] | None = None,
        cost: str | Cost = "latency",
        reward_scale: float | None = None,
        illegal_penalty: float = 1.0,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(
            workload, slots=replicas, requests=requests, rate=rate, timing=timing, engine=engine,
            predictor=predictor, policy=policy, router="jsq", replicas=replicas, features=features,
            scales=scales, cost=cost, reward_scale=reward_scale, illegal_penalty=illegal_penalty,
            render_mode=render_mode,
        )  # fmt: skip

    def _advance(self) -> bool:
        self._stop = self.run.advance(Stops(route=True))
        return self._stop.kind == "route"

    def candidates(self) -> NDArray[np.float64]:
        return self.columns.raw(self._features(self.columns.reads, self._stop.candidates))

    def _state(self) -> list[float]:
        request, replicas = self._stop.request, self._stop.candidates
        queues = self._features(("waiting_requests",), replicas)["waiting_requests"]
        length = self.workload["prompt_tokens"][request]
        known = self.predictions
        answer = 0.0 if known is None else known.predicted_tokens[request]
        return [
            float((queues > 0).mean()),
            float(np.log1p(self.run.totals.in_system / replicas)),
            float(np.log1p(length)) - 6.0,
            float(np.log1p(answer)) - 5.0,
        ]

    def _take(self, choice: int) -> None:
        self.run.answer(choice)
