"""Calibrating on one recorded run of a real vLLM, judged on the other runs.

    python -m benchmarks.calibration [--gpu h100] [--several 3] [--jobs 2]

The recorded runs (``benchmarks.fidelity``) are of the host that the profile was measured on, so a
host that differs is made by spoiling the profile: its GPU and CPU by known factors; with ``--gpu
h100`` the profile is also left as it is, as it would be shipped. Counted are the
figures of all other runs (mean, P50, P90, P99 of TTFT, TPOT and end-to-end latency) within 5%, P99
within 10%, by the spoiled profile as it is and as calibrated.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache

import numpy as np

import lengthwise as lw
from benchmarks import fidelity
from lengthwise.eval.calibrate import calibrate, figures, met
from lengthwise.eval.measured import Measured
from lengthwise.serving.timing.load import shipped
from lengthwise.serving.timing.profile import SPED, ProfileTiming
from lengthwise.serving.timing.terms import TERMS

MODEL = "llama-3.1-8b"
# GPU and CPU of the profile, in those of the host: 4% and a factor of 1.8, both ways
SPOILED = ((1.0, 1.0), (0.96, 1.8), (1.04, 0.56))


def spoiled(profile: ProfileTiming, gpu: float, cpu: float) -> ProfileTiming:
    """The profile of a host with a GPU and a CPU that take so many times as long."""

    def factor(term: str) -> float:
        return cpu if term.startswith(SPED) else gpu if TERMS.get(term) in GPU else 1.0

    return replace(
        profile,
        decode=[(size, gpu * seconds) for size, seconds in profile.decode],
        decode_context=[(size, gpu * seconds) for size, seconds in profile.decode_context],
        mixed=[(size, gpu * seconds) for size, seconds in profile.mixed],
        terms={term: factor(term) * seconds for term, seconds in profile.terms.items()},
    )


GPU = [term for term in TERMS.values() if term.part == "gpu"]


def runs(gpu: str = "h200") -> list[str]:
    """The recorded runs of a GPU under first come, first served."""
    served = [*fidelity.conditions(gpu), *(family + "fcfs" for family in fidelity.RANKINGS)]
    known = fidelity.about()["runs"]
    return [n for n in served if known[n]["gpu"] == gpu and known[n]["model"] == MODEL]


@cache
def measured(name: str) -> Measured:
    """A recorded run as calibrate reads it."""
    seen = fidelity.measured(name)
    return Measured(name, fidelity.workload(name), seen.ttft, seen.e2e)


def figures_met(name: str, timing: ProfileTiming) -> int:
    """How many of a run's twelve figures ``timing`` tells within the bounds."""
    run = measured(name)
    table = lw.simulate(run.workload, "fcfs", engine=fidelity.engine(name), timing=timing).requests
    first, last = (
        (table[column] - table["arrival_s"]).to_numpy() for column in ("first_token_s", "finish_s")
    )
    tokens = run.workload["output_tokens"]
    ours, real = figures(first, last, tokens), figures(run.first_s, run.last_s, tokens)
    return int(sum(met(ours[key] / real[key]).sum() for key in real))


def judged(
    given: tuple[str, tuple[str, ...], tuple[float, float]],
) -> tuple[float, float, float, float]:
    """Shares of the other runs' figures that are met without and with calibration; the factors."""
    gpu, names, factors = given
    base = spoiled(shipped(f"{gpu}/{MODEL}"), *factors)
    engines = {fidelity.engine(name) for name in names}
    found = calibrate([measured(name) for name in names], base, engines.pop())
    others = [name for name in runs(gpu) if name not in names]
    fitted = base.with_factors(gpu=found.factors[0], cpu=found.factors[1])
    shares = [
        sum(figures_met(name, timing) for name in others) / 12 / len(others)
        for timing in (base, fitted)
    ]
    return shares[0], shares[1], found.factors[0] * factors[0], found.factors[1] * factors[1]


def chosen(gpu: str, several: int, rng: np.random.Generator) -> list[tuple[str, ...]]:
    """Each run alone, or as many drawings of ``several`` that one engine served."""
    if several == 1:
        return [(name,) for name in runs(gpu)]
    by_engine: dict[lw.Engine, list[str]] = {}
    for name in runs(gpu):
        by_engine.setdefault(fidelity.engine(name), []).append(name)
    pools = [names for names in by_engine.values() if len(names) > several]
    return [
        tuple(rng.choice(pools[rng.integers(len(pools))], several, replace=False))
        for _ in range(len(runs(gpu)))
    ]


def table(rows: Sequence[tuple[tuple[float, float], np.ndarray]]) -> str:
    lines = [
        "| profile's GPU, CPU | as it is | calibrated: mean | median | least | GPU left "
        "| CPU left |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for (gpu, cpu), found in rows:
        plain, fitted, left, left_cpu = found.T
        lines.append(
            f"| {gpu:g}, {cpu:g} | {plain.mean():.1%} | {fitted.mean():.1%} | "
            f"{np.median(fitted):.1%} | {fitted.min():.1%} | {left.mean():.3f} ± {left.std():.3f} "
            f"| {left_cpu.mean():.2f} ± {left_cpu.std():.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gpu", choices=tuple(fidelity.DATA), default="h200")
    parser.add_argument("--several", type=int, default=1, help="runs that are fitted together")
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    rows = []
    with ProcessPoolExecutor(given.jobs) as pool:
        for factors in SPOILED:
            names = chosen(given.gpu, given.several, np.random.default_rng(0))
            tasks = [(given.gpu, one, factors) for one in names]
            found = np.array(list(pool.map(judged, tasks)))
            rows.append((factors, found))
            print(factors, np.round(found.mean(0), 3), flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
