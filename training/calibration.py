"""Scales for training, measured on a few episodes of random choices before it begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from lengthwise.envs.columns import Columns
from lengthwise.errors import InputError
from lengthwise.training.masked_dqn import random_legal
from lengthwise.training.scorer import Sizes

STEPS = 2000  # decisions looked at, over all environments


@dataclass(frozen=True)
class Scales:
    """``features`` maps a column to its (shift, scale); ``reward`` divides the cost."""

    features: dict[str, tuple[float, float]]
    reward: float


def calibrate(env: VecEnv, columns: Columns, gamma: float, seed: int) -> Scales:
    """Standardises the candidates' columns and brings discounted returns to a spread near 1.

    ``env`` shows ``columns`` with the scales that they have, and undivided rewards. A column that
    never varies keeps its scale.
    """
    sizes = Sizes.of(env.observation_space, int(env.action_space.n), len(columns.names))  # type: ignore[attr-defined]
    np.random.seed(seed)
    env.seed(seed)
    observation: Any = env.reset()
    rows, returns, discounted = [], [], np.zeros(env.num_envs)
    for _ in range(-(-STEPS // env.num_envs)):
        mask = sizes.mask(observation)
        rows.append(sizes.candidates(observation)[mask])
        observation, rewards, _, _ = env.step(random_legal(mask))
        if not np.isfinite(rewards).all():
            wrong = -rewards[~np.isfinite(rewards)][0]
            raise InputError(f"a step's cost is {wrong}; a cost must be a finite number")
        discounted = gamma * discounted + rewards
        returns.append(discounted)
    seen = np.concatenate(rows).astype(np.float64)
    mean, spread = seen.mean(axis=0), seen.std(axis=0)
    features = {
        column.name: (
            float(column.shift + column.scale * mean[i]),
            float(column.scale * spread[i]),
        )
        for i, column in enumerate(columns.columns)
        if spread[i] > 0
    }
    return Scales(features, float(np.std(returns)) or 1.0)
