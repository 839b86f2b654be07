"""Jain et al., "Intelligent Router for LLM Workloads", 2024: routers learned and not, ours beside
theirs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.eval.cells import Cells
from lengthwise.eval.output import CONFIG
from lengthwise.eval.pool import over_cores
from lengthwise.eval.reproductions.table import Line, Progress, Reproduction
from lengthwise.eval.statistics import paired_ratio, t_interval
from lengthwise.policies import load_policy, load_router
from lengthwise.policies.bundle import is_bundle
from lengthwise.policy import RoutingPolicy
from lengthwise.serving import Engine, Node, System, run
from lengthwise.serving.options import DEFAULT_TIMING
from lengthwise.serving.records import PS
from lengthwise.serving.timing import timing as load_timing
from lengthwise.training.commands.stopped import Interrupted
from lengthwise.workload import Workload

Floats = NDArray[np.float64]

# Five tasks in equal parts. The paper names five tasks; the lengths are ours, an assumption: mean
# tokens of (prompt, answer), each log-normal with SPREAD.
TASKS: dict[str, tuple[int, int]] = {
    "sentiment": (180, 4),
    "entities": (100, 40),
    "question in context": (400, 20),
    "open question": (40, 250),
    "translation": (80, 90),
}
SPREAD = 0.6
REQUESTS, EPISODES, REPLICAS = 2000, 20, 4  # theirs
TEST_SEED = 1_000_000  # training draws its episodes below
# per cent of mean latency below round robin's, as published: 4 replicas, 20 requests/s
THEIRS: dict[str, float] = {
    "jsq": 0.46, "min-min": 1.50, "max-capacity": 2.60, "RL": 4.35, "RL, penalised": 7.79,
    "RL, guided": 11.43,
}  # fmt: skip
THEIRS_OF_8 = {"RL, guided": 11.62}
ROUND_ROBIN = "round-robin"
BASELINES = (ROUND_ROBIN, "jsq", "min-min", "max-capacity", "jsq-tokens", "least-tokens", "jsew")
GUIDE = "jsq-tokens"
# an update an episode's worth of decisions; what differs between the three learners
PPO: dict[str, Any] = {"rollout": REQUESTS, "batch_size": 500, "n_epochs": 8}
LEARNERS: dict[str, tuple[str, str | None, dict[str, Any]]] = {  # algorithm, guide, settings
    "RL": ("ppo", None, {}),
    "RL, penalised": ("ppo", GUIDE, {"demonstrations": 1024, "clone_epochs": 0, "penalty": 0.3}),
    "RL, guided": ("ppo", GUIDE, {"demonstrations": 8192, "penalty": 0.3}),
    "ES": ("es", None, {"episodes": 6}),  # no network: weights of terms
}


@dataclass(frozen=True)
class Regime:
    """What is scarce on each replica; ``load`` is of what bursts sustain."""

    scarce: str
    engine: Engine
    load: float
    replicas: int = REPLICAS

    @property
    def name(self) -> str:
        """As the table says it."""
        return f"{self.replicas} replicas, {self.scarce}, load {self.load:g}"


SEATS = "16 seats", Engine(max_num_seqs=16)
MEMORY = "KV of 16k tokens", Engine(num_gpu_blocks=1000)
TAUGHT = Regime(*SEATS, 0.9)  # where the learners learn
REGIMES = (TAUGHT, Regime(*SEATS, 0.7), Regime(*MEMORY, 0.9), Regime(*SEATS, 0.9, 8))


def five_tasks(requests: int, rate: float, seed: int) -> Workload:
    """The mix, arriving as a Poisson process of ``rate`` requests/s; column ``task`` names each."""
    rng = np.random.default_rng(seed)
    task = rng.integers(0, len(TASKS), requests)
    means = np.array(list(TASKS.values()))[task]
    drawn = means * rng.lognormal(-(SPREAD**2) / 2, SPREAD, (requests, 2))
    tokens = np.maximum(np.rint(drawn).astype(np.int64), 1)
    return Workload(
        {
            "arrival_s": np.cumsum(rng.exponential(1 / rate, requests)),
            "prompt_tokens": tokens[:, 0],
            "output_tokens": tokens[:, 1],
            "task": np.array(list(TASKS), dtype=object)[task],
        },
        name="five tasks",
    )


def node(engine: Engine) -> Node:
    """One replica."""
    return Node(engine, load_timing(DEFAULT_TIMING), load_policy("fcfs"))


def sustained(engine: Engine) -> float:
    """Requests/s of the mix that one replica serves of a burst, its emptying end left out."""
    burst = five_tasks(4000, 1.0, 0).replace(arrival_s=np.zeros(4000))
    system = System((node(engine),), load_router(ROUND_ROBIN))
    done = np.sort(run(burst, system).finish_ps) / PS
    return float(3200 / done[3200])


def mean_latencies(
    regime: Regime, rate: float, router: str | RoutingPolicy, requests: int, seeds: Sequence[int]
) -> list[float]:
    """Mean latency (s) of each test episode; the router is told the true lengths."""
    system = System((node(regime.engine),) * regime.replicas, load_router(router))
    found = []
    for seed in seeds:
        work = five_tasks(requests, rate, TEST_SEED + seed)
        records = run(work, system, work["output_tokens"].astype(np.float64), seed=seed)
        found.append(float((records.finish_ps / PS - work["arrival_s"]).mean()))
    return found


def train(name: str, rate: float, requests: int, steps: int, folder: Path) -> RoutingPolicy:
    """One of ``LEARNERS``, trained in the first regime; ES has a candidate for 200 decisions."""
    from lengthwise.training.policy import train_policy
    from lengthwise.training.runs import BUNDLE

    if is_bundle(str(folder / BUNDLE)):  # of a run that went on to its end
        return load_router(str(folder / BUNDLE))
    algo, guide, settings = LEARNERS[name]
    if algo == "es":
        settings = {**settings, "evaluations": max(16, steps // 200)}
    else:
        settings = {**PPO, **settings}
    trained = train_policy(
        "lengthwise/Routing-v0", out=folder, algo=algo, steps=steps, n_envs=20, guide=guide,
        workload=Mix(requests, rate), settings=settings, eval_every=max(1, steps // 8),
        env_options={"engine": TAUGHT.engine, "requests": requests, "replicas": TAUGHT.replicas},
        baseline_names=[ROUND_ROBIN, GUIDE, "jsew"], progress=False,
        resume=(folder / CONFIG).is_file(),
    )  # fmt: skip
    return load_router(str(trained.bundle))


@dataclass(frozen=True)
class Mix:
    """Episodes of the mix by seed."""

    requests: int
    rate: float

    def __call__(self, seed: int) -> Workload:
        return five_tasks(self.requests, self.rate, seed % TEST_SEED)


def intelligent_router(
    seeds: int = EPISODES,
    processes: int = 1,
    progress: Progress | None = None,
    cells: Cells | None = None,
    *,
    requests: int = REQUESTS,
    steps: int = 2 * REQUESTS * EPISODES,
    learners: Sequence[str] = tuple(LEARNERS),
) -> Reproduction:
    """Intelligent Router (2024): mean latency of learned and simple routers against round robin.

    The routers of the paper and more, on ``seeds`` test episodes of ``requests`` each.

    ``steps`` are the decisions that each learner sees; 0 of ``learners`` leaves only baselines.
    With ``cells``, learners and what is judged are kept there, and go on from there.
    """
    rates = {engine: sustained(engine) for _, engine in (SEATS, MEMORY)}
    done, total = 0, len(learners) + len(REGIMES) * (len(BASELINES) + len(learners))

    def moved() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    routers: dict[str, str | RoutingPolicy] = {name: name for name in BASELINES}
    taught_rate = TAUGHT.load * TAUGHT.replicas * rates[TAUGHT.engine]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) if cells is None else cells.folder
        for index, name in enumerate(learners):
            try:
                routers[name] = train(
                    name, taught_rate, requests, steps, folder / f"learner-{index}"
                )
            except Interrupted as stop:  # its own words are of a command that trains
                raise Interrupted(number=stop.number) from None
            moved()
    jobs = [
        (regime, regime.load * regime.replicas * rates[regime.engine], router, requests,
         range(seeds))
        for regime in REGIMES for router in routers.values()
    ]  # fmt: skip
    names = [(regime, name) for regime in REGIMES for name in routers]
    found: dict[tuple[Regime, str], list[float]] = {}
    for place, key in enumerate(names):
        known = None if cells is None else cells.read(str(place))
        if known is not None:
            found[key] = known
            moved()
    left = [place for place, key in enumerate(names) if key not in found]
    judged = over_cores(mean_latencies, [jobs[place] for place in left], processes)
    for place, latencies in zip(left, judged, strict=True):
        found[names[place]] = latencies
        if cells is not None:
            cells.write(str(place), latencies)
        moved()
    lines = []
    for regime, name in names:
        first = found[regime, ROUND_ROBIN]
        theirs = _theirs(regime, name)
        lines.append(
            Line(
                regime.name, name, "not stated", theirs, t_interval(found[regime, name]),
                paired_ratio(found[regime, name], first),
            )
        )  # fmt: skip
    return Reproduction(
        f"Intelligent Router: mean latency, {seeds} episodes of {requests} requests",
        "s",
        tuple(lines),
        (
            "their load is 20 requests/s on four replicas, of a capacity that is not stated; ours "
            "is a share of what four replicas sustain of the mix: "
            + ", ".join(f"{4 * rates[e]:.0f} requests/s ({what})" for what, e in (SEATS, MEMORY)),
            "their mix of five tasks is stood in for by log-normal lengths that are assumed",
            "theirs decides every 20 ms and may hold a request; ours decides when one arrives",
            "their learner is a double DQN over the state of all replicas; ours is PPO of one score"
            " for each replica, so that it routes for any number of them; learned in the first "
            "regime alone",
            "their predictor is a classifier of lengths; here routers are told the true ones",
        ),
        first="round robin",
    )


def _theirs(regime: Regime, name: str) -> str:
    if name == ROUND_ROBIN:
        return "1"
    published = THEIRS_OF_8 if regime.replicas == 8 else THEIRS
    if name not in published or regime.load < TAUGHT.load:
        return "–"
    return f"{1 - published[name] / 100:.3f}"


SMALL: dict[str, Any] = {"requests": 500, "steps": 2 * REQUESTS * EPISODES // 10}
PAPER: dict[str, Callable[..., Reproduction]] = {"intelligent-router": intelligent_router}
