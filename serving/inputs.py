"""What a run starts from, checked once: integer arrivals, block counts, prefix identities."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lengthwise.errors import InputError
from lengthwise.picoseconds import LONGEST_S, PS
from lengthwise.policy import SchedulingPolicy
from lengthwise.prediction import Predictions
from lengthwise.protocols import TimingModel
from lengthwise.serving.clock import Clock
from lengthwise.serving.events import Slow, Turn, Window, slow_windows, turns
from lengthwise.serving.options import Engine
from lengthwise.serving.system import Node, System
from lengthwise.serving.transfer import Transfers, transfers_of
from lengthwise.workload import Workload

Keys = list[tuple[int, ...]]


@dataclass(frozen=True)
class NodeInputs:
    """What one node starts from; nodes of one kind share theirs."""

    num_gpu_blocks: int
    clock: Clock
    block_keys: Keys | None  # (n,) with prefix caching and prefix hashes


@dataclass(frozen=True)
class Inputs:
    """A workload and a system as the engines take them."""

    arrival_ps: NDArray[np.int64]  # (n,)
    reach_ps: NDArray[np.int64]  # (n,) from a request's arrival until it can be routed
    think_ps: NDArray[np.int64] | None  # (n,) in closed loops
    predictions: Predictions | None
    nodes: tuple[NodeInputs, ...]
    slow: tuple[tuple[Window, ...], ...]  # of each node; empty where nothing happens
    turns: tuple[Turn, ...]  # failures, in order
    transfers: Transfers | None = None  # where prefill and decode have nodes of their own

    @property
    def predicted(self) -> NDArray[np.float64] | None:
        """Predicted answer lengths, (n,), None where nothing was predicted."""
        return None if self.predictions is None else self.predictions.predicted_tokens

    @property
    def predicted_up(self) -> NDArray[np.int64]:
        """Predicted answer lengths rounded up, (n,); 0 where nothing was predicted."""
        if self.predicted is None:
            return np.zeros(len(self.arrival_ps), dtype=np.int64)
        return np.ceil(self.predicted).astype(np.int64)


def prepare(
    workload: Workload, system: System, predictions: Predictions | ArrayLike | None
) -> Inputs:
    """Checks everything that a run needs; raises ``InputError`` for what could never run."""
    given = predictions_of(workload, predictions)
    predicted = None if given is None else given.predicted_tokens
    made: dict[
        tuple[int | str, ...], NodeInputs
    ] = {}  # by identity: equal nodes share what is theirs
    keys: dict[int, Keys] = {}
    slowed = max((one.factor for one in system.events if isinstance(one, Slow)), default=1.0)
    nodes: list[NodeInputs] = []
    for index, node in enumerate(system.nodes):
        kind = (id(node.engine), id(node.timing), id(node.policy), node.role)
        if kind not in made:
            where = "" if system.uniform else f"{system.label(index)}: "
            made[kind] = _node(
                workload, node, where, keys, predicted=predicted is not None, slowed=slowed
            )
        nodes.append(made[kind])
    arrival_ps = _picoseconds(workload, "arrival_s")
    return Inputs(
        arrival_ps=arrival_ps,
        reach_ps=_reach_ps(workload, arrival_ps, (one.clock for one in made.values())),
        think_ps=_picoseconds(workload, "think_s") if "parent" in workload else None,
        predictions=given,
        nodes=tuple(nodes),
        slow=slow_windows(system.events, system.names),
        turns=turns(system.events, system.names),
        transfers=transfers_of(workload, system),
    )


def _node(
    workload: Workload,
    node: Node,
    where: str,
    keys: dict[int, Keys],
    *,
    predicted: bool,
    slowed: float,
) -> NodeInputs:
    """One kind of node; ``where`` begins what is said of it, ``keys`` are known by block size."""
    check_policy(node.policy, where, predicted=predicted)
    blocks = gpu_blocks(node.engine, node.timing)
    _check_lengths(workload, node, blocks, where)
    size, found = node.engine.block_size, None
    if node.engine.enable_prefix_caching and "prefix_hashes" in workload:
        if size not in keys:
            keys[size] = block_keys(workload, size)
        found = keys[size]
    clock = Clock.of(node.engine, node.timing)
    longest = int((workload["prompt_tokens"] + workload["output_tokens"]).max())
    clock.check(node.engine, node.timing, longest, slowed)
    return NodeInputs(blocks, clock, found)


def check_policy(policy: SchedulingPolicy, where: str, *, predicted: bool) -> None:
    """Refuses a policy that no node can follow; ``where`` begins what is said of it."""
    if policy.preemption.mode != "none" and policy.queue == "fcfs":
        raise InputError(
            f"{where}policy {policy.name!r} keeps the fcfs queue, in which a preempted request is "
            "the next to run: preemption needs the priority queue"
        )
    if policy.admission.reserve > 0 and not predicted:
        raise InputError(
            f"{where}admission with reserve > 0 reads {policy.admission.of}: it needs a predictor"
        )


def gpu_blocks(engine: Engine, timing: TimingModel) -> int:
    """KV blocks of one replica: the engine's, else the timing's in the engine's block size."""
    if engine.num_gpu_blocks is not None:
        return engine.num_gpu_blocks
    if timing.num_gpu_blocks is None:
        raise InputError(
            f"timing {timing.name!r} has no KV cache size: set the engine's num_gpu_blocks"
        )
    return timing.num_gpu_blocks * 16 // engine.block_size


