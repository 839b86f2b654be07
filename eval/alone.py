"""How long each request would take alone on an idle replica: what slowdown divides by."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from lengthwise.protocols import Batch, TimingModel
from lengthwise.serving import Engine, System
from lengthwise.serving.clock import iteration_clock
from lengthwise.serving.records import PS
from lengthwise.workload import Workload


def alone_on_s(
    workload: Workload, system: System, node: NDArray[np.int64]
) -> NDArray[np.float64] | None:
    """``alone_s`` of each request on the node that served it, ``node`` (n,) by its index."""
    kinds: dict[tuple[int, int], list[int]] = {}
    for index, one in enumerate(system.nodes):
        kinds.setdefault((id(one.engine), id(one.timing)), []).append(index)
    found = np.zeros(len(workload))
    for alike in kinds.values():
        one, here = system.nodes[alike[0]], np.isin(node, alike)
        if one.engine.async_scheduling:
            return None
        if here.any():
            lengths = workload["prompt_tokens"][here], workload["output_tokens"][here]
            found[here] = _alone_s(*lengths, one.engine, one.timing)
    return found


def alone_s(workload: Workload, engine: Engine, timing: TimingModel) -> NDArray[np.float64] | None:
    """End-to-end latency of each request on an idle replica, seconds, shape (n,).

    The prompt is computed in chunks of the engine's token budget, then one token an iteration;
    no prefix is cached. None with asynchronous scheduling, whose iterations overlap, so that a
    request's latency alone is no sum of theirs.
    """
    if engine.async_scheduling:
        return None
    return _alone_s(workload["prompt_tokens"], workload["output_tokens"], engine, timing)


def _alone_s(
    prompt: NDArray[np.int64], output: NDArray[np.int64], engine: Engine, timing: TimingModel
) -> NDArray[np.float64]:
    iteration_ps = iteration_clock(engine, timing)
    budget = engine.max_num_batched_tokens
    if engine.long_prefill_token_threshold > 0:
        budget = min(budget, engine.long_prefill_token_threshold)

    @cache
    def decode_ps(context: int) -> int:
        return iteration_ps(Batch(decode_seqs=1, context_tokens=context))

    @cache
    def prefill_ps(tokens: int) -> int:
        total = 0
        for start in range(0, tokens, budget):
            chunk = min(budget, tokens - start)
            if chunk == 1 and start + chunk == tokens:
                return total + decode_ps(tokens)  # one last token is computed as decoding is
            attended = chunk * start + chunk * (chunk + 1) // 2
            total += iteration_ps(
                Batch(prefill_tokens=chunk, prefill_seqs=1, chunk_context=attended)
            )
        return total

    longest = int((prompt + output).max())
    steps = np.array([decode_ps(context) for context in range(longest)], dtype=np.int64)
    until = np.cumsum(steps)  # (longest,) all steps up to a context
    # the prefill gives the first output token; the k-th after it attends to prompt + k tokens
    decoding = until[prompt + output - 1] - until[prompt]
    prefilled = np.array([prefill_ps(int(tokens)) for tokens in prompt], dtype=np.int64)
    return np.asarray((prefilled + decoding) / PS)
