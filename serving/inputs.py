"""What a run starts from, checked once: integer arrivals, block counts, prefix identities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lengthwise.errors import InputError
from lengthwise.policy import SchedulingPolicy
from lengthwise.protocols import Batch, TimingModel
from lengthwise.serving.options import Engine
from lengthwise.serving.records import PS
from lengthwise.serving.reference.replica import Clock
from lengthwise.serving.timing.model import Pipeline
from lengthwise.workload import Workload

# Llama-3.1-8B's keys and values in bf16 are 128 KiB a token; PCIe 5.0 x16 moves about 50 GB/s.
SWAP_S_PER_TOKEN = 128 * 1024 / 50e9
LONGEST_S = 9.2e6  # int64 picoseconds reach 106 days


@dataclass(frozen=True)
class Inputs:
    """A workload as the engines take it."""

    arrival_ps: NDArray[np.int64]  # (n,)
    reach_ps: NDArray[np.int64]  # (n,) from a request's arrival until the scheduler sees it
    think_ps: NDArray[np.int64] | None  # (n,) in closed loops
    predicted: NDArray[np.float64] | None  # (n,)
    predicted_up: NDArray[np.int64]  # (n,) rounded up; 0 without a prediction
    block_keys: list[tuple[int, ...]] | None  # (n,) with prefix caching and prefix hashes
    num_gpu_blocks: int
    clock: Clock


def prepare(
    workload: Workload,
    policy: SchedulingPolicy,
    engine: Engine,
    timing: TimingModel,
    predicted_tokens: ArrayLike | None,
    replicas: int,
) -> Inputs:
    """Checks everything that a run needs; raises ``InputError`` for what could never run."""
    if not isinstance(replicas, int) or replicas < 1:
        raise InputError(f"replicas must be a whole number of at least 1, not {replicas!r}")
    if policy.preemption.mode != "none" and policy.queue == "fcfs":
        raise InputError(
            f"policy {policy.name!r} keeps the fcfs queue, in which a preempted request is the "
            "next to run: preemption needs the priority queue"
        )
    predicted = _predicted(workload, predicted_tokens)
    if policy.admission.reserve > 0 and predicted is None:
        raise InputError("admission with reserve > 0 reads predicted_tokens: it needs a predictor")
    num_gpu_blocks = gpu_blocks(engine, timing)
    _check_lengths(workload, engine, num_gpu_blocks)
    keys = None
    if engine.enable_prefix_caching and "prefix_hashes" in workload:
        keys = block_keys(workload, engine.block_size)
    arrival_ps = _picoseconds(workload, "arrival_s")
    pipeline = async_clock(engine, timing)
    return Inputs(
        arrival_ps=arrival_ps,
        reach_ps=_reach_ps(workload, arrival_ps, pipeline),
        think_ps=_picoseconds(workload, "think_s") if "parent" in workload else None,
        predicted=predicted,
        predicted_up=(
            np.zeros(len(workload), dtype=np.int64)
            if predicted is None
            else np.ceil(predicted).astype(np.int64)
        ),
        block_keys=keys,
        num_gpu_blocks=num_gpu_blocks,
        clock=Clock(iteration_clock(engine, timing), swap_ps_per_token(timing), pipeline),
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


def iteration_clock(engine: Engine, timing: TimingModel) -> Callable[[Batch], int]:
    """The duration of an iteration in integer picoseconds: from tables where the model has them."""
    tables = getattr(timing, "tables", None)
    if tables is not None:
        ps: Callable[[Batch], int] = tables(
            engine.max_num_batched_tokens, engine.max_num_seqs
        ).iteration_ps
        return ps
    return lambda batch: max(1, round(timing.iteration_time(batch) * PS))


def async_clock(engine: Engine, timing: TimingModel) -> Pipeline | None:
    """The two clocks of asynchronous scheduling, from timings that were measured with it."""
    pipeline = getattr(timing, "pipeline", None)
    if not engine.async_scheduling or pipeline is None:
        return None
    clock: Pipeline = pipeline(engine.max_num_batched_tokens, engine.max_num_seqs)
    return clock


def _reach_ps(
    workload: Workload, arrival_ps: NDArray[np.int64], pipeline: Pipeline | None
) -> NDArray[np.int64]:
    """Time until the scheduler sees each request; the front end keeps them in order of arrival."""
    if pipeline is None:
        return np.zeros_like(arrival_ps)
    reached = arrival_ps + pipeline.arrival_ps(workload["prompt_tokens"])
    return np.maximum.accumulate(reached) - arrival_ps


def swap_ps_per_token(timing: TimingModel) -> int:
    """Time to move one token's keys and values to or from host memory."""
    return round(getattr(timing, "swap_s_per_token", SWAP_S_PER_TOKEN) * PS)


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


def _predicted(
    workload: Workload, predicted_tokens: ArrayLike | None
) -> NDArray[np.float64] | None:
    if predicted_tokens is None:
        return None
    predicted = np.asarray(predicted_tokens, dtype=np.float64)
    if predicted.shape != (len(workload),):
        raise InputError(
            f"predicted_tokens have shape {predicted.shape}; {workload.name} has "
            f"{len(workload)} requests"
        )
    if not np.isfinite(predicted).all() or (predicted < 0).any():
        raise InputError("predicted_tokens must be finite and 0 or more")
    return predicted


def _check_lengths(workload: Workload, engine: Engine, num_gpu_blocks: int) -> None:
    """Refuses requests that vLLM would refuse, or that could never hold all their tokens."""
    prompt, output = workload["prompt_tokens"], workload["output_tokens"]
    total = prompt + output
    if engine.max_model_len is not None:
        _refuse(total > engine.max_model_len, prompt, output,
                f"max_model_len is {engine.max_model_len}")  # fmt: skip
    if not engine.enable_chunked_prefill:
        _refuse(total > engine.max_num_batched_tokens, prompt, output,
                f"max_num_batched_tokens is {engine.max_num_batched_tokens} and chunked prefill "
                "is off")  # fmt: skip
    usable = num_gpu_blocks - 1
    # the last token generated is never computed, so it needs no room
    _refuse(total - 1 > usable * engine.block_size, prompt, output,
            f"the KV cache has {usable} usable blocks of {engine.block_size} tokens "
            f"(num_gpu_blocks {num_gpu_blocks} less vLLM's null block)")  # fmt: skip


def _refuse(
    bad: NDArray[np.bool_], prompt: NDArray[np.int64], output: NDArray[np.int64], why: str
) -> None:
    rows = np.flatnonzero(bad)
    if len(rows):
        row = rows[0]
        more = f" (and {len(rows) - 1} more)" if len(rows) > 1 else ""
        raise InputError(
            f"request {row} has {prompt[row]} prompt and {output[row]} output tokens, but {why}"
            f"{more}"
        )
