"""Measured beside simulated, for runs of ``benchmarks.gpu_routers``.

    python -m benchmarks.gpu_routers_compare RESULTS.json TIMING[,TIMING...] [DATA]
    python -m benchmarks.gpu_routers_compare DATA TIMING[,TIMING...]    # a prediction alone

replays every measured run in the simulator: the same arrivals and lengths, nodes with the seats, KV
blocks and batch of the real engines, metrics as old. One TIMING holds for all replicas, or there is
one each. DATA is the prepared folder, which holds the bundles; given alone, its plan is simulated,
at loads of what bursts sustain in the simulator. Prints, for each load and router, means over seeds
of both, their ratio to round robin (geometric mean, paired by seed), how far they are apart, and
whether the order of routers agrees.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import lengthwise as lw
from benchmarks.gpu_routers import PLAN, REQUESTS, Plan, drawn, order
from lengthwise.eval.statistics import paired_ratio
from lengthwise.policies.bundle import is_bundle
from lengthwise.serving.timing import timing as load_timing

METRICS = ("mean", "P99", "normalized", "TTFT")
FIRST = "round-robin"
APART = 0.05  # of round robin's mean: more is a router whose gain the simulator misses


def latencies(arrival: Any, first: Any, last: Any, tokens: Any) -> dict[str, float]:
    """Mean and P99 latency (s), normalized latency (s/token), mean time to first token (s)."""
    e2e = np.subtract(last, arrival)
    return {
        "mean": float(e2e.mean()), "P99": float(np.quantile(e2e, 0.99)),
        "normalized": float((e2e / np.asarray(tokens)).mean()),
        "TTFT": float(np.subtract(first, arrival).mean()),
    }  # fmt: skip


def nodes(plan: dict[str, Any], session: dict[str, Any], timings: list[str]) -> list[lw.Node]:
    """The replicas as nodes of the simulator."""
    names = timings * len(plan["seats"]) if len(timings) == 1 else timings
    found = []
    for about, name in zip(session["replicas"], names, strict=True):
        engine = lw.Engine.of_vllm(
            "0.26.0", max_num_seqs=about["max_num_seqs"], num_gpu_blocks=about["num_gpu_blocks"],
            block_size=about["block_size"], async_scheduling=about["async_scheduling"],
            max_num_batched_tokens=about["max_num_batched_tokens"],
        )  # fmt: skip
        found.append(lw.Node(engine, load_timing(name), lw.load_policy("fcfs")))
    return found


def simulated(one: dict[str, Any], system: list[lw.Node], plan: dict[str, Any], data: Path) -> Any:
    """What the simulator says of a run."""
    asked = one["requests"]
    columns = ("arrival_s", "prompt_tokens", "output_tokens")
    where = data / one["router"]
    found = lw.simulate(
        lw.Workload({name: asked[name] for name in columns}), nodes=system,
        router=str(where) if is_bundle(str(where)) else one["router"],
        predicted_tokens=np.array(asked["predicted_tokens"]), seed=one["seed"],
        metrics_interval_s=plan["report_s"],
    )  # fmt: skip
    return found.requests


def table(results: dict[str, Any], timings: list[str], data: Path) -> pd.DataFrame:
    """One row a run: load, router, seed, and each metric measured and simulated."""
    rows = []
    systems = [nodes(results["plan"], one, timings) for one in results["sessions"]]
    for one in results["runs"]:
        asked = one["requests"]
        real = latencies(*(asked[k] for k in ("arrival_s", "first_s", "last_s", "output_tokens")))
        model = simulated(one, systems[one["session"]], results["plan"], data)
        said = latencies(
            *(model[k] for k in ("arrival_s", "first_token_s", "finish_s", "output_tokens"))
        )
        big = float(np.mean(np.array(asked["replica"]) == 0))
        rows.append({
            "load": one["load"], "router": Path(one["router"]).name, "seed": one["seed"],
            **{f"{name} measured": value for name, value in real.items()},
            **{f"{name} simulated": value for name, value in said.items()},
            "share measured": big, "share simulated": float((model["replica"] == 0).mean()),
        })  # fmt: skip
    return pd.DataFrame(rows)


def summary(runs: pd.DataFrame, metric: str = "mean") -> pd.DataFrame:
    """One row a load and router, of the seeds that all routers of a load have run.

    ``ratio measured`` and ``ratio simulated`` are to round robin, with their 95% intervals in
    ``low`` and ``high``; ``apart`` is the difference of the two.
    """
    rows = []
    for load, part in runs.groupby("load"):
        wide = part.pivot(index="seed", columns="router")
        wide = wide.dropna(axis=0)
        for router in dict.fromkeys(part["router"]):
            row: dict[str, Any] = {"load": load, "router": router, "seeds": len(wide)}
            for kind in ("measured", "simulated"):
                values = wide[f"{metric} {kind}"]
                ratio = paired_ratio(values[router].to_numpy(), values[FIRST].to_numpy())
                row[kind] = float(values[router].mean())
                row[f"ratio {kind}"] = ratio.mean
                row[f"low {kind}"], row[f"high {kind}"] = ratio.low, ratio.high
            row["apart"] = row["ratio measured"] - row["ratio simulated"]
            row["share"] = float(wide["share measured"][router].mean())
            rows.append(row)
    return pd.DataFrame(rows)


def same_order(found: pd.DataFrame, near: float = 0.02) -> dict[float, list[str]]:
    """Of each load, the pairs of routers that measured and simulated order differently.

    Two that are within ``near`` of each other in either are in no order.
    """
    swapped: dict[float, list[str]] = {}
    for load, part in found.groupby("load"):
        swapped[float(str(load))] = []
        rows = part.to_dict("records")
        for i, a in enumerate(rows):
            for b in rows[i + 1 :]:
                real = np.log(a["ratio measured"] / b["ratio measured"])
                model = np.log(a["ratio simulated"] / b["ratio simulated"])
                if min(abs(real), abs(model)) > near and real * model < 0:
                    swapped[float(str(load))].append(f"{a['router']} / {b['router']}")
    return swapped


def markdown(found: pd.DataFrame) -> str:
    """The summary as a table; the routers of a load by what was measured."""
    lines = [
        "| load | router | measured, s | simulated, s | of round robin, measured | simulated "
        "| apart | to the larger |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in found.sort_values(["load", "measured"]).to_dict("records"):
        ranged = "" if np.isnan(row["low measured"]) else (
            f" ({row['low measured']:.3f} to {row['high measured']:.3f})"
        )  # fmt: skip
        lines.append(
            f"| {row['load']:g} | {row['router']} | {row['measured']:.3f} | {row['simulated']:.3f} "
            f"| {row['ratio measured']:.3f}{ranged} | {row['ratio simulated']:.3f} "
            f"| {row['apart']:+.3f} | {row['share']:.0%} |"
        )
    return "\n".join(lines)


def foretold(data: Path, timings: list[str]) -> dict[str, Any]:
    """A plan's runs as results whose measured times are the simulator's own."""
    plan = json.loads((data / PLAN).read_text("utf-8"))
    requests = np.array(json.loads((data / REQUESTS).read_text("utf-8")))
    about = {"gpu": "simulated", "num_gpu_blocks": None, "block_size": 16,
             "max_num_batched_tokens": 2048, "async_scheduling": True}  # fmt: skip
    session: dict[str, Any] = {
        "replicas": [about | {"max_num_seqs": seats} for seats in plan["seats"]],
        "date": "not measured",
    }  # fmt: skip
    replicas = nodes(plan, session, timings)
    session["tokens_per_s"] = [sustained(node, requests) for node in replicas]
    capacity = sum(session["tokens_per_s"]) / float(requests[:, 1].mean())
    runs = []
    for seed, load, router in order(Plan(**plan)):
        rows = drawn(requests, load * capacity, plan["seconds"], seed)
        asked: dict[str, Any] = {name: values.tolist() for name, values in rows.items()}
        one = {"seed": seed, "load": load, "router": router, "session": 0, "requests": asked}
        found = simulated(one, replicas, plan, data)
        asked |= {"replica": found["replica"].tolist(), "first_s": found["first_token_s"].tolist(),
                  "last_s": found["finish_s"].tolist()}  # fmt: skip
        runs.append(one)
    return {"plan": plan, "sessions": [session], "capacity": capacity, "runs": runs}


def sustained(node: lw.Node, requests: Any) -> float:
    """Tokens/s of one replica while a burst of five requests a seat keeps all seats taken."""
    seats = node.engine.max_num_seqs
    rows = requests[: 5 * seats].astype(int)
    burst = lw.Workload(
        {"arrival_s": np.zeros(len(rows)), "prompt_tokens": rows[:, 0], "output_tokens": rows[:, 1]}
    )
    found = lw.simulate(burst, nodes=[node]).requests.sort_values("finish_s")
    begin, end = found["finish_s"].iloc[seats // 4], found["finish_s"].iloc[-seats]
    first, last = found["first_token_s"], found["finish_s"]
    # tokens made until a time, each answer's spread evenly between its first and its last
    made = [
        (found["output_tokens"] * ((at - first) / (last - first + 1e-9)).clip(0, 1)).sum()
        for at in (begin, end)
    ]
    return float((made[1] - made[0]) / (end - begin))


def main(path: Path, timings: list[str], data: Path | None = None) -> None:
    """Prints the tables in Markdown; ``data`` holds the bundles (default: beside the results)."""
    if path.is_dir():
        results, data = foretold(path, timings), path
    else:
        results = json.loads(path.read_text("utf-8"))
    for one in results["sessions"]:
        kinds = [about["gpu"] for about in one["replicas"]]
        print(f"{kinds}, {one['tokens_per_s']} tokens/s sustained, {one['date']}")
    print(f"capacity: {results['capacity']:.2f} requests/s; {len(results['runs'])} runs")
    runs = table(results, timings, data or path.parent)
    for metric in METRICS:
        found = summary(runs, metric)
        print(f"\n{metric}\n\n{markdown(found)}")
        if metric == "mean":
            for load, swapped in same_order(found).items():
                print(f"\nload {load:g}: swapped pairs: {', '.join(swapped) or 'none'}")
            missed = found[found["apart"].abs() > APART]
            print(f"apart by more than {APART:.0%}: {', '.join(missed['router']) or 'none'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2].split(","), *map(Path, sys.argv[3:4]))
