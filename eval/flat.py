"""Comparisons, advice and the like as plain rows and documents, for JSON and CSV."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from lengthwise.eval.advise import Advice
from lengthwise.eval.alike import NAMES
from lengthwise.eval.capacity import Capacity
from lengthwise.eval.compare import BOUND, Comparison, Contender
from lengthwise.eval.reproductions.table import Reproduction
from lengthwise.eval.searched import Searched
from lengthwise.eval.statistics import Interval, paired_ratio, t_interval
from lengthwise.eval.survival import survival
from lengthwise.eval.tables import reasons
from lengthwise.eval.tuned import Tuned
from lengthwise.eval.verdict import capacity_verdicts, verdicts

RATIOS = ("e2e_mean_s", "e2e_p99_s")  # of those to the first row


def comparison_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One row a load and contender, the bound last: each metric's mean over seeds, with the ends of
    its 95% interval as ``_low`` and ``_high``, and ``_ratio`` of latencies to the first row.
    """
    metrics = [str(name) for name in comparison.runs if name not in NAMES]
    rows: list[dict[str, Any]] = []
    for rate in comparison.rates:
        at: dict[str, Any] = {"requests_per_s": comparison.offered_rate(rate)}
        first = comparison.contenders[0]
        for who in comparison.contenders:
            runs = comparison.at(rate, who)
            named = {"router": who.router_name} if comparison.routed else {}
            row: dict[str, Any] = {
                **at,
                **named,
                "policy": who.policy_name,
                "predictor": who.predictor_name,
            }
            for metric in metrics:
                row |= _said(metric, t_interval(runs[metric].to_numpy(dtype=float)))
                if metric in RATIOS:
                    row |= _said(f"{metric}_ratio", comparison.ratio(rate, who, metric))
            rows.append(row)
        bound = comparison.values(rate, BOUND, "none", "e2e_mean_s")
        if not np.isnan(bound).any():
            ratio = paired_ratio(bound, comparison.of(rate, first, "e2e_mean_s"))
            rows.append(
                {**at, "policy": BOUND, "predictor": "none",
                 **_said("e2e_mean_s", t_interval(bound)), **_said("e2e_mean_s_ratio", ratio)}
            )  # fmt: skip
    return rows


def comparison_document(comparison: Comparison) -> dict[str, Any]:
    """What the terminal shows of a comparison, and what it was made with."""
    alike = [
        {"requests_per_s": comparison.offered_rate(rate), "said": said}
        for rate in comparison.rates
        for said in reasons(comparison, rate)
    ]
    there = [row for rate in comparison.rates for row in survival(comparison, rate)]
    return {
        "workload": comparison.name, "verdicts": verdicts(comparison), "alike": alike,
        **({"hosts": there} if comparison.hosts else {}),
        "notices": list(comparison.notices), "config": dict(comparison.config),
        "rows": comparison_rows(comparison),
    }  # fmt: skip


def advice_rows(found: Advice) -> list[dict[str, Any]]:
    """The rows of both comparisons; ``load`` is the share of the capacity that arrives."""
    return [
        {"load": row["requests_per_s"] / found.capacity, **row}
        for row in (*comparison_rows(found.own), *comparison_rows(found.loads))
    ]


def capacity_rows(policy: str, found: Capacity) -> list[dict[str, Any]]:
    """One row a seed: the rate, and what was measured there."""
    return [
        {
            "policy": policy, "seed": seed, "capacity_requests_per_s": rate,
            **next(p.values for p in found.probes if (p.seed, p.rate) == (seed, rate)),
        }
        for seed, rate in enumerate(found.per_seed)
    ]  # fmt: skip


def capacity_document(policy: str, slo: Mapping[str, float], found: Capacity) -> dict[str, Any]:
    """The capacity over seeds, each seed's, and every rate that was tried."""
    return {
        "policy": policy, "slo_s": dict(slo), **_said("capacity_requests_per_s", found.rate),
        "seeds": capacity_rows(policy, found), "probes": [asdict(probe) for probe in found.probes],
    }  # fmt: skip


