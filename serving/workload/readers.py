"""Traces and prompt files as workloads, whatever the layout."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.context import Context
from lengthwise.errors import InputError, UnknownNameError
from lengthwise.served_text import asked_texts
from lengthwise.serving.workload.files import Columns, read_columns, source_name
from lengthwise.serving.workload.layout import ROW, UNITS_S, Layout, Options
from lengthwise.serving.workload.layouts import LAYOUTS, NATIVE
from lengthwise.serving.workload.logs import BY_NAME, nearest
from lengthwise.serving.workload.split import in_split
from lengthwise.serving.workload.table import Table
from lengthwise.serving.workload.tokens import estimate_tokens
from lengthwise.workload import OPTIONAL, REQUIRED, Workload, check_column


@dataclass(frozen=True)
class Prompts:
    """Prompts with the lengths of their answers, for training: n rows, columns of shape (n,)."""

    prompt: NDArray[Any]  # str
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    censored: NDArray[np.bool_]  # answers cut off at a limit: the true length is longer
    model: NDArray[Any] | None = None  # str: who answered
    name: str = "prompts"
    notices: tuple[str, ...] = ()
    context: Context | None = None  # of the same rows

    def __len__(self) -> int:
        return len(self.prompt)

    def select(self, index: Any) -> Prompts:
        """Some of the rows, by numpy index or mask."""
        return Prompts(
            self.prompt[index], self.prompt_tokens[index], self.output_tokens[index],
            self.censored[index], None if self.model is None else self.model[index],
            self.name, self.notices, None if self.context is None else self.context.select(index),
        )  # fmt: skip

    def split(self, split: str, test_share: float = 0.5) -> Prompts:
        """The "train" or "test" rows, by a hash of the prompt (see ``split_of``)."""
        return self.select(in_split(self.prompt, split, test_share))


def read(path: Any, **options: Any) -> Workload:
    """A trace as a workload; the options are those of ``read_table``.

    Raises ``InputError``, one line, for whatever is wrong with the file or its values.
    """
    return read_table(path, **options).workload()


def read_prompts(path: Any, **options: Any) -> Prompts:
    """Prompts and answer lengths, for training; the options are those of ``read_table``.

    Of a prompt that is a chat only what was asked, as everywhere (``served_text``).
    """
    table = read_table(path, **options)
    if "prompt" not in table.columns:
        raise InputError(f"{table.name}: has no prompt texts; a predictor is trained on texts")
    return Prompts(
        prompt=np.fromiter(asked_texts(table.columns), dtype=object, count=len(table)),
        prompt_tokens=table.columns["prompt_tokens"],
        output_tokens=table.columns["output_tokens"],
        censored=_truths(table),
        model=table.columns.get("model"),
        name=table.name,
        notices=table.notices,
        context=Context.of(table.columns),
    )


def _truths(table: Table) -> NDArray[np.bool_]:
    """The column ``censored`` (n,), from bools, numbers or words."""
    values = table.columns.get("censored", np.zeros(len(table), dtype=bool))
    if values.dtype.kind in "biuf":  # NaN is an empty cell
        odd = np.flatnonzero((values != 0) & (values != 1) & (values == values))
        if len(odd):
            row = odd[0]
            raise InputError(
                f"{table.name}: row {row}: censored is {values[row]}; it must be true or false"
            )
        return np.asarray(values == 1)
    words = [str(value).strip().lower() for value in values]
    for row, word in enumerate(words):
        if word not in TRUE | FALSE:
            raise InputError(
                f"{table.name}: row {row}: censored is {values[row]!r}; it must be true or false"
            )
    return np.array([word in TRUE for word in words])


TRUE = frozenset(("true", "1", "1.0", "yes"))
FALSE = frozenset(("false", "0", "0.0", "no", "", "none"))


def read_table(
    path: Any,
    *,
    layout: str = "auto",
    model: str | None = None,
    limit: int | None = None,
    drop_zero: bool = False,
    columns: Mapping[str, str] | None = None,
    prompts: Any = None,
    turns: str = "first",
    closed_loop: bool = False,
    time_unit: str = "",
    max_expanded_mb: float | None = None,
) -> Table:
    """Reads a file, ``hf:NAME[:SPLIT]`` or a ``datasets.Dataset``.

    layout       one of ``LAYOUTS``; "auto" finds it from the columns
    model        only the rows of this model, where the file has several
    limit        only the first ``limit`` rows of what the other options leave
    drop_zero    drops requests without output, which are an error otherwise
    columns      the file's own names, e.g. {"prompt": "question", "response": "answer"}
    prompts      a second source with ``prompt_id`` and ``prompt``, joined by ``prompt_id``
    turns        of conversations: "first" or "all"
    closed_loop  sessions with a clock: each request waits for the one before it instead
    time_unit    of numeric times: s, ms, us or ns; by default the layout's own
    max_expanded_mb  what a gzip or Parquet file may expand to (see ``read_columns``)
    """
    if turns not in ("first", "all"):
        raise UnknownNameError("value of turns", turns, ("first", "all"))
    if time_unit not in ("", *UNITS_S):
        raise UnknownNameError("time unit", time_unit, UNITS_S)
    if limit is not None and limit < 1:
        raise InputError(f"limit must be 1 or more, not {limit}")
    name = source_name(path)
    raw = _renamed(name, read_columns(path, max_expanded_mb), columns or {})
    if prompts is not None:
        raw = _with_prompts(name, raw, prompts, max_expanded_mb)
    found = _layout(name, raw, layout)
    options = Options(turns, closed_loop, time_unit)
    requests = found.read(raw, name, options)
    rows = requests.pop(ROW, None)
    table = Table(
        name,
        requests,
        (*options.notices, *(_ignored(name, raw) if found.name == "native" else ())),
        found.session_clock and not closed_loop,
    )
    table, rows = _of_model(table, model, np.arange(len(table)) if rows is None else rows)
    if limit is not None and not drop_zero:
        table, rows = table.select(slice(limit)), rows[:limit]
    table = _with_tokens(table, rows)
    table, rows = _with_output(table, rows, drop_zero)
    table, rows = table.select(slice(limit)), rows[:limit]
    if len(table) == 0:
        raise InputError(f"{name}: no requests; a workload needs at least one")
    checked = {
        key: values if key == "censored" else check_column(name, key, values, rows)
        for key, values in table.columns.items()
    }
    return replace(table, columns=checked)


def _renamed(name: str, raw: Columns, names: Mapping[str, str]) -> Columns:
    for ours, theirs in names.items():
        if ours not in NATIVE:
            raise UnknownNameError("workload column", ours, NATIVE)
        if theirs not in raw:
            raise UnknownNameError(f"column of {name}", theirs, raw)
    kept = {key: values for key, values in raw.items() if key not in names.values()}
    return kept | {ours: raw[theirs] for ours, theirs in names.items()}


def _with_prompts(name: str, raw: Columns, prompts: Any, max_expanded_mb: float | None) -> Columns:
    other, called = read_columns(prompts, max_expanded_mb), source_name(prompts)
    for column, held, where in (
        ("prompt_id", raw, name), ("prompt_id", other, called), ("prompt", other, called),
    ):  # fmt: skip
        if column not in held:
            raise InputError(f"{where}: no column {column!r}, which joins {name} and {called}")
    place = {key: row for row, key in enumerate(other["prompt_id"])}
    missing = [row for row, key in enumerate(raw["prompt_id"]) if key not in place]
    if missing:
        row = missing[0]
        raise InputError(f"{name}: row {row}: {called} has no prompt {raw['prompt_id'][row]!r}")
    rows = np.array([place[key] for key in raw["prompt_id"]], dtype=np.int64)
    taken = [key for key in ("prompt", "prompt_tokens") if key in other and key not in raw]
    return {**raw, **{key: other[key][rows] for key in taken}}


def _layout(name: str, raw: Columns, layout: str) -> Layout:
    if layout != "auto":
        if layout not in LAYOUTS:
            raise UnknownNameError("layout", layout, ("auto", *LAYOUTS))
        if not LAYOUTS[layout].fits(raw):
            raise InputError(
                f"{name}: the layout needs {LAYOUTS[layout].described}; the file has "
                f"{', '.join(raw) or 'no columns'}"
            )
        return LAYOUTS[layout]
    for candidate in LAYOUTS.values():
        if candidate.fits(raw):
            return candidate
    raise InputError(_no_layout(name, raw))


def _no_layout(name: str, raw: Columns) -> str:
    """Which columns the layout that comes nearest still needs, and what may stand for them."""

    def share(layout: Layout) -> float:
        held = sum(any(column in raw for column in names) for names in layout.needs)
        return held / len(layout.needs)

    others = [layout for layout in LAYOUTS.values() if layout is not BY_NAME]
    best = max(reversed(others), key=share)  # native, the last, wins ties
    missing = [names for names in best.needs if not any(column in raw for column in names)]
    known = {column for layout in LAYOUTS.values() for names in layout.needs for column in names}
    near = [
        f"{column!r} is near {close[0]!r}"
        for column in raw
        if column not in known
        and not column.lower().startswith("total")
        and (close := difflib.get_close_matches(column, sum(missing, ()), n=1, cutoff=0.6))
    ]
    hint = nearest(raw)
    likely = [f"{ours}={theirs}" for ours, theirs in hint.items() if ours != theirs]
    unknown = [ours for ours in LENGTHS if ours not in hint]
    said = ""
    if len(unknown) == 1:  # the other and the layout are known: this alone is to be had
        said = f"nothing says {LENGTHS[unknown[0]]}: "
        likely.append(f"{unknown[0]}=NAME")
    return (
        f"{name}: {said}no column {' and '.join(' or '.join(names) for names in missing)}"
        + (f" ({'; '.join(near)})" if near else "")
        + f", which the layout {best.name} needs; it has {', '.join(raw) or 'no columns'}"
        + ("; texts are joined by prompt_id with prompts=FILE" if "prompt_id" in raw else "")
        + (f"; nearest: --columns {','.join(likely)}" if likely else "; --columns renames columns")
        + f" (layouts: {', '.join(LAYOUTS)})"
    )


LENGTHS = {
    "prompt_tokens": "how many tokens its prompts have",
    "output_tokens": "how many tokens its answers have",
}


def _ignored(name: str, raw: Columns) -> tuple[str, ...]:
    """A notice of the columns that the native layout doesn't know, near misses spelled out."""
    unknown = [column for column in raw if column not in NATIVE]
    if not unknown:
        return ()
    listed = []
    for column in unknown:
        near = difflib.get_close_matches(column, (*REQUIRED, *OPTIONAL), n=1, cutoff=0.8)
        hint = near and near[0] not in raw
        listed.append(f"{column} (did you mean {near[0]}?)" if hint else column)
    return (f"{name}: ignored columns {', '.join(listed)}",)


