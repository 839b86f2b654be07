"""A grid of policies x routers x predictors x rates x seeds on common random numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import product
from typing import TYPE_CHECKING, Any, Literal
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.eval import metrics
from lengthwise.eval.alike import Alike, alike
from lengthwise.eval.alone import Alone
from lengthwise.eval.bound import mean_latency_bound_s
from lengthwise.eval.cells import Cells, once
from lengthwise.eval.held_out import apart, trials_of
from lengthwise.eval.hosts import NEAR, Host, calibrated, hosts_of, spread
from lengthwise.eval.pool import over_cores
from lengthwise.eval.predict import needs_prediction
from lengthwise.eval.setting import Loaded, PolicyLike, RouterLike, Setting
from lengthwise.eval.simulate import simulate_on
from lengthwise.eval.source import Cut, Source, as_source
from lengthwise.eval.statistics import Interval, paired_ratio, t_interval
from lengthwise.eval.tune import BUDGET, METRICS, Tunables, numbers_of, tune, with_tunables
from lengthwise.eval.windows import Window
from lengthwise.policies import load_policy, load_router
from lengthwise.policies.bundle import is_bundle
from lengthwise.predictors import load_predictor
from lengthwise.predictors.predict import (
    PredictorLike,
    abstention_notice,
    predict,
    predictor_label,
)
from lengthwise.protocols import TimingModel
from lengthwise.serving import Engine
from lengthwise.serving.events import EventsLike
from lengthwise.serving.nodes import NodesLike
from lengthwise.serving.options import DEFAULT_TIMING
from lengthwise.serving.run import Backend
from lengthwise.serving.saturation import saturation_rate
from lengthwise.serving.timing.profile import ProfileTiming
from lengthwise.serving.timing.roofline import RooflineTiming
from lengthwise.trained import BEYOND
from lengthwise.workload import Workload

if TYPE_CHECKING:
    import pandas as pd

BASELINE, ROUTER_BASELINE = "fcfs", "round-robin"
SAME = "the same requests for every seed"
BOUND = "lower bound"  # the row that no schedule beats, beside the policies
AUTO = (0.8, 0.95, 1.1)  # shares of the capacity
# Requests that stand for a workload's mix: so many, or as many as have so many tokens.
MIX, MIX_LEAST, MIX_TOKENS, PIECES = 10_000, 500, 50_000_000, 5
QUANTILES = np.linspace(0.0, 1.0, 401)


Row = dict[str, Any]
Quantiles = dict[tuple[float | None, str], NDArray[np.float64]]


@dataclass(frozen=True)
class Contender:
    """A row of the table: a policy, and the predictor whose lengths it reads ("none" if none).

    In a comparison of routers also the router; elsewhere that is the system's, "" here.
    """

    policy: PolicyLike
    predictor: PredictorLike
    policy_name: str
    predictor_name: str
    router: RouterLike = ""
    router_name: str = ""

    @property
    def name(self) -> str:
        """What is compared: the policy, or the router with the policy behind it, if not fcfs."""
        if not self.router_name:
            return self.policy_name
        behind = "" if self.policy_name == BASELINE else f" + {self.policy_name}"
        return f"{self.router_name}{behind}"

    @property
    def label(self) -> str:
        """What a legend calls it."""
        if self.predictor_name == "none":
            return self.name
        return f"{self.name} · {self.predictor_name}"

    @property
    def trained(self) -> bool:
        """Whether the policy or the router is a bundle, which no baseline is."""
        return any(isinstance(s, str) and is_bundle(s) for s in (self.policy, self.router))


@dataclass(frozen=True)
class Comparison:
    """Every run of a grid.

    ``runs`` has one row a run: rate (NaN: the workload's own), offered_rate, seed, policy,
    predictor (and router, where routers are compared), and the metrics of
    ``lengthwise.eval.metrics.summary``. ``curves`` maps (rate or None, label) to the quantiles of
    end-to-end latency, see ``quantiles``. ``capacity`` is what the system serves of this mix at
    most, requests/s (``lengthwise.serving.saturation``); NaN where that is not known. ``source`` is
    what was compared on, without what was tuned on. ``hosts`` is the same on other hosts
    (``lengthwise.eval.hosts``) by name, if it was run there.
    """

    name: str
    runs: pd.DataFrame
    contenders: tuple[Contender, ...]
    curves: Mapping[tuple[float | None, str], NDArray[np.float64]]
    config: Mapping[str, Any]
    notices: tuple[str, ...] = ()
    capacity: float = math.nan
    source: Source | None = None
    hosts: Mapping[str, Comparison] = field(default_factory=dict)

    @property
    def rates(self) -> list[float]:
        """The rates of the grid, ascending; [NaN] where the workload's own was kept."""
        return sorted(self.runs["rate"].unique().tolist())

    @property
    def seeds(self) -> int:
        """How many seeds each row ran on."""
        return int(self.runs["seed"].nunique())

    @property
    def routed(self) -> bool:
        """Whether routers are compared."""
        return bool(self.contenders[0].router_name)

    @property
    def baseline(self) -> str:
        """What the first row is, to which all others have ratios."""
        return self.contenders[0].name

    def values(
        self, rate: float, policy: str, predictor: str, metric: str, router: str = ""
    ) -> NDArray[np.float64]:
        """One value a seed of a metric, in the order of the seeds."""
        found = self._at(rate, policy, predictor, router)
        return found[metric].to_numpy(dtype=np.float64)

    def _at(self, rate: float, policy: str, predictor: str, router: str) -> pd.DataFrame:
        key = (None if np.isnan(rate) else rate, policy, predictor)
        found = self._rows.get(key, self.runs.iloc[:0])
        return found[found["router"] == router] if router else found

    @cached_property
    def _rows(self) -> dict[tuple[float | None, str, str], pd.DataFrame]:
        """The runs in the order of seeds by rate (None: the workload's own), policy, predictor."""
        columns = ["rate", "policy", "predictor"]
        groups: Any = self.runs.sort_values("seed").groupby(columns, dropna=False, sort=False)
        return {
            (None if np.isnan(rate) else float(rate), policy, predictor): group
            for (rate, policy, predictor), group in groups
        }

    def alike(self, rate: float) -> list[Alike]:
        """The contenders at a rate in their order, those that ran the same schedule together."""
        key = None if np.isnan(rate) else rate
        if key not in self._alike:
            self._alike[key] = alike(self, rate)
        return self._alike[key]

    @cached_property
    def _alike(self) -> dict[float | None, list[Alike]]:
        return {}

    def at(self, rate: float, who: Contender) -> pd.DataFrame:
        """The runs of a row at a rate, one a seed."""
        return self._at(rate, who.policy_name, who.predictor_name, who.router_name)

    def of(self, rate: float, who: Contender, metric: str) -> NDArray[np.float64]:
        """``values`` of a row."""
        return self.values(rate, who.policy_name, who.predictor_name, metric, who.router_name)

    def interval(self, rate: float, who: Contender, metric: str) -> Interval:
        """The mean over seeds with its 95% interval."""
        return t_interval(self.of(rate, who, metric))

    def ratio(
        self, rate: float, who: Contender, metric: str, to: Contender | None = None
    ) -> Interval:
        """The paired ratio to the first row (or ``to``), seed by seed on the same workload, with
        its 95% interval.
        """
        return paired_ratio(
            self.of(rate, who, metric), self.of(rate, to or self.contenders[0], metric)
        )

    def best(self, rate: float) -> Contender:
        """The row with the lowest mean latency of those that were not trained (geometric over
        seeds).
        """
        known = [who for who in self.contenders if not who.trained]
        return min(known, key=lambda who: np.log(self.of(rate, who, "e2e_mean_s")).mean())

    def quantiles(self, rate: float, who: Contender) -> NDArray[np.float64]:
        """End-to-end latency at ``QUANTILES``, averaged over seeds, shape (401,)."""
        return self.curves[None if np.isnan(rate) else rate, who.label]

    def bound(self, rate: float) -> Interval:
        """The mean latency that no schedule beats, over the seeds."""
        return t_interval(self.values(rate, BOUND, "none", "e2e_mean_s"))

    def offered_rate(self, rate: float) -> float:
        """Requests a second that arrived, averaged over seeds."""
        return float(self.of(rate, self.contenders[0], "offered_rate").mean())

    def overloaded(self, rate: float) -> bool:
        """Whether more arrived than can be served, as far as is known; no rate has no answer."""
        return self.capacity < self.offered_rate(rate) < math.inf


def compare(
    workload: str | Workload | Source,
    policies: Sequence[PolicyLike] = ("fcfs", "sjf", "srtf", "mlfq"),
    predictors: Sequence[PredictorLike] = ("oracle",),
    rates: Sequence[float] | Literal["auto"] = (),
    seeds: int = 5,
    engine: Engine | None = None,
    timing: str | TimingModel = DEFAULT_TIMING,
    replicas: int = 1,
    router: RouterLike = "round-robin",
    backend: Backend = "auto",
    processes: int = 1,
    slo: Mapping[str, float] | None = None,
    progress: Callable[[int, int], None] | None = None,
    nodes: NodesLike | None = None,
    metrics_interval_s: float = 0.0,
    failures: EventsLike | None = None,
    routers: Sequence[RouterLike] = (),
    cells: Cells | None = None,
    tuning: bool = False,
    budget: int = BUDGET,
    metric: str = "e2e_mean",
    hosts: bool = False,
    capacity: float | None = None,
) -> Comparison:
    """Runs every policy with every predictor it can read, at every rate, on every seed.

    fcfs runs always, as the baseline, and policies that read predictions run with the oracle too,
    so the table shows what a perfect predictor would gain. At one rate and seed all of them see
    the same requests: a seed draws one workload, whose arrivals each rate stretches. ``progress``
    is called with (seeds done, seeds in all). ``nodes``, ``metrics_interval_s`` and ``failures``
    are as for ``simulate``; nodes with a policy of their own keep it in every row. ``routers`` are
    compared too, each before every policy, in place of ``router``; round-robin before fcfs is the
    baseline then. ``rates`` "auto" are the workload's own and ``AUTO`` shares of what the system
    serves of it at most; a notice says which. With ``cells``, each seed at each rate is kept as it
    is finished, and what is there already is not run again: the result is the same, to the bit.

    With ``tuning``, each row's numbers (of its router, where routers are compared) are first tuned
    for ``metric`` with its predictor, by ``budget`` simulated runs, on other requests than those
    that are compared on (``lengthwise.eval.held_out``): rows are named as they were tuned.
    With ``hosts``, all is run again on the corners of what hosts were seen to differ by
    (``lengthwise.eval.hosts``), and verdicts say what holds there too. ``capacity`` (requests/s)
    is what is served at most of this mix, where that was found before.
    """
    if seeds < 1:
        raise InputError(f"seeds must be 1 or more, not {seeds}")
    source = as_source(workload)
    setting = Setting(
        engine or Engine(), timing, replicas, router, nodes, metrics_interval_s, failures
    )
    loaded = setting.load()
    contenders = contenders_of(policies, predictors, loaded, tuple(routers))
    notices: dict[str, None] = {}
    if rates == "auto":
        rates, told = auto_rates(source.load(None, 0), loaded)
        notices[told] = None
    if tuning:
        contenders, source, told_of = _tuned(
            source, contenders, tuple(rates), setting, metric, budget, cells, processes, progress
        )
        notices |= dict.fromkeys(told_of)
    named = hosts_of(loaded.kinds) if hosts else ()
    total = seeds * (1 + len(named))

    def grid(at: Setting, done: int) -> Comparison:
        moved = None if progress is None else (lambda k, _: progress(done + k, total))
        return _grid(source, contenders, tuple(rates), seeds, at, backend, dict(slo or {}), cells,
                     processes, moved, bool(routers),
                     capacity if at.host is None else None)  # fmt: skip

    found = grid(setting, 0)
    others = {
        host.name: grid(replace(setting, host=host), seeds * k) for k, host in enumerate(named, 1)
    }
    if not hosts:
        notices |= dict.fromkeys(_near_saturation(found, loaded))
    else:
        notices[f"hosts from fast to slow: {spread(named)}"] = None
    config = {
        **found.config,
        **({"tuning": {"metric": metric, "budget": budget}} if tuning else {}),
        **({"hosts": [vars(host) for host in named]} if hosts else {}),
    }
    said = (*notices, *found.notices)
    return replace(found, notices=said, hosts=others, config=config)


def _near_saturation(found: Comparison, loaded: Loaded) -> list[str]:
    """A line where hosts differ by more than policies may, unless this one is known."""
    near = [rate for rate in found.rates if found.offered_rate(rate) > NEAR * found.capacity]
    plain = [k for k in loaded.kinds if isinstance(k.timing, ProfileTiming | RooflineTiming)]
    if not near or all(calibrated(kind.timing) for kind in plain):
        return []
    return [
        f"from {NEAR:.0%} of what can be served on, hosts with one kind of GPU differ by much: "
        "--host-uncertainty says what holds on others, `lengthwise calibrate` what yours is like"
    ]


def _grid(
    source: Source,
    contenders: tuple[Contender, ...],
    rates: tuple[float, ...],
    seeds: int,
    setting: Setting,
    backend: Backend,
    slo: dict[str, float],
    cells: Cells | None,
    processes: int,
    progress: Callable[[int, int], None] | None,
    routed: bool,
    known: float | None,
) -> Comparison:
    """All seeds on one host, whose capacity may be known."""
    loaded = setting.load()
    notices: dict[str, None] = {}
    task = partial(_one_seed, contenders, rates, setting, backend, slo, cells, known)
    # windows of a trace may be large: another process is sent the one that it runs
    tasks = [
        (source.of_seed(seed) if isinstance(source, Cut) else source, seed) for seed in range(seeds)
    ]
    rows: list[Row] = []
    drawn: dict[tuple[float | None, str], list[NDArray[np.float64]]] = {}
    abstained: dict[str, list[float]] = {}
    beyond: set[str] = set()
    prints: set[int] = set()
    most = math.nan
    for done, (made, quantiles, said, mark, unordered, capacity) in enumerate(
        over_cores(task, tasks, processes), start=1
    ):
        rows += made
        for name, share in unordered.items():
            abstained.setdefault(name, []).append(share)
        for line in said:  # of a policy beyond its ground only the first: each seed's ranges differ
            if BEYOND not in line or line.partition(BEYOND)[0] not in beyond:
                notices[line] = None
            beyond.add(line.partition(BEYOND)[0])
        prints.add(mark)
        most = capacity if done == 1 else most
        for key, values in quantiles.items():
            drawn.setdefault(key, []).append(values)
        if progress is not None:
            progress(done, seeds)
    import pandas as pd

    runs = pd.DataFrame(rows)
    for name, shares in abstained.items():
        if said_once := abstention_notice(float(np.mean(shares)), name):
            notices[said_once] = None
    if not loaded.alike:
        notices["no lower bound is known for nodes that differ"] = None
    if seeds > 1 and len(prints) == 1:
        notices[
            f"{source.name}: {SAME}; intervals show the noise of predictors and routers alone"
        ] = None
    return Comparison(
        name=source.name,
        runs=runs,
        contenders=contenders,
        curves={key: np.mean(values, axis=0) for key, values in drawn.items()},
        config={
            "workload": source.name,
            "policies": [c.policy_name for c in contenders],
            "predictors": [c.predictor_name for c in contenders],
            "rates_requests_per_s": list(rates),
            "seeds": list(range(seeds)),
            **loaded.config(),
            **(
                {"router": list(dict.fromkeys(c.router_name for c in contenders))} if routed else {}
            ),
            **({} if math.isnan(most) else {"capacity_requests_per_s": most}),
            "backend": sorted(set(runs["backend"].dropna())),
        },
        notices=tuple(notices),
        capacity=most,
        source=source,
    )


def auto_rates(workload: Workload, loaded: Loaded) -> tuple[tuple[float, ...], str]:
    """A workload's own rate and ``AUTO`` shares of the capacity, requests/s; and that in words."""
    capacity = capacity_of(workload, loaded)
    shares = [float(f"{share * capacity:.3g}") for share in AUTO]
    own = float(f"{workload.rate:.4g}")
    named = f"{own:g} (its own), " if math.isfinite(own) else ""
    told = (
        f"rates: {named}{', '.join(f'{rate:g}' for rate in shares)} requests/s "
        f"({', '.join(f'{share:.0%}' for share in AUTO)} of the {capacity:.3g} that can be served)"
    )
    rates = [*([own] if math.isfinite(own) else []), *shares]
    return tuple(sorted(set(rates))), told


def capacity_of(workload: Workload, loaded: Loaded) -> float:
    """What a system serves at most of a workload's mix while no node fails, requests/s."""
    tokens = float((workload["prompt_tokens"] + workload["output_tokens"]).mean())
    sample = _pieces(workload, max(MIX_LEAST, min(MIX, int(MIX_TOKENS / tokens))))
    return saturation_rate(sample, replace(loaded, events=()).system(BASELINE))


def _pieces(workload: Workload, requests: int) -> Workload:
    """About so many requests, from all over a workload; neighbours stay, as they share prefixes."""
    if len(workload) <= requests or "parent" in workload:
        return workload
    size = requests // PIECES
    first = np.arange(PIECES) * (len(workload) // PIECES)
    return workload.select((first[:, None] + np.arange(size)).ravel())


def _capacity(workload: Workload, loaded: Loaded, rows: Sequence[Row]) -> float:
    """What the system serves at most of a workload's mix while no node fails, requests/s.

    NaN where the compiled engine didn't run the baseline (too slow, or in real time), and of a
    closed loop, where who waits sends no more.
    """
    ran_on = {row.get("backend") for row in rows if row["policy"] == BASELINE}
    if ran_on != {"fast"} or "parent" in workload:
        return math.nan
    return capacity_of(workload, loaded)


def contenders_of(
    policies: Sequence[PolicyLike],
    predictors: Sequence[PredictorLike],
    setting: Loaded,
    routers: tuple[RouterLike, ...],
) -> tuple[Contender, ...]:
    """The rows of the table, the baseline first; names are checked here, before any work."""
    if not policies:
        raise InputError("compare needs at least one policy")
    if routers and sum(kind.count for kind in setting.kinds) == 1:
        raise InputError("routers are compared on two nodes or more: give --replicas or --nodes")
    given = [p for p in predictors if load_predictor(p) is not None]
    if "oracle" not in map(predictor_label, given):
        given.append("oracle")
    found: dict[str, Contender] = {}
    before: tuple[RouterLike, ...] = (ROUTER_BASELINE, *routers) if routers else ("",)
    for policy, router in product((BASELINE, *policies), before):
        loaded = load_policy(policy)
        routing = load_router(router) if routers else setting.routing
        named = (router, routing.name) if routers else ("", "")
        followed = [kind.policy or loaded for kind in setting.kinds]
        reads = any(needs_prediction(each, routing) for each in followed)
        for predictor in given if reads else (None,):
            label = predictor_label(predictor)
            contender = Contender(policy, predictor, loaded.name, label, *named)
            same = found.setdefault(contender.label, contender)
            if (same.policy, same.predictor, same.router) != (policy, predictor, router):
                raise InputError(f"two rows are both called {contender.label!r}; rename one")
    return tuple(found.values())


def _tuned(
    source: Source, contenders: tuple[Contender, ...], rates: tuple[float, ...], setting: Setting,
    metric: str, budget: int, cells: Cells | None, processes: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[tuple[Contender, ...], Source, list[str]]:  # fmt: skip
    """The rows with tuned numbers, what they are compared on, and notices."""
    if metric not in METRICS:
        raise UnknownNameError("metric", metric, METRICS)
    if any(kind.policy is not None for kind in setting.load().kinds):
        raise InputError("policies of nodes that have their own can't be tuned beside each other")
    windows, compared, told = apart(source, rates[0] if rates else None)
    count = len(windows) * max(len(rates), 1)
    least = max(budget, 4 * count)
    notices = [f"policies were tuned for {metric} {told}"]
    if least > budget:
        notices.append(f"{count} windows to tune on: {least} runs for each policy, not {budget}")
    task = partial(_tuned_row, windows, rates, setting, metric, least, cells)
    made: dict[str, Contender] = {}
    for done, who in enumerate(over_cores(task, [(who,) for who in contenders], processes), 1):
        if made.setdefault(who.label, who) is not who:
            notices.append(f"{contenders[done - 1].label} was tuned to {who.label}, which is there")
        if progress is not None:
            progress(done, len(contenders))
    return tuple(made.values()), compared, notices


def _tuned_row(
    windows: tuple[Window, ...], rates: tuple[float, ...], setting: Setting, metric: str,
    budget: int, cells: Cells | None, who: Contender,
) -> Contender:  # fmt: skip
    """A row with the numbers that were found for its policy, or for its router."""
    routed = bool(who.router_name)
    judged = load_router(who.router) if routed else load_policy(who.policy)
    if not numbers_of(judged)[0]:
        return who
    name = f"tuned-{crc32(who.label.encode()):08x}"

    def search() -> Tunables:
        system = setting.load().system(who.policy if routed else BASELINE)
        trials = trials_of(windows, rates, system, load_predictor(who.predictor))
        return numbers_of(tune(judged, trials, metric=metric, budget=budget))[0]

    found = once(cells, name, search)
    if found == numbers_of(judged)[0]:
        return who
    chosen: Any = with_tunables(judged, found)
    if routed:
        spelled = chosen.name if isinstance(who.router, str) else chosen
        return replace(who, router=spelled, router_name=chosen.name)
    spelled = chosen.name if isinstance(who.policy, str) else chosen
    return replace(who, policy=spelled, policy_name=chosen.name)


def on_hosts(
    source: Source,
    who: Contender,
    rate: float,
    seeds: int,
    setting: Setting,
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Interval]:
    """A row's mean latency in the baseline's on each host that may be, by the host's name.

    The same as ``compare`` finds with ``hosts``, of one row at one rate (NaN: the workload's own).
    Raises ``InputError`` for a timing that knows no hosts.
    """
    named = hosts_of(setting.load().kinds)
    task = partial(_on_host, who, None if math.isnan(rate) else rate, setting)
    tasks = [
        (host, source.of_seed(seed) if isinstance(source, Cut) else source, seed)
        for host in named
        for seed in range(seeds)
    ]
    found: list[tuple[float, float]] = []
    for pair in over_cores(task, tasks, processes):
        found.append(pair)
        if progress is not None:
            progress(len(found), len(tasks))
    means = np.array(found).reshape(len(named), seeds, 2)
    return {
        host.name: paired_ratio(of[:, 1], of[:, 0]) for host, of in zip(named, means, strict=True)
    }


def _on_host(
    who: Contender, rate: float | None, setting: Setting, host: Host, source: Source, seed: int
) -> tuple[float, float]:
    """The mean latency of the baseline and of a row, on one host and seed, s."""
    workload, loaded = source.load(rate, seed), replace(setting, host=host).load()
    predicted = predict(who.predictor, workload, seed)
    first, row = (
        simulate_on(workload, loaded, policy, lengths, seed=seed, backend="auto").records
        for policy, lengths in ((BASELINE, None), (who.policy, predicted))
    )
    return float(metrics.e2e_s(first).mean()), float(metrics.e2e_s(row).mean())


Cell = dict[str, Any]


def _one_seed(
    contenders: tuple[Contender, ...],
    rates: tuple[float, ...],
    setting: Setting,
    backend: Backend,
    slo: dict[str, float],
    cells: Cells | None,
    known: float | None,
    source: Source,
    seed: int,
) -> tuple[list[Row], Quantiles, tuple[str, ...], int, dict[str, float], float]:
    """All contenders at all rates on the workload that one seed draws.

    Also what is to be said of it, the share of its requests that each predictor did not order, and
    of the first seed the capacity.
    """
    drawn = _Drawn(source, contenders, rates, setting, seed)
    rows: list[Row] = []
    quantiles: Quantiles = {}
    said: dict[str, None] = {}
    cell: Cell = {}
    for rate in rates or (None,):
        name = f"seed-{seed}-rate-{'own' if rate is None else repr(float(rate))}"
        if setting.host is not None:
            name += f"-host-{setting.host.name.replace(' ', '-')}"
        cell = (None if cells is None else cells.read(name)) or {}
        if not cell:
            cell = _one_cell(drawn, rate, backend, slo)
            if cells is not None:
                cells.write(name, cell)
        rows += cell["rows"]
        said |= dict.fromkeys(cell["said"])
        quantiles |= {(rate, label): np.array(values) for label, values in cell["curves"].items()}
    capacity = math.nan if seed else known
    if capacity is None:
        capacity = _capacity(drawn.workload, drawn.loaded, rows)
    return rows, quantiles, tuple(said), cell["mark"], cell["unordered"], capacity


class _Drawn:
    """What a seed's cells share, made when the first of them is run."""

    def __init__(
        self, source: Source, contenders: tuple[Contender, ...], rates: tuple[float, ...],
        setting: Setting, seed: int,
    ) -> None:  # fmt: skip
        self._source, self._rates, self._setting = source, rates, setting
        self.contenders, self.seed = contenders, seed

    @cached_property
    def workload(self) -> Workload:
        return self._source.load(self._rates[0] if self._rates else None, self.seed)

    @cached_property
    def loaded(self) -> Loaded:
        return self._setting.load()

    @cached_property
    def alone(self) -> Alone | None:
        return Alone.of(self.workload, self.loaded.system(BASELINE))

    @cached_property
    def predictions(self) -> Mapping[str, Any]:
        named = {who.predictor_name: who.predictor for who in self.contenders}
        return {name: predict(each, self.workload, self.seed) for name, each in named.items()}


def _one_cell(drawn: _Drawn, rate: float | None, backend: Backend, slo: dict[str, float]) -> Cell:
    """Everybody's run on one seed at one rate, as plain values."""
    workload = drawn.workload if rate is None else drawn.workload.at_rate(rate)
    loaded, alone, seed = drawn.loaded, drawn.alone, drawn.seed
    at = float("nan") if rate is None else float(rate)
    base = {"rate": at, "offered_rate": workload.rate, "seed": seed}
    rows: list[Row] = []
    curves: dict[str, list[float]] = {}
    said = dict.fromkeys(drawn.workload.notices)
    for who in drawn.contenders:
        predicted = drawn.predictions[who.predictor_name]
        result = simulate_on(
            workload, _behind(loaded, who), who.policy, predicted, seed=seed, backend=backend
        )
        records, said = result.records, said | dict.fromkeys(result.notices)
        found = metrics.summary(
            records,
            alone_s=None if alone is None else alone.where_served(records.replica),
            slo=slo or None,
            **metrics.told_by(workload),
            downtime_s=result.system.downtime_s(int(records.finish_ps.max())),
        )
        named = {"policy": who.policy_name, "predictor": who.predictor_name}
        if who.router_name:
            named["router"] = who.router_name
        rows.append({**base, **named, "backend": records.backend, **found})
        curves[who.label] = np.quantile(metrics.e2e_s(records), QUANTILES).tolist()
    bound = _bound(workload, loaded, alone)
    rows.append({**base, "policy": BOUND, "predictor": "none", "e2e_mean_s": bound})
    first = drawn.workload
    return {
        "rows": rows, "curves": curves, "said": list(said),
        "mark": crc32(first["arrival_s"].tobytes() + first["output_tokens"].tobytes()),
        "unordered": {
            name: made.abstained_share
            for name, made in drawn.predictions.items()
            if made is not None
        },
    }  # fmt: skip


def _behind(loaded: Loaded, who: Contender) -> Loaded:
    """The setting behind a row's router."""
    return replace(loaded, routing=load_router(who.router)) if who.router_name else loaded


def _bound(workload: Workload, loaded: Loaded, alone: Alone | None) -> float:
    """The hindsight bound of equal nodes; NaN where nodes differ, for which none is known."""
    first = loaded.kinds[0]
    if not loaded.alike:
        return float("nan")
    return mean_latency_bound_s(
        workload, first.engine, first.timing, None if alone is None else alone.seconds[0],
        replicas=sum(kind.count for kind in loaded.kinds),
    )  # fmt: skip
