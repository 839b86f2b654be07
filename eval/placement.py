"""Which nodes to rent: the cheapest mix that serves a workload within an SLO, tried by simulation.

After Mélange (arXiv 2404.14527): requests are put in buckets of prompt and answer lengths, each
type of node is asked how many of each it serves in time, and an integer program picks the nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.eval import metrics
from lengthwise.eval.buckets import (
    OUTPUTS,
    PROMPTS,
    Bucket,
    buckets_of,
    check_ends,
    most_rate,
)
from lengthwise.eval.ground import beyond_measured, estimated
from lengthwise.eval.mix import SLICES, Mix, cheapest_mix, nodes_alone
from lengthwise.eval.pool import over_cores
from lengthwise.eval.predict import needs_prediction
from lengthwise.eval.source import Fixed, Source, Spelled
from lengthwise.policies import load_policy, load_router
from lengthwise.policy import RoutingPolicy
from lengthwise.predictors.predict import predict
from lengthwise.reading import whole_number
from lengthwise.serving import Engine, Node, System, run
from lengthwise.serving.listed import read_yaml
from lengthwise.serving.nodes import nodes_of, read_nodes
from lengthwise.serving.options import DEFAULT_TIMING
from lengthwise.serving.records import PS, Records
from lengthwise.serving.timing.roofline import RooflineTiming
from lengthwise.serving.workload.presets import PRESETS
from lengthwise.workload import Workload

REQUESTS = 4000  # drawn of a preset, where the file doesn't say
ATTAINMENT = 0.99  # share of requests that the SLO is for, where the file doesn't say
BY_PLAN = "plan"  # the router that sends each bucket where the plan says
WITHIN = "least-requests"  # and then to a node of that type
ROUTERS = (BY_PLAN, WITHIN)
AUTO = "auto"  # headroom that is raised until the simulation meets the SLO
STEPS = tuple(round(0.05 * step, 2) for step in range(20))  # of it
MOST_NODES = 10_000

KEYS = (
    "gpus", "workload", "slo", "rate", "requests", "attainment", "slices", "headroom", "buckets",
)  # fmt: skip
OPTIONS = tuple(field.name for field in fields(Engine))
GPU_KEYS = ("name", "timing", "price", "limit", "speed", *OPTIONS)


@dataclass(frozen=True)
class NodeType:
    """A type of node that can be rented: ``price`` in $/h, at most ``limit`` of them (None: any
    number); ``row`` is what a nodes file says of one.
    """

    name: str
    node: Node
    price: float
    limit: int | None
    row: Mapping[str, Any]

    @property
    def timed(self) -> str:
        """Whether its times were measured, or by how much estimates were off."""
        timing = self.node.timing
        return f"estimate, ±{timing.error.mean:.0%}" if isinstance(timing, RooflineTiming) else (
            "measured"
        )  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """What a plan is made for; ``rate`` in requests/s (None: the workload's own), ``slo`` limits in
    seconds of each request, ``attainment`` the share of requests that must meet them, ``headroom``
    the share of each node that is left free (None: the least that a simulation needs).
    """

    types: tuple[NodeType, ...]
    source: Source
    slo: Mapping[str, float]
    rate: float | None = None
    attainment: float = ATTAINMENT
    slices: int = SLICES
    headroom: float | None = None
    prompts: tuple[int, ...] = PROMPTS
    outputs: tuple[int, ...] = OUTPUTS


@dataclass(frozen=True)
class Single:
    """What serves all of it with nodes of one type; ``count`` None where ``why`` tells why not.

    ``attainment`` is the share of requests that met the SLO, simulated; NaN where they were not.
    """

    name: str
    count: int | None
    cost: float
    why: str = ""
    attainment: float = float("nan")


@dataclass(frozen=True)
class Tried:
    """The plan's nodes, simulated behind ``router``: ``why`` tells why they were not.

    ``attainment`` is the share of requests that met the SLO, ``values`` are the P99s of what it
    limits, in seconds; ``tokens_per_s`` are of answers.
    """

    router: str
    attainment: float
    values: Mapping[str, float]
    tokens_per_s: float
    why: str = ""


@dataclass(frozen=True)
class Plan:
    """The nodes to rent, what they should carry, and what they did in simulation.

    ``rates`` (types, buckets) are requests/s of a bucket that one node serves in time, 0 for none;
    ``headroom`` is the share of each node that was left free.
    """

    wanted: Wanted
    rate: float
    headroom: float
    buckets: tuple[Bucket, ...]
    rates: NDArray[np.float64]
    mix: Mix
    singles: tuple[Single, ...]
    tried: tuple[Tried, ...]
    notices: tuple[str, ...]

    @property
    def capacity(self) -> float:
        """Requests/s at which only the headroom of the busiest type would be left, shared as the
        plan says.
        """
        return self.rate / float(self.mix.utilization.max())

    def utilization(self, place: int) -> float:
        """What is used of a type's nodes, as a share of what they serve in time at most."""
        return float(self.mix.utilization[place]) * (1 - self.headroom)

    @property
    def cheapest_single(self) -> Single | None:
        """The cheapest of those that serve all of it with one type, within the SLO if any does."""
        able = [one for one in self.singles if one.count is not None]
        met = [one for one in able if one.attainment >= self.wanted.attainment]
        return min(met or able, key=lambda one: one.cost, default=None)

    def share(self, place: int) -> float:
        """The share of all requests that go to a type."""
        weights = np.array([bucket.share for bucket in self.buckets])
        return float(self.mix.shares[place] @ weights)

    def nodes(self) -> list[dict[str, Any]]:
        """The plan as a nodes file has it (``lengthwise.serving.nodes``)."""
        kinds = zip(self.wanted.types, self.mix.counts, strict=True)
        return [{"count": count, **kind.row} for kind, count in kinds if count]


def read_plan(path: str | Path, requests: int | None = None) -> Wanted:
    """What a file asks for, with so many ``requests`` in place of the file's; every mistake in it
    is an ``InputError`` of one line.
    """
    where = f"plan file {str(path)!r}"
    given = read_yaml(Path(path), "plan file")
    if requests is not None and isinstance(given, Mapping):
        given = {**given, "requests": requests}
    return wanted_of(given, where)


def wanted_of(given: object, where: str = "plan") -> Wanted:
    """The same of what the file holds: a mapping with ``KEYS``."""
    if not isinstance(given, Mapping):
        raise InputError(f"{where}: expected the keys {', '.join(KEYS)}, not {given!r}"[:300])
    for key in given:
        if key not in KEYS:
            raise UnknownNameError(f"key of {where}", str(key), KEYS)
    for key in ("gpus", "workload", "slo"):
        if key not in given:
            raise InputError(f"{where} has no {key}; it needs gpus, workload and slo")
    rows = given["gpus"]
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{where}: gpus must be a list of types of nodes, not {rows!r}")
    types = tuple(_type(row, f"gpu {place} of {where}") for place, row in enumerate(rows))
    names = [one.name for one in types]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{where}: two gpus are called {name!r}: give each a name")
    requests = given.get("requests")
    if requests is not None:
        whole_number(requests, f"{where}: requests", 1)
    edges = given.get("buckets", {})
    if not isinstance(edges, Mapping):
        raise InputError(f"{where}: buckets must have the keys prompt and output, not {edges!r}")
    for key in edges:
        if key not in ("prompt", "output"):
            raise UnknownNameError(f"key of buckets in {where}", str(key), ("prompt", "output"))
    slo = dict(_slo(given["slo"], where))
    rate = given.get("rate")
    return Wanted(
        types, _source(given["workload"], requests, where), slo,
        None if rate is None else _number(rate, f"{where}: rate", above=0.0),
        _number(given.get("attainment", ATTAINMENT), f"{where}: attainment", 0.0, 1.0),
        whole_number(given.get("slices", SLICES), f"{where}: slices", 1, 1000),
        _headroom(given.get("headroom", AUTO), where),
        check_ends(f"{where}: buckets' prompt", edges["prompt"]) if "prompt" in edges else PROMPTS,
        check_ends(f"{where}: buckets' output", edges["output"]) if "output" in edges else OUTPUTS,
    )  # fmt: skip


def plan(
    wanted: str | Path | Mapping[str, Any] | Wanted,
    rate: float | None = None,
    seed: int = 0,
    routers: Sequence[str] = ROUTERS,
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Plan:
    """The cheapest mix of nodes for a file, what it holds, or a ``Wanted``; and how it does.

    ``rate`` (requests/s) is in place of the file's, ``seed`` of the workload and of arrivals.
    ``routers`` are those that the nodes are simulated behind: "plan" sends each request where the
    plan has its bucket, which takes knowing its answer's length; others are names of routers.
    Raises ``InputError`` where a bucket is served in time by no type, and where limits are too low.
    """
    if isinstance(wanted, str | Path):
        wanted = read_plan(wanted)
    elif not isinstance(wanted, Wanted):
        wanted = wanted_of(wanted)
    routings = {name: load_router(name) for name in routers if name != BY_PLAN}
    workload = workload_of(wanted, rate, seed)
    rate = workload.rate
    buckets, of = buckets_of(workload, wanted.prompts, wanted.outputs)
    rates, why = service_rates(wanted, buckets, seed, processes, progress)
    check_served(wanted, buckets, rates, why)
    load = loads(buckets, rates, rate)
    made: Plan | None = None
    for headroom in STEPS if wanted.headroom is None else (wanted.headroom,):
        found = _with_headroom(wanted, headroom, rate, buckets, rates, load, why)
        if found is None:
            break
        if made is not None and found.mix.counts == made.mix.counts:  # simulated before
            tried = made.tried
        else:
            tried = _all_tried(found, workload, of, routings, routers, seed)
        made = replace(found, tried=tried)
        if any(one.attainment >= wanted.attainment for one in tried):
            break
    if made is None:
        limits = ", ".join(f"{t.name} {t.limit}" for t in wanted.types if t.limit is not None)
        raise InputError(
            f"no mix within the limits ({limits}) serves {rate:g} requests/s: raise a limit, or "
            "lower the rate"
        )
    singles = tuple(
        _alone(made, place, load[place], workload, seed) for place in range(len(wanted.types))
    )
    made = replace(made, singles=singles)
    best = made.cheapest_single
    if wanted.headroom is None and best is not None and best.cost < made.mix.cost:
        mix = _of_one(made, singles.index(best), load)  # it needs less headroom than the mix
        made = replace(made, mix=mix, headroom=0.0)
        made = replace(made, tried=_all_tried(made, workload, of, routings, routers, seed))
    return replace(made, notices=_notices(made, workload))


def _of_one(made: Plan, place: int, load: NDArray[np.float64]) -> Mix:
    """The mix that is so many nodes of one type as serve all of it alone."""
    single = made.singles[place]
    assert single.count is not None
    here = np.arange(len(load)) == place
    used = np.where(here, load[place].sum() / single.count, 0.0)
    shares = np.repeat(here[:, None], load.shape[1], axis=1).astype(np.float64)
    counts = tuple((here * single.count).tolist())
    return Mix(counts, shares, used, single.cost, made.mix.gap)


def _alone(
    made: Plan, place: int, load: NDArray[np.float64], workload: Workload, seed: int
) -> Single:
    """What one type alone takes, simulated; without a headroom to keep, as many nodes as it needs.

    ``load`` (buckets,) is of nodes without headroom.
    """
    wanted, single = made.wanted, made.singles[place]
    kind = wanted.types[place]
    if single.count is None:
        return single
    most = MOST_NODES if kind.limit is None else kind.limit
    count = nodes_alone(load / (1 - (wanted.headroom or 0.0)))
    while True:
        system = System.replicated(kind.node, count, load_router(WITHIN))
        met = _tried(wanted, WITHIN, [run(workload, system, seed=seed)]).attainment
        more = max(count + 1, math.ceil(count * 1.05))
        if wanted.headroom is not None or met >= wanted.attainment or more > most:
            return Single(kind.name, count, count * kind.price, "", met)
        count = more


def _with_headroom(
    wanted: Wanted, headroom: float, rate: float, buckets: tuple[Bucket, ...],
    rates: NDArray[np.float64], load: NDArray[np.float64], why: list[list[str]],
) -> Plan | None:  # fmt: skip
    """The cheapest mix that leaves ``headroom`` free, and what one type alone would take; None
    where limits leave none.
    """
    load = load / (1 - headroom)
    mix = cheapest_mix(load, [t.price for t in wanted.types], [t.limit for t in wanted.types],
                       wanted.slices)  # fmt: skip
    if mix is None:
        return None
    singles = tuple(
        _single(one, load[place], buckets, why[place]) for place, one in enumerate(wanted.types)
    )
    return Plan(wanted, rate, headroom, buckets, rates, mix, singles, (), ())


def _all_tried(
    made: Plan, workload: Workload, of: NDArray[np.int64], routings: Mapping[str, RoutingPolicy],
    routers: Sequence[str], seed: int,
) -> tuple[Tried, ...]:  # fmt: skip
    """The plan's nodes behind each router."""
    tried = []
    for name in routers:
        try:
            runs = (
                _by_plan(made, workload, sent_to(made.mix, of), seed)
                if name == BY_PLAN
                else _behind(made, workload, routings[name], seed)
            )
        except InputError as error:  # a node that is too small for some request
            tried.append(Tried(name, float("nan"), {}, float("nan"), str(error)))
        else:
            tried.append(_tried(made.wanted, name, runs))
    return tuple(tried)


def _notices(made: Plan, workload: Workload) -> tuple[str, ...]:
    """What was noticed of the workload, the timings, the search and the simulation."""
    wanted = made.wanted
    rented = [one for one, count in zip(wanted.types, made.mix.counts, strict=True) if count]
    system = System(tuple(one.node for one in rented), load_router(WITHIN))
    said = [*workload.notices, *estimated(system), *beyond_measured(system, workload)]
    if made.mix.gap:
        said.append(f"the search was cut off: another mix may be up to {made.mix.gap:.1%} cheaper")
    if "prefix_hashes" in workload and any(t.node.engine.enable_prefix_caching for t in rented):
        said.append("rates of buckets are without shared prefixes, which the simulation has")
    best = max((one.attainment for one in made.tried if not one.why), default=1.0)
    if best < wanted.attainment:
        more = (
            "more nodes are not to be had, or do not help"
            if wanted.headroom is None
            else "headroom: auto adds nodes until it is enough"
        )
        said.append(
            f"simulated, {best:.2%} of requests meet the SLO, not {wanted.attainment:.2%}: buckets "
            f"in one batch slow each other down, and arrivals may be burstier than Poisson; {more}"
        )
    return tuple(said)


def workload_of(wanted: Wanted, rate: float | None, seed: int) -> Workload:
    """The workload that a plan is for, at ``rate`` or at what the file says."""
    rate = wanted.rate if rate is None else rate
    workload = wanted.source.load(rate, seed)
    if "parent" in workload:
        raise InputError(
            f"{workload.name} is a closed loop, whose rate depends on who serves it; a plan needs "
            "arrivals of its own: give an open workload"
        )
    if not np.isfinite(workload.rate):
        raise InputError(f"{workload.name}: all requests arrive at once; a plan needs a rate")
    return workload


def service_rates(
    wanted: Wanted, buckets: Sequence[Bucket], seed: int, processes: int,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[NDArray[np.float64], list[list[str]]]:  # fmt: skip
    """Requests/s of each bucket that a node of each type serves in time, (types, buckets); and why
    none, where it is 0.
    """
    task = partial(_rate, wanted, tuple(buckets), seed)
    pairs = [(g, b) for g in range(len(wanted.types)) for b in range(len(buckets))]
    rates = np.zeros((len(wanted.types), len(buckets)))
    why = [[""] * len(buckets) for _ in wanted.types]
    for done, ((g, b), (rate, said)) in enumerate(
        zip(pairs, over_cores(task, pairs, processes), strict=True), 1
    ):
        rates[g, b], why[g][b] = rate, said
        if progress is not None:
            progress(done, len(pairs))
    return rates, why


def loads(
    buckets: Sequence[Bucket], rates: NDArray[np.float64], rate: float
) -> NDArray[np.float64]:
    """How many nodes of a type a bucket's requests keep busy at ``rate``, (types, buckets)."""
    asked = rate * np.array([bucket.share for bucket in buckets])
    return np.where(rates > 0, asked / np.where(rates > 0, rates, 1.0), np.inf)


def check_served(
    wanted: Wanted, buckets: Sequence[Bucket], rates: NDArray[np.float64], why: list[list[str]]
) -> None:
    """Raises ``InputError`` for the first bucket that no type serves in time."""
    for b in np.flatnonzero(rates.max(axis=0) == 0).tolist():
        limits = ", ".join(f"{name} {limit:g} s" for name, limit in wanted.slo.items())
        said = "; ".join(
            f"{one.name}: {why[g][b]}" for g, one in enumerate(wanted.types)
        )  # fmt: skip
        raise InputError(
            f"no gpu serves {wanted.attainment:.0%} of requests of {buckets[b].label} "
            f"({buckets[b].share:.1%} of all) within {limits}: {said}"
        )


def sent_to(mix: Mix, of: NDArray[np.int64]) -> NDArray[np.int64]:
    """The type that serves each request, (n,): within a bucket (n,) each type's turn comes as often
    as its share says, spread evenly.
    """
    sent = np.zeros(len(of), dtype=np.int64)
    for b in np.unique(of).tolist():
        mine = np.flatnonzero(of == b)
        given = np.zeros(len(mix.counts))
        for turn, request in enumerate(mine.tolist(), 1):
            place = int(np.argmax(mix.shares[:, b] * turn - given))
            given[place] += 1
            sent[request] = place
    return sent


def _rate(wanted: Wanted, buckets: tuple[Bucket, ...], seed: int, g: int, b: int) -> Any:
    return most_rate(wanted.types[g].node, buckets[b], wanted.slo, wanted.attainment, seed)


def _single(
    one: NodeType, load: NDArray[np.float64], buckets: Sequence[Bucket], why: list[str]
) -> Single:
    lacks = np.flatnonzero(~np.isfinite(load))
    if len(lacks):
        b = int(lacks[0])
        more = f", and {len(lacks) - 1} buckets more" if len(lacks) > 1 else ""
        return Single(one.name, None, float("nan"), f"{buckets[b].label}: {why[b]}{more}")
    count = nodes_alone(load)
    if one.limit is not None and count > one.limit:
        why_not = f"takes {count} nodes, and there are {one.limit}"
        return Single(one.name, None, float("nan"), why_not)
    return Single(one.name, count, count * one.price)


def _by_plan(made: Plan, workload: Workload, sent: NDArray[np.int64], seed: int) -> list[Records]:
    """The records of each type's nodes, of the requests that the plan has there.

    Who goes where depends on no node's state, so types are run one by one.
    """
    found = []
    for place, (one, count) in enumerate(zip(made.wanted.types, made.mix.counts, strict=True)):
        mine = np.flatnonzero(sent == place)
        if len(mine):
            system = System.replicated(one.node, count, load_router(WITHIN))
            found.append(run(workload.select(mine), system, seed=seed))
    return found


def _behind(made: Plan, workload: Workload, routing: Any, seed: int) -> list[Records]:
    """The records of all nodes behind one router."""
    nodes: list[Node] = []
    for one, count in zip(made.wanted.types, made.mix.counts, strict=True):
        nodes += [one.node] * count
    predicted = None
    if needs_prediction(load_policy("fcfs"), routing):
        predicted = predict("oracle", workload, seed)
    return [run(workload, System(tuple(nodes), routing), predicted, seed=seed)]


def _tried(wanted: Wanted, router: str, runs: list[Records]) -> Tried:
    met = np.concatenate([metrics.meets_slo(records, wanted.slo) for records in runs])
    values = {}
    for name in wanted.slo:
        all_of = np.concatenate([metrics.PER_REQUEST[name](records) for records in runs])
        values[f"{name}_p99"] = metrics.describe(name, all_of)[f"{name}_p99"]
    first = min(int(records.arrival_ps.min()) for records in runs)
    last = max(int(records.finish_ps.max()) for records in runs)
    tokens = sum(int(records.output_tokens.sum()) for records in runs)
    return Tried(router, float(met.mean()), values, tokens / ((last - first) / PS))


def _type(row: object, where: str) -> NodeType:
    if not isinstance(row, Mapping):
        raise InputError(f"{where}: expected the keys {', '.join(GPU_KEYS[:4])}, not {row!r}")
    for key in row:
        if key not in GPU_KEYS:
            raise UnknownNameError(f"key of {where}", str(key), GPU_KEYS)
    for key in ("timing", "price"):
        if key not in row:
            raise InputError(f"{where} has no {key}; it needs a timing and a price in $/h")
    price = _number(row["price"], f"{where}: price", above=0.0)
    limit = row.get("limit")
    if limit is not None:
        whole_number(limit, f"{where}: limit", 0, MOST_NODES)
    own = {key: value for key, value in row.items() if key not in ("price", "limit")}
    own.setdefault("name", row["timing"])
    try:
        kinds = read_nodes([own], Engine(), DEFAULT_TIMING)
    except UnknownNameError:
        raise
    except InputError as error:
        raise InputError(str(error).replace("node 0 in nodes", where)) from None
    (node,) = nodes_of(kinds, load_policy("fcfs"))
    return NodeType(node.name, node, price, limit, own)


def _source(given: object, requests: int | None, where: str) -> Source:
    if isinstance(given, Workload):
        return Fixed(given)
    if not isinstance(given, str):
        raise InputError(f"{where}: workload must be a preset's name or a file, not {given!r}")
    count = requests or (REQUESTS if given in PRESETS else None)
    return Spelled(given, {} if count is None else {"requests": count})


def _slo(given: object, where: str) -> Mapping[str, float]:
    if not isinstance(given, Mapping) or not given:
        raise InputError(f"{where}: slo must have limits in seconds, as in ttft: 1, not {given!r}")
    for name, limit in given.items():
        if name not in metrics.PER_REQUEST:
            raise UnknownNameError(f"SLO metric of {where}", str(name), metrics.PER_REQUEST)
        _number(limit, f"{where}: slo's {name}", above=0.0)
    return {str(name): float(limit) for name, limit in given.items()}


def _headroom(given: object, where: str) -> float | None:
    if given == AUTO:
        return None
    if isinstance(given, str):
        raise InputError(f"{where}: headroom must be auto or a number, not {given!r}")
    return _number(given, f"{where}: headroom", least=0.0, below=1.0)


def _number(
    given: object, what: str, above: float | None = None, most: float | None = None, *,
    least: float | None = None, below: float | None = None,
) -> float:  # fmt: skip
    said = [
        text for bound, text in (
            (above, f"above {above}"), (least, f"from {least}"), (most, f"up to {most}"),
            (below, f"below {below}"),
        ) if bound is not None
    ]  # fmt: skip
    if (
        not isinstance(given, int | float)
        or isinstance(given, bool)
        or not math.isfinite(given)
        or (above is not None and given <= above)
        or (least is not None and given < least)
        or (most is not None and given > most)
        or (below is not None and given >= below)
    ):
        raise InputError(f"{what} must be a number {' and '.join(said)}, not {given!r}")
    return float(given)