def _of_model(
    table: Table, model: str | None, rows: NDArray[np.int64]
) -> tuple[Table, NDArray[np.int64]]:
    """The requests of one model, and their rows; a notice if several models stay together."""
    if model is not None and "model" not in table.columns:
        raise InputError(f"{table.name}: has no model column, so no model {model!r} to pick")
    if "model" not in table.columns:
        return table, rows
    called = np.array([str(value) for value in table.columns["model"]], dtype=object)
    names = sorted(set(called))
    if model is not None:
        if model not in names:
            raise UnknownNameError(f"model in {table.name}", model, names)
        chosen = called == model
        return table.select(chosen), rows[chosen]
    if "prompt" in table.columns and len(names) > 1:
        notice = models_together(table.name, names)
        return replace(table, notices=(*table.notices, notice)), rows
    return table, rows


def models_together(name: str, models: Sequence[str]) -> str:
    """The notice that a file's answers are of several ``models``, in the order of their names."""
    listed = ", ".join(models[:5]) + (", ..." if len(models) > 5 else "")
    return f"{name}: answers of {len(models)} models together ({listed})"


def _with_tokens(table: Table, rows: NDArray[np.int64]) -> Table:
    """Token counts from the texts where the file has none; ``response`` is dropped."""
    columns, estimated = dict(table.columns), []
    for text, count in (("prompt", "prompt_tokens"), ("response", "output_tokens")):
        if text not in columns:
            continue
        if text == "response":  # none at all is an empty one
            columns[text] = np.array([_told(value) for value in columns[text]], dtype=object)
        for row, value in zip(rows, columns[text], strict=True):
            if not isinstance(value, str):
                raise InputError(f"{table.name}: row {row}: {text} is {value!r}, not a text")
        if count not in columns:
            columns[count] = np.where(columns[text] == "", 0, estimate_tokens(columns[text]))
            estimated.append(count)
    columns.pop("response", None)
    notices = table.notices
    if estimated:
        notices += (f"{table.name}: {' and '.join(estimated)} estimated from the texts",)
    return replace(table, columns=columns, notices=notices)


