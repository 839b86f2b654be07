"""Serves many random workloads in vLLM's real scheduler under the plugin.

    python -m tests.engines.random_workloads [--workloads 10000] [--first 0] [--version 0.33.0 ...]

Each has its own policy, guard, limits and clients that disconnect. Exits with 1 if a request was
lost, duplicated or cut, or a KV block leaked.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.engines.environments import VERSIONS, run_checks

AT_ONCE = 250  # workloads a process; the versions take turns


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.engines.random_workloads")
    parser.add_argument("--workloads", type=int, default=10_000, help="a version")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--version", action="append", choices=VERSIONS)
    given = parser.parse_args()
    bad, preempted, stuck = Counter[str](), Counter[str](), Counter[str]()
    started = time.monotonic()
    for done in range(0, given.workloads, AT_ONCE):
        count = min(AT_ONCE, given.workloads - done)
        for version in given.version or VERSIONS:
            task = ("random_workloads", {"first": given.first + done, "count": count})
            (answer,) = run_checks(version, [task])
            if answer["ok"]:
                preempted[version] += answer["found"]["preemptions"]
                stuck[version] += answer["found"]["stuck"]
            else:
                bad[version] += 1
                print(f"vLLM {version}: {answer['error']}", flush=True)
            print(
                f"vLLM {version}: {done + count} workloads, {preempted[version]} preemptions, "
                f"{bad[version]} failures, {stuck[version]} that vLLM's own priority queue never "
                f"finishes either; {time.monotonic() - started:.0f} s",
                flush=True,
            )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
