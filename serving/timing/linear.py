"""A linear timing model, for examples, tests and quick what-ifs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lengthwise.protocols import Batch
from lengthwise.serving.records import PS
from lengthwise.serving.timing.model import TimingTables


@dataclass(frozen=True)
class LinearTiming:
    """``base_s + prefill tokens + decoding sequences + context tokens``, each times its seconds."""

    base_s: float = 0.0
    per_prefill_token_s: float = 0.0
    per_sequence_s: float = 0.0
    per_context_token_s: float = 0.0
    num_gpu_blocks: int | None = None
    name: str = "linear"

    def tables(self, max_num_batched_tokens: int, max_num_seqs: int) -> TimingTables:
        """The integer form, for batches up to the given sizes."""
        base, token = round(self.base_s * PS), round(self.per_prefill_token_s * PS)
        sequence = round(self.per_sequence_s * PS)
        context = round(self.per_context_token_s * PS)
        return TimingTables(
            decode_ps=base + sequence * np.arange(max_num_seqs + 1, dtype=np.int64),
            mixed_ps=base + token * np.arange(max_num_batched_tokens + 1, dtype=np.int64),
            # the table counted a decoding sequence as a prefill token; decode_seq corrects it
            terms={"decode_seq": sequence - token, "context": context, "mixed_context": context},
        )

    def iteration_time(self, batch: Batch) -> float:
        """Seconds that an iteration with this batch takes."""
        tokens = batch.prefill_tokens + batch.decode_seqs
        return self.tables(tokens, batch.decode_seqs).iteration_ps(batch) / PS
