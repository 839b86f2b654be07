"""How commands answer: a table, JSON or CSV; notices and progress on standard error beside it."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import RenderableType


def show(
    form: str | None,
    view: Callable[[int], RenderableType],
    document: Callable[[], Any],
    rows: Callable[[], Sequence[Mapping[str, Any]]],
    wide: bool = False,
) -> None:
    """Prints what was found in the form that was asked for, and only makes that one.

    ``view`` takes the width of the terminal; ``document`` is for JSON, ``rows`` are for CSV. With
    ``wide``, lines are never folded.
    """
    if form == "json":
        from lengthwise.eval.output import plain

        click.echo(json.dumps(plain(document()), indent=2, ensure_ascii=False, allow_nan=False))
    elif form == "csv":
        click.echo(as_csv(rows()), nl=False)
    else:
        from lengthwise.eval.terminal import console

        screen = console(wide)
        screen.print(view(screen.width))


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows under the union of their names, in the order in which those come; unknown is empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(value) for name, value in row.items()})
    return text.getvalue()


def _cell(value: Any) -> Any:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value


def wrote(path: object, form: str | None) -> None:
    """Says where results lie; on standard error where standard output is for the results."""
    click.echo(f"wrote {path}", err=form is not None)


def notices(lines: Iterable[str]) -> None:
    """What was noticed about the input, one line each."""
    for line in lines:
        click.echo(f"note: {line}", err=True)


@contextmanager
def progress(what: str, *, shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """A bar that is moved by calling with (done, all); without a terminal a line now and then."""
    if not shown:
        yield lambda done, total: None
        return
    if not sys.stderr.isatty():
        with _lines(what) as moved:
            yield moved
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


LINE_AFTER_S, LINE_EVERY_S = 10.0, 30.0


@contextmanager
def _lines(what: str) -> Iterator[Callable[[int, int], None]]:
    """Says every half minute how far the work is, also while nothing is finished."""
    began = time.monotonic()
    at, first = [0, 0], [0, began]  # now, and when the count began, which may go on from others
    ended = threading.Event()

    def say() -> None:
        wait_s = LINE_AFTER_S
        while not ended.wait(wait_s):
            done, total = at
            far = f"{done:,} of {total:,} done, " if total else ""
            now = time.monotonic()
            pace = (done - first[0]) / max(now - first[1], 1e-9)
            left = f", about {(total - done) / pace:.0f} s left" if pace and now > first[1] else ""
            click.echo(f"{what}: {far}{now - began:.0f} s{left}", err=True)
            wait_s = LINE_EVERY_S

    def moved(done: int, total: int) -> None:
        if not at[1]:
            first[:] = done, time.monotonic()
        at[:] = done, total

    speaker = threading.Thread(target=say, daemon=True)
    speaker.start()
    try:
        yield moved
    finally:
        ended.set()
        speaker.join()
