"""Files to raw columns: CSV, JSON, JSON Lines and Parquet, gzipped or not, and `datasets`.

Whatever is wrong with a file ends as one ``InputError`` that names it.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.reading import plain_bytes
from lengthwise.serving.workload.parquet import parquet_tables

Columns = dict[str, NDArray[Any]]  # name -> (rows,), all of one length

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
HUGGING_FACE = "hf:"
_LFS = b"version https://git-lfs"
MOST_CHARACTERS = 1 << 30  # of one field of a CSV file
# A gzip or Parquet file may become this large, or this many times as large as it is: real traces
# shrink to a tenth or a fiftieth.
EXPANDED_BYTES, EXPANSION = 1 << 26, 100
LIFT = "allow it if that is right: --max-expanded MB, max_expanded_mb="
# Columns of CSV files that are texts whatever stands in them, and those of names, which are whole
# numbers only if all of them are.
TEXTS = frozenset(
    "prompt response instruction input output model question answer text completion content".split()
)
NAMES = frozenset("tenant client_id session_id id user conversation_id prompt_id".split())


def read_columns(source: Any, max_expanded_mb: float | None = None) -> Columns:
    """The columns of a file, of ``hf:NAME[:SPLIT]``, of a `datasets` object or of a mapping.

    ``max_expanded_mb`` (10^6 bytes) is what a gzip or Parquet file may expand to; by default 64
    MiB, or 100 times its size.
    """
    if max_expanded_mb is not None and not 0 < max_expanded_mb < 1e12:
        raise InputError(f"max_expanded_mb must be above 0 and below 1e12, not {max_expanded_mb}")
    if isinstance(source, str) and source.startswith(HUGGING_FACE):
        return _from_hugging_face(source.removeprefix(HUGGING_FACE))
    if isinstance(source, str | Path):
        return _from_file(Path(source), max_expanded_mb)
    if hasattr(source, "column_names") and hasattr(source, "to_pandas"):
        return _from_dataset(source, source_name(source))
    if isinstance(source, Mapping):
        return {str(key): _array(values) for key, values in source.items()}
    raise InputError(
        f"can't read a workload from {type(source).__name__}; give a path, hf:NAME[:SPLIT], "
        "a datasets.Dataset or a mapping of columns"
    )


def source_name(source: Any) -> str:
    """What messages and tables call the source: the file's name, for a path."""
    if isinstance(source, str) and source.startswith(HUGGING_FACE):
        return source
    if isinstance(source, str | Path):
        return Path(source).name
    return type(source).__name__.lower()


def _from_file(path: Path, allowed_mb: float | None) -> Columns:
    name = path.name
    if os.path.isdir(path):
        return _from_parts(path, allowed_mb)
    suffix = Path(name.lower().removesuffix(".gz")).suffix
    if suffix not in SUFFIXES:
        raise InputError(
            f"{path}: unknown kind of file; it must end in {', '.join(SUFFIXES)} or that + .gz"
        )
    try:
        data = plain_bytes(path, "file")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file{_near(path)}") from None
    most = _most(data, allowed_mb)
    data = _plain(name, data, most)
    if not data.strip():
        raise InputError(f"{name}: the file is empty")
    if data.startswith(_LFS):
        raise InputError(f"{name}: a Git LFS pointer, not the data; run 'git lfs pull' first")
    if suffix == ".parquet":
        (table,) = parquet_tables({name: (data, max(most, _most(data, allowed_mb)))}, LIFT)
        return _of_table(name, table)
    if suffix in (".csv", ".tsv"):
        return _from_csv(name, data)
    return _from_json(name, data, lines=suffix != ".json")


def _most(data: bytes, allowed_mb: float | None) -> int:
    """Bytes that a file of this content may expand to."""
    if allowed_mb is not None:
        return int(allowed_mb * 1e6)
    return max(EXPANDED_BYTES, EXPANSION * len(data))


