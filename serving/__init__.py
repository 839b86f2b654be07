"""The serving engine in simulation: replicas that schedule as vLLM does, behind a router."""

from lengthwise.serving.options import Engine
from lengthwise.serving.records import Iterations, Records
from lengthwise.serving.reference.cluster import Cluster
from lengthwise.serving.run import run

__all__ = ["Cluster", "Engine", "Iterations", "Records", "run"]
