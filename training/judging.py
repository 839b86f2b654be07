"""Judging a policy on held-out workloads, in the simulator it will run in, beside baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lengthwise.eval import metrics
from lengthwise.policies import load_policy, load_router
from lengthwise.policy import RoutingPolicy, SchedulingPolicy
from lengthwise.predictors.predict import PredictorLike, predict
from lengthwise.serving import Records, System, run
from lengthwise.workload import Workload

Judged = SchedulingPolicy | RoutingPolicy

BASELINES = {
    "scheduling": ("fcfs", "sjf"),
    "routing": ("round-robin", "jsq", "least-tokens"),
}


@dataclass(frozen=True)
class Bench:
    """The system that policies are judged on, and the workloads by seed.

    ``beside`` has the policy beside a router that is judged, and the router beside a policy.
    """

    source: Callable[[int], Workload]
    predictor: PredictorLike
    beside: System

    def system(self, judged: Judged) -> System:
        """The system with the judged policy in all nodes, or the judged router before them."""
        if isinstance(judged, RoutingPolicy):
            return replace(self.beside, routing=judged)
        return replace(
            self.beside,
            nodes=tuple(replace(node, policy=judged) for node in self.beside.nodes),
        )

    def run(self, judged: Judged, seed: int) -> Records:
        """One run of the held-out workload ``seed`` under the judged policy or router."""
        workload = self.source(seed)
        predicted = predict(self.predictor, workload, seed)
        return run(workload, self.system(judged), predicted, seed=seed)


def baselines(kind: str, given: Sequence[str] | None = None) -> list[Judged]:
    """The named baselines of "scheduling" or "routing", or the usual ones."""
    loader: Callable[[str], Any] = load_policy if kind == "scheduling" else load_router
    return [loader(name) for name in (BASELINES[kind] if given is None else given)]


def table_row(bench: Bench, judged: Judged, seeds: Sequence[int]) -> dict[str, list[float]]:
    """Metrics of a policy over seeds, one list entry a seed (s, or s/token)."""
    found: dict[str, list[float]] = {}
    for seed in seeds:
        records = bench.run(judged, seed)
        e2e, first = metrics.e2e_s(records), metrics.ttft_s(records)
        for name, value in (
            ("mean_latency_s", e2e.mean()),
            ("p99_latency_s", np.percentile(e2e, 99)),
            ("mean_ttft_s", first.mean()),
            ("mean_normalized_latency_s", metrics.normalized_latency_s(records).mean()),
        ):
            found.setdefault(name, []).append(float(value))
    return found
