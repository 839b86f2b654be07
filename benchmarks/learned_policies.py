"""A scheduler and a router learned by an evolution strategy, judged where they were not trained.

    python benchmarks/learned_policies.py --data ../shared/data/traces --out OUT     # all cores
    python benchmarks/learned_policies.py --data ../shared/data/traces --out OUT --small
    python benchmarks/learned_policies.py --speed --out OUT

Trained on the presets and two conversation traces (mooncake_conversation, azure2023_conv) at loads
0.85 and 1.05; baselines are tuned on the same episodes by as many simulated runs. Judged on
windows, apart from each other, of all other traces at loads 0.8 to 1.1, with predictions as wrong
as a real predictor's (Kendall's tau 0.5) and with exact lengths. Writes learned_policies.json, .md
and the bundles; needs numpy, numba, pandas, scipy, pyyaml and gymnasium.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lengthwise.envs.episodes import Episode
from lengthwise.envs.scenarios import CAPACITY_SEED, PRESETS, UNEQUAL, Scenario, Scenarios
from lengthwise.eval.statistics import paired_ratio
from lengthwise.eval.tune import tune
from lengthwise.policies import load_policy, load_router
from lengthwise.policies.blend import spelled
from lengthwise.policies.bundle import write_bundle
from lengthwise.serving import Engine
from lengthwise.training import evolution as es
from lengthwise.workload import Workload

TRAINED = ("mooncake_conversation_a.jsonl.gz", "azure2023_conv_a.csv.gz")
UNSEEN = (
    "azure2023_code_a.csv.gz", "mooncake_arxiv_toolagent_a.csv.gz", "servegen_m_large.csv.gz",
    "servegen_deepseek_r1_day.csv.gz", "agent_miniswe.csv.gz", "claude_code_sessions_a.csv.gz",
)  # fmt: skip
BASELINES = {
    "scheduling": ("fcfs", "sjf", "srtf", "work", "hrrn", "mlfq"),
    "routing": (
        "round-robin", "weighted-round-robin", "jsq", "power-of-two", "jsq-tokens", "least-tokens",
        "least-load", "jsew", "lmetric", "min-min", "max-min", "max-capacity",
    ),
}  # fmt: skip
PREDICTORS = {"tau 0.5": "noisy-oracle:tau=0.5", "exact": "oracle"}
TRAIN_LOADS, TEST_LOADS = (0.85, 1.05), (0.8, 0.9, 1.0, 1.1)
PLAIN = {"scheduling": "fcfs", "routing": "round-robin"}
METRICS = ("mean", "P99", "normalized")


def system(kind: str) -> dict[str, Any]:
    """One replica of 64 seats; or four that differ, behind metrics that are a second old."""
    if kind == "scheduling":
        return {"engine": Engine(max_num_seqs=64)}
    return {"nodes": UNEQUAL, "metrics_interval_s": 1.0}


def read(path: Path) -> Workload:
    """A trace's arrivals and lengths; Poisson arrivals where a file has no clock of its own."""
    frame = (pd.read_json if ".jsonl" in path.name else pd.read_csv)(
        path, **({"lines": True} if ".jsonl" in path.name else {})
    )
    frame = frame[(frame["output_tokens"] > 0) & (frame["prompt_tokens"] > 0)]
    arrival = frame["arrival_s"].to_numpy(float)
    if "session_id" in frame:  # relative to its session
        arrival = np.cumsum(np.random.default_rng(0).exponential(1.0, len(frame)))
    order = np.argsort(arrival, kind="stable")
    columns = {
        "arrival_s": arrival[order] - arrival.min(),
        "prompt_tokens": frame["prompt_tokens"].to_numpy(np.int64)[order],
        "output_tokens": frame["output_tokens"].to_numpy(np.int64)[order],
    }
    return Workload(columns, name=path.name.split(".")[0].removesuffix("_a"))


