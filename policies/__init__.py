"""Scheduling and routing policies: pure functions from features to a score."""

from lengthwise.policies.load import load_policy, load_router

__all__ = ["load_policy", "load_router"]
