"""What figures show, panel by panel; ``plots`` draws them whole, ``panels`` for the report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from lengthwise.errors import InputError
from lengthwise.eval.compare import QUANTILES, Comparison, Contender
from lengthwise.eval.statistics import Interval
from lengthwise.eval.tables import load_of, number, ratio_cell, with_interval

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.container import ErrorbarContainer

# Okabe and Ito's palette, told apart by colour-blind readers too; fcfs is black.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A8A00")
FAINT = "#999999"
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
MEAN, P99 = "e2e_mean_s", "e2e_p99_s"
BY_RATE = (  # metric, label, factor
    (MEAN, "mean end-to-end latency, s", 1),
    (P99, "P99 end-to-end latency, s", 1),
    ("ttft_p99_s", "P99 time to first token, s", 1),
    ("tpot_p99_s", "P99 time per output token, s", 1),
    ("goodput_requests_per_s", "goodput, requests/s", 1),
    ("slo_attainment", "meet the SLO, % of requests", 100),
)
SERVED = ("goodput_requests_per_s", "slo_attainment")
TOLD = np.array([*range(5, 96, 5), 99])  # per cents that a distribution tells when it is hovered
MOST_TOLD = 80  # of the times of one run
LEAST_SPAN = 0.05  # what is closer than this to 1 lies on it to the eye
FAR = 8  # times as high: drawn by logarithms


@dataclass(frozen=True)
class Series:
    """Something with a line in the legend; what is drawn of it has ``key`` as its id."""

    key: str
    label: str
    style: dict[str, Any]


@dataclass(frozen=True)
class Point:
    """Where a panel has something to tell, in its own units."""

    key: str
    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Panel:
    """One pair of axes: ``draw`` draws on them, and says what is told where.

    Panels with the same ``row`` have one scale of y, those with the same ``column`` one of x.
    """

    draw: Callable[[Axes], list[Point]]
    title: str = ""
    row: str = ""
    column: str = ""


@dataclass(frozen=True)
class Chart:
    """Panels that share a legend; ``across`` of them are side by side, ``size`` is of each."""

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    series: tuple[Series, ...]
    across: int
    size: tuple[float, float]  # inches
    inside: bool = False  # the legends lie in the panels
    joined: bool = True  # a series is a line, not points alone


def trade(comparison: Comparison) -> Chart:
    """P99 against mean end-to-end latency as ratios to the first row, one panel a rate.

    Ratios are paired by seed, so that their intervals are those of the tables.
    """
    first = comparison.contenders[0]

    def draw(axes: Axes, rate: float) -> list[Point]:
        told = []
        same = {
            who.label: " = ".join(each.label for each in one.contenders)
            for one in comparison.alike(rate)
            for who in one.contenders
        }
        axes.axvline(1, color=FAINT, linewidth=0.8, linestyle=":")
        axes.axhline(1, color=FAINT, linewidth=0.8, linestyle=":")
        for order, (who, series) in enumerate(_series_of(comparison)):
            mean, p99 = (comparison.ratio(rate, who, metric) for metric in (MEAN, P99))
            colour = series.style["color"]
            drawn = axes.errorbar(
                mean.mean, p99.mean, xerr=_half(mean), yerr=_half(p99), color=colour,
                marker=series.style["marker"], markersize=max(5.0, 11.0 - 1.2 * order),
                markerfacecolor="none" if order else colour, markeredgewidth=1.6,
                linestyle="none", elinewidth=1, capsize=2, label=who.label,
            )  # fmt: skip
            _tag(drawn, series)
            seconds = (comparison.interval(rate, who, metric) for metric in (MEAN, P99))
            said = [
                f"{name} {with_interval(value)} s"
                + (f", {ratio_cell(ratio).text} × {first.name}" if who is not first else "")
                for name, value, ratio in zip(("mean", "P99"), seconds, (mean, p99), strict=True)
            ]
            text = "\n".join((same[who.label], *said))
            told.append(Point(series.key, mean.mean, p99.mean, text))
        for axis, values in (
            (axes.xaxis, [point.x for point in told]), (axes.yaxis, [point.y for point in told]),
        ):  # fmt: skip
            # wide intervals of few seeds are cut rather than push the points together
            span = max(max(values) - min(values), LEAST_SPAN)
            low, high = axis.get_view_interval()
            _limit(
                axes, axis, min(max(low, min(values) - 1.5 * span, 0.0), 1 - LEAST_SPAN),
                max(min(high, max(values) + 1.5 * span), 1 + LEAST_SPAN),
            )  # fmt: skip
        axes.set_xlabel(f"mean latency × {first.name}'s")
        axes.set_ylabel(f"P99 latency × {first.name}'s")
        return told

    return Chart(
        "trade",
        "What is gained, and what it costs",
        "P99 against mean end-to-end latency, both as ratios with 95% intervals, paired by seed. "
        f"Left of the dotted line is a better mean than {first.name}'s, below it a better P99.",
        tuple(
            Panel(lambda axes, rate=rate: draw(axes, rate), _rate_title(comparison, rate))  # type: ignore[misc]
            for rate in comparison.rates
        ),
        tuple(series for _, series in _series_of(comparison)),
        min(3, len(comparison.rates)),
        (4.3, 3.6),
        joined=False,
    )


def latency_cdf(comparison: Comparison, rates: Sequence[float] | None = None) -> Chart:
    """The distribution of end-to-end latency of every contender, one panel a rate."""
    shown = list(rates or comparison.rates)

    def draw(axes: Axes, rate: float) -> list[Point]:
        told = []
        curves = [comparison.quantiles(rate, who) for who in comparison.contenders]
        for (who, series), curve in zip(_series_of(comparison), curves, strict=True):
            style = {k: v for k, v in series.style.items() if k != "marker"}
            axes.plot(curve, QUANTILES, label=who.label, gid=series.key, **style)
            told += [
                Point(series.key, float(x), percent / 100,
                      f"{who.label}\n{percent}% of requests within {number(float(x))} s")
                for percent, x in zip(TOLD, np.interp(TOLD / 100, QUANTILES, curve), strict=True)
            ]  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlim(min(c[4] for c in curves), 1.05 * max(c[-1] for c in curves))
        plain_log_ticks(axes.xaxis)
        axes.set_xlabel("end-to-end latency, s")
        axes.set_ylim(0, 1.01)
        if rate == shown[0]:
            axes.set_ylabel("share of requests")
        return told

    return Chart(
        "cdf",
        "How latencies are spread",
        "Distribution of end-to-end latency.",
        tuple(
            Panel(lambda axes, rate=rate: draw(axes, rate), _rate_title(comparison, rate))  # type: ignore[misc]
            for rate in shown
        ),
        tuple(series for _, series in _series_of(comparison)),
        len(shown),
        (4.3, 3.6),
    )


def latency_by_rate(comparison: Comparison) -> Chart:
    """Latencies, goodput and what meets the SLO against the arrival rate, with 95% intervals."""
    shown = [each for each in BY_RATE if each[0] in comparison.runs]
    return _against_rate(comparison, shown, "rates", "How it goes with the load")


def capacity_curves(
    comparison: Comparison, slo: Mapping[str, float], capacities: Mapping[str, float]
) -> Chart:
    """What an SLO limits against the arrival rate, and goodput and attainment.

    ``slo`` maps "ttft_p99" and the like to seconds; ``capacities`` labels of rows to the largest
    rate (requests/s) that meets all of it.
    """
    named = {metric: label for metric, label, _ in BY_RATE}
    limits = {f"{name}_s": limit for name, limit in slo.items()}
    shown = [(m, named.get(m, f"{m[:-2].replace('_', ' ')}, s"), 1) for m in limits]
    shown += [each for each in BY_RATE if each[0] in SERVED and each[0] in comparison.runs]
    return _against_rate(
        comparison, shown, "capacity", "How much load is carried within the SLO", limits, capacities
    )


def _against_rate(
    comparison: Comparison,
    shown: Sequence[tuple[str, str, int]],
    name: str,
    title: str,
    limits: Mapping[str, float] = MappingProxyType({}),
    capacities: Mapping[str, float] = MappingProxyType({}),
) -> Chart:
    """A panel a metric, with what limits it, and a mark at the capacity of each row."""
    rates = comparison.rates
    if len(rates) < 2:
        raise InputError("latency against load needs two rates or more")
    bound = Series("bound", "lower bound", {"color": FAINT, "linestyle": "-", "linewidth": 1})
    bounds = [comparison.bound(rate).mean for rate in rates]
    known = not all(map(math.isnan, bounds))
    sustained = not limits and rates[0] < comparison.capacity <= 1.05 * rates[-1]

    def draw(axes: Axes, metric: str, label: str, factor: float) -> list[Point]:
        told = []
        for who, series in _series_of(comparison):
            intervals = [comparison.interval(rate, who, metric) for rate in rates]
            style = {k: v for k, v in series.style.items() if k != "marker"}
            drawn = axes.errorbar(
                rates, [factor * i.mean for i in intervals],
                yerr=[factor * _half(i) for i in intervals], label=who.label,
                marker="o", markersize=3.5, capsize=2.5, **style,
            )  # fmt: skip
            _tag(drawn, series)
            told += [
                Point(series.key, rate, factor * i.mean,
                      f"{who.label} at {rate:g} requests/s\n{label}: {_told(i, factor)}")
                for rate, i in zip(rates, intervals, strict=True)
            ]  # fmt: skip
        means = [point.y for point in told]
        far = (
            metric.endswith("_s") and not metric.endswith("per_s") and max(means) > FAR * min(means)
        )
        if far:
            axes.set_yscale("log")
            axes.set_ylim(min(means) / 2, max(1.1 * axes.get_ylim()[1], 1.5 * max(means)))
            plain_log_ticks(axes.yaxis)
        else:
            most = 105.0 if factor == 100 else math.inf  # shares end at 100%, intervals don't
            axes.set_ylim(0, min(most, axes.get_ylim()[1]))
        if metric in limits:
            axes.axhline(limits[metric], color=FAINT, linewidth=0.8, linestyle="--")
        for who, series in _series_of(comparison):
            if who.label in capacities:
                colour = series.style["color"]
                axes.axvline(
                    capacities[who.label], color=colour, linewidth=0.8, linestyle=":",
                    gid=series.key,
                )  # fmt: skip
        if metric == MEAN and known:
            axes.plot(rates, bounds, label=bound.label, gid=bound.key, **bound.style)
        if sustained:
            axes.axvline(comparison.capacity, color=FAINT, linewidth=0.8, linestyle=":")
        axes.set_xlabel("arrival rate, requests/s")
        axes.set_ylabel(label)
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
        return told

    means = known and any(metric == MEAN for metric, _, _ in shown)
    return Chart(
        name,
        title,
        "Against the arrival rate, with 95% intervals"
        + ("; dotted: what can be served at most." if sustained else "")
        + ("; dashed: the limit, dotted: the rate up to which a row meets all." if limits else "")
        + ("" if sustained or limits else "."),
        tuple(Panel(lambda axes, each=each: draw(axes, *each)) for each in shown),  # type: ignore[misc]
        (*(series for _, series in _series_of(comparison)), *([bound] * means)),
        min(3, len(shown)) if len(shown) != 4 else 2,
        (4.3, 3.6),
    )


def timeline(
    runs: Sequence[tuple[str, pd.DataFrame]], num_gpu_blocks: ArrayLike | None = None
) -> Chart:
    """The course of runs over time, one column a run: requests, KV cache, tokens, preemptions.

    Each run is a label and its iteration log (``Result.iterations``); replicas are summed up at
    each iteration's start. ``num_gpu_blocks`` (nodes,) are the KV blocks of each node.
    """
    capacity = None if num_gpu_blocks is None else int(np.sum(num_gpu_blocks))
    most = max((float(_over_replicas(log)[1]["used_blocks"].max()) for _, log in runs), default=0.0)
    shown = {
        "running": COLOURS[1], "waiting": COLOURS[2], "used_blocks": COLOURS[3],
        "prefill": COLOURS[5], "decode": COLOURS[6], "preempted": COLOURS[4],
    }  # fmt: skip

    def requests(axes: Axes, label: str, log: pd.DataFrame) -> list[Point]:
        start, state = _over_replicas(log)
        for name in ("running", "waiting"):
            axes.plot(start, state[name], color=shown[name], label=name, gid=name)
        axes.set_ylabel("requests")
        places = np.unique(np.linspace(0, len(start) - 1, MOST_TOLD).astype(int))
        return [
            Point(name, float(start[i]), float(state[name][i]),
                  f"{label} at {number(float(start[i]))} s\n{state['running'][i]:,.0f} run, "
                  f"{state['waiting'][i]:,.0f} wait")
            for i in places for name in ("running", "waiting")
        ]  # fmt: skip

    def blocks(axes: Axes, label: str, log: pd.DataFrame) -> list[Point]:
        start, state = _over_replicas(log)
        used = state["used_blocks"] * (1 if capacity is None else 100 / capacity)
        axes.plot(start, used, color=shown["used_blocks"], gid="used_blocks")
        if capacity is not None:
            axes.set_ylim(0, min(105.0, max(10.0, 1.2 * 100 * most / capacity)))
        axes.set_ylabel("KV blocks" if capacity is None else "KV in use, %")
        return []

    def tokens(axes: Axes, label: str, log: pd.DataFrame) -> list[Point]:
        start, _ = _over_replicas(log)
        if start[-1] > start[0]:
            edges = np.linspace(start[0], start[-1], 121)
            for column, name in (("prefill_tokens", "prefill"), ("decode_seqs", "decode")):
                total, _ = np.histogram(log["start_s"], bins=edges, weights=log[column].to_numpy())
                axes.stairs(
                    total / (edges[1] - edges[0]), edges, color=shown[name], label=name,
                    linewidth=1.2, gid=name,
                )  # fmt: skip
        axes.set_ylabel("tokens/s")
        return []

    def preemptions(axes: Axes, label: str, log: pd.DataFrame) -> list[Point]:
        from matplotlib.ticker import MaxNLocator

        ordered = log.sort_values("start_s")
        axes.plot(
            ordered["start_s"], ordered["preempted"].cumsum(), color=shown["preempted"],
            gid="preempted",
        )  # fmt: skip
        axes.set_ylim(0, max(1.0, 1.08 * float(ordered["preempted"].sum())))
        axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.set_xlabel("time, s")
        axes.set_ylabel("preemptions")
        return []

    drawn = (
        ("requests", requests), ("KV cache", blocks), ("tokens", tokens),
        ("preemptions", preemptions),
    )  # fmt: skip
    return Chart(
        "timeline",
        "One run over time",
        "The course of single runs on the same requests (first seed, highest rate).",
        tuple(
            Panel(
                lambda axes, draw=draw, label=label, log=log: draw(axes, label, log),  # type: ignore[misc]
                label, row=name, column=label,
            )
            for name, draw in drawn
            for label, log in runs
        ),
        tuple(
            Series(key, {"used_blocks": "KV in use", "preempted": "preemptions"}.get(key, key),
                   {"color": colour, "linestyle": "-", "linewidth": 1.5})
            for key, colour in shown.items()
        ),
        len(runs),
        (4.9 if len(runs) > 1 else 8.0, 1.45),
        inside=True,
    )  # fmt: skip


def plain_log_ticks(axis: Any) -> None:
    """Numbers instead of powers of ten: each decade, with 2 and 5 where there are few decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    subs = (1.0, 2.0, 5.0) if high / low < 120 else (1.0,)
    axis.set_major_locator(LogLocator(base=10, subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _limit(axes: Axes, axis: Any, low: float, high: float) -> None:
    """The ends of an axis of ratios, by logarithms where they are far apart."""
    if low > 0 and high > FAR * low:
        axes.set(**{f"{axis.axis_name}scale": "log"})
    axes.set(**{f"{axis.axis_name}lim": (low, high)})
    if low > 0 and high > FAR * low:
        plain_log_ticks(axis)


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


def _series_of(comparison: Comparison) -> list[tuple[Contender, Series]]:
    """A colour a policy, a line style and a marker a predictor."""
    contenders = comparison.contenders
    policies = list(dict.fromkeys(who.name for who in contenders))
    predictors = [p for p in dict.fromkeys(w.predictor_name for w in contenders) if p != "none"]
    found: list[tuple[Contender, Series]] = []
    for place, who in enumerate(contenders):
        colour = COLOURS[policies.index(who.name) % len(COLOURS)]
        read = who.predictor_name != "none"
        line = predictors.index(who.predictor_name) if read else 0
        style: dict[str, Any] = {
            "color": colour,
            "linestyle": LINES[line % len(LINES)],
            "linewidth": max(1.0, 2.4 - 0.4 * policies.index(who.name)),
            "marker": MARKERS[(line + read) % len(MARKERS)],
        }
        if not found:  # the baseline stays visible under curves that coincide with it
            style |= {"linewidth": 4.5, "alpha": 0.3, "solid_capstyle": "round"}
        found.append((who, Series(f"s{place}", who.label, style)))
    return found


def _tag(drawn: ErrorbarContainer, series: Series) -> None:
    points, caps, bars = drawn.lines
    for artist in (points, *caps, *bars):
        if artist is not None:
            artist.set_gid(series.key)


def _rate_title(comparison: Comparison, rate: float) -> str:
    load = load_of(comparison, rate)
    return "all arrive at once" if load == "all at once" else load


def _half(interval: Interval) -> float:
    return 0.0 if math.isnan(interval.half) else interval.half


def _told(interval: Interval, factor: float) -> str:
    scaled = (factor * interval.mean, factor * interval.low, factor * interval.high)
    return with_interval(Interval(*scaled, interval.count))
