"""The arrays that a run of the fast engine starts from."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.features import get
from lengthwise.policy import RoutingPolicy, SchedulingPolicy, Score
from lengthwise.serving.fast import state as ks
from lengthwise.serving.fast.calls import ScoreCalls
from lengthwise.serving.inputs import Inputs
from lengthwise.serving.options import Engine
from lengthwise.serving.scoring import Features
from lengthwise.workload import Workload


def allocate(
    workload: Workload,
    inputs: Inputs,
    policy: SchedulingPolicy,
    routing: RoutingPolicy,
    engine: Engine,
    timing: Any,
    calls: ScoreCalls,
    features: Features,
    replicas: int,
    seed: int,
    log: bool,
) -> ks.State:
    """A run that is about to begin."""
    n, seats = len(workload), engine.max_num_seqs
    by_score = policy.queue == "priority"
    closed = inputs.think_ps is not None
    capacity = 4 * seats + 64
    run = _describe(inputs, policy, routing, engine, n, replicas, seed, log)
    run["at_arrival"] = by_score and calls.policy_compiled
    run["callback"] = calls.any_python
    run["score_at"], run["router_at"] = calls.policy_at, calls.router_at
    score = _none(np.float64)
    if by_score and not run["every"][0]:
        score = np.zeros(n)
        if not calls.policy_compiled:
            score = _ahead(policy.score, features, inputs.arrival_ps)
    first_child, sibling = _families(workload) if closed else (_none(np.int32), _none(np.int32))
    return ks.State(
        run=run, replica=_replicas(inputs, seats, replicas),
        end=np.full(replicas, ks.NEVER), step=np.zeros((replicas, 2), ks.STEP),
        slot=_slots(seats, replicas), acting=np.zeros((replicas, seats), np.int32),
        first=np.zeros((2 * replicas, seats), np.int32),
        orphan=np.zeros((replicas, 2 * seats), np.int32),
        wheel=np.full((replicas, ks.WHEEL), ks.NONE, np.int32),
        hist=np.zeros((replicas, engine.block_size), np.int64),
        heap=np.zeros((replicas, capacity if by_score else 1), ks.WAITING),
        stash=np.zeros(capacity, ks.WAITING),
        stale=np.zeros((replicas, capacity if by_score else 1), np.int32),
        log=np.zeros(1024 if log else 0, ks.LOG),
        rows=np.zeros(max(capacity, replicas), ks.FEATURE_ROW),
        out=np.zeros(max(capacity, replicas)), places=np.zeros(replicas, np.int64),
        **_timing(run, inputs, engine, timing), **_blocks(run, workload, engine, replicas),
        arrival=inputs.arrival_ps.copy() if closed else inputs.arrival_ps,
        planned=inputs.arrival_ps,
        reach_ps=_none(np.int64) if inputs.nodes[0].clock.pipeline is None else inputs.reach_ps,
        prompt=workload["prompt_tokens"], output=workload["output_tokens"],
        predicted=_none(np.float64) if inputs.predicted is None else inputs.predicted,
        priority=_column(workload, "priority", np.int64),
        deadline=_column(workload, "deadline_s", np.float64),
        score=score, link=np.zeros(n, np.int32), generated=np.zeros(n, np.int32),
        reach=np.zeros(n, np.int32),
        flight=np.zeros(n if engine.async_scheduling else 0, np.int32),
        stored=np.zeros(n if policy.preemption.mode == "swap" else 0, np.int32),
        think=_none(np.int64) if inputs.think_ps is None else inputs.think_ps,
        first_child=first_child, sibling=sibling,
        calendar=np.zeros(n if closed else 0, np.int32),
        roots=np.flatnonzero(workload["parent"] < 0).astype(np.int32) if closed
        else _none(np.int32),
        where=np.zeros(n, np.int64), scheduled=np.zeros(n, np.int64),
        first_token=np.zeros(n, np.int64), finish=np.zeros(n, np.int64),
        preemptions=np.zeros(n, np.int64), recomputed=np.zeros(n, np.int64),
        cached=np.zeros(n, np.int64),
    )  # fmt: skip


def grow(state: ks.State) -> ks.State:
    """The same state in arrays of twice the size, where those can overflow."""

    def doubled(name: str, axis: int = 0) -> NDArray[Any]:
        array = getattr(state, name)
        return np.concatenate((array, np.zeros_like(array)), axis=axis)

    changed = {"log": doubled("log")}
    if state.run[0]["by_score"]:
        changed |= {name: doubled(name, 1) for name in ("heap", "stale")}
        changed |= {name: doubled(name) for name in ("stash", "rows", "out")}
    return state._replace(**changed)


def _describe(
    inputs: Inputs,
    policy: SchedulingPolicy,
    routing: RoutingPolicy,
    engine: Engine,
    requests: int,
    replicas: int,
    seed: int,
    log: bool,
) -> NDArray[Any]:
    """The constants of a run, shape (1,)."""
    size, rule, changes = engine.block_size, policy.preemption, policy.score.changes
    names = {*policy.score.features, *routing.score.features}
    values: dict[str, Any] = {
        "requests": requests, "replicas": replicas,
        "seed": np.uint64(seed % 2**64).astype(np.int64),
        "closed_loop": inputs.think_ps is not None,
        "max_seqs": engine.max_num_seqs, "max_tokens": engine.max_num_batched_tokens,
        "block_size": size, "shift": size.bit_length() - 1 if size & (size - 1) == 0 else -1,
        "blocks": inputs.nodes[0].num_gpu_blocks - 1,
        "watermark": int(engine.watermark * inputs.nodes[0].num_gpu_blocks),
        "threshold": engine.long_prefill_token_threshold,
        "chunked": engine.enable_chunked_prefill, "full_isl": engine.scheduler_reserve_full_isl,
        "by_score": policy.queue == "priority", "scored": bool(changes),
        "every": bool(changes & {"clock", "state"}),
        "reads_times": bool({"arrival_s", "now_s"} & names),
        "reads_request": bool(
            {"prompt_tokens", "predicted_tokens", "priority", "deadline_s"} & names
        ),
        "reads_replica": any(get(name).changes == "state" for name in names),
        "draws": "random_draw" in names, "weighted": "outstanding_tokens" in names,
        "preemption": rule.mode != "none", "max_per_step": rule.max_per_step,
        "past_preemption": engine.schedule_past_preemption,
        "applies_alone": engine.long_prefill_applies_alone,
        "swap_ps": inputs.nodes[0].clock.swap_ps_per_token, "choices": routing.choices, "log": log,
        "overhead": rule.overhead_tokens, "price": rule.price, "margin": rule.margin,
        "protect_after": rule.protect_after,
        "reserve": policy.admission.reserve,
    }  # fmt: skip
    run = np.zeros(1, ks.RUN)
    for name, value in values.items():
        run[name] = value
    return run


def _replicas(inputs: Inputs, seats: int, replicas: int) -> NDArray[Any]:
    rows = np.zeros(replicas, ks.REPLICA)
    for name in ("head", "tail", "queue_head", "queue_tail", "oldest", "newest"):
        rows[name] = ks.NONE
    blocks = inputs.nodes[0].num_gpu_blocks
    rows["free"] = blocks - 1
    rows["free_slot"] = np.arange(replicas) * seats
    rows["blank"] = 1 if blocks > 1 else ks.NONE  # block 0 is vLLM's null block
    return rows


def _slots(seats: int, replicas: int) -> NDArray[Any]:
    rows = np.zeros(replicas * seats, ks.SLOT)
    rows["next"] = np.arange(1, replicas * seats + 1)
    rows["next"][seats - 1 :: seats] = ks.NONE
    return rows


def _timing(run: Any, inputs: Inputs, engine: Engine, timing: Any) -> dict[str, NDArray[Any]]:
    """The tables of one clock or of two; their linear terms go into ``run``."""
    two = inputs.nodes[0].clock.pipeline
    if two is None:
        one = timing.tables(engine.max_num_batched_tokens, engine.max_num_seqs)
        given = one.terms
        tables = {
            "decode_ps": one.decode_ps, "mixed_ps": one.mixed_ps,
            "decode_context_ps": _none(np.int64), "mixed_launch_ps": _none(np.int64),
        }  # fmt: skip
    else:
        run["pipeline"] = True
        given = two.terms
        tables = {
            "decode_ps": two.decode_ps, "mixed_ps": two.mixed_ps,
            "decode_context_ps": two.decode_context_ps, "mixed_launch_ps": two.mixed_launch_ps,
        }  # fmt: skip
    for name, ps in given.items():
        run[f"{name}_ps"] = ps
    return tables


def _blocks(run: Any, workload: Workload, engine: Engine, replicas: int) -> dict[str, NDArray[Any]]:
    """What prefix caching needs: blocks one by one, and the identities of prompts' prefixes."""
    grid = np.zeros((1, 0), np.int32)
    if not engine.enable_prefix_caching:
        return {
            "block": np.zeros((1, 0), ks.BLOCK), "bucket": grid, "bucket_end": grid,
            "held": grid, "hit": _none(np.int64), "hashes": _none(np.int64),
            "prefix": np.zeros((0, 3), np.int64), "chain": _none(np.int64),
            "chain_at": _none(np.int64),
        }  # fmt: skip
    count = int(run["blocks"][0]) + 1
    block = np.zeros((replicas, count), ks.BLOCK)
    block["newer"] = np.arange(1, count + 1)
    block["newer"][:, -1] = ks.NONE
    buckets = 1 << (2 * count).bit_length()
    run["bucket_mask"] = buckets - 1
    longest = int((workload["prompt_tokens"] + workload["output_tokens"]).max())
    most = -(-longest // engine.block_size)
    hashes, at = _hashes(run, workload)
    size = 1 << (2 * len(hashes) + 2).bit_length()
    return {
        "block": block, "bucket": np.full((replicas, buckets), ks.NONE, np.int32),
        "bucket_end": np.full((replicas, buckets), ks.NONE, np.int32),
        "held": np.zeros((replicas * engine.max_num_seqs, most), np.int32),
        "hit": np.zeros(most, np.int64), "hashes": hashes,
        "prefix": np.full((size, 3), ks.NONE, np.int64),
        "chain": np.zeros(len(hashes), np.int64), "chain_at": at,
    }  # fmt: skip


def _hashes(run: Any, workload: Workload) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All requests' prefix hashes and, of shape (n + 1,), where each request's begin."""
    at = np.zeros(len(workload) + 1, np.int64)
    run["hash_tokens"] = 1
    if "prefix_hashes" not in workload:
        return _none(np.int64), at
    if "hash_block_tokens" not in workload:
        raise InputError(f"{workload.name}: prefix_hashes need the column hash_block_tokens")
    if workload["hash_block_tokens"][0] < 1:
        raise InputError(f"{workload.name}: hash_block_tokens must be 1 or more")
    run["hash_tokens"] = workload["hash_block_tokens"][0]
    column = workload["prefix_hashes"]
    np.cumsum(np.fromiter(map(len, column), np.int64, len(column)), out=at[1:])
    try:
        hashes = np.fromiter(chain.from_iterable(column), np.int64, int(at[-1]))
    except OverflowError:  # hashes of more than 64 bits: numbered in order of appearance
        seen: dict[int, int] = {}
        numbered = (seen.setdefault(int(h), len(seen)) for h in chain.from_iterable(column))
        hashes = np.fromiter(numbered, np.int64, int(at[-1]))
    return hashes, at


def _ahead(score: Score, features: Features, arrival_ps: NDArray[np.int64]) -> NDArray[np.float64]:
    """Scores at arrival as one array; it is written to where scores change."""
    values = features.at_arrival(score.features, arrival_ps)
    scores = np.asarray(score.evaluate(values), dtype=np.float64)
    if np.isnan(scores).any():
        raise InputError(f"policy {score.name!r} gave NaN for a score")
    return np.array(np.broadcast_to(scores, arrival_ps.shape))


def _none(kind: Any) -> NDArray[Any]:
    return np.zeros(0, kind)


def _column(workload: Workload, name: str, kind: Any) -> NDArray[Any]:
    return workload[name] if name in workload else _none(kind)


def _families(workload: Workload) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The first child of each request and the next child of the same parent, both (n,)."""
    parent = workload["parent"].tolist()
    first = np.full(len(parent), ks.NONE, np.int32)
    sibling = np.full(len(parent), ks.NONE, np.int32)
    for child in range(len(parent) - 1, -1, -1):
        if parent[child] >= 0:
            sibling[child] = first[parent[child]]
            first[parent[child]] = child
    return first, sibling