def _from_parts(folder: Path, allowed_mb: float | None) -> Columns:
    """The Parquet files of a folder as one table, in the order of their names."""
    import pyarrow as pa

    parts = [part for part in sorted(folder.glob("*.parquet")) if not part.name.startswith(".")]
    if not parts:
        raise InputError(f"{folder}: a folder without Parquet files; give one of its files")
    held = {f"{folder.name}/{part.name}": plain_bytes(part, "file") for part in parts}
    tables = parquet_tables({n: (data, _most(data, allowed_mb)) for n, data in held.items()}, LIFT)
    try:
        table = pa.concat_tables(tables, promote_options="default")
    except pa.ArrowException as error:
        first = str(error).splitlines()[0]
        raise InputError(f"{folder}: its Parquet files don't go together: {first}") from None
    return _of_table(str(folder), table)


def _near(path: Path) -> str:
    """ "; did you mean ...?" from the files beside the one that is missing."""
    import difflib

    if not os.path.isdir(path.parent):
        return f"; there is no folder {path.parent}"
    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""


def _plain(name: str, data: bytes, most: int) -> bytes:
    """``data`` unzipped if it is gzip, whatever the file is called; no more than ``most`` bytes."""
    if not data.startswith(b"\x1f\x8b"):
        if name.lower().endswith(".gz") and data and not data.startswith(_LFS):
            raise InputError(f"{name}: not a gzip file, though its name ends in .gz")
        return data
    try:
        with gzip.open(io.BytesIO(data)) as stream:
            plain = stream.read(most + 1)
    except EOFError:
        raise InputError(f"{name}: the gzip file is truncated; fetch it again") from None
    except (OSError, zlib.error) as error:
        raise InputError(f"{name}: the gzip file is damaged ({error}); fetch it again") from None
    if len(plain) > most:
        raise InputError(f"{name}: its {len(data)} bytes expand to more than {most}; {LIFT}")
    return plain


def _from_csv(name: str, data: bytes) -> Columns:
    """Columns by the header's names; every row must have as many fields as the header.

    The header tells what stands between fields: semicolons or tabs where it has no comma.
    A column whose cells are all numbers or empty is one of numbers, unless its name is that of a
    text; nothing else is guessed, so that "None" and "N/A" are texts.
    """
    text = _text(name, data)
    head = text.lstrip().partition("\n")[0]
    between = next((mark for mark in ",;\t" if mark in head), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=between, skipinitialspace=True)
    limit = csv.field_size_limit(MOST_CHARACTERS)
    try:
        rows = [row for row in reader if row]
    except csv.Error as error:
        raise InputError(f"{name}: not a CSV table: line {reader.line_num}: {error}") from None
    finally:
        csv.field_size_limit(limit)
    header, *rows = rows
    header = [key.strip() for key in header]
    width = len(header)
    if len(set(header)) < width:
        twice = next(key for key in header if header.count(key) > 1)
        raise InputError(f"{name}: two columns are called {twice!r}")
    if rows and all(len(row) == width + 1 and not row[-1].strip() for row in rows):
        rows = [row[:-1] for row in rows]  # a comma ends every row
    for number, row in enumerate(rows):
        if len(row) != width:
            raise InputError(
                f"{name}: not a CSV table: row {number} has {len(row)} fields for {width} columns"
            )
    cells = zip(*rows, strict=True) if rows else ((),) * width
    return {key: _cells(key, column) for key, column in zip(header, cells, strict=True)}


def _cells(key: str, cells: Sequence[str]) -> NDArray[Any]:
    """One column of a CSV file, (rows,): numbers (NaN where empty) or texts."""
    if key.lower() in TEXTS:
        return _array(list(cells))
    stripped = [cell.strip() for cell in cells]
    if not any(stripped):
        return _array(list(cells))
    kinds: tuple[tuple[Any, Any], ...] = ((int, np.int64), (_float, np.float64))
    for read, kind in kinds[:1] if key.lower() in NAMES else kinds:
        try:
            return np.fromiter(map(read, stripped), kind, len(stripped))
        except (ValueError, OverflowError):
            continue
    return _array(list(cells))


