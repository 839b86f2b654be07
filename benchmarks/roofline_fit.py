"""Rooflines fitted over all measured profiles, and their errors where a profile is left out.

    python -m benchmarks.roofline_fit            # fits, prints constants and errors, 3 minutes
    python -m benchmarks.roofline_fit --write    # and writes serving/timing/data/roofline.json

Shapes are those of the profiles' raw iterations; the GPU's seconds for each are the fitted
profile's, which are free of single iterations' noise and of the CPU's part in them. The CPU's terms
are the mean of the profiles', lines in the number of layers where kernels are launched one by one.
Each profile (and, with several GPUs, all profiles of a GPU) is then left out, and its model is
simulated at loads of its capacity by the roofline of the others and by the profile.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import least_squares

import lengthwise as lw
from benchmarks import fidelity
from lengthwise.eval.calibrate import figures, met
from lengthwise.policies import load_policy, load_router
from lengthwise.serving import Node, System
from lengthwise.serving.saturation import saturation_rate
from lengthwise.serving.timing.accuracy import recorded
from lengthwise.serving.timing.fit import LONG
from lengthwise.serving.timing.load import PROFILES, gpu_of, shipped
from lengthwise.serving.timing.profile import ProfileTiming, capture_sizes, padded
from lengthwise.serving.timing.roofline import (
    Constants,
    Estimates,
    RooflineTiming,
    gpu_terms,
    products_s,
    roofline,
)
from lengthwise.serving.timing.terms import TERMS

OUT = Path(__file__).resolve().parent.parent / "serving" / "timing" / "data" / "roofline.json"
REGIMES = ("decode", "prefill", "mixed")
SAMPLE = 500  # iterations of each regime of each profile
# Where the fit starts, between what bounds a number may lie
START = Constants(0.85, 0.7, 2.0, 3e-5, 0.9, 0.75, 0.55, 5e-6, 5e-5)
LEAST = Constants(0.5, 0.3, 1.0, 0.0, 0.4, 0.3, 0.2, 0.0, 0.0)
MOST = Constants(1.0, 1.0, 8.0, 1e-4, 1.0, 1.0, 1.0, 1e-4, 1e-3)
BY_LAYER = ("launch_graph", "launch_eager")
LOADS = (0.3, 0.5, 0.7, 0.9)
TRAFFIC = ("azure-conv-2023", "azure-code-2023")
REQUESTS, SEED = 1500, 1
LATENCIES = ("ttft_mean_s", "tpot_mean_s", "e2e_mean_s")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """Recorded shapes of a profile, (n,) each, and the GPU's seconds for them by the profile."""

    name: str
    rows: pd.DataFrame
    padded: NDArray[np.int64]
    seconds: Floats

    @property
    def roofline(self) -> RooflineTiming:
        return roofline(self.name)


@cache
def profile(name: str) -> ProfileTiming:
    """The profile with the CPU's mean speed on its host, as rooflines have it."""
    found = shipped(name)
    return found.with_factors(cpu=max(cpu_of(found), 1.0))


def cpu_of(found: ProfileTiming) -> float:
    return float(found.about["cpu_speed"]["mean"])


def usable() -> list[str]:
    """Profiles of dense models in 16 bits; a roofline knows no others."""
    return [
        name for name in PROFILES
        if shipped(name).about.get("quantization") is None
        and shipped(name).about.get("kv_cache_dtype", "auto") in ("auto", "bfloat16")
    ]  # fmt: skip


@cache
def sample(name: str) -> Sample:
    """Drawn evenly from the regimes; contexts beside prefill no longer than the fit's."""
    rows = recorded(PROFILES[name])
    rows = rows[rows["max_context"] <= LONG]
    parts = [part.sample(min(SAMPLE, len(part)), random_state=SEED)
             for _, part in rows.groupby("regime")]  # fmt: skip
    rows = pd.concat(parts)
    about = shipped(name).about
    seats, budget = about["max_num_seqs"], about["max_num_batched_tokens"]
    clocks = shipped(name).pipeline(budget, seats)
    n, tokens = rows["decode_seqs"].to_numpy(), rows["tokens"].to_numpy()
    alone = (rows["regime"] == "decode").to_numpy()
    context = rows["context_tokens"].to_numpy(np.float64)
    decode = clocks.decode_ps[n] + clocks.decode_context_ps[n] * context
    mixed = clocks.mixed_ps[np.minimum(tokens, budget)].astype(np.float64)
    mixed += sum(
        clocks.terms[term] * rows[TERMS[term].times].to_numpy(np.float64)
        for term in ("mixed_context", "chunk_context", "decode_seq", "prefill_seq")
    )
    sizes = padded(tokens, capture_sizes(seats, budget))
    return Sample(name, rows, sizes, np.where(alone, decode, mixed) / 1e12)


