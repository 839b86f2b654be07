"""What watches a training run: progress, held-out evaluation, checkpoints, and when to stop."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from lengthwise.errors import InputError


class NotFiniteError(InputError):
    """A cost, a loss or a weight is NaN or infinite: nothing may be saved any more."""


class Stopping:
    """Whether somebody asked the run to end: ``signal`` is the number of what was received."""

    signal: int | None = None


@contextmanager
def stopping() -> Iterator[Stopping]:
    """Lets SIGTERM and the first Ctrl-C end a run between two steps, so that it can be saved.

    A second one ends it at once. Only the main thread can listen; elsewhere nothing is changed.
    """
    found = Stopping()

    def heard(number: int, _: Any) -> None:
        if found.signal is not None:
            raise KeyboardInterrupt
        found.signal = number

    if threading.current_thread() is not threading.main_thread():
        yield found
        return
    before = {number: signal.signal(number, heard) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_finite(agent: BaseAlgorithm) -> None:
    """Raises ``NotFiniteError`` if a weight or the last update's loss is no finite number."""
    for name, value in agent.logger.name_to_value.items():
        if name.startswith("train/") and name.endswith("loss") and not np.isfinite(value):
            raise NotFiniteError(f"the {name.removeprefix('train/').replace('_', ' ')} is {value}")
    for name, weights in agent.policy.named_parameters():
        if not bool(torch.isfinite(weights).all()):
            raise NotFiniteError(f"the weights {name} are NaN or infinite")


class Watch(BaseCallback):
    """Calls ``evaluate`` and ``save`` every so many steps, and shows how far a run is.

    ``evaluate`` is called once the weights have changed since the last time; it returns what is
    shown. On a terminal progress is a bar, elsewhere a line each twentieth of the steps; both on
    standard error. ``at`` is called with the number of steps before each one.
    """

    def __init__(
        self,
        *,
        steps: int,
        evaluate: Callable[[int], str],
        evaluate_every: int,
        save: Callable[[int], None],
        save_every: int,
        stop: Stopping,
        at: Callable[[int], None],
        show: bool,
    ) -> None:
        super().__init__()
        self.steps, self.stop, self.at = steps, stop, at
        self.evaluate, self.evaluate_every = evaluate, evaluate_every
        self.save, self.save_every = save, save_every
        terminal = sys.stderr.isatty()
        self.lines = show and not terminal
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not show or not terminal,
        )
        self.latest = ""

    def _on_training_start(self) -> None:
        self.task = self.progress.add_task(
            "training", total=self.steps, completed=self.num_timesteps
        )
        self.progress.start()
        self.began, self.began_at = time.monotonic(), self.num_timesteps
        self.next_line = self.num_timesteps + self.steps / 20
        self.next_evaluation = self.num_timesteps + self.evaluate_every
        self.evaluated = int(self.model._n_updates)  # of the weights that were last evaluated
        self.next_save = self.num_timesteps + self.save_every

    def _on_rollout_start(self) -> None:
        check_finite(self.model)

    def _on_step(self) -> bool:
        rewards = self.locals["rewards"]
        if not np.isfinite(rewards).all():
            wrong = -rewards[~np.isfinite(rewards)][0]
            raise NotFiniteError(f"a step's cost is {wrong}; a cost must be a finite number")
        now = self.num_timesteps
        self.at(now)
        self.progress.update(self.task, completed=min(now, self.steps))
        updates = int(self.model._n_updates)
        if now >= self.next_evaluation and updates != self.evaluated:
            self.next_evaluation = now + self.evaluate_every
            self.evaluated = updates
            self.latest = self.evaluate(now)
            self.progress.update(self.task, description=self.latest)
        if now >= self.next_save:
            self.next_save = now + self.save_every
            self.save(now)
        if self.lines and now >= self.next_line:
            self.next_line = now + self.steps / 20
            rate = (now - self.began_at) / max(time.monotonic() - self.began, 1e-9)
            line = f"{now:,} of {max(now, self.steps):,} steps, {rate:,.0f} a second"
            print(f"{line}; {self.latest}" if self.latest else line, file=sys.stderr, flush=True)
        return self.stop.signal is None

    def close(self) -> None:
        """Leaves the terminal as it was."""
        self.progress.stop()
