"""How commands answer: a table, JSON or CSV; notices and progress on standard error beside it."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
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
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar that is moved by calling with (done, all); nothing where nobody looks."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
