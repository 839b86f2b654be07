"""Arrival processes, and how they are spelled on the command line.

- ``poisson:8``: Poisson, 8 requests/s
- ``gamma:8,cv=2``: a renewal process, gamma gaps with a coefficient of variation of 2
- ``bursty:8,ratio=5,share=0.1,dwell_s=10``: a two-state Markov-modulated Poisson process, a tenth
  of the time in bursts of 10 s on average in which the rate is 5 times as high
- ``constant:8``: one each 1/8 s
- ``burst``: all at time 0
- ``closed:32,think_s=2``: 32 clients, each sending its next request after the answer to its last
  one and a pause of 2 s on average (none by default)
- ``trace.csv.gz``: the arrivals of a trace, cycled if it is too short
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.serving.draws import stream
from lengthwise.serving.workload.files import HUGGING_FACE, SUFFIXES
from lengthwise.serving.workload.readers import read
from lengthwise.workload import Workload

Floats = NDArray[np.float64]
MOST_CYCLES = 2**21  # stays in and out of bursts; each takes 50 bytes
CV = (1e-6, 1e6)  # below it gaps are all alike, above it all but a few are 0


def poisson(n: int, rate: float, rng: np.random.Generator) -> Floats:
    """n arrival times (s) of a Poisson process of ``rate`` requests/s."""
    return np.cumsum(rng.exponential(1.0, n)) / rate


def gamma(n: int, rate: float, rng: np.random.Generator, *, cv: float = 2.0) -> Floats:
    """n arrival times (s) with gamma-distributed gaps; cv 1 is Poisson, above 1 burstier."""
    return np.cumsum(_unit_gaps(n, cv, rng)) / rate


def bursty(
    n: int,
    rate: float,
    rng: np.random.Generator,
    *,
    ratio: float = 5.0,
    share: float = 0.1,
    dwell_s: float = 10.0,
    cv: float = 1.0,
) -> Floats:
    """n arrival times (s) of a two-state Markov-modulated process of mean ``rate`` requests/s.

    The rate in a burst is ``ratio`` times the rate outside; ``share`` of the time is spent in
    bursts, of ``dwell_s`` seconds on average (exponential). Within a state the gaps have
    coefficient of variation ``cv`` (1: Markov-modulated Poisson). See Fischer and
    Meier-Hellstern, "The Markov-modulated Poisson process cookbook", 1993.
    """
    calm_rate = rate / (1 - share + share * ratio)
    work = np.cumsum(_unit_gaps(n, cv, rng))  # arrivals on the clock of the integrated rate
    dwell = np.array([dwell_s * (1 - share) / share, dwell_s])
    rates = np.array([calm_rate, calm_rate * ratio])
    first = int(rng.random() < share)  # in equilibrium from the start
    expected = 1.2 * n / float((dwell * rates).sum())
    if not expected <= MOST_CYCLES:
        raise InputError(
            f"bursty arrivals with dwell_s={dwell_s:g} change more than {MOST_CYCLES} times in {n} "
            "requests; stay longer"
        )
    cycles = max(16, int(expected) + 1)
    ends = np.zeros(1)  # s, the ends of the stays
    passed = np.zeros(1)  # the integrated rate at those times
    while passed[-1] <= work[-1]:
        state = (first + len(ends) - 1 + np.arange(2 * cycles)) % 2
        stay = rng.exponential(1.0, 2 * cycles) * dwell[state]
        ends = np.concatenate((ends, ends[-1] + np.cumsum(stay)))
        passed = np.concatenate((passed, passed[-1] + np.cumsum(stay * rates[state])))
    return np.interp(work, passed, ends)


def constant(n: int, rate: float, rng: np.random.Generator) -> Floats:
    """n arrival times (s), evenly 1/rate apart, from 0."""
    return np.arange(n) / rate


def replayed(n: int, times: Floats, rate: float | None = None) -> Floats:
    """n arrival times (s) of a recorded trace from its start, cycled when it is too short.

    Cycles are one mean gap apart. With ``rate``, time is scaled so that the n requests have it.
    """
    start = np.sort(times) - np.min(times)
    if n > len(start):
        span = start[-1] * (1 + 1 / max(len(start) - 1, 1))
        if span <= 0:
            raise InputError("the trace's requests arrive all at once; it can't be cycled")
        cycle = np.arange(-(-n // len(start))) * span
        start = (start[None, :] + cycle[:, None]).ravel()
    start = start[:n]
    if rate is None or n == 1:
        return start
    if start[-1] <= 0:
        raise InputError("the trace's requests arrive all at once; it has no rate to change")
    return np.asarray(start * ((n - 1) / start[-1] / rate))


PROCESSES: dict[str, tuple[Callable[..., Floats], dict[str, tuple[float, float]]]] = {
    # name: (function, {parameter: its open interval})
    "poisson": (poisson, {}),
    "gamma": (gamma, {"cv": (0.0, np.inf)}),
    "bursty": (
        bursty,
        {
            "ratio": (0.0, np.inf),
            "share": (0.0, 1.0),
            "dwell_s": (0.0, np.inf),
            "cv": (0.0, np.inf),
        },
    ),
    "constant": (constant, {}),
}


def arrivals(spec: Any, n: int, *, rate: float | None = None, seed: int = 0) -> Floats:
    """n arrival times in seconds, ascending, shape (n,).

    ``spec`` is spelled as above, or is a ``Workload`` or an array of times to be replayed; ``rate``
    (requests/s) replaces the rate in it, or scales a trace's time. The same seed draws the same
    numbers at every rate, so workloads at several rates differ by a stretch of time alone.
    """
    if n < 1:
        raise InputError(f"requests must be 1 or more, not {n}")
    if rate is not None and not (np.isfinite(rate) and rate > 0):
        raise InputError(f"rate must be a positive number of requests/s, not {rate!r}")
    spec = read_trace(spec)
    if isinstance(spec, Workload):
        return replayed(n, spec["arrival_s"], rate)
    if not isinstance(spec, str):
        return replayed(n, np.asarray(spec, dtype=np.float64), rate)
    name, _, rest = spec.partition(":")
    if name == "burst":
        if rest or rate is not None:
            raise InputError("a burst arrives all at once; it has no rate or other parameter")
        return np.zeros(n)
    if name == CLOSED:
        raise InputError("a closed loop has no arrival times of its own; join it to requests")
    if name not in PROCESSES:
        allowed_names = (*PROCESSES, "burst", CLOSED, "a trace file")
        raise UnknownNameError("arrival process", name, allowed_names)
    process, allowed = PROCESSES[name]
    own_rate, parameters = _parsed(spec, rest, allowed)
    first_rate = own_rate or rate
    if first_rate is None:
        raise InputError(f"arrivals {spec!r} need a rate in requests/s, e.g. {name}:8")
    rng = stream(seed, ARRIVALS)
    times = process(n, first_rate, rng, **parameters)
    return times if rate is None else np.asarray(times * (first_rate / rate))


def closed_loop(spec: str, n: int, *, seed: int = 0) -> dict[str, NDArray[Any]]:
    """``parent``, ``think_s`` and ``arrival_s`` (n,) of requests dealt to clients in turn.

    Pauses are exponential, as in the interactive systems of queueing theory.
    """
    rest = spec.partition(":")[2]
    clients, parameters = _parsed(spec, rest, {"think_s": (0.0, np.inf)})
    if clients is None or clients != int(clients):
        raise InputError(f"arrivals {spec!r} need a whole number of clients, e.g. {CLOSED}:32")
    row = np.arange(n)
    rng = stream(seed, ARRIVALS)
    think = rng.exponential(1.0, n) * parameters.get("think_s", 0.0)
    return {
        "parent": np.where(row >= clients, row - int(clients), -1),
        "think_s": np.where(row >= clients, think, 0.0),
        "arrival_s": np.zeros(n),
    }


CLOSED = "closed"
ARRIVALS = 1  # the stream of random numbers that belongs to arrivals


def read_trace(spec: Any, **options: Any) -> Any:
    """A trace given by its file's (or ``hf:``) name as a ``Workload``; the rest as it is.

    ``options`` are those of ``read_table``.
    """
    if not isinstance(spec, str | Path):
        return spec
    text = str(spec)
    is_file = text.lower().removesuffix(".gz").endswith(SUFFIXES) or _is_folder(text)
    if not is_file and not text.startswith(HUGGING_FACE):
        return text
    return read(spec, drop_zero=True, **options)


def _is_folder(text: str) -> bool:
    """Whether it names a folder, of Parquet files then, and no process."""
    return text.partition(":")[0] not in (*PROCESSES, "burst", CLOSED) and os.path.isdir(text)


def _parsed(
    spec: str, rest: str, allowed: dict[str, tuple[float, float]]
) -> tuple[float | None, dict[str, float]]:
    rate: float | None = None
    parameters: dict[str, float] = {}
    for place, part in enumerate(part for part in rest.split(",") if part.strip()):
        key, equals, text = part.partition("=")
        key = key.strip()
        try:
            value = float(text if equals else key)
        except ValueError:
            raise InputError(f"arrivals {spec!r}: {part.strip()!r} is not a number") from None
        if not equals and place == 0:
            if not (np.isfinite(value) and value > 0):
                raise InputError(f"arrivals {spec!r}: {key} must be a positive number")
            rate = value
        elif not equals or key not in allowed:
            raise UnknownNameError(f"parameter of arrivals {spec!r}", key, allowed)
        else:
            low, high = allowed[key]
            if not low < value < high:
                bounds = f"above {low:g}" + (f" and below {high:g}" if np.isfinite(high) else "")
                raise InputError(f"arrivals {spec!r}: {key} must be {bounds}, not {value:g}")
            parameters[key] = value
    return rate, parameters


def _unit_gaps(n: int, cv: float, rng: np.random.Generator) -> Floats:
    """n gaps of mean 1 and coefficient of variation ``cv``."""
    if cv == 1.0:
        return rng.exponential(1.0, n)
    if not CV[0] <= cv <= CV[1]:
        raise InputError(f"arrivals' cv must be from {CV[0]:g} to {CV[1]:g}, not {cv:g}")
    shape = 1.0 / cv**2
    return rng.gamma(shape, 1.0 / shape, n)
