"""``lengthwise doctor``: what is here, and what would be refused."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING

import click

from lengthwise.training.commands.options import form_options

if TYPE_CHECKING:
    from rich.table import Table

    from lengthwise.training.doctor import Finding


@click.command()
@form_options
def doctor(form: str | None) -> None:
    """Says what is installed and found on this machine, and what would be refused here, and why:
    versions, extras, engines and routers with the versions that were tried, the GPU, caches and
    the settings of plugins in the environment. Exits with 2 where something is wrong.

    \b
    lengthwise doctor
    lengthwise doctor --json
    """
    from lengthwise.training.commands.show import show
    from lengthwise.training.doctor import as_json
    from lengthwise.training.doctor import doctor as look

    found = look()
    show(
        form, lambda width: _table(found), lambda: as_json(found),
        lambda: [dataclasses.asdict(one) for one in found],
    )  # fmt: skip
    wrong = [one for one in found if one.verdict == "wrong"]
    if wrong:
        for one in wrong:
            click.echo(f"lengthwise: {one.name} ({one.found}): {one.said}", err=True)
        sys.exit(2)


def _table(found: list[Finding]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    styles = {"ok": "green", "note": "yellow", "absent": "dim", "wrong": "red"}
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    table.add_column()
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    part = ""
    for one in found:
        if part and one.part != part:
            table.add_section()
        shown = "" if one.part == part else one.part
        table.add_row(shown, one.name, one.found, Text(one.verdict, styles[one.verdict]), one.said)
        part = one.part
    return table
