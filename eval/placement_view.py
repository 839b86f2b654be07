"""A plan as tables in the terminal, and as plain rows and a document for JSON and CSV."""

from __future__ import annotations

import math
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lengthwise.eval.placement import BY_PLAN, Plan, Wanted
from lengthwise.eval.tables import number


def plan_view(found: Plan) -> RenderableType:
    """What to rent, what one type alone would cost, and what the simulation says of it."""
    wanted = found.wanted
    rented = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    rented.add_column("node", style="bold")
    for head in ("count", "share of load", "utilization", "$/h"):
        rented.add_column(head, justify="right")
    rented.add_column("timed")
    for row in plan_rows(found):
        rented.add_row(
            row["node"], str(row["count"]), f"{row['share']:.1%}" if row["count"] else "",
            f"{row['utilization']:.0%}" if row["count"] else "",
            f"{row['usd_per_hour']:.2f}" if row["count"] else "", row["timed"],
        )  # fmt: skip
    singles = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    singles.add_column("one type alone", style="bold")
    for head in ("count", "$/h", "the plan saves", "within the SLO"):
        singles.add_column(head, justify="right")
    singles.add_column("")
    for one in found.singles:
        if one.count is None:
            singles.add_row(one.name, "–", "–", "–", "–", f"no: {one.why}")
        else:
            saved = 1 - found.mix.cost / one.cost
            singles.add_row(
                one.name, str(one.count), f"{one.cost:.2f}", f"{saved:.0%}",
                f"{one.attainment:.2%}", "",
            )  # fmt: skip
    title = (
        f"{wanted.source.name} at {found.rate:.3g} requests/s, {100 * wanted.attainment:g}% of "
        f"requests within {limits_of(wanted)}"
    )
    lead = f"Rent {_nodes(found)}: {found.mix.cost:.2f} $/h"
    best = found.cheapest_single
    if best is None:
        lead += "; no type serves all of it alone."
    elif best.cost > found.mix.cost * (1 + 1e-9):
        lead += f", {1 - found.mix.cost / best.cost:.0%} less than the cheapest single type."
    else:
        lead += "; a mix is no cheaper than one type."
    carries = (
        f"It should carry {found.capacity:.3g} requests/s, "
        f"{number(1e6 * found.mix.cost / 3600 / found.rate)} $ a million requests at "
        f"{found.rate:.3g}."
    ) + (f" Of each node {found.headroom:.0%} is left free." if found.headroom else "")
    return Group(
        Text(title), Text(lead, style="bold"), Text(carries), Text(), rented, Text(), singles,
        *([Text(), _simulated(found)] if found.tried else []),
    )  # fmt: skip


def _simulated(found: Plan) -> RenderableType:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("simulated, router", style="bold")
    table.add_column("within the SLO", justify="right")
    table.add_column("asked", justify="right")
    for name in found.wanted.slo:
        table.add_column(f"{name.upper() if len(name) == 4 else name} P99, s", justify="right")
    table.add_column("answer tokens/s", justify="right")
    asked = f"{found.wanted.attainment:.2%}"
    for one in found.tried:
        if one.why:
            table.add_row(one.router, f"not run: {one.why}")
            continue
        called = "by the plan's shares" if one.router == BY_PLAN else one.router
        table.add_row(
            called, f"{one.attainment:.2%}", asked, *map(number, one.values.values()),
            f"{one.tokens_per_s:,.0f}",
        )  # fmt: skip
    return table


def limits_of(wanted: Wanted) -> str:
    """The SLO in words."""
    return ", ".join(f"{name} {limit:g} s" for name, limit in wanted.slo.items())


def plan_rows(found: Plan) -> list[dict[str, Any]]:
    """One row a type of node; those of which none is rented have a count of 0."""
    rows = []
    for place, one in enumerate(found.wanted.types):
        single = found.singles[place]
        count = found.mix.counts[place]
        rows.append({
            "node": one.name, "timing": one.node.timing.name, "timed": one.timed, "count": count,
            "share": found.share(place), "utilization": found.utilization(place),
            "usd_per_hour": count * one.price, "alone_count": single.count,
            "alone_usd_per_hour": single.cost,
            "alone_attainment": single.attainment,
            "saved": math.nan if single.count is None else 1 - found.mix.cost / single.cost,
        })  # fmt: skip
    return rows


def plan_document(found: Plan) -> dict[str, Any]:
    """All that was found: the plan, its buckets, what one type alone costs, and the simulation."""
    wanted = found.wanted
    names = [one.name for one in wanted.types]
    return {
        "workload": wanted.source.name, "rate_requests_per_s": found.rate, "slo_s": wanted.slo,
        "attainment": wanted.attainment, "headroom": found.headroom,
        "usd_per_hour": found.mix.cost, "capacity_requests_per_s": found.capacity,
        "gap": found.mix.gap, "rows": plan_rows(found), "nodes": found.nodes(),
        "alone": [
            {"node": s.name, "count": s.count, "usd_per_hour": s.cost,
             "attainment": s.attainment, "why_not": s.why}
            for s in found.singles
        ],
        "simulated": [
            {"router": t.router, "attainment": t.attainment, "answer_tokens_per_s": t.tokens_per_s,
             **{f"{name}_s": value for name, value in t.values.items()}, "why_not": t.why}
            for t in found.tried
        ],
        "buckets": [
            {"prompt_tokens": list(bucket.prompt), "output_tokens": list(bucket.output),
             "share": bucket.share,
             "requests_per_s": dict(zip(names, found.rates[:, b].tolist(), strict=True)),
             "shares": dict(zip(names, found.mix.shares[:, b].tolist(), strict=True))}
            for b, bucket in enumerate(found.buckets)
        ],
        "notices": list(found.notices),
    }  # fmt: skip


def _nodes(found: Plan) -> str:
    kinds = zip(found.wanted.types, found.mix.counts, strict=True)
    return " + ".join(f"{count} × {one.name}" for one, count in kinds if count)
