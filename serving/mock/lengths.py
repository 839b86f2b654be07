"""How long answers are where nobody says it.

- ``constant:200``: 200 tokens each
- ``lognormal:200,cv=1``: mean 200, standard deviation 1 × the mean
- ``geometric:200``: mean 200, as if each token might be the last
- a workload (a preset, a file): lengths drawn from its ``output_tokens``
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np

from lengthwise.errors import InputError
from lengthwise.serving.workload import load_workload

DEFAULT = "lognormal:200,cv=1"
KINDS = ("constant", "lognormal", "geometric")
Length = Callable[[float], int]  # from a number in (0, 1) that is drawn evenly


def lengths(spec: str) -> Length:
    """Reads a spelling; raises ``InputError`` for what is none."""
    kind, _, values = spec.partition(":")
    if kind not in KINDS:
        drawn = np.sort(load_workload(spec)["output_tokens"])
        return lambda draw: int(drawn[int(draw * len(drawn))])
    said, *more = values.split(",")
    options = dict(one.partition("=")[::2] for one in more)
    cv = _number(spec, options.pop("cv", "1")) if kind == "lognormal" else 0.0
    mean = _number(spec, said)
    if options or mean < 1:
        raise InputError(f"lengths are spelled {kind}:MEAN of 1 or more, not {spec!r}")
    if kind == "constant":
        return lambda draw: round(mean)
    if kind == "geometric":
        if mean == 1:
            return lambda draw: 1
        step = math.log1p(-1 / mean)
        return lambda draw: max(1, math.ceil(math.log1p(-draw) / step))
    sigma = math.sqrt(math.log1p(cv * cv))
    middle, normal = math.log(mean) - sigma * sigma / 2, NormalDist()
    return lambda draw: max(1, round(math.exp(middle + sigma * normal.inv_cdf(draw))))


def _number(spec: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1e6:
        raise InputError(f"lengths {spec!r}: {value!r} is no number from 0 to 1000000")
    return number
