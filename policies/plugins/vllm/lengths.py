"""Predicted lengths in an engine: from the client, else from a predictor, else a default.

The predictor runs in a process of its own, fed by threads: whatever it does, the engine's loop
never waits for it. A request that gets no answer in time is served first come, first served. No
length exceeds what the request may generate: its ``max_tokens``, and what the model's context holds
beside its prompt.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from lengthwise.policies.plugins import client
from lengthwise.policies.plugins.accuracy import Accuracy
from lengthwise.policies.plugins.known import of_sampling, packed
from lengthwise.policies.plugins.metrics import Counters
from lengthwise.policies.plugins.predicting import command
from lengthwise.policies.plugins.predictor_process import PredictorProcess
from lengthwise.policies.plugins.saved import count_abstained
from lengthwise.policies.plugins.settings import Settings
from lengthwise.policies.plugins.vllm.entry import Entry
from lengthwise.sessions import Sessions

ENDED = ("FINISHED_STOPPED", "FINISHED_LENGTH_CAPPED", "FINISHED_REPETITION")  # vLLM's statuses


class Lengths:
    """Sets ``predicted_tokens`` of entries, at once or later, and says how it turned out.

    ``curves`` are the features whose curves a policy reads: the predictor tells them too.
    """

    def __init__(
        self,
        settings: Settings,
        model_config: Any,
        counters: Counters,
        curves: Sequence[str] = (),
    ) -> None:
        self._default = settings.default_tokens
        self._believed = settings.client_lengths
        self._longest = int(model_config.max_model_len)
        self._model = str(getattr(model_config, "model", ""))
        self._counters = counters
        self._accuracy = Accuracy(counters)
        self._sessions = Sessions()
        self._timeout_s = settings.predict_timeout_s
        self._asked: dict[int, tuple[Entry, float]] = {}  # by sequence: waits for an answer, since
        self._deadlines: deque[tuple[float, int]] = deque()
        self._process: PredictorProcess | None = None
        if settings.predictor_folder:
            line = command(
                settings.predictor_folder,
                tokenizer=str(model_config.tokenizer),
                revision=model_config.tokenizer_revision,
                trust_remote_code=bool(model_config.trust_remote_code),
                curves=curves,
            )
            self._process = PredictorProcess(line, counters)

    def ask(self, entry: Entry, from_client: Any, needed: bool) -> None:
        """Sets the entry's prediction if the client sent one, else asks the predictor.

        ``needed`` says whether the policy reads it: then the entry is pending until it is there.
        """
        entry.predicted_tokens = self._capped(entry, self._default)
        if self._process is not None:  # who is not asked now may be asked of by its session's next
            salt = getattr(entry.request, "cache_salt", None)
            entry.known = of_sampling(entry.request.sampling_params, self._model, salt)
        if from_client is not None and self._believed:
            told = client.length(from_client)
            if told is not None:
                self._take(entry, told, "client")
                return
            self._counters.add("ignored", "predicted_tokens")
            self._counters.warn(
                "bad-client-value",
                f"vllm_xargs predicted_tokens={client.shown(from_client)} is no length",
            )
        if self._process is None:
            self._counters.add("predictions", "default")
            return
        prompt = entry.request.prompt_token_ids
        if prompt is None:  # embeddings: there is no text to read
            self._fail(entry, "no-prompt", needed)
            return
        if not self._process.up:
            self._fail(entry, "predictor-off", needed)
            return
        if needed:
            entry.state = "pending"
        now = time.monotonic()
        self._asked[entry.sequence] = entry, now
        self._deadlines.append((now + self._timeout_s, entry.sequence))
        known = {**entry.known, **self._sessions.before(entry.known)}
        self._process.send(entry.sequence, prompt, packed(known))

    def news(self) -> list[Entry]:
        """Entries whose prediction came, failed or is late, since the last call."""
        if self._process is None:
            return []
        changed: list[Entry] = []
        for sequence, tokens, at_s, curves, interval in self._process.received():
            entry, since = self._asked.pop(sequence, (None, 0.0))
            if entry is None:
                continue  # late: the request is already served first come, first served
            found = client.length(abs(tokens))
            low, high = interval
            entry.interval = self._capped(entry, low), self._capped(entry, high)
            if found is not None and self._accuracy.drifted("predictor"):
                entry.doubted_tokens = self._capped(entry, found) if tokens > 0 else 0.0
                self._fail(entry, "drift", entry.state == "pending")
            elif found is not None:
                entry.abstained = tokens < 0
                count_abstained(self._counters, int(entry.abstained))
                self._take(entry, found, "predictor")
                entry.curves, entry.limit = curves, self._limit(entry)
                self._counters.observe("prediction_seconds", "predictor", at_s - since)
            else:
                self._fail(entry, "predictor-error", entry.state == "pending")
            changed.append(entry)
        now = time.monotonic()
        while self._deadlines and self._deadlines[0][0] < now:
            entry, _ = self._asked.pop(self._deadlines.popleft()[1], (None, 0.0))
            if entry is not None:
                self._fail(entry, "predictor-timeout", entry.state == "pending")
                changed.append(entry)
        return changed

    def finished(self, entry: Entry) -> None:
        """The engine is done with a request; one that still waits for its answer had none."""
        if self._asked.pop(entry.sequence, None) is not None:
            self._fail(entry, "predictor-timeout", needed=False)
        request = entry.request
        if request.status.name not in ENDED:
            return
        generated = request.num_output_tokens
        self._sessions.finished(entry.known, generated)
        if entry.doubted_tokens:  # goes on being watched, so that it can be followed again
            self._accuracy.finished("predictor", entry.doubted_tokens, generated, entry.interval)
        elif entry.predicted and not entry.abstained:
            predicted = entry.predicted_tokens
            self._accuracy.finished(entry.source, predicted, generated, entry.interval)

    def close(self) -> None:
        """Ends the predictor's process."""
        if self._process is not None:
            self._process.close()

    def _take(self, entry: Entry, tokens: float, source: str) -> None:
        entry.predicted_tokens = self._capped(entry, tokens)
        entry.source = source
        if entry.state == "pending":
            entry.state = "ready"
        self._counters.add("predictions", source)

    def _capped(self, entry: Entry, tokens: float) -> float:
        """At least one token, and no more than the request may generate."""
        return max(min(tokens, self._limit(entry)), 1.0)

    def _limit(self, entry: Entry) -> float:
        """Tokens that the request may generate."""
        limit = getattr(entry.request.sampling_params, "max_tokens", None)
        room = self._longest - int(entry.request.num_prompt_tokens)
        return room if limit is None else min(limit, room)

    def _fail(self, entry: Entry, reason: str, needed: bool) -> None:
        self._counters.add("fallbacks", reason)
        self._counters.warn(reason, "a request got no predicted length and is served FCFS")
        if needed:
            entry.state = "failed"
