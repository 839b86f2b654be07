"""What comes in, checked once: prompts, lengths and the mask of censored lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lengthwise.errors import InputError

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

FEWEST = 10  # rows: two for each of five folds


def texts(prompts: Sequence[str], *, of: str) -> list[str]:
    """The prompts as a list of strings; at least one. ``of`` names the predictor in errors."""
    if isinstance(prompts, str | bytes):
        raise InputError(f"{of}: prompts must be a list of strings, not one string")
    found = list(prompts)
    if not found:
        raise InputError(f"{of}: the list of prompts is empty; it needs at least one")
    for row, prompt in enumerate(found):
        if not isinstance(prompt, str):
            raise InputError(f"{of}: prompt {row} is {type(prompt).__name__}, not a string")
    return found


def lengths(values: ArrayLike, *, rows: int, name: str, of: str) -> Floats:
    """A column of ``rows`` lengths in tokens, each finite and 1 or more."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{of}: {name} hold values that are not numbers") from None
    _shape(array, rows, name, of)
    bad = np.flatnonzero(~(np.isfinite(array) & (array >= 1)))
    if len(bad):
        raise InputError(
            f"{of}: {name} row {bad[0]} is {array[bad[0]]:g}; a length is a finite number of "
            f"tokens, 1 or more ({len(bad)} such row{'s' if len(bad) > 1 else ''})"
        )
    return array


def mask(values: ArrayLike | None, *, rows: int, of: str) -> Mask:
    """The censored mask, all False when it is not given; not every row may be censored."""
    if values is None:
        return np.zeros(rows, dtype=bool)
    array = np.asarray(values)
    _shape(array, rows, "censored", of)
    if array.dtype != bool and not np.isin(array, (0, 1)).all():
        raise InputError(f"{of}: censored must be true or false for each row")
    cut = array.astype(bool)
    if cut.all():
        raise InputError(f"{of}: all {rows} lengths are censored; none shows where answers end")
    return cut


def weights(values: ArrayLike | None, *, rows: int, of: str) -> Floats:
    """How much each row counts, (rows,), of mean 1; all the same where nothing is said."""
    if values is None:
        return np.ones(rows)
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{of}: weights hold values that are not numbers") from None
    _shape(array, rows, "weights", of)
    if not (np.isfinite(array) & (array >= 0)).all() or not array.any():
        raise InputError(f"{of}: weights must be finite numbers, 0 or more, and not all 0")
    return np.asarray(array / array.mean())


def resampled(heavy: Floats, seed: int) -> NDArray[np.int64]:
    """As many rows, each as often as its weight says, rounded up or down at random."""
    n = len(heavy)
    steps = np.random.default_rng(seed).random() + np.arange(n)
    return np.searchsorted(np.cumsum(heavy) * n / heavy.sum(), steps, side="right").clip(0, n - 1)


def number(value: object, *, name: str, of: str) -> float:
    """An option that must be a finite number."""
    told = isinstance(value, int | float) and not isinstance(value, bool)
    if not (told and abs(value) <= float(np.finfo(np.float64).max)):  # type: ignore[arg-type]
        raise InputError(f"{of}: {name} must be a finite number, not {value!r}")
    return float(value)  # type: ignore[arg-type]


def fit_columns(
    prompts: Sequence[str], output_tokens: ArrayLike, censored: ArrayLike | None, *, of: str
) -> tuple[list[str], Floats, Mask]:
    """What a text predictor learns from: prompts, lengths with more than one value, the mask."""
    found = texts(prompts, of=of)
    length = lengths(output_tokens, rows=len(found), name="output_tokens", of=of)
    cut = mask(censored, rows=len(found), of=of)
    if len(found) < FEWEST:
        raise InputError(f"{of}: {len(found)} rows are too few to learn from; at least {FEWEST}")
    if (length == length[0]).all():
        raise InputError(
            f"{of}: all {len(length)} lengths are {length[0]:g} tokens, so there is nothing to "
            f"learn; use constant:tokens={length[0]:g}"
        )
    if len(set(found)) == 1:
        raise InputError(f"{of}: all {len(found)} prompts are the same text; nothing to learn")
    return found, length, cut


def count(prompts: Sequence[str], *columns: ArrayLike | None, of: str) -> int:
    """The number of requests, for predictors that read no text: of the first column that is there.

    A workload without text has no prompts, so an empty ``prompts`` is no error here.
    """
    for column in (prompts, *columns):
        if column is not None and len(column) > 0:  # type: ignore[arg-type]
            return len(column)  # type: ignore[arg-type]
    raise InputError(f"{of}: no requests to predict; it needs at least one")


def _shape(array: NDArray[Any], rows: int, name: str, of: str) -> None:
    if array.ndim != 1:
        raise InputError(f"{of}: {name} must be one-dimensional, not of shape {array.shape}")
    if len(array) != rows:
        raise InputError(f"{of}: {name} has {len(array)} rows, the prompts {rows}")
