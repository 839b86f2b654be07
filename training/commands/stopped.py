"""Ctrl-C and SIGTERM: one line that says what is kept of long work, and how it goes on."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Stopped(Exception):
    """Somebody ended the work; the message says what is kept, ``number`` is the signal's."""

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.number = number


class Interrupted(KeyboardInterrupt):
    """The signal ``number`` was received; the message, if any, says what the work has kept."""

    def __init__(self, message: str = "", number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.number = number


@contextmanager
def kept(what: Callable[[], str]) -> Iterator[None]:
    """Raises ``Stopped`` where SIGTERM or Ctrl-C end the work inside, with what ``what`` says.

    Only the main thread can listen to SIGTERM; elsewhere nothing is changed.
    """

    def heard(number: int, _: Any) -> None:
        raise Interrupted(number=number)

    listens = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, heard) if listens else None
    try:
        yield
    except KeyboardInterrupt as stop:
        number = stop.number if isinstance(stop, Interrupted) else signal.SIGINT
        said = str(stop) or f"{signal.Signals(number).name}: {what()}"
        raise Stopped(said, number) from None
    finally:
        if listens:
            signal.signal(signal.SIGTERM, before)


def cells_kept(out: str | None) -> str:
    """What a command says of the cells beside its --out."""
    from lengthwise.eval.cells import Cells
    from lengthwise.training.commands.folders import cells_folder

    if out is None:
        return "nothing is kept without --out"
    folder = cells_folder(out)
    count = len(Cells(folder))
    cells = "1 finished cell" if count == 1 else f"{count} finished cells"
    return f"{cells} kept in {folder}; the same command goes on from there"


def parts_kept(out: str) -> str:
    """What ``profile`` says of the groups of batches that it has measured."""
    from lengthwise.serving.timing.parts import Parts

    parts = Parts.beside(Path(out))
    if count := len(parts.done()):
        groups = "1 measured group" if count == 1 else f"{count} measured groups"
        return f"{groups} of batches kept in {parts.folder}; the same command goes on from there"
    return f"nothing was measured yet; {out} was not written"


def checkpoint_kept(out: str) -> str:
    """What training a predictor says of its checkpoints."""
    checkpoint = Path(f"{out}.checkpoint")
    if any(checkpoint.rglob("*.pt")):
        return f"the last epoch is kept in {checkpoint}; the same command goes on from there"
    return f"nothing was written to {out}; this model keeps nothing until it is trained"


def told_to_end() -> asyncio.Event:
    """An event that SIGTERM or Ctrl-C set, for a server that then ends in peace."""
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    return ended
