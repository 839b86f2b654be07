"""The environments of a training run, as stable-baselines3 wants them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lengthwise.envs.base import DecisionEnv
from lengthwise.envs.sb3 import SB3VecEnv


def make_vector(make: type[DecisionEnv], options: Mapping[str, Any], count: int) -> SB3VecEnv:
    """``count`` environments that begin a new episode in the step that ends one."""
    return SB3VecEnv(make.vector_type(num_envs=count, autoreset_mode="SAME_STEP", **options))
