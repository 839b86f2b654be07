"""Lists that a user wrote to a YAML, JSON or CSV file."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.reading import read_described

YAML = (".yaml", ".yml")
SUFFIXES = (*YAML, ".json", ".csv")


def read_list(path: Path, what: str) -> list[Any]:
    """The list in a file, by itself or under the key ``what``; a CSV's rows, without empty cells.

    Raises ``InputError`` for a file that can't be read or holds no list.
    """
    return read_with(path, what)[0]


def read_yaml(path: Path, what: str, parse: Callable[[str], Any] = yaml.safe_load) -> Any:
    """The YAML in a file, or what ``parse`` makes of its text; ``InputError`` where it can't."""
    try:
        return read_described(path, what, parse)
    except yaml.YAMLError as error:
        said = " ".join(str(error).split())
        raise InputError(f"{what} {str(path)!r} can't be read: {said}") from None


def read_with(path: Path, what: str, *beside: str) -> tuple[list[Any], dict[str, Any]]:
    """The same, and what stands under the keys ``beside`` where the list stands under a key."""
    parse = {".json": json.loads, ".csv": _rows}.get(path.suffix, yaml.safe_load)
    found = read_yaml(path, f"{what} file", parse)
    more: dict[str, Any] = {}
    if isinstance(found, Mapping):
        for key in found:
            if key not in (what, *beside):
                raise UnknownNameError(f"key of {path}", str(key), (what, *beside))
        more = {key: found[key] for key in beside if key in found}
        found = found.get(what)
    if not isinstance(found, list):
        raise InputError(f"{path}: expected a list of {what}, not {found!r}"[:200])
    return found, more


def _rows(text: str) -> list[dict[str, Any]]:
    rows = []
    for row in csv.DictReader(text.splitlines(), skipinitialspace=True):
        if None in row or None in row.values():
            raise ValueError(f"a row has other than the header's cells: {row}"[:160])
        rows.append({key.strip(): _value(cell) for key, cell in row.items() if cell.strip()})
    return rows


def _value(cell: str) -> Any:
    """A whole number, a number or text."""
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            pass
    return cell.strip()
