"""Scales for training, measured on a few episodes of random choices before it begins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lengthwise.envs.base import DecisionEnv

STEPS = 1000  # decisions looked at


@dataclass(frozen=True)
class Scales:
    """``features`` maps a column to its (shift, scale); ``reward`` divides the cost."""

    features: dict[str, tuple[float, float]]
    reward: float


def calibrate(env: DecisionEnv, gamma: float, seed: int) -> Scales:
    """Standardises the candidates' columns and brings discounted returns to a spread near 1.

    A column that never varies keeps its scale from the table.
    """
    rng = np.random.default_rng(seed)
    log = np.array([column.log for column in env.columns.columns])
    rows, costs = [], []
    env.reset(seed=seed)
    for _ in range(STEPS):
        rows.append(env.candidates())
        _, reward, terminated, _, _ = env.step(int(rng.integers(len(rows[-1]))))
        costs.append(reward * env.scale)
        if terminated:
            env.reset()
    raw = np.concatenate(rows)
    x = np.where(log, np.sign(raw) * np.log1p(np.abs(raw)), raw)
    mean, spread = x.mean(axis=0), x.std(axis=0)
    features = {
        name: (float(mean[i]), float(spread[i]))
        for i, name in enumerate(env.columns.names)
        if spread[i] > 0
    }
    discounted, returns = 0.0, []
    for cost in costs:
        discounted = gamma * discounted + cost
        returns.append(discounted)
    return Scales(features, float(np.std(returns)) or 1.0)
