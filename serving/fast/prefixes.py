"""The prefixes of a workload's prompts, flat and numbered once for all of its runs.

A comparison runs the same requests under many policies and rates, which all share one column.
"""

from __future__ import annotations

import threading
import weakref
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.serving.fast.state import NONE


class Prefixes(NamedTuple):
    """All requests' hashes, (hashes,), where each request's begin, (n + 1,), and the number of
    the prefix that each ends, (hashes,): ``NONE`` in all until the first run numbers them.
    """

    hashes: NDArray[np.int64]
    at: NDArray[np.int64]
    number: NDArray[np.int64]


NUMBERING = threading.Lock()  # held by the run that numbers: others wait for all of its numbers
_known: dict[int, tuple[weakref.ref[NDArray[Any]], Prefixes]] = {}


def prefixes_of(column: NDArray[Any]) -> Prefixes:
    """The prefixes of a workload's column ``prefix_hashes``, kept as long as the column is."""
    key = id(column)
    if key not in _known or _known[key][0]() is not column:
        found = _flat(column)
        _known[key] = weakref.ref(column, lambda gone: _forget(key, gone)), found
    return _known[key][1]


def _forget(key: int, gone: Any) -> None:
    if key in _known and _known[key][0] is gone:
        del _known[key]


def _flat(column: NDArray[Any]) -> Prefixes:
    at = np.zeros(len(column) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, column), np.int64, len(column)), out=at[1:])
    count = int(at[-1])
    try:
        hashes = np.fromiter(chain.from_iterable(column), np.int64, count)
    except OverflowError:  # hashes of more than 64 bits: numbered in order of appearance
        seen: dict[int, int] = {}
        numbered = (seen.setdefault(int(h), len(seen)) for h in chain.from_iterable(column))
        hashes = np.fromiter(numbered, np.int64, count)
    return Prefixes(hashes, at, np.full(count, NONE, np.int64))
