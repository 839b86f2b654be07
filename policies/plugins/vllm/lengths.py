"""Predicted lengths in an engine: from the client, else from a predictor, else a default.

The predictor runs in a process of its own, fed by threads: whatever it does, the engine's loop
never waits for it. A request that gets no answer in time is served first come, first served.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from lengthwise.policies.plugins.metrics import Counters
from lengthwise.policies.plugins.predicting import PredictorProcess, command, is_length
from lengthwise.policies.plugins.settings import Settings
from lengthwise.policies.plugins.vllm.entry import Entry


class Lengths:
    """Sets ``predicted_tokens`` of entries, at once or later."""

    def __init__(self, settings: Settings, model_config: Any, counters: Counters) -> None:
        self.default = settings.default_tokens
        self._counters = counters
        self._timeout_s = settings.predict_timeout_s
        self._asked: dict[int, Entry] = {}  # by sequence, waiting for an answer
        self._deadlines: deque[tuple[float, int]] = deque()
        self._process: PredictorProcess | None = None
        if settings.predictor_folder:
            line = command(
                settings.predictor_folder,
                tokenizer=str(model_config.tokenizer),
                revision=model_config.tokenizer_revision,
                trust_remote_code=bool(model_config.trust_remote_code),
            )
            self._process = PredictorProcess(line, counters)

    def ask(self, entry: Entry, from_client: Any, needed: bool) -> None:
        """Sets the entry's prediction if the client sent one, else asks the predictor.

        ``needed`` says whether the policy reads it: then the entry is pending until it is there.
        """
        if from_client is not None:
            if is_length(from_client):
                self._take(entry, float(from_client), "client")
                return
            self._counters.add("fallbacks", "bad-client-value")
            self._counters.warn(
                "bad-client-value", f"vllm_xargs predicted_tokens={from_client!r} is no length"
            )
        if self._process is None:
            self._counters.add("predictions", "default")
            return
        prompt = entry.request.prompt_token_ids
        if prompt is None:  # embeddings: there is no text to read
            self._fail(entry, "no-prompt", needed)
            return
        if self._process.off:
            self._fail(entry, "predictor-off", needed)
            return
        if needed:
            entry.state = "pending"
        self._asked[entry.sequence] = entry
        self._deadlines.append((time.monotonic() + self._timeout_s, entry.sequence))
        self._process.send(entry.sequence, prompt)

    def news(self) -> list[Entry]:
        """Entries whose prediction came, failed or is late, since the last call."""
        if self._process is None:
            return []
        changed: list[Entry] = []
        for sequence, tokens in self._process.received():
            entry = self._asked.pop(sequence, None)
            if entry is None:
                continue  # late: the request is already served first come, first served
            if is_length(tokens):
                self._take(entry, tokens, "predictor")
            else:
                self._fail(entry, "predictor-error", entry.state == "pending")
            changed.append(entry)
        now = time.monotonic()
        while self._deadlines and self._deadlines[0][0] < now:
            entry = self._asked.pop(self._deadlines.popleft()[1], None)
            if entry is not None:
                self._fail(entry, "predictor-timeout", entry.state == "pending")
                changed.append(entry)
        return changed

    def close(self) -> None:
        """Ends the predictor's process."""
        if self._process is not None:
            self._process.close()

    def _take(self, entry: Entry, tokens: float, source: str) -> None:
        entry.predicted_tokens = max(tokens, 1.0)
        entry.predicted = True
        if entry.state == "pending":
            entry.state = "ready"
        self._counters.add("predictions", source)

    def _fail(self, entry: Entry, reason: str, needed: bool) -> None:
        self._counters.add("fallbacks", reason)
        self._counters.warn(reason, "a request got no predicted length and is served FCFS")
        if needed:
            entry.state = "failed"
