"""``--algo es`` and ``cma``: an evolution strategy's run, its folder and result the learners'."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lengthwise.envs.episodes import Source
from lengthwise.errors import InputError
from lengthwise.policies.bundle import write_bundle
from lengthwise.training import evolution as es
from lengthwise.training.checkpoint import read_checkpoint, write_checkpoint
from lengthwise.training.judging import Judged
from lengthwise.training.monitor import Stopping
from lengthwise.training.runs import BUNDLE, CHECKPOINT, EVALUATIONS, replace_json

ALGORITHMS = {"es": True, "cma": False}  # whether the search has one variance a weight and no more
SETTINGS: dict[str, Any] = {
    "evaluations": 400,  # policies that are run on all training episodes
    "episodes": 16,
    "population": 16,
    "sigma": 0.3,  # of the first generation, in units of a term's spread
    "regret": 1.0,  # see ``evolution.Goal``
}
TRAINING_SEED = 2**30  # the episodes that all candidates share, from here on


def evolve(
    source: Source,
    kind: str,
    *,
    folder: Path,
    settings: Mapping[str, Any],
    seed: int,
    validation: Sequence[Any],
    judges: Sequence[Judged],
    resume: bool,
    stop: Stopping,
    diagonal: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Judged, es.Evolved]:
    """Searches the weights of a blend; returns the policy and how it was found.

    Each generation is saved, and a resumed search is the same to the bit. ``validation`` are the
    held-out episodes; ``progress`` is called with (evaluations, all of them). Raises ``InputError``
    where no baseline is a blend to start from.
    """
    count = int(settings["episodes"])
    first = TRAINING_SEED + seed * count
    episodes = [source(first + i) for i in range(count)]
    told: list[list[float]] = []
    if resume and (folder / CHECKPOINT).exists():
        told = read_checkpoint(folder / CHECKPOINT)["told"]
    with es.judging(episodes) as costs, es.judging(validation) as validate:
        found = costs(judges)
        levels = np.log(found[:, :, 0]).mean(axis=1)
        blends = [i for i, judged in enumerate(judges) if es.as_blend(judged)]
        if not blends:
            names = ", ".join(judged.name for judged in judges)
            raise InputError(f"none of the baselines {names} is a blend that a search can start at")
        start = judges[min(blends, key=lambda i: levels[i])]
        weights = es.as_blend(start)
        assert weights is not None
        terms = tuple(dict.fromkeys((*es.FAMILIES[kind], *weights)))
        scales = es.scales_of(episodes, kind, terms, start).tolist()

        def after(state: es.Evolved) -> bool:
            write_checkpoint(folder / CHECKPOINT, {"told": [list(row) for row in state.told]})
            history = [[at, value] for at, value in state.history]
            replace_json(folder / EVALUATIONS, {"fitness": history, "start": start.name})
            progress(state.evaluations, int(settings["evaluations"]))
            return stop.signal is not None

        evolved = es.search(
            kind, costs, validate, best=es.least(found),
            best_validation=es.least(validate(judges)),
            start=weights, scales=dict(zip(terms, scales, strict=True)),
            goal=es.Goal(regret=float(settings["regret"])),
            evaluations=int(settings["evaluations"]), population=int(settings["population"]),
            sigma=float(settings["sigma"]), seed=seed, diagonal=diagonal, told=told, after=after,
        )  # fmt: skip
    loads = getattr(source, "loads", None)
    policy = es.with_ground(evolved.policy, es.ground(episodes, loads))
    write_bundle(policy, folder / BUNDLE)
    return policy, evolved
