"""Whether length-aware scheduling pays for some traffic: measured at four loads, said in words.

An operator knows a trace and a GPU, not the rates at which a comparison shows something. So the
capacity is found first, and the traffic is then run at its own rate and at 80, 95 and 110% of it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lengthwise.errors import InputError
from lengthwise.eval import metrics
from lengthwise.eval.cells import Cells
from lengthwise.eval.compare import (
    AUTO,
    BASELINE,
    SAME,
    Comparison,
    Contender,
    capacity_of,
    compare,
    on_hosts,
)
from lengthwise.eval.hosts import Host, hosts_of, spread
from lengthwise.eval.setting import Loaded, RouterLike, Setting
from lengthwise.eval.simulate import simulate_on
from lengthwise.eval.source import Cut, Fixed, Source, Spelled, as_source
from lengthwise.eval.statistics import Interval
from lengthwise.eval.tables import number, queue_forms
from lengthwise.eval.verdict import gains, share
from lengthwise.predictors.predict import PredictorLike, predictor_label
from lengthwise.protocols import TimingModel
from lengthwise.serving import Engine
from lengthwise.serving.nodes import NodesLike
from lengthwise.serving.options import DEFAULT_TIMING
from lengthwise.workload import Workload

TAUS = (0.3, 0.5, 0.7)
POLICIES = ("fcfs", "sjf", "srtf+guard", "mlfq")
BY_LENGTH = "srtf+guard"  # told beside a policy that reads no lengths
MEAN, P99 = "e2e_mean_s", "e2e_p99_s"
FAIR = 1.5  # what a P99 may be, in fcfs's, for its policy to be preferred
WINDOWS, LEAST_WINDOW = 5, 500  # a trace is cut into so many windows, each of so many requests
MOST_REQUESTS = 2_000  # a run; more would say the same more slowly
OWN_REQUESTS = 10_000  # of the run at the traffic's own rate, if they are short
# What a prefix cache is told of a run costs time too. At these lengths 150 requests queue.
MOST_TOKENS, FEWEST_REQUESTS = 18_000_000, 150
# The default SLO: so many times the medians at so little load, and at least what a reader notices.
SLO_AT, SLO_SCALE, SLO_LEAST = 0.1, 5.0, {"ttft": 1.0, "tpot": 0.05}


@dataclass(frozen=True)
class Advice:
    """What to do, in three sentences, and the comparisons that they are read from.

    ``capacity`` is the rate (requests/s) at which requests are finished while a backlog never
    empties; ``own_rate`` is the traffic's own. ``own`` compares at that rate, ``loads`` at
    ``AUTO`` of the capacity. ``policy`` is what to serve with ("fcfs": leave it as it is), and
    ``command`` the line that does it. ``taus`` is what a predictor of each Kendall tau gains at
    ``rate``, as the ratio of mean latencies to fcfs's; 1 is the oracle. ``source`` is what the
    seeds of ``loads`` drew from.
    """

    sentences: tuple[str, str, str]
    capacity: float
    own_rate: float
    rate: float
    policy: str
    command: str
    slo: Mapping[str, float]
    taus: Mapping[float, Interval]
    own: Comparison
    loads: Comparison
    source: Source = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """All of it but the runs, for JSON."""
        return {
            "sentences": list(self.sentences), "policy": self.policy, "command": self.command,
            "capacity_requests_per_s": self.capacity, "own_rate_requests_per_s": self.own_rate,
            "judged_at_requests_per_s": self.rate, "slo_s": dict(self.slo),
            "mean_latency_ratio_by_tau": {
                f"{tau:g}": {"mean": r.mean, "low": r.low, "high": r.high}
                for tau, r in self.taus.items()
            },
        }  # fmt: skip


def windows_of(whole: Workload, windows: int) -> Cut:
    """So many windows of a trace that share nothing, spread over it, none beyond ``MOST_REQUESTS``
    and ``MOST_TOKENS``, unless all of a window arrives at the same moment.
    """
    apart = len(whole) // windows
    size = min(apart, _size(whole, MOST_REQUESTS))
    arrival, middle = whole["arrival_s"], np.arange(windows) * apart + apart // 2
    first = middle - size // 2  # traces often begin with what has piled up before them
    while size < apart and (arrival[first + size - 1] == arrival[first]).any():
        size = min(2 * size, apart)
        first = middle - size // 2
    first -= np.minimum(first - np.arange(windows) * apart, 0)
    return Cut(whole.name, tuple(whole.window(at, at + size) for at in first.tolist()))


def _size(workload: Workload, most: int) -> int:
    """How many requests of a workload a run takes: ``most`` where they are short."""
    tokens = float((workload["prompt_tokens"] + workload["output_tokens"]).mean())
    return max(FEWEST_REQUESTS, min(most, int(MOST_TOKENS / tokens)))


def advise(
    workload: str | Workload | Source,
    predictor: PredictorLike = None,
    *,
    slo: Mapping[str, float] | None = None,
    seeds: int = WINDOWS,
    engine: Engine | None = None,
    timing: str | TimingModel = DEFAULT_TIMING,
    replicas: int = 1,
    router: RouterLike = "round-robin",
    nodes: NodesLike | None = None,
    metrics_interval_s: float = 0.0,
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
    cells: Cells | None = None,
) -> Advice:
    """Runs ``workload`` at its own rate and at ``AUTO`` of its capacity, and says what pays.

    A trace is cut into windows that stand for seeds; where it is too short, or has conversations
    that can't be cut, all seeds see the same requests, and the intervals are those of noise in
    predictors alone, which the last sentence says. ``slo`` (ttft, tpot, e2e, normalized_latency,
    wait: seconds) is for goodput; without it, limits are ``SLO_SCALE`` times the medians of TTFT
    and TPOT at a tenth of the capacity, and at least ``SLO_LEAST``. What pays is judged at the own
    rate if a queue forms there and all that arrives can be served, else at 95% of the capacity.
    With ``cells``, each seed at each rate is kept as it is finished, and is not run again. Raises
    ``InputError`` for traffic that has no rate.
    """
    setting = Setting(engine or Engine(), timing, replicas, router, nodes, metrics_interval_s)
    loaded = setting.load()
    source = as_source(workload)
    whole = source.load(None, 0)
    if not (len(whole) > 1 and math.isfinite(whole.rate)):
        raise InputError(f"{whole.name} has no rate: give --arrivals, or more than one request")
    capacity = capacity_of(whole, loaded)
    limits = dict(slo) if slo else _light_slo(whole, loaded, capacity)
    given = [] if predictor is None else [predictor]
    predictors = [*given, *(f"noisy-oracle:tau={tau:g}" for tau in TAUS), "oracle"]
    shared: dict[str, Any] = {
        "engine": engine, "timing": timing, "replicas": replicas, "router": router, "nodes": nodes,
        "metrics_interval_s": metrics_interval_s, "processes": processes, "slo": limits,
        "cells": cells,
        "capacity": None if "parent" in whole else capacity,
    }  # fmt: skip
    native, native_seeds = _native(whole, seeds)
    load = whole.rate / capacity
    lengths = "noisy-oracle:tau=0.5" if predictor is None else predictor_label(predictor)
    read = predictors if load <= 1 else [predictor or lengths]  # nothing is judged beyond capacity
    hosts = _hosts(loaded)
    far = _Far(progress, native_seeds, len(AUTO) * seeds, len(hosts) * max(seeds, native_seeds))
    own = compare(native, POLICIES, read, seeds=native_seeds, progress=far.of(0), **shared)
    own = dataclasses.replace(own, notices=(*own.notices, *_sampled(native, whole)))
    rates = [float(f"{share * capacity:.3g}") for share in AUTO]
    cut = _cut(source, whole, seeds)
    loads = compare(cut, POLICIES, predictors, rates, seeds, progress=far.of(1), **shared)
    queued = queue_forms(own, math.nan) or load > 1
    there = queued and load <= 1
    at = (
        _At(own, math.nan, whole.rate, capacity)
        if there
        else _At(loads, rates[1], rates[1], capacity)
    )
    chosen, pays = _choice(at, lengths)
    taus = _by_tau(at, chosen.policy_name)
    judged = cut if at.found is loads else native
    sure = _how_sure(at, judged, seeds)
    elsewhere = _elsewhere(at, chosen, pays, hosts, judged, setting, processes, far.of(2))
    sure = "; ".join(filter(None, (sure, elsewhere)))
    return Advice(
        sentences=(
            _first(own, loads, whole.rate, capacity, loaded),
            _second(at, chosen, pays, limits),
            _third(at, chosen, pays, taus, predictor is not None, queued, sure),
        ),
        capacity=capacity,
        own_rate=float(whole.rate),
        rate=at.requests_per_s,
        policy=chosen.policy_name if pays and queued else BASELINE,
        command=_command(chosen.policy_name, predictor, pays, queued),
        slo=limits,
        taus=taus,
        own=own,
        loads=loads,
        source=cut,
    )


@dataclass(frozen=True)
class _Far:
    """How far the parts are, as one count of seeds at a rate or on a host."""

    progress: Callable[[int, int], None] | None
    own: int
    loads: int
    hosts: int

    def of(self, part: int) -> Callable[[int, int], None] | None:
        """What a part calls with its own (done, all)."""
        steps, tell = (self.own, self.loads, self.hosts), self.progress
        if tell is None:
            return None
        return lambda done, of: tell(sum(steps[:part]) + done * steps[part] // of, sum(steps))


@dataclass(frozen=True)
class _At:
    """The load that is judged: where it stands in a comparison."""

    found: Comparison
    rate: float  # the comparison's name for it
    requests_per_s: float
    capacity: float

    def ratio(self, who: Contender, metric: str) -> Interval:
        return self.found.ratio(self.rate, who, metric)

    def mean(self, metric: str, who: Contender | None = None) -> float:
        return _mean(self.found, self.rate, metric, who)

    @property
    def where(self) -> str:
        rate, share = number(self.requests_per_s), self.requests_per_s / self.capacity
        return f"at {rate} requests/s ({share:.0%} of capacity)"


def _light_slo(workload: Workload, loaded: Loaded, capacity: float) -> dict[str, float]:
    short = "parent" not in workload
    light = windows_of(workload, 1).windows[0] if short else workload
    run = simulate_on(
        light.at_rate(SLO_AT * capacity), loaded, BASELINE, None, seed=0, backend="auto"
    ).records
    tpot = metrics.tpot_s(run)
    medians = {
        "ttft": float(np.median(metrics.ttft_s(run))),
        "tpot": float(np.median(tpot[~np.isnan(tpot)])) if not np.isnan(tpot).all() else 0.0,
    }
    return {
        name: max(float(f"{SLO_SCALE * value:.2g}"), SLO_LEAST[name])
        for name, value in medians.items()
    }


def _cut(source: Source, whole: Workload, seeds: int) -> Source:
    """What the seeds see: draws of a preset, windows of a trace, or the same requests each."""
    if not isinstance(source, Spelled) or source.drawn:
        again = source.load(None, 1)
        if not np.array_equal(again["output_tokens"], whole["output_tokens"]):
            return source
    if len(whole) >= seeds * LEAST_WINDOW and "parent" not in whole:
        return windows_of(whole, seeds)
    return source if isinstance(source, Fixed) else Fixed(whole)


def _native(whole: Workload, seeds: int) -> tuple[Source, int]:
    """What runs at the traffic's own rate, and on how many seeds: the trace from its start, or
    windows of it where requests are so long that this were minutes of work.
    """
    if "parent" in whole:
        return Fixed(whole), 2
    head = whole.head(OWN_REQUESTS)
    if len(head) <= 2 * _size(head, OWN_REQUESTS):
        return Fixed(head), 2
    return windows_of(whole, seeds), seeds


def _sampled(native: Source, whole: Workload) -> list[str]:
    """What is left out of the run at the traffic's own rate, if anything is."""
    if isinstance(native, Cut):
        size = len(native.windows[0])
        return [
            f"{whole.name}: requests are so long that runs are of {size:,} requests, "
            f"{len(native.windows)} times over the trace, at its own rate too"
        ]
    ran, there = len(native.load(None, 0)), len(whole)
    return [f"{whole.name}: own: the first {ran:,} of {there:,} requests"] if ran < there else []


