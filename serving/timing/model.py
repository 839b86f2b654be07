"""The form that every timing model takes inside the engines: tables in integer picoseconds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lengthwise.protocols import Batch


@dataclass(frozen=True)
class TimingTables:
    """An iteration's duration in integer picoseconds: one table look-up plus linear terms.

    Roofline, linear and fitted models all reduce to it, so the reference engine and the compiled
    one compute the same integer. A decode-only iteration of n sequences costs ``decode_ps[n]``
    (the padding to CUDA-graph batch sizes is in the table); any other, with n tokens in all,
    ``mixed_ps[n]``. Attention over what is cached is linear in the batch's context sums.

    The GPU waits for the CPU where the CPU is slower, so no iteration is shorter than
    ``floor_ps + floor_seq_ps x sequences``.
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


@dataclass(frozen=True)
class Pipeline:
    """An engine with asynchronous scheduling has two clocks: the CPU's and the GPU's.

    All in integer picoseconds. The CPU takes in an iteration's result (``update_ps``), schedules
    the next but one (``schedule_ps``) and launches it (``launch_ps``), while the GPU works on the
    next; the GPU begins ``prepare_ps`` after scheduling, once it is free, and ends ``gpu_ps``
    later, but not before the last kernel is launched, plus ``tail``. See ``timing.fit`` for the
    two equations, and ``serving.engine`` for where they are applied.

    A request reaches the scheduler ``arrival_ps`` after its arrival, and a client sees a token
    ``output_ps`` after the CPU has taken in the iteration that made it.
    """

    decode_ps: NDArray[np.int64]  # (max_num_seqs + 1,)
    decode_context_ps: NDArray[np.int64]  # (max_num_seqs + 1,), each attended token
    mixed_ps: NDArray[np.int64]  # (max_num_batched_tokens + 1,)
    mixed_launch_ps: NDArray[np.int64]  # (max_num_batched_tokens + 1,)
    terms: dict[str, int]

    def gpu_ps(self, batch: Batch) -> int:
        """The GPU's work on an iteration."""
        n, terms = batch.decode_seqs, self.terms
        if batch.prefill_tokens == 0:
            return int(self.decode_ps[n]) + int(self.decode_context_ps[n]) * batch.context_tokens
        return (
            int(self.mixed_ps[batch.prefill_tokens + n])
            + terms["mixed_context"] * batch.context_tokens
            + terms["chunk_context"] * batch.chunk_context
            + terms["decode_seq"] * n
            + terms["prefill_seq"] * batch.prefill_seqs
        )

    def launch_ps(self, batch: Batch) -> int:
        """From scheduled to the last kernel launched."""
        sequences, terms = batch.decode_seqs + batch.prefill_seqs, self.terms
        if batch.prefill_tokens == 0:
            return terms["launch_decode"] + terms["launch_decode_seq"] * sequences
        return (
            int(self.mixed_launch_ps[batch.prefill_tokens + batch.decode_seqs])
            + terms["launch_mixed_seq"] * sequences
            + terms["launch_prefill_seq"] * batch.prefill_seqs
        )

    def prepare_ps(self, batch: Batch) -> int:
        """From scheduled to the first kernel."""
        sequences = batch.decode_seqs + batch.prefill_seqs
        prepare = self.terms["prepare"] + self.terms["prepare_seq"] * sequences
        return min(prepare, self.launch_ps(batch))

    def schedule_ps(self, running: int) -> int:
        """Deciding an iteration with so many requests in the batch."""
        return self.terms["schedule"] + self.terms["schedule_seq"] * running

    def update_ps(self, batch: Batch) -> int:
        """Taking in an iteration's result."""
        sequences = batch.decode_seqs + batch.prefill_seqs
        return self.terms["update"] + self.terms["update_seq"] * sequences

    def arrival_ps(self, prompt_tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """From a request's arrival until the scheduler sees it."""
        return self.terms["arrival"] + self.terms["arrival_token"] * prompt_tokens

    def output_ps(self, tokens: int) -> int:
        """From the end of an iteration that made so many tokens until clients have them."""
        return self.terms["output"] + self.terms["output_seq"] * tokens
