"""Any workload through vLLM's own scheduler, in simulated time."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from lengthwise.errors import InputError
from lengthwise.policy import SchedulingPolicy
from lengthwise.registry import resolve
from lengthwise.serving.options import Engine
from lengthwise.serving.records import Records
from lengthwise.serving.reference.cluster import Cluster
from lengthwise.serving.reference.replica import Replica
from lengthwise.serving.scoring import Scorer
from lengthwise.serving.vllm.client import Vllm, VllmReplica
from lengthwise.serving.vllm.environment import NEWEST
from lengthwise.workload import Workload

# The plugin without its safeguards against time: here only simulated time passes.
UNHURRIED = {"guard": 0.0, "policy_timeout_s": 1e9}


class VllmCluster(Cluster):
    """A cluster whose replicas are schedulers of a ``Vllm`` process; same arguments and events.

    ``plugin`` are the settings of lengthwise's vLLM plugin; None is stock vLLM.
    """

    def __init__(
        self,
        vllm: Vllm,
        workload: Workload,
        *,
        plugin: dict[str, Any] | None = None,
        **given: Any,
    ) -> None:
        self._vllm, self._plugin = vllm, plugin
        super().__init__(workload, **given)

    def run_until(
        self, *, route: bool = False, admit: bool = False
    ) -> Literal["route", "admit", "done"]:
        """As in ``Cluster``; at the end vLLM forgets the schedulers."""
        why = super().run_until(route=route, admit=admit)
        if why == "done":
            for replica in self.replicas:
                assert isinstance(replica, VllmReplica)
                replica.drop()
        return why

    def _replica(
        self, index: int, engine: Engine, policy: SchedulingPolicy, scorer: Scorer
    ) -> Replica:
        return VllmReplica(
            self._vllm, index, engine, policy, scorer, self._inputs, self._workload, self._plugin
        )


def run(workload: Workload, *, version: str = NEWEST, **given: Any) -> Records:
    """``lengthwise.serving.run`` with vLLM's scheduler; takes the same arguments.

    ``fcfs`` is stock vLLM; so are scores that never change and can't be spelled (vLLM's priority
    queue). Every other policy goes through lengthwise's plugin for vLLM. Raises ``InputError`` for
    what neither can do.
    """
    plugin = plugin_settings(given["policy"])
    how = "its own queue" if plugin is None else f"with lengthwise's plugin, {plugin['policy']}"
    with Vllm(version) as vllm:
        cluster = VllmCluster(vllm, workload, plugin=plugin, **given)
        cluster.run_until()
    reason = f"asked for: vLLM {version}, {how}"
    return dataclasses.replace(cluster.records(), backend="vllm", backend_reason=reason)


def plugin_settings(policy: SchedulingPolicy) -> dict[str, Any] | None:
    """How the plugin is told to follow a policy; None where stock vLLM already does."""
    if policy.preemption.mode == "swap" or policy.admission.reserve > 0:
        raise InputError(
            f"backend vllm: policy {policy.name!r} swaps or reserves KV blocks, which vLLM can't"
        )
    if policy.queue == "fcfs":
        return None
    if _is_spelled(policy):
        return {"policy": policy.name, **UNHURRIED}
    if policy.score.changes or policy.preemption.mode != "none":
        raise InputError(
            f"backend vllm: policy {policy.name!r} has no spelling that vLLM's process could load: "
            "give it as a name, FILE.py:FUNCTION or the folder of a bundle"
        )
    return None


def _is_spelled(policy: SchedulingPolicy) -> bool:
    """Whether loading the policy's name gives the same policy."""
    load = resolve("lengthwise.policies.load:load_policy")
    try:
        found = load(policy.name)
    except InputError:
        return False
    if ".py:" in policy.name:  # loaded anew, the function is another object
        score = dataclasses.replace(found.score, function=policy.score.function)
        found = dataclasses.replace(found, score=score)
    return bool(dataclasses.replace(found, label="") == dataclasses.replace(policy, label=""))
