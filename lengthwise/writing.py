"""Files and folders that are there whole or not at all, with the modes that the umask gives.

What the standard library and safetensors write for the time being is their owner's alone; a
predictor that one user trains is read by the server of another.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; on success it takes its place, on failure it is gone."""
    fresh = path.with_name(f".{uuid.uuid4().hex}-{path.name}")
    try:
        fresh.touch()
        mode = fresh.stat().st_mode & 0o777
        yield fresh
        fresh.chmod(mode)
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill; on success it takes the place of ``path``, on failure it is gone.

    Missing parents are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".lengthwise-") as made:
        fresh = Path(made) / "fresh"
        fresh.mkdir()
        mode = fresh.stat().st_mode & 0o777
        yield fresh
        for inside in fresh.rglob("*"):
            inside.chmod(mode if inside.is_dir() else mode & 0o666)
        if path.exists():
            os.rename(path, Path(made) / "old")
        os.rename(fresh, path)
