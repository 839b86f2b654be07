"""When an order pays: policies against fcfs over load, length variance, context and KV size.

    python -m benchmarks.when_it_pays [--out docs/when-it-pays.csv] [--work FOLDER] [--seeds 5]
    python -m benchmarks.when_it_pays --draw docs/when-it-pays.csv

Requests arrive by a Poisson process at a share of what one replica of ``SEATS`` seats serves at
most of them. Answers and prompts are lognormal. A quarter of the requests is a light tenant's;
half are due in ``DUE_S`` seconds, the others ten times later. Every policy runs on the same
requests, and ratios to fcfs are geometric means over seeds with paired 95% intervals. One core;
finished cells are kept in the work folder, and what is there is not run again.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lengthwise.eval import metrics
from lengthwise.eval.cells import Cells, once
from lengthwise.eval.judge import Trial
from lengthwise.eval.plots import matplotlib_style, svg
from lengthwise.eval.statistics import Interval, paired_difference, paired_ratio
from lengthwise.eval.tune import records_of
from lengthwise.policies import load_policy, load_router
from lengthwise.predictors.predict import predict
from lengthwise.serving import Engine, Node, Records, System
from lengthwise.serving.saturation import saturation_rate
from lengthwise.serving.timing import timing
from lengthwise.workload import Workload
from lengthwise.writing import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]

SEATS, MEAN_OUTPUT, DUE_S = 64, 300, 10.0
TIMINGS = ("h100/llama-3.1-8b", "h200/llama-3.1-8b")
PROMPTS = (128, 2048)  # mean tokens
CVS = (0.5, 1.0, 2.0)  # of the answers' lengths: standard deviation over mean
LOADS = (0.5, 0.7, 0.85, 0.95, 1.05, 1.2)
# Of the blocks that the seats fill at their mean lengths; "ample" takes the profile's own.
KV = {"ample": None, "tight": 0.4}
KNOWN = ("oracle", "0.7", "0.5", "0.3")  # exact lengths, or with noise of this Kendall's tau
LENGTH_AWARE = ("sjf", "srtf", "srtf+preempt:mode=swap")
WITHOUT = ("mlfq", "mlfq+preempt:mode=swap", "vtc", "edf")
ROWS = [*product(LENGTH_AWARE, KNOWN), *((policy, "none") for policy in WITHOUT)]
MEASURES = ("mean", "p99", "light_tenant", "missed")
AIMS = {"vtc": "light_tenant", "edf": "missed"}  # what a policy is for, where not the mean


@dataclass(frozen=True)
class Place:
    """One point of the map, but for its load."""

    timing: str
    prompt_tokens: int
    kv: str
    cv: float

    @property
    def name(self) -> str:
        return f"{self.timing.replace('/', '-')}-{self.prompt_tokens}-{self.kv}-{self.cv:g}"


PLACES = [Place(*each) for each in product(TIMINGS, PROMPTS, KV, CVS)]


def workload_of(place: Place, requests: int, seed: int) -> Workload:
    """Requests at 1 a second; the same lengths whatever the timing and the KV cache."""
    rng = np.random.default_rng([seed, place.prompt_tokens, int(100 * place.cv)])

    def lengths(mean: float, cv: float) -> NDArray[np.int64]:
        sigma = np.sqrt(np.log1p(cv**2))
        drawn = rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, requests)
        return np.clip(np.rint(drawn), 1, 16 * mean).astype(np.int64)

    arrival = np.cumsum(rng.exponential(1.0, requests))
    return Workload(
        {
            "arrival_s": arrival,
            "prompt_tokens": lengths(place.prompt_tokens, 0.5),
            "output_tokens": lengths(MEAN_OUTPUT, place.cv),
            "tenant": np.where(rng.random(requests) < 0.25, "light", "heavy"),
            "deadline_s": arrival + DUE_S * np.where(rng.random(requests) < 0.5, 1.0, 10.0),
        },
        name=place.name,
    )


def system_of(place: Place) -> System:
    """One replica, which holds the longest request whatever its KV cache."""
    share = KV[place.kv]
    blocks = None
    if share is not None:
        tokens = SEATS * (place.prompt_tokens + MEAN_OUTPUT)
        blocks = max(
            int(share * tokens / 16), 2 * (16 * MEAN_OUTPUT + 8 * place.prompt_tokens) // 16
        )
    engine = Engine(max_num_seqs=SEATS, num_gpu_blocks=blocks)
    return System((Node(engine, timing(place.timing), load_policy("fcfs")),),
                  load_router("round-robin"))  # fmt: skip


def measured(records: Records, workload: Workload) -> list[float]:
    """The values of ``MEASURES``, in seconds and as a share of the requests."""
    latency = metrics.e2e_s(records)
    light = workload["tenant"] == "light"
    met = metrics.deadlines(records, workload["deadline_s"])["deadline_attainment"]
    return [
        float(latency.mean()), float(np.percentile(latency, 99)), float(latency[light].mean()),
        1 - met,
    ]  # fmt: skip


def run_cell(place: Place, requests: int, seed: int) -> list[list[list[float]]]:
    """For each load what fcfs and each of ``ROWS`` came to: (loads, 1 + rows, measures)."""
    drawn, system = workload_of(place, requests, seed), system_of(place)
    capacity = saturation_rate(drawn, system)
    known = {
        name: predict("oracle" if name == "oracle" else f"noisy-oracle:tau={name}", drawn, seed)
        for name in KNOWN
    }
    found = []
    for load in LOADS:
        workload = drawn.at_rate(load * capacity)
        # stretched deadlines would be easier to meet where fewer requests come
        due = drawn["deadline_s"] - drawn["arrival_s"]
        workload = workload.replace(deadline_s=workload["arrival_s"] + due)
        found.append([
            measured(
                records_of(Trial(workload, system, known.get(name), seed), load_policy(policy)),
                workload,
            )
            for policy, name in (("fcfs", ""), *ROWS)
        ])  # fmt: skip
    return found


def table(
    cells: Sequence[Sequence[list[list[list[float]]]]], places: Sequence[Place]
) -> pd.DataFrame:
    """A row a place, load and policy: what of fcfs's mean and P99 latency is left, as a ratio.

    ``cells`` holds of each place one array a seed. ``aim`` is the same of what a policy of ``AIMS``
    is for. Deadlines that are missed may be none under fcfs: their ratio is of means over seeds,
    and its interval that of the paired difference over fcfs's mean; NaN where fcfs missed none.
    """
    rows = []
    for place, seeds in zip(places, cells, strict=True):
        values = np.array(seeds)  # (seeds, loads, 1 + rows, measures)
        for (k, load), (r, (policy, known)) in product(enumerate(LOADS), enumerate(ROWS, 1)):
            base, own = values[:, k, 0], values[:, k, r]
            row = {**asdict(place), "load": load, "policy": policy, "lengths": known}
            row |= spelled("mean", paired_ratio(own[:, 0], base[:, 0]))
            row |= spelled("p99", paired_ratio(own[:, 1], base[:, 1]))
            if policy in AIMS:
                row |= spelled("aim", aimed(AIMS[policy], own, base))
            rows.append(row)
    return pd.DataFrame(rows)


def aimed(measure: str, own: Floats, base: Floats) -> Interval:
    """The ratio of what a policy is for to fcfs's; (seeds, measures) each."""
    m = MEASURES.index(measure)
    if measure != "missed":
        return paired_ratio(own[:, m], base[:, m])
    level = float(base[:, m].mean())
    if level == 0:
        return Interval(np.nan, np.nan, np.nan, len(own))
    more = paired_difference(own[:, m], base[:, m])
    return Interval(1 + more.mean / level, 1 + more.low / level, 1 + more.high / level, more.count)