def _mean(found: Comparison, rate: float, metric: str, who: Contender | None = None) -> float:
    return found.interval(rate, who or found.contenders[0], metric).mean


def _choice(at: _At, lengths: str) -> tuple[Contender, bool]:
    """The best policy with those lengths, and whether it pays beyond its interval.

    The lowest mean among those that pay and have a fair P99, or among all where none has.
    """
    able = [w for w in at.found.contenders[1:] if w.predictor_name in ("none", lengths)]
    paying = [w for w in able if gains(at.ratio(w, MEAN)) and at.ratio(w, P99).mean <= FAIR]
    best = min(paying or able, key=lambda who: at.ratio(who, MEAN).mean)
    return best, gains(at.ratio(best, MEAN))


def _by_tau(at: _At, policy: str) -> dict[float, Interval]:
    """The mean latency in fcfs's by Kendall tau; empty for a policy that reads no lengths."""
    named = {f"noisy-oracle:tau={tau:g}": tau for tau in TAUS} | {"oracle": 1.0}
    return {
        named[who.predictor_name]: at.ratio(who, MEAN)
        for who in at.found.contenders
        if who.policy_name == policy and who.predictor_name in named
    }


def _first(own: Comparison, loads: Comparison, rate: float, capacity: float, loaded: Loaded) -> str:
    """Whether a queue forms."""
    kinds = " + ".join(f"{kind.count} × {kind.timing.name}" for kind in loaded.kinds)
    wait, latency = _mean(own, math.nan, "wait_mean_s"), _mean(own, math.nan, MEAN)
    waits = f"under fcfs a request waits {_short(wait)} s of its {number(latency)} s"
    load = rate / capacity
    of = f"{number(rate)} requests/s are {load:.0%} of what {kinds} can serve ({number(capacity)})"
    if load > 1:
        return (
            f"More arrives than can be served: {of}, so a queue grows as long as the run lasts "
            f"({waits}), and {math.ceil(load / AUTO[0])} times as many are needed first."
        )
    if queue_forms(own, math.nan):
        return f"A queue forms: its own {of}, and {waits}."
    forms = next((r for r in loads.rates if r > rate and queue_forms(loads, r)), None)
    beyond = (
        f"one forms at {number(forms)}"
        if forms is not None
        else f"none does at {loads.rates[-1] / capacity:.0%} of it either"
    )
    return f"No queue forms: its own {of}, and {waits}; {beyond}."


