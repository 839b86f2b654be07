"""Decodes Parquet files for ``parquet``, which runs this file in a process of its own.

Standard input is a sequence of frames, each the bytes that the file may expand to, its length (8
bytes each) and the file. For each there is one on standard output: a mark, a length and an Arrow
stream (``+``), or a line that says why not: it is damaged (``-``) or too large (``>``). Imports
nothing but pyarrow, for that is most of what a read costs.
"""

from __future__ import annotations

import io
import os
import struct
import sys

import pyarrow as pa
import pyarrow.parquet as pq

SPARE = 4 << 30  # of address space: libraries, threads' stacks and what is being decoded


class TooLarge(Exception):
    """The file holds more than it may."""


def main() -> None:
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    while header := sys.stdin.buffer.read(16):
        most, size = struct.unpack("<qq", header)
        _limit(2 * most + size + SPARE)
        try:
            mark, answer = b"+", _stream(sys.stdin.buffer.read(size), most)
        except Exception as error:  # whatever pyarrow raises, and it raises much
            first = (str(error).splitlines() or [type(error).__name__])[0]
            mark = b">" if isinstance(error, TooLarge) else b"-"
            answer = first.encode("utf-8", "replace")
        out.write(mark + struct.pack("<q", len(answer)) + answer)
        out.flush()


def _limit(memory: int) -> None:
    """No more memory than that, and no core file of what crashes; where the system has limits."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        if hard == resource.RLIM_INFINITY or hard > memory:
            resource.setrlimit(resource.RLIMIT_AS, (memory, hard))
    except (ImportError, OSError, ValueError):
        pass


def _stream(data: bytes, most: int) -> bytes:
    file = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
    cells = file.metadata.num_rows * file.metadata.num_columns
    if cells > most:
        raise TooLarge(f"holds {cells} values, which are more than {most} bytes")
    table = file.read()
    table.validate(full=True)
    if table.nbytes > most:
        raise TooLarge(f"expands to {table.nbytes} bytes, more than {most}")
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


if __name__ == "__main__":
    main()
