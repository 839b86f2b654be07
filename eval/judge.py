"""Policies judged side by side: on the same unseen runs, against the first and the best baseline.

A policy that was trained several times is judged as one: what differs between training seeds is
noise of training, which an interval over windows does not see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.eval import metrics
from lengthwise.eval.metrics import Floats
from lengthwise.eval.statistics import Interval, paired_ratio, t_interval
from lengthwise.eval.tune import METRICS, Case, Metric, records_of
from lengthwise.policy import RoutingPolicy, SchedulingPolicy
from lengthwise.prediction import Predictions
from lengthwise.serving import Records, System
from lengthwise.workload import Workload

Policy = SchedulingPolicy | RoutingPolicy
Values = dict[str, NDArray[np.float64]]  # metric -> one value a window


def _percentile(metric: Callable[[Records], Floats], percent: int, records: Records) -> float:
    """Of the requests that have the metric; NaN where none has."""
    return metrics.describe("", metric(records))[f"_p{percent}"]


# The columns of a row, and what they are called in ``tune.METRICS``.
COLUMNS = {
    "mean_latency_s": "e2e_mean",
    "p99_latency_s": "e2e_p99",
    "mean_ttft_s": "ttft_mean",
    "mean_normalized_latency_s": "normalized_latency_mean",
}
# What stands beside them, without ratios: it may be 0, or unknown.
BESIDE: dict[str, Metric] = {
    "max_wait_s": lambda records: float(metrics.wait_s(records).max()),
    **{
        f"p{p}_{name}_s": partial(_percentile, metric, p)
        for name, metric in (("ttft", metrics.ttft_s), ("tpot", metrics.tpot_s))
        for p in (50, 99)
    },
}


@dataclass(frozen=True)
class Trial:
    """One run to judge on: what ``tune.Case`` asks for."""

    workload: Workload
    system: System
    predictions: Predictions | None
    seed: int


def measured(policy: Policy, trials: Sequence[Case]) -> Values:
    """The metrics of a policy on each trial, (trials,) each."""
    records = [records_of(trial, policy) for trial in trials]
    of = {**{column: METRICS[name] for column, name in COLUMNS.items()}, **BESIDE}
    return {column: np.array([metric(one) for one in records]) for column, metric in of.items()}


def judge(
    baselines: Sequence[Policy],
    judged: Sequence[Policy],
    trials: Sequence[Case],
    measure: Callable[[Policy, Sequence[Case]], Values] = measured,
) -> list[dict[str, Any]]:
    """One row a policy: baselines, then what is judged; several judged ones get a row together.

    Of each metric a row has the mean over the trials and a 95% t-interval (``_low``, ``_high``).
    ``ratio`` is the mean latency over the first baseline's, paired by trial; ``ratio_best`` that
    over the best baseline's, which is the one with the lowest mean latency (geometric over trials,
    so that each counts alike) on these very trials: whoever judged by it knew in hindsight what to
    run. ``COLUMN_ratio_best`` is the same of another metric. ``best`` names the baseline,
    ``trained`` tells what is judged from what it is judged beside. In the row of several (of one
    kind, from several training seeds) values are means over trials, and intervals are over the
    policies. ``measure`` is asked once for each policy, in their order.
    """
    if not baselines:
        raise InputError("judging needs a baseline")
    found = [measure(policy, trials) for policy in baselines]
    best = int(np.argmin([np.log(values["mean_latency_s"]).mean() for values in found]))
    named = {"best": baselines[best].name}
    rows = [
        {
            "policy": policy.name,
            **_summary(values, found[0], found[best]),
            **named,
            "trained": False,
        }
        for policy, values in zip(baselines, found, strict=True)
    ]
    learned = [measure(policy, trials) for policy in judged]
    rows += [
        {"policy": policy.name, **_summary(values, found[0], found[best]), **named, "trained": True}
        for policy, values in zip(judged, learned, strict=True)
    ]
    if len(judged) > 1:
        together = _together(learned, found[0], found[best])
        rows.append({"policy": f"mean of {len(judged)}", **together, **named, "trained": True})
    return rows


def _summary(values: Values, first: Values, best: Values) -> dict[str, float]:
    row: dict[str, float] = {}
    for column, found in values.items():
        row |= _said(column, t_interval(found))
    row |= _said("ratio", paired_ratio(values["mean_latency_s"], first["mean_latency_s"]))
    for column in COLUMNS:
        row |= _said(_to_best(column), paired_ratio(values[column], best[column]))
    return row


def _together(learned: Sequence[Values], first: Values, best: Values) -> dict[str, float]:
    """Over policies of several training seeds: each has one mean, and one ratio, over trials."""
    row: dict[str, float] = {}
    for column in learned[0]:
        row |= _said(column, t_interval([values[column].mean() for values in learned]))
    row |= _said("ratio", _ratio_of_means(learned, first, "mean_latency_s"))
    for column in COLUMNS:
        row |= _said(_to_best(column), _ratio_of_means(learned, best, column))
    return row


def _ratio_of_means(learned: Sequence[Values], to: Values, column: str) -> Interval:
    level = float(np.exp(np.log(to[column]).mean()))
    own = [float(np.exp(np.log(values[column]).mean())) for values in learned]
    return paired_ratio(own, np.full(len(own), level))


def _to_best(column: str) -> str:
    return "ratio_best" if column == "mean_latency_s" else f"{column}_ratio_best"


def _said(name: str, interval: Interval) -> Mapping[str, float]:
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
