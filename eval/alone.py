"""How long each request would take alone on an idle replica: what slowdown divides by."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from lengthwise.protocols import Batch
from lengthwise.serving import Engine
from lengthwise.serving.records import PS
from lengthwise.serving.timing.model import TimingTables
from lengthwise.workload import Workload


def alone_s(workload: Workload, engine: Engine, tables: TimingTables) -> NDArray[np.float64]:
    """End-to-end latency of each request on an idle replica, seconds, shape (n,).

    The prompt is computed in chunks of the engine's token budget, then one token an iteration. No
    prefix is cached. ``tables`` are those of the engine's batch sizes.
    """
    prompt, output = workload["prompt_tokens"], workload["output_tokens"]
    budget = engine.max_num_batched_tokens
    if engine.long_prefill_token_threshold > 0:
        budget = min(budget, engine.long_prefill_token_threshold)

    @cache
    def prefill_ps(tokens: int) -> int:
        total = 0
        for start in range(0, tokens, budget):
            chunk = min(budget, tokens - start)
            attended = chunk * start + chunk * (chunk + 1) // 2
            total += tables.iteration_ps(
                Batch(prefill_tokens=chunk, prefill_seqs=1, chunk_context=attended)
            )
        return total

    longest = int((prompt + output).max())
    step = [tables.iteration_ps(Batch(decode_seqs=1, context_tokens=c)) for c in range(longest + 1)]
    until = np.cumsum(np.array(step, dtype=np.int64))  # (longest + 1,) all steps up to a context
    # the first output token comes from the prefill; the k-th after it attends to prompt + k tokens
    decode_ps = until[prompt + output - 1] - until[prompt]
    prefilled = np.array([prefill_ps(int(tokens)) for tokens in prompt], dtype=np.int64)
    latencies = tables.arrival_latency_ps + tables.output_latency_ps
    return np.asarray((prefilled + decode_ps + latencies) / PS)
