"""What a comparison says, in one sentence a load, before any number of a table is read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lengthwise.eval.alike import Alike
from lengthwise.eval.capacity import Capacity
from lengthwise.eval.compare import Comparison, Contender
from lengthwise.eval.statistics import Interval, paired_difference, paired_ratio
from lengthwise.eval.survival import HIGHER, hosts_sentence, side
from lengthwise.eval.tables import load_of, number, queue_forms
from lengthwise.eval.tables import verdict as side_of_1

MEAN, P99, GOODPUT = "e2e_mean_s", "e2e_p99_s", "goodput_requests_per_s"


def verdicts(comparison: Comparison) -> list[str]:
    """A sentence for each load: whether a queue forms, what gains most, and what that costs."""
    return [verdict(comparison, rate) for rate in comparison.rates]


def verdict(comparison: Comparison, rate: float) -> str:
    """The sentence of one load."""
    said = [_best(comparison, rate), *_worse(comparison, rate), *_trained(comparison, rate)]
    if comparison.hosts:
        said.append(hosts_sentence(comparison, rate))
    return f"{load_of(comparison, rate)}: {_queue(comparison, rate)}{'; '.join(said)}."


def gains(ratio: Interval) -> bool:
    """Whether a ratio of mean latencies is a gain beyond its interval, if it has one."""
    return side(ratio) == "lower"


def share(ratio: Interval) -> str:
    """``60% (55 to 65)`` of a ratio and its interval."""
    if math.isnan(ratio.low) or ratio.half < 0.005:
        return f"{ratio.mean:.0%}"
    return f"{ratio.mean:.0%} ({100 * ratio.low:.0f} to {100 * ratio.high:.0f})"


def _queue(comparison: Comparison, rate: float) -> str:
    if comparison.overloaded(rate):
        return f"overload, {number(comparison.capacity)} can be served; "
    return "a queue forms; " if queue_forms(comparison, rate) else "no queue forms; "


def _best(comparison: Comparison, rate: float) -> str:
    """The best row that needs no oracle, or with one if nothing else pays; or that nothing does."""
    baseline, *others = comparison.alike(rate)
    if not others:
        return (
            "all rows ran the same schedule"
            if len(baseline.contenders) > 1
            else "nothing to compare with"
        )

    def ratio(group: Alike) -> Interval:
        return comparison.ratio(rate, group.first, MEAN)

    paying = [group for group in others if gains(ratio(group))]
    real = [group for group in paying if _needs_no_oracle(group)]
    if not paying:
        best = min(others, key=lambda group: ratio(group).mean)
        if not queue_forms(comparison, rate) and all(
            abs(ratio(group).mean - 1) < HIGHER - 1 for group in others
        ):
            return f"the order changes nothing, all means are within 2% of {baseline.first.name}'s"
        return (
            f"no mean latency is lower for sure, the best is {share(ratio(best))} of "
            f"{baseline.first.name}'s with {_called(best)}{_goodput(comparison, rate, others)}"
        )
    best = min(real or paying, key=lambda group: ratio(group).mean)
    exact = min(paying, key=lambda group: ratio(group).mean)
    beyond = (
        f", {_called(exact)} to {ratio(exact).mean:.0%}"
        if exact is not best and not _needs_no_oracle(exact)
        else ""
    )
    return (
        f"{_called(best)} takes the mean latency to {share(ratio(best))} of "
        f"{baseline.first.name}'s{beyond}{_price(comparison, rate, best.first)}"
    )


def _price(comparison: Comparison, rate: float, who: Contender) -> str:
    """What else changes: the tail, the longest wait, and what meets the SLO."""
    waits = _from_to(comparison, rate, who, "wait_max_s")
    told = (
        f", its P99 to {comparison.ratio(rate, who, P99).mean:.0%} and the longest wait from "
        f"{waits} s"
    )
    if GOODPUT in comparison.runs:
        told += f", goodput from {_from_to(comparison, rate, who, GOODPUT)} requests/s"
    return told


def _goodput(comparison: Comparison, rate: float, groups: Sequence[Alike]) -> str:
    """The row that most requests/s meet the SLO with, if that is more than with the first one."""
    if GOODPUT not in comparison.runs:
        return ""
    best = max(groups, key=lambda group: comparison.interval(rate, group.first, GOODPUT).mean)
    gain = paired_difference(
        comparison.of(rate, best.first, GOODPUT),
        comparison.of(rate, comparison.contenders[0], GOODPUT),
    )
    if (gain.mean if math.isnan(gain.low) else gain.low) <= 0:
        return ""
    told = _from_to(comparison, rate, best.first, GOODPUT)
    return f", but goodput goes from {told} requests/s with {_called(best)}"


def _from_to(comparison: Comparison, rate: float, who: Contender, metric: str) -> str:
    """``12.2 to 22.5``: a metric in the first row and in another."""
    both = (comparison.contenders[0], who)
    return " to ".join(number(comparison.interval(rate, w, metric).mean) for w in both)


def _worse(comparison: Comparison, rate: float) -> list[str]:
    """Rows whose mean latency is above the first one's beyond their interval."""
    found = [
        f"{_called(group)} ({comparison.ratio(rate, group.first, MEAN).mean:.0%})"
        for group in comparison.alike(rate)[1:]
        if comparison.ratio(rate, group.first, MEAN).mean > HIGHER
        and side_of_1(comparison.ratio(rate, group.first, MEAN)) in ("worse", "")
    ]
    return [f"worse than {comparison.baseline}: {', '.join(found)}"] if found else []


