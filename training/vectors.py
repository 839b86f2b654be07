"""The environments of a training run, as stable-baselines3 wants them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lengthwise.envs.base import DecisionEnv
from lengthwise.envs.episodes import Episode, Source
from lengthwise.envs.sb3 import SB3VecEnv
from lengthwise.trained import Range, TrainedOn, widened

# What an environment makes episodes of; a source of them stands in for all of it.
EPISODE = (
    "workload", "requests", "rate", "timing", "engine", "predictor", "policy", "router", "nodes",
    "metrics_interval_s",
)  # fmt: skip


def make_vector(make: type[DecisionEnv], options: Mapping[str, Any], count: int) -> SB3VecEnv:
    """``count`` environments in one, whose observations are flat vectors and whose episodes follow
    each other at once."""
    made = make.vector_type(**options, num_envs=count, flat=True, autoreset_mode="SAME_STEP")
    return SB3VecEnv(made)


class Drawn:
    """The episodes of a source, with rewards divided by ``factor`` beside what each is divided by;
    it keeps the ranges of what it gave (``ranges``, ``workloads``), which a bundle records."""

    def __init__(self, source: Source, factor: float) -> None:
        self.source, self.factor = source, factor
        self.ranges: dict[str, Range] = {}
        self.workloads: set[str] = set()

    def __call__(self, seed: int) -> Episode:
        found = self.source(seed)
        self.ranges = widened(self.ranges, found.ranges)
        self.workloads.add(found.name)
        return replace(found, scale=found.scale * self.factor)

    def trained_on(self) -> TrainedOn:
        """What was drawn so far."""
        return TrainedOn.of(self.ranges, self.workloads)
