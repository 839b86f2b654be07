"""The reinforcement-learning algorithms, each over the same per-candidate network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.training import evolve
from lengthwise.training.guide import GUIDANCE
from lengthwise.training.masked_dqn import MaskedDQN
from lengthwise.training.scorer import (
    Flat,
    MaskableScorerPolicy,
    ScorerDQNPolicy,
    ScorerPolicy,
    Sizes,
)

# Large batches and few epochs: with stable-baselines3's defaults (batches of 64, ten epochs) the
# optimiser's calls take nearly all the time of such small networks.
_PPO: dict[str, Any] = {
    "rollout": 16_384,  # transitions gathered between updates, over all environments
    "batch_size": 4096,
    "n_epochs": 4,
    "learning_rate": 1e-3,  # to begin with; it falls linearly to a tenth
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "ent_coef": 0.0,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "ppo": _PPO,
    "maskable-ppo": _PPO,
    "dqn": {
        "buffer_size": 100_000,
        "learning_starts": 4096,
        "batch_size": 1024,
        "train_freq": 4,  # steps of all environments between two rounds of gradient steps
        "gradient_steps": 4,
        "target_update_interval": 8192,
        "exploration_fraction": 0.4,
        "exploration_final_eps": 0.02,
        "learning_rate": 5e-4,
        "gamma": 0.99,
        # decisions whose rewards are added up before the target network is asked: a choice costs
        # while its request is served, and with one the values of the choices hardly differ
        "n_steps": 16,
    },
}


def settings_for(
    algo: str, given: Mapping[str, Any] | None, guided: bool = False
) -> dict[str, Any]:
    """The algorithm's settings with ``given`` ones replaced; unknown names are errors.

    ``guided`` adds those of ``training.guide``.
    """
    known = {**SETTINGS, **dict.fromkeys(evolve.ALGORITHMS, evolve.SETTINGS)}
    if algo not in known:
        raise UnknownNameError("algorithm", algo, known)
    settings = {**known[algo], **(GUIDANCE if guided else {})}
    for name, value in (given or {}).items():
        if name not in settings:
            raise UnknownNameError(f"setting of {algo}", name, settings)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        # counts are whole in a float64, rates are numbers of the network's float32
        most = 3e38 if isinstance(settings[name], float) else 2**53
        if isinstance(settings[name], int | float) and not (number and 0 <= value <= most):
            raise InputError(f"setting {name} of {algo} is a number of 0 or more, not {value!r}")
        settings[name] = value
    return settings


def steps_of(algo: str, steps: int, n_envs: int, settings: Mapping[str, Any]) -> int:
    """The steps that training takes for ``steps``: a learner ends a round of all environments."""
    each = n_envs * (settings["train_freq"] if algo == "dqn" else _rollout(settings, n_envs))
    return -(-steps // each) * each


def _rollout(settings: Mapping[str, Any], n_envs: int) -> int:
    """Steps of each environment between two updates."""
    return max(2, int(settings["rollout"]) // n_envs)


def make_agent(
    algo: str, envs: VecEnv, columns: int, settings: Mapping[str, Any], hidden: Sequence[int],
    seed: int,
) -> BaseAlgorithm:  # fmt: skip
    """A stable-baselines3 model on the CPU, untrained; ``settings`` from ``settings_for``.

    ``columns`` is the number of columns of a candidate.
    """
    options = {name: value for name, value in settings.items() if name not in GUIDANCE}
    if algo != "dqn":
        options["n_steps"] = _rollout(settings, envs.num_envs)
        del options["rollout"]
        options["batch_size"] = min(options["batch_size"], options["n_steps"] * envs.num_envs)
    rate = options["learning_rate"]
    options["learning_rate"] = LinearSchedule(rate, rate / 10, 1.0)
    sizes = Sizes.of(envs.observation_space, int(envs.action_space.n), columns)  # type: ignore[attr-defined]
    options["policy_kwargs"] = {
        "net_arch": list(hidden),
        "features_extractor_class": Flat,
        "features_extractor_kwargs": {"sizes": sizes},
    }
    options |= {"seed": seed, "device": "cpu"}
    if algo == "ppo":
        return PPO(ScorerPolicy, envs, **options)
    if algo == "maskable-ppo":
        return MaskablePPO(MaskableScorerPolicy, envs, **options)
    return MaskedDQN(ScorerDQNPolicy, envs, **options)