def _trained(comparison: Comparison, rate: float) -> list[str]:
    """Learned rows beside the best one that was not."""
    best = comparison.best(rate)
    return [
        f"{who.label} has {share(comparison.ratio(rate, who, MEAN, best))} of the mean of the best "
        f"that was not trained, {best.label}"
        for who in comparison.contenders
        if who.trained and best is not comparison.contenders[0]
    ]


def _needs_no_oracle(group: Alike) -> bool:
    return any(who.predictor_name != "oracle" for who in group.contenders)


def _called(group: Alike) -> str:
    """``sjf = srtf with exact lengths``: of rows that are alike, those that are easiest to have."""
    who = min(group.contenders, key=lambda who: who.predictor_name == "oracle")
    lengths = "exact lengths" if who.predictor_name == "oracle" else who.predictor_name
    same = [w.name for w in group.contenders if w.predictor_name == who.predictor_name]
    named = " = ".join(dict.fromkeys(same))
    return named if who.predictor_name == "none" else f"{named} with {lengths}"


def capacity_verdicts(found: Mapping[Contender, Capacity], slo: Mapping[str, float]) -> list[str]:
    """Which row carries the most load within an SLO, and by how much more than the first one."""
    limits = ", ".join(f"{name} ≤ {limit:g} s" for name, limit in slo.items())
    (first, base), *others = found.items()
    said = f"{first.label} carries {number(base.rate.mean)} requests/s with {limits}"
    if not others:
        return [f"{said}."]
    ratios = {who: paired_ratio(one.per_seed, base.per_seed) for who, one in others}
    best = max(ratios, key=lambda who: ratios[who].mean)
    more = ratios[best]
    if (more.mean if math.isnan(more.low) else more.low) <= 1:
        return [f"{said}, and none for sure more: the most is {share(more)} of it, {best.label}."]
    most = number(found[best].rate.mean)
    return [
        f"{best.label} carries the most with {limits}: {most} requests/s, {share(more)} of what "
        f"{first.label} carries ({number(base.rate.mean)})."
    ]


def judged_verdict(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each policy that was trained, of one workload and load: rows of
    ``lengthwise.eval.judge.judge`` with ``trained`` among them, the first baseline first.
    """
    first = rows[0]
    return [
        f"{row['policy']} has {share(_interval(row, 'ratio'))} of {first['policy']}'s mean latency "
        f"and {share(_interval(row, 'ratio_best'))} of that of the best baseline, {row['best']}"
        f"{_beside_best(_interval(row, 'ratio_best'))}."
        for row in rows
        if row["trained"]
    ]


def _beside_best(ratio: Interval) -> str:
    if side_of_1(ratio) == "better":
        return ": it is better than all of them"
    if side_of_1(ratio) == "worse":
        return ": run that one" if ratio.mean > HIGHER else ": as good as it"
    return ": no worse, as far as can be told" if side_of_1(ratio) == "same" else ""


def _interval(row: Mapping[str, Any], name: str) -> Interval:
    return Interval(row[name], row[f"{name}_low"], row[f"{name}_high"], 0)


def run_verdict(found: Mapping[str, float], rate: float, capacity: float = math.nan) -> str:
    """One run in a sentence: ``found`` is its summary, ``rate`` and ``capacity`` in requests/s."""
    wait, latency = found["wait_mean_s"], found["e2e_mean_s"]
    waits = f"a request waits {_short(wait)} s of its {number(latency)} s"
    if capacity < rate < math.inf:
        return (
            f"Overload: {number(rate)} requests/s arrive and {number(capacity)} can be served, so "
            f"the queue grows as long as requests come; {waits}."
        )
    load = f"{rate / capacity:.0%} of what can be served ({number(capacity)} requests/s)"
    at = f", at {load}" if rate < math.inf and not math.isnan(capacity) else ""
    forms = "A queue forms" if wait > 0.05 * latency else "No queue forms"
    return f"{forms}{at}: {waits}, the longest {number(found['wait_max_s'])} s."


def _short(value: float) -> str:
    return number(value) if value >= 0.01 else "0.00"
