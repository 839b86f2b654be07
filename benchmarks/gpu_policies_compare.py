"""Measured beside simulated, for runs of ``benchmarks.gpu_policies``.

    python -m benchmarks.gpu_policies_compare PLAN.json MEASURED [TIMING]

replays each measured run in the simulator, with the policy and the guard of its engine and vLLM's
defaults, and prints mean, P99 and normalized latency of both, and each policy's gain over vLLM's
own scheduler in both. TIMING is the plan's model on an H200 unless given.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import lengthwise as lw
from lengthwise.errors import InputError
from lengthwise.policies.plugins.settings import Settings


def latencies(frame: pd.DataFrame) -> tuple[float, float, float, float]:
    """Mean, P99 (s), normalized latency (s/token) and requests/s of end-to-end latencies."""
    e2e, tokens = frame["e2e_s"], frame["output_tokens"]
    rate = len(frame) / frame["done_s"].max()
    return float(e2e.mean()), float(e2e.quantile(0.99)), float((e2e / tokens).mean()), float(rate)


def measured(path: Path) -> pd.DataFrame:
    """Client times of one run, seconds from its first request."""
    found = pd.read_parquet(path)
    begin = found["submit_ns"].min()
    found["e2e_s"] = (found["last_ns"] - found["submit_ns"]) / 1e9
    found["done_s"] = (found["last_ns"] - begin) / 1e9
    found["submitted_s"] = (found["submit_ns"] - begin) / 1e9
    return found


def simulated(
    found: pd.DataFrame,
    settings: dict[str, Any] | None,
    predicted: str | None,
    timing: str,
    **o: Any,
) -> pd.DataFrame:
    """The same requests, at the times at which they were sent, in the simulator."""
    order = np.argsort(found["submitted_s"].to_numpy(), kind="stable")
    rows = found.iloc[order]
    workload = lw.Workload(
        {
            "arrival_s": rows["submitted_s"],
            "prompt_tokens": rows["prompt_tokens"],
            "output_tokens": rows["output_tokens"],
        }
    )
    spec = "fcfs" if settings is None else settings.get("policy") or settings["bundle"]
    if spec == "priority":  # every client's priority is 0: the order of arrival
        spec = "fcfs"
    elif settings is not None:
        rule = Settings.parse(settings)
        spec += f"+guard:ratio={rule.guard},floor_s={rule.guard_floor_s}"

    class Given:
        needs: frozenset[str] = frozenset()

        def predict(self, prompts: Any, **_: Any) -> lw.Prediction:
            return lw.Prediction.exact(rows[predicted].to_numpy())

    result = lw.simulate(
        workload,
        policy=spec,
        predictor=Given() if predicted else None,
        timing=timing,
        engine=lw.Engine(**o),
    )
    table = result.requests
    table["e2e_s"] = table["finish_s"] - table["arrival_s"]
    table["done_s"] = table["finish_s"]
    return table


def main(plan_path: Path, folder: Path, timing: str = "") -> None:
    """Prints the table in Markdown."""
    plan = json.loads(plan_path.read_text("utf-8"))
    timing = timing or f"h200/{plan['model']}"
    baseline: dict[str, tuple[Any, Any]] = {}
    print("| run | mean, s | simulated | P99, s | simulated | s/token | simulated | requests/s |")
    print("|---|---|---|---|---|---|---|---|")
    gains = []
    for engine in plan["engines"].values():
        for run in engine["runs"]:
            path = folder / f"{run['name']}.parquet"
            if not path.exists():
                raise InputError(f"no measurement {str(path)!r}")
            real = measured(path)
            model = simulated(
                real, engine["settings"], run.get("predicted"), timing,
                async_scheduling=True, enable_prefix_caching=True, **plan["options"],
            )  # fmt: skip
            a, b = latencies(real), latencies(model)
            cells = (f"{x:.3f} | {y:.3f}" for x, y in zip(a[:3], b[:3], strict=True))
            print(f"| {run['name']} | {' | '.join(cells)} | {a[3]:.2f} |")
            condition = run["name"].rpartition("-")[2]
            baseline.setdefault(condition, (a, b))
            first_a, first_b = baseline[condition]
            gains.append((run["name"], a[0] / first_a[0], b[0] / first_b[0]))
    print("\n| run | mean over stock's, measured | simulated | apart |\n|---|---|---|---|")
    for name, real_gain, model_gain in gains:
        print(
            f"| {name} | {real_gain:.3f} | {model_gain:.3f} | {model_gain / real_gain - 1:+.1%} |"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
