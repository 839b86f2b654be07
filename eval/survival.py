"""Which conclusions of a comparison hold on other hosts (``lengthwise.eval.hosts``)."""

from __future__ import annotations

import math
from typing import Any

from lengthwise.eval.compare import Comparison
from lengthwise.eval.statistics import Interval

APART = 0.05  # ratios that differ by less between hosts are told as one
METRICS = {"e2e_mean_s": "mean latency", "e2e_p99_s": "P99", "ttft_mean_s": "mean TTFT"}
LOWER, HIGHER = 0.98, 1.02  # ratios to the first row that are lower or higher, interval and all


def survival(comparison: Comparison, rate: float) -> list[dict[str, Any]]:
    """What each row has of the first one's, here and on each host, and whether that holds.

    A row of the list is a group of rows that ran the same schedule and one of ``METRICS``:
    ``verdict`` is "lower", "higher" or "same", interval and all. What is lower here ``survives``
    where it is on every host, as the mean over seeds; what is the same, where no host's interval
    says otherwise and the ratios lie within ``APART``. ``least`` and ``most`` are the ratios over
    the hosts, this one among them.
    """
    found = []
    for group in comparison.alike(rate)[1:]:
        who = group.first
        for metric in METRICS:
            here = comparison.ratio(rate, who, metric)
            there = {n: c.ratio(rate, who, metric) for n, c in comparison.hosts.items()}
            said = side(here)
            means = [here.mean, *(ratio.mean for ratio in there.values())]
            found.append(
                {
                    "rate": None if math.isnan(rate) else rate,
                    "rows": [each.label for each in group.contenders],
                    "metric": metric, "ratio": here.mean, "verdict": said,
                    "survives": _survives(said, means, list(there.values())),
                    "least": min(means), "most": max(means),
                    "hosts": {name: ratio.mean for name, ratio in there.items()},
                }
            )  # fmt: skip
    return found


def _survives(said: str, means: list[float], there: list[Interval]) -> bool:
    if said == "lower":
        return max(means) < LOWER
    if said == "higher":
        return min(means) > HIGHER
    return max(means) - min(means) < APART or all(side(ratio) == "same" for ratio in there)


def side(ratio: Interval) -> str:
    """Which side of 1 a ratio is on beyond 2%, interval and all."""
    if (ratio.mean if math.isnan(ratio.high) else ratio.high) < LOWER:
        return "lower"
    if (ratio.mean if math.isnan(ratio.low) else ratio.low) > HIGHER:
        return "higher"
    return "same"


def hosts_sentence(comparison: Comparison, rate: float) -> str:
    """Which conclusions at a rate hold on all hosts, and which don't; and where all is overload."""
    parts = []
    rows = survival(comparison, rate)
    for metric, named in METRICS.items():
        for verdict in ("lower", "higher"):
            mine = [r for r in rows if (r["metric"], r["verdict"]) == (metric, verdict)]
            holds = ", ".join(_of(row) for row in mine if row["survives"])
            fails = ", ".join(_of(row) for row in mine if not row["survives"])
            if mine:
                told = f"holds for {holds}" if holds else "doesn't hold"
                no = ", not for " if holds else " for "
                parts.append(f"a {verdict} {named} {told}{no + fails if fails else ''}")
        changed = [
            row for row in rows
            if row["metric"] == metric and row["verdict"] == "same" and not row["survives"]
        ]  # fmt: skip
        if changed:
            parts.append(f"{named} differs on some for {', '.join(map(_of, changed))}")
    if not parts:
        parts.append(f"no latency differs from {comparison.baseline}'s on any")
    over = [name for name, other in comparison.hosts.items() if other.overloaded(rate)]
    if over and not comparison.overloaded(rate):
        least = min(other.capacity for other in comparison.hosts.values())
        parts.append(f"overload on {', '.join(over)}, where as few as {least:.3g} can be served")
    elif comparison.overloaded(rate) and len(over) < len(comparison.hosts):
        most = max(other.capacity for other in comparison.hosts.values())
        parts.append(f"no overload on the others, where up to {most:.3g} can be served")
    return f"on hosts from fast to slow {'; '.join(parts)}"


def _of(row: dict[str, Any]) -> str:
    """``sjf · oracle (62 to 75%)``"""
    first, *more = row["rows"]
    named = f"{first} and {len(more)} alike" if more else first
    return f"{named} ({100 * row['least']:.0f} to {100 * row['most']:.0f}%)"
