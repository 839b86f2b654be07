"""The fast twin of the reference engine: the same records, bit for bit, from compiled code.

``supports`` says what it can't run. Scores reach it as machine code (``compile``) where they can,
else it calls them as Python with the arrays that the reference would pass.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from lengthwise.errors import InputError, InvariantError
from lengthwise.serving.fast import state as ks
from lengthwise.serving.fast.calls import ScoreCalls
from lengthwise.serving.fast.compiler.build import compiled
from lengthwise.serving.fast.features import ACCESSORS
from lengthwise.serving.fast.setup import allocate, grow
from lengthwise.serving.inputs import Inputs, prepare
from lengthwise.serving.options import Engine
from lengthwise.serving.records import Iterations, Records
from lengthwise.serving.reference.replica import endless
from lengthwise.serving.scoring import Features
from lengthwise.serving.system import System
from lengthwise.workload import Workload

LONGEST = 2**30  # tokens of a request: the kernel keeps them in 32 bits
MOST_BLOCKS = 2**24  # of a request, with prefix caching: part of a block's key


def supports(workload: Workload, system: System) -> str | None:
    """Why the fast engine can't run this; None if it can."""
    if not system.uniform:
        return "nodes that differ are the reference engine's alone"
    if system.metrics_interval_s > 0:
        return "metrics that are old are the reference engine's alone"
    node = system.nodes[0]
    policy, engine, timing = node.policy, node.engine, node.timing
    if policy.acting_guard is not None:
        return "the starvation guard is the reference engine's alone"
    clock = "pipeline" if engine.async_scheduling and hasattr(timing, "pipeline") else "tables"
    if not hasattr(timing, clock):
        return f"timing {timing.name!r} has no integer tables, which the fast engine needs"
    longest = int((workload["prompt_tokens"] + workload["output_tokens"]).max())
    if longest >= LONGEST:
        return f"the fast engine takes requests of fewer than {LONGEST} tokens"
    if engine.enable_prefix_caching:
        if longest // engine.block_size >= MOST_BLOCKS:
            return f"with prefix caching the fast engine takes fewer than {MOST_BLOCKS} blocks"
        if "hash_block_tokens" in workload and np.ptp(workload["hash_block_tokens"]):
            return "the fast engine needs one hash_block_tokens for the whole workload"
    for reader, score in (("policy", policy.score), ("router", system.routing.score)):
        lacking = ACCESSORS.lacks(score.features, f"{reader} {score.name!r}")
        if lacking is not None:
            return lacking
    calls = ScoreCalls(policy, system.routing, len(system.nodes))
    if engine.async_scheduling and calls.any_python and policy.queue == "priority":
        return f"with asynchronous scheduling the fast engine needs compiled scores: {calls.why}"
    return None


def run(
    workload: Workload,
    system: System,
    predictions: ArrayLike | None = None,
    *,
    seed: int = 0,
    log_iterations: bool = False,
) -> Records:
    """Simulates a workload; what ``supports`` refuses is an ``InputError``."""
    refused = supports(workload, system)
    if refused is not None:
        raise InputError(refused)
    node, routing, replicas = system.nodes[0], system.routing, len(system.nodes)
    policy, engine = node.policy, node.engine
    # the identities of blocks are the fast engine's own business
    plain = dataclasses.replace(engine, enable_prefix_caching=False)
    alike = System((dataclasses.replace(node, engine=plain),) * replicas, routing)
    inputs = prepare(workload, alike, predictions)
    features = Features(workload, inputs.predicted, seed)
    features.require(policy.score.features, f"policy {policy.score.name!r}")
    features.require(routing.score.features, f"router {routing.score.name!r}")
    calls = ScoreCalls(policy, routing, replicas)
    state = allocate(
        workload, inputs, policy, routing, engine, node.timing, calls, features, replicas, seed,
        log_iterations,
    )  # fmt: skip
    return _records(_finish(state, engine, calls), inputs, log_iterations)


def _finish(state: ks.State, engine: Engine, calls: ScoreCalls) -> ks.State:
    """Runs to the end; arrays grow on the way where they must."""
    row = state.run[0]
    clustered = row["replicas"] > 1 or row["closed_loop"]
    entries = compiled(
        MORE=bool(row["by_score"] or row["reserve"] > 0 or clustered),
        POLICY=bool(row["scored"] or row["preemption"]),
        PREFIX=engine.enable_prefix_caching,
        ASYNC=engine.async_scheduling,
    )
    run_until = entries["run_until"]
    if engine.enable_prefix_caching:
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
