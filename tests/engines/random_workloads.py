"""Serves many random workloads in vLLM's real scheduler under the plugin.

    python -m tests.engines.random_workloads [--workloads 10000] [--first 0] [--version 0.33.0 ...]

Each has its own policy, guard, limits and clients that disconnect. Exits with 1 if a request was
lost, duplicated or cut, or a KV block leaked.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.engines.environments import VERSIONS, run_checks

AT_ONCE = 500  # workloads a process


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.engines.random_workloads")
    parser.add_argument("--workloads", type=int, default=10_000, help="a version")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--version", action="append", choices=VERSIONS)
    given = parser.parse_args()
    bad = 0
    for version in given.version or VERSIONS:
        started, done, preempted = time.monotonic(), 0, 0
        while done < given.workloads:
            count = min(AT_ONCE, given.workloads - done)
            task = ("random_workloads", {"first": given.first + done, "count": count})
            (answer,) = run_checks(version, [task])
            if not answer["ok"]:
                bad += 1
                print(f"vLLM {version}: {answer['error']}", flush=True)
            else:
                preempted += answer["found"]["preemptions"]
            done += count
        seconds = time.monotonic() - started
        print(
            f"vLLM {version}: {done} workloads, {preempted} preemptions, {seconds:.0f} s, "
            f"{bad} failures so far",
            flush=True,
        )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
