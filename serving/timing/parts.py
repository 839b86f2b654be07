"""Finished groups of a profiling sweep on disk: each whole, so that stopped work goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from lengthwise.errors import InputError
from lengthwise.reading import read_described
from lengthwise.writing import whole_file

IDENTITY, ENGINE = "work.json", "engine.json"
PAUSE_NS = 10**9  # between groups that were measured after the machine's clock began anew


@dataclass(frozen=True)
class Parts:
    """A folder beside a profile that is being measured."""

    folder: Path

    @classmethod
    def beside(cls, out: Path) -> Parts:
        """Those of the profile ``out``, whether they are there or not."""
        return cls(out.with_suffix(".parts"))

    @classmethod
    def open(cls, out: Path, identity: Mapping[str, Any], force: bool = False) -> Parts:
        """The parts of the profile ``out`` of what ``identity`` describes, made if there are none.

        Raises ``InputError`` if they are of something else, naming the first difference; with
        ``force`` they are discarded.
        """
        folder = cls.beside(out).folder
        said = json.loads(json.dumps(identity))
        if force:
            shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            if not (folder / IDENTITY).is_file():
                raise InputError(f"can't keep parts in {str(folder)!r}: it holds something else")
            found = read_described(folder / IDENTITY, "interrupted profile")
            for name in dict.fromkeys((*said, *found)):
                if said.get(name) != found.get(name):
                    raise InputError(
                        f"{str(folder)!r} holds parts of a profile whose {name} is "
                        f"{found.get(name)!r}, not {said.get(name)!r}; --force discards them"
                    )
            return cls(folder)
        try:
            folder.mkdir()
            with whole_file(folder / IDENTITY) as fresh:
                fresh.write_text(json.dumps(said, indent=2) + "\n")
        except OSError as error:
            raise InputError(f"can't keep parts in {str(folder)!r}: {error.strerror}") from error
        return cls(folder)

    def engine(self, now: Mapping[str, Any]) -> dict[str, Any]:
        """What is known of the engine that measured the first part: ``now`` if there is none.

        What vLLM allots to its KV cache differs by a block or two from start to start.
        """
        path = self.folder / ENGINE
        if not path.is_file():
            with whole_file(path) as fresh:
                fresh.write_text(json.dumps(dict(now)) + "\n")
        found: dict[str, Any] = read_described(path, "engine of an interrupted profile")
        return found

    def done(self) -> list[int]:
        """The numbers of the groups that are there, ascending."""
        return sorted(int(path.stem[1:]) for path in self.folder.glob("g*.parquet"))

    def write(self, group: int | str, rows: pd.DataFrame) -> None:
        """Keeps a group's iterations, or a table by name."""
        name = group if isinstance(group, str) else f"g{group:03}"
        with whole_file(self.folder / f"{name}.parquet") as fresh:
            rows.to_parquet(fresh, compression="zstd")

    def read(self, name: str) -> pd.DataFrame | None:
        """A table by name, None if it is not there."""
        path = self.folder / f"{name}.parquet"
        return pd.read_parquet(path) if path.is_file() else None

    def iterations(self) -> pd.DataFrame:
        """All groups that are there, one after the other in time."""
        frames = [pd.read_parquet(self.folder / f"g{number:03}.parquet") for number in self.done()]
        # a group that an earlier start left out may be measured last: time decides the order
        frames.sort(key=lambda rows: int(rows["schedule_ns"].iloc[0]))
        clock = [name for name in frames[0].columns.astype(str) if name.endswith("_ns")]
        for before, rows in pairwise(frames):
            late = int(before["updated_ns"].max()) - int(rows["schedule_ns"].iloc[0])
            if late > 0:
                rows[clock] = rows[clock].where(rows[clock] < 0, rows[clock] + late + PAUSE_NS)
        return pd.concat(frames, ignore_index=True)

    def seconds(self) -> float:
        """How long all groups that are there took, in all."""
        took = 0.0
        for number in self.done():
            rows = pd.read_parquet(self.folder / f"g{number:03}.parquet")
            took += (int(rows["updated_ns"].max()) - int(rows["schedule_ns"].iloc[0])) / 1e9
        return took

    def drop(self) -> None:
        """The profile is written."""
        shutil.rmtree(self.folder, ignore_errors=True)