def _second(at: _At, who: Contender, pays: bool, slo: Mapping[str, float]) -> str:
    """What is gained, and what it costs."""
    ratio = at.ratio(who, MEAN)
    if not pays:
        return (
            f"Nothing is gained for sure {at.where}: the best of {', '.join(POLICIES[1:])} has "
            f"{share(ratio)} of fcfs's mean latency."
        )
    token, ttft, p99 = (
        at.ratio(who, metric).mean for metric in ("normalized_latency_mean_s", "ttft_mean_s", P99)
    )
    goods = [at.mean("goodput_requests_per_s", w) for w in (None, who)]
    waits = [at.mean("wait_max_s", w) for w in (None, who)]
    limits = ", ".join(f"{name.upper()} {limit:g} s" for name, limit in slo.items())
    return (
        f"{at.where.capitalize()} {_named(who)} takes the mean latency to {share(ratio)} of "
        f"fcfs's, latency a token to {token:.0%}, mean TTFT to {ttft:.0%}, and goodput ({limits}) "
        f"from {number(goods[0])} to {number(goods[1])} requests/s; it costs a P99 latency of "
        f"{p99:.0%} of fcfs's and a longest wait of {number(waits[1])} s in place of "
        f"{number(waits[0])} s."
    )


def _third(
    at: _At, who: Contender, pays: bool, taus: Mapping[float, Interval], given: bool, queued: bool,
    sure: str,
) -> str:  # fmt: skip
    """What a predictor must know, what to do, and how sure that is."""
    needed = next((tau for tau in sorted(taus) if gains(taus[tau])), None)
    ratios = dict(taus) if taus else _by_tau(at, BY_LENGTH)
    by = ", ".join(
        f"{'exact lengths' if tau == 1 else f'τ {tau:g}'} {ratios[tau].mean:.2f}"
        for tau in sorted(ratios)
    )
    if not taus:
        reads = f"{who.policy_name} reads no predicted lengths ({BY_LENGTH} would have {by})"
    elif needed is None:
        reads = f"No predictor is good enough, exact lengths neither ({by} of fcfs's mean)"
    elif needed == 1.0:
        reads = f"Only exact lengths gain anything ({by} of fcfs's mean)"
    else:
        reads = f"A predictor of Kendall τ {needed:g} is enough ({by} of fcfs's mean)"
    if not pays:
        do = "leave the order as it is"
    elif not queued:
        do = "leave the order as it is until a queue forms"
    elif taus and not given:
        do = f"serve with {who.policy_name} once you have such a predictor"
    else:
        do = f"serve with {who.policy_name}"
    yours = "" if not (given and taus) else f"; yours has {at.ratio(who, MEAN).mean:.2f}"
    return f"{reads}{yours}: {do}; {sure}."


