"""From a workload and a system to records, or to a run under way, on the engine that fits."""

from __future__ import annotations

import dataclasses
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

from numpy.typing import ArrayLike

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.prediction import Predictions
from lengthwise.serving.records import Records
from lengthwise.serving.reference.run import ReferenceRun
from lengthwise.serving.system import Run, System
from lengthwise.workload import Workload

Backend = Literal["auto", "fast", "reference", "vllm"]
BACKENDS = ("auto", "fast", "reference", "vllm")
KERNEL = "lengthwise.serving.fast.run"


def run(
    workload: Workload,
    system: System,
    predictions: Predictions | ArrayLike | None = None,
    *,
    seed: int = 0,
    backend: Backend = "auto",
    log_iterations: bool = False,
    check: bool = False,
) -> Records:
    """Simulates a workload; ``Records.backend`` says on which engine, ``backend_reason`` why.

    ``predictions`` may be an array of predicted answer lengths, (n,), None where nothing was
    predicted; none exceeds the workload's ``max_tokens``.
    "reference" is the readable engine, "fast" its compiled twin, "vllm" vLLM's own scheduler in
    simulated time; "auto" takes the twin where it supports the run and the reference elsewhere.
    """
    if backend not in BACKENDS:
        raise UnknownNameError("backend", str(backend), BACKENDS)
    given: dict[str, Any] = {"seed": seed, "log_iterations": log_iterations}
    if backend == "vllm":
        vllm = import_module("lengthwise.serving.vllm")
        return vllm.run(workload, system, predictions, **given)  # type: ignore[no-any-return]
    reason = "asked for"
    if backend != "reference":
        refused = _refused_by_kernel(workload, system, check)
        if refused is None:
            records: Records = import_module(KERNEL).run(workload, system, predictions, **given)
            chosen = "asked for" if backend == "fast" else "the compiled engine supports this run"
            return dataclasses.replace(records, backend="fast", backend_reason=chosen)
        if backend == "fast":
            raise InputError(f"backend fast can't run this: {refused}")
        reason = refused
    made = ReferenceRun(workload, system, predictions, **given, check=check)
    made.advance()
    return dataclasses.replace(made.records(), backend_reason=reason)


def begin(
    workload: Workload,
    system: System,
    predictions: Predictions | ArrayLike | None = None,
    *,
    seed: int = 0,
    backend: Literal["reference", "fast"] = "reference",
) -> Run:
    """A run that stands at its beginning, for those who decide on the way.

    Both engines take the same steps; the fast one compiles for seconds when it is new.
    """
    if backend == "fast":
        run: Run = import_module(KERNEL).FastRun(workload, system, predictions, seed=seed)
        return run
    if backend != "reference":
        raise UnknownNameError("backend of a run", str(backend), ("reference", "fast"))
    return ReferenceRun(workload, system, predictions, seed=seed)


def _refused_by_kernel(workload: Workload, system: System, check: bool) -> str | None:
    """Why the compiled engine can't run this, None if it can."""
    if find_spec(KERNEL) is None:
        return "the compiled engine is not installed"
    if check:
        return "invariants are checked by the reference engine alone"
    refused: str | None = import_module(KERNEL).supports(workload, system)
    return refused
