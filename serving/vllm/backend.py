"""Any workload through vLLM's own scheduler, in simulated time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from numpy.typing import ArrayLike

from lengthwise.errors import InputError
from lengthwise.policy import SchedulingPolicy
from lengthwise.prediction import Predictions
from lengthwise.registry import loader
from lengthwise.serving.events import Fail
from lengthwise.serving.records import Records
from lengthwise.serving.reference.replica import Replica
from lengthwise.serving.reference.run import TO_THE_END, ReferenceRun
from lengthwise.serving.scoring import Scorer
from lengthwise.serving.system import Stop, Stops, System
from lengthwise.serving.vllm.client import Vllm, VllmScheduler
from lengthwise.serving.vllm.environment import NEWEST
from lengthwise.workload import Workload

# The plugin without its safeguards against time: here only simulated time passes.
UNHURRIED = {"policy_timeout_s": 1e9}


class VllmRun(ReferenceRun):
    """A run whose nodes are schedulers of a ``Vllm`` process; same arguments and events.

    ``plugins`` are, node by node, the settings of lengthwise's vLLM plugin, None for a node that is
    stock vLLM, as all are without ``plugins``.
    """

    def __init__(
        self,
        vllm: Vllm,
        workload: Workload,
        system: System,
        predictions: Predictions | ArrayLike | None = None,
        *,
        plugins: Sequence[dict[str, Any] | None] | None = None,
        seed: int = 0,
        log_iterations: bool = False,
    ) -> None:
        if system.kv_transfer is not None:
            raise InputError(
                "backend vllm can't run roles prefill and decode: backend reference can"
            )
        self._vllm = vllm
        self._plugins = plugins or (None,) * len(system.nodes)
        super().__init__(workload, system, predictions, seed=seed, log_iterations=log_iterations)

    def advance(self, stops: Stops = TO_THE_END) -> Stop:
        """As in ``ReferenceRun``; at the end vLLM forgets the schedulers."""
        stop = super().advance(stops)
        if stop.kind == "done":
            for node in self.nodes:
                assert isinstance(node.scheduler, VllmScheduler)
                node.scheduler.drop()
        return stop

    def _node(self, index: int, scorer: Scorer) -> Replica:
        decides = VllmScheduler(
            self._vllm, index, self.system.nodes[index], scorer, self._inputs, self._workload,
            self._plugins[index],
        )  # fmt: skip
        return Replica(index, decides, self._inputs.nodes[index].clock, self._inputs.slow[index])


def run(
    workload: Workload,
    system: System,
    predictions: Predictions | ArrayLike | None = None,
    *,
    version: str = NEWEST,
    seed: int = 0,
    log_iterations: bool = False,
) -> Records:
    """``lengthwise.serving.run`` with vLLM's scheduler.

    ``fcfs`` is stock vLLM; so are scores that never change and can't be spelled (vLLM's priority
    queue). Every other policy goes through lengthwise's plugin for vLLM. Raises ``InputError`` for
    what neither can do.
    """
    if any(isinstance(event, Fail) for event in system.events):
        raise InputError("backend vllm: nodes that fail are simulated by the other backends only")
    policies = {id(node.policy): node.policy for node in system.nodes}
    settings = {at: plugin_settings(policy) for at, policy in policies.items()}
    how = " and ".join(
        "its own queue" if plugin is None else f"with lengthwise's plugin, {plugin['policy']}"
        for plugin in settings.values()
    )
    with Vllm(version) as vllm:
        made = VllmRun(
            vllm, workload, system, predictions, seed=seed, log_iterations=log_iterations,
            plugins=[settings[id(node.policy)] for node in system.nodes],
        )  # fmt: skip
        made.advance()
    reason = f"asked for: vLLM {version}, {how}"
    return dataclasses.replace(made.records(), backend="vllm", backend_reason=reason)


def plugin_settings(policy: SchedulingPolicy) -> dict[str, Any] | None:
    """How the plugin is told to follow a policy; None where stock vLLM already does."""
    if policy.preemption.mode == "swap" or policy.admission.reserve > 0:
        raise InputError(
            f"backend vllm: policy {policy.name!r} swaps or reserves KV blocks, which vLLM can't"
        )
    if policy.queue == "fcfs":
        return None
    if _is_spelled(policy):
        guard = {"guard": 0.0} if policy.guard is None else {}  # its own, or none
        return {"policy": policy.name, **guard, **UNHURRIED}
    if policy.score.changes or policy.preemption.mode != "none":
        raise InputError(
            f"backend vllm: policy {policy.name!r} has no spelling that vLLM's process could load: "
            "give it as a name, FILE.py:FUNCTION or the folder of a bundle"
        )
    return None


def _is_spelled(policy: SchedulingPolicy) -> bool:
    """Whether loading the policy's name gives the same policy."""
    try:
        found = loader("policy")(policy.name)
    except InputError:
        return False
    if ".py:" in policy.name:  # loaded anew, the function is another object
        score = dataclasses.replace(found.score, function=policy.score.function)
        found = dataclasses.replace(found, score=score)
    return bool(dataclasses.replace(found, label="") == dataclasses.replace(policy, label=""))
