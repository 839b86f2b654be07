"""The arrays that a run of the fast engine starts from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.features import FEATURES
from lengthwise.policy import RoutingPolicy
from lengthwise.prediction import CURVES
from lengthwise.serving.fast import state as ks
from lengthwise.serving.fast.calls import ScoreCalls
from lengthwise.serving.fast.features import ACCESSORS, mask
from lengthwise.serving.fast.nodes import Kinds, describe
from lengthwise.serving.fast.prefixes import Prefixes, prefixes_of
from lengthwise.serving.fast.tabulated import curve_arrays
from lengthwise.serving.inputs import Inputs
from lengthwise.serving.scoring import Features
from lengthwise.workload import Workload

TENANTS = {name for name, feature in FEATURES.items() if feature.of == "tenant"}


def allocate(
    workload: Workload,
    inputs: Inputs,
    kinds: Kinds,
    routing: RoutingPolicy,
    calls: ScoreCalls,
    features: Features,
    seed: int,
    log: bool,
    interval_ps: int,
    stops: bool,
    shown: Sequence[str] | None = None,
) -> ks.State:
    """A run that is about to begin; ``stops`` if its caller may be asked on the way.

    ``shown`` are the features that such a caller reads, None for any.
    """
    n = len(workload)
    closed = inputs.think_ps is not None
    run = _describe(inputs, kinds, routing, n, seed, log)
    run["router_at"], run["interval"] = calls.router_at, interval_ps
    run["scraped"] = ks.NONE
    names = _names(kinds, routing)
    apart = inputs.transfers
    if apart is not None:
        names |= set(apart.routing.score.features)
        run["min_prompt"], run["latency"] = apart.min_prompt, apart.latency_ps
        run["decode_at"], run["decode_choices"] = calls.decode_at, apart.routing.choices
        run["decode_reads"] = mask(apart.routing.score.features)
    if shown is not None:
        names |= set(shown)
    elif stops:  # its caller may read any feature: what is counted all along is counted for all
        given = () if inputs.predictions is None else inputs.predictions.curves
        told = {name for name in ACCESSORS if name not in CURVES or name in given}
        names |= told if "tenant" in workload else told - TENANTS
    run["reads"] = mask(names)
    prefixes = Prefixes(_none(np.int64), _none(np.int64), _none(np.int64))
    if kinds.caching:
        prefixes = _prefixes(run, workload)
    tables = describe(workload, inputs.arrival_ps, kinds, calls, features)
    node = tables["node"]
    replica, queues = _replicas(kinds, node)
    if apart is not None:
        node["block_ps"][list(kinds.of)] = apart.block_ps
    replica["slow_end"] = np.cumsum([len(windows) for windows in inputs.slow])
    replica["slow_at"] = _before(np.array([len(windows) for windows in inputs.slow]))
    seats = int(replica["seats_end"][-1])
    largest = max(int(replica["capacity"].max()), kinds.largest("max_num_seqs"))
    first_child, sibling = _families(workload) if closed else (_none(np.int32), _none(np.int32))
    replicas = len(replica)
    happens = bool(inputs.turns or any(inputs.slow))
    run["open"] = replicas
    return ks.State(
        run=run, replica=replica, **tables,
        end=np.full(replicas, ks.NEVER), step=np.zeros((replicas, 2), ks.STEP),
        slot=_slots(replica), acting=np.zeros(seats, np.int32),
        first=np.zeros(2 * seats, np.int32), orphan=np.zeros(2 * seats, np.int32),
        wheel=np.full((replicas, ks.WHEEL), ks.NONE, np.int32),
        hist=np.zeros((replicas, kinds.largest("block_size")), np.int64),
        residue=np.full(
            (replicas if kinds.caching else 0, kinds.largest("block_size")), ks.NONE, np.int32
        ),
        heap=np.zeros(queues, ks.WAITING), stash=np.zeros(largest, ks.WAITING),
        ends=np.zeros(
            kinds.largest("max_num_seqs") + 1 if (node["reserve_peak"] > 0).any() else 0, ks.ENDS
        ),
        stale=np.zeros(queues, np.int32),
        **_guard(node, n, replicas, queues),
        log=np.zeros(1024 if log else 0, ks.LOG),
        seen=np.zeros(replicas, ks.FEATURE_ROW),
        scraped=np.zeros(replicas if interval_ps else 0, ks.FEATURE_ROW),
        rows=np.zeros(max(largest, replicas), ks.FEATURE_ROW),
        out=np.zeros(max(largest, replicas)), places=np.zeros(replicas, np.int64),
        **_blocks(replica, node),
        hashes=prefixes.hashes, chain_at=prefixes.at, chain=prefixes.number,
        prefix=np.zeros((0, 3), np.int64),
        arrival=inputs.arrival_ps.copy() if closed else inputs.arrival_ps,
        planned=inputs.arrival_ps,
        reach_ps=inputs.reach_ps if (node["pipeline"] > 0).any() else _none(np.int64),
        prompt=workload["prompt_tokens"],
        output=workload["output_tokens"] if apart is None else workload["output_tokens"].copy(),
        predicted=_none(np.float64) if inputs.predicted is None else inputs.predicted,
        **curve_arrays(inputs.predictions, names),
        priority=_column(workload, "priority", np.int64),
        deadline=_column(workload, "deadline_s", np.float64),
        **_tenants(features, bool(TENANTS & names), replicas),
        score=np.zeros(n if node["by_score"].any() else 0),
        link=np.zeros(n, np.int32), generated=np.zeros(n, np.int32),
        reach=np.zeros(n, np.int32),
        flight=np.zeros(n if kinds.overlapped else 0, np.int32),
        stored=np.zeros(n if node["swaps"].any() or apart is not None else 0, np.int32),
        sent=np.zeros(n if run["reads"][0] & mask(["oldest_request_s"]) else 0, np.int32),
        think=_none(np.int64) if inputs.think_ps is None else inputs.think_ps,
        first_child=first_child, sibling=sibling,
        calendar=np.zeros(n if closed or stops or happens else 0, np.int32),
        roots=np.flatnonzero(workload["parent"] < 0).astype(np.int32) if closed
        else _none(np.int32),
        asked=np.zeros(n if stops or happens else 0, np.int64),
        gave=np.zeros(n if stops else 0, np.int64),
        candidate=np.zeros(max(n, seats) if stops else 0, np.int32),
        slow=np.array([w for windows in inputs.slow for w in windows], ks.SLOW),
        turn=np.array(list(inputs.turns), ks.TURN), lost=np.zeros(0, ks.LOST_VISIT),
        fresh=replica.copy() if inputs.turns else np.zeros(0, ks.REPLICA),
        where=np.zeros(n, np.int64),
        scheduled=np.full(n, ks.NONE) if inputs.turns else np.zeros(n, np.int64),
        first_token=np.zeros(n, np.int64), finish=np.zeros(n, np.int64),
        preemptions=np.zeros(n, np.int64), recomputed=np.zeros(n, np.int64),
        cached=np.zeros(n, np.int64),
        **({} if apart is None else _roles(workload)),
    )  # fmt: skip


def grow(state: ks.State) -> ks.State:
    """The same state with twice the room where it ran out: in the log, in that of lost visits, or
    in a replica's queue."""
    run = state.run[0]
    if run["log"] and run["log_rows"] >= len(state.log):
        return state._replace(log=np.concatenate((state.log, np.zeros_like(state.log))))
    if run["lost_room"] > len(state.lost):
        return state._replace(lost=_longer(state.lost, int(run["lost_room"]) - len(state.lost)))
    row = state.replica[run["at_replica"]]
    begin, capacity = int(row["queue_at"]), int(row["capacity"])
    end = int((state.replica["queue_at"] + state.replica["capacity"]).max())
    row["capacity"] = 2 * capacity
    if begin + capacity == end:
        to = begin
    else:  # others lie behind it: it moves to the end
        row["queue_at"] = to = end
    room = max(to + 2 * capacity - len(state.heap), 0)
    queues = ("heap", "stale", "watched") if len(state.watched) else ("heap", "stale")
    changed = {name: _longer(getattr(state, name), room) for name in queues}
    for array in changed.values():
        array[to : to + capacity] = array[begin : begin + capacity]
    room = max(2 * capacity - len(state.stash), 0)
    changed |= {name: _longer(getattr(state, name), room) for name in ("stash", "rows", "out")}
    return state._replace(**changed)


