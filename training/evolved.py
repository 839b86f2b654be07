"""A training run of the evolution strategy: a folder, resumed exactly, that ends in a bundle."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lengthwise.envs.episodes import Episode
from lengthwise.envs.scenarios import Scenarios, read_scenarios
from lengthwise.errors import InputError
from lengthwise.eval.statistics import paired_ratio
from lengthwise.eval.tune import tune
from lengthwise.policies import load_policy, load_router
from lengthwise.policies.blend import spelled
from lengthwise.policies.bundle import write_bundle
from lengthwise.training.commands.show import notices as show
from lengthwise.training.evolution import (
    FAMILIES,
    Evolved,
    Goal,
    Judged,
    as_blend,
    ground,
    judging,
    nothing_to_learn,
    scales_of,
    search,
    with_ground,
)
from lengthwise.training.monitor import stopping
from lengthwise.training.runs import (
    BUNDLE,
    EVALUATIONS,
    PolicyRun,
    described,
    open_run,
    replace_json,
    write_config,
)
from lengthwise.training.validation import CONFIRMATION_SEED, VALIDATION_SEED, told

STATE = "evolution.json"
BASELINES = {
    "scheduling": ("fcfs", "sjf", "work", "hrrn"),
    "routing": ("round-robin", "weighted-round-robin", "jsq", "least-tokens", "jsew"),
}


def evolve(
    scenarios: Scenarios | str | Path,
    kind: str,
    *,
    out: str | Path,
    seed: int = 0,
    evaluations: int = 400,
    population: int = 16,
    goal: Goal | None = None,
    baseline_names: Sequence[str] | None = None,
    each: int = 1,
    tuned: bool = True,
    processes: int = 1,
    resume: bool = False,
    progress: bool = True,
    command: str | None = None,
) -> PolicyRun:
    """Trains a "scheduling" or "routing" policy on scenarios by the evolution strategy.

    ``each`` is the number of episodes of each scenario in training, in validation and in the final
    comparison, which share none. Baselines with tunables are tuned on the training episodes, by as
    many simulated runs as the search takes, unless ``tuned`` is False. ``out`` becomes the run's
    folder: ``config.json``, ``evolution.json`` (the whole state, after each generation),
    ``evaluations.json`` and ``bundle/``. With ``resume`` a run goes on from there, exactly: the
    result is that of a run that was never interrupted; ``evaluations`` may have grown. SIGTERM and
    Ctrl-C end a run after a generation, saved, as ``KeyboardInterrupt``. Costs in the returned run
    are the fitness: mean log ratios to the best baseline, below 0 where the policy is better.

    Raises ``InputError`` for a folder that holds another run, a cost that is no finite number, and
    baselines of which none is a blend to start from.
    """
    if kind not in FAMILIES:
        raise InputError(f"kind must be scheduling or routing, not {kind!r}")
    if min(evaluations, population, each, processes) < 1:
        raise InputError("evaluations, population, each and processes must be 1 or more")
    named = isinstance(scenarios, Scenarios)
    source = scenarios if isinstance(scenarios, Scenarios) else read_scenarios(scenarios)
    aim = goal or Goal()
    contenders = list(baseline_names or BASELINES[kind])
    config = {
        "algo": "es", "kind": kind,
        "scenarios": [one.name for one in source] if named else str(scenarios),
        "seed": seed, "steps": evaluations, "population": population, "each": each,
        "tuned": tuned, "goal": [aim.p99, aim.normalized, aim.regret],
        "baselines": contenders,
    }  # fmt: skip
    folder, said = Path(out), []
    open_run(folder, config, resume=resume)
    write_config(folder, described(config), command)
    before = _told(folder / STATE) if resume else []

    def say(line: str) -> None:
        said.append(line)
        if progress:
            show([line])

    count = len(source) * each
    # a multiple of the number of scenarios, so that each has its turn; runs of one seed share none
    base = len(source) * 10_000 * seed
    training = [source(base + i) for i in range(count)]
    held_out = [source(_multiple(VALIDATION_SEED, len(source)) + i) for i in range(count)]
    final = [source(_multiple(CONFIRMATION_SEED, len(source)) + i) for i in range(count)]
    judges = [_contender(kind, name, training, evaluations if tuned else 0) for name in contenders]
    with judging(training, processes) as costs, judging(held_out, processes) as validate:
        table, validation = costs(judges), validate(judges)
        means = np.log(table[:, :, 0]).mean(axis=1)
        names = [judged.name for judged in judges]
        if tie := nothing_to_learn(dict(zip(names, table[:, :, 0], strict=True))):
            say(tie)
        best = int(np.argmin(means))
        blends = [i for i, judged in enumerate(judges) if as_blend(judged)]
        if not blends:
            raise InputError(f"none of {', '.join(names)} is a blend that a search can start from")
        first = min(blends, key=lambda i: means[i])
        start = as_blend(judges[first]) or {}
        terms = tuple(dict.fromkeys((*FAMILIES[kind], *start)))
        scales = scales_of(training, kind, terms, judges[first]).tolist()
        with stopping() as stop:

            def after(state: Evolved) -> bool:
                replace_json(folder / STATE, {"told": state.told})
                return stop.signal is not None

            found = search(
                kind, costs, validate, best=table[best], best_validation=validation[best],
                start=start, scales=dict(zip(terms, scales, strict=True)), goal=aim,
                evaluations=evaluations, population=population, seed=seed, told=before,
                after=after,
            )  # fmt: skip
            if stop.signal is not None and len(found.told) * population < evaluations:
                name = signal.Signals(stop.signal).name
                raise KeyboardInterrupt(
                    f"{name}: saved {str(folder)!r} after {found.evaluations:,} evaluations; the "
                    "same command with --resume goes on"
                )
    policy = with_ground(found.policy, ground([*training, *held_out], source.loads))
    bundle = write_bundle(policy, folder / BUNDLE)
    if not found.improved:
        say(f"no generation beat the start, {names[first]}, which the bundle now holds")
    say(f"learned: {spelled(tuple(found.weights), tuple(found.weights.values()))}")
    with judging(final, processes) as confirm:
        mine, theirs = confirm([policy, judges[best]])[:, :, 0]
    ratio = paired_ratio(mine, theirs)
    if ratio.mean >= 1:
        say(f"the best baseline was not beaten: {told(ratio, names[best])}")
    levels = {name: aim(row, validation[best]) for name, row in zip(names, validation, strict=True)}
    kept = {"evaluations": found.history, "baselines": levels, "weights": found.weights}
    replace_json(folder / EVALUATIONS, kept)
    at = min(found.history, key=lambda pair: pair[1])
    return PolicyRun(
        folder, bundle, list(found.history), levels, best=at, best_baseline=names[best],
        ratio=ratio, notices=tuple(said),
    )  # fmt: skip


def _contender(kind: str, name: str, training: Sequence[Episode], evaluations: int) -> Judged:
    """A baseline, tuned by as many runs as so many evaluations take, unless 0."""
    budget = max(evaluations, 4) * len(training)
    if kind == "scheduling":
        policy = load_policy(name)
        return tune(policy, training, budget=budget) if evaluations else policy
    router = load_router(name)
    return tune(router, training, budget=budget) if evaluations else router


def _multiple(seed: int, of: int) -> int:
    """The next multiple from ``seed`` on."""
    return -(-seed // of) * of


def _told(path: Path) -> list[list[float]]:
    """The generations of the run so far; none where it has not finished one."""
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text())["told"]
        return [[float(value) for value in row] for row in found]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"can't resume from {str(path)!r}: {error}") from None
