"""What is tuned on and what is judged on, of a workload as commands spell it: never the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeGuard

from lengthwise.errors import InputError
from lengthwise.eval.judge import Trial
from lengthwise.eval.source import Fixed, Source, Spelled
from lengthwise.eval.windows import TUNING_SEED, Window, Windows, windows_of
from lengthwise.predictors.predict import predict
from lengthwise.serving import System
from lengthwise.serving.workload.load import DEFAULT_REQUESTS
from lengthwise.serving.workload.presets import PRESETS
from lengthwise.workload import Workload

COMPARED = 3  # windows that a comparison's policies are tuned on, at each rate; of a file a third


def windows_of_source(
    source: Source, rates: tuple[float, ...], requests: int, count: int
) -> Windows:
    """``count`` windows to tune on and as many to judge on: a preset's are drawn, a file is cut."""
    first = rates[0] if rates else None
    if _is_drawn(source):
        drawn = replace(source, options={**source.options, "requests": requests})
        found = windows_of(
            partial(drawn.load, first), requests=requests, rate=None, test=count, tuning=count
        )
        return replace(found, name=source.name)
    whole = source.load(first, 0)
    return windows_of(whole, requests=requests, rate=None, test=count, tuning=count)


def trials_of(
    windows: Sequence[Window], rates: tuple[float, ...], system: System, predictor: Any
) -> list[Trial]:
    """Each window at each rate."""
    found = []
    for window in windows:
        predicted = predict(predictor, window.workload, window.seed)
        for rate in rates or (None,):
            workload = window.workload if rate is None else window.workload.at_rate(rate)
            found.append(Trial(workload, system, predicted, window.seed))
    return found


@dataclass(frozen=True)
class Rest:
    """What comes after the first requests of a workload, the same for every seed."""

    source: Source
    first: int

    @property
    def name(self) -> str:
        """The workload's name."""
        return self.source.name

    def load(self, rate: float | None, seed: int) -> Workload:
        """The rest, at ``rate``."""
        whole = self.source.load(rate, 0)
        rest = whole.window(self.first, len(whole))
        return rest if rate is None else rest.at_rate(rate)


def apart(source: Source, rate: float | None) -> tuple[tuple[Window, ...], Source, str]:
    """Windows for a comparison's policies to be tuned on, what is compared on then, and a notice.

    A preset's windows are drawn from seeds that no comparison has. Of a file the first third is cut
    into windows, and what comes after is compared on.
    """
    if _is_drawn(source):
        size = source.options.get("requests") or DEFAULT_REQUESTS
        seeds = range(TUNING_SEED, TUNING_SEED + COMPARED)
        windows = tuple(Window(source.load(rate, seed), seed) for seed in seeds)
        return windows, source, f"on {COMPARED} other drawings of {size} requests"
    whole = source.load(rate, 0)
    each = len(whole) // 3 // COMPARED
    if each < 2:
        raise InputError(f"{source.name}: {len(whole)} requests are too few to tune on a third")
    windows = tuple(
        Window(whole.window(k * each, (k + 1) * each), TUNING_SEED + k) for k in range(COMPARED)
    )
    first = COMPARED * each
    rest: Source = Rest(source, first)
    if isinstance(source, Fixed):
        rest = Fixed(whole.window(first, len(whole)))
    told = f"on the first {first} requests, and compared on the {len(whole) - first} after them"
    return windows, rest, told


def _is_drawn(source: Source) -> TypeGuard[Spelled]:
    return isinstance(source, Spelled) and source.spec in PRESETS
