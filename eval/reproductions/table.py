"""What published tables have in common: their lines, and how ours come to stand beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.eval import metrics
from lengthwise.eval.cells import Cells, once
from lengthwise.eval.pool import over_cores
from lengthwise.eval.setting import PolicyLike, Setting
from lengthwise.eval.simulate import simulate_on
from lengthwise.eval.source import Source
from lengthwise.eval.statistics import Interval, paired_ratio, t_interval
from lengthwise.policies import load_policy
from lengthwise.prediction import Predictions
from lengthwise.predictors.predict import PredictorLike, predict
from lengthwise.protocols import TimingModel
from lengthwise.serving import Engine
from lengthwise.serving.options import DEFAULT_TIMING
from lengthwise.serving.records import Records
from lengthwise.serving.saturation import saturation_rate
from lengthwise.workload import Workload

Progress = Callable[[int, int], None]
Foretold = Callable[[Workload, int], Predictions]  # of a workload and its seed
Metric = str | Callable[[Records, Workload], float]
NONE = "–"  # a number that a paper does not give
UNSTATED = "not stated"


@dataclass(frozen=True)
class Line:
    """One line of a published table and what it is here; None where the paper gives no number."""

    setting: str
    policy: str
    theirs: str
    their_ratio: str
    ours: Interval | None = None
    our_ratio: Interval | None = None


@dataclass(frozen=True)
class Reproduction:
    """A paper's table with ours beside it, and what differs between the two.

    ``first`` names what ratios are to, ``source`` where the published numbers stand, and ``why``
    says what makes ours another than theirs, and what shows theirs.
    """

    title: str
    quantity: str
    lines: tuple[Line, ...]
    differs: tuple[str, ...]
    first: str = "FCFS"
    source: str = ""
    why: str = ""


@dataclass(frozen=True)
class Case:
    """A run: a workload on one engine under a policy.

    ``load`` is the share of what the engine serves of the workload at most (first come, first
    served) that arrives, ``rate`` requests/s; with neither the workload keeps its own times.
    ``predictor`` may be a function of the workload and its seed.
    """

    source: Source
    policy: PolicyLike = "fcfs"
    predictor: PredictorLike | Foretold = None
    engine: Engine = field(default_factory=Engine)
    timing: str | TimingModel = DEFAULT_TIMING
    load: float | None = None
    rate: float | None = None


@dataclass(frozen=True)
class Row:
    """A line of a published table and the run that is ours.

    The ratio is to the first row of the same ``setting``. ``metric`` is one of ``eval.metrics``'
    summary, or a function of the records and the workload.
    """

    setting: str
    policy: str
    theirs: str
    their_ratio: str
    case: Case
    metric: Metric = "e2e_mean_s"


def lines(
    rows: Sequence[Row],
    seeds: int,
    processes: int,
    progress: Progress | None = None,
    cells: Cells | None = None,
) -> tuple[Line, ...]:
    """The rows with their values over seeds; each seed draws its workloads, the same for all rows.

    With ``cells``, each seed is kept as it is finished.
    """
    task = partial(_simulated, tuple(rows))
    return _lines(rows, over_seeds(task, seeds, processes, progress, cells))


def over_seeds(
    task: Callable[[int], list[float]],
    seeds: int,
    processes: int,
    progress: Progress | None = None,
    cells: Cells | None = None,
) -> NDArray[np.float64]:
    """What ``task`` gives for each seed, a row each; it must be picklable.

    With ``cells``, each seed is kept as it is finished.
    """
    found: list[list[float]] = []
    for values in over_cores(partial(_kept, task, cells), [(n,) for n in range(seeds)], processes):
        found.append(values)
        if progress is not None:
            progress(len(found), seeds)
    return np.array(found)


def _kept(task: Callable[[int], list[float]], cells: Cells | None, seed: int) -> list[float]:
    return list(once(cells, f"seed-{seed}", partial(task, seed)))


def beside(
    setting: str,
    cases: Mapping[str, Case],
    metric: Metric,
    theirs: Mapping[str, str] | str = NONE,
    ratios: Mapping[str, str] = MappingProxyType({}),
) -> list[Row]:
    """A row for each policy's case, and beside it what the paper says of it: a number, or the same
    of all, and a ratio to the first.
    """
    return [
        Row(setting, name, theirs if isinstance(theirs, str) else theirs.get(name, NONE),
            ratios.get(name, NONE), case, metric)
        for name, case in cases.items()
    ]  # fmt: skip


def _lines(rows: Sequence[Row], values: NDArray[np.float64]) -> tuple[Line, ...]:
    first: dict[str, int] = {}
    found: list[Line] = []
    for place, row in enumerate(rows):
        to = first.setdefault(row.setting, place)
        own, others = values[:, place], values[:, to]
        ratio = paired_ratio(own, others) if (own > 0).all() and (others > 0).all() else None
        found.append(
            Line(row.setting, row.policy, row.theirs, row.their_ratio, t_interval(own), ratio)
        )
    return tuple(found)


def _simulated(rows: tuple[Row, ...], seed: int) -> list[float]:
    """Each row's value; rows of one case share its run."""
    runs: dict[int, tuple[Records, Workload, Mapping[str, float]]] = {}
    drawn: dict[Any, Workload] = {}
    values: list[float] = []
    for row in rows:
        key = id(row.case)
        if key not in runs:
            runs[key] = _run(row.case, seed, drawn)
        records, workload, summary = runs[key]
        values.append(
            summary[row.metric] if isinstance(row.metric, str) else row.metric(records, workload)
        )
    return values


def _run(
    case: Case, seed: int, drawn: dict[Any, Workload]
) -> tuple[Records, Workload, Mapping[str, float]]:
    loaded = Setting(case.engine, case.timing).load()
    own = repr(case.source), None
    if own not in drawn:
        drawn[own] = case.source.load(None, seed)
    rate = case.rate
    if case.load is not None:
        key = (repr(case.source), repr(case.engine), repr(case.timing))
        if key not in drawn:
            full = saturation_rate(drawn[own], loaded.system("fcfs"))
            drawn[key] = drawn[own].at_rate(full)
        rate = case.load * drawn[key].rate
    workload = drawn[own] if rate is None else drawn[own].at_rate(rate)
    predictor = case.predictor
    predicted = (
        predictor(workload, seed) if callable(predictor) else predict(predictor, workload, seed)
    )
    result = simulate_on(
        workload, loaded, load_policy(case.policy), predicted, seed=seed, backend="auto"
    )
    told = metrics.told_by(workload)
    return result.records, workload, metrics.summary(result.records, **told)
