"""Training a policy by reinforcement learning, exporting it, and judging it beside baselines."""

from __future__ import annotations

import dataclasses
import inspect
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

from lengthwise.envs.base import DecisionEnv
from lengthwise.envs.columns import Columns
from lengthwise.envs.costs import latency
from lengthwise.envs.episodes import Source
from lengthwise.envs.scenarios import Scenarios, read_scenarios
from lengthwise.errors import InputError, UnknownNameError
from lengthwise.policies import load_policy, load_router
from lengthwise.policies.bundle import WEIGHTS, read_bundle, write_bundle
from lengthwise.policies.card import CARD, card
from lengthwise.policy import RoutingPolicy, SchedulingPolicy
from lengthwise.protocols import TimingModel
from lengthwise.registry import load
from lengthwise.serving.options import DEFAULT_TIMING
from lengthwise.training.agents import make_agent, settings_for, steps_of
from lengthwise.training.calibration import calibrate
from lengthwise.training.checkpoint import read_checkpoint, write_checkpoint
from lengthwise.training.commands.show import notices, progress
from lengthwise.training.commands.stopped import Interrupted
from lengthwise.training.evolve import ALGORITHMS, evolve
from lengthwise.training.guide import Guide, Guided, clone
from lengthwise.training.judging import Judged, baselines
from lengthwise.training.judging import evaluate_policy as evaluate_policy
from lengthwise.training.monitor import NotFiniteError, Stopping, Watch, check_finite, stopping
from lengthwise.training.runs import (
    BEST,
    BUNDLE,
    CHECKPOINT,
    EVALUATIONS,
    PolicyRun,
    best_policy,
    best_state,
    check_run,
    described,
    learned,
    open_run,
    read_config,
    replace_json,
    write_config,
)
from lengthwise.training.scorer import score_layers, score_skip
from lengthwise.training.validation import (
    CONFIRMATION_SEED,
    VALIDATION_SEED,
    Validation,
    told,
)
from lengthwise.training.vectors import EPISODE, Drawn, make_vector
from lengthwise.workload import Workload

# What tells unequal replicas apart, and how busy each is: an agent's columns where nodes differ.
NODES_DIFFER = (
    "running_requests", "waiting_requests", "outstanding_tokens", "decode_backlog_tokens",
    "prefill_backlog_tokens", "free_seats", "decode_tokens_per_s",
)  # fmt: skip
TIES = (
    "{} cost the same to 1% on held-out workloads: most likely no queue forms, and there is "
    "nothing to learn (a higher rate, fewer seats or fewer replicas make one)"
)
ROUNDED = 1.05  # times the steps that were asked for: what is beyond that is said
CONFIRMATIONS = 16  # workloads on which a finished run is set beside the best baseline


