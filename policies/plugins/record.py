"""Learning from production: what finished requests were predicted and what they became, in Parquet.

A scheduler hands over each request as it finishes; a thread of its own writes part files. Nothing
here blocks or breaks the engine: what can't be written is dropped, counted, and said once.
"""

from __future__ import annotations

import array
import hashlib
import os
import queue
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lengthwise.errors import InputError
from lengthwise.policies.plugins.metrics import Counters
from lengthwise.policies.plugins.predicting import is_length
from lengthwise.policies.plugins.settings import Settings

ROWS = 5000  # requests a part file
FLUSH_S = 300.0  # a part file is written at least that often
BACKLOG_TOKENS = 16 * 2**20  # of prompts that wait for the thread, 4 bytes each
# vLLM's statuses; whatever else ended a request cut its answer short
REASONS = {
    "FINISHED_STOPPED": "stop",
    "FINISHED_REPETITION": "stop",
    "FINISHED_LENGTH_CAPPED": "length",
    "FINISHED_ABORTED": "abort",
}


def prompt_id(prompt_token_ids: Sequence[int]) -> str:
    """What stands for a prompt in the records: 128 bits of a hash of its token ids."""
    return hashlib.blake2b(array.array("i", prompt_token_ids).tobytes(), digest_size=16).hexdigest()


class Recorder:
    """Writes finished requests to part files in ``settings.record``, a folder made now.

    Raises ``InputError`` from the constructor if the folder can't be written, and for lack of
    pyarrow. Afterwards no method raises, and none waits but ``close``.
    """

    def __init__(self, settings: Settings, model_config: Any, counters: Counters) -> None:
        try:
            import pyarrow.parquet
        except ImportError:
            raise InputError("lengthwise setting record needs the package pyarrow") from None
        self._parquet: Any = pyarrow.parquet
        self._folder = Path(settings.record)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            probe = self._folder / f".{uuid.uuid4().hex}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise InputError(
                f"lengthwise setting record: can't write to {settings.record!r}: {error.strerror}"
            ) from None
        self._prompts = settings.record_prompts
        self._model, self._tokenizer = str(model_config.model), str(model_config.tokenizer)
        self._counters = counters
        self._queue: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._backlog = 0  # tokens in the queue, and one a request
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="lengthwise-record", daemon=True)
        self._thread.start()

    def finished(self, request: Any) -> None:
        """A request of vLLM's is done; without output, or of a session, it tells nothing."""
        try:
            if request.num_output_tokens > 0 and not getattr(request, "resumable", False):
                self._put(request)
        except Exception as error:  # of vLLM's, which may rename what is read here
            self._drop(1, repr(error))

    def close(self) -> None:
        """Writes what is left; waits for that, though not for ever."""
        self._queue.put(None)
        self._thread.join(timeout=30)

    def _put(self, request: Any) -> None:
        prompt = request.prompt_token_ids  # None for embeddings
        size = 1 + len(prompt or ())
        with self._lock:
            full = self._backlog + size > BACKLOG_TOKENS
            self._backlog += 0 if full else size
        if full:
            self._drop(1, "the disk is too slow")
            return
        entry = getattr(request, "lengthwise", None)
        extra = getattr(request.sampling_params, "extra_args", None) or {}
        told = extra.get("predicted_tokens")
        if entry is not None:
            told = entry.predicted_tokens if entry.predicted else None
        self._queue.put(
            {
                "request_id": request.request_id,
                "arrival_s": float(request.arrival_time),
                "prompt_token_ids": None if prompt is None else array.array("i", prompt),
                "prompt_tokens": int(request.num_prompt_tokens),
                "predicted_tokens": float(told) if is_length(told) else None,
                "output_tokens": int(request.num_output_tokens),
                "finish_reason": REASONS.get(request.status.name, "error"),
            }
        )

    def _drop(self, requests: int, why: str) -> None:
        self._counters.add("recorded", "dropped", requests)
        self._counters.warn("record", f"finished requests are not recorded: {why}")

    # The thread

    def _run(self) -> None:
        rows: list[dict[str, Any]] = []
        due_s = time.monotonic() + FLUSH_S
        while True:
            try:
                row = self._queue.get(timeout=max(due_s - time.monotonic(), 0.0))
            except queue.Empty:
                pass
            else:
                if row is None:
                    self._write(rows)
                    return
                rows.append(self._made(row))
                if len(rows) < ROWS:
                    continue
            self._write(rows)
            rows = []
            due_s = time.monotonic() + FLUSH_S

    def _made(self, row: dict[str, Any]) -> dict[str, Any]:
        ids = row.pop("prompt_token_ids")
        with self._lock:
            self._backlog -= 1 + len(ids or ())
        row["prompt_id"] = None if ids is None else prompt_id(ids)
        if self._prompts:
            row["prompt_token_ids"] = ids
        return row

    def _write(self, rows: list[dict[str, Any]]) -> None:
        """One part file, complete or not there."""
        if not rows:
            return
        import pyarrow as pa

        part = self._folder / f"part-{time.time_ns()}-{uuid.uuid4().hex[:8]}.parquet"
        unfinished = part.with_name(f".{part.name}")
        try:
            columns: dict[str, Any] = {
                name: pa.array([row[name] for row in rows], type=kind)
                for name, kind in (
                    ("request_id", pa.string()), ("arrival_s", pa.float64()),
                    ("prompt_id", pa.string()), ("prompt_tokens", pa.int64()),
                    ("predicted_tokens", pa.float64()), ("output_tokens", pa.int64()),
                    ("finish_reason", pa.string()),
                )
            }  # fmt: skip
            columns["model"] = pa.repeat(self._model, len(rows))
            columns["tokenizer"] = pa.repeat(self._tokenizer, len(rows))
            if self._prompts:
                ids = [row["prompt_token_ids"] for row in rows]
                columns["prompt_token_ids"] = pa.array(ids, type=pa.list_(pa.int32()))
            self._parquet.write_table(pa.table(columns), unfinished, compression="zstd")
            os.replace(unfinished, part)
        except Exception as error:  # a full disk, a folder that is gone
            unfinished.unlink(missing_ok=True)
            self._drop(len(rows), repr(error))
        else:
            self._counters.add("recorded", "written", len(rows))
