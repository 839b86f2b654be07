"""vLLM's own scheduler as an engine: the arbiter of the reference, and a backend."""

from lengthwise.serving.options import VERSIONS
from lengthwise.serving.vllm.backend import VllmRun, run
from lengthwise.serving.vllm.client import Vllm
from lengthwise.serving.vllm.environment import NEWEST, VllmUnavailable

__all__ = ["NEWEST", "VERSIONS", "Vllm", "VllmRun", "VllmUnavailable", "run"]
