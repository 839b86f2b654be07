"""The seams: what a part must offer to stand in for one of ours. A fake of each is ten lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

from numpy.typing import ArrayLike

from lengthwise.context import Context
from lengthwise.prediction import Prediction


@dataclass(frozen=True, slots=True)
class Batch:
    """What one engine iteration computes, as far as its duration depends on it."""

    prefill_tokens: int = 0  # prompt (or recomputed) tokens of this iteration
    prefill_seqs: int = 0  # sequences that those tokens belong to
    decode_seqs: int = 0  # sequences that generate one token each from a full cache
    context_tokens: int = 0  # sum over decoding sequences of the tokens they attend to
    chunk_context: int = 0  # sum over prefill chunks of chunk tokens x mean tokens attended to

    @property
    def sequences(self) -> int:
        """All that compute something."""
        return self.prefill_seqs + self.decode_seqs


@runtime_checkable
class Predictor(Protocol):
    """Says how long answers will be.

    ``needs`` names the workload columns that ``predict`` reads: "prompt" (the text, passed as
    ``prompts``), "prompt_tokens", and, for oracles alone, "output_tokens".

    A predictor that can use more of a request than that also has ``uses``, a frozenset of the
    columns of ``Context``, and only then is it passed a ``context`` (``lengthwise.context.given``):
    one without ``uses`` need not take that argument.
    """

    needs: frozenset[str]

    def fit(
        self,
        prompts: Sequence[str],
        output_tokens: ArrayLike,
        *,
        prompt_tokens: ArrayLike | None = None,
        censored: ArrayLike | None = None,
        context: Context | None = None,
    ) -> Self:
        """Learns from n prompts and answer lengths; ``censored`` marks those cut at max_tokens."""
        ...

    def predict(
        self,
        prompts: Sequence[str],
        *,
        prompt_tokens: ArrayLike | None = None,
        output_tokens: ArrayLike | None = None,
        context: Context | None = None,
    ) -> Prediction:
        """Predictions for n requests; ``output_tokens`` comes only if ``needs`` names it.

        With a ``context`` that names ``max_tokens``, none exceeds them.
        """
        ...

    def save(self, folder: Any) -> None:
        """Writes the fitted predictor as a folder that ``load_predictor`` reads; no pickle."""
        ...


@runtime_checkable
class TimingModel(Protocol):
    """Says how long one iteration of the engine takes, and how much KV cache it has."""

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    @property
    def num_gpu_blocks(self) -> int | None:
        """KV blocks of 16 tokens, used where ``Engine.num_gpu_blocks`` is None."""
        ...

    def iteration_time(self, batch: Batch) -> float:
        """Seconds that an iteration with this batch takes."""
        ...
