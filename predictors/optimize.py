"""The training loop: AdamW, early stopping, and checkpoints that a later run goes on from.

Every random number of an epoch comes from (seed, epoch), so that a resumed run repeats the one that
was not interrupted, bit by bit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lengthwise.errors import InputError
from lengthwise.writing import whole_file

Ints = NDArray[np.int64]

UNSEEN_BATCH = 256


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train."""

    epochs: int = 100
    patience: int = 15  # epochs without a better validation loss
    batch_size: int = 32
    learning_rate: float = 1e-3
    backbone_rate: float = 5e-5
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        for name in ("epochs", "patience", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"{name} must be a whole number, 1 or more, not {value!r}")
        for name in ("learning_rate", "backbone_rate"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 < value < 1:
                raise InputError(f"{name} must lie between 0 and 1, not {value!r}")


def minimize(
    net: nn.Module,
    loss: Callable[[Ints], torch.Tensor],
    train: Ints,
    unseen: Ints,
    schedule: Schedule,
    *,
    seed: int,
    checkpoint: Path | None = None,
    advance: Callable[[int, float], None] = lambda epoch, best: None,
) -> None:
    """Trains ``net`` in place and leaves it with the weights of its best epoch.

    ``loss(rows)`` is the mean loss of the net on a batch of ``train``, or of ``unseen``, the rows
    that decide which epoch was best. With ``checkpoint``, a file,
    each epoch is recorded, and a run that finds the file goes on after the epoch in it.
    ``advance(epoch, best validation loss)`` is called after each epoch.
    """
    optimizer = torch.optim.AdamW(_groups(net, schedule), weight_decay=schedule.weight_decay)
    best, best_at, start = float("inf"), -1, 0
    devices = {parameter.get_device() for parameter in net.parameters()} - {-1}  # GPUs, not the CPU
    kept: dict[str, Any] = copy.deepcopy(net.state_dict())
    if checkpoint is not None and checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        kept, best, best_at, start = state["kept"], state["best"], state["best_at"], state["next"]
    for epoch in range(start, schedule.epochs):
        if epoch - best_at > schedule.patience:
            break
        with torch.random.fork_rng(devices):
            torch.manual_seed(mixed(seed, epoch))
            net.train()
            shuffled = train[torch.randperm(len(train)).numpy()]
            for rows in _batches(shuffled, schedule.batch_size):
                optimizer.zero_grad()
                torch.autograd.backward([loss(rows)])
                nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                optimizer.step()
        net.eval()
        with torch.no_grad():
            parts = _batches(unseen, UNSEEN_BATCH)
            now = sum(float(loss(rows)) * len(rows) for rows in parts) / len(unseen)
        if now < best - 1e-4 * abs(best) or best_at < 0:
            best, best_at, kept = now, epoch, copy.deepcopy(net.state_dict())
        if checkpoint is not None:
            state = {
                "net": net.state_dict(), "optimizer": optimizer.state_dict(), "kept": kept,
                "best": best, "best_at": best_at, "next": epoch + 1,
            }  # fmt: skip
            save_atomically(state, checkpoint)
        advance(epoch, best)
    net.load_state_dict(kept)
    net.eval()


def save_atomically(state: Any, path: Path) -> None:
    """``torch.save``, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as fresh:
        torch.save(state, fresh)


def _groups(net: nn.Module, schedule: Schedule) -> list[dict[str, Any]]:
    """The head learns at one rate, a backbone that is fine-tuned at its own."""
    rates = {True: schedule.backbone_rate, False: schedule.learning_rate}
    groups = []
    for of_backbone, rate in rates.items():
        named = net.named_parameters()
        found = [p for name, p in named if name.startswith("backbone.") is of_backbone]
        if found:
            groups.append({"params": found, "lr": rate})
    return groups


def _batches(rows: Ints, size: int) -> Sequence[Ints]:
    """Batches of ``size`` or one more; none is so small that it has no order."""
    return np.array_split(rows, max(1, len(rows) // size))


def mixed(seed: int, number: int) -> int:
    """A seed for torch from a seed and a number of what it is for."""
    return int(np.random.SeedSequence([seed % 2**63, number]).generate_state(1)[0])
