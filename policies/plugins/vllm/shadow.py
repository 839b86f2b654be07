"""Shadow mode: lengths are predicted, judged and recorded under vLLM's own order, untouched.

This is how a predictor is tried on live traffic before anything depends on it.
"""

from __future__ import annotations

from itertools import count
from typing import Any

from lengthwise.policies.plugins import client
from lengthwise.policies.plugins.metrics import Counters
from lengthwise.policies.plugins.settings import Settings
from lengthwise.policies.plugins.vllm.clock import Clock
from lengthwise.policies.plugins.vllm.entry import bare_entry, entry_of
from lengthwise.policies.plugins.vllm.lengths import Lengths
from lengthwise.policies.plugins.waits import Waits


class Shadow:
    """Watches one scheduler, of which it changes nothing; has the driver's calls that it needs.

    Raises ``InputError`` for a predictor that can't be loaded.
    """

    def __init__(self, scheduler: Any, settings: Settings, counters: Counters) -> None:
        self.counters = counters
        self._scheduler = scheduler
        self.clock = Clock()
        self._sequence = count()
        self._lengths = Lengths(settings, scheduler.vllm_config.model_config, counters)
        self._waits = Waits(counters)

    def arrive(self, request: Any) -> None:
        """A request is about to be added; never raises."""
        if request.request_id in self._scheduler.requests:
            return  # the next turn of a streaming session, which has its entry
        try:
            self._take_in(request)
        except Exception as error:
            self.counters.warn("plugin-error", f"shadow mode passes over a request: {error!r}")
            self.counters.add("fallbacks", "plugin")
            bare_entry(request, next(self._sequence), self.clock.now_s())

    def _take_in(self, request: Any) -> None:
        arrival_s = self.clock.arrival_s(request.arrival_time)
        entry = entry_of(request, next(self._sequence), arrival_s, self.counters)
        told = client.sent(request.sampling_params).get("predicted_tokens")
        self._lengths.ask(entry, told, needed=False)

    def after_step(self) -> None:
        """Takes in the predictions that came, and who was admitted; never raises."""
        try:
            self._look()
        except Exception as error:  # of ours: the engine must go on
            self.counters.warn("plugin-error", f"shadow mode missed a step: {error!r}")
            self.counters.add("failed_steps", "shadow")

    def _look(self) -> None:
        self._lengths.news()
        now_s = self.clock.now_s()
        for request in reversed(self._scheduler.running):  # vLLM appends those that it admits
            entry = request.lengthwise
            if entry.running:
                return
            entry.running = True
            if entry.predicted:
                self._waits.admitted(entry.predicted_tokens, now_s - entry.arrival_s)

    def finished(self, request: Any) -> None:
        """The engine is done with a request."""
        if (entry := getattr(request, "lengthwise", None)) is not None:
            self._lengths.finished(entry)

    def close(self) -> None:
        """Ends the predictor's process."""
        self._lengths.close()


class ShadowScheduling:
    """Goes before a scheduler's class in a class made of both: predicts, and changes no order.

    ``lengthwise`` is the one attribute that is added to theirs.
    """

    lengthwise: Shadow

    def __init__(
        self, vllm_config: Any, *args: Any, lengthwise: tuple[Settings, Counters], **kwargs: Any
    ) -> None:
        super().__init__(vllm_config, *args, **kwargs)  # type: ignore[call-arg]
        self.lengthwise = Shadow(self, *lengthwise)

    def add_request(self, request: Any) -> None:
        """A request arrives."""
        self.lengthwise.arrive(request)
        super().add_request(request)  # type: ignore[misc]

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """One step: vLLM's own."""
        output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        self.lengthwise.after_step()
        return output

    def shutdown(self) -> None:
        """The engine ends."""
        self.lengthwise.close()
        super().shutdown()  # type: ignore[misc]

    def _free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        self.lengthwise.finished(request)
        return super()._free_request(request, *args, **kwargs)  # type: ignore[misc]
