"""One call from a workload to its records, on the engine that fits."""

from __future__ import annotations

import dataclasses
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

from numpy.typing import ArrayLike

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.policy import RoutingPolicy, SchedulingPolicy
from lengthwise.protocols import TimingModel
from lengthwise.serving.options import Engine
from lengthwise.serving.records import Records
from lengthwise.serving.reference.cluster import Cluster
from lengthwise.workload import Workload

Backend = Literal["auto", "fast", "reference", "vllm"]
BACKENDS = ("auto", "fast", "reference", "vllm")
KERNEL = "lengthwise.serving.fast.run"


def run(
    workload: Workload,
    *,
    policy: SchedulingPolicy,
    routing: RoutingPolicy,
    engine: Engine,
    timing: TimingModel,
    predicted_tokens: ArrayLike | None = None,
    replicas: int = 1,
    seed: int = 0,
    backend: Backend = "auto",
    log_iterations: bool = False,
    check: bool = False,
) -> Records:
    """Simulates a workload; ``Records.backend`` says on which engine, ``backend_reason`` why.

    "reference" is the readable engine, "fast" its compiled twin, "vllm" vLLM's own scheduler in
    simulated time; "auto" takes the twin where it supports the run and the reference elsewhere.
    """
    if backend not in BACKENDS:
        raise UnknownNameError("backend", str(backend), BACKENDS)
    given: dict[str, Any] = {
        "policy": policy, "routing": routing, "engine": engine, "timing": timing,
        "predicted_tokens": predicted_tokens, "replicas": replicas, "seed": seed,
        "log_iterations": log_iterations,
    }  # fmt: skip
    if backend == "vllm":
        return import_module("lengthwise.serving.vllm").run(workload, **given)  # type: ignore[no-any-return]
    reason = "asked for"
    if backend != "reference":
        refused = _refused_by_kernel(workload, given, check)
        if refused is None:
            records: Records = import_module(KERNEL).run(workload, **given)
            chosen = "asked for" if backend == "fast" else "the compiled engine supports this run"
            return dataclasses.replace(records, backend="fast", backend_reason=chosen)
        if backend == "fast":
            raise InputError(f"backend fast can't run this: {refused}")
        reason = refused
    cluster = Cluster(workload, **given, check=check)
    cluster.run_until()
    return dataclasses.replace(cluster.records(), backend_reason=reason)


def _refused_by_kernel(workload: Workload, given: dict[str, Any], check: bool) -> str | None:
    """Why the compiled engine can't run this, None if it can."""
    if find_spec(KERNEL) is None:
        return "the compiled engine is not installed"
    if check:
        return "invariants are checked by the reference engine alone"
    if given["policy"].guard.ratio > 0:
        return "the starvation guard is the reference engine's alone"
    refused: str | None = import_module(KERNEL).supports(workload, **given)
    return refused
