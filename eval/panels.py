"""Charts in the report: a small SVG a panel, in the page's colours, with points that tell.

Panels are drawn one by one, so that they stack on a phone. Their text stays text, and their colours
become the page's, light and dark. ``report.js`` hides series and tells points; without it they are
as complete.
"""

from __future__ import annotations

import json
import re
from html import escape
from typing import TYPE_CHECKING, Any

from lengthwise.eval.charts import COLOURS, FAINT, Chart, Panel, Point, Series
from lengthwise.eval.plots import GRID, matplotlib_style, written

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE = (4.3, 3.3)  # inches at 72 a pixel: text is 10 px where the page gives a panel 310
LOW = (4.8, 2.0)  # of panels that are many
INK = "#000000"
DASHES = {"-": "", "--": "6 3", "-.": "6 2 1.5 2", ":": "1.5 2"}
SHAPES = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖", "*": "★"}


def html(chart: Chart) -> str:
    """A chart as an HTML ``figure``: legend, panels, caption, and the points as JSON."""
    panels = _drawn(chart)
    shown = "".join(
        f'<div class="panel" role="group" tabindex="0" aria-label="{escape(title)}">{svg}</div>'
        for title, svg, _ in panels
    )
    points = [points for _, _, points in panels]
    # "<" would end the script element in "</script>"
    told = json.dumps(points, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return (
        f'<figure id="{chart.name}">{_legend(chart)}'
        f'<div class="panels" style="--across:{chart.across}">{shown}</div>'
        f"<figcaption>{escape(chart.caption)}</figcaption>"
        f'<script type="application/json">{told}</script></figure>'
    )


def _drawn(chart: Chart) -> list[tuple[str, str, list[list[Any]]]]:
    """Title, SVG and points of each panel."""
    with matplotlib_style({"svg.fonttype": "none", "path.simplify_threshold": 0.5}):
        made = [(panel, *_draw(panel, LOW if chart.inside else SIZE)) for panel in chart.panels]
        for panel, figure, _ in made:  # one scale for a row, and one for a column
            (axes,) = figure.axes
            alike_y = [f.axes[0].get_ylim() for p, f, _ in made if p.row and p.row == panel.row]
            alike_x = [
                f.axes[0].get_xlim() for p, f, _ in made if p.row and p.column == panel.column
            ]
            for limits, setter in ((alike_y, axes.set_ylim), (alike_x, axes.set_xlim)):
                if limits:
                    setter(min(low for low, _ in limits), max(high for _, high in limits))
        found = []
        for place, (panel, figure, points) in enumerate(made):
            title = " · ".join(filter(None, (panel.title, figure.axes[0].get_ylabel())))
            svg = _svg(figure, f"{chart.name}{place}", f"{title}: {chart.caption}", chart.series)
            found.append((title, svg, _placed(figure, points)))
    return found


def _draw(panel: Panel, size: tuple[float, float]) -> tuple[Figure, list[Point]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=72, layout="constrained")
    axes = figure.subplots()
    points = panel.draw(axes)
    if panel.title:
        axes.set_title(panel.title, fontsize=10)
    return figure, points


def _svg(figure: Figure, prefix: str, label: str, series: tuple[Series, ...]) -> str:
    """The SVG element alone: it scales, says what it is, and takes its colours from the page."""
    for patch in (figure.patch, *(axes.patch for axes in figure.axes)):
        patch.set_facecolor("none")  # the page's colour shows through
    text = written(figure, "svg", figure.dpi).decode("utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.S)
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None  # matplotlib writes one
    head = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {box[0]} role="img"'
    text = re.sub(r"<svg.*?>", f'{head} aria-label="{escape(label)}">', text, count=1, flags=re.S)
    keys = "|".join(each.key for each in series)
    text = re.sub(rf'id="({keys})"', r'class="s \1"', text)
    text = re.sub(r'(id="|url\(#|href="#)', rf"\1{prefix}-", text)
    inks = {INK: "--ink", GRID: "--line", FAINT: "--faint"}
    inks |= {colour: f"--c{place}" for place, colour in enumerate(COLOURS) if place}
    for colour, name in inks.items():
        text = text.replace(colour.lower(), f"var({name})")
    return re.sub(r"\n\s*", "\n", text).strip()


def _placed(figure: Figure, points: list[Point]) -> list[list[Any]]:
    """Points as [series, x, y, text] in the SVG's units, which go down from the top."""
    if not points:
        return []
    (axes,) = figure.axes
    places = axes.transData.transform([(point.x, point.y) for point in points])
    height = figure.bbox.height
    return [
        [point.key, round(float(x), 1), round(float(height - y), 1), point.text]
        for point, (x, y) in zip(points, places, strict=True)
    ]


def _legend(chart: Chart) -> str:
    buttons = "".join(
        f'<button type="button" aria-pressed="true" data-key="{each.key}">'
        f"{_swatch(each, chart.joined)}{escape(each.label)}</button>"
        for each in chart.series
    )
    return f'<div class="legend" role="group" aria-label="Show and hide">{buttons}</div>'


def _swatch(series: Series, joined: bool) -> str:
    style = series.style
    place = COLOURS.index(style["color"]) if style["color"] in COLOURS else -1
    colour = "var(--faint)" if place < 0 else f"var(--c{place})" if place else "var(--ink)"
    mark = SHAPES.get(style.get("marker", ""), "")
    line = (
        f'<line x1="1" x2="33" y1="6" y2="6" style="stroke:{colour};stroke-width:2;'
        f'stroke-dasharray:{DASHES[style["linestyle"]] or "none"}"/>'
    )
    return (
        '<svg viewBox="0 0 34 12" aria-hidden="true">'
        f"{line if joined else ''}"
        f'<text x="17" y="10" style="fill:{colour};text-anchor:middle;font-size:11px">{mark}</text>'
        "</svg>"
    )
