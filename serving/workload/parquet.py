"""Parquet files to Arrow tables, decoded in a process of its own.

A damaged file may end the process that decodes it, or take all its memory; then that is said of the
file, in one line. The process costs 0.15 s a read, a folder of files is one read.
"""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lengthwise.errors import InputError

CHILD = Path(__file__).with_name("parquet_child.py")


def parquet_tables(files: Mapping[str, tuple[bytes, int]], lift: str) -> list[Any]:
    """A ``pyarrow.Table`` of each of ``files``, in their order.

    ``files`` maps names to contents and how many bytes each may expand to; ``lift`` says what
    allows more. Raises ``InputError`` for the first that is damaged or expands to more.
    """
    import pyarrow as pa

    if not sys.executable:
        raise InputError("a Parquet file is read by a Python process, and sys.executable is empty")
    frames = [struct.pack("<qq", most, len(data)) + data for data, most in files.values()]
    done = subprocess.run(
        [sys.executable, "-P", str(CHILD)], input=b"".join(frames),
        capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    found, rest = [], memoryview(done.stdout)
    for name in files:
        size = struct.unpack_from("<q", rest, 1)[0] if len(rest) >= 9 else len(rest)
        mark, answer, rest = bytes(rest[:1]), rest[9 : 9 + size], rest[9 + size :]
        why = bytes(answer).decode("utf-8", "replace") if mark in (b"-", b">") else ""
        if len(answer) < size or not mark:
            mark, why = b"-", _end(done)
        if mark == b">":
            raise InputError(f"{name}: {why}; {lift}")
        if mark == b"-":
            raise InputError(f"{name}: not a Parquet file, or a damaged one: {why}")
        found.append(pa.ipc.open_stream(pa.py_buffer(answer)).read_all())
    return found


def _end(done: subprocess.CompletedProcess[bytes]) -> str:
    """How the process ended that gave no answer."""
    if done.returncode < 0:
        return f"decoding it ends in {signal.Signals(-done.returncode).name}"
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return f"decoding it ends with code {done.returncode}: {lines[-1] if lines else ''}"
