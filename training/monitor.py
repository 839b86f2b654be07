"""What watches a training run: progress bar, held-out evaluation, checkpoints."""

from __future__ import annotations

from collections.abc import Callable

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from stable_baselines3.common.callbacks import BaseCallback


class Watch(BaseCallback):
    """Calls ``evaluate`` and ``save`` every so many steps and moves a progress bar on.

    ``evaluate`` is called once the weights have changed since the last time; it returns the
    held-out cost, which goes to TensorBoard as ``eval/cost`` beside the
    baselines' constant lines.
    """

    def __init__(
        self,
        *,
        steps: int,
        evaluate: Callable[[int], float],
        evaluate_every: int,
        save: Callable[[int], None],
        save_every: int,
        baselines: dict[str, float],
        show: bool,
    ) -> None:
        super().__init__()
        self.steps = steps
        self.evaluate, self.evaluate_every = evaluate, evaluate_every
        self.save, self.save_every = save, save_every
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeRemainingColumn(),
            disable=not show,
        )
        best = min(baselines, key=lambda name: baselines[name])
        self.against = f"{best} {baselines[best]:.4g}"

    def _on_training_start(self) -> None:
        self.task = self.progress.add_task(
            "training", total=self.steps, completed=self.num_timesteps
        )
        self.progress.start()
        self.next_evaluation = self.num_timesteps + self.evaluate_every
        self.evaluated = 0  # how far the weights had been updated when they were last evaluated
        self.next_save = self.num_timesteps + self.save_every

    def _on_step(self) -> bool:
        self.progress.update(self.task, completed=min(self.num_timesteps, self.steps))
        updates = int(self.model._n_updates)
        if self.num_timesteps >= self.next_evaluation and updates != self.evaluated:
            self.next_evaluation = self.num_timesteps + self.evaluate_every
            self.evaluated = updates
            cost = self.evaluate(self.num_timesteps)
            self.progress.update(self.task, description=f"cost {cost:.4g} ({self.against})")
        if self.num_timesteps >= self.next_save:
            self.next_save = self.num_timesteps + self.save_every
            self.save(self.num_timesteps)
        return True

    def close(self) -> None:
        """Leaves the terminal as it was."""
        self.progress.stop()