def predicted_s(of: Sample, constants: Constants) -> Floats:
    """The GPU's seconds by a roofline with these constants, (n,)."""
    made = of.roofline
    terms = gpu_terms(made.model, made.gpu, constants, made.tensor_parallel)
    total: Floats = products_s(made.model, made.gpu, of.padded, constants, made.tensor_parallel)
    alone = (of.rows["regime"] == "decode").to_numpy()
    context = of.rows["context_tokens"].to_numpy() * terms["context"]
    beside = of.rows["context_tokens"].to_numpy() * terms["mixed_context"]
    total = total + np.where(alone, context, beside)
    for term in ("chunk_context", "decode_seq", "prefill_seq"):
        total = total + of.rows[TERMS[term].times].to_numpy() * terms[term]
    return total


def fit_gpu(samples: Sequence[Sample]) -> Constants:
    """Least relative errors, regimes and profiles alike; outliers weighed down."""
    scale = np.array(list(asdict(MOST).values()))

    def off(scaled: Floats) -> Floats:
        constants = Constants(*(scaled * scale).tolist())
        parts = []
        for one in samples:
            error = np.log(predicted_s(one, constants) / one.seconds)
            for regime in REGIMES:
                chosen = (one.rows["regime"] == regime).to_numpy()
                parts.append(10 * error[chosen] / np.sqrt(max(chosen.sum(), 1)))
        return np.concatenate(parts)

    start, least = (np.array(list(asdict(c).values())) / scale for c in (START, LEAST))
    found = least_squares(off, start, bounds=(least, np.ones(len(scale))), loss="soft_l1")
    return Constants(*(found.x * scale).tolist())


def fit_host(names: Sequence[str]) -> tuple[dict[str, float], dict[str, Any], float]:
    """Terms, terms by layers, and the CPU's mean speed, of profiles whose CPU was ever slower."""
    told = [name for name in names if cpu_of(shipped(name)) != 1.0] or list(names)
    given = {name: shipped(name).terms for name in told}
    terms = {
        term: float(np.median([of[term] for of in given.values()]))
        for term, row in TERMS.items()
        if row.part != "gpu" and row.measured
    }
    layers = np.array([roofline(name).model.num_hidden_layers for name in told], np.float64)
    by_layer = {}
    for term in BY_LAYER:
        seconds = np.array([given[name][term] for name in told])
        if len(told) < 3:  # in proportion, if a line can't be told
            by_layer[term] = (0.0, float(np.mean(seconds / layers)))
            continue
        slope, once = np.polyfit(layers, seconds, 1)
        by_layer[term] = (float(once), float(slope))
    return terms, by_layer, float(np.mean([cpu_of(shipped(name)) for name in told]))


def fit(names: Sequence[str]) -> Estimates:
    """The roofline of these profiles; its own error is not known here."""
    terms, by_layer, cpu = fit_host(names)
    found = fit_gpu([sample(name) for name in names])
    return Estimates(found, terms, by_layer, cpu, np.nan, np.nan, tuple(names))


def iteration_errors(name: str, found: Estimates) -> dict[str, tuple[float, float]]:
    """Mean absolute error and bias of the GPU's seconds by regime."""
    one = sample(name)
    off = predicted_s(one, found.gpu) / one.seconds - 1
    table = {}
    for regime in REGIMES:
        chosen = (one.rows["regime"] == regime).to_numpy()
        table[regime] = (float(np.abs(off[chosen]).mean()), float(off[chosen].mean()))
    return table


def latencies(name: str, timing: Any, traffic: str, load: float) -> dict[str, float]:
    """Of a run at a load of what the profile ``name`` serves at most."""
    engine = lw.Engine(async_scheduling=True, enable_prefix_caching=True)
    workload = lw.Workload.preset(traffic, requests=REQUESTS, rate=1.0, seed=SEED)
    rate = load * capacity(name, traffic)
    run = lw.simulate(workload.at_rate(rate), "fcfs", engine=engine, timing=timing)
    summary = run.summary()
    return {metric: summary[metric] for metric in LATENCIES}


@cache
def capacity(name: str, traffic: str) -> float:
    """Requests/s that the profile serves at most."""
    engine = lw.Engine(async_scheduling=True, enable_prefix_caching=True)
    workload = lw.Workload.preset(traffic, requests=REQUESTS, rate=1.0, seed=SEED)
    node = Node(engine, profile(name), load_policy("fcfs"))
    return saturation_rate(workload, System((node,), load_router("round-robin")))


def end_to_end(name: str, found: Estimates) -> list[dict[str, Any]]:
    """Relative errors of the roofline's mean latencies, a row a traffic and load."""
    base = roofline(name)
    made = RooflineTiming(base.model, base.gpu, base.tensor_parallel, base.name, known=found)
    rows = []
    for traffic in TRAFFIC:
        for load in LOADS:
            real = latencies(name, profile(name), traffic, load)
            ours = latencies(name, made, traffic, load)
            off = {metric: ours[metric] / real[metric] - 1 for metric in LATENCIES}
            rows.append({"profile": name, "traffic": traffic, "load": load, **off})
    return rows


