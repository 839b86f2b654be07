"""How long things take on a node, in integer picoseconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lengthwise.errors import InputError
from lengthwise.picoseconds import MOST_PS
from lengthwise.protocols import Batch, TimingModel
from lengthwise.serving.options import Engine
from lengthwise.serving.records import PS
from lengthwise.serving.timing.model import Pipeline

# Llama-3.1-8B's keys and values in bf16 are 128 KiB a token; PCIe 5.0 x16 moves about 50 GB/s.
SWAP_S_PER_TOKEN = 128 * 1024 / 50e9

NOMINAL_SEQS, NOMINAL_CONTEXT = 32, 1000


@dataclass(frozen=True, slots=True)
class Clock:
    """The durations of a node: an iteration's, a swapped token's, and the pipeline's if it has one.

    ``pipeline`` are the two clocks of asynchronous scheduling, where the timing knows them.
    """

    iteration_ps: Callable[[Batch], int]
    swap_ps_per_token: int
    pipeline: Pipeline | None = None

    @classmethod
    def of(cls, engine: Engine, timing: TimingModel) -> Clock:
        """The clock of a node with these options and this timing."""
        swap_ps = round(getattr(timing, "swap_s_per_token", SWAP_S_PER_TOKEN) * PS)
        return cls(iteration_clock(engine, timing), swap_ps, async_clock(engine, timing))

    def check(self, engine: Engine, timing: TimingModel, longest: int, slowed: float) -> None:
        """Raises ``InputError`` where the largest batch that fits takes longer than the engines can
        count: ``longest`` are a request's tokens, ``slowed`` by how much events stretch it.
        """
        if not hasattr(timing, "tables"):
            return  # it is asked as it goes, and counted in integers without a limit
        tokens, seqs = engine.max_num_batched_tokens, engine.max_num_seqs
        prefill = Batch(prefill_tokens=tokens, prefill_seqs=1, chunk_context=tokens * longest)
        decode = Batch(decode_seqs=seqs, context_tokens=seqs * longest)
        took = [self.iteration_ps(batch) for batch in (prefill, decode)]
        if self.pipeline is not None:
            for batch in (prefill, decode):
                took += [self.pipeline.gpu_ps(batch), self.pipeline.launch_ps(batch)]
        if max(took) * slowed > MOST_PS:
            raise InputError(
                f"timing {timing.name!r}: an iteration may take {max(took) * slowed / PS:g} s; "
                f"{MOST_PS / PS:.0f} s are the most"
            )

    def decode_tokens_per_s(self, engine: Engine) -> float:
        """The nominal speed of a node with these options: a feature that tells nodes apart.

        It is that of iterations one after the other that decode ``NOMINAL_SEQS`` sequences (or as
        many as there are seats), each with ``NOMINAL_CONTEXT`` tokens.
        """
        seqs = min(NOMINAL_SEQS, engine.max_num_seqs)
        took_ps = self.iteration_ps(Batch(decode_seqs=seqs, context_tokens=NOMINAL_CONTEXT * seqs))
        return seqs * PS / took_ps


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
