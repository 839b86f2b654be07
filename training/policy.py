"""Training a policy by reinforcement learning, exporting it, and judging it beside baselines."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from lengthwise.envs.base import DecisionEnv, engine_of
from lengthwise.envs.episodes import episode_source
from lengthwise.envs.routing import RoutingEnv
from lengthwise.errors import InputError, UnknownNameError
from lengthwise.eval.statistics import paired_ratio, t_interval
from lengthwise.policies import load_policy, load_router
from lengthwise.policies.bundle import is_bundle, read_bundle, write_bundle
from lengthwise.policy import RoutingPolicy, SchedulingPolicy
from lengthwise.predictors.predict import PredictorLike
from lengthwise.protocols import TimingModel
from lengthwise.registry import load
from lengthwise.serving import Engine, Node, System
from lengthwise.serving.options import DEFAULT_TIMING
from lengthwise.serving.timing import timing as load_timing
from lengthwise.training.agents import make_agent, settings_for
from lengthwise.training.calibration import calibrate
from lengthwise.training.checkpoint import read_checkpoint, write_checkpoint
from lengthwise.training.judging import Bench, Judged, baselines, costs, table_row
from lengthwise.training.monitor import Watch
from lengthwise.training.runs import (
    BEST,
    BUNDLE,
    CHECKPOINT,
    EVALUATIONS,
    best_policy,
    best_state,
    described,
    learned,
    open_run,
    read_config,
    replace_json,
    write_config,
)
from lengthwise.training.scorer import score_layers
from lengthwise.workload import Workload

# Episodes draw workload seeds below 2**31; these are out of their reach.
VALIDATION_SEED, TEST_SEED = 2**31, 2**31 + 10_000


@dataclass(frozen=True)
class PolicyRun:
    """A finished run: its folder, the exported bundle, and the held-out costs.

    ``evaluations`` are (steps, cost) pairs; ``baselines`` maps a name to its cost on the same
    workloads. The bundle holds the weights of the lowest cost.
    """

    folder: Path
    bundle: Path
    evaluations: list[tuple[int, float]]
    baselines: dict[str, float]

    @property
    def cost(self) -> float:
        """The lowest held-out cost: that of the bundle."""
        return min(cost for _, cost in self.evaluations)


def train_policy(
    env: str,
    *,
    out: str | Path,
    algo: str = "ppo",
    workload: str | Workload | Callable[[int], Workload] = "azure-conv-2023",
    timing: str | TimingModel = DEFAULT_TIMING,
    steps: int = 200_000,
    n_envs: int = 16,
    seed: int = 0,
    resume: bool = False,
    env_options: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    hidden: Sequence[int] = (32, 32),
    eval_every: int | None = None,
    eval_seeds: int = 4,
    save_every: int | None = None,
    baseline_names: Sequence[str] | None = None,
    progress: bool = True,
    command: str | None = None,
) -> PolicyRun:
    """Trains ``algo`` ("ppo", "dqn" or "maskable-ppo") on a registered environment.

    ``out`` becomes the run's folder: ``config.json`` (command, versions, seed, every option),
    ``checkpoint.pt`` (the latest), ``best.pt`` (lowest held-out cost), ``evaluations.json``,
    ``tensorboard/`` and ``bundle/``, the exported policy. ``env_options`` go to the environment,
    ``settings`` to the algorithm. ``eval_every`` and ``save_every`` (steps) default to a twentieth.

    An interrupted run goes on from its checkpoint when called again with ``resume=True`` and the
    same arguments (``steps`` may grow); episodes in progress and DQN's replay buffer start afresh.
    Raises ``InputError`` for a folder that holds another run, or for differing arguments.
    """
    if not hidden or min(steps, n_envs, eval_seeds, *hidden) < 1:
        raise InputError("steps, n_envs, eval_seeds and the hidden layers must be 1 or more")
    chosen = settings_for(algo, settings)
    make = load("env", env)
    options = {"workload": workload, "timing": timing, **(env_options or {})}
    allowed = inspect.signature(make).parameters
    for name in options:
        if name not in allowed:
            raise UnknownNameError(f"option of {env}", name, allowed)
    config = {
        "env": env, "algo": algo, "env_options": described(options), "settings": chosen,
        "hidden": list(hidden), "n_envs": n_envs, "seed": seed, "steps": steps,
    }  # fmt: skip
    probe: DecisionEnv = make(**options)
    judges = baselines(_kind(probe), baseline_names)
    folder = Path(out)
    open_run(folder, config, resume=resume)
    if resume and (folder / CHECKPOINT).exists():
        state = read_checkpoint(folder / CHECKPOINT)
    else:
        scales = calibrate(probe, chosen["gamma"], seed)
        state = {"steps": 0, "scales": scales.features, "reward_scale": scales.reward}
        state["evaluations"] = []
    write_config(folder, config, command)
    # built once, shared by the environments: a trace is read once, and a model loaded once
    shared = {"workload": probe.source, "timing": probe.timing, "predictor": probe.predictor}
    options = {
        "scales": state["scales"], "reward_scale": state["reward_scale"], **options, **shared
    }  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the network is too small to gain from more
    try:
        return _learn(
            [make(**options) for _ in range(n_envs)],
            folder,
            state,
            algo=algo,
            settings=chosen,
            hidden=hidden,
            seed=seed,
            steps=steps,
            eval_every=eval_every or max(1, steps // 20),
            eval_seeds=eval_seeds,
            save_every=save_every or max(1, steps // 20),
            judges=judges,
            progress=progress,
        )
    finally:
        torch.set_num_threads(threads)


def _learn(
    envs: list[DecisionEnv],
    folder: Path,
    state: dict[str, Any],
    *,
    algo: str,
    settings: Mapping[str, Any],
    hidden: Sequence[int],
    seed: int,
    steps: int,
    eval_every: int,
    eval_seeds: int,
    save_every: int,
    judges: Sequence[Judged],
    progress: bool,
) -> PolicyRun:
    env = envs[0]
    kind = _kind(env)
    seeds = range(VALIDATION_SEED, VALIDATION_SEED + eval_seeds)
    bench = Bench(env.source, env.predictor, env.system)
    against = {
        judged.name: float(np.mean(costs(bench, judged, env.cost, seeds))) for judged in judges
    }
    vector = VecMonitor(DummyVecEnv([lambda made=made: made for made in envs]))  # type: ignore[misc]
    agent = make_agent(algo, vector, settings, hidden, seed)
    if "policy" in state:
        agent.policy.load_state_dict(state["policy"])
        agent.policy.optimizer.load_state_dict(state["optimizer"])
    agent.num_timesteps = state["steps"]
    # a resumed run must not see again the episodes that it saw before
    draws = np.random.SeedSequence((seed, state["steps"])).generate_state(1)
    agent.set_random_seed(int(draws[0] >> 1))
    agent.set_logger(configure(str(folder / "tensorboard"), ["tensorboard"]))

    def save(step: int) -> None:
        state["steps"] = step
        state["policy"] = agent.policy.state_dict()
        state["optimizer"] = agent.policy.optimizer.state_dict()
        write_checkpoint(folder / CHECKPOINT, state)

    def evaluate(step: int) -> float:
        layers = score_layers(agent.policy)
        judged = learned(kind, env.columns, layers)
        cost = float(np.mean(costs(bench, judged, env.cost, seeds)))
        if all(cost < earlier for _, earlier in state["evaluations"]):
            write_checkpoint(folder / BEST, best_state(kind, env.columns, layers, cost))
        state["evaluations"].append([step, cost])
        kept = {"evaluations": state["evaluations"], "baselines": against}
        replace_json(folder / EVALUATIONS, kept)
        agent.logger.record("eval/cost", cost)
        for name, value in against.items():
            agent.logger.record(f"eval/cost_of_{name}", value)
        agent.logger.dump(step)
        return cost

    watch = Watch(
        steps=steps, evaluate=evaluate, evaluate_every=eval_every, save=save,
        save_every=save_every, baselines=against, show=progress,
    )  # fmt: skip
    if not state["evaluations"]:
        evaluate(agent.num_timesteps)
    save(agent.num_timesteps)
    try:
        if agent.num_timesteps < steps:
            agent.learn(steps - agent.num_timesteps, watch, reset_num_timesteps=False)
            if state["evaluations"][-1][0] != agent.num_timesteps:
                evaluate(agent.num_timesteps)
    finally:
        watch.close()
        save(agent.num_timesteps)
        agent.logger.close()
    bundle = write_bundle(best_policy(folder), folder / BUNDLE)
    evaluations = [(int(step), float(cost)) for step, cost in state["evaluations"]]
    return PolicyRun(folder, bundle, evaluations, against)


def export_run(run: str | Path, to: str | Path) -> Path:
    """Writes the best policy of a run, finished or not, as a bundle; returns the bundle's folder.

    Raises ``InputError`` for a folder that is no training run.
    """
    read_config(Path(run))
    return write_bundle(best_policy(Path(run)), to)


def evaluate_policy(
    policy: str | Path | SchedulingPolicy | RoutingPolicy,
    workload: str | Workload | Callable[[int], Workload],
    *,
    requests: int = 1000,
    rate: float | None = None,
    seeds: int = 5,
    timing: str | TimingModel = DEFAULT_TIMING,
    engine: Engine | Mapping[str, Any] | None = None,
    predictor: PredictorLike = "oracle",
    replicas: int | None = None,
    beside: str = "",
    baseline_names: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """A bundle (or a run's folder) beside baselines on the same workloads, one row a policy.

    Each metric comes as its mean over ``seeds`` workloads of ``requests`` requests, with ``_low``
    and ``_high``, a 95% t-interval; ``ratio`` is the mean latency over the first baseline's, paired
    by workload. ``beside`` is the router (default round-robin) or scheduling policy (default fcfs)
    that runs with what is judged; ``replicas`` defaults to 1 for a scheduling policy, 4 for a
    router.
    """
    judged = policy if isinstance(policy, SchedulingPolicy | RoutingPolicy) else _read(policy)
    kind = "scheduling" if isinstance(judged, SchedulingPolicy) else "routing"
    node = Node(
        engine_of(engine),
        load_timing(timing) if isinstance(timing, str) else timing,
        load_policy(beside or "fcfs") if kind == "routing" else load_policy("fcfs"),
    )
    router = load_router(beside or "round-robin") if kind == "scheduling" else load_router("jsq")
    system = System.replicated(node, replicas or (1 if kind == "scheduling" else 4), router)
    bench = Bench(episode_source(workload, requests=requests, rate=rate), predictor, system)
    numbers = range(TEST_SEED, TEST_SEED + seeds)
    judges = [*baselines(kind, baseline_names), judged]
    rows = [table_row(bench, each, numbers) for each in judges]
    return [
        {"policy": each.name, **_summary(found, rows[0])}
        for each, found in zip(judges, rows, strict=True)
    ]


def _summary(
    found: Mapping[str, list[float]], first: Mapping[str, list[float]]
) -> dict[str, float]:
    summary: dict[str, float] = {}
    for name, values in found.items():
        interval = t_interval(values)
        summary[name] = interval.mean
        summary[f"{name}_low"], summary[f"{name}_high"] = interval.low, interval.high
    ratio = paired_ratio(found["mean_latency_s"], first["mean_latency_s"])
    summary["ratio"], summary["ratio_low"], summary["ratio_high"] = (
        ratio.mean, ratio.low, ratio.high,
    )  # fmt: skip
    return summary


def _read(path: str | Path) -> SchedulingPolicy | RoutingPolicy:
    for folder in (Path(path), Path(path) / BUNDLE):
        if is_bundle(str(folder)):
            return read_bundle(folder)
    raise InputError(f"{str(path)!r} is neither a bundle nor a finished training run")


def _kind(env: DecisionEnv) -> str:
    return "routing" if isinstance(env, RoutingEnv) else "scheduling"
