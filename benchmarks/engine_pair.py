"""The fast engine of this checkout beside another's, process after process in turns.

    python -m benchmarks.engine_pair OTHER [ROUNDS]

``OTHER`` is the folder of another checkout, an older one say; it needs no environment of its own.
Each round runs the cases of ``engine_speed`` that both have, in a process of each checkout, by
turns; printed are the best speeds and the median of the rounds' ratios, this one over the other.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
CHILD = """
import json, time
from benchmarks import engine_speed as bench
speeds = {}
for case in bench.CASES:
    rate = bench.RATE * case.options.get("replicas", 1)
    many = case.make(case.many, rate)
    try:
        bench.simulate(case.make(2000, rate), **case.options)  # compiles
    except Exception:
        continue  # what an older checkout can't run
    spent = []
    for _ in range(7):
        begin = time.process_time()
        bench.simulate(many, **case.options)
        spent.append(time.process_time() - begin)
    speeds[case.label] = case.many / sorted(spent)[3]
print(json.dumps(speeds))
"""


def speeds(checkout: Path) -> dict[str, float]:
    """Requests/s by case, from one process: the median of seven."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD], cwd=checkout, text=True, check=True,
        stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(checkout)},
    )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(other: str, rounds: int = 8) -> None:
    """Prints a table in Markdown."""
    theirs = Path(other).resolve()
    found: dict[Path, list[dict[str, float]]] = {HERE: [], theirs: []}
    for number in range(rounds):
        for checkout in (HERE, theirs) if number % 2 else (theirs, HERE):
            found[checkout].append(speeds(checkout))
    print("| case | other, best requests/s | this, best | median of the pairs' ratios | pairs |")
    print("|---|---:|---:|---:|---|")
    for case in found[HERE][0]:
        if case in found[theirs][0]:
            old, new = ([one[case] for one in found[where]] for where in (theirs, HERE))
            ratios = [b / a for a, b in zip(old, new, strict=True)]
            pairs = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            print(
                f"| {case} | {max(old):,.0f} | {max(new):,.0f} | "
                f"{statistics.median(ratios):.3f} | {pairs} |"
            )


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]))
