"""Many independent runs over the cores, results in order, errors as one line."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
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
    with _pool(workers) as (pool, others):
        futures: list[Future[Any]] = []
        try:
            with _deaf():
                futures += [pool.submit(_guarded, task, a) for a in todo]
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
            for future in futures:
                future.cancel()


Pool = tuple[ProcessPoolExecutor, set[BaseProcess]]  # and the processes that are not of it
_kept: list[Pool] = []


@contextmanager
def kept_workers(processes: int) -> Iterator[None]:
    """Every ``over_cores`` inside asks the same processes: each takes a second to start."""
    if _kept or processes <= 1:
        yield
        return
    with _pool(processes) as pool:
        _kept.append(pool)
        try:
            yield
        finally:
            _kept.clear()


@contextmanager
def _pool(workers: int) -> Iterator[Pool]:
    if _kept:
        yield _kept[0]
        return
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        try:
            yield pool, others
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
