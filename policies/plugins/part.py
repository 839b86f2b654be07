"""One part file of a record, which grows until it is large or old enough; then the next begins.

The file is replaced by a longer one each time, so that it is always whole, whoever reads it and
whenever the writer is killed, and no request is in two files.
"""

from __future__ import annotations

import array
import hashlib
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lengthwise.context import NAMES
from lengthwise.writing import whole_file

PART_ROWS = 5000  # requests in a part file, or
PART_TOKENS = 4 * 2**20  # tokens of their prompts, or
PART_S = 300.0  # its age
# of the context of a request (``known``), what differs from request to request
KNOWN = ("session_id", "tenant", "task", "temperature", "top_p", "json_schema")


def prompt_id(prompt_token_ids: Sequence[int]) -> str:
    """What stands for a prompt in the records: 128 bits of a hash of its token ids."""
    return hashlib.blake2b(array.array("i", prompt_token_ids).tobytes(), digest_size=16).hexdigest()


def text_id(prompt: str) -> str:
    """The same for one that came as text."""
    return hashlib.blake2b(prompt.encode("utf-8", "replace"), digest_size=16).hexdigest()


def size_of(row: Mapping[str, Any]) -> int:
    """What a row weighs while it waits: its prompt's tokens, and one."""
    return 1 + len(row.get("prompt_token_ids") or ()) + len(row.get("prompt") or "") // 4


class Part:
    """Rows on their way to the disk; ``same`` are columns whose value all rows share.

    One of them is ``tokenizer``, which is "" where prompts came as texts.
    """

    def __init__(self, folder: Path, prompts: bool, same: Mapping[str, str]) -> None:
        self._folder, self._prompts, self._same = folder, prompts, same
        self._rows: list[dict[str, Any]] = []  # not on the disk
        self._begin()

    def _begin(self) -> None:
        self._path = self._folder / f"part-{time.time_ns()}-{uuid.uuid4().hex[:8]}.parquet"
        self._tables: list[Any] = []  # what is in the file
        self._written = self._tokens = 0
        self._due_s = time.monotonic() + PART_S

    @property
    def waiting(self) -> int:
        """Rows that are not on the disk."""
        return len(self._rows)

    def add(self, row: dict[str, Any]) -> None:
        """Takes a row; its ``prompt_token_ids`` may be None, or it has a ``prompt``, a text."""
        self._rows.append(row)

    def write(self) -> tuple[int, int]:
        """Puts all rows on the disk: the tokens that wait no longer, and one a row of them.

        And how many rows were left out because no table can hold them: one such must not keep the
        others from the disk. Raises what writing raises; the rows then still wait.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self._rows:
            return 0, 0
        kept, table = self._kept()
        self._folder.mkdir(exist_ok=True)  # somebody may have moved it away
        with whole_file(self._path) as fresh:
            pq.write_table(pa.concat_tables([*self._tables, table]), fresh, compression="zstd")
        size = sum(map(size_of, self._rows))
        self._tables.append(table)
        self._written += len(kept)
        self._tokens += size if self._prompts else 0
        odd, self._rows = len(self._rows) - len(kept), []
        full = self._written >= PART_ROWS or self._tokens >= PART_TOKENS
        if full or time.monotonic() > self._due_s:
            self._begin()
        return size, odd

    def _kept(self) -> tuple[list[dict[str, Any]], Any]:
        """The rows that a table can hold, and that table."""
        try:
            return self._rows, self._table(self._rows)
        except (ValueError, TypeError, OverflowError):  # pyarrow's own among them
            kept = [row for row in self._rows if self._fits(row)]
            return kept, self._table(kept)

    def _fits(self, row: dict[str, Any]) -> bool:
        try:
            self._table([row])
        except (ValueError, TypeError, OverflowError):
            return False
        return True

    def _table(self, rows: list[dict[str, Any]]) -> Any:
        import pyarrow as pa

        ids = [row.get("prompt_token_ids") for row in rows]
        texts = [row.get("prompt") for row in rows]
        columns: dict[str, Any] = {
            name: pa.array([row.get(name) for row in rows], type=kind)
            for name, kind in (
                ("request_id", pa.string()), ("arrival_s", pa.float64()),
                ("finish_s", pa.float64()), ("prompt_tokens", pa.int64()),
                ("predicted_tokens", pa.float64()),
                ("predicted_by", pa.string()), ("output_tokens", pa.int64()),
                ("max_tokens", pa.int64()), ("finish_reason", pa.string()),
                *((name, pa.string() if name in NAMES else pa.float64()) for name in KNOWN),
            )
        }  # fmt: skip
        hashes = [
            text_id(text) if text is not None else None if prompt is None else prompt_id(prompt)
            for text, prompt in zip(texts, ids, strict=True)
        ]
        columns["prompt_id"] = pa.array(hashes, type=pa.string())
        if "model" not in self._same:
            columns["model"] = pa.array([row["model"] for row in rows], type=pa.string())
        for name, value in self._same.items():
            columns[name] = pa.repeat(value, len(ids))
        if self._prompts and not self._same["tokenizer"]:
            columns["prompt"] = pa.array(texts, type=pa.string())
        elif self._prompts:
            columns["prompt_token_ids"] = pa.array(ids, type=pa.list_(pa.int32()))
        return pa.table(columns)