def spelled(name: str, found: Interval) -> dict[str, float]:
    ends = {"": found.mean, "_low": found.low, "_high": found.high}
    return {f"{name}{end}": round(value, 3) for end, value in ends.items()}


# What of the map the picture shows: panels a row, and rows of a panel.
SHOWN_TIMING = TIMINGS[0]
PANEL_ROWS = (
    (128, "ample", "short prompts,\nample KV cache"),
    (2048, "ample", "long prompts,\nample KV cache"),
    (2048, "tight", "long prompts,\ntight KV cache"),
)
SHOWN = (
    ("sjf", "oracle", "mean", "SJF, exact lengths"),
    ("sjf", "0.5", "mean", "SJF, τ 0.5"),
    ("sjf", "0.3", "mean", "SJF, τ 0.3"),
    ("srtf", "oracle", "mean", "SRTF, exact lengths"),
    ("mlfq", "none", "mean", "MLFQ, no lengths"),
    ("vtc", "none", "aim", "VTC: a light tenant's"),
    ("edf", "none", "aim", "EDF: missed deadlines"),
    ("sjf", "0.5", "p99", "the price: SJF's P99, τ 0.5"),
)
BETTER, WORSE, SAME, INK = (0, 114, 178), (213, 94, 0), "#9a9a9a", "#808080"
TITLE = "Mean latency as a share of FCFS's: blue is less, orange is more, = is no difference"
LEAST = 0.01  # a ratio nearer to 1 is none to speak of


def shown(row: Mapping[Any, float], measure: str) -> float:
    """The ratio to fcfs that a cell of the picture shows; NaN for no difference."""
    value, low, high = (float(row[f"{measure}{end}"]) for end in ("", "_low", "_high"))
    return value if (high < 1 or low > 1) and abs(value - 1) >= LEAST else np.nan


