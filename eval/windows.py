"""Workloads to tune on and to judge on: never the same requests.

A trace is cut into windows that share nothing: the first ones are for tuning, those that are judged
come after. What is drawn from a seed is drawn from seeds that no training episode has.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lengthwise.errors import InputError
from lengthwise.workload import Workload

Workloads = Callable[[int], Workload]  # a seed -> its workload
WorkloadLike = str | Workload | Workloads
# Training episodes draw workload seeds below 2**31.
TEST_SEED, TUNING_SEED = 2**31 + 10_000, 2**31 + 20_000


@dataclass(frozen=True)
class Window:
    """A workload, the seed of what is random in its run, and which requests of a trace it holds.

    ``span`` is (first, one past the last); None of a workload that was drawn.
    """

    workload: Workload
    seed: int
    span: tuple[int, int] | None = None


@dataclass(frozen=True)
class Windows:
    """The windows of one workload; what had to be left out is in ``notices``."""

    name: str
    tuning: tuple[Window, ...]
    test: tuple[Window, ...]
    notices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for a in self.tuning:
            for b in self.test:
                if a.seed == b.seed or _share(a.span, b.span):
                    raise InputError(f"{self.name}: tuning and judging would share requests")


def windows_of(
    workload: WorkloadLike, *, requests: int, rate: float | None, test: int, tuning: int = 0
) -> Windows:
    """``tuning`` and ``test`` windows of ``requests`` requests of a preset, a trace or a function.

    A trace (a file or a ``Workload``) has as many windows as fit into it. Those to tune on are its
    first, at most half of them; those to judge on are spread over the rest. ``rate`` (requests/s)
    stretches the arrivals of the whole. Without tuning, a trace of ``requests`` or fewer is judged
    as it is, ``test`` times, so that only the noise of predictors and routers differs.
    """
    if isinstance(workload, str) and not os.path.exists(workload):
        name = workload  # a preset; a wrong name is told by it
        Workload.preset(name, requests=2, rate=rate)

        def draw(seed: int) -> Workload:
            return Workload.preset(name, requests=requests, rate=rate, seed=seed)

        return _drawn(name, draw, test, tuning)
    if callable(workload):
        return _drawn(getattr(workload, "__name__", "workload"), workload, test, tuning)
    whole = Workload.read(workload) if isinstance(workload, str) else workload
    return _cut(whole if rate is None else whole.at_rate(rate), requests, test, tuning)


def _drawn(name: str, draw: Workloads, test: int, tuning: int) -> Windows:
    tuned, judged = (
        tuple(Window(draw(seed), seed) for seed in range(start, start + count))
        for start, count in ((TUNING_SEED, tuning), (TEST_SEED, test))
    )
    return Windows(name, tuned, judged, judged[0].workload.notices)


def _cut(whole: Workload, requests: int, test: int, tuning: int) -> Windows:
    if len(whole) <= requests and not tuning:
        fixed = tuple(Window(whole, seed) for seed in range(TEST_SEED, TEST_SEED + test))
        return Windows(whole.name, (), fixed, whole.notices)
    there = len(whole) // requests
    if tuning and there < 2:
        raise InputError(
            f"{whole.name}: {len(whole)} requests are not two windows of {requests}, one to tune "
            "on and one to judge on: ask for fewer requests"
        )
    first = min(tuning, there // 2)
    count = min(test, there - first)
    places = first + np.arange(count) * (there - first) // count
    notices = whole.notices
    if count < test or first < tuning:
        notices += (
            f"{whole.name}: {there} windows of {requests} requests do not overlap; "
            f"{f'{first} to tune on, ' if tuning else ''}{count} to judge on",
        )
    return Windows(
        whole.name,
        tuple(_window(whole, requests, k, TUNING_SEED + k) for k in range(first)),
        tuple(_window(whole, requests, k, TEST_SEED + k) for k in places.tolist()),
        notices,
    )


def _window(whole: Workload, requests: int, place: int, seed: int) -> Window:
    span = (place * requests, (place + 1) * requests)
    return Window(whole.window(*span), seed, span)


def _share(a: tuple[int, int] | None, b: tuple[int, int] | None) -> bool:
    return a is not None and b is not None and a[0] < b[1] and b[0] < a[1]