def train_policy(
    env: str = "lengthwise/Routing-v1",
    *,
    out: str | Path,
    algo: str = "ppo",
    workload: str | Workload | Callable[[int], Workload] = "azure-conv-2023",
    timing: str | TimingModel = DEFAULT_TIMING,
    steps: int = 500_000,
    n_envs: int = 64,
    seed: int = 0,
    resume: bool = False,
    scenarios: str | Path | Source | None = None,
    guide: str | SchedulingPolicy | RoutingPolicy | None = None,
    env_options: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    hidden: Sequence[int] = (32, 32),
    eval_every: int | None = None,
    eval_seeds: int = 8,
    save_every: int | None = None,
    baseline_names: Sequence[str] | None = None,
    progress: bool = True,
    command: str | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> PolicyRun:
    """Trains ``algo`` ("ppo", "dqn", "maskable-ppo", "es" or "cma") on a registered environment.

    ``out`` becomes the run's folder: ``config.json`` (command, versions, seed, every option),
    ``checkpoint.pt`` (the latest), ``best.pt`` (the weights, after at least one update, that did
    best on held-out workloads), ``evaluations.json``, ``tensorboard/`` and ``bundle/``, the
    exported policy. ``env_options`` go to the environment, ``settings`` to the algorithm.
    ``eval_every`` and ``save_every`` (steps) default to a twentieth. With ``guide``, a policy or
    router of the registry, training begins with its demonstrations and goes on with a penalty for
    leaving it (``training.guide``; its settings stand among ``settings``). ``scenarios`` (a source
    of episodes, or what ``envs.scenarios.read_scenarios`` reads) stands in for the workload and the
    system. "es" and "cma" search a blend of terms instead of a network's weights and have no steps:
    their budget is the setting ``evaluations``, and they resume exactly.

    An interrupted run goes on from its checkpoint when called again with ``resume=True`` and the
    same arguments (``steps`` may grow). SIGTERM and Ctrl-C save before they end the run, as
    ``KeyboardInterrupt``. With ``force``, another run in the folder is replaced. A ``dry_run``
    checks everything, trains and writes nothing, and returns a run without evaluations. A cost,
    loss or weight that is no finite number ends it with ``InputError`` and leaves the checkpoint of
    before. Raises ``InputError`` for a folder that holds another run, for differing arguments, or
    for a disk that is full.
    """
    if not hidden or min(steps, n_envs, eval_seeds, *hidden) < 1:
        raise InputError("steps, n_envs, eval_seeds and the hidden layers must be 1 or more")
    chosen = settings_for(algo, settings, guided=guide is not None)
    if algo in ALGORITHMS and guide is not None:
        raise InputError("guide: the evolution strategy starts at a baseline already")
    make = load("env", env)
    options = {"workload": workload, "timing": timing, **(env_options or {})}
    if scenarios is not None:
        options |= _mixed(env, scenarios, options)
        eval_seeds = max(eval_seeds, 2 * len(options["scenarios"]))
    if options.get("nodes") is not None or scenarios is not None:
        if "Routing" in env:
            options.setdefault("features", NODES_DIFFER)
    allowed = inspect.signature(make).parameters
    for name in options:
        if name not in allowed:
            raise UnknownNameError(f"option of {env}", name, allowed)
    config = {
        "env": env, "algo": algo, "env_options": described(options), "settings": chosen,
        "hidden": list(hidden), "n_envs": n_envs, "seed": seed, "steps": steps,
    }  # fmt: skip
    if guide is not None:
        config["guide"] = described(guide)
    probe: DecisionEnv = make(**options)
    kind = _kind(env, probe, options)
    judges = baselines(kind, baseline_names)
    guided = None if guide is None else Guide(_loaded(kind, guide), probe.columns.names)
    names = probe.columns.names if guided is None else guided.features
    # built once, shared by the environments: a trace is read once, and a model loaded once
    options = {name: value for name, value in options.items() if name not in EPISODE}
    options |= {"scenarios": probe.source, "features": names}
    if kind == "routing":
        options["replicas"] = int(probe.action_space.n)
    run = _Run(Path(out), kind, algo, chosen, hidden, seed, steps, judges, progress, [])
    if algo == "dqn" and steps <= chosen["learning_starts"]:
        raise InputError(
            f"dqn learns after {chosen['learning_starts']:,} steps (learning_starts), and "
            f"{steps:,} were asked for"
        )
    if dry_run:
        check_run(run.folder, config, resume=resume, force=force)
        none = {judged.name: float("nan") for judged in judges}
        return PolicyRun(run.folder, run.folder / BUNDLE, [], none)
    open_run(run.folder, config, resume=resume, force=force)
    if algo in ALGORITHMS:
        write_config(run.folder, config, command)
        return _evolved(run, probe, eval_seeds, resume)
    if resume and (run.folder / CHECKPOINT).exists():
        state = read_checkpoint(run.folder / CHECKPOINT)
        if state["steps"] < steps:
            run.say(
                f"resumed at step {state['steps']:,}: weights, optimiser and scales are those of "
                "then, episodes under way begin afresh"
                + (", and so does the replay buffer" if algo == "dqn" else "")
            )
    else:
        state = _begin(make, options, names, chosen["gamma"], seed)
    given = dict(options.get("scales") or {})
    columns = Columns.of(names, {**state["scales"], **given})
    options["scales"] = {c.name: (c.shift, c.scale) for c in columns.columns}
    drawn = options["scenarios"] = Drawn(probe.source, state["reward_scale"])
    drawn.ranges |= {name: (low, high) for name, low, high in state.get("ranges", ())}
    validation = Validation.of(
        probe.source, probe.cost, range(VALIDATION_SEED, VALIDATION_SEED + eval_seeds), judges
    )
    write_config(run.folder, config, command)
    if validation.ties:
        run.say(TIES.format(", ".join(validation.baselines)))
    total = state["steps"] + steps_of(algo, max(0, steps - state["steps"]), n_envs, chosen)
    if total > ROUNDED * steps:
        part = "train_freq" if algo == "dqn" else "rollout"
        run.say(
            f"{total:,} steps, not {steps:,}: a round of all environments is finished before the "
            f"weights change; fewer --n-envs or a smaller --set {part}=N make it shorter"
        )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the network is too small to gain from more
    try:
        vector: VecEnv = VecMonitor(make_vector(make, options, n_envs))
        if guided is not None:
            vector = Guided(vector, guided, columns, len(probe.columns.names))
        seen = Columns(columns.columns[: len(probe.columns.names)])
        _learn(run, vector, seen, drawn, state, validation, eval_every, save_every)
        return _finished(run, state, probe.source, validation)
    except OSError as error:
        raise InputError(f"can't write the run {str(out)!r}: {error.strerror}") from error
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class _Run:
    """What a run is, for the length of it."""

    folder: Path
    kind: str
    algo: str
    settings: Mapping[str, Any]
    hidden: Sequence[int]
    seed: int
    steps: int
    judges: Sequence[Judged]
    progress: bool
    notices: list[str]

    def say(self, line: str) -> None:
        """One line of what a reader should know."""
        self.notices.append(line)
        if self.progress:
            notices([line])


def _mixed(env: str, scenarios: str | Path | Source, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a set of scenarios stands in for or settles."""
    found = read_scenarios(scenarios) if isinstance(scenarios, str | Path) else scenarios
    if "Routing" not in env or "replicas" in options or not isinstance(found, Scenarios):
        return {"scenarios": found}
    return {"scenarios": found, "replicas": max(len(one.system.nodes) for one in found)}


def _evolved(run: _Run, probe: DecisionEnv, eval_seeds: int, resume: bool) -> PolicyRun:
    """A run of the evolution strategy."""
    validation = Validation.of(
        probe.source, probe.cost, range(VALIDATION_SEED, VALIDATION_SEED + eval_seeds), run.judges
    )
    if probe.cost is not latency:
        raise InputError("the evolution strategy minimises latency; another cost needs a learner")
    if validation.ties:
        run.say(TIES.format(", ".join(validation.baselines)))
    with stopping() as stop, progress("searching", shown=run.progress) as moved:
        policy, found = evolve(
            probe.source, run.kind, folder=run.folder, settings=run.settings, seed=run.seed,
            validation=validation.episodes, judges=run.judges, resume=resume, stop=stop,
            diagonal=ALGORITHMS[run.algo], progress=moved,
        )  # fmt: skip
        if stop.signal is not None:
            raise _stopped(run.folder, found.evaluations, "evaluations", stop)
    if not found.improved:
        run.say("nothing that was tried beat the start, which is a baseline")
    level = float(np.mean(validation.costs(policy)))
    return _said(
        run, policy, probe.source, validation, [(found.evaluations, level)],
        (found.evaluations, level),
    )  # fmt: skip


def _kind(env: str, probe: DecisionEnv, options: Mapping[str, Any]) -> str:
    """What a policy of this environment is, "scheduling" or "routing"."""
    kinds = {"route": "routing", "admit": "scheduling"}
    found = probe.vector.game.kind
    if found not in kinds:
        raise InputError(f"{env}: no score can be exported from it; train on it by hand")
    if options.get("hold"):
        raise InputError("hold: a router's bundle can't hold requests; train on it by hand")
    return kinds[found]


def _loaded(kind: str, policy: str | SchedulingPolicy | RoutingPolicy) -> Any:
    if not isinstance(policy, str):
        return policy
    return load_router(policy) if kind == "routing" else load_policy(policy)


def _begin(
    make: Any, options: Mapping[str, Any], names: Sequence[str], gamma: float, seed: int
) -> dict[str, Any]:
    """The state of a run before its first step: scales, measured on random decisions."""
    plain = make_vector(make, options, 16)
    scales = calibrate(plain, Columns.of(names, options.get("scales")), gamma, seed)
    plain.close()
    factor = 1.0 if options.get("reward_scale") else scales.reward  # a given one is kept
    return {"steps": 0, "scales": scales.features, "reward_scale": factor, "evaluations": []}


def _learn(
    run: _Run,
    vector: VecEnv,
    columns: Columns,
    drawn: Drawn,
    state: dict[str, Any],
    validation: Validation,
    eval_every: int | None,
    save_every: int | None,
) -> None:
    folder, steps = run.folder, run.steps
    agent = make_agent(run.algo, vector, len(columns.names), run.settings, run.hidden, run.seed)
    if "policy" in state:
        agent.policy.load_state_dict(state["policy"])
        agent.policy.optimizer.load_state_dict(state["optimizer"])
        agent._n_updates = state.get("updates", 1)
    agent.num_timesteps = state["steps"]
    # a resumed run must not see again the episodes that it saw before
    draws = np.random.SeedSequence((run.seed, state["steps"])).generate_state(1)
    agent.set_random_seed(int(draws[0] >> 1))
    agent.set_logger(configure(str(folder / "tensorboard"), ["tensorboard"]))
    best, means = validation.best, validation.means

    def save(step: int) -> None:
        check_finite(agent)
        state["steps"], state["updates"] = step, int(agent._n_updates)
        state["ranges"] = [[name, *span] for name, span in drawn.ranges.items()]
        state["policy"] = agent.policy.state_dict()
        state["optimizer"] = agent.policy.optimizer.state_dict()
        write_checkpoint(folder / CHECKPOINT, state)

    def evaluate(step: int) -> str:
        check_finite(agent)
        layers, skip = score_layers(agent.policy), score_skip(agent.policy)
        policy = learned(run.kind, columns, layers, skip, drawn.trained_on())
        found = validation.costs(policy)
        cost = float(np.mean(found))
        # an untrained network, however lucky, is no result
        trained = agent._n_updates > 0 or isinstance(vector, Guided)
        if trained and ("best" not in state or validation.better(found, state["best"][1])):
            state["best"] = [step, found]
            write_checkpoint(folder / BEST, best_state(policy, columns, layers, skip, cost))
        if not state["evaluations"]:
            state["start"] = found
        state["evaluations"].append([step, cost])
        kept = {"evaluations": state["evaluations"], "baselines": means}
        replace_json(folder / EVALUATIONS, kept)
        agent.logger.record("eval/cost", cost)
        ratio = validation.ratio(found, best)
        if ratio is not None:
            agent.logger.record("eval/ratio_to_the_best_baseline", ratio.mean)
        for name, value in means.items():
            agent.logger.record(f"eval/cost_of_{name}", value)
        agent.logger.dump(step)
        return f"cost {cost:.4g} ({best} {means[best]:.4g})"

    def at(step: int) -> None:
        if isinstance(vector, Guided):
            until = run.settings["penalty_until"] * steps
            vector.penalty = run.settings["penalty"] * max(0.0, 1 - step / max(until, 1))

    with stopping() as stop:
        watch = Watch(
            steps=steps, evaluate=evaluate,
            evaluate_every=eval_every or max(1, steps // 20), save=save,
            save_every=save_every or max(1, steps // 20), stop=stop, at=at,
            show=run.progress,
        )  # fmt: skip
        try:
            if not state["evaluations"]:
                if isinstance(vector, Guided):
                    agree = clone(agent, vector, run.settings["gamma"], run.settings, run.seed)
                    run.say(
                        f"the network chooses as {vector.guide.policy.name} does in {agree:.0%} "
                        "of its demonstrations"
                    )
                evaluate(agent.num_timesteps)
            save(agent.num_timesteps)
            if agent.num_timesteps < steps and stop.signal is None:
                agent.learn(steps - agent.num_timesteps, watch, reset_num_timesteps=False)
                if stop.signal is None and state["evaluations"][-1][0] != agent.num_timesteps:
                    evaluate(agent.num_timesteps)
            save(agent.num_timesteps)
        except NotFiniteError as error:
            raise _not_finite(folder, agent, error) from None
        except InputError:  # a full disk, a cost on held-out workloads: nothing more is written
            raise
        except BaseException as error:
            try:
                save(agent.num_timesteps)
            except NotFiniteError as worse:  # torch stumbles over NaN in words of its own
                if isinstance(error, Exception):
                    raise _not_finite(folder, agent, worse) from error
            raise
        finally:
            watch.close()
            agent.logger.close()
            vector.close()
        if stop.signal is not None:
            raise _stopped(folder, agent.num_timesteps, "steps", stop)


def _not_finite(folder: Path, agent: BaseAlgorithm, error: NotFiniteError) -> InputError:
    kept = folder / CHECKPOINT
    since = f"{str(kept)!r} is that of before" if kept.exists() else "nothing was saved"
    return InputError(f"training stopped at step {agent.num_timesteps:,}: {error}; {since}")


def _stopped(folder: Path, done: int, what: str, stop: Stopping) -> KeyboardInterrupt:
    number = stop.signal or signal.SIGINT
    return Interrupted(
        f"{signal.Signals(number).name}: saved {str(folder)!r} after {done:,} {what}; the same "
        "command with --resume goes on",
        number,
    )


def _finished(
    run: _Run, state: dict[str, Any], source: Source, validation: Validation
) -> PolicyRun:
    """Exports the best weights and measures them on workloads that nothing was chosen on."""
    policy = best_policy(run.folder)
    write_bundle(policy, run.folder / BUNDLE)
    step, found = state.get("best") or (0, validation.costs(policy))
    if step == 0:
        run.say("no update beat the demonstrations, which the bundle now holds")
    elif not validation.better(found, state["start"]):
        run.say("no update beat the start: on held-out workloads the untrained network is as good")
    evaluations = [(int(at), float(cost)) for at, cost in state["evaluations"]]
    return _said(run, policy, source, validation, evaluations, (int(step), float(np.mean(found))))


def _said(
    run: _Run, policy: Judged, source: Source, validation: Validation,
    evaluations: list[tuple[int, float]], chosen: tuple[int, float],
) -> PolicyRun:  # fmt: skip
    """The result of a run, with the ratio to the best baseline on workloads of its own."""
    best = validation.best
    confirmation = Validation.of(
        source, validation.cost,
        range(CONFIRMATION_SEED, CONFIRMATION_SEED + max(CONFIRMATIONS, len(validation.episodes))),
        [judged for judged in run.judges if judged.name == best],
    )  # fmt: skip
    ratio = confirmation.ratio(confirmation.costs(policy), best)
    if ratio is not None and ratio.mean >= 1:
        run.say(f"no update beat the best baseline: {told(ratio, best)}")
    what = "evaluations" if run.algo in ALGORITHMS else "steps"
    report = {
        "env": read_config(run.folder)["env"], "algo": run.algo, "seed": run.seed,
        "budget": f"{evaluations[-1][0]:,} {what}", "cost": chosen[1],
        "baselines": validation.means, "best_baseline": best,
        "ratio": None if ratio is None else dataclasses.asdict(ratio), "notices": run.notices,
    }  # fmt: skip
    write_bundle(policy, run.folder / BUNDLE, card(policy, report))
    return PolicyRun(
        run.folder, run.folder / BUNDLE, evaluations, validation.means, best=chosen,
        best_baseline=best, ratio=ratio, notices=tuple(run.notices),
    )  # fmt: skip


def export_run(run: str | Path, to: str | Path) -> Path:
    """Writes the best policy of a run, finished or not, as a bundle; returns the bundle's folder.

    Raises ``InputError`` for a folder that is no training run.
    """
    finished = Path(run) / BUNDLE
    evolved = read_config(Path(run)).get("algo") in ALGORITHMS
    policy = read_bundle(finished) if evolved else best_policy(Path(run))
    target = write_bundle(policy, to)
    # The card of a finished run says what was measured, of the weights that lie beside it.
    about = finished / CARD
    beside = finished / WEIGHTS
    if about.is_file() and (
        evolved or (beside.is_file() and beside.read_bytes() == (target / WEIGHTS).read_bytes())
    ):
        write_bundle(policy, target, about.read_text("utf-8"))
    return target
