"""What knowing lengths is worth on traces that nobody was tuned on: tuned, searched and learned.

    python -m benchmarks.unseen DATA --out OUT [--seeds 2]

DATA is the data pack. One simulated H200 with 64 seats, at shares of what it serves first come,
first served. On windows of the two Azure traces, at both loads, ``benchmarks.search``'s policies
are tuned (the best of them is what counts), a score is searched and a blend of terms is learned by
an evolution strategy, once with exact lengths, once with noise of Kendall tau 0.5, and once with
one length for all: then only prompts, arrivals and what was generated are left to order by. They
are judged on windows of other traces, with the same knowledge, and on real prompts at the arrivals
of another trace, where a ridge that was trained on other prompts stands in the place of the noise.
Mean latency and P99 in those of FCFS, geometric over windows (and seeds of search and learning)
with paired 95% intervals over windows, beside the bound that no schedule undercuts. What is done is
kept in OUT, and the same command goes on there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau

import lengthwise as lw
from benchmarks.guards import trained
from benchmarks.search import OTHERS, TRAINED, ZOO, read
from lengthwise.envs.episodes import Episode
from lengthwise.eval.alone import alone_s
from lengthwise.eval.bound import mean_latency_bound_s
from lengthwise.eval.compare import BASELINE, capacity_of
from lengthwise.eval.held_out import trials_of
from lengthwise.eval.judge import Trial
from lengthwise.eval.searched import search_policy
from lengthwise.eval.setting import Loaded, Setting
from lengthwise.eval.source import Fixed
from lengthwise.eval.statistics import paired_ratio
from lengthwise.eval.tune import METRICS, records_of, tune
from lengthwise.eval.tuned import held_out
from lengthwise.eval.windows import Window, windows_of
from lengthwise.policies import load_policy
from lengthwise.policies.blend import spelled
from lengthwise.policy import SchedulingPolicy
from lengthwise.predictors import load_predictor
from lengthwise.serving.workload import load_workload
from lengthwise.training import evolution as es
from lengthwise.workload import Workload

ENGINE = lw.Engine(max_num_seqs=64)
LOADS = (0.9, 1.1)
TRAIN, TEST, REQUESTS, JUDGED = 4, 6, 500, 800  # windows of a trace, and requests of each
KNOWN = {"none": "constant:tokens=200", "some": "noisy-oracle:tau=0.5", "all": "oracle"}
LABELS = {"none": "no lengths", "some": "τ 0.5, or ridge", "all": "exact lengths"}
PROMPTS = {  # real prompts with one model's answers, and whose arrivals they come at
    "MMLU-Pro": ("mmlu_pro_responses.jsonl.gz", "Qwen1.5-72B-Chat"),
    "MATH": ("zeroeval_math_l5_responses.jsonl.gz", "Qwen2.5-3B-Instruct"),
}
ARRIVALS = "servegen_m_large"
WHO = ("tuned", "searched", "learned")
COLUMNS = ("e2e_mean", "e2e_p99")


def learnt_on(data: Path, loaded: Loaded) -> Workload:
    """Windows of the Azure traces one after the other, the first half to train on; each is at its
    own rate, so that both loads are among them.
    """
    parts: dict[str, list[Workload]] = {"train": [], "validate": []}
    for name in TRAINED:
        whole = read(data, name)
        capacity = capacity_of(whole, loaded)
        for k in range(2 * TRAIN):
            window = whole.window(k * REQUESTS, (k + 1) * REQUESTS)
            load = LOADS[k % len(LOADS)]
            parts["train" if k < TRAIN else "validate"].append(window.at_rate(load * capacity))
    pieces, start = parts["train"] + parts["validate"], 0.0
    arrivals = []
    for piece in pieces:
        arrivals.append(piece["arrival_s"] + start)
        start = float(arrivals[-1][-1]) + 1.0
    columns = {
        key: np.concatenate([piece[key] for piece in pieces])
        for key in ("prompt_tokens", "output_tokens")
    }
    return Workload({"arrival_s": np.concatenate(arrivals), **columns}, name="azure2023")


def best_of_zoo(
    trials: list[Trial], budget: int
) -> tuple[SchedulingPolicy, list[SchedulingPolicy]]:
    """The best of the tuned policies on these runs, and all of them."""
    zoo = [tune(load_policy(spec), trials, budget=budget) for spec in (BASELINE, *ZOO)]
    return min(zoo, key=lambda one: float(np.log(level(one, trials)[:, 0]).mean())), zoo


def level(policy: Any, trials: list[Trial]) -> Any:
    """Mean and P99 latency of each run, (runs, 2), s."""
    return np.array([
        [METRICS[name](records_of(trial, policy)) for name in COLUMNS] for trial in trials
    ])  # fmt: skip


def learned(
    train: list[Trial], validate: list[Trial], zoo: list[SchedulingPolicy], evaluations: int,
    seed: int,
) -> es.Evolved:  # fmt: skip
    """A blend of terms, from the best blend of the zoo on."""
    episodes, held = (
        [Episode(t.workload, t.system, t.predictions, t.seed, 1.0, "azure") for t in trials]
        for trials in (train, validate)
    )
    with es.judging(episodes) as costs, es.judging(held) as validating:
        table = costs(zoo)
        levels = np.log(table[:, :, 0]).mean(axis=1)
        blends = [k for k, one in enumerate(zoo) if es.as_blend(one)]
        start = zoo[min(blends, key=lambda k: levels[k])]
        weights = es.as_blend(start)
        assert weights is not None
        terms = tuple(dict.fromkeys((*es.FAMILIES["scheduling"], *weights)))
        scales = dict(
            zip(terms, es.scales_of(episodes, "scheduling", terms, start).tolist(), strict=True)
        )
        return es.search(
            "scheduling", costs, validating, best=es.least(table),
            best_validation=es.least(validating(zoo)), start=weights, scales=scales,
            goal=es.Goal(), evaluations=evaluations, seed=seed,
        )  # fmt: skip


def judged_on(data: Path) -> dict[str, tuple[list[Window], Any]]:
    """Windows of each unseen workload, and what predicts lengths there in place of the noise."""
    found: dict[str, tuple[list[Window], Any]] = {}
    for name in OTHERS:
        whole = read(data, name)
        size = min(JUDGED, len(whole) // TEST)
        found[whole.name] = (
            list(windows_of(whole, requests=size, rate=None, test=TEST).test), None
        )  # fmt: skip
    arrivals = str(next(data.glob(f"traces/{ARRIVALS}.*")))
    for name, (file, model) in PROMPTS.items():
        prompts = str(data / "prompts" / file)
        windows = []
        for seed in range(TEST):
            drawn = load_workload(
                prompts, arrivals=arrivals, requests=TEST * JUDGED, model=model, split="test",
                seed=seed, drop_zero=True,
            )  # fmt: skip
            windows.append(Window(drawn.window(seed * JUDGED, (seed + 1) * JUDGED), seed))
        found[f"{name} at {ARRIVALS}"] = (windows, trained("ridge", prompts, model))
    return found


def policies_of(given: Any, known: str, loaded: Loaded) -> dict[str, Any]:
    """What was tuned, searched and learned with this knowledge, kept as it would be typed."""
    kept = given.out / f"policies-{known}.json"
    if not kept.exists():
        whole, predictor = Fixed(learnt_on(given.data, loaded)), load_predictor(KNOWN[known])
        apart = held_out(whole, loaded, predictor, (), REQUESTS, TRAIN * len(TRAINED))
        train, validate = apart.trials("train"), apart.trials("test")
        best, zoo = best_of_zoo(train, given.each)
        found: dict[str, Any] = {"tuned": [best.name], "searched": [], "said": [], "learned": []}
        for seed in range(given.seeds):
            one = search_policy(
                whole, budget=given.budget, requests=REQUESTS, seeds=TRAIN * len(TRAINED),
                predictor=KNOWN[known], engine=ENGINE, seed=seed,
            )  # fmt: skip
            folder = given.out / f"searched-{known}-{seed}"
            folder.mkdir(exist_ok=True)
            (folder / "policy.py").write_text(one.text)
            found["searched"].append(f"{folder}/{one.spelled}")
            found["said"].append(one.tuned)
            found["learned"].append(learned(train, validate, zoo, given.evaluations, seed).weights)
        kept.write_text(json.dumps(found))
    found = json.loads(kept.read_text())
    blends = [
        es.policy_of("scheduling", tuple(one), list(one.values())) for one in found["learned"]
    ]
    return {
        "tuned": [load_policy(found["tuned"][0])],
        "searched": [load_policy(one) for one in found["searched"]],
        "learned": blends,
        "said": [
            *found["tuned"], *found["said"],
            *(spelled(tuple(one), tuple(one.values())) for one in found["learned"]),
        ],
    }  # fmt: skip


def rows_of(given: Any, loaded: Loaded) -> dict[str, Any]:
    """Latencies of all policies on all unseen windows, by workload and load."""
    kept = given.out / "rows.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    policies = {known: policies_of(given, known, loaded) for known in KNOWN}
    rows: dict[str, Any] = {}
    for name, (windows, predictor) in judged_on(given.data).items():
        capacity = float(np.mean([capacity_of(one.workload, loaded) for one in windows]))
        for load in LOADS:
            row: dict[str, Any] = {"tau": None, "requests": len(windows[0].workload)}
            for known, spec in KNOWN.items():
                by = predictor if predictor is not None and known == "some" else spec
                own = load_predictor(by) if isinstance(by, str) else by
                trials = trials_of(windows, (load * capacity,), loaded.system(BASELINE), own)
                if "fcfs" not in row:
                    row["fcfs"] = level(load_policy(BASELINE), trials).tolist()
                    row["bound"] = [bound(trial) for trial in trials]
                if by is predictor:
                    row["tau"] = tau_of(trials)
                for who in WHO:
                    each = [np.log(level(one, trials)) for one in policies[known][who]]
                    row[f"{known} {who}"] = np.exp(np.mean(each, axis=0)).tolist()
            rows[f"{name}, {load:g}"] = row
            print(f"judged on {name} at {load:g}", flush=True)
    found = {"policies": {known: one["said"] for known, one in policies.items()}, "rows": rows}
    kept.write_text(json.dumps(found))
    return found


def bound(trial: Trial) -> float:
    """What no schedule beats, s."""
    (node,) = trial.system.nodes
    own = alone_s(trial.workload, node.engine, node.timing)
    return mean_latency_bound_s(trial.workload, node.engine, node.timing, own)


def tau_of(trials: list[Trial]) -> float:
    """The mean Kendall tau of predicted lengths with the true ones."""
    return float(np.mean([
        kendalltau(t.predictions.predicted_tokens, t.workload["output_tokens"]).statistic
        for t in trials if t.predictions is not None
    ]))  # fmt: skip


def told(found: dict[str, Any]) -> None:
    """What was found, and the tables."""
    for known, said in found["policies"].items():
        print(f"{LABELS[known]}: {'; '.join(f'`{one}`' for one in said)}")
    rows = {
        name if row["tau"] is None else f"{name} (ridge τ {row['tau']:.2f})": row
        for name, row in found["rows"].items()
    }
    names = [name for known in KNOWN for name in (f"{LABELS[known]}: tuned", "searched", "learned")]
    print(f"\n| mean latency | FCFS, s | bound | {' | '.join(names)} |")
    print("|---|---:|---:|" + "---:|" * len(names))
    for name, row in rows.items():
        fcfs, cells = column(row, "fcfs", 0), []
        for known in KNOWN:
            best = column(row, f"{known} tuned", 0)
            cells.append(said_of(best, fcfs, 2))
            cells += [said_of(column(row, f"{known} {who}", 0), best, 3) for who in WHO[1:]]
        low = paired_ratio(row["bound"], fcfs).mean
        print(f"| {name} | {fcfs.mean():.3g} | {low:.2f} | {' | '.join(cells)} |")
    print(f"\n| P99 | FCFS, s | {' | '.join(LABELS[known] for known in KNOWN)} |")
    print("|---|---:|" + "---:|" * len(KNOWN))
    for name, row in rows.items():
        fcfs = column(row, "fcfs", 1)
        cells = [said_of(column(row, f"{known} tuned", 1), fcfs, 2) for known in KNOWN]
        print(f"| {name} | {fcfs.mean():.3g} | {' | '.join(cells)} |")
    worth(found["rows"])


def column(row: dict[str, Any], who: str, place: int) -> Any:
    """Mean (0) or P99 (1) latencies on the windows of a row, s."""
    return np.array(row[who])[:, place]


def said_of(values: Any, others: Any, digits: int) -> str:
    """A paired ratio with its interval."""
    to = paired_ratio(values, others)
    return f"{to.mean:.{digits}f} ({to.low:.{digits}f} to {to.high:.{digits}f})"


def worth(rows: dict[str, Any]) -> None:
    """What each knowledge is worth to the tuned policy, by load, over all workloads alike."""
    print("\n| load | lengths | × FCFS | × no lengths | × exact lengths |")
    print("|---|---|---:|---:|---:|")
    for load in LOADS:
        those = [row for name, row in rows.items() if name.endswith(f", {load:g}")]
        logs = {known: mean_log(those, f"{known} tuned") for known in KNOWN}
        for known, log in logs.items():
            over = [log - mean_log(those, "fcfs"), log - logs["none"], log - logs["all"]]
            cells = " | ".join(f"{np.exp(one):.2f}" for one in over)
            print(f"| {load:g} | {LABELS[known]} | {cells} |")


def mean_log(rows: list[Any], who: str) -> float:
    """Of mean latencies, over windows and rows."""
    return float(np.mean([np.log(np.array(row[who])[:, 0]).mean() for row in rows]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--each", type=int, default=64, help="runs of tuning each policy")
    parser.add_argument("--budget", type=int, default=704, help="runs of a search")
    parser.add_argument("--evaluations", type=int, default=96, help="policies that learning tries")
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    told(rows_of(given, Setting(ENGINE).load()))


if __name__ == "__main__":
    main()
