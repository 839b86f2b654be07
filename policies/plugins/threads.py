"""Threads that do not die silently."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from itertools import count
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from lengthwise.policies.plugins.budget import Budget

if TYPE_CHECKING:
    from lengthwise.policies.plugins.metrics import Counters

LOOK_S = 0.5  # how often a thread without a budget looks for it
STUCK_S = 10.0  # of one call: its thread is given up
AT_ONCE = 4  # calls

T = TypeVar("T")


def keep(
    name: str,
    work: Callable[[], None],
    counters: Counters,
    closed: threading.Event,
    budget: Budget | None = None,
) -> threading.Thread:
    """Starts a daemon thread that runs ``work`` until it returns.

    If it raises, that is said once and counted as a restart of ``name``, and it runs again, as soon
    as the budget has it. ``closed`` ends the waiting for that.
    """
    allowed = budget or Budget()

    def run() -> None:
        while not closed.is_set():
            try:
                work()
                return
            except BaseException as error:  # SystemExit too would end a thread without a word
                counters.warn(f"{name}-thread", f"the {name} thread failed, and goes on: {error!r}")
                counters.add("restarts", f"{name}-thread")
            while not allowed.take():
                counters.warn(
                    f"{name}-thread-off",
                    f"the {name} thread failed more than {allowed.times} times within "
                    f"{allowed.window_s:g} s and stays off for a while",
                )
                if closed.wait(LOOK_S):
                    break

    thread = threading.Thread(target=run, name=f"lengthwise-{name}", daemon=True)
    thread.start()
    return thread


class Aside(Generic[T]):
    """Runs ``work`` for coroutines in threads of its own, none of which the process waits for.

    A call that hangs for ``STUCK_S`` costs its thread, which is said once, counted as a restart of
    ``name`` and replaced as often as ``Budget`` allows.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[Any], T],
        counters: Counters,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._work, self._counters, self._clock = name, work, counters, clock
        self._asked: SimpleQueue[tuple[Any, Future[T]]] = SimpleQueue()
        self._since: dict[int, float] = {}  # thread -> when its call began
        self._given_up: set[int] = set()
        self._numbers = count()
        self._budget = Budget(clock)
        self._never = threading.Event()
        for _ in range(AT_ONCE):
            self._begin()

    async def ask(self, value: Any, timeout_s: float) -> T:
        """``work(value)``; raises ``TimeoutError`` when it is late, at once if all calls hang."""
        if self._stuck() == AT_ONCE:
            raise TimeoutError("all its threads hang")
        answer: Future[T] = Future()
        self._asked.put((value, answer))
        async with asyncio.timeout(timeout_s):  # wait_for loses a cancellation in Python 3.11
            return await asyncio.wrap_future(answer)

    def _begin(self) -> None:
        keep(self._name, partial(self._run, next(self._numbers)), self._counters, self._never)

    def _stuck(self) -> int:
        """How many threads hang and can't be replaced for now."""
        late = self._clock() - STUCK_S
        stuck = [n for n, since in list(self._since.items()) if since < late]
        stuck = [n for n in stuck if n not in self._given_up]
        while stuck and self._budget.take():
            self._given_up.add(stuck.pop())
            self._counters.warn(
                f"{self._name}-stuck",
                f"a call of the {self._name} took more than {STUCK_S:g} s; its thread is replaced",
            )
            self._counters.add("restarts", f"{self._name}-thread")
            self._begin()
        return len(stuck)

    def _run(self, number: int) -> None:
        while number not in self._given_up:
            value, answer = self._asked.get()
            if not answer.set_running_or_notify_cancel():
                continue  # who asked waits no longer
            self._since[number] = self._clock()
            try:
                answer.set_result(self._work(value))
            except BaseException as error:
                # a SystemExit that reached the event loop would end it
                answer.set_exception(error if isinstance(error, Exception) else Exited(error))
            finally:
                del self._since[number]
        self._given_up.discard(number)


class Exited(Exception):
    """Somebody's function tried to end the process."""
