"""Results on disk: folders written whole or not at all, with what produced them beside them."""

from __future__ import annotations

import json
import math
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shlex import join
from typing import Any

from lengthwise.errors import InputError
from lengthwise.writing import whole_folder

CONFIG = "config.json"
_PACKAGES = ("lengthwise", "numpy", "numba", "pandas", "pyarrow", "scikit-learn", "scipy", "torch")


def check_writable(folder: str | Path) -> Path:
    """The folder as a path, if results can be written there; called before long work.

    Raises ``InputError`` if it or the nearest existing parent can't be written, if it is a file,
    or if it holds anything but an earlier result, which would be replaced.
    """
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise InputError(f"can't write results to {str(path)!r}: it is a file, not a folder")
    if path.is_dir() and any(path.iterdir()) and not (path / CONFIG).is_file():
        raise InputError(
            f"can't write results to {str(path)!r}: it holds other files (no {CONFIG}); "
            "name a new or empty folder"
        )
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    try:  # root passes every permission check of os.access, so try
        with tempfile.TemporaryDirectory(dir=parent, prefix=".lengthwise-"):
            pass
    except OSError as error:
        raise InputError(f"can't write results to {str(path)!r}: {error.strerror}") from error
    return path


@contextmanager
def replaced_folder(folder: str | Path) -> Iterator[Path]:
    """A new folder to fill; on success it takes the place of ``folder``, on failure it is gone."""
    target = check_writable(folder)
    try:
        with whole_folder(target) as fresh:
            yield fresh
    except OSError as error:
        raise InputError(f"can't write results to {str(target)!r}: {error.strerror}") from error


def copy_into(source: Path, folder: Path) -> None:
    """Copies a finished folder (a trained predictor, say) into a result."""
    shutil.copytree(source, folder / source.name)


def provenance(config: Mapping[str, Any], command: str | None = None) -> dict[str, Any]:
    """What reproduces a run: its exact command, versions, seed and options.

    Nothing in it depends on the clock or the machine's name, so that the same run twice is the
    same bytes.
    """
    return {
        "command": command or join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": {"python": platform.python_version(), **_versions()},
        **config,
    }


def save_rows(
    rows: Sequence[Mapping[str, Any]], folder: str | Path, name: str, config: Mapping[str, Any],
    command: str | None = None,
) -> Path:  # fmt: skip
    """Writes rows as the table ``name`` (Parquet), beside config.json; returns the folder."""
    import pandas as pd

    with replaced_folder(folder) as fresh:
        pd.DataFrame(list(rows)).to_parquet(fresh / name, index=False)
        write_json(fresh / CONFIG, provenance(config, command))
    return Path(folder)


def write_json(path: Path, value: Any) -> None:
    """JSON for people: indented, NaN and infinities as null."""
    path.write_text(json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """What JSON can say of a value: NaN and infinities as null, tuples as lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
