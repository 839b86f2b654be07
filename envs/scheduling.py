"""``lengthwise/Scheduling-v0``: which waiting request is admitted to the batch next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.envs.base import DecisionEnv
from lengthwise.envs.costs import Cost
from lengthwise.envs.episodes import Workloads
from lengthwise.policy import RoutingPolicy
from lengthwise.protocols import Predictor, TimingModel
from lengthwise.serving import Engine, Stop, Stops
from lengthwise.workload import Workload

FEATURES_SEEN = ("predicted_tokens", "prompt_tokens", "waited_s")


class SchedulingEnv(DecisionEnv):
    """Candidates are the first ``slots`` waiting requests of the replica that is about to schedule.

    An iteration with several free seats asks several times, until the seats are taken, one request
    is left, or the chosen prompts fill the iteration's token budget (what is chosen beyond it could
    not start now and would be asked again). Requests that were not chosen keep their order, first
    come first served. ``state`` is the logarithm of the queue and of the requests in the system,
    the share of seats taken, and the KV cache in use.
    """

    state_size = 4

    def __init__(
        self,
        workload: str | Workload | Workloads = "azure-conv-2023",
        *,
        slots: int = 32,
        replicas: int = 1,
        router: str | RoutingPolicy = "round-robin",
        requests: int = 500,
        rate: float | None = None,
        timing: str | TimingModel = "h200/llama-3.1-8b",
        engine: Engine | Mapping[str, Any] | None = None,
        predictor: str | Predictor | None = "oracle",
        features: Sequence[str] = FEATURES_SEEN,
        scales: Mapping[str, Sequence[float]] | None = None,
        cost: str | Cost = "latency",
        reward_scale: float | None = None,
        illegal_penalty: float = 1.0,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(
            workload, slots=slots, requests=requests, rate=rate, timing=timing, engine=engine,
            predictor=predictor, policy="fcfs", router=router, replicas=replicas, features=features,
            scales=scales, cost=cost, reward_scale=reward_scale, illegal_penalty=illegal_penalty,
            render_mode=render_mode,
        )  # fmt: skip
        self._picked: list[int] = []
        self._left: list[int] = []  # rows of the queue that were not picked, in queue order

    def _start(self, workload: Workload, seed: int) -> bool:
        self._picked, self._left = [], []
        return super()._start(workload, seed)

    def _advance(self) -> bool:
        if self._picked:
            if len(self._left) > 1 and self._seats > len(self._picked) and self._tokens > 0:
                return True
            self.run.answer(self._picked)
            self._picked, self._left = [], []
        while (stop := self.run.advance(Stops(admit=True))).kind == "admit":
            if stop.candidates > 1:
                self._stop_at(stop)
                return True
            self.run.answer(0)
        return False

    def _stop_at(self, stop: Stop) -> None:
        here = self._features(("running_requests", "kv_utilization"), 1)
        self._waiting, self._running = stop.candidates, int(here["running_requests"][0])
        self._kv = float(here["kv_utilization"][0])
        self._seats = self.engine.max_num_seqs - self._running
        self._tokens = self.engine.max_num_batched_tokens - self._running
        # rows that a choice can reach: each pick moves the window of candidates on by one
        reach = int(self.action_space.n) + self._seats - 1
        seen = self._features((*self.columns.reads, "prompt_tokens"), min(stop.candidates, reach))
        self._prompt = seen["prompt_tokens"]
        self._rows = self.columns.raw(seen)
        self._left = list(range(len(self._rows)))

    def candidates(self) -> NDArray[np.float64]:
        rows: NDArray[np.float64] = self._rows[self._left[: int(self.action_space.n)]]
        return rows

    def _state(self) -> list[float]:
        return [
            float(np.log1p(self._waiting - len(self._picked))),
            float(np.log1p(self.run.totals.in_system)),
            (self._running + len(self._picked)) / self.engine.max_num_seqs,
            self._kv,
        ]

    def _take(self, choice: int) -> None:
        row = self._left.pop(choice)
        self._picked.append(row)
        self._tokens -= int(self._prompt[row])
