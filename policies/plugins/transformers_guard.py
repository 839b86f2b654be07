"""The starvation guard in transformers' continuous batching, where passed over is waiting too."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from lengthwise.picoseconds import picoseconds
from lengthwise.policy import Guard
from lengthwise.starvation import StarvationGuard, Waiter


@dataclass(slots=True, eq=False, kw_only=True)
class _Waiter(Waiter):
    request_id: str
    has: Callable[[str], bool]

    @property
    def gone(self) -> bool:
        return not self.has(self.request_id)


class BatchGuard:
    """Feeds ``StarvationGuard`` with who is in a batch and who is not.

    ``has`` says whether the scheduler still has a request, by its id. Times are in seconds.
    """

    def __init__(self, rule: Guard, has: Callable[[str], bool]) -> None:
        self._guard: StarvationGuard[_Waiter] = StarvationGuard(rule)
        self._has = has
        self._waiters: dict[str, _Waiter] = {}
        self._seated: set[str] = set()

    def arrived(self, state: Any, *, idle: bool) -> None:
        """A request arrives, or comes back; ``idle`` says that the scheduler had none."""
        if idle:
            self._guard.idle()
            self._waiters.clear()
            self._seated.clear()
        if state.request_id in self._waiters:
            return  # its KV cache was given up
        waiter = self._waiters[state.request_id] = _Waiter(
            request_id=state.request_id, has=self._has, sequence=state.lengthwise_sequence,
            arrival_ps=picoseconds(state.created_time), predicted_tokens=state.lengthwise_predicted,
        )  # fmt: skip
        self._guard.arrived(waiter)
        self._guard.watch(waiter)

    def send_ahead(self, now_s: float) -> int:
        """Before a batch: marks those that have waited too long by now; how many."""
        now_ps = picoseconds(now_s)
        self._guard.turns(now_ps)
        return len(self._guard.send_ahead(now_ps))

    def is_ahead(self, request_id: str) -> bool:
        """Whether a request goes before all others."""
        waiter = self._waiters.get(request_id)
        return waiter is not None and waiter.ahead

    def scheduled(self, states: Iterable[Any], now_s: float, known: dict[str, Any]) -> None:
        """After a batch of ``states``; ``known`` are all that the scheduler has, by id."""
        now_ps, seated = picoseconds(now_s), {state.request_id for state in states}
        for request_id in self._seated - seated:
            if request_id in known:  # it was passed over
                generated = len(known[request_id].generated_tokens)
                self._guard.preempted(self._waiters[request_id], generated, now_ps)
        for state in states:
            if state.request_id not in self._waiters:  # forked off another one, in the batch
                self.arrived(state, idle=False)
            if state.request_id not in self._seated:
                self._guard.admitted(self._waiters[state.request_id], now_ps)
        self._seated = seated
        if len(self._waiters) > 2 * len(known) + 64:
            self._waiters = {i: w for i, w in self._waiters.items() if i in known}