def with_rows(state: ks.State, count: int) -> ks.State:
    """The same state with rows for as many candidates."""
    room = max(count - len(state.rows), 0)
    return state._replace(rows=_longer(state.rows, room), out=_longer(state.out, room))


def _longer(array: NDArray[Any], room: int) -> NDArray[Any]:
    """An array with ``room`` elements more at least, and twice as many where it is copied."""
    return np.concatenate((array, np.zeros(max(room, len(array)), array.dtype))) if room else array


def _names(kinds: Kinds, routing: RoutingPolicy) -> set[str]:
    """The features that anybody reads."""
    read = [(*node.policy.score.features, *node.policy.admission.reads) for node in kinds.nodes]
    return set(routing.score.features).union(*read)


def _guard(
    node: NDArray[Any], requests: int, replicas: int, queues: int
) -> dict[str, NDArray[Any]]:
    """The books of the starvation guard, empty where no node has one."""
    guarded = bool(node["guarded"].any())
    n = requests if guarded else 0
    return {
        "waits": np.zeros((replicas, ks.RING if guarded else 0), ks.WAIT),
        "watched": np.zeros(queues if guarded else 0, ks.WATCHED),
        "shadow": np.zeros(n, np.int32), "since": np.zeros(n, np.int64),
        "owed": np.zeros(n, np.int64), "sent_ahead": np.zeros(n, np.int32),
    }  # fmt: skip


