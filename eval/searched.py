"""A score searched on some windows of a workload, judged on others, and written as a file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lengthwise import registry
from lengthwise.errors import InputError, UnknownNameError
from lengthwise.eval import tuned
from lengthwise.eval.cells import Cells
from lengthwise.eval.compare import BASELINE
from lengthwise.eval.judge import Trial
from lengthwise.eval.search import BUDGET, PARSIMONY, SIZE, Candidate, search
from lengthwise.eval.setting import Loaded, RouterLike, Setting
from lengthwise.eval.source import Source
from lengthwise.eval.tune import Case
from lengthwise.eval.tuned import (
    REQUESTS,
    SETS,
    Floats,
    HeldOut,
    Tuned,
    check_asked,
    held_out,
    values_of,
)
from lengthwise.features import FEATURES
from lengthwise.policies import load_policy
from lengthwise.policies.formula import Formula, read
from lengthwise.policies.formula_file import source as file_of
from lengthwise.policies.units import spelled_unit, unit_of
from lengthwise.policy import SchedulingPolicy
from lengthwise.prediction import CURVES
from lengthwise.predictors.predict import PredictorLike, predictor_label
from lengthwise.protocols import TimingModel
from lengthwise.serving import Engine
from lengthwise.serving.events import EventsLike
from lengthwise.serving.nodes import NodesLike
from lengthwise.serving.options import DEFAULT_TIMING
from lengthwise.workload import Workload

FILE, FUNCTION = "policy.py", "score"
# What a search reads unless it is told: what a request is, how far it is, and how full it is there.
USUAL = (
    "predicted_tokens", "expected_remaining_tokens", "prompt_tokens", "generated_tokens",
    "computed_tokens", "arrival_s", "now_s", "running_requests", "waiting_requests",
    "kv_utilization",
)  # fmt: skip
SAMPLED = 256  # requests that scores are tried on before they are run


@dataclass(frozen=True)
class Searched(Tuned):
    """What a search found: ``policy`` is the best that it began with, ``tuned`` the formula that
    was found. ``text`` is its file, ``spelled`` how it is given to other commands once it is
    written to ``policy.py``; ``refused`` counts trees that were not run.
    """

    text: str = ""
    spelled: str = ""
    runs: int = 0
    refused: int = 0
    history: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Begun:
    """What a search begins with: ``runs`` are simulated on ``trials`` to search, those "train".

    ``names`` are the features that scores may read, ``began`` the policies that it begins with.
    """

    loaded: Loaded
    apart: HeldOut
    trials: Mapping[str, list[Trial]]
    names: tuple[str, ...]
    began: Mapping[str, Candidate]
    runs: int
    notices: list[str]


def begun(
    workload: str | Workload | Source,
    setting: Setting,
    metric: str,
    budget: int,
    features: Sequence[str],
    start: Sequence[str],
    rates: Sequence[float] | Literal["auto"],
    requests: int,
    seeds: int,
    predictor: PredictorLike,
) -> Begun:
    """What ``search_policy`` says of its arguments, checked and read; nothing is run."""
    check_asked("searching", metric, requests, seeds)
    for name in features:
        if name not in FEATURES:
            raise UnknownNameError("feature", name, FEATURES)
    loaded = setting.load()
    apart = held_out(workload, loaded, predictor, rates, requests, seeds)
    trials = {on: apart.trials(on) for on in SETS}
    notices = list(apart.notices)
    caching = any(node.engine.enable_prefix_caching for node in loaded.system(BASELINE).nodes)
    there = _there(trials["train"], caching)
    for name in features:
        if name not in there:
            raise InputError(f"this run has no {name} (it has {', '.join(there)})")
    began = _seeds(start, there, notices)
    names = tuple(features) or tuple(
        name for name in there if name in USUAL or FEATURES[name].given in ("column", "tenant")
    )
    least = max(budget, len(trials["train"]) * (len(began) + 24))
    if least > budget:
        notices.append(f"{len(trials['train'])} windows to search on: {least} runs, not {budget}")
    return Begun(loaded, apart, trials, names, began, least, notices)


def search_policy(
    workload: str | Workload | Source,
    *,
    metric: str = "e2e_mean",
    budget: int = BUDGET,
    size: int = SIZE,
    parsimony: float = PARSIMONY,
    features: Sequence[str] = (),
    start: Sequence[str] = (),
    rates: Sequence[float] | Literal["auto"] = (),
    requests: int = REQUESTS,
    seeds: int = 5,
    predictor: PredictorLike = "oracle",
    engine: Engine | None = None,
    timing: str | TimingModel = DEFAULT_TIMING,
    replicas: int = 1,
    router: RouterLike = "round-robin",
    nodes: NodesLike | None = None,
    metrics_interval_s: float = 0.0,
    failures: EventsLike | None = None,
    seed: int = 0,
    cells: Cells | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Searched:
    """Searches a score on windows of a workload, and judges what was found on others.

    Windows are as for ``tuned.tune_policy``; ``budget`` is how many runs are simulated.
    ``features`` are what scores may read (by default ``USUAL``, and what the workload has beside
    it), ``start`` the policies that it begins with, by default all registered ones that are
    formulas of what this run can tell. The result is no worse than any of these on the windows that
    it was searched on.

    Raises ``InputError`` for a policy in ``start`` that is no formula, or reads what there is not.
    """
    if size < 1 or parsimony < 0:
        raise InputError("searching needs 1 node or more, and a parsimony of 0 or more")
    setting = Setting(
        engine or Engine(), timing, replicas, router, nodes, metrics_interval_s, failures
    )
    task = begun(
        workload, setting, metric, budget, features, start, rates, requests, seeds, predictor
    )
    apart, trials, names, began = task.apart, task.trials, task.names, task.began
    notices = list(task.notices)
    rows = sample(trials["train"], {*names, *_read_by(began)}, seed)
    found = search(
        began, trials["train"], rows, metric=metric, budget=task.runs, size=size,
        parsimony=parsimony, seed=seed, cells=cells, progress=progress, names=names,
    )  # fmt: skip
    told = f"{Formula(found.best.tree)} {found.best.beside}".strip()
    if found.best in began.values():
        notices.append(f"nothing was found that is better than {found.seed}")
    file = _file(found.best, f"Found by a search for a small {metric} of {apart.source.name}.")
    judged = _loaded(file, found.best, told)
    baselines = dict.fromkeys((BASELINE, found.seed))
    values = values_of(trials, (*map(load_policy, baselines), judged), metric, cells)
    if all(
        np.array_equal(values[on, name], values[on, BASELINE]) for on in SETS for name in baselines
    ):
        notices.append(
            f"{found.seed} ran as {BASELINE} everywhere: where no queue forms there is nothing to "
            "search; give higher --rates"
        )
    result = Searched(
        workload=apart.source.name, policy=found.seed, tuned=told, metric=metric,
        predictor=predictor_label(predictor), values=values, notices=tuple(notices),
        config={
            "workload": apart.source.name, "metric": metric, "budget": task.runs,
            "size": size, "parsimony": parsimony, "features": list(names), "start": list(began),
            "predictor": predictor_label(predictor), "rates_requests_per_s": list(apart.rates),
            "requests": requests, "windows": {on: len(of) for on, of in trials.items()},
            "seed": seed, **task.loaded.config(),
        },
        spelled=f"{FILE}:{FUNCTION}{found.best.beside}", runs=found.runs, refused=found.refused,
        history=found.history,
    )  # fmt: skip
    return replace(result, text=_file(found.best, _about(result, rows, names)))


def _there(trials: Sequence[Case], caching: bool) -> tuple[str, ...]:
    """What a score can read in these runs of its requests and of the replica that they are in."""
    workload, predictions = trials[0].workload, trials[0].predictions
    told = registry.load("provider", "fast")
    found = []
    for name, one in FEATURES.items():
        given = {
            "": True, "column": name in workload, "prediction": predictions is not None,
            "tenant": "tenant" in workload,
        }[one.given]  # fmt: skip
        if name in told and given and (caching or name != "cached_tokens"):
            found.append(name)
    return tuple(found)


def _seeds(start: Sequence[str], there: Sequence[str], notices: list[str]) -> dict[str, Candidate]:
    """What a search begins with, by name."""
    found: dict[str, Candidate] = {}
    for name in start or registry.names("policy"):
        policy = load_policy(name)
        formula = read(policy.score.function, policy.score.tunables)
        lacking = [one for one in policy.score.features if one not in there]
        if start and (formula is None or lacking):
            why = f"reads {', '.join(lacking)}, which this run has not" if lacking else (
                "is no formula: one return of features, numbers, + - * /, np.minimum, np.maximum "
                "and np.sqrt"
            )  # fmt: skip
            raise InputError(f"a search can't begin with {name}: it {why}")
        if formula is not None and not lacking and _plain(policy):
            found[name] = Candidate(formula.tree, policy.preemption)
    return found


def _plain(policy: SchedulingPolicy) -> bool:
    """Whether nothing but preemption stands beside the score."""
    return policy.guard is None and policy.admission.reserve == 0


def _read_by(began: Mapping[str, Candidate]) -> set[str]:
    return {name for one in began.values() for name in Formula(one.tree).features}


def sample(trials: Sequence[Case], names: set[str], seed: int) -> dict[str, Floats]:
    """Values of features as runs of these have them, (SAMPLED,) each, in the order of the table.

    Requests are drawn from all windows; half of them wait, the others are somewhere in their
    answers, and have been there for up to a minute.
    """
    rng = np.random.default_rng(seed)
    at = rng.integers(0, len(trials), SAMPLED)
    columns: dict[str, Floats] = {}
    row = [int(rng.integers(len(trials[k].workload))) for k in at.tolist()]

    def column(name: str) -> Floats:
        return of(lambda one: one.workload[name])

    def of(get: Callable[[Case], Any]) -> Floats:
        return np.array([get(trials[k])[i] for k, i in zip(at.tolist(), row, strict=True)], float)

    output = column("output_tokens")
    generated = np.where(rng.random(SAMPLED) < 0.5, 0.0, np.floor(rng.random(SAMPLED) * output))
    for name, feature in FEATURES.items():
        if name not in names:
            continue
        if name in ("prompt_tokens", "arrival_s", "priority", "deadline_s"):
            columns[name] = column(name)
        elif name == "predicted_tokens":
            columns[name] = of(lambda one: one.predictions.predicted_tokens)
        elif name in CURVES:
            predicted = of(lambda one: one.predictions.predicted_tokens)
            spread = (
                1.0 if name == "expected_remaining_tokens" else rng.lognormal(0.3, 0.3, SAMPLED)
            )
            columns[name] = np.maximum(predicted * spread - generated, 1.0)
        elif name == "generated_tokens":
            columns[name] = generated
        elif name == "computed_tokens":
            prompt = column("prompt_tokens")
            columns[name] = np.where(generated > 0, prompt + generated, 0.0)
        elif name == "now_s":
            waited = 60.0 * rng.random(SAMPLED) ** 2
            columns[name] = column("arrival_s") + waited
        elif feature.unit == "requests":
            columns[name] = np.floor(rng.random(SAMPLED) * 256)
        elif feature.unit == "1":
            columns[name] = rng.random(SAMPLED)
        else:
            columns[name] = rng.random(SAMPLED) * 10.0 ** rng.uniform(0, 4, SAMPLED)
    return columns


def _file(best: Candidate, about: str) -> str:
    return file_of(best.tree, FUNCTION, about, spelled_unit(unit_of(best.tree)))


def _about(found: Searched, rows: Mapping[str, Floats], names: Sequence[str]) -> str:
    """What stands at the head of the file: what it is for, how good it is, where it was seen."""
    said = []
    for name in found.names[:-1]:
        ratio = found.ratio("test", found.tuned, name)
        within = "" if np.isnan(ratio.low) else f" ({ratio.low:.3f} to {ratio.high:.3f})"
        said.append(f"{ratio.mean:.3f}{within} times that of {name}")
    runs = len(found.values["test", found.tuned])
    rates = found.config["rates_requests_per_s"]
    at = f", at {', '.join(f'{rate:.4g}' for rate in rates)} requests/s" if rates else ""
    reads = [name for name in names if name in found.tuned]
    seen = "; ".join(
        f"{name} {rows[name].min():.6g} to {rows[name].max():.6g}" for name in reads
        if FEATURES[name].unit == "tokens"
    )  # fmt: skip
    lines = [
        f"Found by `lengthwise search` for {found.metric} in {found.runs} simulated runs.",
        "",
        f"Workload: {found.workload}{at}, lengths by {found.predictor}.",
        f"On {runs} runs that it was not searched on (95% intervals, paired), {found.metric} is",
        *(f"  {one}" for one in said),
        *([f"Seen: {seen}."] if seen else []),
        f"Run it as {found.spelled}",
    ]
    return "\n".join(lines) + "\n"


def _loaded(text: str, best: Candidate, label: str) -> SchedulingPolicy:
    """The file, read as any user's is."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILE
        path.write_text(text)
        policy = load_policy(f"{path}:{FUNCTION}{best.beside}")
        return replace(policy, label=label)


def save(
    found: Searched, folder: str | Path, document: Mapping[str, Any], command: str | None = None
) -> Path:
    """Writes policy.py, searched.json (``document``), runs.parquet and config.json; returns the
    folder.
    """
    return tuned.save(
        found, folder, document, command, described="searched.json", texts={FILE: found.text}
    )
