"""What a grid would run, and about how long: everything is checked, one run is timed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from lengthwise.eval import searched, tuned
from lengthwise.eval.compare import BASELINE, auto_rates, contenders_of
from lengthwise.eval.held_out import apart
from lengthwise.eval.hosts import hosts_of
from lengthwise.eval.judge import Policy, Trial
from lengthwise.eval.setting import Loaded, PolicyLike, RouterLike, Setting
from lengthwise.eval.simulate import simulate_on
from lengthwise.eval.source import Source
from lengthwise.eval.tune import numbers_of, records_of
from lengthwise.policies import load_policy, load_router
from lengthwise.policy import RoutingPolicy
from lengthwise.predictors.predict import PredictorLike, predict
from lengthwise.serving import Engine
from lengthwise.serving.run import Backend
from lengthwise.workload import Workload

SAMPLE = 64  # requests on which predictors are timed


def compare_plan(
    source: Source,
    policies: Sequence[PolicyLike],
    predictors: Sequence[PredictorLike],
    rates: Sequence[float] | Literal["auto"],
    seeds: int,
    engine: Engine,
    *,
    processes: int = 1,
    routers: Sequence[RouterLike] = (),
    backend: Backend = "auto",
    hosts: bool = False,
    **system: Any,
) -> list[str]:
    """Lines on what ``compare`` with these arguments would run; raises ``InputError`` as it does.

    ``system``: timing, replicas, router, nodes, metrics_interval_s and failures.
    """
    loaded = Setting(engine, **system).load()
    contenders = contenders_of(policies, predictors, loaded, tuple(routers))
    told = []
    if rates == "auto":
        rates, said = auto_rates(source.load(None, 0), loaded)
        told.append(said)
    began = time.perf_counter()
    workload = source.load(rates[0] if rates else None, 0)
    each_s = time.perf_counter() - began
    asked = {who.predictor_name: who.predictor for who in contenders}
    sample = workload.head(SAMPLE) if len(workload) > SAMPLE else workload
    for predictor in asked.values():
        began = time.perf_counter()
        predict(predictor, sample, 0)
        each_s += (time.perf_counter() - began) * len(workload) / len(sample)
    top = max(rates, default=None)
    run_s = _run_s(workload if top is None else workload.at_rate(top), loaded, backend)
    others = hosts_of(loaded.kinds) if hosts else ()
    cells = seeds * max(len(rates), 1) * (1 + len(others))
    runs = cells * len(contenders)
    at = f"at {', '.join(f'{rate:g}' for rate in rates)} requests/s" if rates else "at its own rate"
    workers = min(processes, seeds)
    total_s = (
        (seeds * each_s * (1 + len(others)) + runs * run_s) * math.ceil(seeds / workers) / seeds
    )
    return [
        f"would compare {len(contenders)} rows: {', '.join(who.label for who in contenders)}",
        f"on {source.name} ({len(workload):,} requests) {at}, {seeds} seeds: {cells} cells, "
        f"{runs} runs",
        f"about {duration(total_s)} in {workers} processes (a run of fcfs took {run_s:.2g} s)",
        *([f"on {1 + len(others)} hosts from fast to slow"] if others else []),
        *told,
    ]


def tuning_plan(
    source: Source,
    policies: Sequence[PolicyLike],
    routers: Sequence[RouterLike],
    rates: Sequence[float] | Literal["auto"],
    budget: int,
) -> str:
    """A line on what ``compare`` would tune first; a rate "auto" counts as one."""
    judged: list[Any] = [load_router(one) for one in routers]
    judged = judged or [load_policy(one) for one in policies]
    named = [one.name for one in judged if numbers_of(one)[0]]
    windows, _, told = apart(source, rates[0] if rates and rates != "auto" else None)
    count = len(windows) * (1 if rates == "auto" else max(len(rates), 1))
    return (
        f"before that, would tune {', '.join(named) or 'nothing: no policy has numbers'} {told}, "
        f"{max(budget, 4 * count)} runs each"
    )


def capacity_plan(
    source: Source,
    policy: PolicyLike,
    predictor: PredictorLike,
    seeds: int,
    tolerance: float,
    engine: Engine,
    *,
    processes: int = 1,
    backend: Backend = "auto",
    **system: Any,
) -> list[str]:
    """The same of ``capacity``: how many rates are tried is known when they have been."""
    loaded = Setting(engine, **system).load()
    workload = source.load(1.0, 0)
    predicted = predict(predictor, workload, 0)
    run_s = _run_s(workload, loaded, backend, policy, predicted)
    # doubled until the SLO is missed, then bisected: log2 of the doubling over the tolerance
    steps = math.ceil(math.log2(math.log(2.0) / math.log1p(tolerance)))
    least = steps + 2
    workers = min(processes, seeds)
    total_s = math.ceil(seeds / workers) * least * run_s
    return [
        f"would search the capacity of {source.name} ({len(workload):,} requests) on {seeds} seeds",
        f"{steps} runs a seed for a tolerance of {tolerance:g}, after 2 to 21 that find the "
        "neighbourhood",
        f"about {duration(total_s)} or more in {workers} processes (a run took {run_s:.2g} s)",
    ]


def tune_plan(
    policy: PolicyLike | RoutingPolicy,
    source: Source,
    *,
    metric: str,
    budget: int,
    rates: Sequence[float] | Literal["auto"],
    requests: int,
    seeds: int,
    predictor: PredictorLike,
    engine: Engine,
    **system: Any,
) -> list[str]:
    """The same of ``tune``; ``system`` is as for ``compare_plan``."""
    setting = Setting(engine, **system)
    task = tuned.begun(policy, source, setting, metric, budget, rates, requests, seeds, predictor)
    numbers = ", ".join(numbers_of(task.judged)[0])
    return [
        f"would tune {task.judged.name} ({numbers}) for a small {metric}",
        *_apart_lines(task.apart, task.trials, task.runs, "tune", task.baseline),
        *task.notices,
    ]


def search_plan(
    source: Source,
    *,
    metric: str,
    budget: int,
    features: Sequence[str],
    start: Sequence[str],
    rates: Sequence[float] | Literal["auto"],
    requests: int,
    seeds: int,
    predictor: PredictorLike,
    engine: Engine,
    **system: Any,
) -> list[str]:
    """The same of ``search``."""
    setting = Setting(engine, **system)
    task = searched.begun(
        source, setting, metric, budget, features, start, rates, requests, seeds, predictor
    )
    baseline = load_policy(BASELINE)
    return [
        f"would search a score for a small {metric}, of {', '.join(task.names)}",
        f"beginning with {', '.join(task.began)}",
        *_apart_lines(task.apart, task.trials, task.runs, "search", baseline),
        *task.notices,
    ]


def _apart_lines(
    apart: tuned.HeldOut, trials: Mapping[str, Sequence[Trial]], runs: int, does: str,
    baseline: Policy,
) -> list[str]:  # fmt: skip
    """How many runs on which windows, and how long they take: all on one core."""
    at = (
        f"at {', '.join(f'{rate:g}' for rate in apart.rates)} requests/s"
        if apart.rates
        else "at its own rate"
    )
    train, test = apart.windows.tuning, apart.windows.test
    each = max(len(window.workload) for window in train)
    trial = max(trials["train"], key=lambda one: one.workload.rate)
    run_s = _second_s(lambda: records_of(trial, baseline))
    tests = 3 * (len(trials["train"]) + len(trials["test"]))
    return [
        f"on {apart.source.name} {at}: {runs} runs on {len(train)} windows of {each:,} requests to "
        f"{does}, and {tests} to judge it beside two others on those and on {len(test)} "
        "more",
        f"about {duration((runs + tests) * run_s)} (a run of {baseline.name} took {run_s:.2g} s)",
    ]


def duration(seconds: float) -> str:
    """ "40 s", "12 min", "3.5 h"."""
    if seconds < 100:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _run_s(
    workload: Workload, loaded: Loaded, backend: Backend, policy: PolicyLike = BASELINE,
    predicted: Any = None,
) -> float:  # fmt: skip
    return _second_s(
        lambda: simulate_on(workload, loaded, policy, predicted, seed=0, backend=backend)
    )


def _second_s(run: Callable[[], Any]) -> float:
    """How long a run takes; the second one, since the first may compile."""
    took = 0.0
    for _ in range(2):
        began = time.perf_counter()
        run()
        took = time.perf_counter() - began
    return took
