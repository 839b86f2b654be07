"""Workloads: readers of traces and prompts, arrival processes, presets and a prompt generator."""

from lengthwise.serving.workload.arrivals import arrivals
from lengthwise.serving.workload.join import join
from lengthwise.serving.workload.load import load_workload
from lengthwise.serving.workload.presets import preset, preset_names
from lengthwise.serving.workload.prompts import generate_prompts
from lengthwise.serving.workload.readers import Prompts, read, read_prompts
from lengthwise.serving.workload.split import split_of

__all__ = [
    "Prompts",
    "arrivals",
    "generate_prompts",
    "join",
    "load_workload",
    "preset",
    "preset_names",
    "read",
    "read_prompts",
    "split_of",
]
