"""Runs of a real engine as their clients saw them: when each request came, and when its tokens.

``vllm bench serve --save-result --save-detailed``, the plugin's ``record``, or any table that says
the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.reading import read_described
from lengthwise.serving.workload.bench import bench_requests
from lengthwise.serving.workload.files import read_columns
from lengthwise.workload import Workload

FEWEST = 50  # requests: of fewer, a mean says little
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """A measured run of n requests, in order of arrival.

    ``first_s`` and ``last_s`` are seconds from a request's arrival to its first and last token,
    (n,); ``first_s`` is None where nobody wrote them down. ``notices`` say what was left out.
    """

    name: str
    workload: Workload
    first_s: Floats | None
    last_s: Floats
    notices: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.last_s)


def read_measured(path: str | Path) -> Measured:
    """The run in a file or folder.

    A table has ``arrival_s``, ``prompt_tokens``, ``output_tokens`` and ``finish_s`` (or ``e2e_s``),
    and may have ``first_token_s`` (or ``ttft_s``): seconds, the first three names on one clock.

    Raises ``InputError``, one line, for what is neither, and for fewer than ``FEWEST`` requests.
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        said = read_described(path, "measured run")
        if isinstance(said, Mapping):
            return _of_bench(path.name, said)
    columns = read_columns(path)
    return _of_table(path.name, columns)


def _of_bench(name: str, said: Mapping[str, Any]) -> Measured:
    """A result of ``vllm bench serve``: one entry a request in each of its lists."""
    lists = bench_requests(name, said)
    missing = [key for key in ("start_times", "ttfts", "itls") if key not in lists]
    if missing:
        raise InputError(
            f"{name} has no {', '.join(missing)}: calibrate reads what `vllm bench serve "
            "--save-result --save-detailed` writes, of a version that writes start_times"
        )
    try:
        start, prompt, output, first = (
            np.array(lists[key], dtype=np.float64)
            for key in ("start_times", "input_lens", "output_lens", "ttfts")
        )
        between = np.array([sum(map(float, one)) for one in lists["itls"]])
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{name}: times or lengths are no numbers: {error}") from None
    failed = list(map(bool, lists.get("errors", [""] * len(output))))
    output = np.where(failed, np.nan, output)  # broken off: not waited for
    return _measured(name, start, prompt, output, first, first + between)


def _of_table(name: str, columns: Mapping[str, NDArray[Any]]) -> Measured:
    try:
        arrival, prompt, output = (
            _floats(name, key, columns[key])
            for key in ("arrival_s", "prompt_tokens", "output_tokens")
        )
    except KeyError as error:
        raise InputError(
            f"{name} has no column {error.args[0]}; it has {', '.join(map(str, columns))}"
        ) from None
    last = _since(name, columns, arrival, "finish_s", "e2e_s")
    if last is None:
        raise InputError(
            f"{name} says of no request when it was done: a column finish_s or e2e_s, seconds"
        )
    first = _since(name, columns, arrival, "first_token_s", "ttft_s")
    reasons = columns.get("finish_reason")
    if reasons is not None:  # an answer that was broken off was not waited for
        whole = np.isin(reasons.astype(str), ("stop", "length"))
        output = np.where(whole, output, np.nan)
    return _measured(name, arrival, prompt, output, first, last)


def _since(
    name: str, columns: Mapping[str, NDArray[Any]], arrival: Floats, at: str, after: str
) -> Floats | None:
    """Seconds after arrival, from a column of moments or of durations."""
    if after in columns:
        return _floats(name, after, columns[after])
    return _floats(name, at, columns[at]) - arrival if at in columns else None


def _floats(name: str, key: str, values: NDArray[Any]) -> Floats:
    try:
        return np.array([np.nan if one is None else one for one in values], dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name}: column {key} holds something that is no number") from None


def _measured(
    name: str, arrival: Floats, prompt: Floats, output: Floats, first: Floats | None, last: Floats
) -> Measured:
    """Requests that were answered, in order of arrival, the first of all at 0."""
    whole = np.isfinite(arrival) & (prompt >= 1) & (output >= 1) & (last > 0) & np.isfinite(last)
    if first is not None:
        whole &= (first > 0) & (first <= last * (1 + 1e-9))
    kept = np.flatnonzero(whole)
    notices = []
    if len(kept) < len(whole):
        notices.append(
            f"{name}: {len(whole) - len(kept)} of {len(whole)} requests are left out: not "
            "answered, or without a time"
        )
    if len(kept) < FEWEST:
        raise InputError(
            f"{name} holds {len(kept)} answered requests; {FEWEST} are the fewest to calibrate on"
        )
    kept = kept[np.argsort(arrival[kept], kind="stable")]
    workload = Workload(
        {
            "arrival_s": arrival[kept] - arrival[kept[0]],
            "prompt_tokens": prompt[kept].astype(np.int64),
            "output_tokens": output[kept].astype(np.int64),
        },
        name=name,
    )
    first = None if first is None else first[kept]
    return Measured(name, workload, first, last[kept], tuple(notices))
