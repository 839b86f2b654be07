"""The serving engine in simulation: replicas that schedule as vLLM does, behind a router."""

from lengthwise.serving.options import Engine
from lengthwise.serving.records import Iterations, Records

__all__ = ["Engine", "Iterations", "Records"]
