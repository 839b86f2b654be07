"""What a file says about requests, before it is a workload: arrivals may still be missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.workload import Workload


@dataclass(frozen=True)
class Table:
    """Columns of ``Workload`` (``arrival_s`` may be missing), and ``censored`` for training.

    ``session_clock`` says that ``arrival_s`` counts from the start of each session, for want of a
    common clock.
    """

    name: str
    columns: Mapping[str, NDArray[Any]]
    notices: tuple[str, ...] = ()
    session_clock: bool = False

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def select(self, index: Any) -> Table:
        """Some of the rows, by numpy index or mask; children of dropped requests take their place.

        A child of a dropped request waits for the nearest kept ancestor, and thinks for as long as
        both would have; without one it starts its session.
        """
        kept = np.arange(len(self))[index]
        columns = {key: values[kept] for key, values in self.columns.items()}
        if "parent" in columns:
            columns["parent"], columns["think_s"] = _relink(self.columns, kept)
        return replace(self, columns=columns)

    def workload(self) -> Workload:
        """The table as a workload; raises ``InputError`` if it has no arrival times."""
        if "arrival_s" not in self.columns:
            raise InputError(
                f"{self.name}: has no arrival times; give some, e.g. --arrivals poisson:8 "
                "(arrivals='poisson:8'), --arrivals burst or --arrivals TRACE"
                + "".join(
                    f"; ignored columns {left}: is one the time? --columns arrival_s=NAME"
                    for said in self.notices
                    if (left := said.partition(" ignored columns ")[2])
                )
            )
        columns = {key: values for key, values in self.columns.items() if key != "censored"}
        arrival, notices = columns["arrival_s"], self.notices
        if arrival.min() >= EPOCH_S:
            notices += (f"{self.name}: arrival_s is counted from its first, {arrival.min():.0f}",)
            for key in {"arrival_s", "deadline_s"} & columns.keys():
                columns[key] = columns[key] - arrival.min()
        if self.session_clock or ("parent" in columns and not arrival.any()):
            notices += (f"{self.name}: every session starts at 0 s, unless arrivals are given",)
        elif same := len(arrival) - len(np.unique(arrival)):
            notices += (f"{self.name}: {same} arrivals coincide with another; in file order",)
        return Workload(columns, name=self.name, notices=notices)


EPOCH_S = 1e7  # later starts are dates, not times since a trace's start


def _relink(
    columns: Mapping[str, NDArray[Any]], kept: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    parent, think = columns["parent"].copy(), columns["think_s"].astype(np.float64)
    place = np.full(len(parent), -1, dtype=np.int64)
    place[kept] = np.arange(len(kept))
    for row in range(len(parent)):  # parents come first, so one pass is enough
        up = parent[row]
        if up >= 0 and place[up] < 0:
            think[row] += think[up]
            parent[row] = parent[up]
    up = parent[kept]
    return np.where(up >= 0, place[up], -1), think[kept]
