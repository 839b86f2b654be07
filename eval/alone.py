"""How long each request would take alone on an idle replica: what slowdown divides by."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from lengthwise.protocols import Batch, TimingModel
from lengthwise.serving import Engine, System
from lengthwise.serving.clock import iteration_clock
from lengthwise.serving.records import PS
from lengthwise.workload import Workload


@dataclass(frozen=True)
class Alone:
    """Latencies of all requests alone, on each kind of node."""

    kind: NDArray[np.int64]  # (nodes,)
    seconds: NDArray[np.float64]  # (kinds, n)

    @classmethod
    def of(cls, workload: Workload, system: System) -> Alone | None:
        """``alone_s`` on every node; None where one of them schedules ahead."""
        kinds: dict[tuple[int, int], int] = {}
        seconds: list[NDArray[np.float64]] = []
        of_node: list[int] = []
        for node in system.nodes:
            key = id(node.engine), id(node.timing)
            if key not in kinds:
                kinds[key] = len(kinds)
                found = alone_s(workload, node.engine, node.timing)
                if found is None:
                    return None
                seconds.append(found)
            of_node.append(kinds[key])
        return cls(np.array(of_node), np.stack(seconds))

    def where_served(self, node: NDArray[np.int64]) -> NDArray[np.float64]:
        """The latency of each request alone on the node (n,) that served it, (n,)."""
        return np.asarray(self.seconds[self.kind[node], np.arange(len(node))])


def alone_s(workload: Workload, engine: Engine, timing: TimingModel) -> NDArray[np.float64] | None:
    """End-to-end latency of each request on an idle replica, seconds, shape (n,).

    The prompt is computed in chunks of the engine's token budget, then one token an iteration;
    no prefix is cached. None with asynchronous scheduling, whose iterations overlap, so that a
    request's latency alone is no sum of theirs.
    """
    if engine.async_scheduling:
        return None
    prompt, output = workload["prompt_tokens"], workload["output_tokens"]
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
