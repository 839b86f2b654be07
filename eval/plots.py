"""Figures by matplotlib: latency distributions, latency against load, the course of one run."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from lengthwise.errors import InputError
from lengthwise.eval.compare import QUANTILES, Comparison, Contender

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart by colour-blind readers too; fcfs is black.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A8A00")
LINES = ("-", "--", "-.", ":")
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "lengthwise",  # the same figure is the same bytes
}


def matplotlib_style() -> Any:
    """The context in which every figure is drawn; ``InputError`` where matplotlib is missing."""
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise InputError("figures need matplotlib: pip install 'lengthwise[plot]'") from error
    return rc_context(STYLE)


def latency_cdf(comparison: Comparison, rates: Sequence[float] | None = None) -> Figure:
    """The distribution of end-to-end latency of every contender, one panel a rate."""

    shown = list(rates or comparison.rates)
    with matplotlib_style():
        figure, panels = _panels(len(shown), width=4.3, height=3.6)
        for axes, rate in zip(panels, shown, strict=True):
            for who, style in _styles(comparison.contenders):
                axes.plot(comparison.quantiles(rate, who), QUANTILES, label=who.label, **style)
            axes.set_xscale("log")
            curves = [comparison.quantiles(rate, who) for who in comparison.contenders]
            axes.set_xlim(min(c[4] for c in curves), 1.05 * max(c[-1] for c in curves))
            _plain_log_ticks(axes.xaxis)
            axes.set_xlabel("end-to-end latency, s")
            axes.set_ylim(0, 1.01)
            axes.set_title(_rate_title(comparison, rate), fontsize=10)
        panels[0].set_ylabel("share of requests")
        _legend_below(figure, panels[0])
    return figure


def latency_by_rate(comparison: Comparison) -> Figure:
    """Mean and P99 end-to-end latency against the arrival rate, with 95% intervals."""
    rates = comparison.rates
    if len(rates) < 2:
        raise InputError("latency against load needs two rates or more")
    with matplotlib_style():
        figure, panels = _panels(2, width=4.3, height=3.6)
        for axes, metric, label in zip(
            panels, ("e2e_mean_s", "e2e_p99_s"), ("mean", "P99"), strict=True
        ):
            for who, style in _styles(comparison.contenders):
                intervals = [comparison.interval(rate, who, metric) for rate in rates]
                half = [0.0 if math.isnan(i.half) else i.half for i in intervals]
                axes.errorbar(
                    rates, [i.mean for i in intervals], yerr=half, label=who.label,
                    marker="o", markersize=3.5, capsize=2.5, **style,
                )  # fmt: skip
            low, high = axes.get_ylim()
            if high > 8 * max(low, 1e-9):
                axes.set_yscale("log")
                _plain_log_ticks(axes.yaxis)
            else:
                axes.set_ylim(bottom=0)
            axes.set_xlabel("arrival rate, requests/s")
            axes.set_ylabel(f"{label} end-to-end latency, s")
            axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
        bounds = [comparison.bound(rate).mean for rate in rates]
        panels[0].plot(rates, bounds, color="#999999", linewidth=1, label="lower bound")
        _legend_below(figure, panels[0])
    return figure


def timeline(
    runs: Sequence[tuple[str, pd.DataFrame]], num_gpu_blocks: ArrayLike | None = None
) -> Figure:
    """The course of runs over time, one column a run: requests, KV cache, tokens, preemptions.

    Each run is a label and its iteration log (``Result.iterations``); replicas are summed up at
    each iteration's start. ``num_gpu_blocks`` (nodes,) are the KV blocks of each node.
    """
    capacity = None if num_gpu_blocks is None else int(np.sum(num_gpu_blocks))
    with matplotlib_style():
        from matplotlib.ticker import MaxNLocator

        highest = 0.0
        figure, grid = _grid(4, len(runs), width=4.9 if len(runs) > 1 else 8.0, height=1.45)
        for column, (label, log) in enumerate(runs):
            top, blocks, tokens, preempted = grid[:, column]
            start, state = _over_replicas(log)
            top.set_title(label, fontsize=10)
            top.plot(start, state["running"], color=COLOURS[1], label="running")
            top.plot(start, state["waiting"], color=COLOURS[2], label="waiting")
            used = state["used_blocks"]
            if capacity is None:
                blocks.plot(start, used, color=COLOURS[3])
            else:
                blocks.plot(start, 100 * used / capacity, color=COLOURS[3])
                highest = max(highest, 100 * float(used.max()) / capacity)
                blocks.set_ylim(0, min(105.0, max(10.0, 1.2 * highest)))
            edges = np.linspace(start[0], start[-1], 121) if start[-1] > start[0] else None
            if edges is not None:
                width = edges[1] - edges[0]
                times = log["start_s"].to_numpy()
                for name, colour, what in (
                    ("prefill_tokens", COLOURS[5], "prefill"),
                    ("decode_seqs", COLOURS[6], "decode"),
                ):
                    total, _ = np.histogram(times, bins=edges, weights=log[name].to_numpy())
                    tokens.stairs(total / width, edges, color=colour, label=what, linewidth=1.2)
            ordered = log.sort_values("start_s")
            preempted.plot(ordered["start_s"], ordered["preempted"].cumsum(), color=COLOURS[4])
            preempted.set_ylim(0, max(1.0, 1.08 * float(ordered["preempted"].sum())))
            preempted.yaxis.set_major_locator(MaxNLocator(3, integer=True))
            preempted.set_xlabel("time, s")
        ylabels = (
            "requests",
            "KV blocks" if capacity is None else "KV in use, %",
            "tokens/s",
            "preemptions",
        )
        for axes, name in zip(grid[:, 0], ylabels, strict=True):
            axes.set_ylabel(name)
        for axes in grid[0]:
            axes.legend(loc="upper right", fontsize=8)
        for axes in grid[2]:
            if axes.get_legend_handles_labels()[0]:
                axes.legend(loc="upper right", fontsize=8)
        figure.align_ylabels(grid[:, 0].tolist())
    return figure


def svg(figure: Figure) -> bytes:
    """The figure as SVG, the same bytes for the same figure."""
    buffer = io.BytesIO()
    with matplotlib_style():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": "lengthwise"})
    return buffer.getvalue()


def _over_replicas(log: pd.DataFrame) -> tuple[Any, dict[str, Any]]:
    """Times (s) and the sum over replicas of what each one's latest iteration had."""
    log = log.sort_values("start_s", kind="stable")
    names = ("running", "waiting", "used_blocks")
    if log["replica"].nunique() > 1:
        wide = log.pivot_table(
            index="start_s", columns="replica", values=list(names), aggfunc="last"
        )
        wide = wide.ffill().fillna(0)
        return wide.index.to_numpy(), {n: wide[n].to_numpy().sum(axis=1) for n in names}
    return log["start_s"].to_numpy(), {n: log[n].to_numpy() for n in names}


