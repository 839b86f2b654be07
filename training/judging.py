"""Judging trained policies on workloads that they were not trained on, beside baselines."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lengthwise.errors import InputError
from lengthwise.eval.cells import Cells, once
from lengthwise.eval.judge import Policy, Trial, Values, judge, measured
from lengthwise.eval.setting import Setting
from lengthwise.eval.tune import BUDGET, Case, numbers_of, tune, with_tunables
from lengthwise.eval.windows import Window, WorkloadLike, windows_of
from lengthwise.policies import load_policy, load_router
from lengthwise.policies.bundle import is_bundle, read_bundle
from lengthwise.policy import RoutingPolicy, SchedulingPolicy
from lengthwise.predictors import load_predictor
from lengthwise.predictors.predict import PredictorLike, predict
from lengthwise.protocols import TimingModel
from lengthwise.serving import Engine, System
from lengthwise.serving.events import EventsLike
from lengthwise.serving.nodes import NodesLike
from lengthwise.serving.options import DEFAULT_TIMING, engine_of
from lengthwise.serving.saturation import saturation_rate
from lengthwise.workload import Workload

Judged = Policy
PolicyLike = str | Path | SchedulingPolicy | RoutingPolicy

# What training compares with on held-out workloads.
BASELINES = {
    "scheduling": ("fcfs", "sjf"),
    "routing": ("round-robin", "jsq", "least-tokens"),
}
# What a finished policy is judged beside: the first is what everybody runs.
BESIDE = {
    "scheduling": ("fcfs", "sjf", "work"),
    "routing": (
        "round-robin", "weighted-round-robin", "jsq", "least-requests", "least-tokens",
        "jsq-tokens", "least-load", "jsew", "min-min",
    ),
}  # fmt: skip
BUNDLE = "bundle"  # in the folder of a training run


def baselines(kind: str, given: Sequence[str] | None = None) -> list[Judged]:
    """The named baselines of "scheduling" or "routing", or the usual ones of training."""
    loader: Callable[[str], Any] = load_policy if kind == "scheduling" else load_router
    return [loader(name) for name in (BASELINES[kind] if given is None else given)]


def evaluate_policy(
    policy: PolicyLike | Sequence[PolicyLike],
    workload: WorkloadLike | Sequence[WorkloadLike],
    *,
    requests: int = 1000,
    rate: float | None = None,
    seeds: int = 5,
    timing: str | TimingModel = DEFAULT_TIMING,
    engine: Engine | Mapping[str, Any] | None = None,
    predictor: PredictorLike = "oracle",
    replicas: int | None = None,
    beside: str = "",
    baseline_names: Sequence[str] | None = None,
    loads: Sequence[float] = (),
    nodes: NodesLike | None = None,
    metrics_interval_s: float = 0.0,
    failures: EventsLike | None = None,
    tuning: bool = False,
    budget: int = BUDGET,
    say: Callable[[str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    cells: Cells | None = None,
    dry_run: bool = False,
) -> list[dict[str, Any]]:
    """Bundles (or runs' folders) beside baselines on the same unseen workloads.

    One row a policy, workload and load, as ``lengthwise.eval.judge.judge`` describes them: means
    over ``seeds`` windows of ``requests`` requests (``eval.windows``: of a trace they share
    nothing), the ratio to the first and to the best baseline. Several policies are taken for one
    method's training seeds, and get a row together. ``loads`` are shares of what the system serves
    at most of each workload (``serving.saturation``); each window arrives at that rate. With
    ``tuning``, baselines with tunables stand a second time, as ``eval.tune`` sets them on the first
    windows of all workloads at all loads by ``budget`` simulated runs each.

    ``beside`` is the router (default round-robin) or scheduling policy (default fcfs) that runs
    with what is judged; ``replicas`` defaults to 1 for a scheduling policy, 4 for a router;
    ``nodes`` stand in for them. ``failures`` is what happens to nodes, as for ``simulate``. ``say``
    is called with notices, ``progress`` with (policies done, policies in all), over all workloads
    and loads. With ``cells``, each policy on each workload and load, and each tuned baseline, is
    kept as it is finished, and is not run again.

    A ``dry_run`` reads and checks everything, and times a run of the first baseline. Rows say who
    would be judged, by how many ``runs``, of those with tunables ``runs_to_tune`` before them, and
    how long it took as ``run_s``.
    """
    judged = [_read(one) for one in _several(policy)]
    kind = _kind_of(judged)
    workloads = _several(workload)
    if loads and rate is not None:
        raise InputError("give a rate or loads, not both")
    if seeds < 1 or requests < 1:
        raise InputError("judging needs 1 seed and 1 request or more")
    for load in loads:
        if not 0 < load < float("inf"):
            raise InputError(f"a load is a positive share of the capacity, not {load}")
    names = BESIDE[kind] if baseline_names is None else baseline_names
    beaten = baselines(kind, names)
    system = _system(
        kind, beside, timing, engine, replicas, nodes, metrics_interval_s, failures
    )  # fmt: skip
    known = load_predictor(predictor)
    groups: list[tuple[dict[str, Any], list[Trial]]] = []
    practice: list[Trial] = []
    for one in workloads:
        made = windows_of(
            one, requests=requests, rate=rate, test=seeds, tuning=seeds if tuning else 0
        )
        for notice in made.notices if say is not None else ():
            say(notice)  # type: ignore[misc]
        windows = (*made.tuning, *made.test)
        most = saturation_rate(windows[0].workload, system) if loads else 0.0
        for share in loads or (None,):
            at = None if share is None else share * most
            practice += [_trial(window, at, system, known) for window in made.tuning]
            trials = [_trial(window, at, system, known) for window in made.test]
            arrived = float(sum(t.workload.rate for t in trials) / len(trials))
            said = {"workload": made.name, "load": share, "rate_requests_per_s": arrived}
            groups.append((said, trials))
    if dry_run:
        run_s = 0.0
        for _ in range(2):  # the first may compile
            began = time.perf_counter()
            measured(beaten[0], groups[0][1][:1])
            run_s = time.perf_counter() - began
        least = max(budget, 4 * len(practice)) if tuning else 0
        return [
            {**said, "policy": each.name, "runs": len(trials), "run_s": run_s,
             "runs_to_tune": least if each in beaten and numbers_of(each)[0] else 0}
            for said, trials in groups
            for each in (*beaten, *judged)
        ]  # fmt: skip
    work = _Work(cells, progress, len(groups) * (len(beaten) + len(judged)))
    if tuning:
        least = max(budget, 4 * len(practice))
        if least > budget and say is not None:
            say(f"{len(practice)} windows to tune on: {least} runs for each baseline, not {budget}")
        tuned = [work.tuned(each, practice, least) for each in beaten]
        for new, old in list(zip(tuned, beaten, strict=True)):
            if new is not old:
                beaten.append(new)
            elif numbers_of(old)[0] and say is not None:
                say(f"{old.name}: nothing was found that is better than its defaults")
    work.total = work.done + len(groups) * (len(beaten) + len(judged))
    return [
        {**said, **row}
        for said, trials in groups
        for row in judge(beaten, judged, trials, work.measured)
    ]


class _Work:
    """What is run of an evaluation, in its order: kept in cells as it is finished, and counted."""

    def __init__(
        self, cells: Cells | None, progress: Callable[[int, int], None] | None, total: int
    ) -> None:
        self.cells, self.progress, self.total, self.done = cells, progress, total, 0

    def measured(self, policy: Policy, trials: Sequence[Case]) -> Values:
        found = self._kept(
            lambda: {name: values.tolist() for name, values in measured(policy, trials).items()}
        )
        return {name: np.array(values) for name, values in found.items()}

    def tuned(self, policy: Policy, practice: Sequence[Case], budget: int) -> Policy:
        found = self._kept(lambda: numbers_of(tune(policy, practice, budget=budget))[0])
        return policy if found == numbers_of(policy)[0] else with_tunables(policy, found)

    def _kept(self, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        found = once(self.cells, f"{self.done}", make)
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, max(self.done, self.total))
        return dict(found)


def _trial(window: Window, rate: float | None, system: System, predictor: Any) -> Trial:
    workload = window.workload if rate is None else window.workload.at_rate(rate)
    predicted = predict(predictor, workload, window.seed)
    return Trial(workload, system, predicted, window.seed)


def _system(
    kind: str,
    beside: str,
    timing: str | TimingModel,
    engine: Engine | Mapping[str, Any] | None,
    replicas: int | None,
    nodes: NodesLike | None,
    metrics_interval_s: float,
    failures: EventsLike | None,
) -> System:
    """What serves; nodes that bring a policy of their own are judged under the same one."""
    router = (beside or "round-robin") if kind == "scheduling" else "jsq"
    policy = (beside or "fcfs") if kind == "routing" else "fcfs"
    count = replicas or (1 if kind == "scheduling" or nodes is not None else 4)
    loaded = Setting(
        engine_of(engine), timing, count, router, nodes, metrics_interval_s, failures
    ).load()  # fmt: skip
    return loaded.system(policy)


def _several(given: Any) -> list[Any]:
    one = isinstance(given, str | Path | Workload | SchedulingPolicy | RoutingPolicy)
    found = [given] if one or callable(given) else list(given)
    if not found:
        raise InputError("judging needs a policy and a workload")
    return found


def _kind_of(judged: Sequence[Judged]) -> str:
    kinds = {"scheduling" if isinstance(j, SchedulingPolicy) else "routing" for j in judged}
    if len(kinds) > 1:
        raise InputError("scheduling policies and routers are judged apart, not in one table")
    return kinds.pop()


def _read(given: PolicyLike) -> Judged:
    if isinstance(given, SchedulingPolicy | RoutingPolicy):
        return given
    for folder in (Path(given), Path(given) / BUNDLE):
        if is_bundle(str(folder)):
            return replace(read_bundle(folder), label=str(given))
    raise InputError(f"{str(given)!r} is neither a bundle nor a finished training run")
