"""The simulator against the real engine: recorded runs, replayed.

    python -m benchmarks.fidelity            # replays all runs, prints the tables
    python -m benchmarks.fidelity --write    # and renews the tables and plots of docs/fidelity.md

The runs were served by vLLM (``AsyncLLM``) on an H200 and on an H100, ``benchmarks.serve_vllm``;
only the profiles in ``serving/timing/data`` were fitted, and on other data.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lengthwise.eval.calibrate import BOUND, LEVEL, METRICS, STATISTICS, statistics
from lengthwise.policies.mlfq import mlfq
from lengthwise.policies.sjf import sjf
from lengthwise.policies.srtf import srtf
from lengthwise.policy import Preemption, RoutingPolicy, SchedulingPolicy, Score
from lengthwise.serving import Engine, Node, System
from lengthwise.serving.run import run as simulate
from lengthwise.serving.timing.load import shipped
from lengthwise.serving.timing.profile import ProfileTiming
from lengthwise.workload import Workload

ROOT = Path(__file__).resolve().parent.parent
DATA = {gpu: ROOT / "tests" / "data" / f"vllm_{gpu}_runs.parquet" for gpu in ("h200", "h100")}
RANKINGS = {"r-burst-": ("sjf", "srtf"), "r-hi-": ("sjf", "srtf"), "r-95-": ("sjf", "srtf"),
            "o-": ("sjf", "srtf-naive", "mlfq-naive")}  # fmt: skip
SCORES = {"sjf": sjf, "srtf": srtf, "mlfq": mlfq}

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Latencies:
    """Seconds, one entry a request; ``tpot`` of requests with more than one token."""

    ttft: Floats
    tpot: Floats
    e2e: Floats
    normalized: Floats

    @classmethod
    def of(cls, first_s: Floats, last_s: Floats, tokens: NDArray[np.int64]) -> Latencies:
        """From the times since arrival of first and last tokens."""
        several = tokens > 1
        tpot = (last_s - first_s)[several] / (tokens[several] - 1)
        return cls(first_s, tpot, last_s, last_s / tokens)


@cache
def about() -> dict[str, Any]:
    """What is known of the runs: options, policies, and figures of the runs without data."""
    known: dict[str, Any] = {"runs": {}, "figures_only": {}}
    for gpu, path in DATA.items():
        read = json.loads(path.with_suffix(".json").read_text("utf-8"))
        for kind in known:
            known[kind] |= {name: {"gpu": gpu} | run for name, run in read[kind].items()}
    return known


@cache
def _frames() -> dict[str, pd.DataFrame]:
    return {
        str(name): part
        for path in DATA.values()
        for name, part in pd.read_parquet(path).groupby("run", observed=True)
    }


def names() -> list[str]:
    """All recorded runs."""
    return sorted(_frames())


def conditions(gpu: str = "h200") -> list[str]:
    """The runs on a GPU under vLLM's own first come, first served."""
    runs = about()["runs"]
    return [n for n in names() if runs[n]["gpu"] == gpu and not n.startswith(("r-", "o-"))]


def measured(name: str) -> Latencies:
    """What the real engine's clients saw."""
    frame = _frames()[name]
    first, last = (frame[c].to_numpy() / 1e6 for c in ("first_token_us", "last_token_us"))
    return Latencies.of(first, last, frame["output_tokens"].to_numpy())


def workload(name: str) -> Workload:
    """The arrivals and lengths of a run."""
    frame = _frames()[name]
    return Workload(
        {
            "arrival_s": frame["arrival_us"].to_numpy() / 1e6,
            "prompt_tokens": frame["prompt_tokens"].to_numpy(dtype=np.int64),
            "output_tokens": frame["output_tokens"].to_numpy(dtype=np.int64),
        },
        name=name,
    )


def engine(name: str) -> Engine:
    """The options of the engine that served a run."""
    info = about()["runs"][name]
    return Engine(
        max_num_seqs=info["max_num_seqs"],
        max_num_batched_tokens=info["max_num_batched_tokens"],
        num_gpu_blocks=info["num_gpu_blocks"],
        async_scheduling=True,
        enable_prefix_caching=True,
    )


@cache
def simulated(name: str) -> Latencies:
    """What the simulator's clients see, given the same arrivals and lengths."""
    info, sent = about()["runs"][name], workload(name)
    policy = _policy(info.get("policy", {"name": "fcfs"}))
    routing = RoutingPolicy(Score("first", lambda running: running, ("running_requests",)))
    system = System((Node(engine(name), host_timing(info["gpu"], info["model"]), policy),), routing)
    lengths = None if policy.queue == "fcfs" else sent["output_tokens"]
    records = simulate(sent, system, lengths, backend="reference")
    first = (records.first_token_ps - records.arrival_ps) / 1e12
    last = (records.finish_ps - records.arrival_ps) / 1e12
    return Latencies.of(first, last, sent["output_tokens"])


def host_timing(gpu: str, model: str) -> ProfileTiming:
    """The profile with the CPU's mean speed on the host of the runs, as its sweep measured it."""
    profile = shipped(f"{gpu}/{model}")
    return profile.with_factors(cpu=profile.about["cpu_speed"]["mean"])


