"""What a server says of the plugin when it starts."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version

from lengthwise.policies.plugins.settings import Settings
from lengthwise.policy import SchedulingPolicy


def announcement(settings: Settings, policy: SchedulingPolicy) -> str:
    """What runs, in a line."""
    parts = ", ".join(described(settings, policy))
    return f"lengthwise {_version('lengthwise')} in vLLM {_version('vllm')}: {parts}"


def described(settings: Settings, policy: SchedulingPolicy) -> list[str]:
    """What runs, in a few words for each part of it."""
    guard = settings.guard_of(policy)
    order = f"policy {settings.bundle or settings.policy} (score {policy.name})"
    if policy.queue == "fcfs":
        order = "policy fcfs (vLLM's own class)"
        if settings.predictor_folder:
            order = "policy fcfs (vLLM's own order; shadow mode)"
    return [
        order,
        f"preemption {policy.preemption.mode}",
        f"predictor {settings.predictor_folder or 'none'}",
        f"guard {guard.ratio:g} from {guard.floor_s:g} s"
        if guard.ratio and policy.queue != "fcfs"
        else "guard off",
        f"record {settings.record or 'none'}",
    ]


def _version(package: str) -> str:
    """Of what runs; builds of vLLM have other names, and a source tree has none."""
    module = importlib.import_module(package)
    try:
        return str(getattr(module, "__version__", "") or version(package))
    except PackageNotFoundError:
        return "(not installed)"
