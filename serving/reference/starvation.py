"""The starvation guard of a simulated replica."""

from __future__ import annotations

from dataclasses import dataclass

from lengthwise.policy import Guard
from lengthwise.serving.reference.request import Request
from lengthwise.starvation import UNKNOWN_TOKENS, StarvationGuard, Waiter


@dataclass(slots=True, eq=False, kw_only=True)
class _Waiter(Waiter):
    request: Request

    @property
    def gone(self) -> bool:
        return self.request.generated == self.request.output or self.request.waiter is not self


class Watch:
    """Feeds ``StarvationGuard`` with requests and simulated time."""

    def __init__(self, rule: Guard) -> None:
        self._guard: StarvationGuard[_Waiter] = StarvationGuard(rule)

    def arrived(self, request: Request, *, idle: bool) -> None:
        """A request arrives; ``idle`` says that the replica had none."""
        if idle:
            self._guard.idle()
        waiter = request.waiter = _Waiter(
            request=request, sequence=request.id, arrival_ps=request.arrival_ps,
            predicted_tokens=request.predicted or UNKNOWN_TOKENS,
        )  # fmt: skip
        self._guard.arrived(waiter)
        self._guard.watch(waiter)

    def admitted(self, request: Request, now_ps: int) -> None:
        """A request joins the batch."""
        self._guard.admitted(_of(request), now_ps)

    def preempted(self, request: Request, now_ps: int) -> None:
        """A request leaves the batch unfinished."""
        self._guard.preempted(_of(request), request.generated, now_ps)

    def send_ahead(self, now_ps: int) -> list[Request]:
        """Marks those that have waited too long by now; returns them."""
        self._guard.turns(now_ps)
        late = [waiter.request for waiter in self._guard.send_ahead(now_ps)]
        for request in late:
            request.ahead = True
        return late


def _of(request: Request) -> _Waiter:
    assert isinstance(request.waiter, _Waiter)
    return request.waiter