def training_set(kind: str, predictor: str, data: Path, requests: int) -> list[Scenarios]:
    """The scenarios of training and of validation: traces are cut in two."""
    traces = [read(data / name) for name in TRAINED]
    made = []
    for span in ((0.0, 0.7), (0.7, 1.0)):
        options = {"requests": requests, "predictor": predictor, **system(kind)}
        items = [
            Scenario(f"{getattr(one, 'name', one)} at {load:g}", one, load=load,
                     span=(0.0, 1.0) if isinstance(one, str) else span, **options)
            for one in (*PRESETS, *traces)
            for load in TRAIN_LOADS
        ]  # fmt: skip
        made.append(Scenarios(items))
    return made


def test_set(
    kind: str, predictor: str, data: Path, names: tuple[str, ...], loads: tuple[float, ...],
    requests: int, windows: int,
) -> list[tuple[str, float, list[Episode]]]:  # fmt: skip
    """(trace, load, episodes of disjoint windows); capacity is that of rows from all over it."""
    found = []
    for name in names:
        whole = read(data / name)
        size = min(requests, len(whole) // windows)
        starts = np.linspace(0, len(whole) - size, windows).astype(int)
        every = np.linspace(0, len(whole) - 1, min(requests, len(whole))).astype(int)

        def cut(seed: int, whole: Any = whole, starts: Any = starts, size: int = size,
                every: Any = every) -> Workload:  # fmt: skip
            if seed == CAPACITY_SEED:
                return whole.select(every)
            return whole.select(
                slice(starts[seed % len(starts)], starts[seed % len(starts)] + size)
            )

        base = Scenario(whole.name, cut, load=1.0, predictor=predictor, **system(kind))
        for load in loads:
            one = replace(base, load=load)
            object.__setattr__(one, "capacity", base.capacity)  # measured once a trace
            object.__setattr__(one, "scale", 1.0)
            found.append((whole.name, load, [one(2**20 + w) for w in range(windows)]))
    return found


def loaded(kind: str, name: str) -> Any:
    return (load_policy if kind == "scheduling" else load_router)(name)


def tuned(kind: str, name: str, episodes: list[Episode], budget: int) -> Any:
    """A baseline, tuned; mlfq keeps its defaults, as its levels multiply beyond 64 bits."""
    if not budget or name == "mlfq":
        return loaded(kind, name)
    return tune(loaded(kind, name), episodes, budget=budget)


def table(policies: list[Any], episodes: list[Episode]) -> Any:
    with es.judging(episodes) as costs:
        return costs(policies)


def learn(
    kind: str, episodes: list[Episode], held_out: list[Episode], best: Any, start: Any, seed: int,
    evaluations: int,
) -> es.Evolved:  # fmt: skip
    """One training run; ``start`` is the best tuned baseline that is a blend."""
    weights = es.as_blend(start)
    assert weights is not None
    terms = tuple(dict.fromkeys((*es.FAMILIES[kind], *weights)))
    scales = dict(zip(terms, es.scales_of(episodes, kind, terms, start).tolist(), strict=True))
    with es.judging(episodes) as costs, es.judging(held_out) as validate:
        return es.search(
            kind, costs, validate, best=costs([best])[0], best_validation=validate([best])[0],
            start=weights, scales=scales, goal=es.Goal(), evaluations=evaluations, seed=seed,
        )  # fmt: skip


def one_setting(kind: str, label: str, given: argparse.Namespace, pool: Any, out: Path) -> Any:
    """Everything of one kind and predictor: tuned, learned, judged."""
    began = time.perf_counter()
    train, held = training_set(kind, PREDICTORS[label], given.data, given.requests)
    count = len(train)
    sets = [
        ([train(count * (10 * s) + i) for i in range(count)],
         [held(count * (10 * s + 5) + i) for i in range(count)])
        for s in range(given.seeds)
    ]  # fmt: skip
    first = sets[0][0]
    names = given.baselines.split(",") if given.baselines else BASELINES[kind]
    plain = [loaded(kind, name) for name in names]
    for policy in plain:  # compiled once, before all processes want it
        es.costs_of(first[0], policy)
    budget = 0 if given.untuned else given.evaluations * count
    policies = list(pool.map(tuned, [kind] * len(names), names, [first] * len(names),
                             [budget] * len(names)))  # fmt: skip
    costs = np.array(list(pool.map(table, [[p] for p in policies], [first] * len(policies))))[:, 0]
    levels = np.log(costs[:, :, 0]).mean(axis=1)
    if said := es.nothing_to_learn({p.name: c[:, 0] for p, c in zip(policies, costs, strict=True)}):
        print(said)
    best = policies[int(np.argmin(levels))]
    start = min((i for i, p in enumerate(policies) if es.as_blend(p)), key=lambda i: levels[i])
    print(f"{kind}, {label}: tuned in {time.perf_counter() - began:.0f} s; best {best.name}, "
          f"start {policies[start].name}", flush=True)  # fmt: skip
    weights = es.as_blend(policies[start])
    es.costs_of(first[0], es.policy_of(kind, tuple(weights), list(weights.values())))
    terms = tuple(dict.fromkeys((*es.FAMILIES[kind], *weights)))
    es.costs_of(first[0], es.policy_of(kind, terms, [1.0] * len(terms)))
    es.scales_of(first[:1], kind, terms, policies[start])
    seeds = range(given.seeds)
    runs = list(pool.map(learn, [kind] * len(seeds), *zip(*sets, strict=True),
                         [best] * len(seeds), [policies[start]] * len(seeds), seeds,
                         [given.evaluations] * len(seeds)))  # fmt: skip
    for seed, found in enumerate(runs):
        told = spelled(tuple(found.weights), tuple(found.weights.values()))
        print(f"  seed {seed}: validation {found.fitness:+.4f} from {found.start_fitness:+.4f}: "
              f"{told}", flush=True)  # fmt: skip
        policy = es.with_ground(
            found.policy, es.ground(sets[seed][0], (min(TRAIN_LOADS), max(TRAIN_LOADS)))
        )
        write_bundle(policy, out / f"{kind}_{label.replace(' ', '_')}_{seed}")
    print(f"  learned after {time.perf_counter() - began:.0f} s", flush=True)
    cells = test_set(kind, PREDICTORS[label], given.data, given.traces, given.loads,
                     given.requests, given.windows)  # fmt: skip
    judged = [*policies, *(found.policy for found in runs)]
    tasks = [([p], episodes) for _, _, episodes in cells for p in judged]
    flat = list(pool.map(table, *zip(*tasks, strict=True)))
    costs = np.array(flat)[:, 0].reshape(len(cells), len(judged), given.windows, len(METRICS))
    print(f"  judged after {time.perf_counter() - began:.0f} s", flush=True)
    return {
        "kind": kind, "predictor": label, "baselines": [p.name for p in policies],
        "training_log_cost": levels.tolist(), "best": best.name, "start": policies[start].name,
        "learned": [found.weights for found in runs],
        "validation": [[found.start_fitness, found.fitness] for found in runs],
        "cells": [[name, load] for name, load, _ in cells], "costs": costs.tolist(),
        "seconds": time.perf_counter() - began,
    }  # fmt: skip


def summarise(found: dict[str, Any]) -> list[str]:
    """A table in Markdown: the learned policy's ratios, geometric over training seeds and windows,
    with 95% intervals over the windows, paired."""
    costs = np.array(found["costs"])  # (cells, policies, windows, 3)
    n = len(found["baselines"])
    best, plain = found["baselines"].index(found["best"]), 0
    lines = [
        f"### {found['kind']}, {found['predictor']}", "",
        f"Best tuned baseline in training: `{found['best']}`; start `{found['start']}`. "
        f"Ratios of the learned policy's; the interval is of the mean's.", "",
        f"| trace | load | mean × best | 95% | worst seed | mean × best here (which) "
        f"| × {PLAIN[found['kind']]} | P99 × best | normalized × best |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    better = worse = most = 0
    for (name, load), one in zip(found["cells"], costs, strict=True):
        learned = np.exp(np.log(one[n:]).mean(axis=0))  # (windows, 3)
        ratio = paired_ratio(learned[:, 0], one[best][:, 0])
        worst = max(paired_ratio(row[:, 0], one[best][:, 0]).mean for row in one[n:])
        here = int(np.argmin(np.log(one[:n, :, 0]).mean(axis=1)))
        at = paired_ratio(learned[:, 0], one[here][:, 0]).mean
        to_plain = paired_ratio(learned[:, 0], one[plain][:, 0]).mean
        tail, normal = (paired_ratio(learned[:, k], one[best][:, k]).mean for k in (1, 2))
        better += ratio.high < 1
        worse += ratio.mean > 1.01
        most = max(most, to_plain)
        lines.append(
            f"| {name} | {load:g} | {ratio.mean:.3f} | {ratio.low:.3f} to {ratio.high:.3f} | "
            f"{worst:.3f} | {at:.3f} ({found['baselines'][here]}) | {to_plain:.3f} | {tail:.3f} | "
            f"{normal:.3f} |"
        )
    lines += [
        "", f"Better with an interval below 1 in {better} of {len(costs)}; more than 1% above in "
        f"{worse}; at most {most:.3f} of {PLAIN[found['kind']]}.", "",
    ]  # fmt: skip
    return lines


def speed(given: argparse.Namespace) -> dict[str, Any]:
    """1,000 evaluations of 20,000 requests: seconds."""
    evaluations, requests = (40, 5_000) if given.small else (1_000, 20_000)
    scenario = Scenario("azure", "azure-conv-2023", requests=requests, load=0.95,
                        engine=Engine(max_num_seqs=64))  # fmt: skip
    rng = np.random.default_rng(0)
    terms = es.FAMILIES["scheduling"]
    policies = [
        es.policy_of("scheduling", terms, rng.random(len(terms))) for _ in range(evaluations)
    ]
    with es.judging([scenario(0)], given.processes) as costs:
        costs(policies[: given.processes])
        began = time.perf_counter()
        costs(policies)
        took = time.perf_counter() - began
    print(f"{evaluations} evaluations of {requests} requests on {given.processes} processes: "
          f"{took:.1f} s")  # fmt: skip
    return {"evaluations": evaluations, "requests": requests, "processes": given.processes,
            "seconds": took}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    here = Path("shared/data/traces")
    parser.add_argument("--data", type=Path, default=here if here.is_dir() else Path("..") / here)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "learned_policies")))
    parser.add_argument("--kinds", default="routing,scheduling")
    parser.add_argument("--predictors", default="tau 0.5,exact")
    parser.add_argument("--baselines", help="of one kind, the plain one first; default all")
    parser.add_argument("--untuned", action="store_true", help="baselines with their defaults")
    parser.add_argument("--evaluations", type=int)
    parser.add_argument("--requests", type=int)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--small", action="store_true", help="a few minutes on two cores")
    parser.add_argument("--speed", action="store_true", help="how fast evaluations are, no more")
    given = parser.parse_args()
    small = given.small
    given.traces = UNSEEN[:2] if small else UNSEEN
    given.loads = (1.0,) if small else TEST_LOADS
    given.windows = 3 if small else 6
    given.evaluations = given.evaluations or (64 if small else 320)
    given.requests = given.requests or (200 if small else 800)
    given.seeds = given.seeds or (2 if small else 5)
    given.out.mkdir(parents=True, exist_ok=True)
    if given.speed:
        (given.out / "evolution_speed.json").write_text(json.dumps(speed(given)))
        return
    results, lines = [], []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.processes, mp_context=context) as pool:
        for label in given.predictors.split(","):
            for kind in given.kinds.split(","):
                results.append(one_setting(kind, label, given, pool, given.out))
                lines += summarise(results[-1])
                (given.out / "learned_policies.json").write_text(json.dumps(results))
                (given.out / "learned_policies.md").write_text("\n".join(lines))
                print("\n".join(summarise(results[-1])), flush=True)


if __name__ == "__main__":
    main()