def tuned_rows(found: Tuned, other: str = "defaults") -> list[dict[str, Any]]:
    """One row a set and policy: the metric's mean, its ratios to the baseline and to ``policy``,
    which is the ``other``.
    """
    baseline, default = found.names[0], found.policy
    rows: list[dict[str, Any]] = []
    for on, name in found.values:
        row: dict[str, Any] = {
            "workload": found.workload, "set": on, "policy": name, "predictor": found.predictor,
            "runs": len(found.values[on, name]),
        }  # fmt: skip
        row |= _said(f"{found.metric}_s", found.interval(on, name))
        row |= _said(f"ratio_to_{baseline}", found.ratio(on, name, baseline))
        row |= _said(f"ratio_to_{other}", found.ratio(on, name, default))
        rows.append(row)
    return rows


def tuned_document(found: Tuned) -> dict[str, Any]:
    """What was found, how good it is, and what it was found with."""
    return {
        "policy": found.policy, "tuned": found.tuned, "metric": found.metric,
        "notices": list(found.notices), "config": dict(found.config), "rows": tuned_rows(found),
    }  # fmt: skip


def searched_rows(found: Searched) -> list[dict[str, Any]]:
    """One row a set and policy: the ratios are to the baseline and to the best it began with."""
    return tuned_rows(found, "start")


def searched_document(found: Searched) -> dict[str, Any]:
    """The same of a search, with the policy's file, and how it went."""
    return {
        **tuned_document(found), "rows": searched_rows(found), "runs_as": found.spelled,
        "source": found.text, "runs": found.runs, "refused": found.refused,
        "history": [
            {"runs": runs, found.metric + "_s": math.exp(level)} for runs, level in found.history
        ],
    }  # fmt: skip


def capacities_rows(found: Mapping[Contender, Capacity]) -> list[dict[str, Any]]:
    """One row a policy, predictor and seed."""
    return [
        {"policy": row["policy"], "predictor": who.predictor_name, **row}
        for who, one in found.items()
        for row in capacity_rows(who.policy_name, one)
    ]


def capacities_document(
    slo: Mapping[str, float], found: Mapping[Contender, Capacity]
) -> dict[str, Any]:
    """What was found of each policy and predictor, in words and in numbers."""
    return {
        "slo_s": dict(slo), "verdicts": capacity_verdicts(found, slo),
        "rows": [
            {"predictor": who.predictor_name, **capacity_document(who.policy_name, slo, one)}
            for who, one in found.items()
        ],
    }  # fmt: skip


def prediction_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a metric of a predictor, then of its baselines: its value with a 95% interval."""
    own = report.get("predictor") or report["model"]
    measured = {own: report.get("metrics", {}), **report.get("baselines", {})}
    return [
        {"predictor": str(who), "metric": name, **found}
        for who, metrics in measured.items()
        for name, found in metrics.items()
    ]


def reproduction_rows(found: Reproduction) -> list[dict[str, Any]]:
    """One row a line of the published table."""
    nobody = Interval(float("nan"), float("nan"), float("nan"), 0)
    return [
        {
            "setting": line.setting, "policy": line.policy, "theirs": line.theirs,
            "their_ratio": line.their_ratio, **_said("ours", line.ours or nobody),
            **_said("our_ratio", line.our_ratio or nobody),
        }
        for line in found.lines
    ]  # fmt: skip


def reproduction_document(found: Reproduction) -> dict[str, Any]:
    """The table, what it is of, and what differs."""
    return {
        "title": found.title, "quantity": found.quantity, "ratios_are_to": found.first,
        "source": found.source, "differs": list(found.differs), "why": found.why,
        "rows": reproduction_rows(found),
    }  # fmt: skip


def _said(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
