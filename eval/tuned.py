"""A policy tuned on some windows of a workload and judged on others, beside fcfs and defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.eval.cells import Cells, once
from lengthwise.eval.compare import BASELINE, auto_rates
from lengthwise.eval.held_out import trials_of, windows_of_source
from lengthwise.eval.judge import Policy, Trial
from lengthwise.eval.output import CONFIG, provenance, replaced_folder, write_json
from lengthwise.eval.setting import Loaded, PolicyLike, RouterLike, Setting
from lengthwise.eval.source import Source, as_source
from lengthwise.eval.statistics import Interval, paired_ratio, t_interval
from lengthwise.eval.tune import BUDGET, METRICS, numbers_of, records_of, tune
from lengthwise.eval.windows import Windows
from lengthwise.policies import load_policy, load_router
from lengthwise.policy import RoutingPolicy
from lengthwise.predictors import load_predictor
from lengthwise.predictors.predict import PredictorLike, predictor_label
from lengthwise.protocols import TimingModel
from lengthwise.registry import TABLES
from lengthwise.serving import Engine
from lengthwise.serving.events import EventsLike
from lengthwise.serving.nodes import NodesLike
from lengthwise.serving.options import DEFAULT_TIMING
from lengthwise.workload import Workload

REQUESTS = 1000  # of a window
SETS = ("train", "test")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Tuned:
    """What tuning found, and how good it is.

    ``policy`` is what was given and ``tuned`` what was found, both as one types them; they are the
    same where nothing better was found. ``values`` has the metric on each run, (runs,), by set
    ("train", "test") and name; the first name is the baseline's.
    """

    workload: str
    policy: str
    tuned: str
    metric: str
    predictor: str
    values: Mapping[tuple[str, str], Floats]
    config: Mapping[str, Any]
    notices: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The baseline, the policy with its defaults, and as it was tuned."""
        return list(dict.fromkeys(name for _, name in self.values))

    def interval(self, on: str, name: str) -> Interval:
        """The metric's mean over the runs of a set, with its 95% interval."""
        return t_interval(self.values[on, name])

    def ratio(self, on: str, name: str, to: str) -> Interval:
        """The paired ratio of two policies' metrics over the runs of a set, geometric."""
        return paired_ratio(self.values[on, name], self.values[on, to])


@dataclass(frozen=True)
class HeldOut:
    """Windows of a workload at each of ``rates`` (requests/s, () for its own): to choose on
    ("train"), and to judge on ("test"). ``notices`` say what was found on the way.
    """

    source: Source
    rates: tuple[float, ...]
    loaded: Loaded
    predictor: Any
    windows: Windows
    notices: tuple[str, ...]

    def trials(self, on: str) -> list[Trial]:
        """The runs of a set, before fcfs nodes."""
        windows = self.windows.tuning if on == "train" else self.windows.test
        return trials_of(windows, self.rates, self.loaded.system(BASELINE), self.predictor)


def held_out(
    workload: str | Workload | Source,
    loaded: Loaded,
    predictor: PredictorLike,
    rates: Sequence[float] | Literal["auto"],
    requests: int,
    seeds: int,
) -> HeldOut:
    """What ``tune_policy`` says of ``seeds``, ``requests`` and ``rates``."""
    source = as_source(workload)
    notices: list[str] = []
    if rates == "auto":
        rates, told = auto_rates(source.load(None, 0), loaded)
        notices.append(told)
    windows = windows_of_source(source, tuple(rates), requests, seeds)
    notices += windows.notices
    known = load_predictor(predictor)
    return HeldOut(source, tuple(rates), loaded, known, windows, tuple(notices))


def values_of(
    trials: Mapping[str, Sequence[Trial]],
    policies: Sequence[Policy],
    metric: str,
    cells: Cells | None,
) -> dict[tuple[str, str], Floats]:
    """The metric of each policy on each run, (runs,), by set and name."""
    return {
        (on, one.name): np.array(
            [kept(cells, f"{on}-{index}", one, metric, trial) for index, trial in enumerate(of)]
        )
        for on, of in trials.items()
        for one in policies
    }


@dataclass(frozen=True)
class Begun:
    """What tuning begins with: ``runs`` are simulated on ``trials`` to tune, those "train"."""

    judged: Policy
    baseline: Policy
    loaded: Loaded
    apart: HeldOut
    trials: Mapping[str, list[Trial]]
    runs: int
    notices: list[str]


def check_asked(doing: str, metric: str, requests: int, seeds: int) -> None:
    """Raises ``InputError`` for a metric that there is not, and for nothing to run on."""
    if metric not in METRICS:
        raise UnknownNameError("metric", metric, METRICS)
    if seeds < 1 or requests < 1:
        raise InputError(f"{doing} needs 1 seed and 1 request or more")


