"""The vLLM plugin in vLLM's real scheduler for minutes or hours, and what became of its memory.

    python -m tests.soak --minutes 10

Raises for a request that is lost or cut, for a KV block that is not given back, and for a step that
the plugin failed in; prints what was served and how memory grew over the second half.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from pathlib import Path

from tests.engines.environments import ROOT, VERSIONS, variables


def main() -> None:
    parser = argparse.ArgumentParser(description="Soaks the vLLM plugin.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--steps", type=int, default=10**9, help="end after so many, if sooner")
    parser.add_argument("--log", type=Path, help="a CSV file that gets a line after each round")
    parser.add_argument("--engine", choices=VERSIONS, default=VERSIONS[-1], help="vLLM's version")
    options = parser.parse_args()
    python, environment = variables(options.engine)
    done = subprocess.run(
        ["nice", python, str(ROOT / "tests" / "engines" / "soaking.py")],
        env={**os.environ, **environment}, text=True, stdout=subprocess.PIPE, check=True,
        input=json.dumps({"minutes": options.minutes, "steps": options.steps,
                          "log": options.log and str(options.log.absolute())}),
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    counts = found.pop("counts")
    for name, value in found.items():
        shown = value if isinstance(value, list) else [value]
        print(f"{name + ':':24}", ", ".join(f"{number:,.6g}" for number in shown))
    print("counted:", ", ".join(f"{name} {n:,}" for name, n in sorted(counts.items())))


if __name__ == "__main__":
    main()
