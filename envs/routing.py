"""``lengthwise/Routing-v1``: at each arrival, which replica takes the request.

Learning to route requests to language models is Jain et al.'s (2024), whose environment and reward
differ; the protocol is Gymnasium's (Towers et al., 2024).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lengthwise.envs.base import DecisionEnv
from lengthwise.envs.costs import Cost
from lengthwise.envs.episodes import Source, Workloads, episodes_of
from lengthwise.envs.task import Task, task_of
from lengthwise.envs.vector import DecisionVectorEnv
from lengthwise.errors import InputError
from lengthwise.policy import SchedulingPolicy
from lengthwise.protocols import Predictor, TimingModel
from lengthwise.serving import Engine
from lengthwise.serving.nodes import NodesLike, read_nodes
from lengthwise.workload import Workload

FEATURES_SEEN = ("running_requests", "waiting_requests", "outstanding_tokens", "kv_utilization")
HOLD_S = 0.02  # Jain et al. 2024: a decision every 20 ms
MOST_HOLD_S = 1e6


def routing(
    workload: str | Workload | Workloads = "azure-conv-2023",
    *,
    replicas: int = 4,
    nodes: NodesLike | None = None,
    metrics_interval_s: float = 0.0,
    scenarios: Source | None = None,
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
    hold: bool = False,
    hold_s: float = HOLD_S,
    bank: int = 4,
    plays: int = 16,
) -> Task:
    """What Routing asks. ``scenarios`` stands in for all that says what an episode is, but for
    ``replicas`` or ``nodes``, the most nodes that any has."""
    if hold and not 0 < hold_s <= MOST_HOLD_S:
        raise InputError(f"hold_s must be above 0 and at most {MOST_HOLD_S:g} s, not {hold_s!r}")
    count = replicas
    if nodes is not None:
        count = sum(kind.count for kind in read_nodes(nodes, Engine(), timing))
    if scenarios is None:
        source = episodes_of(
            workload, requests=requests, rate=rate, timing=timing, engine=engine,
            predictor=predictor, policy=policy, router="jsq", replicas=max(replicas, 1),
            nodes=nodes, metrics_interval_s=metrics_interval_s,
        )  # fmt: skip
    else:
        source = scenarios
    if count < 2:
        raise InputError(f"a choice needs at least 2 candidates, not {count}")
    return task_of(
        "route", source, count + hold, features=features, scales=scales, cost=cost,
        reward_scale=reward_scale, illegal_penalty=illegal_penalty, bank=bank, plays=plays,
        hold_s=hold_s if hold else 0.0,
    )  # fmt: skip


class RoutingVectorEnv(DecisionVectorEnv):
    """Candidates are the replicas, in order; one decision a request.

    ``state`` is the share of replicas with a queue, the logarithm of the requests in the system a
    replica, and the logarithms of the arriving request's prompt and predicted tokens. The replicas
    schedule by ``policy``. With ``hold`` the last action leaves the request at the router, which is
    asked again after ``hold_s``; its row of columns is all zeros.
    """

    task = staticmethod(routing)


class RoutingVectorEnvV0(RoutingVectorEnv):
    """The same, with a new episode at every reset."""

    defaults = {"bank": 1, "plays": 1}  # noqa: RUF012 - a constant


class RoutingEnv(DecisionEnv):
    """Which replica takes a request that arrives; see ``RoutingVectorEnv``."""

    vector_type = RoutingVectorEnv


class RoutingEnvV0(RoutingEnv):
    """Which replica takes a request that arrives, with a new episode at every reset."""

    vector_type = RoutingVectorEnvV0
