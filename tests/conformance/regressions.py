"""Workloads on which the reference once differed from vLLM, each with what it had got wrong."""

from __future__ import annotations

from lengthwise.serving import Engine
from lengthwise.serving.timing import LinearTiming
from lengthwise.workload import Workload
from tests.conformance.cases import FCFS, PRIORITY, Case


def regressions(version: str) -> list[Case]:
    """All of them, with the options of a vLLM version."""
    return [_finishing_blocks_are_cached(version), _who_preempts_itself(version), _alone(version)]


def _finishing_blocks_are_cached(version: str) -> Case:
    """With asynchronous scheduling the blocks of a request that finishes are cached first.

    So they are evicted last, not handed out first, and the preempted request 2 finds nothing.
    """
    return Case(
        "finishing blocks are cached",
        Workload(
            {
                "arrival_s": [0, 0, 0], "prompt_tokens": [2, 1, 3], "output_tokens": [5, 2, 2],
                "prefix_hashes": [(), (), ()], "hash_block_tokens": [2, 2, 2],
            }
        ),
        Engine.of_vllm(
            version, max_num_seqs=4, max_num_batched_tokens=32, num_gpu_blocks=5, block_size=2,
            enable_prefix_caching=True, async_scheduling=True,
        ),
        FCFS,
        LinearTiming(1.0),
    )  # fmt: skip


def _who_preempts_itself(version: str) -> Case:
    """Who is the victim of its own growth ends the batch's turn in 0.26, and does not in 0.33."""
    return Case(
        "who preempts itself",
        Workload(
            {"arrival_s": [0, 0.1], "prompt_tokens": [7, 7], "output_tokens": [4, 4],
             "priority": [5, 1]}
        ),
        Engine.of_vllm(version, max_num_seqs=4, max_num_batched_tokens=16, num_gpu_blocks=5,
                       block_size=4),
        PRIORITY,
        LinearTiming(1.0),
    )  # fmt: skip


def _alone(version: str) -> Case:
    """The prefill threshold cuts a request that is alone in 0.26, and does not in 0.33."""
    return Case(
        "alone",
        Workload({"arrival_s": [0, 0], "prompt_tokens": [20, 3], "output_tokens": [1, 1]}),
        Engine.of_vllm(version, max_num_seqs=4, max_num_batched_tokens=16, num_gpu_blocks=64,
                       block_size=4, long_prefill_token_threshold=5),
        FCFS,
        LinearTiming(1.0),
    )  # fmt: skip