def _told(value: Any) -> Any:
    """An answer, which is empty where there is none."""
    return "" if value is None or (isinstance(value, float) and np.isnan(value)) else value


def _with_output(
    table: Table, rows: NDArray[np.int64], drop_zero: bool
) -> tuple[Table, NDArray[np.int64]]:
    """Only requests with output; those without are an error unless they may be dropped."""
    empty = _numbers(table.columns["output_tokens"]) == 0
    if not empty.any():
        return table, rows
    if not drop_zero:
        more = f" (and {empty.sum() - 1} more rows)" if empty.sum() > 1 else ""
        raise InputError(
            f"{table.name}: row {rows[empty][0]}: output_tokens is 0; it must be 1 or more{more}; "
            "drop such rows with drop_zero=True (--drop-zero-output)"
        )
    notice = f"{table.name}: dropped {empty.sum()} requests without output"
    kept = replace(table, notices=(*table.notices, notice))
    return kept.select(~empty), rows[~empty]


def _numbers(values: NDArray[Any]) -> NDArray[np.float64]:
    """Numbers where there are some, NaN elsewhere: what isn't a number is reported later."""
    if values.dtype.kind in "biuf":
        return values.astype(np.float64)
    far = float(np.finfo(np.float64).max)
    told = (v if isinstance(v, int | float) and abs(v) <= far else np.nan for v in values)
    return np.fromiter(told, dtype=np.float64, count=len(values))
