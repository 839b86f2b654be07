"""``lengthwise plan``: the cheapest mix of nodes that serves a workload within an SLO."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lengthwise.errors import InputError
from lengthwise.training.commands.folders import dry_run_option, force_option, same_run
from lengthwise.training.commands.options import (
    Specs,
    form_options,
    processes_option,
    seed_option,
)

if TYPE_CHECKING:
    from lengthwise.eval.placement import Plan

MADE_BY = "# "  # how the first line of a nodes file begins, which tells the command


@click.command()
@click.argument("file", metavar="FILE")
@click.option(
    "--rate", type=float, metavar="R",
    help="Requests/s. Default: the file's, or its workload's own.",
)  # fmt: skip
@click.option(
    "--requests", type=click.IntRange(1), metavar="N", help="How many. Default: the file's."
)
@click.option(
    "--routers", "--router", "routers", type=Specs(), default="plan,least-requests",
    show_default=True,
    help="Behind which the nodes are simulated; plan: each request where the plan has its bucket.",
)  # fmt: skip
@seed_option
@processes_option
@form_options
@click.option("--out", metavar="NODES.yaml", help="Write the nodes, for --nodes of other commands.")
@force_option
@dry_run_option
@click.pass_obj
def plan(
    command: str,
    /,
    file: str,
    rate: float | None,
    requests: int | None,
    routers: tuple[str, ...],
    seed: int,
    processes: int,
    form: str | None,
    out: str | None,
    force: bool,
    dry_run: bool,
) -> None:
    """Finds the nodes that serve a workload within an SLO at the least price, and simulates them.

    FILE is YAML: gpus (each a timing and a price in $/h, with a name, a limit and engine options),
    workload, slo, and, where wanted, rate, requests, attainment, headroom, slices and buckets.

    \b
    lengthwise plan fleet.yaml --rate 20 --out nodes.yaml
    lengthwise compare azure-conv-2023 --nodes nodes.yaml --routers jsq,least-requests --rates 20
    """
    from lengthwise.eval.buckets import buckets_of
    from lengthwise.eval.placement import BY_PLAN, read_plan, workload_of
    from lengthwise.eval.placement import plan as find
    from lengthwise.eval.placement_view import limits_of, plan_document, plan_rows, plan_view
    from lengthwise.policies import load_router
    from lengthwise.training.commands.show import notices, progress, show, wrote

    if rate is not None and not 0 < rate < float("inf"):
        raise InputError(f"--rate takes a positive number of requests/s, not {rate:g}")
    wanted = read_plan(file, requests)
    for name in routers:
        if name != BY_PLAN:
            load_router(name)
    if out is not None:
        _claim(command, Path(out), force)
    if dry_run:
        workload = workload_of(wanted, rate, seed)
        buckets, _ = buckets_of(workload, wanted.prompts, wanted.outputs)
        click.echo(
            f"would plan {wanted.source.name} ({len(workload):,} requests at {workload.rate:.3g} a "
            f"second in {len(buckets)} buckets) within {limits_of(wanted)}"
        )
        pairs = len(buckets) * len(wanted.types)
        click.echo(
            f"on {', '.join(one.name for one in wanted.types)}: {pairs} searches of a rate, about "
            f"a tenth of a second each in {processes} processes; then the mix, simulated behind "
            f"{', '.join(routers)}"
        )
        return
    with progress("measuring buckets") as moved:
        found = find(wanted, rate, seed, routers, processes, moved)
    notices(found.notices)
    show(
        form, lambda width: plan_view(found), lambda: plan_document(found),
        lambda: plan_rows(found),
    )  # fmt: skip
    if out is not None:
        wrote(_write(found, Path(out), command), form)


def _claim(command: str, path: Path, force: bool) -> None:
    """Raises ``InputError`` for a file that is there, of no such command, and not ``force``."""
    if path.suffix not in (".yaml", ".yml"):
        raise InputError(f"--out takes a .yaml file for the nodes, not {str(path)!r}")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise InputError(f"can't write nodes to {str(path)!r}: it is no file in a folder")
    if force or not path.exists():
        return
    first = path.read_text("utf-8", "replace").partition("\n")[0]
    theirs = first.removeprefix(MADE_BY) if first.startswith(MADE_BY + "lengthwise ") else None
    if theirs is None or not same_run(theirs, command):
        raise InputError(
            f"{str(path)!r} is there already: name another file, or --force replaces it"
        )


def _write(found: Plan, path: Path, command: str) -> Path:
    """The nodes file, whole, with the command in its first line."""
    import yaml

    from lengthwise.writing import whole_file

    text = yaml.safe_dump(found.nodes(), sort_keys=False, allow_unicode=True)
    line = " ".join(shlex.join(shlex.split(command)).split())
    with whole_file(path) as fresh:
        fresh.write_text(f"{MADE_BY}{line}\n{text}", "utf-8")
    return path
