"""A searched score against the tuned best of the registry, on requests that neither has seen.

    python -m benchmarks.search DATA --out OUT [--budget 800] [--seeds 2]

DATA holds the data pack's traces. On the first four windows of a trace at a load of 1.1 (one
simulated H200 with 64 seats) scores are searched, and each policy of ``ZOO`` is tuned by ``tune``;
the tuned one that is best on these windows is what the searched ones are judged beside, on later
windows of the trace and on windows of the others. Ratios of mean latency, geometric over windows
and seeds, with paired 95% intervals over windows. The same command goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import lengthwise as lw
from lengthwise.eval.compare import BASELINE, capacity_of
from lengthwise.eval.held_out import trials_of
from lengthwise.eval.searched import search_policy
from lengthwise.eval.setting import Setting
from lengthwise.eval.source import Fixed
from lengthwise.eval.statistics import paired_ratio
from lengthwise.eval.tune import METRICS, records_of, tune
from lengthwise.eval.tuned import held_out
from lengthwise.eval.windows import windows_of
from lengthwise.policies import load_policy
from lengthwise.predictors import load_predictor
from lengthwise.serving.options import DEFAULT_TIMING
from lengthwise.workload import Workload

TRAINED = ("azure2023_conv_a", "azure2023_code_a")
OTHERS = (
    "servegen_m_large", "mooncake_conversation_a", "mooncake_arxiv_toolagent_a",
    "servegen_deepseek_r1_day", "claude_code_sessions_a",
)  # fmt: skip
PREDICTORS = ("noisy-oracle:tau=0.5", "oracle")
ZOO = (
    "sjf+preempt:margin=1", "srtf", "trail", "work", "work+preempt", "hrrn", "ageing", "mlfq",
    "las+preempt", "tie+preempt",
)  # fmt: skip
LOAD, TRAIN, TEST, REQUESTS = 1.1, 4, 6, 800
EACH = 96  # runs that each of the zoo is tuned by: in all more than a search has


def read(data: Path, name: str) -> Workload:
    """The columns that any workload has."""
    file = next(data.glob(f"traces/{name}.*"))
    whole = Workload.read(str(file), drop_zero=True)
    columns = {key: whole[key] for key in ("arrival_s", "prompt_tokens", "output_tokens")}
    keep = (columns["output_tokens"] > 0) & (columns["prompt_tokens"] < 60_000)
    order = np.argsort(columns["arrival_s"][keep], kind="stable")
    return Workload({k: v[keep][order] for k, v in columns.items()}, name=name.removesuffix("_a"))


def one(given: Any, name: str, predictor: str) -> dict[str, Any]:
    """What is found on a trace with a predictor, and the latencies of all on every window."""
    setting = Setting(lw.Engine(max_num_seqs=64), DEFAULT_TIMING, 1, "round-robin", None, 0.0, None)
    loaded, known = setting.load(), load_predictor(predictor)
    whole = read(given.data, name)
    rate = float(f"{LOAD * capacity_of(whole, loaded):.3g}")
    train = held_out(Fixed(whole), loaded, predictor, (rate,), REQUESTS, TRAIN).trials("train")
    zoo = [tune(load_policy(spec), train, budget=EACH) for spec in ZOO]

    def level(policy: Any, trials: Any) -> list[float]:
        return [METRICS["e2e_mean"](records_of(trial, policy)) for trial in trials]

    levels = {each.name: float(np.log(level(each, train)).mean()) for each in zoo}
    best = min(zoo, key=lambda each: levels[each.name])
    policies, said = {}, []
    for seed in range(given.seeds):
        found = search_policy(
            Fixed(whole), budget=given.budget, rates=(rate,), requests=REQUESTS, seeds=TRAIN,
            predictor=predictor, engine=lw.Engine(max_num_seqs=64), seed=seed,
        )  # fmt: skip
        folder = given.out / f"{name}-{predictor.replace(':', '-')}-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "policy.py").write_text(found.text)
        policies[f"searched {seed}"] = load_policy(f"{folder}/{found.spelled}")
        said.append(found.tuned)
    train_ratio = [
        float(np.exp(np.log(level(policy, train)).mean() - levels[best.name]))
        for policy in policies.values()
    ]
    policies |= {"tuned": best, "fcfs": load_policy("fcfs")}
    rows = {}
    for other in (name, *(each for each in (*TRAINED, *OTHERS) if each != name)):
        trace = whole if other == name else read(given.data, other)
        at = float(f"{LOAD * capacity_of(trace, loaded):.3g}")
        size = min(REQUESTS, len(trace) // TEST)
        windows = windows_of(
            trace, requests=size, rate=at, test=TEST, tuning=TRAIN if other == name else 0
        )
        trials = trials_of(windows.test, (at,), loaded.system(BASELINE), known)
        rows[other] = {who: level(policy, trials) for who, policy in policies.items()}
    return {
        "trace": name, "predictor": predictor, "rate": rate, "tuned": best.name, "found": said,
        "train": train_ratio, "levels": levels, "rows": rows,
    }  # fmt: skip


def told(found: dict[str, Any]) -> None:
    """A table of one trace and predictor."""
    print(f"\n**{found['trace']}, {found['predictor']}** tuned best: `{found['tuned']}`")
    print(f"found: {'; '.join(f'`{one}`' for one in found['found'])}")
    print(f"on what was searched on: {', '.join(f'{one:.3f}' for one in found['train'])}\n")
    print("| judged on | × tuned best | 95% | worst seed | × fcfs |\n|---|---:|---:|---:|---:|")
    for name, of in found["rows"].items():
        seeds = [np.log(values) for who, values in of.items() if who.startswith("searched")]
        mean = np.exp(np.mean(seeds, axis=0))
        to = paired_ratio(mean, of["tuned"])
        worst = max(float(np.exp((one - np.log(of["tuned"])).mean())) for one in seeds)
        fcfs = paired_ratio(mean, of["fcfs"]).mean
        held = " (later windows)" if name == found["trace"] else ""
        print(f"| {name}{held} | {to.mean:.3f} | {to.low:.3f} to {to.high:.3f} | {worst:.3f} | "
              f"{fcfs:.3f} |", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for predictor in PREDICTORS:
        for name in TRAINED:
            kept = given.out / f"{name}-{predictor.replace(':', '-')}.json"
            if not kept.exists():
                kept.write_text(json.dumps(one(given, name, predictor)))
            told(json.loads(kept.read_text()))


if __name__ == "__main__":
    main()
