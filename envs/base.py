"""What both environments share: an episode is one simulated run, stopped where a choice is due."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from lengthwise import features
from lengthwise.envs.columns import Columns
from lengthwise.envs.costs import Cost, cost_of, latency
from lengthwise.envs.episodes import Workloads, engine_of, episode_source
from lengthwise.envs.picture import picture
from lengthwise.errors import InputError, UnknownNameError
from lengthwise.policies import load_policy, load_router
from lengthwise.policy import RoutingPolicy, SchedulingPolicy
from lengthwise.predictors import load_predictor
from lengthwise.predictors.predict import predict
from lengthwise.protocols import Predictor, TimingModel
from lengthwise.serving import Engine, Node, Run, System, begin
from lengthwise.serving.records import PS
from lengthwise.serving.timing import timing as load_timing
from lengthwise.workload import Workload

Observation = dict[str, NDArray[Any]]

RENDER_MODES = ("ansi", "rgb_array")
FAR = 1e6  # bound of a normalised number; nothing that a score should tell apart lies beyond


class DecisionEnv(gym.Env[Observation, np.int64]):
    """An agent picks one of up to ``slots`` candidates, each described by the same F columns.

    Observation: ``candidates`` (slots * F,) float32, candidate by candidate (flat, as
    stable-baselines3 asks; ``reshape(slots, F)`` brings the rows back), zero beyond the last;
    ``mask`` (slots,) int8, 1 where there is a candidate; ``state`` (S,) float32, the situation as a
    whole, for a value function only: a score can't read it.

    Reward: minus the growth of the cost since the last decision, divided by ``reward_scale``
    (default: the number of requests, so that the undiscounted return is minus the mean). An index
    without a candidate, which the mask rules out, takes candidate 0, is counted in
    ``info["illegal_actions"]`` and costs ``illegal_penalty``; an index outside the action space is
    an ``InputError``.

    Every episode draws its workload from the environment's seeded generator: the same seed gives
    the same trajectory. Stops with fewer than two candidates are passed over.
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": 1}  # noqa: RUF012 - Gymnasium's
    action_space: spaces.Discrete
    state_size: int

    def __init__(
        self,
        workload: str | Workload | Workloads,
        *,
        slots: int,
        requests: int,
        rate: float | None,
        timing: str | TimingModel,
        engine: Engine | Mapping[str, Any] | None,
        predictor: str | Predictor | None,
        policy: str | SchedulingPolicy,
        router: str | RoutingPolicy,
        replicas: int,
        features: Sequence[str],
        scales: Mapping[str, Sequence[float]] | None,
        cost: str | Cost,
        reward_scale: float | None,
        illegal_penalty: float,
        render_mode: str | None,
    ) -> None:
        if slots < 2:
            raise InputError(f"a choice needs at least 2 candidates, not {slots}")
        if reward_scale is not None and not reward_scale > 0:
            raise InputError(f"reward_scale must be positive, not {reward_scale!r}")
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise UnknownNameError("render_mode", render_mode, RENDER_MODES)
        self.source = episode_source(workload, requests=requests, rate=rate)
        self.timing = load_timing(timing) if isinstance(timing, str) else timing
        self.engine = engine_of(engine)
        self.predictor = load_predictor(predictor)
        self.policy, self.router = load_policy(policy), load_router(router)
        node = Node(self.engine, self.timing, self.policy)
        self.system = System.replicated(node, replicas, self.router)
        self.columns = Columns.of(features, scales)
        self.cost = cost_of(cost)
        self.reward_scale, self.illegal_penalty = reward_scale, illegal_penalty
        self.render_mode = render_mode
        self._present = 0  # candidates of the choice that is due; 0 before and after a run
        self._normaliser = self.columns.normaliser()
        self._seen = np.zeros((0, len(self.columns.names)))  # the candidates of that choice
        width = len(self.columns.names)
        self.action_space = spaces.Discrete(slots)
        self.observation_space = spaces.Dict(  # type: ignore[assignment]
            {
                "candidates": spaces.Box(-FAR, FAR, (slots * width,), np.float32),
                "mask": spaces.MultiBinary(slots),
                "state": spaces.Box(-FAR, FAR, (self.state_size,), np.float32),
            }
        )

    # What an environment adds: where runs stop, who the candidates are, what a choice does.

    @abstractmethod
    def _advance(self) -> bool:
        """Runs to the next stop with at least two candidates; False when the run is over."""

    @abstractmethod
    def candidates(self) -> NDArray[np.float64]:
        """Raw columns (n, F) of the candidates, 2 <= n <= slots."""

    @abstractmethod
    def _state(self) -> list[float]:
        """The situation as a whole, (S,)."""

    @abstractmethod
    def _take(self, choice: int) -> None:
        """Carries out the choice of candidate ``choice``."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts a run; ``options={"workload_seed": n}`` asks for one episode of the source."""
        super().reset(seed=seed)
        wanted = (options or {}).get("workload_seed")
        for _ in range(10):
            drawn = int(self.np_random.integers(2**31)) if wanted is None else wanted
            if self._start(self.source(drawn), drawn):
                return self._observe(), self._info()
        raise InputError(
            f"workload {self.workload.name}: no moment of it leaves a choice; a higher rate or a "
            "smaller engine makes requests wait"
        )

    def _start(self, workload: Workload, seed: int) -> bool:
        self.workload = workload
        self.predictions = predict(self.predictor, workload, seed)
        self._require_columns()
        self.run: Run = begin(workload, self.system, self.predictions, seed=seed)
        self._paid = 0.0
        self.scale = float(len(workload)) if self.reward_scale is None else self.reward_scale
        self._decisions = self._illegal = 0
        return self._advance()

    def _features(self, names: Sequence[str], most: int) -> dict[str, NDArray[np.float64]]:
        """Features of the first ``most`` candidates of the stop that is due, (n,) each."""
        rows = np.empty((most, len(names)))
        count = self.run.features(names, rows)
        return {name: rows[:count, column] for column, name in enumerate(names)}

    def _require_columns(self) -> None:
        for name in self.columns.reads:
            given = features.get(name).given
            if given == "column" and name not in self.workload:
                raise InputError(
                    f"feature {name}: workload {self.workload.name} has no such column"
                )
            if given == "prediction" and self.predictions is None:
                raise InputError(f"feature {name} needs a predictor, and there is none")

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Takes a candidate and runs to the next choice (or to the end of the workload)."""
        if not self._present:
            raise InputError("no run is under way: call reset() first")
        choice = int(action)
        if choice != action or not self.action_space.contains(choice):
            raise InputError(f"action must be in 0..{self.action_space.n - 1}, not {action!r}")
        reward = 0.0
        if choice >= self._present:
            choice, reward = 0, -self.illegal_penalty
            self._illegal += 1
        self._decisions += 1
        self._take(choice)
        going = self._advance()
        cost = self.cost(self.run.totals)
        reward -= (cost - self._paid) / self.scale
        self._paid = cost
        info = self._info()
        if going:
            return self._observe(), reward, False, False, info
        self._present = 0
        info["mean_latency_s"] = latency(self.run.totals) / len(self.workload)
        return self._empty(), reward, True, False, info

    def action_masks(self) -> NDArray[np.bool_]:
        """Which indices have a candidate, (slots,): the name that MaskablePPO looks for."""
        return np.arange(self.action_space.n) < self._present

    def render(self) -> Any:
        """A line ("ansi"): the time, the choice that is due, what is in the system; or a picture
        of the candidates ("rgb_array"), pixels (height, width, 3) uint8: see ``picture``.
        """
        if self.render_mode == "rgb_array":
            return picture(self._seen[: self._present], int(self.action_space.n))
        totals = self.run.totals
        return (
            f"t={totals.now_ps / PS:.6f}s decision {self._decisions}: "
            f"{self._present} candidates, {totals.in_system} requests in the system"
        )

    def _observe(self) -> Observation:
        seen = self._seen = self._normaliser.normalise(self.candidates())
        self._present = len(seen)
        observation = self._empty()
        observation["candidates"][: seen.size] = np.clip(seen, -FAR, FAR).ravel()
        observation["mask"][: len(seen)] = 1
        observation["state"][:] = self._state()
        return observation

    def _empty(self) -> Observation:
        slots = int(self.action_space.n)
        return {
            "candidates": np.zeros(slots * len(self.columns.names), np.float32),
            "mask": np.zeros(slots, np.int8),
            "state": np.zeros(self.state_size, np.float32),
        }

    def _info(self) -> dict[str, Any]:
        return {"now_s": self.run.totals.now_ps / PS, "illegal_actions": self._illegal}
