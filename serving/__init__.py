"""The serving engine in simulation: nodes that schedule as vLLM does, behind a router."""

from lengthwise.serving.events import Fail, Slow
from lengthwise.serving.options import Engine
from lengthwise.serving.records import Iterations, Records, Visits
from lengthwise.serving.run import begin, run
from lengthwise.serving.system import HOLD, Node, Run, Stop, Stops, System, Totals
from lengthwise.serving.transfer import KVTransfer

__all__ = [
    "HOLD", "Engine", "Fail", "Iterations", "KVTransfer", "Node", "Records", "Run", "Slow", "Stop",
    "Stops", "System", "Totals", "Visits", "begin", "run",
]  # fmt: skip
