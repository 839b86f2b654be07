"""A single environment: the vector environment with one, in Gymnasium's ``Env`` protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from lengthwise.envs.task import Task, signature_of
from lengthwise.envs.vector import RENDER_MODES, DecisionVectorEnv, one_of
from lengthwise.errors import InputError
from lengthwise.prediction import Predictions
from lengthwise.serving import System, Totals
from lengthwise.serving.records import Records
from lengthwise.workload import Workload


class DecisionEnv(gym.Env[Any, np.int64]):
    """An agent picks one of up to ``slots`` candidates, each described by the same F columns.

    Observation: ``candidates`` (slots * F,) float32, candidate by candidate (flat, as
    stable-baselines3 asks; ``reshape(slots, F)`` brings the rows back), zero where there is none;
    ``mask`` (slots,) int8, 1 where there is a candidate; ``state`` (4,) float32, the situation as a
    whole, for a value function only: a score can't read it. ``flat=True`` gives one vector of all
    three.

    Reward: minus the growth of the cost since the last decision, divided by ``reward_scale``
    (default: the number of requests, so that the undiscounted return is minus the mean). An index
    without a candidate, which the mask rules out, takes candidate 0, is counted in
    ``info["illegal_actions"]`` and costs ``illegal_penalty``; an index outside the action space is
    an ``InputError``.

    Every episode is drawn from the environment's seeded generator: the same seed gives the same
    trajectory. Stops with fewer than two candidates are passed over.
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": 1}  # noqa: RUF012 - Gymnasium's
    action_space: spaces.Discrete
    vector_type: ClassVar[type[DecisionVectorEnv]]
    task: ClassVar[Callable[..., Task]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.task = cls.vector_type.task
        cls.__signature__ = signature_of(cls.task, "flat", "render_mode")  # type: ignore[attr-defined]

    def __init__(
        self, *given: Any, flat: bool = False, render_mode: str | None = None, **options: Any
    ) -> None:
        self._hold(self.vector_type(
            *given, num_envs=1, flat=flat, autoreset_mode="DISABLED", render_mode=render_mode,
            **options,
        ))  # fmt: skip

    def _hold(self, vector: DecisionVectorEnv) -> None:
        self.vector = vector
        self.render_mode = vector.render_mode
        self.action_space = self.vector.single_action_space  # type: ignore[assignment]
        self.observation_space = self.vector.single_observation_space
        self.columns, self.cost = self.vector.columns, self.vector.cost
        self.source = self.vector.game.source
        self._under_way = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Starts a run; ``options={"workload_seed": n}`` asks for one episode of the source."""
        super().reset(seed=seed)
        self.vector._generators[0] = self.np_random
        if seed is not None:
            self.vector.many.forget(0)
        self._under_way = False
        seen, info = self.vector.reset(options=options)
        self._under_way = True
        return one_of(seen, 0), _first(info)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Takes a candidate and runs to the next choice (or to the end of the workload)."""
        if not self._under_way:
            raise InputError("no run is under way: call reset() first")
        choice = int(action)
        if choice != action or not self.action_space.contains(choice):
            raise InputError(f"action must be in 0..{self.action_space.n - 1}, not {action!r}")
        seen, reward, ended, _, info = self.vector.step(np.array([choice]))
        self._under_way = not ended[0]
        return one_of(seen, 0), float(reward[0]), bool(ended[0]), False, _first(info)

    def action_masks(self) -> NDArray[np.bool_]:
        """Which indices have a candidate, (slots,): the name that MaskablePPO looks for."""
        masks: NDArray[np.bool_] = self.vector.action_masks()[0].copy()
        return masks

    def render(self) -> Any:
        """A line ("ansi"): the time, the choice that is due, what is in the system; or a picture
        of the candidates ("rgb_array"), pixels (height, width, 3) uint8: see ``picture``.
        """
        frames = self.vector.render()
        return None if frames is None else frames[0]

    def candidates(self) -> NDArray[np.float64]:
        """Raw columns (n, F) of the candidates, 2 <= n <= slots."""
        return self.vector.raw(0)

    # Pickling, between episodes: see DecisionVectorEnv

    def __getstate__(self) -> dict[str, Any]:
        return {"vector": self.vector, "generator": self._np_random, "spec": self.spec}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._hold(state["vector"])
        self._np_random, self.spec = state["generator"], state["spec"]

    # The episode that is played

    @property
    def workload(self) -> Workload:
        """Its workload."""
        return self.vector.drawn(0).workload

    @property
    def system(self) -> System:
        """What serves it."""
        return self.vector.drawn(0).system

    @property
    def predictions(self) -> Predictions | None:
        """What was predicted of it."""
        return self.vector.drawn(0).predictions

    @property
    def totals(self) -> Totals:
        """The integrals of its run, up to now."""
        return self.vector.totals(0)

    def records(self) -> Records:
        """The records of its run, once it has ended."""
        return self.vector.records(0)


def _first(info: Mapping[str, Any]) -> dict[str, Any]:
    """What a vector environment's info says of its first environment."""
    told: dict[str, Any] = {}
    for name, values in info.items():
        if not name.startswith("_") and info[f"_{name}"][0]:
            one = values[0]
            told[name] = one.item() if isinstance(one, np.generic) else one
    return told
