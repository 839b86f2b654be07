"""Where episodes come from: a seed in, a workload out."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from lengthwise.workload import Workload

Source = Callable[[int], Workload]  # an episode's seed -> its workload


def episode_source(
    workload: str | Workload | Source, *, requests: int, rate: float | None
) -> Source:
    """Episodes of ``requests`` requests from a preset, a trace file, a workload or a function.

    A trace or workload that is longer is cut into windows at random; ``rate`` (requests/s)
    stretches arrivals. A function of the seed says everything itself.
    """
    if isinstance(workload, str):
        if not os.path.exists(workload):
            name = workload
            Workload.preset(name, requests=2, rate=rate)  # a wrong name is told now
            return lambda seed: Workload.preset(name, requests=requests, rate=rate, seed=seed)
        workload = Workload.read(workload)
    if not isinstance(workload, Workload):
        return workload
    whole = workload if rate is None else workload.at_rate(rate)
    if len(whole) <= requests:
        return lambda seed: whole
    return lambda seed: _window(whole, requests, seed)


def _window(whole: Workload, requests: int, seed: int) -> Workload:
    start = int(np.random.default_rng(seed).integers(len(whole) - requests + 1))
    cut = whole.select(slice(start, start + requests))
    shift = cut["arrival_s"][0]
    columns: dict[str, Any] = {"arrival_s": cut["arrival_s"] - shift}
    if "deadline_s" in cut:
        columns["deadline_s"] = cut["deadline_s"] - shift
    return cut.replace(**columns)
