"""What an agent sees of one candidate: features, a few differences of features, and their scale.

The same shift, scale and logarithm go into the exported score
(``lengthwise.policies.learned.MLP``), so that the agent in the gym and the policy in an engine see
the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.policies.learned import MLP
from lengthwise.provider import Provider

Floats = NDArray[np.float64]
Scale = tuple[bool, float, float]

# Differences of two features: what absolute times and totals leave out. A score can hold them, as
# its first layer is linear: the subtrahend gets the same weight with the opposite sign.
DIFFERENCES: dict[str, tuple[str, str]] = {
    "waited_s": ("now_s", "arrival_s"),
    "slack_s": ("deadline_s", "now_s"),
    "remaining_tokens": ("predicted_tokens", "generated_tokens"),
}

# name -> (logarithm first, shift, scale): an agent sees (x - shift) / scale. Lengths spread over
# orders of magnitude, hence the logarithm; the constants centre common traces, roughly.
FEATURES: Provider[Scale] = Provider("an environment", {
    "predicted_tokens": (True, 5.0, 1.0),
    "expected_remaining_tokens": (True, 5.0, 1.0),
    "remaining_tokens_p90": (True, 6.0, 1.0),
    "gittins_index": (True, 5.0, 1.0),
    "prompt_tokens": (True, 6.0, 1.5),
    "generated_tokens": (True, 3.0, 2.0),
    "computed_tokens": (True, 6.0, 1.5),
    "preemptions": (True, 0.0, 1.0),
    "priority": (False, 0.0, 1.0),
    "running_requests": (False, 32.0, 32.0),
    "waiting_requests": (False, 8.0, 16.0),
    "kv_utilization": (False, 0.5, 0.25),
    "outstanding_requests": (False, 32.0, 32.0),
    "outstanding_tokens": (False, 10_000.0, 10_000.0),
    "routed_requests": (True, 4.0, 1.0),
    "oldest_request_s": (False, 5.0, 10.0),
    "prefill_backlog_tokens": (True, 6.0, 2.0),
    "decode_backlog_tokens": (False, 5_000.0, 5_000.0),
    "free_seats": (False, 32.0, 32.0),
    "max_seats": (True, 5.0, 1.0),
    "decode_tokens_per_s": (True, 8.0, 1.0),
    "random_draw": (False, 0.5, 0.3),
    "cached_tokens": (True, 4.0, 2.0),
})  # fmt: skip
SCALES: Mapping[str, Scale] = {
    **FEATURES,
    "waited_s": (False, 5.0, 10.0),
    "slack_s": (False, 0.0, 10.0),
    "remaining_tokens": (False, 200.0, 200.0),
}


@dataclass(frozen=True)
class Column:
    """One number of a candidate: ``plus`` less ``minus`` (if any), normalised."""

    name: str
    plus: str
    minus: str | None
    log: bool
    shift: float
    scale: float


@dataclass(frozen=True)
class Columns:
    """The F columns of a candidate and the features they are read from."""

    columns: tuple[Column, ...]

    @classmethod
    def of(
        cls, names: Sequence[str], scales: Mapping[str, Sequence[float]] | None = None
    ) -> Columns:
        """Columns by feature or difference name; ``scales`` maps a name to its (shift, scale).

        Raises ``UnknownNameError`` for a name that is neither, or that has no meaning on its own
        (absolute times: an agent that saw them would learn the clock).
        """
        if not names:
            raise InputError(f"an environment needs at least one feature of {', '.join(SCALES)}")
        given = dict(scales or {})
        for name in given:
            if name not in names:
                raise UnknownNameError("feature to scale", name, names)
        return cls(tuple(_column(name, given.get(name)) for name in names))

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names, (F,)."""
        return tuple(column.name for column in self.columns)

    @property
    def reads(self) -> tuple[str, ...]:
        """The features that the columns need, each once, in order of first use."""
        used = [n for c in self.columns for n in (c.plus, c.minus) if n is not None]
        return tuple(dict.fromkeys(used))

    def raw(self, values: Mapping[str, Any]) -> Floats:
        """Raw columns (n, F) from feature arrays of shape (n,)."""
        return np.stack(
            [
                np.asarray(values[c.plus] if c.minus is None else values[c.plus] - values[c.minus])
                for c in self.columns
            ],
            axis=-1,
        ).astype(np.float64)

    def normaliser(self) -> MLP:
        """A score without layers, whose ``normalise`` maps raw columns to what an agent sees."""
        return MLP(
            np.array([c.shift for c in self.columns]),
            np.array([c.scale for c in self.columns]),
            np.array([c.log for c in self.columns]),
            (),
        )

    def score(
        self, layers: Iterable[tuple[Floats, Floats]], skip: Floats | None = None
    ) -> tuple[MLP, tuple[str, ...]]:
        """The learned score over features alone, and the features it reads, from layers and a
        linear part (F,) that were trained on the normalised columns: differences are folded into
        the first layer and the linear part."""
        (weight, bias), *rest = layers
        if skip is not None:
            weight = np.concatenate([weight, skip[None]])
        names: list[str] = []
        parts: list[tuple[float, float, bool, Floats]] = []
        for i, column in enumerate(self.columns):
            names.append(column.plus)
            parts.append((column.shift, column.scale, column.log, weight[:, i]))
            if column.minus is not None:
                names.append(column.minus)
                parts.append((0.0, column.scale, False, -weight[:, i]))
        shift, scale, log, columns = zip(*parts, strict=True)
        folded = np.stack(columns, axis=1)
        if skip is not None:
            folded, skip = folded[:-1], folded[-1]
        made = ((folded, bias), *rest)
        return MLP(np.array(shift), np.array(scale), np.array(log), made, skip), tuple(names)


def _column(name: str, scale: Sequence[float] | None) -> Column:
    if name not in SCALES:
        raise UnknownNameError("feature of an environment", name, SCALES)
    plus, minus = DIFFERENCES.get(name, (name, None))
    column = Column(name, plus, minus, *SCALES[name])
    if scale is None:
        return column
    if len(scale) != 2 or not np.isfinite(scale).all() or not scale[1] > 0:
        raise InputError(f"scale of {name} must be (shift, scale > 0), not {scale!r}")
    return replace(column, shift=float(scale[0]), scale=float(scale[1]))
