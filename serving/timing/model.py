"""The form that every timing model takes inside the engines: tables in integer picoseconds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lengthwise.protocols import Batch

PS = 10**12


@dataclass(frozen=True)
class TimingTables:
    """An iteration's duration in integer picoseconds: one table look-up plus linear terms.

    Roofline, linear and fitted models all reduce to it, so the reference engine and the compiled
    one compute the same integer. A decode-only iteration of n sequences costs ``decode_ps[n]``
    (the padding to CUDA-graph batch sizes is in the table); any other, with n tokens in all,
    ``mixed_ps[n]``. Attention over what is cached is linear in the batch's context sums.

    The GPU waits for the CPU where the CPU is slower, so no iteration is shorter than
    ``floor_ps + floor_seq_ps x sequences``. The two latencies lie outside the iterations: a
    request can be scheduled ``arrival_latency_ps`` after its arrival, and a client sees a token
    ``output_latency_ps`` after the end of the iteration that made it.
    """

    decode_ps: NDArray[np.int64]  # (max_num_seqs + 1,)
    mixed_ps: NDArray[np.int64]  # (max_num_batched_tokens + 1,)
    prefill_seq_ps: int = 0
    decode_seq_ps: int = 0  # each decoding sequence beside prefill, beyond its token
    context_ps: int = 0  # each token attended to by a decoding sequence
    mixed_context_ps: int = 0  # what each of those costs more (or less) beside prefill
    chunk_context_ps: int = 0  # each pair of chunk token and attended token
    floor_ps: int = 0
    floor_seq_ps: int = 0
    arrival_latency_ps: int = 0
    output_latency_ps: int = 0

    def iteration_ps(self, batch: Batch) -> int:
        """The duration of an iteration, integer picoseconds, at least 1."""
        if batch.prefill_tokens == 0:
            gpu = int(self.decode_ps[batch.decode_seqs])
        else:
            gpu = int(self.mixed_ps[batch.prefill_tokens + batch.decode_seqs])
            gpu += self.prefill_seq_ps * batch.prefill_seqs
            gpu += self.decode_seq_ps * batch.decode_seqs
            gpu += self.mixed_context_ps * batch.context_tokens
        gpu += self.context_ps * batch.context_tokens
        gpu += self.chunk_context_ps * batch.chunk_context
        cpu = self.floor_ps + self.floor_seq_ps * (batch.prefill_seqs + batch.decode_seqs)
        return max(gpu, cpu, 1)
