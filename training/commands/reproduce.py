"""``lengthwise reproduce``: a published table, ours beside theirs."""

from __future__ import annotations

import click

from lengthwise.training.commands.options import processes_option, seeds_option


@click.command()
@click.argument("paper", metavar="PAPER")
@seeds_option
@processes_option
def reproduce(paper: str, seeds: int, processes: int) -> None:
    """Reproduces the table of PAPER: vllm-ltr or ssjf."""
    from lengthwise.eval.reproduce import reproduce as run
    from lengthwise.eval.terminal import console, reproduction_view
    from lengthwise.training.commands.show import progress

    with progress("reproducing") as moved:
        found = run(paper, seeds, processes, moved)
    console().print(reproduction_view(found))
