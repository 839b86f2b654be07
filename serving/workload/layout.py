"""What a layout is, and how times of any unit become seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.serving.workload.files import Columns

UNITS_S = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
# From here on a number can be no date in seconds since 1970, in milliseconds, in microseconds.
EPOCHS = (("ms", 1e11), ("us", 1e14), ("ns", 1e17))
ROW = "row"  # of a layout's result: which row of the file each request comes from, if not its own
# finish reasons of engines and APIs that say an answer was cut off
CUT = frozenset("length max_tokens max_output_tokens max_length model_length truncated".split())


@dataclass(frozen=True)
class Options:
    """How to read what a layout leaves open."""

    turns: str = "first"  # of a conversation: "first" or "all"
    closed_loop: bool = False  # sessions: wait for the request before, instead of the clock
    time_unit: str = ""  # of numeric times, one of ``UNITS_S``; "" is the layout's own
    notices: list[str] = field(default_factory=list)  # what a layout had to decide


@dataclass(frozen=True)
class Layout:
    """``needs``: for each needed column, its possible names; ``read(columns, name, options)``."""

    name: str
    needs: tuple[tuple[str, ...], ...]
    read: Callable[[Columns, str, Options], Columns]
    session_clock: bool = False

    def fits(self, columns: Columns) -> bool:
        """Whether ``columns`` hold everything that the layout needs."""
        return all(any(name in columns for name in names) for names in self.needs)

    @property
    def described(self) -> str:
        """For messages: "azure (TIMESTAMP, ContextTokens, GeneratedTokens)"."""
        return f"{self.name} ({', '.join(' or '.join(names) for names in self.needs)})"


def unit_seconds(
    name: str, column: str, times: NDArray[Any], unit: str, options: Options
) -> NDArray[Any]:
    """Seconds of times in ``unit`` where no other is asked for; says what numbers are read as.

    Numbers that are too large for dates in that unit are in the finer one in which they are some.
    """
    times = numbers(times)
    if not options.time_unit:
        unit = _epoch_unit(earliest(times), unit)
    arrival_s = seconds(name, column, times, UNITS_S[options.time_unit or unit])
    if not options.time_unit and times.dtype.kind in "iuf":
        span = float(arrival_s.max())
        rate = f", {(len(times) - 1) / span:.3g} requests/s" if span > 0 else ""
        options.notices.append(
            f"{name}: {column} read as {unit}{rate}; time_unit (--time-unit) says otherwise"
        )
    return arrival_s


def seconds(name: str, column: str, values: NDArray[Any], unit_s: float = 1.0) -> NDArray[Any]:
    """Times as seconds from the earliest one; texts are ISO 8601 dates, or numbers all of them."""
    found = numbers(values)
    if found.dtype.kind not in "iuf":
        import pandas as pd

        for row, value in enumerate(found):
            if not (isinstance(value, str | datetime) or value is None or value != value):
                raise InputError(
                    f"{name}: row {row}: {column} is {str(value)[:60]}; it must be a date"
                )
        try:
            dates = pd.to_datetime(pd.Series(found), utc=True, format="ISO8601")
        except (ValueError, TypeError):
            read = pd.to_datetime(pd.Series(found), utc=True, format="ISO8601", errors="coerce")
            strange = read.isna().to_numpy() & pd.Series(found).notna().to_numpy()
            row = int(np.argmax(strange))
            raise InputError(
                f"{name}: row {row}: {column} is {str(found[row])[:60]!r}; it must be a number, or "
                "a date such as 2024-05-10 00:00:09.5+00:00"
            ) from None
        bad = np.flatnonzero(dates.isna().to_numpy())
        if len(bad):
            raise InputError(f"{name}: row {bad[0]}: {column} is missing; it must be a date")
        nanoseconds = dates.dt.tz_localize(None).to_numpy(dtype="datetime64[ns]").astype(np.int64)
        return np.asarray((nanoseconds - nanoseconds.min()) / 1e9)
    times = found.astype(np.float64)
    if len(times) == 0:
        raise InputError(f"{name}: no requests; a workload needs at least one")
    bad = np.flatnonzero(~np.isfinite(times))
    if len(bad):
        raise InputError(f"{name}: row {bad[0]}: {column} is {found[bad[0]]}; it must be a number")
    return np.asarray((times - times.min()) * unit_s)


def earliest(times: NDArray[Any]) -> float:
    """The smallest of numbers; minus infinity where there are none."""
    if times.dtype.kind not in "iuf":
        return -np.inf
    known = times[np.isfinite(times)]
    return float(known.min()) if len(known) else -np.inf


def _epoch_unit(first: float, unit: str) -> str:
    """The unit in which a number is a date since 1970; ``unit`` where it need not be one."""
    finer = [name for name, least in EPOCHS if first >= least]
    return finer[-1] if finer and UNITS_S[finer[-1]] < UNITS_S[unit] else unit


def numbers(values: NDArray[Any]) -> NDArray[Any]:
    """Texts that are numbers, all of them, as numbers; anything else as it came."""
    if values.dtype.kind in "iuf":
        return values
    try:
        return np.array([float(value) for value in values])
    except (TypeError, ValueError, OverflowError):
        return values


def hashable(value: Any) -> Any:
    """A name, whatever type it has: a list or an object counts as its text."""
    return str(value) if isinstance(value, list | dict | np.ndarray) else value


def objects(values: list[Any]) -> NDArray[Any]:
    return np.fromiter(values, dtype=object, count=len(values))
