"""What is known of requests beside their prompts: who answers, for whom, and what came before.

Every column is optional, and so is every cell: what is not known is None, or NaN where it is a
number. A predictor names those that it can use in ``uses``; it must predict without any of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.sessions import earlier_answers

Floats = NDArray[np.float64]
Objects = NDArray[Any]

MOST_TOKENS = 2**30  # of one request: sums over a workload stay far within 64 bits


@dataclass(frozen=True, eq=False)
class Context:
    """Columns of n requests, each of shape (n,) or None where it is missing altogether."""

    # names: compared, never read
    model: Objects | None = None  # that answers
    session_id: Objects | None = None
    tenant: Objects | None = None
    task: Objects | None = None  # the application's own name of what is asked
    system_hash: Objects | None = None  # of the system prompt (``chat.system_hash``)
    # the session's answers that were finished when the request arrived
    previous_answers: Floats | None = None  # how many
    previous_log_tokens: Floats | None = None  # mean logarithm of their lengths
    previous_tokens: Floats | None = None  # the last one's length
    # what the client asked for
    max_tokens: Floats | None = None  # NaN or MOST_TOKENS where it named none
    temperature: Floats | None = None
    top_p: Floats | None = None
    tools: Floats | None = None  # 1 where it offers some, 0 where it offers none
    json_schema: Floats | None = None  # 1 where the answer must follow one

    def __post_init__(self) -> None:
        length = None
        for name in COLUMNS:
            values = getattr(self, name)
            if values is None:
                continue
            made = _names(values) if name in NAMES else _numbers(name, values)
            if length is not None and len(made) != length:
                raise InputError(f"context column {name!r} has {len(made)} rows, not {length}")
            length = len(made)
            object.__setattr__(self, name, made)

    @classmethod
    def of(cls, columns: Mapping[str, Any]) -> Context:
        """From the columns of a workload, or of a file of prompts; others are passed over.

        The answers before a request are those of its session that were finished when it arrived
        (``sessions.earlier_answers``), unless the columns hold them.
        """
        found = {name: columns[name] for name in COLUMNS if name in columns}
        if not found.keys() & PREVIOUS:
            found |= earlier_answers(columns)
        return cls(**found)

    @classmethod
    def each(cls, requests: Iterable[Mapping[str, Any]]) -> Context:
        """From what is known of each request; None, or a missing name, is not known."""
        rows = list(requests)
        named: dict[str, None] = {}
        for row in rows:
            named |= dict.fromkeys(row)
        for name in named:
            if name not in COLUMNS:
                raise UnknownNameError("context column", name, COLUMNS)
        columns: dict[str, Any] = {name: [row.get(name) for row in rows] for name in named}
        return cls(**columns)

    @property
    def columns(self) -> dict[str, NDArray[Any]]:
        """Those that are there, by name."""
        held = ((name, getattr(self, name)) for name in COLUMNS)
        return {name: values for name, values in held if values is not None}

    def __len__(self) -> int:
        return next((len(values) for values in self.columns.values()), 0)

    def select(self, index: Any) -> Context:
        """Some of the requests, by numpy index or mask."""
        return Context(**{name: values[index] for name, values in self.columns.items()})

    def row(self, place: int) -> dict[str, Any]:
        """What is known of one request, as ``each`` takes it."""
        return {
            name: values[place].item() if isinstance(values[place], np.generic) else values[place]
            for name, values in self.columns.items()
        }

    def limits(self) -> Floats | None:
        """The most tokens that each answer may have, infinite where the client named no limit."""
        if self.max_tokens is None:
            return None
        known = np.isfinite(self.max_tokens) & (self.max_tokens < MOST_TOKENS)
        return np.where(known, np.maximum(self.max_tokens, 1.0), np.inf)


COLUMNS = tuple(field.name for field in fields(Context))
NAMES = frozenset({"model", "session_id", "tenant", "task", "system_hash"})
PREVIOUS = frozenset({"previous_answers", "previous_log_tokens", "previous_tokens"})


def given(predictor: Any, context: Context | None) -> dict[str, Context]:
    """``context`` as an argument for ``predictor.fit`` or ``.predict``, which may take none.

    One that declares ``uses``, the columns that it can use, takes it; others are asked as ever.
    """
    if context is None or getattr(predictor, "uses", None) is None:
        return {}
    return {"context": context}


def _names(values: Sequence[Any]) -> Objects:
    """Names as texts, None where one is missing."""
    made = np.empty(len(values), dtype=object)
    for row, value in enumerate(values):
        missing = value is None or value != value or value == ""
        made[row] = None if missing else str(value)
    return made


def _numbers(name: str, values: Sequence[Any]) -> Floats:
    try:
        made = np.array([np.nan if value is None else value for value in values], np.float64)
    except (TypeError, ValueError):
        raise InputError(f"context column {name!r} holds values that are not numbers") from None
    if made.ndim != 1:
        raise InputError(f"context column {name!r} must be one-dimensional, not {made.shape}")
    return made
