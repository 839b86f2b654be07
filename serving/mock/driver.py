"""The engine in real time: it is told how late it is, and what comes of that goes to clients."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple

from lengthwise.errors import LengthwiseError
from lengthwise.picoseconds import PS
from lengthwise.serving.live import Asked, LiveNode
from lengthwise.serving.mock.metrics import Metrics
from lengthwise.serving.reference.request import Request


class Row(NamedTuple):
    """A request that has ended, in seconds of the engine; -1 for what it did not come to."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int  # those that its client has
    first_token_s: float
    finish_s: float
    finish_reason: str


class Served:
    """An answer on its way: how many of its tokens its client may have by now."""

    def __init__(self, request: Request, reason: str) -> None:
        self.request, self.reason = request, reason
        self.tokens = 0
        self.first_ps = self.last_ps = -1
        self.failed: LengthwiseError | None = None
        self._more = asyncio.Event()

    @property
    def complete(self) -> bool:
        """Whether all tokens are there."""
        return self.tokens == self.request.output

    async def more(self) -> None:
        """Waits until there is more than when this was last asked; raises what ended the engine."""
        await self._more.wait()
        self._more.clear()
        if self.failed is not None:
            raise self.failed

    async def all(self) -> None:
        """Waits for the last token."""
        while not self.complete:
            await self.more()

    def tell(self) -> None:
        """Wakes who waits."""
        self._more.set()


class Driver:
    """Lets a node's time pass with the machine's, ``speed`` times as fast.

    All its methods belong to one event loop. ``on_failure`` hears of what the engine can't go on
    from.
    """

    def __init__(
        self,
        node: LiveNode,
        metrics: Metrics,
        speed: float = 1.0,
        on_failure: Callable[[LengthwiseError], None] = lambda error: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.node, self.metrics, self.speed = node, metrics, speed
        self._clock, self._on_failure = clock, on_failure
        self._began_s = clock()
        self._served: dict[Request, Served] = {}
        self.log: list[Row] | None = None  # set to a list, it collects every request
        self._timer: asyncio.TimerHandle | None = None
        self.failed: LengthwiseError | None = None

    @property
    def under_way(self) -> int:
        """Answers that are not complete."""
        return len(self._served)

    def now_ps(self) -> int:
        """The engine's time."""
        return int((self._clock() - self._began_s) * self.speed * PS)

    def add(self, asked: Callable[[float], Asked], reason: str) -> Served:
        """A request comes now; ``asked`` is told when that is, in seconds of the engine."""
        now_ps = self.now_ps()
        self._advance(now_ps)
        if self.failed is not None:
            raise self.failed
        request = self.node.add(asked(now_ps / PS), now_ps)
        served = self._served[request] = Served(request, reason)
        self._look_later()
        return served

    def leave(self, served: Served) -> None:
        """A client has all of its answer, or hangs up before that."""
        if self.failed is not None:
            return
        self._advance(self.now_ps())
        if self._served.pop(served.request, None) is None:  # it is complete by now
            return
        self.node.remove(served.request)
        self._ended(served, "abort")
        self._look_later()

    def look(self) -> None:
        """Brings the engine to the present moment."""
        self._advance(self.now_ps())
        self._look_later()

    def close(self) -> None:
        """Time stands still from now on."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_later(self) -> None:
        self.close()
        next_ps = self.node.next_ps
        if next_ps is not None and self.failed is None:
            in_s = max(next_ps - self.now_ps(), 0) / PS / self.speed
            self._timer = asyncio.get_running_loop().call_later(in_s, self.look)

    def _advance(self, until_ps: int) -> None:
        if self.failed is not None:
            return
        try:
            tokens = self.node.advance(until_ps)
        except LengthwiseError as error:  # requests that preempt each other forever, as in vLLM
            self.failed = error
            for served in self._served.values():
                served.failed = error
                served.tell()
            self._on_failure(error)
            return
        for seen_ps, request, last in tokens:
            if request not in self._served:
                continue
            served = self._served[request]
            served.tokens += 1
            if served.tokens == 1:
                served.first_ps = seen_ps
                self.metrics.first_token(request, seen_ps)
            else:
                self.metrics.token(seen_ps - served.last_ps)
            served.last_ps = seen_ps
            if last:
                del self._served[request]
                self._ended(served, served.reason)
            served.tell()

    def _ended(self, served: Served, reason: str) -> None:
        request, first_ps, last_ps = served.request, served.first_ps, served.last_ps
        self.metrics.ended(request, reason, first_ps, last_ps)
        if self.log is not None:
            first_s = first_ps / PS if served.tokens else -1.0
            last_s = last_ps / PS if served.complete else -1.0
            arrival_s = request.arrival_ps / PS
            row = Row(arrival_s, request.prompt, served.tokens, first_s, last_s, reason)
            self.log.append(row)