def _tenants(features: Features, read: bool, replicas: int) -> dict[str, NDArray[Any]]:
    """Whose each request is, tenants' weights and their books, empty where nobody reads them."""
    known = features.tenants
    shares = known.shares if known is not None and read else _none(np.float64)
    return {
        "tenant": known.of.astype(np.int32) if known is not None and read else _none(np.int32),
        "weight": features.columns.get("tenant_weight", _none(np.float64)),
        "share": shares, "tenants": np.zeros((replicas, len(shares)), ks.TENANT),
    }  # fmt: skip


def _roles(workload: Workload) -> dict[str, NDArray[Any]]:
    """What is known of requests before they are handed over."""
    n = len(workload)
    move = np.full(n * len(ks.MOVE.names or ()), ks.NONE).view(ks.MOVE)
    move["whole"] = workload["output_tokens"]
    return {"move": move, "flying": np.zeros(n, np.int32), "handed": np.zeros(n, np.int32)}


def _describe(
    inputs: Inputs, kinds: Kinds, routing: RoutingPolicy, requests: int, seed: int, log: bool
) -> NDArray[Any]:
    """The constants of a run, shape (1,)."""
    values: dict[str, Any] = {
        "requests": requests, "replicas": len(kinds.of),
        "seed": np.uint64(seed % 2**64).astype(np.int64),
        "closed_loop": inputs.think_ps is not None,
        "routing_reads": mask(routing.score.features),
        "choices": routing.choices, "log": log,
    }  # fmt: skip
    run = np.zeros(1, ks.RUN)
    for name, value in values.items():
        run[name] = value
    return run


def _replicas(kinds: Kinds, node: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """Rows of ``REPLICA``, (R,), and the size of all queues by score."""
    rows = np.zeros(len(kinds.of), ks.REPLICA)
    for name in (
        "head", "tail", "queue_head", "queue_tail", "oldest", "newest", "blank", "shadow_head",
        "shadow_tail", "sent_head", "tenants_last", "tenant_admitted", "sought",
    ):  # fmt: skip
        rows[name] = ks.NONE
    rows["node"] = kinds.of
    of = node[rows["node"]]
    rows["free"] = of["blocks"]
    rows["seats_end"] = np.cumsum(of["max_seqs"])
    rows["seat"] = rows["free_slot"] = rows["seats_end"] - of["max_seqs"]
    rows["capacity"] = np.where(of["by_score"], 4 * of["max_seqs"] + 64, 0)
    rows["queue_at"] = _before(rows["capacity"])
    rows["hit_at"] = _before(of["caching"] * of["longest"])
    rows["held_at"] = _before(of["caching"] * of["max_seqs"] * of["longest"])
    rows["bucket_at"] = _before(of["caching"] * (of["bucket_mask"] + 1))
    return rows, int(rows["capacity"].sum())


def _before(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each of several parts begins that lie one after the other, (R,)."""
    return np.cumsum(sizes) - sizes


def _slots(replica: NDArray[Any]) -> NDArray[Any]:
    seats = int(replica["seats_end"][-1])
    rows = np.zeros(seats, ks.SLOT)
    rows["next"] = np.arange(1, seats + 1)
    rows["next"][replica["seats_end"] - 1] = ks.NONE
    return rows


def _blocks(replica: NDArray[Any], node: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """What prefix caching needs: blocks one by one, with all their free ones in a list."""
    of = node[replica["node"]]
    count = of["caching"] * (of["blocks"] + 1)
    block = np.zeros(int(count.sum()), ks.BLOCK)
    block["newer"] = np.arange(1, len(block) + 1)
    begin = _before(count)
    usable = count > 1  # a replica's first block is vLLM's null block
    block["newer"][begin[usable] + count[usable] - 1] = ks.NONE
    replica["blank"][usable] = begin[usable] + 1
    buckets = int((of["caching"] * (of["bucket_mask"] + 1)).sum())
    return {
        "block": block, "bucket": np.full(buckets, ks.NONE, np.int32),
        "bucket_end": np.full(buckets, ks.NONE, np.int32),
        "held": np.zeros(int((of["caching"] * of["max_seqs"] * of["longest"]).sum()), np.int32),
        "hit": np.zeros(int((of["caching"] * of["longest"]).sum()), np.int64),
    }  # fmt: skip


def _prefixes(run: Any, workload: Workload) -> Prefixes:
    """Those of the prompts; none where the workload has no hashes."""
    run["hash_tokens"] = 1
    if "prefix_hashes" not in workload:
        return Prefixes(_none(np.int64), np.zeros(len(workload) + 1, np.int64), _none(np.int64))
    if "hash_block_tokens" not in workload:
        raise InputError(f"{workload.name}: prefix_hashes need the column hash_block_tokens")
    if workload["hash_block_tokens"][0] < 1:
        raise InputError(f"{workload.name}: hash_block_tokens must be 1 or more")
    run["hash_tokens"] = workload["hash_block_tokens"][0]
    return prefixes_of(workload["prefix_hashes"])


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
