"""Whether the three sentences of `lengthwise advise` hold on a full grid of a trace.

    python -m benchmarks.advise_truth TRACE... [--like vllm-serve] [--windows 10] [--out FILE]

For each trace, advice as the command gives it, and beside each claim what a larger grid finds: the
whole trace at its own rate under fcfs (whether a queue forms), and seven shares of the capacity by
so many windows spread over it, with every policy and predictor. These windows begin elsewhere than
the command's, which some overlap; a trace too short to be cut, or of conversations, is the same
requests with more draws of the predictors' noise. The load nearest to the judged one says what the
chosen policy gains in the mean, what its P99 is in fcfs's, and the least Kendall tau that pays.
A line of Markdown a trace.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lengthwise.eval.advise import MEAN, P99, POLICIES, TAUS, Advice, advise
from lengthwise.eval.compare import Comparison, Contender, compare
from lengthwise.eval.pool import kept_workers
from lengthwise.eval.source import Cut, Fixed, Source, Spelled
from lengthwise.eval.statistics import Interval
from lengthwise.eval.tables import queue_forms
from lengthwise.eval.verdict import gains
from lengthwise.serving import Engine
from lengthwise.workload import Workload

SHARES = (0.7, 0.8, 0.85, 0.9, 0.95, 1.0, 1.1)


@dataclass(frozen=True)
class Row:
    """What one trace's sentences said and what the grid found."""

    trace: str
    queue: tuple[bool, bool]  # said, found
    policy: str
    mean: tuple[Interval, Interval]
    p99: tuple[float, Interval]
    tau: tuple[float, float]  # the least that pays; inf where none does
    windows: str
    cpu_s: float

    @property
    def markdown(self) -> str:
        return (
            f"| {self.trace} | {self.cpu_s:.0f} | {_yes(self.queue[0])} | {_yes(self.queue[1])} | "
            f"{self.policy} | {_interval(self.mean[0])} | {_interval(self.mean[1])} | "
            f"{self.p99[0]:.2f} | {_interval(self.p99[1])} | {_tau(self.tau[0])} | "
            f"{_tau(self.tau[1])} | {self.windows} |"
        )


HEAD = (
    "| trace | advise, CPU s | queue: said | found | policy | mean × fcfs: said | found | "
    "P99 × fcfs: said | found | least τ: said | found | grid |\n"
    "|---|---:|---|---|---|---:|---:|---:|---:|---:|---:|---|"
)


def judged(path: str, engine: Engine, windows: int, processes: int) -> Row:
    """Advice on a trace, held to the grid."""
    source = Spelled(path, {"drop_zero": True})
    begun = time.process_time()
    found = advise(source, engine=engine)  # in this process, so that its time is all counted
    cpu_s = time.process_time() - begun
    whole = source.load(None, 0)
    own = compare(Fixed(whole), ["fcfs"], seeds=1, engine=engine)
    there = found.rate == whole.rate
    rates = [found.rate] if there else [share * found.capacity for share in SHARES]
    others, said = _others(whole, found, windows)
    windows = len(others.windows) if isinstance(others, Cut) else windows
    predictors = [*(f"noisy-oracle:tau={tau:g}" for tau in TAUS), "oracle"]
    grid = compare(others, POLICIES, predictors, rates, windows, engine, processes=processes)
    at = min(rates, key=lambda rate: abs(rate - found.rate))
    told = found.own if there else found.loads
    told_at = math.nan if there else min(told.rates, key=lambda rate: abs(rate - found.rate))
    who = _chosen(told, told_at, found.policy)
    return Row(
        Path(path).name.partition(".")[0],
        (not found.sentences[0].startswith("No queue"), queue_forms(own, math.nan)),
        who.label,
        (told.ratio(told_at, who, MEAN), grid.ratio(at, who, MEAN)),
        (told.ratio(told_at, who, P99).mean, grid.ratio(at, who, P99)),
        (_least(told, told_at, who), _least(grid, at, who)),
        said,
        cpu_s,
    )


def _others(whole: Workload, found: Advice, windows: int) -> tuple[Source, str]:
    """More windows, from elsewhere in the trace; the same requests where none can be cut."""
    if not isinstance(found.source, Cut):
        return found.source, f"{len(whole):,} requests, {windows} seeds"
    size = len(found.source.windows[0])
    first = np.linspace(0, len(whole) - size, windows).astype(int).tolist()
    made = [whole.window(at, at + size) for at in first]
    able = tuple(one for one in made if np.ptp(one["arrival_s"]) > 0)  # else it has no rate
    return Cut(whole.name, able), f"{len(able)} windows of {size:,}"


def _chosen(told: Comparison, at: float, policy: str) -> Contender:
    """The row that the second sentence is about: the chosen policy with lengths of tau 0.5, or the
    best of all where the advice is to leave the order as it is.
    """
    able = [w for w in told.contenders[1:] if w.predictor_name in ("none", "noisy-oracle:tau=0.5")]
    named = [who for who in able if who.policy_name == policy]
    return min(named or able, key=lambda who: told.ratio(at, who, MEAN).mean)


def _least(grid: Comparison, at: float, who: Contender) -> float:
    """The least Kendall tau at which that row's policy gains; 1 is exact lengths."""
    rows = {1.0: "oracle"} | {tau: f"noisy-oracle:tau={tau:g}" for tau in TAUS}
    for tau in sorted(rows):
        for each in grid.contenders:
            if (each.policy_name, each.predictor_name) == (who.policy_name, rows[tau]):
                if gains(grid.ratio(at, each, MEAN)):
                    return tau
    return math.inf


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _tau(value: float) -> str:
    return "none" if math.isinf(value) else f"{value:g}"


def _interval(value: Interval) -> str:
    if math.isnan(value.low):
        return f"{value.mean:.2f}"
    return f"{value.mean:.2f} ({value.low:.2f} to {value.high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("traces", nargs="+")
    parser.add_argument("--like", default="vllm-serve")
    parser.add_argument("--windows", type=int, default=10)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out")
    given = parser.parse_args()
    engine = Engine.like(given.like, "h200")
    print(HEAD, flush=True)
    lines = []
    with kept_workers(given.processes):
        for path in given.traces:
            lines.append(judged(path, engine, given.windows, given.processes).markdown)
            print(lines[-1], flush=True)
    if given.out:
        Path(given.out).write_text("\n".join([HEAD, *lines]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
