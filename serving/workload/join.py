"""Arrivals of one source joined to the prompts and lengths of another."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.serving.draws import stream
from lengthwise.serving.workload.arrivals import CLOSED, closed_loop, read_trace
from lengthwise.serving.workload.arrivals import arrivals as arrival_times
from lengthwise.serving.workload.layout import hashable
from lengthwise.serving.workload.table import Table
from lengthwise.workload import Workload

SAMPLING = 2  # the stream of random numbers that belongs to sampling


def join(
    requests: Table | Workload,
    arrivals: Any,
    *,
    n: int | None = None,
    rate: float | None = None,
    seed: int = 0,
    replace: bool = False,
) -> Workload:
    """``n`` requests with the arrivals of ``arrivals``: a spec, a trace, a ``Workload`` or times.

    Without ``n`` there are as many as the trace has arrivals, or as ``requests`` has rows for a
    process. Requests are drawn in random order without replacement, and all of them again when
    they run out; with ``replace`` each is drawn independently. Two kinds keep their own order:
    requests with ``prefix_hashes``, whose order is what a prefix cache lives on, and sessions,
    where the times are those at which sessions start, and ``n`` counts sessions.
    """
    table = requests if isinstance(requests, Table) else Table(requests.name, requests.columns)
    arrivals = read_trace(arrivals)
    if n is not None and n < 1:
        raise InputError(f"requests must be 1 or more, not {n}")
    if "parent" in table.columns or table.session_clock:
        return _join_sessions(table, arrivals, n, rate, seed)
    if n is None:
        n = arrival_count(arrivals) or len(table)
    if "prefix_hashes" in table.columns:
        rows = np.arange(n) % len(table)
    else:
        rows = _sample(len(table), n, seed, replace)
    notices = table.notices
    if n > len(table) and not replace:
        notices += (f"{table.name}: {n} requests from {len(table)} rows; rows repeat",)
    drawn = Table(table.name, table.columns, notices).select(rows)
    return with_arrivals(drawn, arrivals, rate=rate, seed=seed)


def with_arrivals(
    table: Table, arrivals: Any, *, rate: float | None = None, seed: int = 0
) -> Workload:
    """The requests in the order that they have, with other arrivals; deadlines move along."""
    n = len(table)
    columns = {key: values for key, values in table.columns.items() if key != "censored"}
    if isinstance(arrivals, str) and arrivals.partition(":")[0] == CLOSED:
        if rate is not None or "deadline_s" in columns:
            raise InputError(f"{table.name}: a closed loop takes no rate and no deadlines")
        return Workload(
            {**columns, **closed_loop(arrivals, n, seed=seed)},
            name=table.name, notices=table.notices,
        )  # fmt: skip
    times = arrival_times(arrivals, n, rate=rate, seed=seed)
    if "deadline_s" in columns:
        if "arrival_s" not in columns:
            raise InputError(f"{table.name}: deadline_s without arrival_s can't be moved")
        columns["deadline_s"] = times + columns["deadline_s"] - columns["arrival_s"]
    return Workload({**columns, "arrival_s": times}, name=table.name, notices=table.notices)


def arrival_count(arrivals: Any) -> int | None:
    """How many arrivals a trace has; None for a process, which has as many as one likes."""
    return None if isinstance(arrivals, str) else len(arrivals)


def _sample(rows: int, n: int, seed: int, replace: bool) -> NDArray[np.int64]:
    rng = stream(seed, SAMPLING)
    if replace:
        return rng.integers(0, rows, n)
    rounds = [rng.permutation(rows) for _ in range(-(-n // rows))]
    return np.concatenate(rounds)[:n]


def _join_sessions(
    table: Table, arrivals: Any, n: int | None, rate: float | None, seed: int
) -> Workload:
    """Session k of the table (in order of appearance) starts at the k-th time."""
    sessions = _sessions(table)
    count = n or min(arrival_count(arrivals) or len(table), int(sessions.max()) + 1)
    if count > sessions.max() + 1:
        raise InputError(f"{table.name}: has {sessions.max() + 1} sessions, not {count}")
    table = table.select(sessions < count)
    times = arrival_times(arrivals, count, rate=rate, seed=seed)[sessions[sessions < count]]
    columns = {key: values for key, values in table.columns.items() if key != "censored"}
    offset = columns["arrival_s"] if table.session_clock else 0.0
    return Workload(
        {**columns, "arrival_s": times + offset}, name=table.name, notices=table.notices
    )


def _sessions(table: Table) -> NDArray[np.int64]:
    """The number of each row's session: 0, 1, 2 ... in order of appearance."""
    if "parent" in table.columns:
        keys = np.arange(len(table))
        for row, parent in enumerate(table.columns["parent"]):
            if parent >= 0:
                keys[row] = keys[parent]  # parents come first, so theirs is the root already
    else:
        keys = table.columns["session_id"]
    seen: dict[Any, int] = {}
    found = [seen.setdefault(hashable(key), len(seen)) for key in keys]
    return np.array(found, dtype=np.int64)
