"""The fast twin of the reference engine: the same records, bit for bit, from compiled code.

``supports`` says what it can't run. Scores reach it as machine code (``compile``) where they can,
else it calls them as Python with the arrays that the reference would pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from lengthwise.errors import InputError, InvariantError
from lengthwise.prediction import Predictions
from lengthwise.serving.fast import state as ks
from lengthwise.serving.fast.calls import ScoreCalls, why_python
from lengthwise.serving.fast.compiler.build import compiled
from lengthwise.serving.fast.features import ACCESSORS
from lengthwise.serving.fast.nodes import Kinds, kinds_of
from lengthwise.serving.fast.setup import allocate, grow
from lengthwise.serving.inputs import Inputs, prepare
from lengthwise.serving.records import Iterations, Records
from lengthwise.serving.reference.replica import endless
from lengthwise.serving.scoring import Features
from lengthwise.serving.system import Node, System
from lengthwise.workload import Workload

LONGEST = 2**30  # tokens of a request: the kernel keeps them in 32 bits
MOST_BLOCKS = 2**24  # of a request, with prefix caching: part of a block's key


def supports(workload: Workload, system: System) -> str | None:
    """Why the fast engine can't run this; None if it can."""
    if system.metrics_interval_s > 0:
        return "metrics that are old are the reference engine's alone"
    longest = int((workload["prompt_tokens"] + workload["output_tokens"]).max())
    if longest >= LONGEST:
        return f"the fast engine takes requests of fewer than {LONGEST} tokens"
    nodes, _ = kinds_of(system.nodes)
    lacking = ACCESSORS.lacks(
        system.routing.score.features, f"router {system.routing.score.name!r}"
    )
    for node in nodes:
        lacking = lacking or _lacks(workload, node, longest)
    return lacking


def _lacks(workload: Workload, node: Node, longest: int) -> str | None:
    """Why the fast engine can't run a node; None if it can."""
    policy, engine, timing = node.policy, node.engine, node.timing
    clock = "pipeline" if engine.async_scheduling and hasattr(timing, "pipeline") else "tables"
    if not hasattr(timing, clock):
        return f"timing {timing.name!r} has no integer tables, which the fast engine needs"
    if engine.enable_prefix_caching:
        if longest // engine.block_size >= MOST_BLOCKS:
            return f"with prefix caching the fast engine takes fewer than {MOST_BLOCKS} blocks"
        if "hash_block_tokens" in workload and np.ptp(workload["hash_block_tokens"]):
            return "the fast engine needs one hash_block_tokens for the whole workload"
    lacking = ACCESSORS.lacks(policy.score.features, f"policy {policy.score.name!r}")
    if lacking is None and engine.async_scheduling and policy.queue == "priority":
        why = why_python(policy.score)
        if why is not None:
            lacking = f"with asynchronous scheduling the fast engine needs compiled scores: {why}"
    return lacking


def run(
    workload: Workload,
    system: System,
    predictions: Predictions | ArrayLike | None = None,
    *,
    seed: int = 0,
    log_iterations: bool = False,
) -> Records:
    """Simulates a workload; what ``supports`` refuses is an ``InputError``."""
    refused = supports(workload, system)
    if refused is not None:
        raise InputError(refused)
    first, of = kinds_of(system.nodes)
    inputs = _prepare(workload, system, first, of, predictions)
    kinds = Kinds(first, tuple(inputs.nodes[of.index(kind)] for kind in range(len(first))), of)
    features = Features(workload, inputs.predictions, seed)
    for node in first:
        features.require(node.policy.score.features, f"policy {node.policy.score.name!r}")
    routing = system.routing
    features.require(routing.score.features, f"router {routing.score.name!r}")
    calls = ScoreCalls([node.policy for node in first], routing, len(of))
    state = allocate(workload, inputs, kinds, routing, calls, features, seed, log_iterations)
    return _records(_finish(state, calls), inputs, log_iterations)


def _prepare(
    workload: Workload,
    system: System,
    kinds: Sequence[Node],
    of: Sequence[int],
    predictions: Predictions | ArrayLike | None,
) -> Inputs:
    """The run's inputs without the identities of blocks, which are the fast engine's own."""
    plain = [
        dataclasses.replace(
            node, engine=dataclasses.replace(node.engine, enable_prefix_caching=False)
        )
        for node in kinds
    ]
    nodes = tuple(plain[kind] for kind in of)
    return prepare(workload, dataclasses.replace(system, nodes=nodes), predictions)


def _finish(state: ks.State, calls: ScoreCalls) -> ks.State:
    """Runs to the end; arrays grow on the way where they must."""
    row, node = state.run[0], state.node
    clustered = row["replicas"] > 1 or row["closed_loop"]
    entries = compiled(
        MORE=bool(clustered or node["by_score"].any() or (node["reserve"] > 0).any()),
        POLICY=bool(node["scored"].any() or node["preemption"].any()),
        PREFIX=bool(node["caching"].any()),
        GUARD=bool(node["guarded"].any()),
        ASYNC=bool((node["depth"] > 1).any()),
    )
    run_until = entries["run_until"]
    if node["caching"].any():
        table = ks.address_table(state)
        entries["number_prefixes"](table.ctypes.data)
        state = state._replace(prefix=state.prefix[:0], hashes=state.hashes[:0])
    while True:
        calls.bind(state)
        table = ks.address_table(state)
        code = run_until(table.ctypes.data)
        if code == ks.DONE:
            return state
        if code == ks.GROW:
            state = grow(state)
        elif code == ks.ENDLESS:
            at = int(row["at_replica"])
            requests = int(state.replica[at]["running"] + state.replica[at]["waiting"])
            raise endless(requests, at, int(row["now"]))
        elif code == ks.NAN:
            raise InputError(f"policy or router {calls.names} gave NaN for a score")
        elif code == ks.RAISED:
            calls.reraise()
        else:
            raise InvariantError(f"the fast engine stopped with code {code}")


def _records(state: ks.State, inputs: Inputs, log: bool) -> Records:
    iterations = None
    if log:
        rows = state.log[: state.run[0]["log_rows"]]
        iterations = Iterations(*(np.ascontiguousarray(rows[name]) for name in ks.LOG.names or ()))
    predicted = inputs.predicted
    return Records(
        replica=state.where, arrival_ps=state.arrival, scheduled_ps=state.scheduled,
        first_token_ps=state.first_token, finish_ps=state.finish,
        prompt_tokens=state.prompt, output_tokens=state.output,
        predicted_tokens=np.full(len(state.where), np.nan) if predicted is None else predicted,
        preemptions=state.preemptions, recomputed_tokens=state.recomputed,
        cached_tokens=state.cached, backend="fast", iterations=iterations,
    )  # fmt: skip
