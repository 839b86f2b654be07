"""A node whose iterations take longer, or less long, than its timing says: a slowed-down GPU."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lengthwise.errors import InputError
from lengthwise.protocols import Batch, TimingModel
from lengthwise.serving.timing.model import Pipeline, TimingTables, whole_ps


@dataclass(frozen=True)
class AtSpeed:
    """``timing`` with each of its times divided by ``speed``: 0.5 takes twice as long."""

    timing: Any  # a TimingModel with tables
    speed: float

    @property
    def name(self) -> str:
        """``h200/llama-3.1-8b at 0.5``"""
        return f"{self.timing.name} at {self.speed:g}"

    @property
    def num_gpu_blocks(self) -> int | None:
        """Those of the model: a slower node has no less memory."""
        blocks: int | None = self.timing.num_gpu_blocks
        return blocks

    def tables(self, max_num_batched_tokens: int, max_num_seqs: int) -> TimingTables:
        """The integer form, for batches up to the given sizes."""
        found = self.timing.tables(max_num_batched_tokens, max_num_seqs)
        return TimingTables(
            self._slow(found.decode_ps), self._slow(found.mixed_ps), self._terms(found.terms)
        )

    def iteration_time(self, batch: Batch) -> float:
        """Seconds that an iteration with this batch takes."""
        return float(self.timing.iteration_time(batch)) / self.speed

    def _slow(self, ps: Any) -> Any:
        return whole_ps(ps / self.speed, self.name)

    def _terms(self, terms: Mapping[str, int]) -> dict[str, int]:
        whole = whole_ps(np.array([ps / self.speed for ps in terms.values()]), self.name)
        return dict(zip(terms, whole.tolist(), strict=True))


@dataclass(frozen=True)
class AtSpeedPipelined(AtSpeed):
    """The same of a model that knows asynchronous scheduling: both clocks slow down alike."""

    def pipeline(self, max_num_batched_tokens: int, max_num_seqs: int) -> Pipeline:
        """The two clocks, for batches up to the given sizes."""
        found = self.timing.pipeline(max_num_batched_tokens, max_num_seqs)
        return Pipeline(
            self._slow(found.decode_ps), self._slow(found.decode_context_ps),
            self._slow(found.mixed_ps), self._slow(found.mixed_launch_ps),
            self._terms(found.terms),
        )  # fmt: skip


def at_speed(timing: TimingModel, speed: float) -> TimingModel:
    """``timing`` on a node of ``speed`` times its speed; 1 is ``timing`` itself.

    Raises ``InputError`` for a speed that is not positive and finite, and for a timing without
    integer tables, such as one that measures as it goes.
    """
    if isinstance(speed, bool) or not isinstance(speed, int | float):
        raise InputError(f"a node's speed must be a number above 0, not {speed!r}")
    if not 0 < speed <= sys.float_info.max:
        raise InputError(f"a node's speed must be a number above 0, not {speed!r}")
    if speed == 1:
        return timing
    if not hasattr(timing, "tables"):
        raise InputError(f"timing {timing.name!r} has no tables, so it can't be slowed down")
    kind = AtSpeedPipelined if hasattr(timing, "pipeline") else AtSpeed
    return kind(timing, float(speed))