def node_blocks(system: System) -> NDArray[np.int64]:
    """KV blocks of each node, (nodes,)."""
    return np.array([gpu_blocks(node.engine, node.timing) for node in system.nodes])


def _reach_ps(
    workload: Workload, arrival_ps: NDArray[np.int64], clocks: Iterable[Clock]
) -> NDArray[np.int64]:
    """Time until each request can be routed; the front end keeps them in order of arrival.

    There is one front end for all nodes: where their timings know different ones, the slowest.
    """
    reach_ps = np.zeros_like(arrival_ps)
    for clock in clocks:
        if clock.pipeline is None:
            continue
        reached = arrival_ps + clock.pipeline.arrival_ps(workload["prompt_tokens"])
        np.maximum(reach_ps, np.maximum.accumulate(reached) - arrival_ps, out=reach_ps)
    return reach_ps


def block_keys(workload: Workload, block_size: int) -> list[tuple[int, ...]]:
    """Identities of the leading blocks of each prompt, from ``prefix_hashes``.

    Two prompts share block k if and only if their hashes agree up to the one that covers the
    block's last token. Keys are consecutive integers from 0, in order of first appearance.
    """
    hash_tokens = _hash_tokens(workload)
    seen: dict[tuple[int, int, int], int] = {}  # (key before, hash, index) -> key
    keys: list[tuple[int, ...]] = []
    rows = zip(
        workload["prefix_hashes"], workload["prompt_tokens"].tolist(), hash_tokens, strict=True
    )
    for hashes, prompt, size in rows:
        covered = min(len(hashes) * size, prompt) // block_size
        row: list[int] = []
        before, used = -1, 0
        for index in range(covered):
            last = ((index + 1) * block_size - 1) // size
            while used < last:  # chain the hashes that end inside this block
                before = seen.setdefault((before, int(hashes[used]), -1), len(seen))
                used += 1
            before = seen.setdefault((before, int(hashes[last]), index), len(seen))
            row.append(before)
        keys.append(tuple(row))
    return keys


def _hash_tokens(workload: Workload) -> list[int]:
    if "hash_block_tokens" not in workload:
        raise InputError(f"{workload.name}: prefix_hashes need the column hash_block_tokens")
    sizes = workload["hash_block_tokens"]
    if (sizes < 1).any():
        raise InputError(f"{workload.name}: hash_block_tokens must be 1 or more")
    return [int(size) for size in sizes]


def _picoseconds(workload: Workload, column: str) -> NDArray[np.int64]:
    if column not in workload:
        raise InputError(f"{workload.name}: a closed loop (parent) needs the column {column}")
    seconds = workload[column]
    if seconds.max() > LONGEST_S:
        raise InputError(
            f"{workload.name}: {column} reaches {seconds.max():g} s; times may go up to "
            f"{LONGEST_S:g} s (106 days): subtract the start, or cut the workload"
        )
    return np.asarray(np.rint(seconds * PS), dtype=np.int64)


def predictions_of(
    workload: Workload, predictions: Predictions | ArrayLike | None
) -> Predictions | None:
    """What is predicted of a workload's requests: nothing beyond the clients' ``max_tokens``."""
    given = Predictions.given(predictions, len(workload))
    if given is None or "max_tokens" not in workload:
        return given
    return given.capped(workload["max_tokens"])


def _check_lengths(workload: Workload, node: Node, num_gpu_blocks: int, where: str) -> None:
    """Refuses requests that vLLM would refuse, or that could never hold all their tokens."""
    prompt, output, engine = workload["prompt_tokens"], workload["output_tokens"], node.engine
    total = prompt + (1 if node.role == "prefill" else output)
    if engine.max_model_len is not None:
        _refuse(total > engine.max_model_len, prompt, output, where,
                f"max_model_len is {engine.max_model_len}")  # fmt: skip
    if not engine.enable_chunked_prefill:
        _refuse(total > engine.max_num_batched_tokens, prompt, output, where,
                f"max_num_batched_tokens is {engine.max_num_batched_tokens} and chunked prefill "
                "is off")  # fmt: skip
    usable = num_gpu_blocks - 1
    # the last token generated is never computed, so it needs no room
    _refuse(total - 1 > usable * engine.block_size, prompt, output, where,
            f"the KV cache has {usable} usable blocks of {engine.block_size} tokens "
            f"(num_gpu_blocks {num_gpu_blocks} less vLLM's null block)")  # fmt: skip


def _refuse(
    bad: NDArray[np.bool_],
    prompt: NDArray[np.int64],
    output: NDArray[np.int64],
    where: str,
    why: str,
) -> None:
    rows = np.flatnonzero(bad)
    if len(rows):
        row = rows[0]
        more = f" (and {len(rows) - 1} more)" if len(rows) > 1 else ""
        raise InputError(
            f"{where}request {row} has {prompt[row]} prompt and {output[row]} output tokens, but "
            f"{why}{more}"
        )
