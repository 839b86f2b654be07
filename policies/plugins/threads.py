"""Threads that do not die silently."""

from __future__ import annotations

import threading
from collections.abc import Callable

from lengthwise.policies.plugins.budget import Budget
from lengthwise.policies.plugins.metrics import Counters

LOOK_S = 0.5  # how often a thread without a budget looks for it


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
            except Exception as error:
                counters.warn(f"{name}-thread", f"the {name} thread failed, and goes on: {error!r}")
                counters.add("restarts", f"{name}-thread")
            while not allowed.take() and not closed.wait(LOOK_S):
                pass

    thread = threading.Thread(target=run, name=f"lengthwise-{name}", daemon=True)
    thread.start()
    return thread
