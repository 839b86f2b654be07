"""Finished parts of long work on disk: each whole or not there, skipped when the work goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from lengthwise import __version__
from lengthwise.errors import InputError
from lengthwise.reading import read_described
from lengthwise.writing import whole_file

IDENTITY, FILES = "work.json", "files"


@dataclass(frozen=True)
class Cells:
    """A folder with one JSON file a cell; picklable, so that every process writes its own.

    ``prefix`` begins the names of all cells, so that parts of a work don't share any.
    """

    folder: Path
    prefix: str = ""

    @classmethod
    def open(cls, folder: str | Path, identity: Mapping[str, Any]) -> Cells:
        """The cells of the work that ``identity`` describes, made if they are not there.

        Under ``FILES`` it may hold what ``digests`` says of what the work reads.
        Raises ``InputError`` if the folder holds cells of other work, naming the first difference.
        """
        path = Path(folder)
        said = json.loads(json.dumps({"version": __version__, **identity}))
        if path.exists():
            if not (path / IDENTITY).is_file():
                raise InputError(f"can't keep cells in {str(path)!r}: it holds something else")
            found = read_described(path / IDENTITY, "work")
            for name in dict.fromkeys((*said, *found)):
                ours, theirs = said.get(name), found.get(name)
                if ours == theirs:
                    continue
                what = f"whose {name} is {theirs!r}, not {ours!r}"
                if name == FILES:
                    changed = [n for n in {**ours, **theirs} if ours.get(n) != theirs.get(n)]
                    what = f"of before {', '.join(changed)} changed"
                raise InputError(
                    f"{str(path)!r} holds cells of an interrupted run {what}; --force discards them"
                )
            return cls(path)
        try:
            path.mkdir(parents=True)
            with whole_file(path / IDENTITY) as fresh:
                fresh.write_text(json.dumps(said, indent=2) + "\n")
        except OSError as error:
            raise InputError(f"can't keep cells in {str(path)!r}: {error.strerror}") from error
        return cls(path)

    def __len__(self) -> int:
        """How many are there."""
        return sum(1 for one in self.folder.glob("cell-*.json"))

    def part(self, name: str) -> Cells:
        """The cells of a part of the work."""
        return replace(self, prefix=f"{self.prefix}{name}-")

    def _path(self, name: str) -> Path:
        return self.folder / f"cell-{self.prefix}{name}.json"

    def read(self, name: str) -> Any:
        """What was written under this name; None if nothing was."""
        path = self._path(name)
        return read_described(path, "cell") if path.is_file() else None

    def write(self, name: str, value: Any) -> None:
        """Keeps plain values, NaN among them; numbers come back as they were, to the bit."""
        path = self._path(name)
        try:
            with whole_file(path) as fresh:
                fresh.write_text(json.dumps(value, default=_plain))
        except OSError as error:
            raise InputError(f"can't write {str(path)!r}: {error.strerror}") from error

    def drop(self) -> None:
        """The work is done, and its result lies elsewhere."""
        shutil.rmtree(self.folder, ignore_errors=True)


def once(cells: Cells | None, name: str, make: Callable[[], Any]) -> Any:
    """What ``cells`` hold under this name, and what ``make`` gives, written there, if nothing."""
    found = None if cells is None else cells.read(name)
    if found is None:
        found = make()
        if cells is not None:
            cells.write(name, found)
    return found


def digests(value: Any) -> dict[str, str]:
    """The content of every file and folder that is named in plain data, as a hash of it.

    ``./mine.py:score``, ``p:alpha=2`` and ``2xh200/a,nodes.json`` name what stands before the
    colon and between the commas.
    """
    found: dict[str, str] = {}
    for text in _texts(value):
        for item in (text, *text.split(",")):
            name = item
            while name:
                if Path(name).exists() and name not in (".", "/"):
                    found[name] = _digest(Path(name))
                    break
                name = name.rpartition(":")[0]
    return found


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value] if len(value) < 4096 and "\0" not in value else []
    if isinstance(value, Mapping):
        return [text for item in value.values() for text in _texts(item)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _texts(item)]
    return []


def _digest(path: Path) -> str:
    hashed = blake2b(digest_size=8)
    for one in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if one.is_file() and "__pycache__" not in one.parts:
            hashed.update(f"{one.relative_to(path)}\0".encode() + one.read_bytes())
    return hashed.hexdigest()


def _plain(value: Any) -> Any:
    return value.tolist()  # numpy's numbers and arrays
