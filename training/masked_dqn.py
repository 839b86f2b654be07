"""DQN that explores among the legal actions only, which stable-baselines3's own does not know."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3 import DQN


class MaskedDQN(DQN):
    """DQN on observations with a ``mask``; its random actions are uniform over what is legal."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], Any]:  # fmt: skip
        """Epsilon-greedy, environment by environment."""
        actions, state = self.policy.predict(observation, state, episode_start, deterministic)
        if deterministic or self.exploration_rate == 0:
            return actions, state
        explore = np.random.random(actions.shape) < self.exploration_rate
        return np.where(explore, _random_legal(observation["mask"]), actions), state

    def _sample_action(
        self, learning_starts: int, action_noise: Any = None, n_envs: int = 1
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        assert isinstance(self._last_obs, dict)
        if self.num_timesteps < learning_starts:
            actions = _random_legal(self._last_obs["mask"])
        else:
            actions, _ = self.predict(self._last_obs, deterministic=False)
        return actions, actions


def _random_legal(mask: NDArray[Any]) -> NDArray[np.int64]:
    """One uniformly drawn legal index per row of a mask (..., slots)."""
    draws = np.where(mask > 0, np.random.random(mask.shape), -1.0)
    return np.asarray(draws.argmax(axis=-1))
