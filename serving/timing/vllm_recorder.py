"""A vLLM scheduler that records each iteration's shape and times; runs inside vLLM's engine core.

Give it to vLLM as ``scheduler_cls="lengthwise.serving.timing.vllm_recorder.recorder"``. It changes
no decision. A request whose ``extra_args`` hold ``{"lengthwise": {...}}`` is a command:
``{"flush": PATH}`` writes what was recorded so far and forgets it, ``{"sweep": PLAN, ...}`` runs a
sweep of designed batches (``vllm_sweep``). Both then run as the ordinary request that they are, so
that its client learns when they are done.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from lengthwise.serving.timing.columns import COLUMNS, EVENTS
from lengthwise.serving.timing.vllm_sweep import Sweep

DONE, UPDATED = COLUMNS.index("done_ns"), COLUMNS.index("updated_ns")


class _Recorder:
    """Mixed in before vLLM's scheduler class."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._rows: list[list[int]] = []
        self._events: dict[str, list[int]] = {}
        self._sweep: Sweep | None = None
        self._trigger: Any = None
        self._label = -1

    def add_request(self: Any, request: Any) -> None:
        """Carries out a command, or records when the request reached the scheduler."""
        extra = (request.sampling_params.extra_args or {}).get("lengthwise", {})
        if "flush" in extra:
            self._flush(extra["flush"])
        elif "sweep" in extra:
            self._trigger = request
            self._sweep = Sweep(self, extra)
            self._label = self._sweep.before_schedule()  # vLLM only steps when there is a request
            return
        elif self._sweep is None:
            name = request.request_id.rsplit("-", 1)[0]
            self._events[name] = [time.perf_counter_ns(), -1, -1, -1]
        super().add_request(request)  # type: ignore[misc]

    def add_unrecorded(self: Any, request: Any) -> None:
        """What a sweep adds: no client waits for it."""
        super().add_request(request)  # type: ignore[misc]

    def schedule(self: Any, *args: Any, **kwargs: Any) -> Any:
        """vLLM's decision, and a row for it."""
        label, self._label = self._label, -1
        if self._sweep is not None and label < 0:
            label = self._sweep.before_schedule()
            if self._sweep.done:
                self._sweep = None
                super().add_request(self._trigger)  # type: ignore[misc]
        before = time.perf_counter_ns()
        output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        after = time.perf_counter_ns()
        if output.num_scheduled_tokens:
            output.lengthwise_row = len(self._rows)
            self._rows.append([before, after, -1, -1, *self._shape(output), label])
        return output

    def update_from_output(self: Any, scheduler_output: Any, model_runner_output: Any) -> Any:
        """vLLM's bookkeeping, timed."""
        now = time.perf_counter_ns()
        result = super().update_from_output(  # type: ignore[misc]
            scheduler_output, model_runner_output
        )
        row = getattr(scheduler_output, "lengthwise_row", None)
        if row is not None and row < len(self._rows):
            self._rows[row][DONE] = now
            self._rows[row][UPDATED] = time.perf_counter_ns()
        return result

    def _shape(self: Any, output: Any) -> list[int]:
        """What the iteration computes, in the terms of ``lengthwise.protocols.Batch``."""
        prefill_tokens = prefill_seqs = decode_seqs = context = chunk_context = longest = 0
        row = len(self._rows)
        for request_id, tokens in output.num_scheduled_tokens.items():
            request = self.requests[request_id]
            end = request.num_computed_tokens  # this iteration's tokens are counted in
            longest = max(longest, end)
            if tokens == 1 and end > request.num_prompt_tokens:
                decode_seqs += 1
                context += end
                last = end == request.num_prompt_tokens + request.max_tokens - 1
            else:
                prefill_tokens += tokens
                prefill_seqs += 1
                chunk_context += tokens * (end - tokens) + tokens * (tokens + 1) // 2
                last = not request.is_prefill_chunk and request.max_tokens == 1
                event = self._events.get(request_id.rsplit("-", 1)[0])
                if event is not None:
                    if event[1] < 0:
                        event[1] = row
                    if event[2] < 0 and not request.is_prefill_chunk:
                        event[2] = row
            if last and (event := self._events.get(request_id.rsplit("-", 1)[0])) is not None:
                event[3] = row
        pool = self.kv_cache_manager.block_pool
        return [
            prefill_tokens, prefill_seqs, decode_seqs, context, chunk_context, longest,
            len(self.running), len(self.waiting), len(output.preempted_req_ids or ()),
            len(output.scheduled_new_reqs), pool.num_gpu_blocks - pool.get_num_free_blocks(),
        ]  # fmt: skip

    def _flush(self, path: str) -> None:
        rows = np.array(self._rows, dtype=np.int64).reshape(-1, len(COLUMNS))
        events = np.array(list(self._events.values()), dtype=np.int64).reshape(-1, len(EVENTS))
        np.savez(path, rows=rows, events=events, names=np.array(list(self._events), dtype=str))
        self._rows, self._events = [], {}


class RecordingScheduler(_Recorder, Scheduler):  # type: ignore[misc]
    """vLLM's synchronous scheduler, recorded."""


class RecordingAsyncScheduler(_Recorder, AsyncScheduler):  # type: ignore[misc]
    """vLLM's asynchronous scheduler, recorded."""


def recorder(*args: Any, **kwargs: Any) -> Any:
    """The recording scheduler for vLLM's configuration; what ``scheduler_cls`` names."""
    if kwargs["vllm_config"].scheduler_config.async_scheduling:
        return RecordingAsyncScheduler(*args, **kwargs)
    return RecordingScheduler(*args, **kwargs)
