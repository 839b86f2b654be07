"""A scheduler and a router learned by an evolution strategy, judged where they were not trained.

    python benchmarks/learned_policies.py --data ../shared/data --out OUT --jobs 16
    python benchmarks/learned_policies.py --data ../shared/data --out OUT --small
    python benchmarks/learned_policies.py --speed --out OUT

Trained on the presets and one trace (azure2023_conv), lengths, loads, systems and predictors varied
at random (``envs.scenarios.varied``); baselines are tuned on the same episodes by as many simulated
runs. Judged on windows, apart from each other, of all other traces of the data pack at loads 0.8 to
1.1, with predictions of several errors. What is learned, terms and ranges were chosen by the
training scenarios and by DEVELOPED; FINAL is for one look. What is done is kept in OUT, and the
same command goes on there. Writes learned_policies.json, .md and the bundles; needs numpy, numba,
pandas, scipy, pyyaml and gymnasium.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lengthwise.envs.episodes import Episode
from lengthwise.envs.scenarios import (
    CAPACITY_SEED,
    PRESETS,
    UNEQUAL,
    Scenario,
    Scenarios,
    varied,
)
from lengthwise.eval.bound import mean_latency_bound_s
from lengthwise.eval.statistics import paired_ratio
from lengthwise.eval.tune import tune
from lengthwise.policies import load_policy, load_router
from lengthwise.policies.blend import spelled
from lengthwise.policies.bundle import read_bundle, write_bundle
from lengthwise.serving import Engine
from lengthwise.training import evolution as es
from lengthwise.workload import Workload

TRAINED = "traces/azure2023_conv_a.csv.gz"
DEVELOPED = (
    "traces/mooncake_conversation_a.jsonl.gz", "traces/azure2023_code_a.csv.gz",
    "traces/servegen_m_large.csv.gz", "traces/agent_miniswe.csv.gz",
)  # fmt: skip
FINAL = (
    "traces/mooncake_arxiv_toolagent_a.csv.gz", "traces/servegen_deepseek_r1_day.csv.gz",
    "traces/claude_code_sessions_a.csv.gz", "lengths/arxiv_summarization.csv.gz",
    "lengths/lmsys_nanoflow_a.csv.gz", "lengths/sharegpt_nanoflow_a.csv.gz",
)  # fmt: skip
BASELINES = {
    "scheduling": ("fcfs", "sjf", "srtf", "work", "hrrn", "mlfq"),
    "routing": (
        "round-robin", "weighted-round-robin", "jsq", "power-of-two", "jsq-tokens",
        "least-requests", "least-tokens", "least-load", "jsew", "lmetric", "min-min", "max-min",
        "max-capacity",
    ),
}  # fmt: skip
PREDICTORS = {
    "exact": "oracle", "tau 0.7": "noisy-oracle:tau=0.7", "tau 0.5": "noisy-oracle:tau=0.5",
    "tau 0.3": "noisy-oracle:tau=0.3",
}  # fmt: skip
# kind, what predicts in training ("" for all of them, mixed), what predicts where it is judged
SETTINGS = {
    "routing": ("routing", "", tuple(PREDICTORS)),
    "scheduling-tau-0.5": ("scheduling", "tau 0.5", ("tau 0.5",)),
    "scheduling-exact": ("scheduling", "exact", ("exact",)),
}
TEST_LOADS = (0.8, 0.9, 1.0, 1.1)
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
    if "session_id" in frame or "arrival_s" not in frame:  # none, or relative to its session
        arrival = np.cumsum(np.random.default_rng(0).exponential(1.0, len(frame)))
    else:
        arrival = frame["arrival_s"].to_numpy(float)
    order = np.argsort(arrival, kind="stable")
    columns = {
        "arrival_s": arrival[order] - arrival.min(),
        "prompt_tokens": frame["prompt_tokens"].to_numpy(np.int64)[order],
        "output_tokens": frame["output_tokens"].to_numpy(np.int64)[order],
    }
    return Workload(columns, name=path.name.split(".")[0].removesuffix("_a"))


def training_set(
    kind: str, predictor: str, data: Path, requests: int, count: int
) -> list[Scenarios]:
    """The scenarios of training and of validation: the trace is cut in two."""
    conversation = read(data / TRAINED)
    given = {"predictor": PREDICTORS[predictor]} if predictor else {}
    made = []
    for seed, span, many in ((0, (0.0, 0.7), count), (1, (0.7, 1.0), count // 2)):
        low, high = (round(share * len(conversation)) for share in span)
        workloads = (*PRESETS, conversation.select(slice(low, high)))
        made.append(
            varied(workloads, fleet=kind == "routing", count=many, seed=seed, requests=requests,
                   **given)
        )  # fmt: skip
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


def tuned(kind: str, name: str, episodes: list[Episode], budget: int) -> str:
    """A baseline, tuned, as one would type it; mlfq keeps its defaults, as its levels multiply
    beyond 64 bits."""
    if not budget or name == "mlfq":
        return name
    return str(tune(loaded(kind, name), episodes, budget=budget).name)


def table(policies: list[Any], episodes: list[Episode]) -> Any:
    with es.judging(episodes) as costs:
        return costs(policies)


def kept(file: Path, make: Callable[[], Any]) -> Any:
    """What is in a JSON file, made where there is none."""
    if not file.exists():
        found = make()
        part = file.with_suffix(".part")
        part.write_text(json.dumps(found))
        part.replace(file)
    return json.loads(file.read_text())


def learn(
    kind: str, episodes: list[Episode], held_out: list[Episode], best: Any, best_held: Any,
    start: dict[str, float], scales: dict[str, float], seed: int, given: argparse.Namespace,
    bundle: Path,
) -> dict[str, Any]:  # fmt: skip
    """One training run; ``start`` is the best tuned baseline that is a blend."""
    each = max(1, given.jobs // given.seeds)
    told_file = bundle.parent / f"{bundle.name}.told"
    told = json.loads(told_file.read_text()) if told_file.exists() else []

    def after(state: es.Evolved) -> bool:
        told_file.write_text(json.dumps(state.told))
        return False

    with es.judging(episodes, each) as costs, es.judging(held_out, each) as validate:
        found = es.search(
            kind, costs, validate, best=best, best_validation=best_held, start=start,
            scales=scales, goal=es.Goal(), evaluations=given.evaluations, seed=seed, told=told,
            every=5, after=after,
        )  # fmt: skip
    write_bundle(es.with_ground(found.policy, es.ground(episodes, (0.5, 1.2))), bundle)
    return {"weights": found.weights, "validation": [found.start_fitness, found.fitness],
            "history": found.history}  # fmt: skip


def one_setting(name: str, given: argparse.Namespace, pool: Any, out: Path) -> list[Any]:
    """Everything of one setting: tuned, learned, judged; one result for each predictor."""
    kind, trained, judged_with = SETTINGS[name]
    began = time.perf_counter()
    train, held = training_set(kind, trained, given.data, given.requests, given.episodes)
    # the seed draws the requests as well; the scenarios are the same
    sets = [
        ([train(len(train) * (10 * s) + i) for i in range(len(train))],
         [held(len(held) * (10 * s + 5) + i) for i in range(len(held))])
        for s in range(given.seeds)
    ]  # fmt: skip
    first = sets[0][0]
    names = given.baselines.split(",") if given.baselines else BASELINES[kind]
    for one in names:  # compiled once, before all processes want it
        es.costs_of(first[0], loaded(kind, one))
    budget = 0 if given.untuned else given.evaluations * len(train)

    def tuning() -> Any:
        found = list(pool.map(tuned, [kind] * len(names), names, [first] * len(names),
                              [budget] * len(names)))  # fmt: skip
        policies = [loaded(kind, spec) for spec in found]
        tasks = [(policy, part) for pair in sets for part in pair for policy in policies]
        flat = pool.map(table, [[p] for p, _ in tasks], [e for _, e in tasks])
        rows = [row[0].tolist() for row in flat]
        n = len(policies)
        return {"specs": found, "costs": [rows[k * n : k * n + n] for k in range(len(rows) // n)]}

    made = kept(out / f"{name}_tuned.json", tuning)
    policies = [loaded(kind, spec) for spec in made["specs"]]
    levels = np.log(np.array(made["costs"][0])[:, :, 0]).mean(axis=1)
    best = policies[int(np.argmin(levels))]
    start = min((i for i, p in enumerate(policies) if es.as_blend(p)), key=lambda i: levels[i])
    print(f"{name}: tuned after {time.perf_counter() - began:.0f} s; best {best.name}, "
          f"start {policies[start].name}", flush=True)  # fmt: skip
    weights = es.as_blend(policies[start])
    assert weights is not None
    terms = tuple(dict.fromkeys((*es.FAMILIES[kind], *weights)))
    es.costs_of(first[0], es.policy_of(kind, terms, [1.0] * len(terms)))
    scales = dict(
        zip(terms, es.scales_of(first, kind, terms, policies[start]).tolist(), strict=True)
    )

    def run_seed(seed: int) -> Any:
        lowest = [es.least(np.array(c)) for c in made["costs"][2 * seed : 2 * seed + 2]]
        return kept(
            out / f"{name}_{seed}.json",
            lambda: learn(kind, *sets[seed], *lowest, weights, scales, seed, given,
                          out / f"{name}_{seed}"),
        )  # fmt: skip

    with ThreadPoolExecutor(given.seeds) as threads:  # each has processes of its own
        runs = list(threads.map(run_seed, range(given.seeds)))
    for seed, found in enumerate(runs):
        told = spelled(tuple(found["weights"]), tuple(found["weights"].values()))
        before, after = found["validation"]
        print(f"  seed {seed}: validation {after:+.4f} from {before:+.4f}: {told}", flush=True)
    print(f"  learned after {time.perf_counter() - began:.0f} s", flush=True)
    learned = [read_bundle(out / f"{name}_{seed}") for seed in range(given.seeds)]
    others = {label: folders_of(pattern) for label, pattern in given.beside}
    others = {label: found for label, found in others.items() if kind == "routing"}
    results = []
    for label in judged_with:
        asked = given.traces, given.loads, given.windows, sorted(others)
        key = hashlib.sha256(repr(asked).encode()).hexdigest()
        results.append(
            kept(
                out / f"{name}_{label.replace(' ', '_')}_{key[:8]}.json",
                lambda label=label: judged(kind, label, given, pool, policies, learned, others),
            )
            | {"setting": name, "kind": kind, "predictor": label,
               "baselines": [p.name for p in policies], "training_log_cost": levels.tolist(),
               "best": best.name, "start": policies[start].name,
               "learned": [found["weights"] for found in runs],
               "validation": [found["validation"] for found in runs]}
        )  # fmt: skip
    print(f"  judged after {time.perf_counter() - began:.0f} s", flush=True)
    return results


def judged(
    kind: str, label: str, given: argparse.Namespace, pool: Any, policies: list[Any],
    learned: list[Any], others: dict[str, list[Path]],
) -> dict[str, Any]:  # fmt: skip
    """Costs of all policies on the cells of one predictor."""
    cells = test_set(kind, PREDICTORS[label], given.data, given.traces, given.loads,
                     given.judged_requests, given.windows)  # fmt: skip
    room = hindsight() if kind == "scheduling" and given.room else []
    further = [read_bundle(folder) for found in others.values() for folder in found]
    every = [*policies, *learned, *further, *room]
    tasks = [([p], episodes) for _, _, episodes in cells for p in every]
    flat = list(pool.map(table, *zip(*tasks, strict=True)))
    costs = np.array(flat)[:, 0].reshape(len(cells), len(every), given.windows, len(METRICS))
    bounds = [[bound(e) for e in episodes] for _, _, episodes in cells] if room else []
    own, n = len(policies) + len(learned), len(every) - len(room)
    return {
        "cells": [[name, load] for name, load, _ in cells], "costs": costs[:, :own].tolist(),
        "others": {label: len(found) for label, found in others.items()},
        "other_costs": costs[:, own:n].tolist(),
        "room": costs[:, n:, :, 0].tolist() if room else [],
        "bounds": bounds,
    }  # fmt: skip


def hindsight() -> list[Any]:
    """Schedulers of which the best of a row, chosen on that row, says how much room there is:
    weights of the prompt, and what is left of the work with preemption at several prices."""
    terms = ("predicted", "expected_remaining", "prompt", "left_prompt", es.PREEMPT)
    return [
        es.policy_of("scheduling", terms, [ready == 0, ready > 0, b * (ready == 0),
                                           b * (ready > 0), ready])
        for b in (0.03, 0.06, 0.12, 0.2, 0.3, 0.5)
        for ready in (0.0, 0.1, 0.3, 1.0, 3.0)
    ]  # fmt: skip


def bound(episode: Episode) -> float:
    """What no schedule beats (``eval.bound``), s."""
    (node,) = episode.system.nodes
    return mean_latency_bound_s(episode.workload, node.engine, node.timing, None)


def summarise(found: dict[str, Any]) -> list[str]:
    """A table in Markdown: the learned policy's ratios, geometric over training seeds and windows,
    with 95% intervals over the windows, paired."""
    costs = np.array(found["costs"])  # (cells, policies, windows, 3)
    n = len(found["baselines"])
    best, plain = found["baselines"].index(found["best"]), 0
    lines = [
        f"### {found['setting']}, judged with {found['predictor']}", "",
        f"One baseline: the best in training, `{found['best']}`; start `{found['start']}`.", "",
        "| trace | load | mean × one | 95% | mean × best here | 95% | (which) | worst seed "
        f"| × {PLAIN[found['kind']]} | P99 × best here | normalized × best here |",
        "|---|---:|---:|---:|---:|---:|---|---:|---:|---:|---:|",
    ]  # fmt: skip
    counts = np.zeros((2, 2), int)
    most, tops = 0.0, [0.0, 0.0]
    for (name, load), one in zip(found["cells"], costs, strict=True):
        learned = np.exp(np.log(one[n:]).mean(axis=0))  # (windows, 3)
        here = int(np.argmin(np.log(one[:n, :, 0]).mean(axis=1)))
        ratios = [paired_ratio(learned[:, 0], one[k][:, 0]) for k in (best, here)]
        worst = max(paired_ratio(row[:, 0], one[here][:, 0]).mean for row in one[n:])
        to_plain = paired_ratio(learned[:, 0], one[plain][:, 0]).mean
        tail, normal = (paired_ratio(learned[:, k], one[here][:, k]).mean for k in (1, 2))
        for k, ratio in enumerate(ratios):
            counts[k] += (ratio.high < 1, ratio.mean > 1.01)
            tops[k] = max(tops[k], ratio.mean)
        most = max(most, to_plain)
        said = " | ".join(f"{r.mean:.3f} | {r.low:.3f} to {r.high:.3f}" for r in ratios)
        lines.append(
            f"| {name} | {load:g} | {said} | {found['baselines'][here]} | {worst:.3f} | "
            f"{to_plain:.3f} | {tail:.3f} | {normal:.3f} |"
        )
    lines += [""]
    for k, told in enumerate(("the one baseline", "the best of each row in hindsight")):
        lines.append(
            f"Against {told}: better with an interval below 1 on {counts[k][0]} of {len(costs)} "
            f"rows, more than 1% above on {counts[k][1]}, at most {tops[k]:.3f}."
        )
    lines += [f"At most {most:.3f} of {PLAIN[found['kind']]}.", ""]
    lines += learners(found) if found["others"] else []
    return lines + (room_of(found) if found["room"] else [])


def folders_of(pattern: str) -> list[Path]:
    """The bundles of runs' folders; a run that was cut has none."""
    found = [path for path in sorted(Path().glob(f"{pattern}/bundle")) if path.is_dir()]
    if not found:
        raise SystemExit(f"no run's folder matches {pattern}")
    return found


