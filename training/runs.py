"""The folder of a training run: its configuration, and the policy that its weights make."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lengthwise.envs.columns import Columns
from lengthwise.errors import InputError
from lengthwise.eval.output import CONFIG, provenance, write_json
from lengthwise.eval.statistics import Interval
from lengthwise.policy import RoutingPolicy, SchedulingPolicy, Score
from lengthwise.reading import read_described
from lengthwise.serving import Engine
from lengthwise.trained import TrainedOn
from lengthwise.training.checkpoint import read_checkpoint
from lengthwise.workload import Workload
from lengthwise.writing import whole_file

CHECKPOINT, BEST, BUNDLE, EVALUATIONS = "checkpoint.pt", "best.pt", "bundle", "evaluations.json"
_PACKAGES = ("gymnasium", "stable-baselines3", "sb3-contrib")


@dataclass(frozen=True)
class PolicyRun:
    """A finished run: its folder, the exported bundle, and the held-out costs.

    ``evaluations`` are (steps, cost) pairs; ``baselines`` maps a name to its cost on the same
    workloads. ``best`` is the pair of what the bundle holds, which the first evaluation, of an
    untrained network, never is. ``ratio`` is the bundle's cost over the best baseline's, on
    workloads on which neither training nor the choice of the weights depends; None where costs are
    not positive. ``notices`` were said on the way.
    """

    folder: Path
    bundle: Path
    evaluations: list[tuple[int, float]]
    baselines: dict[str, float]
    best: tuple[int, float] | None = None
    best_baseline: str = ""
    ratio: Interval | None = None
    notices: tuple[str, ...] = ()

    @property
    def cost(self) -> float:
        """The held-out cost of the bundle."""
        return min(cost for _, cost in self.evaluations) if self.best is None else self.best[1]


def open_run(folder: Path, config: Mapping[str, Any], *, resume: bool, force: bool = False) -> None:
    """Makes the folder of a new run, or checks that the run in it is this one.

    With ``force`` another run in it is discarded. Raises ``InputError`` if ``folder`` can't be
    written or holds something else, or if an argument differs from the run's ("steps" may).
    """
    check_run(folder, config, resume=resume, force=force)
    try:
        if force and not resume and folder.is_dir():
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"can't write a run to {str(folder)!r}: {error.strerror}") from error


def check_run(
    folder: Path, config: Mapping[str, Any], *, resume: bool, force: bool = False
) -> None:
    """What ``open_run`` refuses before it writes: other files, and other runs without ``force``."""
    if resume:
        _same(folder, json.loads(json.dumps(config)))
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not (folder / CONFIG).is_file():
            raise InputError(f"{str(folder)!r} holds other files; name a new folder")
        if not force:
            raise InputError(
                f"{str(folder)!r} holds a training run; resume it (--resume), name a new folder, "
                "or --force replaces it"
            )


def write_config(folder: Path, config: Mapping[str, Any], command: str | None) -> None:
    """Writes what reproduces the run: its command, versions and options."""
    stated = provenance(config, command)
    stated["versions"] |= {package: version(package) for package in _PACKAGES}
    replace_json(folder / CONFIG, stated)


def replace_json(path: Path, value: Any) -> None:
    """Writes JSON in place of an earlier file, whole or not at all."""
    with whole_file(path) as fresh:
        write_json(fresh, value)


def _same(folder: Path, given: Mapping[str, Any]) -> None:
    found = read_config(folder)
    for name, value in given.items():
        if name != "steps" and found.get(name) != value:
            raise InputError(
                f"can't resume {str(folder)!r}: its {name} is {found.get(name)!r}, not {value!r}"
            )


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a run; ``InputError`` where there is none."""
    if not os.path.isfile(folder / CONFIG):
        raise InputError(f"no training run at {str(folder)!r}: it has no {CONFIG}")
    config = read_described(folder / CONFIG, "training run")
    if not isinstance(config, dict):
        raise InputError(f"training run {str(folder / CONFIG)!r} holds no options: {config!r}")
    return config


def described(value: Any) -> Any:
    """An option as JSON can hold it: data as it is, objects by name."""
    if isinstance(value, Mapping):
        return {str(key): described(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [described(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Engine):
        return dataclasses.asdict(value)
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}:{value.__qualname__}"
    if isinstance(value, Workload):
        return repr(value)
    name = getattr(value, "name", None)  # timing models and policies have one
    return name if isinstance(name, str) else type(value).__qualname__


def learned(
    kind: str,
    columns: Columns,
    layers: Sequence[tuple[Any, Any]],
    skip: Any = None,
    trained_on: TrainedOn | None = None,
) -> SchedulingPolicy | RoutingPolicy:
    """The policy of a trained score; ``kind`` is "scheduling" or "routing"."""
    mlp, names = columns.score(layers, skip)
    score = Score("learned", mlp, names)
    if kind == "scheduling":
        return SchedulingPolicy(score, trained_on=trained_on)
    return RoutingPolicy(score, trained_on=trained_on)


def best_policy(folder: Path) -> SchedulingPolicy | RoutingPolicy:
    """The policy of a run with the lowest held-out cost so far."""
    if not (folder / BEST).exists():
        raise InputError(f"training run {str(folder)!r} has no update yet that was evaluated")
    best = read_checkpoint(folder / BEST)
    try:
        columns = Columns.of(best["features"], best["scales"])
        layers = [(weight.numpy(), bias.numpy()) for weight, bias in best["layers"]]
        skip = best.get("skip")  # the first version's networks had no linear part, and said less
        ranges = tuple((name, low, high) for name, low, high in best.get("ranges", ()))
        trained_on = TrainedOn(ranges, tuple(best["workloads"])) if ranges else None
        return learned(
            best["kind"], columns, layers, None if skip is None else skip.numpy(), trained_on
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"training run {str(folder)!r} is damaged: {BEST}: {error!r}") from error


def best_state(
    policy: SchedulingPolicy | RoutingPolicy,
    columns: Columns,
    layers: Sequence[tuple[Any, Any]],
    skip: Any,
    cost: float,
) -> dict[str, Any]:
    """What ``best_policy`` reads back."""
    trained_on = policy.trained_on or TrainedOn(())
    return {
        "kind": "scheduling" if isinstance(policy, SchedulingPolicy) else "routing",
        "cost": cost,
        "features": list(columns.names),
        "scales": {c.name: [c.shift, c.scale] for c in columns.columns},
        "layers": [[torch.from_numpy(w), torch.from_numpy(b)] for w, b in layers],
        "skip": torch.from_numpy(skip),
        "ranges": [list(row) for row in trained_on.ranges],
        "workloads": list(trained_on.workloads),
    }
