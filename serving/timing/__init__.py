"""How long an iteration takes: profiles measured on GPUs, rooflines, linear models, live GPUs."""

from lengthwise.serving.timing.linear import LinearTiming
from lengthwise.serving.timing.load import timing, timing_names

__all__ = ["LinearTiming", "timing", "timing_names"]
