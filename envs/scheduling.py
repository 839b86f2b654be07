"""``lengthwise/Scheduling-v1``: which waiting request is admitted to the batch next.

The first jobs of a queue as slots that an agent chooses from are DeepRM's (Mao et al., HotNets
2016); the protocol is Gymnasium's (Towers et al., 2024).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lengthwise.envs.base import DecisionEnv
from lengthwise.envs.costs import Cost
from lengthwise.envs.episodes import Source, Workloads, episodes_of
from lengthwise.envs.task import Task, task_of
from lengthwise.envs.vector import DecisionVectorEnv
from lengthwise.policy import RoutingPolicy
from lengthwise.protocols import Predictor, TimingModel
from lengthwise.serving import Engine
from lengthwise.serving.nodes import NodesLike
from lengthwise.workload import Workload

FEATURES_SEEN = ("predicted_tokens", "prompt_tokens", "waited_s")


def scheduling(
    workload: str | Workload | Workloads = "azure-conv-2023",
    *,
    slots: int = 64,
    show: str = "spread",
    replicas: int = 1,
    nodes: NodesLike | None = None,
    router: str | RoutingPolicy = "round-robin",
    scenarios: Source | None = None,
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
    bank: int = 4,
    plays: int = 16,
) -> Task:
    """What Scheduling asks. ``scenarios`` stands in for all that says what an episode is; its
    nodes' policy should be first come, first served."""
    source = scenarios or episodes_of(
        workload, requests=requests, rate=rate, timing=timing, engine=engine, predictor=predictor,
        policy="fcfs", router=router, replicas=replicas, nodes=nodes,
    )  # fmt: skip
    return task_of(
        "admit", source, slots, features=features, scales=scales, cost=cost,
        reward_scale=reward_scale, illegal_penalty=illegal_penalty, bank=bank, plays=plays,
        show=show,
    )  # fmt: skip


class SchedulingVectorEnv(DecisionVectorEnv):
    """Candidates are waiting requests of the replica that is about to schedule, in queue order.

    Of more than ``slots``, those that a score is likely to send first stand for all (``show``,
    "spread"): a quarter of the slots is for the head of the queue, and a quarter each for the
    shortest predicted answers, the shortest prompts and the least of both together, so that what
    is chosen here is what the exported score chooses from the whole queue. "first" shows its head.

    An iteration with several free seats asks several times, until the seats are taken, one request
    is left, or the chosen prompts fill the iteration's token budget (what is chosen beyond it could
    not start now and would be asked again). Requests that were not chosen keep their order, first
    come first served. ``state`` is the logarithm of the queue and of the requests in the system,
    the share of seats taken, and the KV cache in use.
    """

    task = staticmethod(scheduling)


class SchedulingVectorEnvV0(SchedulingVectorEnv):
    """The same with 32 slots for the head of the queue, and a new episode at every reset."""

    defaults = {"slots": 32, "show": "first", "bank": 1, "plays": 1}  # noqa: RUF012


class SchedulingEnv(DecisionEnv):
    """Which waiting request is admitted next; see ``SchedulingVectorEnv``."""

    vector_type = SchedulingVectorEnv


class SchedulingEnvV0(SchedulingEnv):
    """Which waiting request is admitted next, of 32, with a new episode at every reset."""

    vector_type = SchedulingVectorEnvV0
