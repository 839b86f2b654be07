"""Holds the reference engine to vLLM's scheduler on many random workloads.

Each is served by stock vLLM and by vLLM under the plugin, with any policy.

    python -m tests.conformance.run [--workloads 1000] [--first 0] [--version 0.26.0 ...]

Exits with 1 and the differences if there are any.
"""

from __future__ import annotations

import argparse
import sys
import time

from lengthwise.serving.vllm import VERSIONS, Vllm
from tests.conformance.cases import policy_case, random_case
from tests.conformance.compare import difference


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.run")
    parser.add_argument("--workloads", type=int, default=1000, help="random workloads a version")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--version", action="append", choices=list(VERSIONS))
    given = parser.parse_args()
    different = 0
    for version in given.version or VERSIONS:
        started, bad = time.monotonic(), list[str]()
        with Vllm(version) as vllm:
            for seed in range(given.first, given.first + given.workloads):
                for case in (random_case(seed, version), policy_case(seed, version)):
                    found = difference(case, vllm)
                    if found is not None:
                        bad.append(found)
                        print(f"vLLM {version}: {found}", flush=True)
                done = seed + 1 - given.first
                if done % 100 == 0:
                    print(f"vLLM {version}: {done} of {given.workloads}", file=sys.stderr)
        seconds = time.monotonic() - started
        print(
            f"vLLM {version}: {given.workloads} workloads in {seconds:.0f} s, "
            f"{len(bad)} differences",
            flush=True,
        )
        different += len(bad)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