def _styles(contenders: Sequence[Contender]) -> list[tuple[Contender, dict[str, Any]]]:
    """A colour a policy, a line style a predictor."""
    policies = list(dict.fromkeys(who.name for who in contenders))
    predictors = [p for p in dict.fromkeys(w.predictor_name for w in contenders) if p != "none"]
    found: list[tuple[Contender, dict[str, Any]]] = []
    for who in contenders:
        colour = COLOURS[policies.index(who.name) % len(COLOURS)]
        line = 0 if who.predictor_name == "none" else predictors.index(who.predictor_name)
        style = {
            "color": colour,
            "linestyle": LINES[line % 4],
            "linewidth": max(1.0, 2.4 - 0.4 * policies.index(who.name)),
        }
        if not found:  # the baseline stays visible under curves that coincide with it
            style |= {"linewidth": 4.5, "alpha": 0.3, "solid_capstyle": "round"}
        found.append((who, style))
    return found


def _rate_title(comparison: Comparison, rate: float) -> str:
    at = comparison.offered_rate(rate) if math.isnan(rate) else rate
    return "all arrive at once" if math.isinf(at) else f"{at:.3g} requests/s"


def _plain_log_ticks(axis: Any) -> None:
    """Numbers instead of powers of ten: each decade, with 2 and 5 where there are few decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    subs = (1.0, 2.0, 5.0) if high / low < 120 else (1.0,)
    axis.set_major_locator(LogLocator(base=10, subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _panels(count: int, *, width: float, height: float) -> tuple[Figure, list[Axes]]:
    figure, grid = _grid(1, count, width=width, height=height)
    return figure, list(grid[0])


def _grid(rows: int, columns: int, *, width: float, height: float) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex="col" if rows > 1 else False)
    if rows > 1 and columns > 1:
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