def _policy(spec: Mapping[str, Any]) -> SchedulingPolicy:
    if spec["name"] == "fcfs":
        score = Score("fcfs", lambda arrival_s: arrival_s, ("arrival_s",))
        return SchedulingPolicy(score, queue="fcfs")
    score = Score.from_function(SCORES[spec["name"]])
    score = score.with_tunables(spec.get("tunables", {}))
    if not spec.get("preempt"):
        return SchedulingPolicy(score)
    rule = Preemption(
        "recompute", price=spec.get("price", 0.0), overhead_tokens=0, margin=spec.get("margin", 0.0)
    )
    return SchedulingPolicy(score, rule)


def errors(name: str) -> dict[tuple[str, str], float]:
    """Relative error of each statistic of each metric: simulated over measured, less 1."""
    ours, real = simulated(name), measured(name)
    table = {}
    for metric in METRICS:
        off = statistics(getattr(ours, metric)) / statistics(getattr(real, metric)) - 1
        table |= {(metric, s): float(e) for s, e in zip(STATISTICS, off, strict=True)}
    return table


def gains(family: str, policy: str) -> dict[str, tuple[float, float]]:
    """Gain over FCFS, measured and simulated, in mean E2E and mean normalized latency."""
    table = {}
    for metric in ("e2e", "normalized"):
        gain = []
        for of in (measured, simulated):
            base, other = (getattr(of(family + p), metric).mean() for p in ("fcfs", policy))
            gain.append(float(base / other))
        table[metric] = (gain[0], gain[1])
    return table


def errors_table(chosen: Iterable[str]) -> list[str]:
    """Markdown rows: relative errors in percent, those beyond 5% (P99: 10%) in bold."""
    head = "| run | seats | load | "
    head += " | ".join(f"{m.upper()} {s}" for m in METRICS for s in STATISTICS)
    rows = [head + " |", "|---|---:|---:|" + "---:|" * 12]
    for name in chosen:
        info = about()["runs"][name]
        cells = [str(info["max_num_seqs"]), str(info["load"] or "")]
        cells += [_cell(value, statistic) for (_, statistic), value in errors(name).items()]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return rows


def _cell(error: float, statistic: str) -> str:
    text = f"{100 * error:+.1f}"
    return text if abs(error) <= BOUND.get(statistic, LEVEL) else f"**{text}**"


def gains_table() -> list[str]:
    """Markdown rows: gains over FCFS, measured and simulated, and mean latencies."""
    rows = [
        "| run | mean E2E measured (s) | simulated | error | gain over FCFS measured | simulated "
        "| error | gain in s/token measured | simulated | error |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for family, policies in RANKINGS.items():
        for policy in ("fcfs", *policies):
            name = family + policy
            real, ours = measured(name).e2e.mean(), simulated(name).e2e.mean()
            cells = [f"{real:.2f}", f"{ours:.2f}", f"{100 * (ours / real - 1):+.1f}%"]
            for before, after in gains(family, policy).values():
                cells += [f"{before:.3f}", f"{after:.3f}", f"{100 * (after / before - 1):+.1f}%"]
            rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return rows


def within(chosen: Iterable[str]) -> tuple[int, int]:
    """How many statistics lie within 5% (P99: 10%), of how many."""
    met = [
        abs(value) <= BOUND.get(statistic, LEVEL)
        for name in chosen
        for (_, statistic), value in errors(name).items()
    ]
    return sum(met), len(met)


def write(page: Path) -> None:
    """Renews what lies between the marks of the page, and its plots."""
    text = page.read_text("utf-8")
    fcfs = [*conditions(), *(f + "fcfs" for f in RANKINGS)]
    tables = {
        "conditions": errors_table(fcfs),
        "h100": errors_table(conditions("h100")),
        "ranking": gains_table(),
    }
    for mark, rows in tables.items():
        begin, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = before + begin + "\n" + "\n".join(rows) + "\n" + end + after
    page.write_text(text, "utf-8")
    plot(page.parent / "fidelity.svg", ("a-conv-40", "a-conv-97", "a-conv-over", "b-code-bursty",
                                        "c-burst", "q-conv-90"))  # fmt: skip


def plot(path: Path, chosen: Iterable[str]) -> None:
    """CDFs of TTFT, TPOT and E2E, measured and simulated, one row a run."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "lengthwise"
    from matplotlib import pyplot as plt

    chosen = list(chosen)
    figure, axes = plt.subplots(len(chosen), 3, figsize=(9, 1.7 * len(chosen)), squeeze=False)
    for row, name in zip(axes, chosen, strict=True):
        for axis, metric in zip(row, METRICS, strict=True):
            for of, style in ((measured, "-"), (simulated, "--")):
                values = np.sort(getattr(of(name), metric))
                levels = np.linspace(0, 1, 101)
                axis.plot(np.quantile(values, levels), levels, style, label=of.__name__, lw=1.2)
            axis.set_xscale("log")
            axis.tick_params(labelsize=6)
            axis.set_title(f"{name}: {metric.upper()} (s)", fontsize=7)
    axes[0, 0].legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Replays everything and prints the tables."""
    fcfs = [*conditions(), *(f + "fcfs" for f in RANKINGS)]
    print("\n".join(errors_table(fcfs)))
    met, of = within(fcfs)
    print(f"\n{met} of {of} statistics within 5% (P99: 10%)\n")
    print("\n".join(errors_table(conditions("h100"))))
    met, of = within(conditions("h100"))
    print(f"\n{met} of {of} statistics within 5% (P99: 10%)\n")
    print("\n".join(gains_table()))
    if "--write" in sys.argv[1:]:
        write(ROOT / "docs" / "fidelity.md")


if __name__ == "__main__":
    main()
