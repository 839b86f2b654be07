"""The last layer of a neural predictor: what its numbers mean, its loss, and how they are read.

A bucket target may be "softmax", one logit a bucket, or "ordinal", a cumulative link: one score and
cuts that all requests share (proportional odds: McCullagh, JRSS B 1980). A quantile target may be
"pinball", one number a level, or "log-t", the location, scale and degrees of freedom of a Student t
of the log length, of which quantiles are read (TIE predicts lengths so).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.predictors import losses, targets

Floats = NDArray[np.float64]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

HEADS = {"bucket": ("softmax", "ordinal"), "quantile": ("pinball", "log-t")}  # first: the default
RANK_LOSSES: dict[str, Loss] = {
    "listmle": losses.list_mle, "margin": losses.margin_ranking, "pairwise": losses.pairwise,
}  # fmt: skip
LEAST_DF = 1.5  # degrees of freedom: fewer have no mean


def check_head(head: str | None, target: str) -> str | None:
    """``head`` if the target may have it, or None, for the target's default."""
    allowed = HEADS.get(target, ())
    if head is None:
        return None
    if not allowed:
        raise InputError(f"target {target!r} has one head; head={head!r} is for bucket or quantile")
    if head not in allowed:
        raise UnknownNameError(f"head of target {target!r}", head, allowed)
    return head


class Cuts(nn.Module):
    """From scores (n, 1) to logits (n, buckets - 1) of exceeding each inner edge, descending."""

    def __init__(self, buckets: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.tensor(1.0 - buckets / 2))
        self.gaps = nn.Parameter(torch.zeros(buckets - 2))

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        """Logits, of which the earlier are never smaller."""
        steps = torch.cumsum(functional.softplus(self.gaps), dim=0)
        return scores - torch.cat((self.first[None], self.first + steps))


def new_head(
    head: str | None, target: targets.AnyTarget, width: int, hidden: int, dropout: float
) -> nn.Sequential:
    """A network from ``width`` numbers to what the head says."""
    outputs = {"ordinal": 1, "log-t": 3}.get(head or "", target.outputs)
    layers = [
        nn.Dropout(dropout), nn.Linear(width, hidden), nn.GELU(),
        nn.Dropout(dropout), nn.Linear(hidden, outputs),
    ]  # fmt: skip
    if head == "ordinal":
        layers.append(Cuts(target.outputs))
    made = nn.Sequential(*layers)
    if isinstance(target, targets.Quantile):  # start at the normal distribution's, or a t's
        last = made[4]
        assert isinstance(last, nn.Linear)
        start = [0.0, 0.0, 1.0] if head == "log-t" else _normal(target.levels)
        with torch.no_grad():
            last.bias.copy_(torch.tensor(start))
    return made


def loss_of(head: str | None, target: targets.AnyTarget, rank_loss: str, device: object) -> Loss:
    """What is minimised, of what the head says (n, outputs) and labels (n,)."""
    if isinstance(target, targets.Bucket):
        return losses.cumulative_link if head == "ordinal" else losses.cross_entropy
    if isinstance(target, targets.Rank):
        return RANK_LOSSES[rank_loss]
    if isinstance(target, targets.Quantile):
        if head == "log-t":
            return lambda said, labels: losses.student_t(*t_of(said), labels)
        levels = torch.tensor(target.levels, dtype=torch.float32, device=device)  # type: ignore[arg-type]
        return lambda said, labels: losses.pinball(said, labels, levels)
    return losses.squared


def t_of(said: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Location, scale and degrees of freedom, (n,) each, from what a log-t head says, (n, 3)."""
    scale = functional.softplus(said[:, 1]) + 1e-3
    return said[:, 0], scale, LEAST_DF + functional.softplus(said[:, 2])


def read(head: str | None, said: Floats, target: targets.AnyTarget) -> Floats:
    """Raw outputs (n, outputs) of the target, in the unit of the labels, of what the head says."""
    if isinstance(target, targets.Bucket):
        if head == "ordinal":
            longer = 1 / (1 + np.exp(-said))
            ends = np.ones((len(said), 1))
            return -np.diff(np.concatenate((ends, longer, 0 * ends), axis=1), axis=1)
        powers = np.exp(said - said.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))
    if head == "log-t" and isinstance(target, targets.Quantile):
        from scipy.special import stdtrit

        location, scale, df = (part.numpy()[:, None] for part in t_of(torch.tensor(said)))
        return np.asarray(location + scale * stdtrit(df, target.levels))
    return said


def _normal(levels: Floats) -> list[float]:
    found: list[float] = torch.special.ndtri(torch.tensor(levels)).tolist()
    return found
