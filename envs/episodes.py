"""Where episodes come from: a seed in, an episode out.

An episode is what one simulated run needs: a workload, what serves it, what was predicted. A source
is any function from a seed to an episode; the plain one here draws the workload anew for one
system, other sources mix workloads, loads and systems.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lengthwise.errors import InputError
from lengthwise.policies import load_policy, load_router
from lengthwise.policy import RoutingPolicy, SchedulingPolicy
from lengthwise.prediction import Predictions
from lengthwise.predictors import load_predictor
from lengthwise.predictors.predict import predict
from lengthwise.protocols import Predictor, TimingModel
from lengthwise.serving import Engine, Node, System
from lengthwise.serving.nodes import NodesLike, nodes_of, read_nodes
from lengthwise.serving.options import engine_of
from lengthwise.serving.timing import timing as load_timing
from lengthwise.trained import Range
from lengthwise.workload import Workload

Workloads = Callable[[int], Workload]  # an episode's seed -> its workload


@dataclass(frozen=True)
class Episode:
    """One simulated run that an agent decides in.

    ``seed`` is the run's (what random choices of the system are drawn from), ``scale`` what rewards
    are divided by, ``name`` the scenario's, for statistics by scenario.
    """

    workload: Workload
    system: System
    predictions: Predictions | None
    seed: int
    scale: float
    name: str

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise InputError(f"an episode's scale must be positive, not {self.scale!r}")

    @property
    def ranges(self) -> dict[str, Range]:
        """What a policy meets in it: (lowest, highest) by the names of ``trained.TrainedOn``."""
        nodes = self.system.nodes
        columns: dict[str, ArrayLike] = {
            "prompt_tokens": self.workload["prompt_tokens"], "nodes": [len(nodes)],
            "seats": [node.engine.max_num_seqs for node in nodes],
        }  # fmt: skip
        if self.predictions is not None:
            columns["predicted_tokens"] = self.predictions.predicted_tokens
        return {name: (float(np.min(v)), float(np.max(v))) for name, v in columns.items()}


Source = Callable[[int], Episode]  # a seed -> an episode; the same seed gives the same one


def episodes_of(
    workload: str | Workload | Workloads,
    *,
    requests: int = 500,
    rate: float | None = None,
    timing: str | TimingModel = "h200/llama-3.1-8b",
    engine: Engine | Mapping[str, Any] | None = None,
    predictor: str | Predictor | None = "oracle",
    policy: str | SchedulingPolicy = "fcfs",
    router: str | RoutingPolicy = "round-robin",
    replicas: int = 1,
    nodes: NodesLike | None = None,
    metrics_interval_s: float = 0.0,
    scale: float | None = None,
) -> Source:
    """Episodes of one system: workloads of ``requests`` requests from a preset, a trace file, a
    ``Workload`` or a function of the seed (see ``episode_source``).

    ``nodes`` (as ``serving.nodes`` reads them) stands in for ``replicas`` equal ones. ``scale``
    defaults to the number of requests, so that with the cost ``latency`` the undiscounted return is
    minus the mean.
    """
    source = episode_source(workload, requests=requests, rate=rate)
    system = system_of(
        timing=timing, engine=engine, policy=policy, router=router, replicas=replicas, nodes=nodes,
        metrics_interval_s=metrics_interval_s,
    )  # fmt: skip
    known = load_predictor(predictor)
    if scale is not None and not scale > 0:
        raise InputError(f"reward_scale must be positive, not {scale!r}")

    def episode(seed: int) -> Episode:
        drawn = source(seed)
        per = float(len(drawn)) if scale is None else scale
        return Episode(drawn, system, predict(known, drawn, seed), seed, per, drawn.name)

    return episode


def system_of(
    *,
    timing: str | TimingModel,
    engine: Engine | Mapping[str, Any] | None,
    policy: str | SchedulingPolicy,
    router: str | RoutingPolicy,
    replicas: int,
    nodes: NodesLike | None = None,
    metrics_interval_s: float = 0.0,
) -> System:
    """What serves, from plain data or objects."""
    model = load_timing(timing) if isinstance(timing, str) else timing
    options, scheduling, routing = engine_of(engine), load_policy(policy), load_router(router)
    if nodes is None:
        node = Node(options, model, scheduling)
        return System.replicated(node, replicas, routing, metrics_interval_s)
    found = nodes_of(read_nodes(nodes, options, model), scheduling)
    if any(node.role != "both" for node in found):
        raise InputError("environments can't run nodes of roles prefill and decode yet")
    return System(found, routing, metrics_interval_s)


def episode_source(
    workload: str | Workload | Workloads, *, requests: int, rate: float | None
) -> Workloads:
    """Workloads of ``requests`` requests from a preset, a trace file, a workload or a function.

    A trace or workload that is longer is cut into windows at random; ``rate`` (requests/s)
    stretches arrivals. A function of the seed says everything itself.
    """
    if isinstance(workload, str):
        if not os.path.exists(workload):
            name = workload
            Workload.preset(name, requests=2, rate=rate)  # a wrong name is told now
            return lambda seed: Workload.preset(name, requests=requests, rate=rate, seed=seed)
        workload = Workload.read(workload)
    if not isinstance(workload, Workload):
        return workload
    whole = workload if rate is None else workload.at_rate(rate)
    if len(whole) <= requests:
        return lambda seed: whole
    return lambda seed: _window(whole, requests, seed)


def _window(whole: Workload, requests: int, seed: int) -> Workload:
    first = int(np.random.default_rng(seed).integers(len(whole) - requests + 1))
    return whole.window(first, first + requests)