def begun(
    policy: PolicyLike | RoutingPolicy,
    workload: str | Workload | Source,
    setting: Setting,
    metric: str,
    budget: int,
    rates: Sequence[float] | Literal["auto"],
    requests: int,
    seeds: int,
    predictor: PredictorLike,
) -> Begun:
    """What ``tune_policy`` says of its arguments, all of them checked and read; nothing is run."""
    check_asked("tuning", metric, requests, seeds)
    loaded = setting.load()
    judged, baseline = _read(policy, loaded)
    if not numbers_of(judged)[0]:
        raise InputError(f"{judged.name} has no numbers to tune (see `lengthwise list policies`)")
    apart = held_out(workload, loaded, predictor, rates, requests, seeds)
    trials = {on: apart.trials(on) for on in SETS}
    notices = list(apart.notices)
    least = max(budget, 4 * len(trials["train"]))
    if least > budget:
        notices.append(f"{len(trials['train'])} windows to tune on: {least} runs, not {budget}")
    return Begun(judged, baseline, loaded, apart, trials, least, notices)


def tune_policy(
    policy: PolicyLike | RoutingPolicy,
    workload: str | Workload | Source,
    *,
    metric: str = "e2e_mean",
    budget: int = BUDGET,
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
) -> Tuned:
    """Tunes a policy's numbers on windows of a workload, and judges what was found on others.

    ``seeds`` windows of ``requests`` requests each are tuned on, and as many others judged on, at
    every rate. A preset's are drawn from seeds of their own; a file is cut, its first windows to
    tune on, at most half of them. ``metric`` is one of ``metrics.OF_REQUESTS``, and lower is
    better. ``budget`` is how many runs are simulated to tune (``lengthwise.eval.tune``): 4 for each
    window and rate at least. A registered router is tuned before fcfs nodes and judged beside
    ``router``; a scheduling policy beside fcfs. The system is as for ``simulate``.

    Raises ``InputError`` for a policy without numbers to tune.
    """
    setting = Setting(
        engine or Engine(), timing, replicas, router, nodes, metrics_interval_s, failures
    )
    task = begun(policy, workload, setting, metric, budget, rates, requests, seeds, predictor)
    judged, baseline, apart, trials = task.judged, task.baseline, task.apart, task.trials
    notices = list(task.notices)
    found = tune(
        judged, trials["train"], metric=metric, budget=task.runs, seed=seed, cells=cells,
        progress=progress,
    )  # fmt: skip
    if found is judged:
        notices.append(f"{judged.name}: nothing was found that is better than its defaults")
    values = values_of(trials, (baseline, judged, found), metric, cells)
    flat = [on for on in SETS if np.array_equal(values[on, judged.name], values[on, baseline.name])]
    if flat == list(SETS):
        notices.append(
            f"{judged.name} ran as {baseline.name} everywhere: where no queue forms there is "
            "nothing to tune; give higher --rates"
        )
    return Tuned(
        workload=apart.source.name, policy=judged.name, tuned=found.name, metric=metric,
        predictor=predictor_label(predictor), values=values, notices=tuple(notices),
        config={
            "workload": apart.source.name, "policy": judged.name, "metric": metric,
            "budget": task.runs,
            "predictor": predictor_label(predictor), "rates_requests_per_s": list(apart.rates),
            "requests": requests, "windows": {on: len(of) for on, of in trials.items()},
            "seed": seed, **task.loaded.config(),
        },
    )  # fmt: skip


def _read(policy: PolicyLike | RoutingPolicy, loaded: Loaded) -> tuple[Policy, Policy]:
    """What is tuned, and what it is judged beside."""
    if isinstance(policy, RoutingPolicy):
        return policy, loaded.routing
    if isinstance(policy, str) and policy.partition(":")[0] in TABLES["router"]:
        return load_router(policy), loaded.routing
    return load_policy(policy), load_policy(BASELINE)


def kept(cells: Cells | None, place: str, policy: Policy, metric: str, trial: Trial) -> float:
    """The metric of a run, from what an interrupted one kept if it is there."""
    name = f"{place}-{blake2b(policy.name.encode(), digest_size=8).hexdigest()}"
    return float(once(cells, name, lambda: METRICS[metric](records_of(trial, policy))))


def run_rows(found: Tuned) -> list[dict[str, Any]]:
    """One row a set, policy and run."""
    return [
        {"set": on, "policy": name, "run": run, found.metric + "_s": value}
        for (on, name), values in found.values.items()
        for run, value in enumerate(values.tolist())
    ]


def save(
    found: Tuned,
    folder: str | Path,
    document: Mapping[str, Any],
    command: str | None = None,
    *,
    described: str = "tuned.json",
    texts: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """Writes ``described`` (``document``), runs.parquet, config.json and ``texts`` by their files'
    names; returns the folder.
    """
    import pandas as pd

    with replaced_folder(folder) as fresh:
        for name, text in texts.items():
            (fresh / name).write_text(text)
        pd.DataFrame(run_rows(found)).to_parquet(fresh / "runs.parquet", index=False)
        write_json(fresh / described, document)
        write_json(fresh / CONFIG, provenance(found.config, command))
    return Path(folder)
