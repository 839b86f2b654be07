"""``lengthwise/Preemption-v1``: which running request gives way to one that waits, if any.

With lengths known and nothing to pay it is the rule of the shortest remaining time (Schrage, 1968);
what it costs to compute a request again is why there is something to learn. The protocol is
Gymnasium's (Towers et al., 2024).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lengthwise.envs.base import DecisionEnv
from lengthwise.envs.costs import Cost
from lengthwise.envs.episodes import Source, Workloads, episodes_of
from lengthwise.envs.task import Task, task_of
from lengthwise.envs.vector import DecisionVectorEnv
from lengthwise.policy import RoutingPolicy, SchedulingPolicy
from lengthwise.protocols import Predictor, TimingModel
from lengthwise.serving import Engine
from lengthwise.serving.options import engine_of
from lengthwise.workload import Workload

FEATURES_SEEN = (
    "predicted_tokens", "generated_tokens", "computed_tokens", "prompt_tokens", "waited_s"
)  # fmt: skip
# With vLLM's seats the preset at its own rate never fills a batch, and nobody is asked for.
FEW = Engine(max_num_seqs=12)


def preemption(
    workload: str | Workload | Workloads = "azure-conv-2023",
    *,
    slots: int | None = None,
    replicas: int = 1,
    router: str | RoutingPolicy = "round-robin",
    policy: str | SchedulingPolicy = "sjf",
    scenarios: Source | None = None,
    requests: int = 500,
    rate: float | None = None,
    timing: str | TimingModel = "h200/llama-3.1-8b",
    engine: Engine | Mapping[str, Any] | None = FEW,
    predictor: str | Predictor | None = "oracle",
    features: Sequence[str] = FEATURES_SEEN,
    scales: Mapping[str, Sequence[float]] | None = None,
    cost: str | Cost = "latency",
    reward_scale: float | None = None,
    illegal_penalty: float = 1.0,
    bank: int = 4,
    plays: int = 16,
) -> Task:
    """What Preemption asks. ``slots`` (default: the engine's seats and one more) must be more than
    any node has seats. ``scenarios`` stands in for all else that says what an episode is."""
    source = scenarios or episodes_of(
        workload, requests=requests, rate=rate, timing=timing, engine=engine, predictor=predictor,
        policy=policy, router=router, replicas=replicas,
    )  # fmt: skip
    return task_of(
        "preempt", source, engine_of(engine).max_num_seqs + 1 if slots is None else slots,
        features=features, scales=scales, cost=cost, reward_scale=reward_scale,
        illegal_penalty=illegal_penalty, bank=bank, plays=plays,
    )  # fmt: skip


class PreemptionVectorEnv(DecisionVectorEnv):
    """Candidates are the running requests in the batch's order, and last, at index ``slots - 1``,
    the waiting request that finds no seat or no KV blocks: choosing it means that nobody gives way.

    Before an iteration the waiting requests are gone through in the order of ``policy``; each is
    given a seat and blocks while they last. The first that gets none is asked for: a running
    request gives way to it and is recomputed later, and the walk goes on; or nobody does, and the
    iteration begins. At most ``max_per_step`` (8) give way, and none that has generated its
    predicted length, as in ``policy.Preemption``. An action that the mask rules out means nobody.

    This is the engine's preemption by policy, whose victim is the highest score, if it is above
    that of the waiting request. A score that is greedy here, ``argmax`` over all rows with ties to
    nobody, is ``SchedulingPolicy(score, Preemption("recompute", price=0.0))``, whose queue the same
    score orders: the runs are identical where ``policy`` orders the queue as the score does.
    """

    task = staticmethod(preemption)


class PreemptionEnv(DecisionEnv):
    """Which running request gives way, if any; see ``PreemptionVectorEnv``."""

    vector_type = PreemptionVectorEnv
