"""Any workload through vLLM's own scheduler, in simulated time."""

from __future__ import annotations

import dataclasses
from typing import Any

from lengthwise.errors import InputError
from lengthwise.policy import SchedulingPolicy
from lengthwise.serving.cluster import Cluster
from lengthwise.serving.engine import Replica
from lengthwise.serving.options import Engine
from lengthwise.serving.records import Records
from lengthwise.serving.scoring import Scorer
from lengthwise.serving.vllm.client import Vllm, VllmReplica
from lengthwise.serving.vllm.environment import NEWEST
from lengthwise.workload import Workload


class VllmCluster(Cluster):
    """A cluster whose replicas are schedulers of a ``Vllm`` process; same arguments and events."""

    def __init__(self, vllm: Vllm, workload: Workload, **given: Any) -> None:
        self._vllm = vllm
        super().__init__(workload, **given)

    def _replica(
        self, index: int, engine: Engine, policy: SchedulingPolicy, scorer: Scorer
    ) -> Replica:
        inputs, hashes = self._inputs, None
        if inputs.block_keys is not None:
            hashes = (self._workload["prefix_hashes"], self._workload["hash_block_tokens"])
        return VllmReplica(
            self._vllm, index, engine, inputs.num_gpu_blocks, policy, scorer, inputs.clock, hashes
        )


def run(workload: Workload, *, version: str = NEWEST, **given: Any) -> Records:
    """``lengthwise.serving.run`` with vLLM's scheduler; takes the same arguments.

    vLLM's two queues order by arrival or by a score that does not change; policies that preempt or
    re-score need a scheduler of their own.
    """
    _refuse(given["policy"])
    with Vllm(version) as vllm:
        cluster = VllmCluster(vllm, workload, **given)
        cluster.run_until()
    return dataclasses.replace(
        cluster.records(), backend="vllm", backend_reason=f"asked for (vLLM {version})"
    )


def _refuse(policy: SchedulingPolicy) -> None:
    if policy.score.changes and policy.queue == "priority":
        raise InputError(
            f"backend vllm: policy {policy.name!r} re-scores requests, stock vLLM does not"
        )
    if policy.preemption.mode != "none" or policy.admission.reserve > 0:
        raise InputError(
            f"backend vllm: policy {policy.name!r} preempts or reserves beyond stock vLLM"
        )
