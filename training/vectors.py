"""The environments of a training run, as stable-baselines3 wants them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gymnasium.vector import AutoresetMode, SyncVectorEnv

from lengthwise.envs.base import DecisionEnv
from lengthwise.envs.episodes import Episode, Source
from lengthwise.envs.sb3 import SB3VecEnv
from lengthwise.predictors.predict import predict


def episodes(env: DecisionEnv) -> Source:
    """What an environment draws its episodes from."""

    def episode(seed: int) -> Episode:
        workload = env.source(seed)
        scale = float(len(workload)) if env.reward_scale is None else env.reward_scale
        predictions = predict(env.predictor, workload, seed)
        return Episode(workload, env.system, predictions, seed, scale, workload.name)

    return episode


def make_vector(
    make: Callable[..., DecisionEnv], options: Mapping[str, Any], count: int
) -> SB3VecEnv:
    """``count`` environments that begin a new episode in the step that ends one."""
    one = [lambda: make(**options)] * count
    return SB3VecEnv(SyncVectorEnv(one, copy=False, autoreset_mode=AutoresetMode.SAME_STEP))
