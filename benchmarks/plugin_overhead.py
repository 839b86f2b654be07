"""What the vLLM plugin adds to a ``schedule()`` call, in the same process as the stock call.

    python -m benchmarks.plugin_overhead [--version 0.33.0] [--steps 200]

Two schedulers of one vLLM, its own and the plugin's, step in turns through the same state: 256
requests decode and many more wait for a seat. Printed are medians of CPU time in ``schedule()``,
and what the plugin adds as a share of vLLM's own; then with seats that fall free, so that every
step admits.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from lengthwise.policies.bundle import write_bundle
from lengthwise.policies.learned import MLP
from lengthwise.policy import Preemption, SchedulingPolicy, Score
from tests.engines.environments import VERSIONS, variables

STEPPER = Path(__file__).with_name("plugin_overhead_steps.py")
# "bundle" is of the size that training gives by default; "large" has twice the width and preempts.
POLICIES = ("fcfs", "sjf", "srtf", "mlfq", "hrrn", "bundle", "large")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plugin_overhead")
    parser.add_argument("--version", choices=VERSIONS, default=VERSIONS[-1])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--waiting", default="1000,10000")
    given = parser.parse_args()
    policies = given.policies.split(",")
    python, environment = variables(given.version)
    root = Path(__file__).resolve().parents[1]
    environment["PYTHONPATH"] += f":{root / 'tests' / 'engines'}"
    with tempfile.TemporaryDirectory() as folder:
        bundles = {
            "bundle": str(write_bundle(_network(32, Preemption()), Path(folder) / "bundle")),
            "large": str(
                write_bundle(_network(64, Preemption("recompute")), Path(folder) / "large")
            ),
        }
        task = {
            "steps": given.steps,
            "waiting": [int(n) for n in given.waiting.split(",")],
            "policies": [bundles.get(name, name) for name in policies],
        }
        done = subprocess.run(
            [python, str(STEPPER)], env=environment, input=json.dumps(task), text=True,
            capture_output=True, check=False,
        )  # fmt: skip
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    print(f"vLLM {given.version}, 256 running; medians over {given.steps} steps, in µs")
    print(f"{'policy':10}{'waiting':>9}{'stock':>9}{'plugin':>9}{'added':>9}{'share':>8}  admits")
    for row in map(json.loads, done.stdout.splitlines()):
        name = policies[row["policy"]]
        stock, ours = row["stock_us"], row["plugin_us"]
        print(
            f"{name:10}{row['waiting']:9}{stock:9.0f}{ours:9.0f}{ours - stock:9.0f}"
            f"{(ours - stock) / stock:8.1%}  {'every step' if row['admits'] else 'none'}"
        )


def _network(width: int, preemption: Preemption) -> SchedulingPolicy:
    """A learned policy that reads the clock."""
    rng = np.random.default_rng(0)
    layers = tuple(
        (rng.normal(size=shape) / shape[1], np.zeros(shape[0]))
        for shape in ((width, 4), (width, width), (1, width))
    )
    names = ("predicted_tokens", "generated_tokens", "prompt_tokens", "now_s")
    net = MLP(np.zeros(4), np.ones(4), np.array([True, True, True, False]), layers)
    return SchedulingPolicy(Score("net", net, names), preemption)


if __name__ == "__main__":
    main()
