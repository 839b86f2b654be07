"""``lengthwise list``: what there is, one line each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from lengthwise.training.commands.options import Name, form_options

if TYPE_CHECKING:
    from rich.table import Table

    from lengthwise.policy import Score
    from lengthwise.serving.timing.profile import ProfileTiming

Rows = list[tuple[str, ...]]


def policies() -> tuple[tuple[str, ...], Rows]:
    """Policies with what they read and their tunables: defaults, and which values they take."""
    from lengthwise import registry

    rows: Rows = []
    for name in registry.names("policy"):
        policy = registry.load("policy", name)
        rows.append(
            (
                name,
                _about(policy.score.function.__doc__),
                ", ".join(policy.score.features),
                _tunables(policy.score),
                "" if policy.preemption.mode == "none" else policy.preemption.mode,
            )
        )
    return ("policy", "lowest score first", "reads", "tunables", "preempts by"), rows


def routers() -> tuple[tuple[str, ...], Rows]:
    """Routers with what they read and their tunables: defaults, and which values they take."""
    from lengthwise import registry

    rows: Rows = []
    for name in registry.names("router"):
        router = registry.load("router", name)
        about = _about(router.score.function.__doc__)
        if router.choices:
            about = f"Of {router.choices} random replicas: {about[:1].lower()}{about[1:]}"
        reads = ", ".join(router.score.features)
        rows.append((name, about, reads, _tunables(router.score)))
    return ("router", "the lowest-scored replica is taken", "reads", "tunables"), rows


def predictors() -> tuple[tuple[str, ...], Rows]:
    """Predictors with what they read."""
    return ("predictor", "what it does"), _documented("predictor")


def envs() -> tuple[tuple[str, ...], Rows]:
    """Gymnasium environments."""
    return ("env", "what it is"), _documented("env")


def timings() -> tuple[tuple[str, ...], Rows]:
    """Timing profiles with what they were measured on, and how a roofline is spelled."""
    from lengthwise.serving.timing.accuracy import error_of_roofline
    from lengthwise.serving.timing.load import PROFILES, shipped, timing_names

    off = error_of_roofline()
    rows: Rows = []
    for name in timing_names():
        if name in PROFILES:
            profile = shipped(name)
            errors = ", ".join(f"{regime} {error:.0%}" for regime, error in off[name].items())
            rows.append((name, _measured(profile), f"{profile.num_gpu_blocks:,}", errors))
        else:
            rows.append((name, ESTIMATES[name.partition(":")[0]], "", ""))
    heads = ("timing", "where it comes from", "KV blocks", "its roofline is off by")
    return heads, rows


def workloads() -> tuple[tuple[str, ...], Rows]:
    """Workload presets with their source and lengths."""
    from lengthwise.serving.workload import preset
    from lengthwise.serving.workload.presets import PRESETS

    rows: Rows = []
    for name, made in PRESETS.items():
        sample = preset(name, requests=2000)
        source = getattr(made, "source", None) or _about(made.__doc__)
        rows.append(
            (
                name,
                source,
                f"{sample.rate:.2g}",
                f"{sample['prompt_tokens'].mean():,.0f}",
                f"{sample['output_tokens'].mean():,.0f}",
            )
        )
    heads = ("workload", "fitted to", "requests/s", "mean prompt", "mean answer, tokens")
    return heads, rows


ESTIMATES = {
    "roofline": "an estimate from datasheets, e.g. roofline:2xh100/llama-3.1-70b",
    "live": "measured on the GPU at hand while the simulation runs, e.g. live:llama-3.1-8b",
}

KINDS: dict[str, Callable[[], tuple[tuple[str, ...], Rows]]] = {
    "policies": policies,
    "predictors": predictors,
    "routers": routers,
    "timings": timings,
    "workloads": workloads,
    "envs": envs,
}


@click.command(name="list")
@click.argument(
    "kind", type=Name("thing to list", KINDS), metavar=f"[{'|'.join(KINDS)}]", required=False
)
@form_options
def listing(kind: str | None, form: str | None) -> None:
    """Lists what can be named on the command line, one line each; everything without a kind."""
    from rich.console import Group
    from rich.text import Text

    from lengthwise.training.commands.show import show

    found = {name: KINDS[name]() for name in ([kind] if kind else KINDS)}
    # of everything a line each has only the first two columns
    tables = [_table(heads, rows, None if kind else 2) for heads, rows in found.values()]
    named = {
        name: [dict(zip((heads[0], "about", *heads[2:]), row, strict=True)) for row in rows]
        for name, (heads, rows) in found.items()
    }
    show(
        form,
        lambda width: Group(*[part for table in tables for part in (table, Text())][:-1]),
        lambda: named if kind is None else named[kind],
        lambda: [
            row if kind else {"kind": name, "name": next(iter(row.values())), **row}
            for name, rows in named.items()
            for row in rows
        ],
    )


def _table(heads: tuple[str, ...], rows: Rows, most: int | None) -> Table:
    """Names and what is known of them, in the first ``most`` columns."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for index, head in enumerate(heads[:most]):
        numeric = all(row[index].replace(",", "").replace(".", "").isdigit() for row in rows)
        table.add_column(
            head,
            style="bold" if index == 0 else "",
            no_wrap=index == 0,
            justify="right" if numeric else "left",
        )
    for row in rows:
        table.add_row(*row[:most])
    return table


def _documented(kind: str) -> Rows:
    """Names with what their docstring says first, read from the source: importing may be slow."""
    import ast
    from importlib.util import find_spec
    from pathlib import Path

    from lengthwise import registry

    rows: Rows = []
    for name, target in registry.TABLES[kind].items():
        module, _, attribute = target.partition(":")
        found = find_spec(module)
        assert found is not None and found.origin is not None
        tree = ast.parse(Path(found.origin).read_text("utf-8"))
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == attribute:
                rows.append((name, _about(ast.get_docstring(node))))
    return rows


def _measured(profile: ProfileTiming) -> str:
    about = profile.about
    engine = about["engine"]
    return f"measured: {about['gpu']}, {engine['name']} {engine['version']}, {about['date']}"


def _tunables(score: Score) -> str:
    return ", ".join(
        f"{name}={value} ({score.ranges[name]})" if name in score.ranges else f"{name}={value}"
        for name, value in score.tunables.items()
    )


def _about(docstring: str | None) -> str:
    """A docstring's first paragraph as one line."""
    paragraph, _, _ = (docstring or "").strip().partition("\n\n")
    return " ".join(paragraph.split()).removesuffix(".").replace("``", "")