def learners(found: dict[str, Any]) -> list[str]:
    """One row a learner: over all cells, windows and training seeds."""
    costs, further = np.log(np.array(found["costs"])), np.log(np.array(found["other_costs"]))
    n = len(found["baselines"])
    best = found["baselines"].index(found["best"])
    here = costs[:, :n, :, 0].mean(axis=2).argmin(axis=1)
    at = costs[np.arange(len(costs)), here][:, None]  # (cells, 1, windows, 3)
    groups, first = {"es": costs[:, n:]}, 0
    for label, count in found["others"].items():
        groups[label], first = further[:, first : first + count], first + count
    lines = [
        "| learner | training seeds | mean × one | worst seed | mean × best here | rows above 1.01 "
        f"| × {PLAIN[found['kind']]} | P99 × best here | normalized × best here |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for label, own in groups.items():
        to_one = own[..., 0] - costs[:, best : best + 1, :, 0]
        to_best = own - at
        above = int((to_best[..., 0].mean(axis=(1, 2)) > np.log(1.01)).sum())
        plain = own[..., 0] - costs[:, :1, :, 0]
        lines.append(
            f"| {label} | {own.shape[1]} | {np.exp(to_one.mean()):.3f} | "
            f"{np.exp(to_one.mean(axis=(0, 2)).max()):.3f} | {np.exp(to_best[..., 0].mean()):.3f} "
            f"| {above} of {len(costs)} | {np.exp(plain.mean()):.3f} | "
            f"{np.exp(to_best[..., 1].mean()):.3f} | {np.exp(to_best[..., 2].mean()):.3f} |"
        )
    return [*lines, ""]


def room_of(found: dict[str, Any]) -> list[str]:
    """How much lower any schedule could be: the bound, and the best of a grid chosen on the row."""
    costs, room = np.log(np.array(found["costs"])[:, :, :, 0]), np.log(np.array(found["room"]))
    lines = ["| trace | load | best baseline here | grid in hindsight × it | bound × it |",
             "|---|---:|---|---:|---:|"]  # fmt: skip
    n = len(found["baselines"])
    for (name, load), one, grid, low in zip(
        found["cells"], costs, room, found["bounds"], strict=True
    ):
        levels = one[:n].mean(axis=1)
        lines.append(
            f"| {name} | {load:g} | {found['baselines'][int(levels.argmin())]} | "
            f"{np.exp(grid.mean(axis=1).min() - levels.min()):.3f} | "
            f"{np.exp(np.log(low).mean() - levels.min()):.3f} |"
        )
    return [*lines, ""]


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
    with es.judging([scenario(0)], given.jobs) as costs:
        costs(policies[: given.jobs])
        began = time.perf_counter()
        costs(policies)
        took = time.perf_counter() - began
    print(f"{evaluations} evaluations of {requests} requests on {given.jobs} processes: "
          f"{took:.1f} s")  # fmt: skip
    return {"evaluations": evaluations, "requests": requests, "processes": given.jobs,
            "seconds": took}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    here = Path("shared/data")
    parser.add_argument("--data", type=Path, default=here if here.is_dir() else Path("..") / here)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "learned_policies")))
    parser.add_argument("--settings", default=",".join(SETTINGS), help="of " + ", ".join(SETTINGS))
    parser.add_argument("--traces", choices=("developed", "final", "all"), default="all")
    parser.add_argument("--baselines", help="of one kind, the plain one first; default all")
    parser.add_argument("--beside", action="append", default=[], metavar="NAME=RUNS",
                        type=lambda text: tuple(text.split("=", 1)),
                        help="routers of other learners: a pattern of runs' folders")  # fmt: skip
    parser.add_argument("--untuned", action="store_true", help="baselines with their defaults")
    parser.add_argument("--evaluations", type=int, help="policies that a search tries")
    parser.add_argument("--episodes", type=int, help="on which each is tried")
    parser.add_argument("--requests", type=int, help="of each")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--no-room", dest="room", action="store_false",
                        help="without the bounds of schedulers")  # fmt: skip
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--small", action="store_true", help="a few minutes on two cores")
    parser.add_argument("--speed", action="store_true", help="how fast evaluations are, no more")
    given = parser.parse_args()
    small = given.small
    sets = {"developed": DEVELOPED, "final": FINAL, "all": (*DEVELOPED, *FINAL)}
    given.traces = DEVELOPED[:2] if small else sets[given.traces]
    given.loads = (1.0,) if small else TEST_LOADS
    given.windows = 3 if small else 6
    given.evaluations = given.evaluations or (64 if small else 800)
    given.episodes = given.episodes or (16 if small else 64)
    given.requests = given.requests or (200 if small else 600)
    given.judged_requests = 200 if small else 800
    given.seeds = given.seeds or (2 if small else 5)
    given.out.mkdir(parents=True, exist_ok=True)
    if given.speed:
        (given.out / "evolution_speed.json").write_text(json.dumps(speed(given)))
        return
    results, lines = [], []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.jobs, mp_context=context) as pool:
        for name in given.settings.split(","):
            for found in one_setting(name, given, pool, given.out):
                results.append(found)
                told = summarise(found)
                lines += told
                print("\n".join(told), flush=True)
            (given.out / "learned_policies.json").write_text(json.dumps(results))
            (given.out / "learned_policies.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
