"""A thousand nodes and ten million requests on one core: CPU seconds and memory by router.

python -m benchmarks.scale
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time

from benchmarks.engine_speed import RATE, simulate, workload

NODES, REQUESTS = 1_000, 10_000_000
ROUTERS = ("jsq", "power-of-two")


def measure(router: str) -> None:
    """Prints one row, for this process alone."""
    simulate(workload(1_000, RATE * NODES), replicas=NODES, router=router)  # compiles
    requests = workload(REQUESTS, 0.95 * RATE * NODES)
    begin = time.process_time()
    simulate(requests, replicas=NODES, router=router)
    seconds = time.process_time() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    each = seconds / REQUESTS * 1e6
    print(f"| {router} | {seconds / 60:.1f} | {each:.1f} | {peak:.1f} |", flush=True)


def main() -> None:
    """Prints a table in Markdown; each router gets a process, so that peaks of memory are its."""
    if len(sys.argv) > 1:
        measure(sys.argv[1])
        return
    print("| router | CPU minutes | us a request | GiB at most, inputs included |")
    print("|---|---:|---:|---:|", flush=True)
    for router in ROUTERS:
        subprocess.run([sys.executable, "-m", "benchmarks.scale", router], check=True)


if __name__ == "__main__":
    main()
