"""Learning from production: what finished requests were predicted and what they became, in Parquet.

A scheduler hands over each request as it finishes; a thread of its own writes them to part files
every few seconds, since engines are killed without being asked. Nothing here blocks or breaks the
engine: what can't be written waits, and beyond ``BACKLOG_TOKENS`` is dropped, counted, and said
once.
"""

from __future__ import annotations

import array
import queue
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lengthwise.errors import InputError
from lengthwise.policies.plugins import client
from lengthwise.policies.plugins.known import of_sampling
from lengthwise.policies.plugins.metrics import Counters
from lengthwise.policies.plugins.part import KNOWN, Part, prompt_id, size_of
from lengthwise.policies.plugins.settings import Settings
from lengthwise.policies.plugins.threads import keep

ROWS = 1000  # that wait are written at once
FLUSH_S = 2.0  # what finished is on the disk not much later
BACKLOG_TOKENS = 16 * 2**20  # of prompts that are not on the disk, 4 bytes each
__all__ = ["Recorder", "Rows", "prompt_id"]

# vLLM's statuses; whatever else ended a request cut its answer short
REASONS = {
    "FINISHED_STOPPED": "stop",
    "FINISHED_REPETITION": "stop",
    "FINISHED_LENGTH_CAPPED": "length",
    "FINISHED_ABORTED": "abort",
}


class Rows:
    """Writes rows of a table (``Part``) to part files in ``folder``, which is made now.

    ``prompts``: with the prompts' token ids or texts; ``same`` are columns whose value all rows
    share. Raises ``InputError`` from the constructor if the folder can't be written, and for lack
    of pyarrow. Afterwards no method raises, and none waits but ``close``.
    """

    def __init__(
        self, folder: str, prompts: bool, same: Mapping[str, str], counters: Counters
    ) -> None:
        try:
            import pyarrow
        except ImportError:
            raise InputError("lengthwise setting record needs the package pyarrow") from None
        del pyarrow  # the thread imports it
        self._folder = Path(folder)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            probe = self._folder / f".{uuid.uuid4().hex}"
            probe.touch()
            probe.unlink()
        except (OSError, ValueError) as error:  # the latter: of a null byte
            why = getattr(error, "strerror", None) or error
            raise InputError(
                f"lengthwise setting record: can't write to {folder!r}: {why}"
            ) from None
        self._counters = counters
        self._queue: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._backlog = 0  # tokens of requests that are not on the disk, and one a request
        self._lock = threading.Lock()
        self._part = Part(self._folder, prompts, same)
        self._closed = threading.Event()
        self._thread = keep("record", self._run, counters, self._closed)

    def close(self) -> None:
        """Writes what is left; waits for that, though not for ever."""
        self._queue.put(None)
        self._thread.join(timeout=30)
        self._closed.set()

    def put(self, row: dict[str, Any]) -> None:
        """A request is done."""
        size = size_of(row)
        if self._backlog + size > BACKLOG_TOKENS:  # the thread only ever makes room
            self._drop(1, "the disk is too slow")
            return
        with self._lock:
            self._backlog += size
        self._queue.put(row)

    def _drop(self, requests: int, why: str) -> None:
        self._counters.add("recorded", "dropped", requests)
        self._counters.warn("record", f"finished requests are not recorded: {why}")

    # The thread

    def _run(self) -> None:
        due_s, failing = time.monotonic() + FLUSH_S, False
        while True:
            try:
                row = self._queue.get(timeout=max(due_s - time.monotonic(), 0.0))
            except queue.Empty:
                pass
            else:
                if row is None:
                    self._flush()
                    if self._part.waiting:
                        self._drop(self._part.waiting, "the engine ends before")
                    return
                self._part.add(row)
                full = self._part.waiting >= ROWS and not failing
                if not full and time.monotonic() < due_s:
                    continue
            failing = not self._flush()
            due_s = time.monotonic() + FLUSH_S

    def _flush(self) -> bool:
        """Whether everything is on the disk now."""
        try:
            waiting = self._part.waiting
            written, odd = self._part.write()
        except Exception as error:  # a full disk, a folder that is gone: it may come back
            self._counters.warn("record-disk", f"the record waits for its folder: {error!r}")
            return False
        with self._lock:
            self._backlog -= written
        if odd:
            self._drop(odd, "they hold what no table can")
        if waiting > odd:
            self._counters.add("recorded", "written", waiting - odd)
        return True


class Recorder(Rows):
    """Writes finished requests of vLLM's to part files in ``settings.record``.

    Raises what ``Rows`` raises.
    """

    def __init__(self, settings: Settings, model_config: Any, counters: Counters) -> None:
        self._believed = settings.client_lengths
        same = {"model": str(model_config.model), "tokenizer": str(model_config.tokenizer)}
        super().__init__(settings.record, settings.record_prompts, same, counters)

    def finished(self, request: Any) -> None:
        """A request of vLLM's is done; without output, or of a session, it tells nothing."""
        try:
            if request.num_output_tokens > 0 and not getattr(request, "resumable", False):
                self.put(self._row(request))
        except Exception as error:  # of vLLM's, which may rename what is read here
            self._drop(1, repr(error))

    def _row(self, request: Any) -> dict[str, Any]:
        prompt = request.prompt_token_ids  # None for embeddings
        entry = getattr(request, "lengthwise", None)
        told, by = None, None
        if entry is None:  # stock FCFS: nobody asked, but the client may have said
            sent = client.sent(request.sampling_params).get("predicted_tokens")
            told = client.length(sent) if self._believed else None
            by = None if told is None else "client"
        elif entry.predicted:
            told, by = entry.predicted_tokens, "abstained" if entry.abstained else entry.source
        limit = getattr(request.sampling_params, "max_tokens", None)
        known = of_sampling(request.sampling_params, None, getattr(request, "cache_salt", None))
        return {
            "request_id": client.text(request.request_id),
            "arrival_s": float(request.arrival_time),
            "finish_s": time.time(),  # the clock of arrival_time, which is the front end's
            "prompt_token_ids": None if prompt is None else array.array("i", prompt),
            "prompt_tokens": int(request.num_prompt_tokens),
            "predicted_tokens": told,
            "predicted_by": by,
            "output_tokens": int(request.num_output_tokens),
            "max_tokens": None if limit is None else min(int(limit), 2**63 - 1),
            **{name: known.get(name) for name in KNOWN},
            "finish_reason": REASONS.get(request.status.name, "error"),
        }
