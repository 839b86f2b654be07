"""Gymnasium environments over the simulated serving engine; importing this registers them."""

from gymnasium.envs.registration import register, registry

from lengthwise.registry import TABLES

__all__ = ["register_envs"]


def register_envs() -> None:
    """Registers the environments of the registry with Gymnasium, single and vector."""
    for name, target in TABLES["env"].items():
        if name not in registry:
            vector = target.replace("Env", "VectorEnv")
            register(id=name, entry_point=target, vector_entry_point=vector)


register_envs()
