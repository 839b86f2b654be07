"""What an environment asks: where its episodes come from, what is seen, what it costs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from lengthwise.envs.columns import Columns
from lengthwise.envs.costs import Cost, cost_of
from lengthwise.envs.episodes import Source
from lengthwise.errors import InputError, UnknownNameError
from lengthwise.serving.fast.many import Kind
from lengthwise.serving.fast.shown import FAR, SITUATION
from lengthwise.serving.fast.state import SHOWN


@dataclass(frozen=True)
class Task:
    """Choices of one kind, by whom they are made possible and what is told of them.

    ``slots`` is the number of actions, each with a row of columns. ``reward_scale`` stands in for
    the episodes' own scale. Each environment holds ``bank`` prepared episodes and plays them in
    turn, each ``plays`` times before a new one is drawn in its place. ``hold_s`` > 0 makes the last
    action of a router "not now": it is asked again after so long. ``show`` says which requests of a
    queue longer than ``slots`` can be chosen: its "first", or "spread": a quarter of the slots for
    its head, and a quarter each for the shortest predicted answers, the shortest prompts and the
    least of both together.
    """

    kind: Kind
    source: Source
    columns: Columns
    slots: int
    cost: Cost
    reward_scale: float | None = None
    illegal_penalty: float = 1.0
    bank: int = 1
    plays: int = 1
    hold_s: float = 0.0
    show: str = "first"

    def __post_init__(self) -> None:
        if self.slots < 2:
            raise InputError(f"a choice needs at least 2 candidates, not {self.slots}")
        if self.reward_scale is not None and not self.reward_scale > 0:
            raise InputError(f"reward_scale must be positive, not {self.reward_scale!r}")
        if not 0 <= self.illegal_penalty < float("inf"):
            raise InputError(f"illegal_penalty must be 0 or more, not {self.illegal_penalty!r}")
        if self.show not in SHOWN:
            raise UnknownNameError("show", self.show, SHOWN)
        if min(self.bank, self.plays) < 1:
            raise InputError(f"bank and plays must be 1 or more, not {self.bank} and {self.plays}")

    @property
    def width(self) -> int:
        """Numbers of an observation: slots * F, the mask, the situation."""
        return self.slots * (len(self.columns.names) + 1) + SITUATION

    def observation_space(self, flat: bool) -> spaces.Space[Any]:
        """Of one environment: one vector, or its parts by name."""
        if flat:
            return spaces.Box(-FAR, FAR, (self.width,), np.float32)
        return spaces.Dict(
            {
                "candidates": spaces.Box(
                    -FAR, FAR, (self.slots * len(self.columns.names),), np.float32
                ),
                "mask": spaces.MultiBinary(self.slots),
                "state": spaces.Box(-FAR, FAR, (SITUATION,), np.float32),
            }
        )


def task_of(
    kind: Kind,
    source: Source,
    slots: int,
    *,
    features: Sequence[str],
    scales: Mapping[str, Sequence[float]] | None,
    cost: str | Cost,
    **options: Any,
) -> Task:
    """A task from plain data; ``options`` are those of ``Task``."""
    columns = Columns.of(features, scales)
    return Task(kind, source, columns, slots, cost_of(cost), **options)


def signature_of(task: Callable[..., Task], *more: str) -> inspect.Signature:
    """The signature of an environment that takes a task's options, and more by keyword."""
    found = inspect.signature(task)
    extra = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in more]
    return found.replace(parameters=[*found.parameters.values(), *extra])
