"""The flowcharts of these docs as SVG in the page, since the site loads no script from elsewhere.

GitHub draws the same blocks with mermaid. Here a box stands where the comments of its source put
it (``%% row: a b . c``, a dot being an empty place; ``%% alt: …`` says in words what is seen), and
of mermaid's language only what stands below is read: anything else is an error of the build.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field

BLOCK = re.compile(r"^```mermaid\n(.*?)^```\n", re.DOTALL | re.MULTILINE)
NODE = re.compile(r'(\w+)(?:\["([^"]*)"\])?')
ARROW = re.compile(r'\s+(?:--\s+"?([^"]*?)"?\s+-->|-\.\s+"?([^"]*?)"?\s+\.->|(-->))\s+')
WIDTH, HEIGHT, WIDE, HIGH = 172, 44, 196, 92  # of a box, and of its place
MARGIN, PAD = 22, 10  # beside all places, for lines that lead up; of a frame around its boxes


@dataclass
class Chart:
    """What a block says."""

    labels: dict[str, str] = field(default_factory=dict)
    frames: dict[str, tuple[str, list[str]]] = field(default_factory=dict)  # title, its boxes
    edges: list[tuple[str, str, str, bool]] = field(default_factory=list)  # from, to, says, dotted
    rows: list[list[str]] = field(default_factory=list)
    alt: str = ""


def drawn(text: str) -> str:
    """A page with its flowcharts as pictures."""
    return BLOCK.sub(lambda found: _svg(read(found[1])) + "\n", text)


def read(source: str) -> Chart:
    """A chart from its source; ValueError for a line that is not understood."""
    chart, frame = Chart(), ""
    for line in map(str.strip, source.splitlines()):
        if line.startswith("%% row:"):
            chart.rows.append(line.removeprefix("%% row:").split())
        elif line.startswith("%% alt:"):
            chart.alt = f"{chart.alt} {line.removeprefix('%% alt:').strip()}".strip()
        elif found := re.fullmatch(r'subgraph (\w+)\["([^"]*)"\]', line):
            frame = found[1]
            chart.frames[frame] = (found[2], [])
        elif line == "end":
            frame = ""
        elif line and line != "flowchart TD":
            _line(chart, line, frame)
    placed = sorted(name for row in chart.rows for name in row if name != ".")
    if placed != sorted(chart.labels):
        raise ValueError(f"rows place {placed}, boxes are {sorted(chart.labels)}")
    return chart


def _line(chart: Chart, line: str, frame: str) -> None:
    parts = ARROW.split(line)  # boxes, and three groups of each arrow between
    before: list[str] = []
    for at in range(0, len(parts), 4):
        names = []
        for one in re.split(r"\s+&\s+", parts[at]):
            if not (found := NODE.fullmatch(one)):
                raise ValueError(f"not understood in a flowchart: {line}")
            names.append(found[1])
            if found[2] is not None:
                chart.labels[found[1]] = found[2]
                if frame:
                    chart.frames[frame][1].append(found[1])
        if at:
            says, dotted, _ = parts[at - 3 : at]
            chart.edges += [
                (a, b, says or dotted or "", dotted is not None) for a in before for b in names
            ]
        before = names


def _svg(chart: Chart) -> str:
    columns = max(map(len, chart.rows))
    where = {
        name: (MARGIN + WIDE * (c + 0.5), 40 + HIGH * r + HEIGHT / 2)
        for r, row in enumerate(chart.rows)
        for c, name in enumerate(row)
        if name != "."
    }
    width, height = 2 * MARGIN + WIDE * columns, HIGH * len(chart.rows) + 16
    parts: list[str] = []
    said: list[str] = []  # over lines and boxes
    for title, inside in chart.frames.values():
        frame, words = _frame(title, [where[name] for name in inside])
        parts.append(frame)
        said.append(words)
    for a, b, says, dotted in chart.edges:
        (x1, y1), (x2, y2) = where[a], where[b]
        if y2 < y1:  # up: around, at the nearer side
            side = -1 if x2 < width / 2 else 1
            rim = 8 if side < 0 else width - 8
            path = (f"M{x1 + side * WIDTH / 2:.0f} {y1:.0f} H{rim - side * 10:.0f} "
                    f"Q{rim:.0f} {y1:.0f} {rim:.0f} {y1 - 10:.0f} V{y2 + 10:.0f} "
                    f"Q{rim:.0f} {y2:.0f} {rim - side * 10:.0f} {y2:.0f} "
                    f"H{x2 + side * WIDTH / 2:.0f}")  # fmt: skip
            mark = (rim - side * 60, y1 - 8)
        elif y1 == y2:
            side = 1 if x2 > x1 else -1
            path = f"M{x1 + side * WIDTH / 2:.0f} {y1:.0f} H{x2 - side * WIDTH / 2:.0f}"
            mark = ((x1 + x2) / 2, y1 - 8)
        else:
            y1, y2 = y1 + HEIGHT / 2, y2 - HEIGHT / 2
            # a little towards the other, so that lines of one box don't lie on each other
            lean = max(-60.0, min(60.0, (x2 - x1) / 5))
            x1, x2 = x1 + lean, x2 - lean / 2
            bend = (y2 - y1) / 2
            path = f"M{x1:.0f} {y1:.0f} C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {y2 - bend:.0f} " \
                   f"{x2:.0f} {y2:.0f}"  # fmt: skip
            mark = ((x1 + x2) / 2, (y1 + y2) / 2 + 4)
        kind = "line dotted" if dotted else "line"
        parts.append(f'<path class="{kind}" d="{path}" marker-end="url(#head)"/>')
        if says:
            said.append(f'<text class="says" x="{mark[0]:.0f}" y="{mark[1]:.0f}" '
                        f'text-anchor="middle">{html.escape(says)}</text>')  # fmt: skip
    parts += [_box(chart.labels[name], *at) for name, at in where.items()] + said
    alt = html.escape(chart.alt)
    return (
        f'<div class="chart" tabindex="0" role="group" aria-label="A diagram that may scroll">'
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{alt}">'
        f"<title>{alt}</title>"
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto-start-reverse"><path class="head" d="M0 0L8 4L0 8z"/>'
        f"</marker></defs>{''.join(parts)}</svg></div>"
    )


def _frame(title: str, inside: list[tuple[float, float]]) -> tuple[str, str]:
    left = min(x for x, _ in inside) - WIDTH / 2 - PAD
    right = max(x for x, _ in inside) + WIDTH / 2 + PAD
    top = min(y for _, y in inside) - HEIGHT / 2 - 26
    bottom = max(y for _, y in inside) + HEIGHT / 2 + PAD
    return (
        f'<rect class="frame" x="{left:.0f}" y="{top:.0f}" width="{right - left:.0f}" '
        f'height="{bottom - top:.0f}" rx="8"/>',
        f'<text class="title" x="{left + 10:.0f}" y="{top + 17:.0f}">{html.escape(title)}</text>',
    )


def _box(label: str, x: float, y: float) -> str:
    name, _, about = label.partition("<br/>")
    rect = (
        f'<rect class="box" x="{x - WIDTH / 2:.0f}" y="{y - HEIGHT / 2:.0f}" width="{WIDTH}" '
        f'height="{HEIGHT}" rx="5"/>'
    )
    return (
        f'{rect}<text class="name" x="{x:.0f}" y="{y - 3:.0f}" text-anchor="middle">'
        f'{html.escape(name)}</text><text x="{x:.0f}" y="{y + 14:.0f}" text-anchor="middle">'
        f"{html.escape(about)}</text>"
    )
