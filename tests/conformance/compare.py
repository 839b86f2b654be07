"""Runs a case on both engines and says where they first differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from lengthwise.errors import InputError, LengthwiseError
from lengthwise.serving.reference.run import ReferenceRun
from lengthwise.serving.vllm import Vllm, VllmRun
from tests.conformance.cases import Case

Row = tuple[Any, ...]


def difference(case: Case, vllm: Vllm) -> str | None:
    """The first difference between the reference and vLLM, None if there is none.

    Compared are, step by step, the tokens scheduled for each request and who was preempted, both
    in order (but for those whom the plugin preempts, which are a set); then the log of iterations
    (times, batches, queue lengths, KV blocks in use) and the records. What finished at each step is
    compared by ``VllmScheduler``.
    """
    try:
        ours = ReferenceRun(case.workload, **case.arguments(), check=True)
        plugins = [case.plugin] * case.replicas
        theirs = VllmRun(vllm, case.workload, **case.arguments(), plugins=plugins)
        order = list if case.plugin is None else sorted
        (rows, end), (expected, their_end) = _run(ours, order), _run(theirs, order)
    except LengthwiseError as error:
        return f"{case.name}: {error}"
    for step, (row, want) in enumerate(zip(rows, expected, strict=False)):
        if row != want:
            return f"{case.name}: step {step}: scheduled, preempted are {row}; vLLM's are {want}"
    if (len(rows), end) != (len(expected), their_end):
        return f"{case.name}: {len(rows)} steps, {end}; with vLLM {len(expected)}, {their_end}"
    return None if end else _unequal(case.name, ours, theirs)


def _run(made: ReferenceRun, order: Callable[[list[int]], list[int]]) -> tuple[list[Row], str]:
    """What each step did, and why the run was given up, if requests preempt each other forever."""
    made.steps, end = [], ""
    try:
        made.advance()
    except InputError as error:
        end = str(error)
    rows = [
        (
            replica,
            [(request.id, tokens) for request, tokens in step.scheduled.items()],
            order([request.id for request in step.preempted]),
        )
        for replica, step in made.steps
    ]
    return rows, end


def _unequal(name: str, ours: ReferenceRun, theirs: ReferenceRun) -> str | None:
    a, b = ours.records(), theirs.records()
    assert a.iterations is not None and b.iterations is not None
    for left, right in ((a.iterations, b.iterations), (a, b)):
        for column in dataclasses.fields(left):
            mine, other = getattr(left, column.name), getattr(right, column.name)
            if not isinstance(mine, np.ndarray):
                continue
            same = (mine == other) | ((mine != mine) & (other != other))
            if not same.all():
                row = int(np.flatnonzero(~same)[0])
                return f"{name}: {column.name}[{row}] is {mine[row]}; with vLLM {other[row]}"
    return None