def colour(ratio: float) -> tuple[float, float, float]:
    """Blue below 1, orange above, as full as it is far from 1: at a half, and at two."""
    strength = 0.2 + 0.8 * min(abs(np.log2(ratio)), 1.0)
    red, green, blue = (
        1 - strength * (1 - part / 255) for part in (BETTER if ratio < 1 else WORSE)
    )
    return red, green, blue


def drawn(found: pd.DataFrame) -> Figure:
    """The picture: legible on a light and on a dark page, as its ground is the page's own."""
    with matplotlib_style({"axes.grid": False}):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10.2, 8.8), layout="constrained", facecolor="none")
        grid = figure.subplots(len(PANEL_ROWS), len(CVS), sharex=True, sharey=True)
        for (i, (prompt, kv, title)), (j, cv) in product(enumerate(PANEL_ROWS), enumerate(CVS)):
            axes = grid[i, j]
            here = found[
                (found.timing == SHOWN_TIMING) & (found.prompt_tokens == prompt)
                & (found.kv == kv) & (found.cv == cv)
            ]  # fmt: skip
            for y, (policy, known, measure, _) in enumerate(SHOWN):
                mine = here[(here.policy == policy) & (here.lengths == known)]
                for x, load in enumerate(LOADS):
                    (row,) = mine[mine.load == load].to_dict("records")
                    cell(axes, x, y, shown(row, measure))
            axes.set_facecolor("none")
            axes.set_xlim(-0.5, len(LOADS) - 0.5)
            axes.set_ylim(len(SHOWN) - 0.5, -0.5)
            axes.set_xticks(range(len(LOADS)), [f"{load:.0%}" for load in LOADS])
            axes.set_yticks(range(len(SHOWN)), [label for *_, label in SHOWN])
            axes.tick_params(length=0, colors=INK, labelsize=9)
            axes.spines[:].set_visible(False)
            axes.axvline(LOADS.index(0.95) + 0.5, color=INK, linewidth=1, linestyle=":")
            if i == 0:
                axes.set_title(f"answers vary {('little', 'much', 'very much')[j]} (CV {cv:g})",
                               color=INK, fontsize=10)  # fmt: skip
            if j == len(CVS) - 1:
                axes.yaxis.set_label_position("right")
                axes.set_ylabel(title, color=INK, fontsize=10, labelpad=8)
        figure.supxlabel("load, of what can be served", color=INK, fontsize=10)
        figure.suptitle(TITLE, color=INK, fontsize=12, fontweight="bold")
    return figure


def cell(axes: Axes, x: int, y: int, ratio: float) -> None:
    from matplotlib.patches import Rectangle

    if np.isnan(ratio):
        axes.text(x, y, "=", ha="center", va="center", color=SAME, fontsize=9)
        return
    face = colour(ratio)
    axes.add_patch(Rectangle((x - 0.47, y - 0.45), 0.94, 0.9, facecolor=face, linewidth=0))
    text = f"{ratio:.2f}".removeprefix("0") if ratio < 1.1 else f"{ratio:.1f}"
    light = abs(np.log2(ratio)) < 0.55
    axes.text(x, y, text, ha="center", va="center", color="#1a1a1a" if light else "white",
              fontsize=9)  # fmt: skip


def main() -> None:
    """Makes the table, or draws one that is there."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.when_it_pays")
    parser.add_argument("--out", type=Path, default=Path("docs/when-it-pays.csv"))
    parser.add_argument("--work", type=Path, default=Path("build/when-it-pays"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--draw", type=Path, metavar="TABLE", help="the picture alone, beside it")
    given = parser.parse_args()
    if given.draw is not None:
        picture = svg(drawn(pd.read_csv(given.draw)))
        with whole_file(given.draw.with_suffix(".svg")) as fresh:
            fresh.write_bytes(picture)
        return
    identity = {"requests": given.requests, "loads": LOADS, "rows": ROWS, "measures": MEASURES,
                "seats": SEATS, "kv": KV}  # fmt: skip
    kept = Cells.open(given.work, identity)
    cells = []
    for done, place in enumerate(PLACES, 1):
        cells.append([
            once(kept, f"{place.name}-{seed}", partial(run_cell, place, given.requests, seed))
            for seed in range(given.seeds)
        ])  # fmt: skip
        print(f"{done} of {len(PLACES)}: {place.name}", flush=True)
    with whole_file(given.out) as fresh:
        table(cells, PLACES).to_csv(fresh, index=False)
    print(f"{given.out}; the picture: python -m benchmarks.when_it_pays --draw {given.out}")


if __name__ == "__main__":
    main()
