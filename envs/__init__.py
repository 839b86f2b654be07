"""Gymnasium environments over the simulated serving engine; importing this registers them."""

from gymnasium.envs.registration import register, registry

from lengthwise.registry import TABLES

__all__ = ["register_envs"]


def register_envs() -> None:
    """Registers ``lengthwise/Scheduling-v0`` and ``lengthwise/Routing-v0`` with Gymnasium."""
    for name, target in TABLES["env"].items():
        if name not in registry:
            register(id=name, entry_point=target)


register_envs()
