"""Scenarios: a workload at a load, what serves it and what is predicted; a set of them is a source.

One policy is trained for all scenarios of a set: each seed draws an episode of one of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from lengthwise.envs.episodes import Episode, Workloads, episode_source, system_of
from lengthwise.errors import InputError, UnknownNameError
from lengthwise.policies import load_policy, load_router
from lengthwise.policy import RoutingPolicy, SchedulingPolicy
from lengthwise.predictors import load_predictor
from lengthwise.predictors.predict import predict
from lengthwise.protocols import Predictor, TimingModel
from lengthwise.reading import read_described
from lengthwise.serving import Engine, System, run
from lengthwise.serving.draws import stream
from lengthwise.serving.events import RandomEvents
from lengthwise.serving.nodes import NodesLike
from lengthwise.serving.options import DEFAULT_TIMING
from lengthwise.serving.records import PS
from lengthwise.workload import Workload

MOST_REQUESTS = 10**7  # of an episode
CAPACITY_SEED = 2**31 - 1  # the workload that capacity is measured on
SATURATED = (0.1, 0.9)  # shares of the answers between which a saturated system is watched
LONGEST = {"prompt_tokens": 120_000, "output_tokens": 12_000}  # of lengths that were multiplied
FAILURES = 0xFA11  # the stream of an episode's random numbers that failures are drawn from
VARIED = ("workload", "load", "rate", "predictor")  # keys of a file that may hold lists
REAL = "noisy-oracle:tau=0.5"  # about as good as a predictor of lengths from prompts
PREDICTED = ("oracle", "noisy-oracle:tau=0.7", REAL, "noisy-oracle:tau=0.3")
PRESETS = (
    "azure-conv-2023", "azure-code-2023", "mooncake-conversation", "burstgpt", "reasoning",
    "sharegpt", "lmsys-chat",
)  # fmt: skip
# two fast, one at half speed, one with a quarter of the seats
UNEQUAL = (
    {"count": 2, "max_num_seqs": 64},
    {"max_num_seqs": 64, "speed": 0.5},
    {"max_num_seqs": 16},
)


@dataclass(frozen=True)
class Scenario:
    """Episodes of one kind.

    ``workload`` is a preset, a trace file, a ``Workload`` or a function of the seed; a longer trace
    is cut into windows of ``requests`` at random, out of its ``span`` (shares of its requests).
    Arrivals of each episode are stretched to ``rate`` requests/s or to ``load``, a share of
    ``capacity``. A ``predictor`` with noise draws it anew for each episode. ``nodes`` stands in for
    ``replicas`` equal ones; ``policy`` and ``router`` are what is not trained. ``prompt_factor``
    and ``output_factor`` multiply all lengths, up to ``LONGEST``. ``failures`` are drawn anew for
    each episode (the keys of ``serving.events.RandomEvents``).
    """

    name: str
    workload: str | Workload | Workloads
    requests: int = 2000
    load: float | None = None
    rate: float | None = None
    predictor: str | Predictor | None = REAL
    timing: str | TimingModel = DEFAULT_TIMING
    engine: Engine | Mapping[str, Any] | None = None
    replicas: int = 1
    nodes: NodesLike | None = None
    policy: str | SchedulingPolicy = "fcfs"
    router: str | RoutingPolicy = "jsq"
    metrics_interval_s: float = 0.0
    span: tuple[float, float] = (0.0, 1.0)
    prompt_factor: float = 1.0
    output_factor: float = 1.0
    failures: RandomEvents | Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.load is not None and self.rate is not None:
            raise InputError(f"scenario {self.name!r}: give a load or a rate, not both")
        factors = {"prompt_factor": self.prompt_factor, "output_factor": self.output_factor}
        for what, value in {"load": self.load, "rate": self.rate, **factors}.items():
            if value is not None and not (_number(value) and 0 < value < float("inf")):
                raise InputError(f"scenario {self.name!r}: {what} must be above 0, not {value!r}")
        whole = isinstance(self.requests, int) and not isinstance(self.requests, bool)
        if not (whole and 10 <= self.requests <= MOST_REQUESTS):
            raise InputError(
                f"scenario {self.name!r}: requests must be a whole number of at least 10 and up to "
                f"{MOST_REQUESTS}, not {self.requests!r}"
            )
        if not (
            len(self.span) == 2
            and all(map(_number, self.span))
            and 0 <= self.span[0] < self.span[1] <= 1
        ):
            raise InputError(
                f"scenario {self.name!r}: span must be two shares of the trace, in order, not "
                f"{self.span!r}"
            )

    @cached_property
    def system(self) -> System:
        """What serves."""
        return system_of(
            timing=self.timing, engine=self.engine, policy=self.policy, router=self.router,
            replicas=self.replicas, nodes=self.nodes, metrics_interval_s=self.metrics_interval_s,
        )  # fmt: skip

    @cached_property
    def capacity(self) -> float:
        """Requests/s that the system can serve of this workload: measured once, and kept.

        All requests of one workload arrive at once under fcfs and, over several nodes, the
        shortest expected wait (jsew), with exact lengths and fresh metrics. Counted is the time
        from the first tenth of the answers until nine tenths are done: nodes are busy all along,
        and neither the first prompts nor the last long answers count.
        """
        drawn = self._source(CAPACITY_SEED)
        at_once = drawn.replace(arrival_s=np.zeros(len(drawn)), deadline_s=None)
        plain = tuple(replace(node, policy=load_policy("fcfs")) for node in self.system.nodes)
        records = run(at_once, System(plain, load_router("jsew")), at_once["output_tokens"], seed=0)
        done = np.sort(records.finish_ps) / PS
        first, last = (int(share * (len(done) - 1)) for share in SATURATED)
        return float((last - first) / max(done[last] - done[first], 1e-9))

    @cached_property
    def scale(self) -> float:
        """What rewards are divided by: the sum of latencies of one episode under the system's own
        policy and router, so that an episode of each scenario counts alike.
        """
        made = self._episode(CAPACITY_SEED, 1.0)
        records = run(made.workload, made.system, made.predictions, seed=made.seed)
        return max(float((records.finish_ps - records.arrival_ps).sum()) / PS, 1e-9)

    def __call__(self, seed: int) -> Episode:
        """The episode of a seed."""
        return self._episode(seed, self.scale)

    def _episode(self, seed: int, scale: float) -> Episode:
        drawn = self._source(seed)
        rate = self.rate if self.load is None else self.load * self.capacity
        workload = drawn if rate is None else drawn.at_rate(rate)
        predictions = predict(self._predictor, workload, seed)
        system = self.system
        if self._failures is not None:
            span_s = float(workload["arrival_s"].max())
            events = self._failures.draw(stream(seed, FAILURES), len(system.nodes), span_s)
            system = replace(system, events=events)
        return Episode(workload, system, predictions, seed, scale, self.name)

    @cached_property
    def _failures(self) -> RandomEvents | None:
        return None if self.failures is None else RandomEvents.of(self.failures)

    @cached_property
    def _predictor(self) -> Predictor | None:
        return load_predictor(self.predictor)

    @cached_property
    def _source(self) -> Workloads:
        workload = self.workload
        if isinstance(workload, str) and os.path.exists(workload):
            workload = Workload.read(workload)
        if isinstance(workload, Workload) and self.span != (0.0, 1.0):
            low, high = (round(share * len(workload)) for share in self.span)
            if high - low < 10:
                raise InputError(
                    f"scenario {self.name!r}: span {self.span!r} holds {high - low} of the "
                    f"{len(workload)} requests of {workload.name}; 10 are the least"
                )
            workload = workload.select(slice(low, high))
        source = episode_source(workload, requests=self.requests, rate=None)
        factors = {"prompt_tokens": self.prompt_factor, "output_tokens": self.output_factor}
        if set(factors.values()) == {1.0}:
            return source

        def scaled(seed: int) -> Workload:
            drawn = source(seed)
            columns: dict[str, Any] = {
                name: np.clip(np.rint(drawn[name] * factor), 1, LONGEST[name]).astype(np.int64)
                for name, factor in factors.items()
            }
            return drawn.replace(**columns)

        return scaled


@dataclass(frozen=True)
class Scenarios:
    """A set of scenarios as a source of episodes: seed s draws from scenario s modulo their number.

    Seeds drawn at random mix all scenarios; n successive seeds draw each of n once.
    """

    items: tuple[Scenario, ...]

    def __init__(self, items: Sequence[Scenario]) -> None:
        object.__setattr__(self, "items", tuple(items))
        names = [item.name for item in self.items]
        if not names:
            raise InputError("a set of scenarios needs at least one")
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"{names.count(name)} scenarios are called {name!r}")

    def __call__(self, seed: int) -> Episode:
        """The episode of a seed."""
        return self.items[seed % len(self.items)](seed)

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Scenario]:
        return iter(self.items)

    @property
    def loads(self) -> tuple[float, float] | None:
        """The lowest and highest load; None where one has a rate instead."""
        loads = [item.load for item in self.items if item.load is not None]
        return (min(loads), max(loads)) if len(loads) == len(self.items) else None


# what a file may say; its other keys are checked where they are used
TYPES: dict[str, Any] = {
    **dict.fromkeys(("workload", "timing", "policy", "router"), str),
    **dict.fromkeys(("predictor",), str | None), "engine": Mapping | None,
    "nodes": str | list | tuple | None, "span": tuple,
}  # fmt: skip
KEYS = tuple(item.name for item in fields(Scenario) if item.init)


def presets(loads: Sequence[float] = (0.7, 0.9, 1.05), **given: Any) -> Scenarios:
    """The presets at several loads on one replica of 64 seats."""
    options = {"engine": Engine(max_num_seqs=64), **given}
    return Scenarios(
        [
            Scenario(f"{name} at {load:g}", name, load=load, **options)
            for name in PRESETS
            for load in loads
        ]
    )


def unequal(loads: Sequence[float] = (0.7, 0.9, 1.05), **given: Any) -> Scenarios:
    """The presets at several loads on four replicas that differ, behind metrics a second old."""
    options = {"nodes": UNEQUAL, "metrics_interval_s": 1.0, **given}
    return presets(loads, engine=None, **options)


def varied(
    workloads: Sequence[str | Workload] = PRESETS,
    *,
    fleet: bool = False,
    count: int = 64,
    seed: int = 0,
    factors: bool = True,
    **given: Any,
) -> Scenarios:
    """Many kinds of workloads, systems and predictors, drawn at random from ``seed``.

    Training on one distribution of lengths fits it; this is domain randomisation (Tobin et al.,
    IROS 2017). Of every two rounds over ``workloads`` one has all prompts (by 0.2 to 20) and
    all answers (by 0.3 to 3) multiplied, with ``factors``. Loads are 0.75 to 1.15, one in
    five 0.5 to 1.2; predictors the truth or noise of Kendall's tau 0.7, 0.5 or 0.3. One replica has
    32 to 128 seats; a ``fleet`` is the one of ``unequal``, two in five another of four replicas of
    16 to 64 seats and 0.4 to 1 of the speed, with metrics up to 2 s old.
    """
    rng = np.random.default_rng(seed)

    def between(low: float, high: float) -> float:
        return float(f"{np.exp(rng.uniform(np.log(low), np.log(high))):.3g}")

    items = []
    for index in range(count):
        one = workloads[index % len(workloads)]
        options: dict[str, Any] = {
            "load": between(0.75, 1.15) if rng.random() < 0.8 else between(0.5, 1.2),
            "predictor": PREDICTED[int(rng.integers(len(PREDICTED)))],
        }
        if factors and index // len(workloads) % 2:
            options |= {"prompt_factor": between(0.2, 20), "output_factor": between(0.3, 3)}
        if not fleet:
            options["engine"] = Engine(max_num_seqs=int(rng.choice((32, 64, 64, 64, 128))))
        elif rng.random() < 0.6:
            options |= {"nodes": UNEQUAL, "metrics_interval_s": 1.0}
        else:
            options["metrics_interval_s"] = float(rng.choice((0.0, 0.25, 1.0, 2.0)))
            options["nodes"] = tuple(
                {"max_num_seqs": int(rng.choice((16, 32, 64))), "speed": between(0.4, 1)}
                for _ in range(4)
            )
        name = one if isinstance(one, str) else one.name
        items.append(Scenario(f"{index}: {name}", one, **{"requests": 600, **options, **given}))
    return Scenarios(items)


def varied_unequal(**given: Any) -> Scenarios:
    """``varied`` for a router."""
    return varied(fleet=True, **given)


SETS: dict[str, Callable[..., Scenarios]] = {
    "presets": presets, "unequal": unequal, "varied": varied, "varied-unequal": varied_unequal,
}  # fmt: skip


def read_scenarios(spec: str | Path) -> Scenarios:
    """A named set (``presets``, ``unequal``), or a JSON file.

    The file is a list of objects with the keys of ``Scenario``, or ``{"defaults": {...},
    "scenarios": [...]}``; where workload, load, rate or predictor is a list, there is a scenario
    for each combination. Raises ``InputError`` for what can't be read, ``UnknownNameError`` for
    unknown keys and names.
    """
    text = str(spec)
    if text in SETS:
        return SETS[text]()
    if not text.endswith(".json"):
        raise UnknownNameError("set of scenarios", text, (*SETS, "FILE.json"))
    found = read_described(Path(text), "scenarios file")
    defaults: Any = {}
    if isinstance(found, dict):
        for key in found:
            if key not in ("defaults", "scenarios"):
                raise UnknownNameError(f"key of {text}", key, ("defaults", "scenarios"))
        defaults, found = found.get("defaults", {}), found.get("scenarios")
    if not isinstance(found, list) or not isinstance(defaults, dict):
        raise InputError(f"{text}: expected a list of scenarios, not {found!r}"[:200])
    items: list[Scenario] = []
    for index, row in enumerate(found):
        items += _read(row, defaults, f"scenario {index} in {text}")
    return Scenarios(items)


def _read(row: Any, defaults: Mapping[str, Any], where: str) -> list[Scenario]:
    """The scenarios of one entry of a file."""
    if not isinstance(row, Mapping):
        raise InputError(f"{where}: expected the keys and values of a scenario, not {row!r}")
    given = {**defaults, **row}
    for key in given:
        if key not in KEYS:
            raise UnknownNameError(f"key of {where}", str(key), KEYS)
    if "workload" not in given:
        raise InputError(f"{where}: it needs a workload, a preset or a trace file")
    varied = [key for key in VARIED if isinstance(given.get(key), list)]
    items = []
    for values in product(*(given[key] for key in varied)):
        one = {**given, **dict(zip(varied, values, strict=True))}
        parts = [str(given.get("name", one["workload"]))]
        parts += [str(value) for key, value in zip(varied, values, strict=True)
                  if key != "workload" or "name" in given]  # fmt: skip
        if "name" not in given and "load" in one and "load" not in varied:
            parts.append(str(one["load"]))
        one["name"] = ", ".join(parts)
        if isinstance(one.get("span"), list):
            one["span"] = tuple(one["span"])
        for key, kinds in TYPES.items():
            if key in one and not isinstance(one[key], kinds):
                raise InputError(f"{where}: {key} can't be {one[key]!r}")
        try:
            made = Scenario(**one)
            # what is wrong is told now
            _ = made.system, made._predictor, made._source, made._failures
        except UnknownNameError:
            raise
        except (InputError, TypeError) as error:
            said = str(error)
            raise InputError(said if said.startswith("scenario") else f"{where}: {said}") from None
        items.append(made)
    return items


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
