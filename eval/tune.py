"""Tuning a baseline: the numbers of a policy that serve best on workloads for tuning.

A learned policy is compared with what a careful operator would run, so baselines are tuned on what
the learner was trained on, by a budget of simulated runs, and judged on other workloads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from typing import Any, Protocol, TypeVar

import numpy as np

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.eval import metrics
from lengthwise.eval.cells import Cells, once
from lengthwise.policies.load import parts_of
from lengthwise.policy import Between, RoutingPolicy, SchedulingPolicy, Tunable
from lengthwise.serving import Records, System, run
from lengthwise.workload import Workload

Judged = TypeVar("Judged", bound=SchedulingPolicy | RoutingPolicy)
Metric = Callable[[Records], float]
Tunables = dict[str, Tunable]

METRICS: dict[str, Metric] = {
    name: partial(metrics.of_requests, name) for name in metrics.OF_REQUESTS
}
# What stands beside the score and is a number to be tuned where it is in use, which it is from just
# above 0: as it is spelled behind a plus sign, and the values that are tried.
BESIDE_SCORE = {
    ("preempt", "price"): Between(1e-5, 10.0),
    ("preempt", "margin"): Between(1e-3, 1e6),
    ("preempt", "protect_after"): Between(0.01, 1.0),
    ("guard", "ratio"): Between(0.01, 100.0),
    ("admit", "reserve"): Between(0.01, 10.0),
}
BUDGET = 64  # simulated runs for one policy
WIDE, NEAR = math.log(8.0), math.log(1.6)  # how far candidates lie from the default, from the best


class Case(Protocol):
    """A run to judge on: an ``Episode`` of the environments is one."""

    @property
    def workload(self) -> Workload: ...
    @property
    def system(self) -> System: ...
    @property
    def predictions(self) -> Any: ...
    @property
    def seed(self) -> int: ...


def placed(system: System, judged: SchedulingPolicy | RoutingPolicy) -> System:
    """The system with a policy in all nodes, or a router before them."""
    if isinstance(judged, RoutingPolicy):
        return replace(system, routing=judged)
    return replace(system, nodes=tuple(replace(node, policy=judged) for node in system.nodes))


def records_of(case: Case, judged: SchedulingPolicy | RoutingPolicy) -> Records:
    """One run of a case under a policy or a router."""
    system = placed(case.system, judged)
    return run(case.workload, system, case.predictions, seed=case.seed)


def numbers_of(policy: SchedulingPolicy | RoutingPolicy) -> tuple[Tunables, dict[str, Between]]:
    """What can be tuned of a policy, and within which values.

    The tunables of its score, and what of ``BESIDE_SCORE`` is in use: a price of 0 is none, and
    stays; a share of the prediction above 1 protects hardly anybody, and stays.
    """
    found, ranges = dict(policy.score.tunables), dict(policy.score.ranges)
    if isinstance(policy, SchedulingPolicy):
        for (part, name), allowed in BESIDE_SCORE.items():
            value = getattr(_part(policy, part), name, 0.0)
            if value in allowed and (part != "preempt" or policy.preemption.mode != "none"):
                found[f"{part}:{name}"], ranges[f"{part}:{name}"] = value, allowed
    return found, ranges


def _part(policy: SchedulingPolicy, part: str) -> Any:
    return {"preempt": policy.preemption, "guard": policy.guard, "admit": policy.admission}[part]


def tune(
    policy: Judged,
    runs: Sequence[Case],
    *,
    metric: str | Metric = "e2e_mean",
    budget: int = BUDGET,
    seed: int = 0,
    cells: Cells | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Judged:
    """The policy with the numbers that have the lowest metric over ``runs``; lower is better.

    ``numbers_of`` says which numbers. Random search with successive halving (Jamieson and
    Talwalkar, AISTATS 2016), twice: candidates around the defaults on a few runs, half of which go
    on to twice as many; then the same around the best. Candidates are compared by the geometric
    mean over runs, so that each run counts alike. At most ``budget`` runs are simulated. The
    defaults are a candidate that always goes on, so the result is no worse than they on ``runs``. A
    policy without numbers to tune is returned as it is. Candidates stay within the ranges that
    tunables declare. With ``cells``, the metric of each run is kept as it is known, and what is
    there is not run again; ``progress`` is called with (runs done, budget).
    Raises ``InputError`` for a metric that is not positive, and for a budget below 4 runs of each.
    """
    measure = _metric(metric)
    if not runs:
        raise InputError("tuning needs at least one run")
    if budget < 4 * len(runs):
        raise InputError(f"a budget of {budget} runs is less than 4 for each of {len(runs)}")
    defaults, _ = numbers_of(policy)
    if not defaults:
        return policy
    moved = None if progress is None else partial(_moved, progress, budget)
    search = _Search(policy, runs, measure, np.random.default_rng(seed), cells, moved)
    best = search.halve([defaults], WIDE, budget // 2)
    best = search.halve([defaults, best], NEAR, budget)
    return policy if best == defaults else with_tunables(policy, best)


def with_tunables(policy: Judged, found: Tunables) -> Judged:
    """The policy with these numbers, which its name then says as one would type it."""
    own = {name: value for name, value in found.items() if ":" not in name}
    given = [f"{name}={_spelled(value)}" for name, value in own.items()]
    head, *parts = parts_of(policy.label or policy.score.name)
    file, py, function = head.partition(".py:")
    name, _, options = (function if py else head).partition(":")
    given += [option for option in options.split(",") if option.startswith("choices=")]
    head = f"{file + py if py else ''}{name}{':' if given else ''}{','.join(given)}"
    beside = {part.partition(":")[0]: part for part in parts}
    for spelled, value in found.items():
        if ":" in spelled:
            part, _, option = spelled.partition(":")
            beside[part] = _with_option(beside.get(part, part), option, _spelled(value))
    return replace(_turned(policy, found), label="+".join((head, *beside.values())))


def _with_option(part: str, name: str, value: str) -> str:
    """``preempt:margin=3`` with another option, or with another value of it."""
    head, _, options = part.partition(":")
    kept = [item for item in options.split(",") if item and item.partition("=")[0] != name]
    return f"{head}:{','.join((*kept, f'{name}={value}'))}"


def _turned(policy: Judged, found: Tunables) -> Judged:
    """The policy with these numbers, under the name that it had."""
    own = {name: value for name, value in found.items() if ":" not in name}
    changed: dict[str, Any] = {"score": policy.score.with_tunables(own)}
    fields = {"preempt": "preemption", "guard": "guard", "admit": "admission"}
    for spelled, value in found.items():
        part, colon, name = spelled.partition(":")
        if colon and isinstance(policy, SchedulingPolicy):
            before = changed.get(fields[part], _part(policy, part))
            changed[fields[part]] = replace(before, **{name: value})
    return replace(policy, **changed)


class _Search:
    """Values of the metric by candidate and run; each is simulated once."""

    def __init__(
        self,
        policy: SchedulingPolicy | RoutingPolicy,
        runs: Sequence[Case],
        measure: Metric,
        rng: np.random.Generator,
        cells: Cells | None = None,
        moved: Callable[[int], None] | None = None,
    ) -> None:
        self.policy, self.runs, self.measure, self.rng = policy, runs, measure, rng
        self.known: dict[tuple[tuple[Tunable, ...], int], float] = {}
        self.order = rng.permutation(len(runs)).tolist()
        self.rungs = [*(2**k for k in range(len(runs).bit_length()) if 2**k < len(runs)), len(runs)]
        self.ranges = numbers_of(policy)[1]
        self.cells, self.moved = cells, moved

    def halve(self, kept: list[Tunables], spread: float, budget: int) -> Tunables:
        """The best of ``kept`` and of candidates around the last of them.

        As many are drawn as ``budget``, of simulated runs in all since the beginning, allows.
        """
        for candidate in kept:
            self.level(candidate, self.order)
        count, left = 0, budget - len(self.known)
        while self._price(count + 1) <= left:
            count += 1
        drawn = [_near(kept[-1], spread, self.rng, self.ranges) for _ in range(count)]
        for runs in self.rungs:
            drawn.sort(key=lambda c: self.level(c, self.order[:runs]))
            drawn = drawn[: _half(len(drawn))]
        return min((*kept, *drawn), key=lambda c: self.level(c, self.order))

    def _price(self, count: int) -> int:
        """The runs that halving ``count`` candidates takes."""
        price, before = 0, 0
        for runs in self.rungs:
            price += count * (runs - before)
            count, before = _half(count), runs
        return price

    def level(self, candidate: Tunables, at: Sequence[int]) -> float:
        """The mean logarithm of the metric over some of the runs."""
        return float(np.mean([math.log(self._value(candidate, index)) for index in at]))

    def _value(self, candidate: Tunables, index: int) -> float:
        key = tuple(candidate.values()), index
        if key not in self.known:
            judged = _turned(self.policy, candidate)
            name = _cell_name(self.policy.name, candidate, index)
            value = once(
                self.cells, name, lambda: self.measure(records_of(self.runs[index], judged))
            )
            if not 0 < value < math.inf:
                raise InputError(f"tuning needs a metric above 0, not {value} of {judged.name}")
            self.known[key] = value
            if self.moved is not None:
                self.moved(len(self.known))
        return self.known[key]


def _moved(progress: Callable[[int, int], None], budget: int, done: int) -> None:
    progress(done, budget)


def _cell_name(policy: str, candidate: Tunables, index: int) -> str:
    said = json.dumps([policy, sorted(candidate.items())])
    return f"tuning-{blake2b(said.encode(), digest_size=8).hexdigest()}-{index}"


def _half(count: int) -> int:
    return min(count, max(1, count // 2))


def _near(
    centre: Tunables, spread: float, rng: np.random.Generator, ranges: Mapping[str, Between]
) -> Tunables:
    """Random tunables: factors of the centre's values, bools by a coin, 0 by up to 1 around it.

    What falls outside a declared range is set to its end.
    """
    found: Tunables = {}
    for name, value in centre.items():
        draw = float(rng.uniform(-spread, spread))
        if isinstance(value, bool):
            found[name] = bool(rng.random() < 0.5)
        elif isinstance(value, int):
            found[name] = max(1, round(value * math.exp(draw))) if value > 0 else value
        else:
            number = value * math.exp(draw) if value else draw / WIDE
            found[name] = float(f"{number:.3g}")  # what a table can say
        if name in ranges:
            found[name] = ranges[name].nearest(found[name])
    return found


def _spelled(value: Tunable) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _metric(metric: str | Metric) -> Metric:
    if not isinstance(metric, str):
        return metric
    if metric not in METRICS:
        raise UnknownNameError("metric", metric, METRICS)
    return METRICS[metric]
