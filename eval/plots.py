"""Figures by matplotlib, whole, for papers and slides: the charts of ``lengthwise.eval.charts``."""

from __future__ import annotations

import io
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from numpy.typing import ArrayLike

from lengthwise.errors import InputError
from lengthwise.eval import charts
from lengthwise.eval.charts import Chart
from lengthwise.eval.compare import Comparison

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GRID = "#e6e6e6"
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "lengthwise",  # the same figure is the same bytes
}
Format = Literal["svg", "png", "pdf"]
FORMATS: tuple[Format, ...] = ("svg", "png", "pdf")
BACKENDS: dict[Format, str] = {"svg": "svg", "png": "agg", "pdf": "pdf"}
DPI = 200
# What would make another file of the same figure.
UNSAID: dict[Format, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": "lengthwise"},
    "png": {"Software": "lengthwise"},
    "pdf": {"CreationDate": None, "Creator": "lengthwise", "Producer": None},
}


def matplotlib_style(more: Any = None) -> Any:
    """The context in which every figure is drawn; ``InputError`` where matplotlib is missing."""
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise InputError("figures need matplotlib: pip install 'lengthwise[plot]'") from error
    return rc_context({**STYLE, **(more or {})})


def trade(comparison: Comparison) -> Figure:
    """P99 against mean end-to-end latency of every contender, one panel a rate."""
    return whole(charts.trade(comparison))


def latency_cdf(comparison: Comparison, rates: Sequence[float] | None = None) -> Figure:
    """The distribution of end-to-end latency of every contender, one panel a rate."""
    return whole(charts.latency_cdf(comparison, rates))


def latency_by_rate(comparison: Comparison) -> Figure:
    """Latencies, goodput and what meets the SLO against the arrival rate, with 95% intervals."""
    return whole(charts.latency_by_rate(comparison))


def timeline(
    runs: Sequence[tuple[str, pd.DataFrame]], num_gpu_blocks: ArrayLike | None = None
) -> Figure:
    """The course of runs over time, one column a run; see ``charts.timeline``."""
    return whole(charts.timeline(runs, num_gpu_blocks))


def whole(chart: Chart) -> Figure:
    """All panels of a chart in one figure, with its legend."""
    across, down = chart.across, -(-len(chart.panels) // chart.across)
    shared = bool(chart.panels[0].row)  # rows and columns have one scale and one label each
    with matplotlib_style():
        figure, grid = _grid(down, across, *chart.size, shared=shared)
        for axes in grid.flat[len(chart.panels) :]:
            axes.remove()
        for place, (panel, axes) in enumerate(zip(chart.panels, grid.flat, strict=False)):
            panel.draw(axes)
            if panel.title and not (shared and place >= across):
                axes.set_title(panel.title, fontsize=10)
            if shared and place % across:
                axes.set_ylabel("")
            if chart.inside and axes.get_legend_handles_labels()[0]:
                axes.legend(loc="upper right", fontsize=8)
        if chart.inside:
            figure.align_ylabels(grid[:, 0].tolist())
        else:
            _legend_below(figure, grid[0, 0])
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once, not for each format again
    return figure


def drawn(figure: Figure, format: Format) -> bytes:
    """The figure as a file, the same bytes for the same figure."""
    with matplotlib_style():
        return written(figure, format, DPI)


def written(figure: Figure, format: Format, dpi: float) -> bytes:
    """What ``savefig`` writes; that draws all of it once before, in case it is to be cropped."""
    buffer, before = io.BytesIO(), figure.dpi
    backend = import_module(f"matplotlib.backends.backend_{BACKENDS[format]}")
    canvas = backend.FigureCanvas(figure)
    try:
        figure.dpi = dpi
        getattr(canvas, f"print_{format}")(buffer, metadata=UNSAID[format])
    finally:
        figure.dpi = before
    return buffer.getvalue()


def svg(figure: Figure) -> bytes:
    """The figure as SVG, the same bytes for the same figure."""
    return drawn(figure, "svg")


def write(figure: Figure, folder: Path, name: str) -> None:
    """Writes ``name`` with each of ``FORMATS`` into a folder."""
    for format in FORMATS:
        (folder / f"{name}.{format}").write_bytes(drawn(figure, format))


def _grid(
    down: int, across: int, width: float, height: float, *, shared: bool
) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * across, height * down), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False, sharex="col" if shared else False)
    if shared and across > 1:
        for line in grid:
            for axes in line[1:]:
                axes.sharey(line[0])
    return figure, grid


def _legend_below(figure: Figure, axes: Axes) -> None:
    """The legend under the panels, in up to 4 columns: as many as the figure is wide enough for."""
    handles, labels = axes.get_legend_handles_labels()
    for columns in range(min(4, len(labels)), 0, -1):
        legend = figure.legend(
            handles, labels, loc="outside lower center", ncols=columns, fontsize=9
        )
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()
