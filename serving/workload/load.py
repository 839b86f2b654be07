"""What the command line calls a workload: a preset's name or a file, with arrivals and a split."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.served_text import asked_texts
from lengthwise.serving.workload.arrivals import read_trace
from lengthwise.serving.workload.files import HUGGING_FACE
from lengthwise.serving.workload.join import arrival_count, join, with_arrivals
from lengthwise.serving.workload.presets import PRESETS, preset
from lengthwise.serving.workload.readers import read_table
from lengthwise.serving.workload.split import in_split
from lengthwise.serving.workload.table import Table
from lengthwise.workload import Workload

DEFAULT_REQUESTS = 1000  # of a preset


def load_workload(
    spec: Any,
    *,
    arrivals: Any = None,
    requests: int | None = None,
    rate: float | None = None,
    seed: int = 0,
    model: str | None = None,
    split: str | None = None,
    test_share: float = 0.5,
    max_expanded_mb: float | None = None,
    deadlines: Mapping[str, float] | None = None,
    **options: Any,
) -> Workload:
    """A workload from a preset's name, a file or ``hf:NAME[:SPLIT]``.

    arrivals  a process ("poisson:8"), a trace or a preset's name (its process), in place of the
              workload's own times
    requests  how many: the first of a trace, drawn (see ``join``) where ``arrivals`` is given
    rate      mean requests/s: time is stretched, or the process's rate replaced; a file without
              arrival times and without ``arrivals`` gets Poisson arrivals of this rate
    seed      of arrivals and drawing; a trace with its own arrivals is the same for every seed
    model     only this model's rows; split: only the "train" or "test" prompts (``split_of``)
    max_expanded_mb  what a gzip or Parquet file, of arrivals too, may expand to
    deadlines  task -> seconds from a request's arrival in which its answer is due, "" for those of
              any other task: the column ``deadline_s``
    options   the others of ``read_table``, e.g. drop_zero=True
    """
    if deadlines is not None:
        made = load_workload(
            spec, arrivals=arrivals, requests=requests, rate=rate, seed=seed, model=model,
            split=split, test_share=test_share, max_expanded_mb=max_expanded_mb, **options,
        )  # fmt: skip
        return with_deadlines(made, deadlines)
    if isinstance(arrivals, str) and arrivals in PRESETS:
        arrivals = PRESETS[arrivals].arrivals
    arrivals = read_trace(arrivals, max_expanded_mb=max_expanded_mb)
    name = str(spec)
    if name in PRESETS:
        if model is not None or options:
            given = ", ".join(["model"] * (model is not None) + list(options))
            raise InputError(f"{name!r} is a preset; it takes no {given}")
        return _from_preset(name, arrivals, requests, rate, seed, split, test_share)
    table = _table(spec, name, model, {**options, "max_expanded_mb": max_expanded_mb})
    if split is not None:
        table = _half(table, split, test_share)
    if arrivals is None and "arrival_s" not in table.columns and rate is not None:
        arrivals = "poisson"
        table = Table(
            table.name, table.columns,
            (*table.notices, f"{table.name}: has no arrival times; Poisson, {rate:g} requests/s"),
        )  # fmt: skip
    if arrivals is not None:
        return join(table, arrivals, n=requests, rate=rate, seed=seed)
    if requests is not None:
        table = _first(table, requests)
    workload = table.workload()
    return workload if rate is None else workload.at_rate(rate)


def with_deadlines(workload: Workload, deadlines: Mapping[str, float]) -> Workload:
    """The workload with ``deadline_s``: so many seconds after the arrival, by the request's task.

    The seconds of "" are those of every task that is not named; without them it has no deadline.
    Raises ``InputError`` for seconds that are not positive, and for a task that no request has.
    """
    tasks = np.full(len(workload), "", object)
    if "task" in workload:
        tasks = np.array([str(one) for one in workload["task"]], object)
    due_in_s = np.full(len(workload), deadlines.get("", np.inf))
    for task, seconds in deadlines.items():
        if not seconds > 0:
            raise InputError(f"a deadline is a positive number of seconds, not {seconds:g}")
        if task and not (tasks == task).any():
            raise UnknownNameError("task of a deadline", task, sorted(set(tasks.tolist()) - {""}))
        if task:
            due_in_s[tasks == task] = seconds
    return workload.replace(deadline_s=workload["arrival_s"] + due_in_s)


def _first(table: Table, requests: int) -> Table:
    if requests < 1:
        raise InputError(f"requests must be 1 or more, not {requests}")
    notices = table.notices
    if requests > len(table):
        notices += (f"{table.name}: has only {len(table)} requests, not {requests}",)
    return Table(table.name, table.columns, notices, table.session_clock).select(slice(requests))


def _from_preset(
    name: str, arrivals: Any, requests: int | None, rate: float | None, seed: int,
    split: str | None, test_share: float,
) -> Workload:  # fmt: skip
    count = requests
    if count is None:
        count = (None if arrivals is None else arrival_count(arrivals)) or DEFAULT_REQUESTS
    own = preset(name, requests=count, rate=None if arrivals is not None else rate, seed=seed)
    half = own
    if split is not None:
        mask = _mask(Table(name, own.columns), split, test_share)
        drawn = count
        while mask.sum() < count:  # the first ones stay as they are, however many are drawn
            drawn = max(math.ceil(1.1 * count / max(mask.mean(), 0.1)), drawn + drawn // 4 + 50)
            half = preset(name, requests=drawn, seed=seed)
            mask = _mask(Table(name, half.columns), split, test_share)
        half = half.select(mask).head(count).replace(arrival_s=own["arrival_s"])
    if arrivals is None:
        return half
    return with_arrivals(Table(name, half.columns), arrivals, rate=rate, seed=seed)


def _table(spec: Any, name: str, model: str | None, options: dict[str, Any]) -> Table:
    is_name = isinstance(spec, str) and not name.startswith(HUGGING_FACE)
    if is_name and "." not in name and "/" not in name and not os.path.exists(name):
        near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(
            f"no preset and no file {name!r}{hint} (presets: {', '.join(PRESETS)}; files end in "
            ".csv, .jsonl, .json or .parquet, or that + .gz)"
        )
    return read_table(spec, model=model, **options)


def _half(table: Table, split: str, test_share: float) -> Table:
    mask = _mask(table, split, test_share)
    if not mask.any():
        raise InputError(f"{table.name}: the {split} split holds none of its {len(table)} prompts")
    return table.select(mask)


def _mask(table: Table, split: str, test_share: float) -> NDArray[np.bool_]:
    if "prompt" not in table.columns:
        raise InputError(f"{table.name}: has no prompt texts, so no {split} split by prompt")
    return in_split(asked_texts(table.columns), split, test_share)
