"""``lengthwise demo``: train, simulate, compare and report; nothing to download."""

from __future__ import annotations

import click

from lengthwise.training.commands.folders import claim, force_option
from lengthwise.training.commands.options import form_options, processes_option


@click.command()
@click.option("--out", default="runs/demo", show_default=True, metavar="DIR")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, metavar="N")
@click.option(
    "--requests",
    type=click.IntRange(20),
    default=2000,
    show_default=True,
    metavar="N",
    help="Prompts drawn at each load; half of them, the test split, are served.",
)
@processes_option
@force_option
@form_options
@click.pass_obj
def demo(
    command: str,
    /,
    out: str,
    seeds: int,
    requests: int,
    processes: int,
    force: bool,
    form: str | None,
) -> None:
    """Trains a predictor of answer lengths and compares schedulers that use it.

    Nothing is downloaded: the prompts are generated, the GPU is a profile measured on an H200. The
    tables show FCFS, SJF, SRTF and MLFQ, with the predictor and with an oracle, at two loads: on an
    engine as vllm serve starts it, where nobody waits, and on one with few seats.
    """
    from lengthwise.eval.flat import comparison_document, comparison_rows
    from lengthwise.eval.terminal import comparisons_view, console, prediction_view
    from lengthwise.training.commands.show import notices, progress, show
    from lengthwise.training.demo import run_demo

    claim(command, out, force)
    screen = console()
    screen.stderr = form is not None
    with progress("simulating") as moved:
        found = run_demo(
            out, seeds=seeds, requests=requests, processes=processes, progress=moved,
            say=screen.print, command=command,
            trained=lambda report: screen.print(prediction_view(report)),
        )  # fmt: skip
    screen.print("3. What it is worth:\n")
    each = found.comparisons
    if form is not None:
        notices(dict.fromkeys(notice for one in each.values() for notice in one.notices))
    show(
        form,
        lambda width: comparisons_view(each, width),
        lambda: {label: comparison_document(one) for label, one in each.items()},
        lambda: [{"engine": at, **row} for at, one in each.items() for row in comparison_rows(one)],
    )
    click.echo(f"\nReport, figures and every run: {found.report}", err=form is not None)
