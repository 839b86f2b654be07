"""``lengthwise reproduce``: a published table, ours beside theirs."""

from __future__ import annotations

from typing import Any

import click

from lengthwise.training.commands.folders import cells_of, claim, force_option
from lengthwise.training.commands.options import (
    form_options,
    out_option,
    processes_option,
    seeds_option,
)


@click.command()
@click.argument("paper", metavar="[PAPER]", required=False)
@seeds_option
@processes_option
@form_options
@out_option
@force_option
@click.option(
    "--small", is_flag=True,
    help="intelligent-router: learners that see a tenth of the decisions, shorter episodes.",
)  # fmt: skip
@click.pass_obj
def reproduce(
    command: str,
    /,
    paper: str | None,
    seeds: int,
    processes: int,
    form: str | None,
    out: str | None,
    force: bool,
    small: bool,
) -> None:
    """Reproduces the table of PAPER; without one, lists the papers.

    With --out, the table is kept as Parquet, and what is finished of it beside it until all is, so
    that the same command goes on after a stop.
    """
    from lengthwise.errors import InputError
    from lengthwise.eval.flat import reproduction_document, reproduction_rows
    from lengthwise.eval.output import check_writable, save_rows
    from lengthwise.eval.reproduce import PAPERS, about
    from lengthwise.eval.reproduce import reproduce as run
    from lengthwise.eval.terminal import papers_view, reproduction_view
    from lengthwise.training.commands.show import progress, show, wrote
    from lengthwise.training.commands.stopped import cells_kept, kept
    from lengthwise.training.intelligent_router import PAPER, SMALL

    papers = {**PAPERS, **PAPER}
    if paper is None:
        told = about(papers)
        rows = [{"paper": name, "reproduced": what} for name, what in told.items()]
        show(form, lambda width: papers_view(told), lambda: {"papers": rows}, lambda: rows)
        return
    if small and paper in PAPERS:
        raise InputError(f"--small is of intelligent-router, not of {paper}")
    options: dict[str, Any] = SMALL if small else {}
    if out is not None:
        check_writable(out)
    claim(command, out, force)
    cells = cells_of(command, out, force)
    with kept(lambda: cells_kept(out)), progress("reproducing") as moved:
        found = run(paper, seeds, processes, moved, cells, papers=papers, **options)
    show(
        form,
        lambda width: reproduction_view(found),
        lambda: reproduction_document(found),
        lambda: reproduction_rows(found),
    )
    if out is not None:
        config = {"paper": paper, "seeds": seeds, **options}
        wrote(save_rows(reproduction_rows(found), out, "table.parquet", config, command), form)
        if cells is not None:
            cells.drop()
