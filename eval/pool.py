"""Many independent runs over the cores, results in order, errors as one line."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from lengthwise.errors import InputError, LengthwiseError


def over_cores(
    task: Callable[..., Any], arguments: Iterable[tuple[Any, ...]], processes: int
) -> Iterator[Any]:
    """``task(*a)`` for each ``a``, yielded in order; in this process where ``processes`` is 1.

    Other processes are spawned, not forked, so ``task`` and its arguments must be picklable and a
    script that asks for several processes must stand under ``if __name__ == "__main__"``.
    """
    todo = list(arguments)
    workers = min(processes, len(todo))
    if workers <= 1:
        yield from (task(*a) for a in todo)
        return
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            with _deaf():
                futures: list[Future[Any]] = [pool.submit(_guarded, task, a) for a in todo]
            for future in futures:
                found, error = future.result()
                if error is not None:
                    raise InputError(error)
                yield found
        except BrokenProcessPool as error:
            raise LengthwiseError(
                "a worker process died (out of memory?); try --processes 1"
            ) from error
        except KeyboardInterrupt:  # the work under way may take minutes
            for worker in set(multiprocessing.active_children()) - others:
                worker.terminate()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _deaf() -> Iterator[None]:
    """Processes that are started inside never hear Ctrl-C, which reaches all of a terminal's: the
    first one decides what comes of it, and hears it at the end of this.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _guarded(task: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, str | None]:
    """The result, or the message of an ``InputError``: its subclasses can't all be pickled."""
    try:
        return task(*arguments), None
    except InputError as error:
        return None, str(error)
