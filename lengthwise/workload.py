"""A workload: requests as columns, checked once, read-only afterwards."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.context import MOST_TOKENS as MOST_TOKENS
from lengthwise.errors import InputError, UnknownNameError
from lengthwise.registry import loader

if TYPE_CHECKING:
    import pandas as pd

REQUIRED = ("arrival_s", "prompt_tokens", "output_tokens")
# name -> numpy dtype; "object" columns hold one Python value a request
OPTIONAL: dict[str, str] = {
    "prompt": "object",
    "asked": "object",  # of a prompt that is a chat, what predictors read (``served_text``)
    "session_id": "object",
    "tenant": "object",
    "tenant_weight": "float64",  # of the request's tenant, the same in all its requests
    "prefix_hashes": "object",  # tuple of ints: one hash a full block of the prompt's prefix
    "hash_block_tokens": "int64",  # tokens that one entry of prefix_hashes stands for
    "deadline_s": "float64",
    "priority": "int64",
    "model": "object",
    "task": "object",  # the application's own name of what is asked
    "system_hash": "object",  # of the system prompt
    "temperature": "float64",  # NaN where the client named none, as in the next three
    "top_p": "float64",
    "tools": "float64",  # 1 where the client offers tools, else 0
    "json_schema": "float64",  # 1 where the answer must follow a schema, else 0
    "max_tokens": "int64",  # the client's limit of the answer, MOST_TOKENS where it named none
    "parent": "int64",  # index of the request that must finish first, -1 for none (closed loop)
    "think_s": "float64",  # time from the parent's finish to this request's arrival
}

TOKENS = ("prompt_tokens", "output_tokens", "hash_block_tokens", "max_tokens")
MAY_LACK = ("temperature", "top_p", "tools", "json_schema")  # in some rows
MOST = 2**62


class Workload:
    """Requests in arrival order, as numpy columns of one length.

    ``arrival_s`` (float64, s), ``prompt_tokens`` and ``output_tokens`` (int64, 1 or more) are
    always there; ``OPTIONAL`` lists the others. Rows that arrive out of order are sorted, with a
    notice in ``notices``. A request's id is its row. Errors are ``InputError`` with the row.

    A closed-loop request (``parent`` >= 0) arrives ``think_s`` after its parent finishes; its
    ``arrival_s`` is then only the earliest time it may arrive.
    """

    def __init__(
        self, columns: Mapping[str, Any], *, name: str = "workload", notices: Iterable[str] = ()
    ) -> None:
        for column in columns:
            if column not in REQUIRED and column not in OPTIONAL:
                raise UnknownNameError("workload column", column, (*REQUIRED, *OPTIONAL))
        for column in REQUIRED:
            if column not in columns:
                raise InputError(
                    f"{name}: no column {column!r}; it has {', '.join(columns) or 'no columns'} "
                    f"and needs {', '.join(REQUIRED)}"
                )
        self.name = name
        self.notices = tuple(notices)
        data = {key: check_column(name, key, values) for key, values in columns.items()}
        rows = len(data["arrival_s"])
        for key, values in data.items():
            if len(values) != rows:
                raise InputError(f"{name}: column {key!r} has {len(values)} rows, not {rows}")
        if rows == 0:
            raise InputError(f"{name}: the workload is empty; it needs at least one request")
        arrival = data["arrival_s"]
        if (np.diff(arrival) < 0).any():
            order = np.argsort(arrival, kind="stable")
            data = {key: values[order] for key, values in data.items()}
            if "parent" in data:
                place = np.empty(rows, dtype=np.int64)
                place[order] = np.arange(rows)
                parent = data["parent"]
                data["parent"] = np.where(parent >= 0, place[parent], -1)
            self.notices += (f"{name}: arrivals were not in order; sorted by arrival_s",)
        if "max_tokens" in data:
            over = np.flatnonzero(data["output_tokens"] > data["max_tokens"])
            if len(over):
                raise InputError(
                    f"{name}: row {over[0]}: output_tokens is {data['output_tokens'][over[0]]}, "
                    f"beyond its max_tokens, {data['max_tokens'][over[0]]}"
                )
        if "parent" in data:
            parent = data["parent"]
            bad = np.flatnonzero((parent >= np.arange(rows)) | (parent < -1))
            if len(bad):
                raise InputError(
                    f"{name}: row {bad[0]}: parent must be an earlier request, or -1 for none"
                )
        if "tenant_weight" in data:
            _check_weights(name, data)
        for values in data.values():
            values.flags.writeable = False
        self.columns: dict[str, NDArray[Any]] = data

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, *, name: str = "frame") -> Workload:
        """A workload from a DataFrame; columns that lengthwise doesn't know are errors."""
        return cls({str(key): frame[key].to_numpy() for key in frame.columns}, name=name)

    @classmethod
    def read(cls, path: str, **options: Any) -> Workload:
        """Reads a trace file; ``options`` are those of ``lengthwise.serving.workload.read``."""
        return loader("workload file")(path, **options)  # type: ignore[no-any-return]

    @classmethod
    def preset(
        cls, name: str, *, requests: int = 1000, rate: float | None = None, seed: int = 0
    ) -> Workload:
        """A synthetic workload fitted to published statistics; ``rate`` in requests/s."""
        make = loader("workload preset")
        return make(name, requests=requests, rate=rate, seed=seed)  # type: ignore[no-any-return]

    def __len__(self) -> int:
        return len(self.columns["arrival_s"])

    def __getitem__(self, column: str) -> NDArray[Any]:
        try:
            return self.columns[column]
        except KeyError:
            raise UnknownNameError(f"column of {self.name}", column, self.columns) from None

    def __contains__(self, column: str) -> bool:
        return column in self.columns

    def __repr__(self) -> str:
        return f"<Workload {self.name!r}: {len(self)} requests, {self.rate:.3g} requests/s>"

    @property
    def rate(self) -> float:
        """Mean arrival rate, requests/s; infinite when all arrive at once."""
        span = float(self["arrival_s"][-1] - self["arrival_s"][0])
        return (len(self) - 1) / span if span > 0 else float("inf")

    def replace(self, *, name: str | None = None, **columns: Any) -> Workload:
        """The same workload with columns replaced or added; None drops an optional column."""
        merged = {k: v for k, v in {**self.columns, **columns}.items() if v is not None}
        return Workload(merged, name=name or self.name, notices=self.notices)

    def at_rate(self, rate: float) -> Workload:
        """Arrival times (deadlines with them) stretched to a mean of ``rate`` requests/s."""
        if not 0 < rate <= sys.float_info.max:
            raise InputError(f"rate must be a positive number of requests/s, not {rate!r}")
        if len(self) == 1:
            return self
        if not np.isfinite(self.rate):
            raise InputError(f"{self.name}: all requests arrive at once; it has no rate to change")
        start, stretch = self["arrival_s"][0], self.rate / rate
        changed = {"arrival_s": (self["arrival_s"] - start) * stretch}
        if "deadline_s" in self:
            changed["deadline_s"] = changed["arrival_s"] + self["deadline_s"] - self["arrival_s"]
        return self.replace(**changed)

    def select(self, index: Any) -> Workload:
        """Some of the requests, by numpy index or mask; arrivals keep their times."""
        if "parent" in self:
            raise InputError(f"{self.name}: a closed-loop workload can't be cut into parts")
        return Workload(
            {key: values[index] for key, values in self.columns.items()},
            name=self.name, notices=self.notices,
        )  # fmt: skip

    def window(self, first: int, end: int) -> Workload:
        """Requests ``first`` to ``end`` - 1, with times from the arrival of the first of them."""
        cut = self.select(slice(first, end))
        start = cut["arrival_s"][0]
        times = {name: cut[name] - start for name in ("arrival_s", "deadline_s") if name in cut}
        return cut.replace(**times)

    def head(self, requests: int) -> Workload:
        """The first ``requests`` requests (parents come first, so a closed loop may be cut so)."""
        return Workload(
            {key: values[:requests] for key, values in self.columns.items()},
            name=self.name, notices=self.notices,
        )  # fmt: skip

    def to_frame(self) -> pd.DataFrame:
        """The columns as a DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.columns)


def _is_kept(values: NDArray[Any]) -> bool:
    """Whether an array is an object column as workloads hold them: its own, and read-only."""
    kept = values.base is None and not values.flags.writeable
    return kept and values.dtype == object and values.ndim == 1


def _check_weights(name: str, data: Mapping[str, NDArray[Any]]) -> None:
    """Raises ``InputError`` for weights of nobody, that are not positive or differ in a tenant."""
    if "tenant" not in data:
        raise InputError(f"{name}: tenant_weight is of a tenant, and there is no column 'tenant'")
    weight, first = data["tenant_weight"], dict[str, int]()
    for row, tenant in enumerate(map(str, data["tenant"].tolist())):
        if not 0 < weight[row] < np.inf:
            raise InputError(
                f"{name}: row {row}: tenant_weight is {weight[row]:g}; it must be above 0"
            )
        if weight[row] != weight[first.setdefault(tenant, row)]:
            raise InputError(
                f"{name}: row {row}: tenant_weight is {weight[row]:g}, and "
                f"{weight[first[tenant]]:g} in row {first[tenant]} of the same tenant"
            )


def check_column(
    name: str, key: str, values: Any, rows: NDArray[np.int64] | None = None
) -> NDArray[Any]:
    """One column in its dtype, or an ``InputError`` for the first value that it may not hold.

    ``rows`` are the numbers by which errors call the rows, where they are not 0, 1, 2 ...
    """
    dtype = "float64" if key == "arrival_s" else OPTIONAL.get(key, "int64")
    at = np.arange(len(values)) if rows is None else rows
    if key == "tenant":
        strange = next((row for row, value in enumerate(values) if not _is_name(value)), None)
        if strange is not None:
            raise InputError(
                f"{name}: row {at[strange]}: tenant is {str(values[strange])[:60]}; it must be a "
                "name or a number"
            )
    if dtype == "object":
        if isinstance(values, np.ndarray) and _is_kept(values):
            return values  # of another workload: nobody can change it
        # one by one: numpy would unpack tuples of equal length into a matrix
        return np.fromiter(values, dtype=object, count=len(values))
    try:
        numbers = np.array(values, dtype=np.float64)
    except OverflowError:
        far = next(i for i, one in enumerate(values) if isinstance(one, int) and abs(one) > MOST)
        raise InputError(f"{name}: row {at[far]}: {key} is beyond {MOST}") from None
    except (TypeError, ValueError):
        place = next((i for i, value in enumerate(values) if not _is_number(value)), None)
        where = f"row {at[place]}: {key} is {values[place]!r}" if place is not None else key
        raise InputError(f"{name}: {where}; it must be a number") from None
    if numbers.ndim != 1:
        raise InputError(f"{name}: column {key!r} must be one-dimensional, not {numbers.shape}")
    if key in MAY_LACK:
        _reject(name, key, np.isinf(numbers) | (numbers < 0), numbers, at, "0 or more, or NaN")
        return numbers
    if key == "deadline_s":  # infinite of who has none
        _reject(name, key, ~(numbers > -np.inf), numbers, at, "a number, or inf for none")
        return numbers
    _reject(name, key, ~np.isfinite(numbers), numbers, at, "a finite number")
    if key in TOKENS:
        _reject(name, key, numbers < 1, numbers, at, "1 or more")
    elif key in ("arrival_s", "think_s"):
        _reject(name, key, numbers < 0, numbers, at, "0 or more")
    if dtype != "int64":
        return numbers
    _reject(name, key, numbers != np.floor(numbers), numbers, at, "a whole number")
    most = MOST_TOKENS if key in TOKENS else MOST
    _reject(name, key, np.abs(numbers) > most, numbers, at, f"{most} or less")
    # whole numbers beyond 2**53 have no float of their own
    given = np.asarray(values)
    return given.astype(np.int64) if given.dtype.kind in "iu" else _exact(values, numbers)


def _exact(values: Any, numbers: NDArray[np.float64]) -> NDArray[np.int64]:
    """Whole numbers of mixed Python types, ints among them to the last digit."""
    if (np.abs(numbers) < 2**53).all():
        return numbers.astype(np.int64)
    return np.array([int(value) for value in values], dtype=np.int64)


def _is_name(value: Any) -> bool:
    return not isinstance(value, list | dict | set | np.ndarray)


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _reject(
    name: str, key: str, bad: NDArray[np.bool_], values: Any, at: NDArray[np.int64], allowed: str
) -> None:
    places = np.flatnonzero(bad)
    if len(places):
        more = f" (and {len(places) - 1} more rows)" if len(places) > 1 else ""
        raise InputError(
            f"{name}: row {at[places[0]]}: {key} is {values[places[0]]:g}; "
            f"it must be {allowed}{more}"
        )