def _float(cell: str) -> float:
    return float(cell or "nan")


def _of_table(name: str, table: Any) -> Columns:
    try:
        return {key: _array(table.column(key).to_pylist()) for key in table.column_names}
    except (KeyError, ValueError, OverflowError) as error:  # bytes that are no text or no date
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{name}: not a Parquet file, or a damaged one: {first}") from None


def _from_json(name: str, data: bytes, *, lines: bool) -> Columns:
    """Objects, one a line, in a list, or one after another over many lines each, as OpenTelemetry's
    console exporter and jq print them; lines are recognised whatever the file is called.
    """
    text = _text(name, data)
    whole = None if lines else _parse(name, text, "the file", lines_too=True)
    if whole is None:
        numbered = enumerate(text.split("\n"), start=1)
        try:
            rows = [_parse(name, line, f"line {n}") for n, line in numbered if line.strip()]
        except InputError:
            rows = _spread(text)
            if not rows:
                raise
    else:
        rows = whole if isinstance(whole, list) else [whole]
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise InputError(f"{name}: row {number} is a JSON {type(row).__name__}, not an object")
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return {key: _array([row.get(key) for row in rows]) for key in keys}


def _spread(text: str) -> list[Any]:
    """JSON values that follow each other, each over several lines; none if it is anything else."""
    decoder, found, at = json.JSONDecoder(), [], 0
    text = text.strip()
    if text.partition("\n")[0].strip() not in ("{", "["):
        return []
    while at < len(text):
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return []
        found.append(value)
        while at < len(text) and text[at].isspace():
            at += 1
    return found


def _parse(name: str, text: str, where: str, *, lines_too: bool = False) -> Any:
    """A JSON value; None, with ``lines_too``, for a text of which the first line is one."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if lines_too and error.msg == "Extra data" and error.lineno > 1:
            return None
        why = f"{error.msg} (column {error.colno})"
    except RecursionError:
        why = "it is nested too deeply"
    except ValueError as error:  # a number of thousands of digits
        why = str(error).partition(";")[0]
    raise InputError(f"{name}: {where} is not JSON: {why}")


def _text(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: not UTF-8 text (byte {error.start})") from None


def _from_hugging_face(spec: str) -> Columns:
    """``NAME[:SPLIT]``: a name on the hub, or a local folder of data files or saved."""
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"hf:{spec} needs the package datasets: pip install 'lengthwise[bert]'"
        ) from None
    name, _, split = spec.partition(":")
    try:
        if (Path(name) / "dataset_info.json").exists() or (
            Path(name) / "dataset_dict.json"
        ).exists():
            loaded = datasets.load_from_disk(name)
        else:
            loaded = datasets.load_dataset(name)
    except Exception as error:  # of libraries, about names and files of anybody
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"hf:{name}: the data set can't be loaded: {first}") from None
    if isinstance(loaded, dict):  # a DatasetDict: one data set a split
        split = split or next(iter(loaded))
        if split not in loaded:
            raise UnknownNameError(f"split of hf:{name}", split, loaded)
        loaded = loaded[split]
    elif split and str(loaded.split) != split:
        raise UnknownNameError(f"split of hf:{name}", split, [str(loaded.split)])
    return _from_dataset(loaded, f"hf:{spec}")


def _from_dataset(data: Any, name: str) -> Columns:
    if isinstance(data, dict):
        raise InputError(f"{name} holds several splits ({', '.join(data)}); give one of them")
    return {key: _array(list(data[key])) for key in data.column_names}


def _array(values: Any) -> NDArray[Any]:
    """A one-dimensional array: numbers and bools as such, everything else as Python objects."""
    array = np.asarray(values) if hasattr(values, "dtype") else None
    if array is None and all(isinstance(v, int | float | bool) for v in values):
        array = np.array(values)
    if array is not None and array.dtype.kind in "biuf":
        return array
    items = list(values)
    objects = np.empty(len(items), dtype=object)
    for place, item in enumerate(items):  # one by one: numpy would unpack lists of equal length
        objects[place] = item
    return objects
