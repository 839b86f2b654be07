"""vLLM's alone: its ``--scheduler-cls``, the driver of its scheduler, and queues."""

from lengthwise.policies.plugins.vllm.scheduling import PolicyScheduling, scheduler

__all__ = ["PolicyScheduling", "scheduler"]
