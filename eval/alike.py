"""Rows of a comparison that came out alike, to the last bit, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lengthwise.policies import load_policy

if TYPE_CHECKING:
    from lengthwise.eval.compare import Comparison, Contender

NAMES = ("rate", "offered_rate", "seed", "policy", "predictor", "router", "backend")  # no metrics


@dataclass(frozen=True)
class Alike:
    """Contenders with the same value of every metric on every seed, and the reason in words.

    ``reason`` is "" for one alone.
    """

    contenders: tuple[Contender, ...]
    reason: str = ""

    @property
    def first(self) -> Contender:
        """The one that the others came out as."""
        return self.contenders[0]

    @property
    def name(self) -> str:
        """``sjf = srtf``: the policies or routers, each once."""
        return " = ".join(dict.fromkeys(who.name for who in self.contenders))

    @property
    def label(self) -> str:
        """``sjf · ./p = sjf · oracle``: policies with their predictors, where those differ."""
        if len({who.predictor_name for who in self.contenders}) == 1:
            return self.name
        return " = ".join(who.label for who in self.contenders)


def alike(comparison: Comparison, rate: float) -> list[Alike]:
    """The contenders at one rate in their order, those that ran the same schedule together.

    Times are whole picoseconds, so that one schedule has one set of values, bit for bit.
    ``Comparison.alike`` asks this once a rate.
    """
    found: dict[bytes, list[Contender]] = {}
    for who in comparison.contenders:
        runs = comparison.at(rate, who)
        numbers = runs.drop(columns=[name for name in NAMES if name in runs])
        values = np.nan_to_num(numbers.to_numpy(dtype=np.float64), nan=-1.0)
        found.setdefault(values.tobytes(), []).append(who)
    return [Alike(tuple(group), _reason(group)) for group in found.values()]


def _reason(group: list[Contender]) -> str:
    """Why rows that differ in name do not in anything else."""
    if len(group) == 1:
        return ""
    rules = [load_policy(who.policy) for who in group]
    able = [rule for rule in rules if rule.preemption.mode != "none"]
    said = []
    if len({who.router_name for who in group}) > 1:
        said.append("requests went to the same nodes")
    if len({repr(rule.score) for rule in rules if rule not in able}) > 1:
        said.append("they served in the same order")
    if able and len({rule.name for rule in rules}) > 1:
        priced = any(rule.preemption.price > 0 for rule in able)
        said.append("no preemption paid" if priced else "nothing was preempted by score")
    if len({rule.guard for rule in rules}) > 1:
        said.append("the starvation guard never acted")
    if len({who.predictor_name for who in group} - {"none"}) > 1:
        said.append("all predicted lengths gave one order")
    return ", ".join(said) or "they served in the same order"