def _named(who: Contender) -> str:
    lengths = who.predictor_name.replace("noisy-oracle:tau=", "lengths of Kendall τ ")
    return who.policy_name if lengths == "none" else f"{who.policy_name} with {lengths}"


def _how_sure(at: _At, source: Source | None, seeds: int) -> str:
    """Where the intervals come from."""
    if isinstance(source, Cut):
        size = int(at.found.runs["requests"].max())
        return f"intervals are over {seeds} windows of {size:,} requests of the trace"
    if any(SAME in line for line in at.found.notices):
        return "one run of the same requests, whose own randomness is in no interval"
    return f"intervals are over {at.found.seeds} draws of the workload"


def _hosts(loaded: Loaded) -> tuple[Host, ...]:
    """What hosts may be like; none for a timing that knows none, such as a linear one."""
    try:
        return hosts_of(loaded.kinds)
    except InputError:
        return ()


def _elsewhere(
    at: _At, who: Contender, pays: bool, hosts: tuple[Host, ...], source: Source, setting: Setting,
    processes: int, progress: Callable[[int, int], None] | None,
) -> str:  # fmt: skip
    """Whether that holds on other hosts; "" where none are known."""
    if not hosts:
        return ""
    there = on_hosts(source, who, at.rate, at.found.seeds, setting, processes, progress)
    ratios = [at.ratio(who, MEAN), *there.values()]
    means = [ratio.mean for ratio in ratios]
    between = f"{100 * min(means):.0f} to {100 * max(means):.0f}%"
    gained = [gains(ratio) for ratio in ratios]  # for sure, as the sentences before it mean it
    if pays:
        held = "it holds" if all(gained) else "it doesn't hold"
    else:
        held = "nothing is gained" if not any(gained) else "there is something to gain"
    where = "on some" if not pays and any(gained) else "on all"
    return f"{held} {where} hosts that were seen ({spread(hosts)}): {between} of fcfs's mean"


def _command(policy: str, predictor: PredictorLike, pays: bool, queued: bool) -> str:
    """The line that serves so, or that leaves the order as it is."""
    if not (pays and queued):
        why = "nothing is gained for sure" if not pays else "there is no queue to order"
        return f"vllm serve MODEL    # leave the order as it is: {why}"
    chosen = policy.partition("+")[0]  # the plugin has its guard on by itself
    needs = "" if policy == "mlfq" else f', "predictor": "{_folder(predictor)}"'
    return (
        "vllm serve MODEL --scheduler-cls lengthwise.policies.plugins.vllm.scheduler "
        f'--additional-config \'{{"lengthwise": {{"policy": "{chosen}"{needs}}}}}\''
    )


def _folder(predictor: PredictorLike) -> str:
    label = "PREDICTOR" if predictor is None else str(predictor)
    return "PREDICTOR" if label.startswith(("oracle", "noisy-oracle")) else label


def _short(value: float) -> str:
    return number(value) if value >= 0.01 else "0.00"