def left_out(names: Sequence[str], by_gpu: bool) -> list[dict[str, Any]]:
    """Errors of each profile by the fit of the others, or of those of other GPUs."""
    rows = []
    for name in names:
        others = [o for o in names if (gpu_of(o) != gpu_of(name) if by_gpu else o != name)]
        if not others:
            continue
        found = fit(others)
        for row in end_to_end(name, found):
            rows.append(row)
        for regime, (error, bias) in iteration_errors(name, found).items():
            rows.append({"profile": name, "regime": regime, "error": error, "bias": bias})
    return rows


def real_runs(names: Sequence[str]) -> list[dict[str, Any]]:
    """Mean end-to-end errors and figures met of the recorded runs (``benchmarks.fidelity``), each
    by the roofline that did not see its model's profile of that GPU.
    """
    rows = []
    served = [run for gpu in fidelity.DATA for run in fidelity.conditions(gpu)]
    served += [family + "fcfs" for family in fidelity.RANKINGS]
    known = fidelity.about()["runs"]
    for name in names:
        device, _, model = name.partition("/")
        runs = [r for r in served if (known[r]["gpu"], known[r]["model"]) == (device, model)]
        if not runs:
            continue
        found, base = fit([other for other in names if other != name]), roofline(name)
        made = RooflineTiming(base.model, base.gpu, base.tensor_parallel, base.name, known=found)
        for run in runs:
            table = lw.simulate(
                fidelity.workload(run), "fcfs", engine=fidelity.engine(run), timing=made
            ).requests
            first, last = (table[c].to_numpy() for c in ("ttft_s", "e2e_s"))
            seen, tokens = fidelity.measured(run), fidelity.workload(run)["output_tokens"]
            ours, real = figures(first, last, tokens), figures(seen.ttft, seen.e2e, tokens)
            rows.append(
                {
                    "profile": name, "run": run, "load": fidelity.about()["runs"][run]["load"],
                    "e2e_mean": float(ours["e2e"][0] / real["e2e"][0] - 1),
                    "met": int(sum(met(ours[key] / real[key]).sum() for key in real)),
                }
            )  # fmt: skip
    return rows


def real_table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row a recorded run."""
    lines = ["| run | load | mean E2E | figures met of 12 |", "|---|---:|---:|---:|"]
    lines += [
        f"| {r['run']} | {r['load'] or ''} | {100 * r['e2e_mean']:+.1f}% | {r['met']} |"
        for r in rows
    ]
    under = [abs(r["e2e_mean"]) for r in rows if (r["load"] or 0) and r["load"] <= 0.9]
    lines += ["", f"{sum(r['met'] for r in rows)} of {12 * len(rows)} figures; mean end-to-end up "
              f"to load 0.9: off by {np.mean(under):.1%}, at most {np.max(under):.1%}"]  # fmt: skip
    return "\n".join(lines)


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: errors in percent, of iterations by regime and of runs by traffic and load."""
    runs, parts = [r for r in rows if "load" in r], [r for r in rows if "regime" in r]
    lines = ["| profile | decode | prefill alone | mixed | TTFT, TPOT, E2E mean at load "
             + " | ".join(f"{load:g}" for load in LOADS) + " |",
             "|---|---:|---:|---:|" + "---|" * len(LOADS)]  # fmt: skip
    for name in dict.fromkeys(row["profile"] for row in rows):
        mine = {row["regime"]: row for row in parts if row["profile"] == name}
        cells = [f"{100 * mine[r]['error']:.0f}%" for r in REGIMES]
        for load in LOADS:
            at = [row for row in runs if (row["profile"], row["load"]) == (name, load)]
            cells.append(
                "; ".join(" ".join(f"{100 * row[m]:+.0f}" for m in LATENCIES) for row in at)
            )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Fits, prints, and writes if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    names = usable()
    found = fit(names)
    rows = left_out(names, by_gpu=False)
    print("each profile by the others\n\n" + tables(rows))
    runs = [row for row in rows if "load" in row]
    devices = {gpu_of(name) for name in names}
    if len(devices) > 1:
        across = left_out(names, by_gpu=True)
        print("\neach profile by those of other GPUs\n\n" + tables(across))
        runs += [row for row in across if "load" in row]
    print("\nrecorded runs by the others\n\n" + real_table(real_runs(names)))
    off = np.abs([row["e2e_mean_s"] for row in runs])
    data = {
        "profiles": names, "gpu": asdict(found.gpu), "terms": found.terms,
        "by_layer": found.by_layer, "cpu": found.cpu, "error": off.mean(), "worst": off.max(),
    }  # fmt: skip
    text = json.dumps(shortened(data), indent=1) + "\n"
    print(f"\n{text}\nmean end-to-end latency: off by {off.mean():.1%}, at most {off.max():.1%}")
    if write:
        OUT.write_text(text, "utf-8")


def shortened(value: Any) -> Any:
    """Numbers at a precision that the fit has."""
    if isinstance(value, dict):
        return {key: shortened(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [shortened(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
