"""A comparison as one HTML file that needs nothing else: tables, figures, how it was made."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from lengthwise.eval.compare import Comparison
from lengthwise.eval.tables import (
    Cell,
    bound_row,
    columns_of,
    footnote,
    heading,
    named,
    names_of,
    row,
    subtitle,
)


def write_report(
    path: Path,
    comparison: Comparison,
    *,
    title: str,
    provenance: Mapping[str, Any],
    figures: Sequence[tuple[str, bytes]] = (),
    sections: Sequence[tuple[str, str]] = (),
) -> None:
    """Writes the report; ``figures`` are captions with SVG bytes, ``sections`` titles with HTML.

    The file loads nothing from anywhere, so it can be mailed.
    """
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="faint">{escape(comparison.name)} — {escape(subtitle(comparison))}</p>',
        *(f"<section><h2>{escape(name)}</h2>{html}</section>" for name, html in sections),
        *(_table(comparison, rate) for rate in comparison.rates),
        f'<p class="faint">{escape(footnote(comparison))} Green: better than the '
        f"row that a ratio is to ({escape(comparison.baseline)}, or the best) beyond the "
        "interval; red: worse. Click a heading to sort.</p>",
        _notes(comparison.notices),
        *(_figure(caption, image) for caption, image in figures),
        _how(provenance),
    ]
    path.write_text(
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_data('report.css')}</style></head>\n<body><main>\n"
        + "\n".join(part for part in parts if part)
        + f"\n</main><script>{_data('report.js')}</script></body></html>\n",
        encoding="utf-8",
    )


def _data(name: str) -> str:
    return files("lengthwise.eval").joinpath("data", name).read_text("utf-8")


def _table(comparison: Comparison, rate: float) -> str:
    columns = columns_of(comparison)
    heads = "".join(
        f'<th class="name"><button type="button">{name}</button></th>'
        for name in names_of(comparison)
    ) + "".join(
        f'<th title="{escape(column.help)}"><button type="button">'
        f"{escape(column.heading)}</button></th>"
        for column in columns
    )
    rows = [
        _row(named(comparison, who), row(comparison, rate, who)) for who in comparison.contenders
    ]
    rows.append(_row(named(comparison, None), bound_row(comparison, rate), "bound"))
    return (
        f"<section><h2>{escape(heading(comparison, rate))}</h2>"
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _row(names: tuple[str, ...], cells: list[Cell], kind: str = "") -> str:
    made = "".join(
        f'<td class="{cell.verdict}" data-value="{_value(cell.value)}">{_spread(cell.text)}</td>'
        for cell in cells
    )
    return (
        f'<tr class="{kind}">'
        + "".join(f'<td class="name">{escape(name)}</td>' for name in names[:-1])
        + f'<td class="name predictor">{escape(names[-1])}</td>{made}</tr>'
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


def _figure(caption: str, image: bytes) -> str:
    data = base64.b64encode(image).decode("ascii")
    return (
        f'<section><figure><img alt="{escape(caption)}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure></section>"
    )


def _how(provenance: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in provenance.items() if key != "command"}
    return (
        "<section><h2>How it was made</h2>"
        f"<pre>{escape(str(provenance['command']))}</pre>"
        "<details><summary>versions, seeds and options</summary>"
        f"<pre>{escape(json.dumps(rest, indent=2, default=str))}</pre></details></section>"
    )
