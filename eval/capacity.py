"""Capacity: the largest arrival rate at which a policy still meets a service-level objective."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lengthwise.errors import InputError
from lengthwise.eval import metrics
from lengthwise.eval.cells import Cells, once
from lengthwise.eval.compare import Comparison, Contender, compare
from lengthwise.eval.output import CONFIG, provenance, replaced_folder, write_json
from lengthwise.eval.pool import over_cores
from lengthwise.eval.predict import needs_prediction
from lengthwise.eval.setting import Loaded, PolicyLike, RouterLike, Setting
from lengthwise.eval.simulate import simulate_on
from lengthwise.eval.source import Source, as_source
from lengthwise.eval.statistics import Interval, t_interval
from lengthwise.picoseconds import LONGEST_S
from lengthwise.policies import load_policy
from lengthwise.predictors.predict import PredictorLike, predict, predictor_label
from lengthwise.protocols import TimingModel
from lengthwise.serving import Engine
from lengthwise.serving.events import EventsLike
from lengthwise.serving.nodes import NodesLike
from lengthwise.serving.options import DEFAULT_TIMING
from lengthwise.serving.run import Backend
from lengthwise.workload import Workload

# Rates of curves: so many, in shares of the smallest capacity and of the largest.
CURVE, AROUND = 6, (0.7, 1.15)


@dataclass(frozen=True)
class Probe:
    """One rate tried on one seed: the metrics that the SLO names, in seconds."""

    rate: float
    seed: int
    values: Mapping[str, float]
    met: bool


@dataclass(frozen=True)
class Capacity:
    """The largest rate that meets the SLO, requests/s, over seeds; and every rate tried."""

    rate: Interval
    per_seed: tuple[float, ...]
    probes: tuple[Probe, ...]


def capacity(
    workload: str | Workload | Source,
    policy: PolicyLike,
    slo: Mapping[str, float],
    predictor: PredictorLike = None,
    seeds: int = 5,
    tolerance: float = 0.01,
    engine: Engine | None = None,
    timing: str | TimingModel = DEFAULT_TIMING,
    replicas: int = 1,
    router: RouterLike = "round-robin",
    backend: Backend = "auto",
    processes: int = 1,
    start_rate: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
    nodes: NodesLike | None = None,
    metrics_interval_s: float = 0.0,
    failures: EventsLike | None = None,
    cells: Cells | None = None,
) -> Capacity:
    """Bisects the arrival rate on each seed until it is known within ``tolerance`` (relative).

    The search doubles or halves ``start_rate`` until one rate meets the SLO and one misses it.
    Raises ``InputError`` where none of 2^-20 to 2^20 times ``start_rate`` does one or the other: a
    workload that is too short to queue meets any SLO. ``nodes``, ``metrics_interval_s``
    and ``failures`` are as for ``simulate``. With ``cells``, each rate of each seed is kept as it
    is tried, and not tried again.
    """
    for name in slo:
        if name not in metrics.OF_REQUESTS:
            raise InputError(f"SLO metric {name!r} is not one of {', '.join(metrics.OF_REQUESTS)}")
    if seeds < 1 or not 0 < tolerance < 1:
        raise InputError("capacity needs 1 seed or more and a tolerance between 0 and 1")
    setting = Setting(
        engine or Engine(), timing, replicas, router, nodes, metrics_interval_s, failures
    )
    setting.load()  # what is wrong with it is told now
    task = partial(
        _one_seed, as_source(workload), policy, dict(slo), predictor, tolerance, setting, backend,
        start_rate, cells,
    )  # fmt: skip
    found: list[float] = []
    probes: list[Probe] = []
    for rate, tried in over_cores(task, [(seed,) for seed in range(seeds)], processes):
        found.append(rate)
        probes += tried
        if progress is not None:
            progress(len(found), seeds)
    return Capacity(t_interval(found), tuple(found), tuple(probes))


def contenders(
    policies: Sequence[PolicyLike], predictors: Sequence[PredictorLike], loaded: Loaded
) -> list[Contender]:
    """Each policy, with each predictor if it or the router reads lengths; none twice."""
    found: dict[str, Contender] = {}
    for policy in policies:
        rule = load_policy(policy)
        followed = [kind.policy or rule for kind in loaded.kinds]
        reads = any(needs_prediction(each, loaded.routing) for each in followed)
        for predictor in (predictors or (None,)) if reads else (None,):
            who = Contender(policy, predictor, rule.name, predictor_label(predictor))
            found.setdefault(who.label, who)
    return list(found.values())


def curves(
    workload: str | Workload | Source,
    found: Mapping[Contender, Capacity],
    slo: Mapping[str, float],
    seeds: int = 5,
    engine: Engine | None = None,
    **options: Any,
) -> Comparison:
    """Those whose capacities were found, and fcfs, compared around them at ``CURVE`` rates.

    A request meets the SLO where it meets the limit on each metric that ``slo`` limits a statistic
    of, the largest of a metric's. ``options`` are those of ``compare``.
    """
    rates = [one.rate.mean for one in found.values()]
    shown = np.linspace(AROUND[0] * min(rates), AROUND[1] * max(rates), CURVE)
    limits: dict[str, float] = {}
    for name, limit in slo.items():
        metric = name.rpartition("_")[0]
        limits[metric] = max(limit, limits.get(metric, 0.0))
    policies = list(dict.fromkeys(who.policy for who in found))
    predictors = list(dict.fromkeys(w.predictor for w in found if w.predictor is not None))
    compared = compare(
        workload, policies, predictors, [float(f"{rate:.3g}") for rate in shown], seeds, engine,
        slo=limits, **options,
    )  # fmt: skip
    asked = {who.label for who in found}
    first, *others = compared.contenders
    return dataclasses.replace(
        compared, contenders=(first, *(who for who in others if who.label in asked))
    )


def probes_table(found: Mapping[Contender, Capacity]) -> Any:
    """Every rate that was tried, a row each."""
    import pandas as pd

    return pd.DataFrame([
        {"policy": who.policy_name, "predictor": who.predictor_name, "rate": probe.rate,
         "seed": probe.seed, "met": probe.met, **probe.values}
        for who, one in found.items() for probe in one.probes
    ])  # fmt: skip


def save(
    found: Capacity, folder: str | Path, config: Mapping[str, Any], command: str | None = None
) -> Path:
    """Writes capacity.json, probes.parquet and config.json; returns the folder."""
    import pandas as pd

    rows = [{"rate": p.rate, "seed": p.seed, "met": p.met, **p.values} for p in found.probes]
    with replaced_folder(folder) as fresh:
        pd.DataFrame(rows).to_parquet(fresh / "probes.parquet", index=False)
        write_json(
            fresh / "capacity.json",
            {**dataclasses.asdict(found.rate), "per_seed": list(found.per_seed)},
        )
        write_json(fresh / CONFIG, provenance(config, command))
    return Path(folder)


def _one_seed(
    source: Source,
    policy: PolicyLike,
    slo: dict[str, float],
    predictor: PredictorLike,
    tolerance: float,
    setting: Setting,
    backend: Backend,
    start_rate: float,
    cells: Cells | None,
    seed: int,
) -> tuple[float, list[Probe]]:
    probes: list[Probe] = []
    workload = source.load(start_rate, seed)
    predicted = predict(predictor, workload, seed)
    loaded = setting.load()

    def tried(rate: float) -> dict[str, float]:
        result = simulate_on(
            workload.at_rate(rate), loaded, policy, predicted, seed=seed, backend=backend
        )
        return _statistics(result.records, slo)

    def meets(rate: float) -> bool:
        name = f"seed-{seed}-rate-{rate!r}"
        values = once(cells, name, lambda: tried(rate))
        # NaN: no request has the metric, as an answer of one token has no TPOT to miss
        met = not any(values[name] > limit for name, limit in slo.items())
        probes.append(Probe(rate, seed, values, met))
        return met

    low = high = start_rate
    if meets(start_rate):
        for _ in range(20):
            low, high = high, high * 2
            if not meets(high):
                break
        else:
            raise InputError(
                f"{source.name} meets the SLO even at {high:g} requests/s: it is too short to "
                "queue; give it more --requests or a tighter SLO"
            )
    else:
        slowest = (len(workload) - 1) / LONGEST_S  # the engines' clock ends there
        halved = [start_rate / 2**k for k in range(1, 21)]
        for low in (rate for rate in halved if rate >= slowest):
            if meets(low):
                high = 2 * low
                break
        else:
            raise InputError(
                f"{source.name} misses the SLO even at {low:g} requests/s, where requests run "
                "alone; give it a looser SLO"
            )
    while high / low > 1 + tolerance:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if meets(middle) else (low, middle)
    return low, probes


def _statistics(records: Any, slo: Mapping[str, float]) -> dict[str, float]:
    """The statistics that the SLO names."""
    values: dict[str, float] = {}
    for name in slo:
        metric = name.rpartition("_")[0]
        described = metrics.describe(metric, metrics.PER_REQUEST[metric](records))
        values[name] = described[name]
    return values
