"""``lengthwise reproduce``: a published table, ours beside theirs."""

from __future__ import annotations

from typing import Any

import click

from lengthwise.training.commands.options import form_options, processes_option, seeds_option


@click.command()
@click.argument("paper", metavar="PAPER")
@seeds_option
@processes_option
@form_options
@click.option(
    "--small", is_flag=True,
    help="intelligent-router: learners that see a tenth of the decisions, shorter episodes.",
)  # fmt: skip
def reproduce(paper: str, seeds: int, processes: int, form: str | None, small: bool) -> None:
    """Reproduces the table of PAPER: vllm-ltr, ssjf or intelligent-router."""
    from lengthwise.errors import InputError
    from lengthwise.eval.flat import reproduction_document, reproduction_rows
    from lengthwise.eval.reproduce import PAPERS
    from lengthwise.eval.reproduce import reproduce as run
    from lengthwise.eval.terminal import reproduction_view
    from lengthwise.training.commands.show import progress, show
    from lengthwise.training.intelligent_router import PAPER, SMALL

    if small and paper in PAPERS:
        raise InputError(f"--small is of intelligent-router, not of {paper}")
    options: dict[str, Any] = SMALL if small else {}
    with progress("reproducing") as moved:
        found = run(paper, seeds, processes, moved, papers={**PAPERS, **PAPER}, **options)
    show(
        form,
        lambda width: reproduction_view(found),
        lambda: reproduction_document(found),
        lambda: reproduction_rows(found),
    )
