"""The form that every timing model takes inside the engines: tables in integer picoseconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.picoseconds import MOST_PS, PS
from lengthwise.protocols import Batch
from lengthwise.serving.timing.terms import Part, Sum, When, check

Ints = NDArray[np.int64]


def whole_ps(picoseconds: Any, what: str) -> NDArray[np.int64]:
    """Durations as integers; ``InputError`` for those that no iteration takes."""
    if not (np.abs(picoseconds) <= MOST_PS).all():
        raise InputError(
            f"{what}: an iteration takes longer than {MOST_PS / PS:.0f} s, which no engine's does"
        )
    return np.asarray(np.rint(picoseconds), dtype=np.int64)


@dataclass(frozen=True)
class TimingTables:
    """An iteration's duration in integer picoseconds: one table look-up plus linear terms.

    Roofline, linear and fitted models all reduce to it, so the reference engine and the compiled
    one compute the same integer. A decode-only iteration of n sequences costs ``decode_ps[n]``
    (the padding to CUDA-graph batch sizes is in the table); any other, with n tokens in all,
    ``mixed_ps[n]``. ``terms`` are the coefficients of the terms that come on top, by name
    (``timing.terms``): those of parts "gpu" and "floor". A term that is not named takes no time.
    """

    decode_ps: NDArray[np.int64]  # (max_num_seqs + 1,)
    mixed_ps: NDArray[np.int64]  # (max_num_batched_tokens + 1,)
    terms: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self.terms)

    def iteration_ps(self, batch: Batch) -> int:
        """The duration of an iteration, integer picoseconds, at least 1."""
        if batch.prefill_tokens == 0:
            gpu = int(self.decode_ps[batch.decode_seqs]) + self._decode.of(batch)
        else:
            gpu = int(self.mixed_ps[batch.prefill_tokens + batch.decode_seqs])
            gpu += self._mixed.of(batch)
        return max(gpu, self._floor.of(batch), 1)

    def iterations_ps(
        self, *, prefill_tokens: Ints, prefill_seqs: Ints, decode_seqs: Ints, context_tokens: Ints,
        chunk_context: Ints,
    ) -> Ints:  # fmt: skip
        """``iteration_ps`` of many, (n,), from the fields of their batches, (n,) each.

        Either all of them prefill or none does.
        """
        given = {
            "prefill_tokens": prefill_tokens, "prefill_seqs": prefill_seqs,
            "decode_seqs": decode_seqs, "context_tokens": context_tokens,
            "chunk_context": chunk_context, "sequences": prefill_seqs + decode_seqs,
        }  # fmt: skip
        if prefill_tokens.any():
            gpu = self.mixed_ps[prefill_tokens + decode_seqs] + self._mixed.at(**given)
        else:
            gpu = self.decode_ps[decode_seqs] + self._decode.at(**given)
        return np.asarray(np.maximum(np.maximum(gpu, self._floor.at(**given)), 1))

    @cached_property
    def _decode(self) -> Sum:
        return Sum(self.terms, "gpu", "decode")

    @cached_property
    def _mixed(self) -> Sum:
        return Sum(self.terms, "gpu", "mixed")

    @cached_property
    def _floor(self) -> Sum:
        return Sum(self.terms, "floor")


@dataclass(frozen=True)
class Pipeline:
    """An engine with asynchronous scheduling has two clocks: the CPU's and the GPU's.

    All in integer picoseconds. The CPU takes in an iteration's result (``update_ps``), schedules
    the next but one (``schedule_ps``) and launches it (``launch_ps``), while the GPU works on the
    next; the GPU begins ``prepare_ps`` after scheduling, once it is free, and ends ``gpu_ps``
    later, but not before the last kernel is launched, plus ``tail_ps``. See ``timing.fit`` for the
    two equations, and ``serving.reference.timeline`` for where they are applied.

    A request reaches the scheduler ``arrival_ps`` after its arrival, and a client sees a token
    ``output_ps`` after the CPU has taken in the iteration that made it.

    Each is a table look-up where there is one, and the sum of the terms of that part; ``terms``
    are their coefficients by name (``timing.terms``). A term that is not named takes no time.
    """

    decode_ps: NDArray[np.int64]  # (max_num_seqs + 1,)
    decode_context_ps: NDArray[np.int64]  # (max_num_seqs + 1,), each attended token
    mixed_ps: NDArray[np.int64]  # (max_num_batched_tokens + 1,)
    mixed_launch_ps: NDArray[np.int64]  # (max_num_batched_tokens + 1,)
    terms: Mapping[str, int]

    def __post_init__(self) -> None:
        check(self.terms)

    def gpu_ps(self, batch: Batch) -> int:
        """The GPU's work on an iteration."""
        n = batch.decode_seqs
        if batch.prefill_tokens == 0:
            attention = int(self.decode_context_ps[n]) * batch.context_tokens
            return int(self.decode_ps[n]) + attention + self._sums["gpu", "decode"].of(batch)
        return int(self.mixed_ps[batch.prefill_tokens + n]) + self._sums["gpu", "mixed"].of(batch)

    def launch_ps(self, batch: Batch) -> int:
        """From scheduled to the last kernel launched."""
        if batch.prefill_tokens == 0:
            return self._sums["launch", "decode"].of(batch)
        looked_up = int(self.mixed_launch_ps[batch.prefill_tokens + batch.decode_seqs])
        return looked_up + self._sums["launch", "mixed"].of(batch)

    def prepare_ps(self, batch: Batch) -> int:
        """From scheduled to the first kernel."""
        return min(self._sums["prepare", "any"].of(batch), self.launch_ps(batch))

    def tail_ps(self, batch: Batch) -> int:
        """From the last kernel's launch to the iteration's end, at least."""
        return self._sums["tail", "any"].of(batch)

    def schedule_ps(self, running: int) -> int:
        """Deciding an iteration with so many requests in the batch."""
        return int(self._sums["schedule", "any"].at(running=running))

    def update_ps(self, batch: Batch) -> int:
        """Taking in an iteration's result."""
        return self._sums["update", "any"].of(batch)

    def arrival_ps(self, prompt_tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """From a request's arrival until the scheduler sees it."""
        reached = self._sums["arrival", "any"].at(prompt_tokens=prompt_tokens)
        return np.broadcast_to(np.asarray(reached, dtype=np.int64), prompt_tokens.shape)

    def output_ps(self, tokens: int) -> int:
        """From the end of an iteration that made so many tokens until clients have them."""
        return int(self._sums["output", "any"].at(yields=tokens))

    @cached_property
    def _sums(self) -> dict[tuple[Part, When], Sum]:
        kinds: list[tuple[Part, When]] = [
            ("gpu", "decode"), ("gpu", "mixed"), ("launch", "decode"), ("launch", "mixed"),
            ("prepare", "any"), ("tail", "any"), ("schedule", "any"), ("update", "any"),
            ("arrival", "any"), ("output", "any"),
        ]  # fmt: skip
        return {kind: Sum(self.terms, *kind) for kind in kinds}
