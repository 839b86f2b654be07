"""Double DQN among legal actions; stable-baselines3's own knows neither masks nor double targets.

Mnih et al., Nature 2015; van Hasselt, Guez and Silver, AAAI 2016: the online network chooses the
next action, the target network says what it is worth. Returns of several steps (Sutton 1988; in
DQN: Hessel et al., "Rainbow", AAAI 2018): what a choice costs here shows many decisions later.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import DQN
from torch.nn import functional

from lengthwise.training.scorer import Sizes


class MaskedDQN(DQN):
    """Double DQN on observations with a mask; its random actions are uniform over what is legal.

    Illegal actions have so low a value that neither network chooses them.
    """

    @property
    def sizes(self) -> Sizes:
        """How its observations are laid out."""
        found = self.policy.q_net.features_extractor.sizes
        assert isinstance(found, Sizes)
        return found

    def targets(self, replay: Any) -> torch.Tensor:
        """What the values of the sampled transitions should be, (B, 1)."""
        with torch.no_grad():
            chosen = self.q_net(replay.next_observations).argmax(dim=1, keepdim=True)
            worth = self.q_net_target(replay.next_observations).gather(1, chosen)
            # an episode's last observation holds no candidate, and nothing follows it
            following = torch.where(replay.dones > 0, 0.0, worth)
            # of several steps (``n_steps``), fewer where an episode ends before
            discounts = self.gamma if replay.discounts is None else replay.discounts
            target: torch.Tensor = replay.rewards + discounts * following
            return target

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Gradient steps on the Huber loss to ``targets``."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        assert self.replay_buffer is not None
        losses = []
        for _ in range(gradient_steps):
            replay: Any = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
            values = self.q_net(replay.observations).gather(1, replay.actions.long())
            loss = functional.smooth_l1_loss(values, self.targets(replay))
            losses.append(loss.item())
            self.policy.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
            self.policy.optimizer.step()
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/loss", float(np.mean(losses)))

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], Any]:  # fmt: skip
        """Epsilon-greedy, environment by environment."""
        actions, state = self.policy.predict(observation, state, episode_start, deterministic)
        if deterministic or self.exploration_rate == 0:
            return actions, state
        explore = np.random.random(actions.shape) < self.exploration_rate
        return np.where(explore, random_legal(self.sizes.mask(observation)), actions), state

    def _sample_action(
        self, learning_starts: int, action_noise: Any = None, n_envs: int = 1
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        assert self._last_obs is not None
        if self.num_timesteps < learning_starts:
            actions = random_legal(self.sizes.mask(self._last_obs))
        else:
            actions, _ = self.predict(self._last_obs, deterministic=False)
        return actions, actions


def random_legal(mask: NDArray[Any]) -> NDArray[np.int64]:
    """One uniformly drawn legal index per row of a mask (..., slots)."""
    draws = np.where(mask > 0, np.random.random(mask.shape), -1.0)
    return np.asarray(draws.argmax(axis=-1))
