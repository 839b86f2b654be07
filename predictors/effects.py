"""What context does to a length: effects of who answers and for whom, and of what came before.

The logarithm of a length is what the prompt says, plus a random intercept for each model, task,
tenant and system prompt, plus a linear part. The intercepts are shrunk towards their mean by as
much as the data ask for (empirical Bayes: Morris, JASA 1983; the mixed model's variances by EM:
Laird and Ware, Biometrics 1982), so that a name that nobody has seen, or that is missing, counts as
the mean of the others. The linear part has columns of the request as they are, and draws a length
towards the session's earlier answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lengthwise.context import Context
from lengthwise.prediction import Floats

GROUPS = ("model", "task", "tenant", "system_hash")
PLAIN = ("max_tokens", "temperature", "top_p", "tools", "json_schema")
SESSION = ("previous_answers", "previous_log_tokens", "previous_tokens")
USED = frozenset({*GROUPS, *PLAIN, *SESSION})

MOST_NAMES = 1000  # of one column that get an intercept: the most frequent
FEWEST = 2  # rows of a name that gets one
ROUNDS = 3  # of intercepts and prompts, each fitted to what the other leaves
EM_ROUNDS = 40
PENALTY = 3.0  # of the linear part, in rows
FAR = 3.0  # standard deviations: no row counts as farther out


@dataclass(frozen=True)
class Effects:
    """Fitted effects, all in the logarithm of tokens."""

    intercepts: Mapping[str, Mapping[str, float]]  # by column, by name
    columns: tuple[str, ...] = ()  # of the linear part
    shift: Floats = field(default_factory=lambda: np.zeros(0))  # (columns,)
    scale: Floats = field(default_factory=lambda: np.zeros(0))
    weights: Floats = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def fit(
        cls,
        logs: Floats,
        context: Context,
        unseen: Callable[[Floats], Floats],
        weights: Floats,
    ) -> Self:
        """Intercepts for log lengths (n,); ``unseen(labels)`` is what prompts say of labels (n,),
        by a model that did not see the row. ``weights`` (n,) are those of the rows.
        """
        codes = {}
        for name in GROUPS:
            column = getattr(context, name)
            if column is not None and len(kept := _frequent(column)) > 1:
                codes[name] = kept
        intercepts: dict[str, dict[str, float]] = {name: {} for name in codes}
        shifts = np.zeros_like(logs)
        for _ in range(ROUNDS if codes else 0):
            left = logs - unseen(logs - shifts)
            found = _intercepts(left, context, codes, weights)
            intercepts = {
                name: dict(zip(codes[name], values.tolist(), strict=True))
                for name, values in found.items()
            }
            shifts = cls(intercepts).of_names(context, len(logs))
        return cls(intercepts)

    def with_line(self, logs: Floats, said: Floats, context: Context, weights: Floats) -> Effects:
        """And the linear part, fitted to log lengths (n,) of which prompts and names said ``said``,
        for rows that were not seen.
        """
        columns = _line(context, said)
        varies = _varying(columns)
        if not varies:
            return self
        table = np.stack(list(varies.values()), axis=1)
        shift: Floats = np.nanmean(table, axis=0)
        scale: Floats = np.nanstd(table, axis=0)
        nothing: Floats = np.zeros(len(varies))
        made = Effects(self.intercepts, tuple(varies), shift, scale, nothing)
        x = made._standard(columns)
        heavy = x * weights[:, None]
        left = logs - said
        left = left - np.average(left, weights=weights)
        solved = np.linalg.solve(heavy.T @ x + PENALTY * np.eye(x.shape[1]), heavy.T @ left)
        return Effects(self.intercepts, tuple(varies), shift, scale, np.asarray(solved, np.float64))

    def of_names(self, context: Context | None, rows: int) -> Floats:
        """The sum of each row's intercepts, (rows,)."""
        total = np.zeros(rows)
        for name, known in self.intercepts.items():
            column = None if context is None else getattr(context, name)
            if column is not None:
                total += np.array([known.get(value, 0.0) for value in column])
        return total

    def of_line(self, context: Context | None, said: Floats) -> Floats:
        """The linear part for rows of which prompts and names say ``said`` (n,) log tokens."""
        if context is None or not self.columns:
            return np.zeros_like(said)
        # one sum a row, so that its numbers do not depend on its company
        return np.asarray((self._standard(_line(context, said)) * self.weights).sum(axis=1))

    @property
    def uses(self) -> frozenset[str]:
        """The columns of context that make a difference."""
        line = {_BEHIND.get(name, name) for name in self.columns}
        session = frozenset(SESSION) if "session" in line else frozenset()
        return frozenset(self.intercepts) | (line - {"session"}) | session

    def _standard(self, columns: Mapping[str, Floats]) -> Floats:
        """The line's columns (n, columns), standardised; what is not known counts as the mean."""
        rows = len(next(iter(columns.values()))) if columns else 0
        missing = np.full(rows, np.nan)
        table = np.stack([columns.get(name, missing) for name in self.columns], axis=1)
        return np.nan_to_num(np.clip((table - self.shift) / self.scale, -FAR, FAR), nan=0.0)

    def state(self) -> dict[str, Any]:
        """What JSON holds of it."""
        return {
            "intercepts": {name: dict(known) for name, known in self.intercepts.items()},
            "columns": list(self.columns),
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Its numbers by name."""
        return {"shift": self.shift, "scale": self.scale, "weights": self.weights}

    @classmethod
    def restored(cls, state: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Self:
        """What ``state`` and ``arrays`` gave; ValueError where they are none of ours."""
        intercepts = {
            str(name): {str(key): float(value) for key, value in known.items()}
            for name, known in state["intercepts"].items()
        }
        columns = tuple(str(name) for name in state["columns"])
        numbers = [np.asarray(arrays[name], dtype=np.float64) for name in cls({}).arrays()]
        flat = [value for known in intercepts.values() for value in known.values()]
        sound = (
            set(intercepts) <= set(GROUPS)
            and set(columns) <= LINE
            and all(values.shape == (len(columns),) for values in numbers)
            and all(np.isfinite(values).all() for values in (*numbers, np.array(flat)))
            and (numbers[1] > 0).all()
        )
        if not sound:
            raise ValueError("the effects of context are malformed")
        return cls(intercepts, columns, *numbers)


_BEHIND = {
    "has_previous": "session", "log_answers": "session", "from_mean": "session",
    "from_last": "session",
}  # fmt: skip
LINE = frozenset({*PLAIN, *_BEHIND})


def _line(context: Context, said: Floats) -> dict[str, Floats]:
    """The columns of the linear part that the context holds."""
    found: dict[str, Floats] = {}
    for name in PLAIN:
        column = context.limits() if name == "max_tokens" else getattr(context, name)
        if column is not None:
            values = np.where(np.isfinite(column), column, np.nan)
            found[name] = np.log(values) if name == "max_tokens" else values
    count = context.previous_answers
    if count is not None:
        known = np.nan_to_num(count, nan=0.0)
        found["has_previous"] = np.where(np.isfinite(count), known > 0, np.nan)
        found["log_answers"] = np.log1p(np.where(np.isfinite(count), known, np.nan))
        # the fewer answers, the less their mean tells
        mean, last = context.previous_log_tokens, context.previous_tokens
        if mean is not None:
            apart = np.nan_to_num(mean - said, nan=0.0)
            found["from_mean"] = np.where(known > 0, apart * known / (known + 1), 0.0)
        if last is not None:
            apart = np.nan_to_num(np.log(np.maximum(last, 1.0)) - said, nan=0.0)
            found["from_last"] = np.where(known > 0, apart, 0.0)
    return found


def tells_apart(context: Context) -> bool:
    """Whether any column of the context differs from row to row, so that there is what to learn."""
    columns = (getattr(context, name) for name in GROUPS)
    if any(column is not None and len(_frequent(column)) > 1 for column in columns):
        return True
    return bool(_varying(_line(context, np.zeros(len(context)))))


def _varying(columns: Mapping[str, Floats]) -> dict[str, Floats]:
    """The columns that hold more than one value."""
    return {
        name: values
        for name, values in columns.items()
        if len(np.unique(values[np.isfinite(values)])) > 1
    }


def _frequent(column: NDArray[Any]) -> dict[str, int]:
    """A number for each name that is frequent enough."""
    counted = Counter(value for value in column if value is not None)
    names = sorted(counted, key=lambda name: (-counted[name], name))[:MOST_NAMES]
    return {name: k for k, name in enumerate(n for n in names if counted[n] >= FEWEST)}


def _intercepts(
    left: Floats, context: Context, codes: Mapping[str, Mapping[str, int]], weights: Floats
) -> dict[str, Floats]:
    """Random intercepts of the names in ``codes``, for what is left (n,) of log lengths."""
    from scipy.sparse import csr_array, hstack

    n, parts, sizes = len(left), [], []
    for name, known in codes.items():
        at = np.array([known.get(value, -1) for value in getattr(context, name)])
        rows = np.flatnonzero(at >= 0)
        ones = np.ones(len(rows))
        parts.append(csr_array((ones, (rows, at[rows])), shape=(n, len(known))))
        sizes.append(len(known))
    z: Any = csr_array(hstack([*parts, csr_array(np.ones((n, 1)))]))
    heavy: Any = csr_array(z * weights[:, None])
    square, right = np.asarray((z.T @ heavy).toarray()), np.asarray(heavy.T @ left)
    total = float((weights * left * left).sum())
    bounds = np.cumsum([0, *sizes])
    noise = max(float(np.average(left * left, weights=weights)), 1e-6)
    spread = np.full(len(sizes), noise / 4)
    solved = np.zeros(len(right))
    for _ in range(EM_ROUNDS):
        penalty = np.concatenate((np.repeat(1 / spread, sizes), [1e-9]))
        inverse = np.linalg.inv(square / noise + np.diag(penalty))
        solved = inverse @ right / noise
        sums = total - 2 * solved @ right + solved @ square @ solved
        uncertain = np.diag(inverse)
        new = [float((solved[a:b] ** 2 + uncertain[a:b]).mean()) for a, b in pairwise(bounds)]
        before, spread = spread, np.maximum(new, 1e-6)
        noise = max(float((sums + (square * inverse).sum()) / n), 1e-6)
        if np.allclose(before, spread, rtol=1e-3):
            break
    return {
        name: solved[a:b] for name, (a, b) in zip(codes, pairwise(bounds), strict=True)
    }  # the last is the mean of all, which prompts have
