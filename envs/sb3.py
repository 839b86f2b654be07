"""Vector environments as stable-baselines3 wants them: its ``VecEnv`` over Gymnasium's.

stable-baselines3 resets an environment in the step that ends its episode, asks each environment for
its masks by name, and keeps an observation beyond the next step. Gymnasium's vector environments
do the first when they are made with ``AutoresetMode.SAME_STEP``; the rest is done here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from lengthwise.errors import InputError

Arrays = NDArray[Any] | dict[str, NDArray[Any]]


class SB3VecEnv(VecEnv):
    """stable-baselines3's ``VecEnv`` over any Gymnasium ``VectorEnv`` of autoreset SAME_STEP.

    Observations are copied out (a vector environment may write the next ones in place). An episode
    that ends leaves its last observation in ``info["terminal_observation"]``, beside the items of
    its own info; ``info["TimeLimit.truncated"]`` is true where it was cut off.
    ``env_method("action_masks")`` gives rows of ``(num_envs, slots)`` from the environment's
    ``action_masks()``, or from the observation's ``mask``. Raises ``InputError`` for another
    autoreset mode. It can be pickled if the environment can.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            name = mode.name if isinstance(mode, AutoresetMode) else mode
            raise InputError(
                f"stable-baselines3 needs a vector environment of autoreset mode SAME_STEP, not "
                f"{name}: make it with autoreset_mode=AutoresetMode.SAME_STEP"
            )
        self.env = env
        self._seen: Arrays | None = None
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> Arrays:
        """Starts an episode everywhere; seeds given by ``seed`` are used once."""
        given = {key: value for each in self._options for key, value in each.items()}
        seeds: Any = None if all(seed is None for seed in self._seeds) else list(self._seeds)
        observation, infos = self.env.reset(seed=seeds, options=given or None)
        self.reset_infos = _listed(infos, self.num_envs)
        self._reset_seeds()
        self._reset_options()
        self._seen = _copied(observation)
        return self._seen

    def step_async(self, actions: NDArray[Any]) -> None:
        self._actions = np.asarray(actions)

    def step_wait(self) -> tuple[Arrays, NDArray[Any], NDArray[Any], list[dict[str, Any]]]:
        """The step of all environments; an episode that ended has begun anew."""
        observation, rewards, terminated, truncated, infos = self.env.step(self._actions)
        self._seen = _copied(observation)
        done = np.logical_or(terminated, truncated)
        last, final = infos.pop("final_obs", None), infos.pop("final_info", None)
        told = _listed(infos, self.num_envs)
        if done.any():
            ended = _listed(final or {}, self.num_envs)
            for i in np.flatnonzero(done):
                told[i].update(ended[i])
                told[i]["terminal_observation"] = _one(last, i)
                told[i]["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
        return self._seen, np.array(rewards, np.float32), done, told

    def close(self) -> None:
        self.env.close()

    def action_masks(self) -> NDArray[np.bool_]:
        """Which actions have a candidate, (num_envs, slots)."""
        if hasattr(self.env, "action_masks"):
            return np.array(self.env.action_masks(), bool)
        if not isinstance(self._seen, dict) or "mask" not in self._seen:
            raise AttributeError("the environment has no action_masks, and its observation no mask")
        return np.asarray(self._seen["mask"] > 0)

    def has_attr(self, attr_name: str) -> bool:
        if attr_name == "action_masks":
            space = self.observation_space
            return hasattr(self.env, attr_name) or "mask" in getattr(space, "spaces", ())
        return super().has_attr(attr_name)

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of each environment, or the vector environment's own, once for each."""
        if hasattr(self.env, "envs"):
            values: Sequence[Any] = self.env.get_attr(attr_name)  # type: ignore[attr-defined]
        else:
            values = [getattr(self.env, attr_name)] * self.num_envs
        return [values[i] for i in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Sets it on the vector environment, for all; one alone can't differ."""
        if indices is not None:
            raise InputError("an attribute of a vector environment is set for all at once")
        target = self.env.set_attr if hasattr(self.env, "envs") else None  # type: ignore[attr-defined]
        if target is None:
            setattr(self.env, attr_name, value)
        else:
            target(attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        """Calls a method of the environments; what comes back has one entry for each."""
        if method_name == "action_masks":
            values: Sequence[Any] = list(self.action_masks())
        elif hasattr(self.env, "envs"):
            values = self.env.call(method_name, *method_args, **method_kwargs)  # type: ignore[attr-defined]
        else:
            values = getattr(self.env, method_name)(*method_args, **method_kwargs)
        return [values[i] for i in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[NDArray[Any] | None]:
        frames: Any = self.env.render()
        return [None] * self.num_envs if frames is None else list(frames)


def _copied(observation: Any) -> Arrays:
    if isinstance(observation, dict):
        return {name: np.array(value) for name, value in observation.items()}
    return np.array(observation)


def _one(batch: Any, i: Any) -> Any:
    """Entry ``i`` of final observations: a dict of batches, or one entry an environment."""
    found = {k: v[i] for k, v in batch.items()} if isinstance(batch, dict) else batch[i]
    return _copied(found)


def _listed(infos: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Gymnasium's dict of arrays, with masks under ``_name``, as one dict an environment."""
    told: list[dict[str, Any]] = [{} for _ in range(count)]
    for name, values in infos.items():
        if name.startswith("_"):
            continue
        present = infos.get(f"_{name}")
        each = _listed(values, count) if isinstance(values, dict) else values
        for i in range(count) if present is None else np.flatnonzero(present):
            told[i][name] = each[i]
    return told
