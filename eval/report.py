"""A comparison as one HTML file that needs nothing else: what it says, then why to believe it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from lengthwise.eval import panels
from lengthwise.eval.capacity import Capacity
from lengthwise.eval.charts import Chart
from lengthwise.eval.compare import Comparison, Contender
from lengthwise.eval.tables import (
    Cell,
    Column,
    Row,
    capacities_table,
    columns_of,
    footnote,
    heading,
    names_of,
    reasons,
    rows_of,
    subtitle,
)
from lengthwise.eval.verdict import capacity_verdicts, verdicts

# What has room at 1280 pixels: of a table, and the widths of characters and between cells there.
WIDTH, PAD, MOST_NAME = 1140.0, 14.0, 260.0
NAME, DIGIT, HALF, HEAD = 8.2, 7.9, 6.8, 7.2


def write_report(
    path: Path,
    comparison: Comparison,
    *,
    title: str,
    provenance: Mapping[str, Any],
    charts: Sequence[Chart] = (),
    lead: str = "",
    sections: Sequence[tuple[str, str]] = (),
) -> None:
    """Writes the report: verdict, the first of ``charts``, tables, the other charts, details.

    ``lead`` is HTML that comes before the verdict of each load, ``sections`` are titles with HTML
    that come last. The file loads nothing from anywhere, so it can be mailed.
    """
    said = "".join(f"<li>{escape(sentence)}</li>" for sentence in verdicts(comparison))
    parts = [
        f"<header><h1>{escape(title)}</h1>"
        f'<p class="faint">{escape(comparison.name)} — {escape(subtitle(comparison))}</p></header>',
        f'<section><h2>In short</h2>{lead}<ul class="verdicts">{said}</ul></section>',
        *map(_figure, charts[:1]),
        *(_load(comparison, rate) for rate in comparison.rates),
        f'<p class="faint">{escape(footnote(comparison))} Green: better than the '
        f"row that a ratio is to ({escape(comparison.baseline)}, or the best) beyond the "
        "interval; red: worse. Click a heading to sort.</p>",
        *map(_figure, charts[1:]),
        *(f"<section><h2>{escape(name)}</h2>{html}</section>" for name, html in sections),
        _notes(comparison.notices),
        _how(provenance),
    ]
    path.write_text(
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<style>{_data('report.css')}</style></head>\n<body><main>\n"
        + "\n".join(part for part in parts if part)
        + f"\n</main><script>{_data('report.js')}</script></body></html>\n",
        encoding="utf-8",
    )


def _data(name: str) -> str:
    return files("lengthwise.eval").joinpath("data", name).read_text("utf-8")


def _figure(chart: Chart) -> str:
    return f"<section><h2>{escape(chart.title)}</h2>{panels.html(chart)}</section>"


def _load(comparison: Comparison, rate: float) -> str:
    title = escape(heading(comparison, rate))
    return f"<section><h2>{title}</h2>{table(comparison, rate)}</section>"


def table(comparison: Comparison, rate: float) -> str:
    """One load as an HTML table, with the reasons of rows that stand for several.

    Columns for which a page of ``WIDTH`` has no room at some load are in a table of their own, to
    be opened.
    """
    columns, lines = columns_of(comparison), rows_of(comparison, rate)
    count = min(
        _fitting(names_of(comparison), columns, rows_of(comparison, each))
        for each in comparison.rates
    )
    title = heading(comparison, rate)
    shown = _part(comparison, title, columns, lines, range(count))
    if count < len(columns):
        left = ", ".join(column.heading.removesuffix(", s") for column in columns[count:])
        inner = _part(comparison, f"{title}: more", columns, lines, range(count, len(columns)))
        shown += f"<details><summary>{escape(left)}</summary>{inner}</details>"
    why = "".join(
        f"<li>{escape(reason)}</li>" for reason in dict.fromkeys(reasons(comparison, rate))
    )
    return shown + (f'<ul class="faint">{why}</ul>' if why else "")


def _part(
    comparison: Comparison, title: str, columns: Sequence[Column], lines: Sequence[Row],
    places: range,
) -> str:  # fmt: skip
    """A table of some of the columns; without the lines that say nothing in them."""
    heads = "".join(
        f'<th class="name"><button type="button">{name}</button></th>'
        for name in names_of(comparison)
    ) + "".join(
        f'<th title="{escape(columns[place].help)}"><button type="button">'
        f"{escape(columns[place].heading)}</button></th>"
        for place in places
    )
    rows = "".join(
        _row(line, [line.cells[place] for place in places])
        for line in lines
        if not places.start or any(line.cells[place].text != "–" for place in places)
    )
    # scrolls in its own box where the page is narrow, by the keyboard too
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(title)}">'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _fitting(names: Sequence[str], columns: Sequence[Column], lines: Sequence[Row]) -> int:
    """How many columns have room on a page, by their longest texts; at least one has."""
    used = sum(
        PAD + min(MOST_NAME, NAME * max(len(name), *(len(line.names[place]) for line in lines)))
        for place, name in enumerate(names)
    )
    for count, column in enumerate(columns):
        cells = (line.cells[count].text.partition(" ± ") for line in lines)
        longest = max(DIGIT * len(mean) + HALF * len(sign + half) for mean, sign, half in cells)
        words = max(map(len, column.heading.split()))  # a heading takes several lines
        used += PAD + max(longest, HEAD * words)
        if used > WIDTH:
            return max(count, 1)
    return len(columns)


def capacities_lead(slo: Mapping[str, float], found: Mapping[Contender, Capacity]) -> str:
    """Who carries the most within an SLO, and a table of all, as HTML."""
    heads, lines = capacities_table(slo, found)
    said = "".join(f"<p>{escape(sentence)}</p>" for sentence in capacity_verdicts(found, slo))
    head = "".join(
        f'<th class="{"name" if head in ("policy", "predictor") else ""}">{escape(head)}</th>'
        for head in heads
    )
    rows = "".join(
        "<tr>"
        + "".join(
            f'<td class="{"name" if place < 2 else cell.verdict}">{_spread(cell.text)}</td>'
            for place, cell in enumerate(line)
        )
        + "</tr>"
        for line in lines
    )
    return (
        f'{said}<div class="scroll" role="region" tabindex="0" aria-label="capacities">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _row(line: Row, shown: Sequence[Cell]) -> str:
    cells = "".join(
        f'<td class="{cell.verdict}" data-value="{_value(cell.value)}">{_spread(cell.text)}</td>'
        for cell in shown
    )
    return (
        f'<tr class="{"bound" if line.bound else ""}">'
        + "".join(f'<td class="name">{escape(name)}</td>' for name in line.names[:-1])
        + f'<td class="name predictor">{escape(line.names[-1])}</td>{cells}</tr>'
    )


def _spread(text: str) -> str:
    mean, sign, half = escape(text).partition(" ± ")
    return f'{mean} <span class="half">± {half}</span>' if sign else mean


def _value(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.9g}"


def _notes(notices: Sequence[str]) -> str:
    if not notices:
        return ""
    items = "".join(f"<li>{escape(notice)}</li>" for notice in notices)
    return f'<section><h2>Notes</h2><ul class="notes">{items}</ul></section>'


def _how(provenance: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in provenance.items() if key != "command"}
    return (
        "<section><h2>How it was made</h2>"
        f'<pre tabindex="0">{escape(str(provenance["command"]))}</pre>'
        "<details><summary>versions, seeds and options</summary>"
        f'<pre tabindex="0">{escape(json.dumps(rest, indent=2, default=str))}</pre>'
        "</details></section>"
    )
