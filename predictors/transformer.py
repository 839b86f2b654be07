"""Predictors on a text encoder: pretrained, frozen or fine-tuned, or a small one from scratch.

A prompt becomes the mean of the encoder's last hidden states and the text's shape; a small network
(a head) on top gives what the target asks for. With a frozen encoder five heads are trained, each
on four fifths of the prompts, and averaged; with one that learns, one head. The rows that a head
did not see decide when its training stops, and calibrate the target.

An encoder as a proxy for the answer's length is SSJF's (Qiu et al., 2024), the ranking loss that of
Fu et al. (NeurIPS 2024); ``minilm`` is Sentence-BERT's (Reimers and Gurevych, EMNLP 2019) on MiniLM
(Wang et al., NeurIPS 2020).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.prediction import Floats
from lengthwise.predictors import columns, encoder, folder, heads, targets
from lengthwise.predictors.features import SHAPE, shapes_of
from lengthwise.predictors.learned import Learned, folds_of
from lengthwise.predictors.optimize import Schedule, minimize, mixed, save_atomically

ENCODER = "encoder"  # the folder of weights and tokenizer in a saved predictor
NOT_SAVED = ("checkpoint", "device", "progress")  # options that say how, not what, to learn

Advance = Callable[..., None]
Show = Callable[[str, int], Advance]


@dataclass(frozen=True)
class Task:
    """What heads are trained on: n prompts as token ids, labels (n,), and how."""

    ids: Sequence[Sequence[int]]
    labels: Floats
    target: targets.AnyTarget
    frozen: bool
    recorded: Path | None  # where checkpoints go


class Transformer(Learned):
    """A text encoder with a head: trained from scratch, or a pretrained one by its path.

    ``model`` is the folder or hub name of a pretrained encoder, ``minilm``, or None for a small
    encoder with random weights and a tokenizer of its own, trained on the data alone.

    frozen      keep a pretrained encoder as it is; by default on a CPU, not on a GPU
    rank_loss   of the rank target: "listmle" (vLLM-LTR), "margin" (PARS) or "pairwise" (RankNet)
    head        of the bucket target: "softmax" or "ordinal"; of the quantile target: "pinball" or
                "log-t"
    max_tokens  how much of a prompt is read
    checkpoint  a folder where an interrupted ``fit`` of the same data and options leaves what a
                later one goes on from; empty again once it is done
    device      "cpu" or "cuda"; by default a GPU where there is one
    epochs ...  as in ``Schedule``; None for what suits the mode

    A frozen encoder is used without its last layer: the one before says more about lengths.
    """

    name = "transformer"
    default_model: ClassVar[str | None] = None

    def __init__(
        self,
        target: str = "exact",
        *,
        model: str | None = None,
        frozen: bool | None = None,
        buckets: int | Sequence[float] | None = None,
        levels: Sequence[float] = targets.LEVELS,
        seed: int = 0,
        rank_loss: str = "listmle",
        head: str | None = None,
        max_tokens: int = 128,
        hidden: int = 128,
        dropout: float | None = None,
        epochs: int | None = None,
        patience: int | None = None,
        batch_size: int = 32,
        learning_rate: float = 1e-3,
        backbone_rate: float | None = None,
        checkpoint: str | Path | None = None,
        device: str | None = None,
        progress: bool = True,
    ) -> None:
        super().__init__(target, buckets=buckets, levels=levels, seed=seed)
        if rank_loss not in heads.RANK_LOSSES:
            raise UnknownNameError("rank loss", rank_loss, heads.RANK_LOSSES)
        self.head = heads.check_head(head, self.target)
        for option, value, least in (("max_tokens", max_tokens, 8), ("hidden", hidden, 1)):
            if columns.number(value, name=option, of=self.name) < least or value != int(value):
                raise InputError(f"{option} must be a whole number, {least} or more, not {value!r}")
        if dropout is not None and not 0 <= columns.number(dropout, name="dropout", of="head") < 1:
            raise InputError(f"dropout must lie in [0, 1), not {dropout!r}")
        self.model = self.default_model if model is None else model
        self.frozen, self.rank_loss = frozen, rank_loss
        self.max_tokens, self.hidden, self.dropout = max_tokens, hidden, dropout
        self.epochs, self.patience, self.batch_size = epochs, patience, batch_size
        self.learning_rate, self.backbone_rate = learning_rate, backbone_rate
        self.checkpoint, self.device, self.progress = checkpoint, device, progress

    def _learn(
        self, prompts: list[str], length: Floats, target: targets.AnyTarget
    ) -> tuple[Floats, NDArray[np.int64]]:
        device = _device(self.device)
        frozen = self._freezes(device)
        recorded = self._record(prompts, length, frozen)
        self.encoder_ = self._new_encoder(prompts, frozen)
        self.encoder_.backbone.to(device)
        folds = folds_of(prompts, self.seed)
        with _bars(self.progress) as show:
            ids = self.encoder_.tokens(prompts)
            hidden = torch.zeros((len(ids), self.encoder_.width))  # an encoder that learns changes
            if frozen:
                advance = show("encoding prompts", len(ids))
                hidden = _kept(
                    recorded and recorded / "hidden.pt",
                    lambda: self.encoder_.embedded(ids, advance),
                )
            shapes = shapes_of(prompts)
            table = np.concatenate((hidden.numpy(), shapes), axis=1)
            self.shift_, self.scale_ = table.mean(axis=0), _spread(table)
            task = Task(ids, _labels(target, length), target, frozen, recorded)
            parts = int(folds.max()) + 1 if frozen else 1
            self.heads_, centers = [], []
            held = np.empty((len(prompts), target.outputs))
            for k in range(parts):
                out, shown = folds == k, show(f"training, part {k + 1} of {parts}", 0)
                head = self._train(k, task, table, ~out, shown)
                if not frozen:
                    table[:, : hidden.shape[1]] = self.encoder_.embedded(ids).numpy()
                scores = _scores(head, self._standard(table))
                center = _center(target, length, scores[~out])
                held[out] = self._finished(scores[out], center, target)
                self.heads_.append(head)
                centers.append(center)
        self.centers_ = np.array(centers)
        self.encoder_.backbone.cpu()
        if recorded is not None:  # done: nothing to go on from
            shutil.rmtree(recorded)
            if not any(recorded.parent.iterdir()):
                recorded.parent.rmdir()
        unseen = np.flatnonzero(folds < parts)
        return held[unseen], unseen

    def _train(
        self, number: int, task: Task, table: Floats, seen: NDArray[np.bool_], shown: Advance
    ) -> nn.Module:
        """One head, and the encoder with it unless that is frozen, trained on the rows ``seen``."""
        device, target = self.encoder_.device, task.target
        head = self._new_head(number, target, task.frozen)
        net = nn.ModuleDict({"head": head.to(device)})
        if not task.frozen:
            net["backbone"] = self.encoder_.backbone
        fixed = self._standard(table).to(device)
        labels = torch.tensor(task.labels, dtype=torch.float32, device=device)
        loss = heads.loss_of(self.head, target, self.rank_loss, device)
        schedule = self._schedule(task.frozen)

        def inputs(rows: Any) -> torch.Tensor:
            if task.frozen:
                return fixed[rows]
            pooled = self.encoder_.pooled([task.ids[i] for i in rows])
            return torch.cat((pooled, fixed[rows, pooled.shape[1] :]), dim=1)

        minimize(
            net,
            lambda rows: loss(head(inputs(rows)), labels[rows]),
            np.flatnonzero(seen), np.flatnonzero(~seen), schedule, seed=self.seed + number,
            checkpoint=task.recorded and task.recorded / f"head-{number}.pt",
            advance=lambda epoch, best: shown(epoch + 1, schedule.epochs, best),
        )  # fmt: skip
        return head.cpu()

    def _raw(self, prompts: list[str]) -> Floats:
        target = self._fitted()
        hidden = self.encoder_.embedded(self.encoder_.tokens(prompts)).numpy()
        shapes = shapes_of(prompts)
        seen = self._standard(np.concatenate((hidden, shapes), axis=1))
        each = [
            self._finished(_scores(head, seen), (shift, scale), target)
            for head, (shift, scale) in zip(self.heads_, self.centers_, strict=True)
        ]
        return np.asarray(np.mean(each, axis=0))

    def _new_encoder(self, prompts: Sequence[str], frozen: bool) -> encoder.Encoder:
        if self.model is None:
            return encoder.new(prompts, max_tokens=self.max_tokens, seed=self.seed)
        return encoder.pretrained(self.model, max_tokens=self.max_tokens, drop_layers=int(frozen))

    def _freezes(self, device: torch.device) -> bool:
        if self.model is None:
            if self.frozen:
                raise InputError("an encoder with random weights can't be frozen; give a model")
            return False
        return device.type == "cpu" if self.frozen is None else self.frozen

    def _schedule(self, frozen: bool) -> Schedule:
        """What was asked for, the rest as suits a frozen, a pretrained or a new encoder."""
        epochs, patience, rate = (
            (100, 15, 1e-3) if frozen else (30, 5, 1e-3) if self.model is None else (5, 2, 5e-5)
        )
        return Schedule(
            epochs=epochs if self.epochs is None else self.epochs,
            patience=patience if self.patience is None else self.patience,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            backbone_rate=rate if self.backbone_rate is None else self.backbone_rate,
        )

    def _finished(
        self, scores: Floats, center: tuple[float, float], target: targets.AnyTarget
    ) -> Floats:
        """Raw outputs as the target reads them: probabilities, or numbers in its unit."""
        raw, (shift, scale) = heads.read(self.head, scores, target), center
        return raw if isinstance(target, targets.Bucket) else np.asarray(raw * scale + shift)

    def _new_head(self, number: int, target: targets.AnyTarget, frozen: bool) -> nn.Sequential:
        dropout = self.dropout if self.dropout is not None else 0.5 if frozen else 0.1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mixed(self.seed, 1_000_000 + number))
            width = self.encoder_.width + len(SHAPE)
            return heads.new_head(self.head, target, width, self.hidden, dropout)

    def _standard(self, table: NDArray[Any]) -> torch.Tensor:
        """What a head sees: columns (n, width + SHAPE), standardised; odd shapes are held in."""
        standard = (table - self.shift_) / self.scale_
        shape = standard[:, -len(SHAPE) :]
        np.clip(shape, -8, 8, out=shape)
        return torch.tensor(standard, dtype=torch.float32)

    def _record(self, prompts: Sequence[str], length: Floats, frozen: bool) -> Path | None:
        """The folder for checkpoints of these data and options; None where none is asked for."""
        if self.checkpoint is None:
            return None
        told = json.dumps([self._options(), frozen, list(prompts), length.tolist()])
        folder = Path(self.checkpoint) / hashlib.sha256(told.encode()).hexdigest()[:16]
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"can't write checkpoints to {str(folder)!r}: {error.strerror}"
            ) from error
        return folder

    def _options(self) -> dict[str, Any]:
        own = ("model", "frozen", "rank_loss", "head", "max_tokens", "hidden", "dropout", "epochs",
               "patience", "batch_size", "learning_rate", "backbone_rate")  # fmt: skip
        return {**super()._options(), **{name: getattr(self, name) for name in own}}

    def _state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        arrays = {"shift": self.shift_, "scale": self.scale_, "centers": self.centers_}
        for k, head in enumerate(self.heads_):
            for name, value in head.state_dict().items():
                arrays[f"head.{k}.{name}"] = value.numpy()
        return {"heads": len(self.heads_)}, arrays

    def _write_extra(self, path: Path) -> None:
        self.encoder_.save(path / ENCODER)

    def _restore(
        self, state: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], path: Path
    ) -> None:
        self.encoder_ = encoder.pretrained(str(path / ENCODER), max_tokens=self.max_tokens)
        self.encoder_.backbone.eval()
        self.shift_, self.scale_, self.centers_ = (
            arrays["shift"], arrays["scale"], arrays["centers"],
        )  # fmt: skip
        self.heads_ = []
        for k in range(state["heads"]):
            saved = folder.under(f"head.{k}.", arrays)
            weights = {name: torch.tensor(value) for name, value in saved.items()}
            width = self.encoder_.width + len(SHAPE)
            head = heads.new_head(self.head, self._fitted(), width, self.hidden, 0.0)
            head.load_state_dict(weights)
            self.heads_.append(head.eval())


class MiniLM(Transformer):
    """``Transformer`` on all-MiniLM-L6-v2 (Wang et al., NeurIPS 2020), where it is installed."""

    name = "minilm"
    default_model = "minilm"


def _device(name: str | None) -> torch.device:
    """The device called ``name``; by default a GPU where there is one."""
    has_gpu = torch.cuda.is_available()
    if name is not None and name.partition(":")[0] not in ("cpu", "cuda"):
        raise UnknownNameError("device", name, ("cpu", "cuda"))
    if name is not None and name.startswith("cuda") and not has_gpu:
        raise InputError(f"device {name!r}: this machine has no GPU that torch can use")
    return torch.device(name or ("cuda" if has_gpu else "cpu"))


def _labels(target: targets.AnyTarget, length: Floats) -> Floats:
    """What to train on, (n,): buckets, places, or standardised log lengths."""
    if isinstance(target, targets.Bucket | targets.Rank):
        return target.labels(length).astype(np.float64)
    logs = np.log(length)
    return np.asarray((logs - logs.mean()) / logs.std())


def _center(target: targets.AnyTarget, length: Floats, scores: Floats) -> tuple[float, float]:
    """The shift and scale that take a head's scores to the target's unit.

    Ranking scores (n, 1) have no zero and no unit of their own; they are standardised, so that
    those of several heads can be averaged.
    """
    if isinstance(target, targets.Bucket):
        return 0.0, 1.0
    if isinstance(target, targets.Rank):
        scale = float(scores.std()) or 1.0
        return -float(scores.mean()) / scale, 1 / scale
    logs = np.log(length)
    return float(logs.mean()), float(logs.std())


def _scores(head: nn.Module, seen: torch.Tensor) -> Floats:
    """What the head says, (n, outputs), in double precision on the CPU."""
    head.eval()
    with torch.no_grad():
        return np.asarray(head(seen).double().cpu().numpy())


def _spread(table: NDArray[Any]) -> NDArray[Any]:
    """Standard deviations, (columns,); 1 where a column never changes."""
    spread = table.std(axis=0)
    return np.where(spread > 1e-9, spread, 1.0)


def _kept(path: Path | None, make: Callable[[], torch.Tensor]) -> torch.Tensor:
    """What ``make`` gives, read from the checkpoint's file if an earlier run wrote it."""
    if path is not None and path.is_file():
        kept: torch.Tensor = torch.load(path, weights_only=True)
        return kept
    made = make()
    if path is not None:
        save_atomically(made, path)
    return made


@contextmanager
def _bars(progress: bool) -> Iterator[Show]:
    """``show(label, total)`` starts a progress bar on a terminal and gives what moves it on."""
    from rich.console import Console
    from rich.progress import Progress

    off = not (progress and sys.stderr.isatty())
    with Progress(console=Console(stderr=True), transient=True, disable=off) as bars:

        def show(label: str, total: int) -> Advance:
            task = bars.add_task(label, total=total)

            def advance(done: int, total: int | None = None, loss: float | None = None) -> None:
                told = "" if loss is None else f": validation loss {loss:.4f}"
                bars.update(task, completed=done, total=total, description=label + told)

            return advance

        yield show
