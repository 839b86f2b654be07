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
from lengthwise.eval.charts import Chart
from lengthwise.eval.compare import Comparison
from lengthwise.eval.tables import (
    Row,
    columns_of,
    footnote,
    heading,
    names_of,
    reasons,
    rows_of,
    subtitle,
)
from lengthwise.eval.verdict import verdicts


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
    """One load as an HTML table, with the reasons of rows that stand for several."""
    heads = "".join(
        f'<th class="name"><button type="button">{name}</button></th>'
        for name in names_of(comparison)
    ) + "".join(
        f'<th title="{escape(column.help)}"><button type="button">'
        f"{escape(column.heading)}</button></th>"
        for column in columns_of(comparison)
    )
    rows = "".join(_row(line) for line in rows_of(comparison, rate))
    why = "".join(
        f"<li>{escape(reason)}</li>" for reason in dict.fromkeys(reasons(comparison, rate))
    )
    # scrolls in its own box where the page is narrow, by the keyboard too
    return (
        '<div class="scroll" role="region" tabindex="0" '
        f'aria-label="{escape(heading(comparison, rate))}">'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
        + (f'<ul class="faint">{why}</ul>' if why else "")
    )


def _row(line: Row) -> str:
    cells = "".join(
        f'<td class="{cell.verdict}" data-value="{_value(cell.value)}">{_spread(cell.text)}</td>'
        for cell in line.cells
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
