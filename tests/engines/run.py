"""Every check of the plugins that needs an engine and no GPU: ``make engines``.

    python -m tests.engines.run [--workloads 250]

Makes the environments that are not there yet (about 6 GB); then half an hour or more.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable

from tests.engines import whole_environment

POLICIES = (
    "fcfs", "sjf", "srtf", "srtf+preempt:price=0", "mlfq:quantum=4",
    "mlfq:quantum=4+preempt:price=0", "hrrn", "priority",
)  # fmt: skip
TESTS = (
    "tests/test_plugins_vllm.py", "tests/test_plugins_record.py", "tests/test_plugins_lengths.py",
    "tests/test_plugins_transformers.py", "tests/test_plugins_routers.py",
    "tests/test_plugins_routing.py", "tests/test_plugins_engine.py",
    "tests/test_plugins_watching.py", "tests/test_plugins_server.py",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.engines.run")
    parser.add_argument("--workloads", type=int, default=250, help="random ones, a version")
    given = parser.parse_args()
    failed = []
    checks: dict[str, Callable[[], object]] = {
        "the plugins' tests": lambda: _python("pytest", "-q", *TESTS),
        "random workloads": lambda: _python(
            "tests.engines.random_workloads", "--workloads", str(given.workloads)
        ),
        "vLLM's own scheduler tests": lambda: _python(
            "tests.engines.vllm_own_tests", "--version", "0.26.0", "--version", "0.33.0"
        ),
        "a whole vLLM: tokens": lambda: whole_environment.run(["tokens", *POLICIES]),
        "a whole vLLM: a server": lambda: whole_environment.run(["server", '{"policy": "srtf"}']),
        "a whole vLLM: its profile": lambda: whole_environment.run(
            [], "tests.engines.whole_profile"
        ),
        "a whole vLLM: a predictor that raises": lambda: whole_environment.run(["raises"]),
        "a whole vLLM: a predictor that hangs": lambda: whole_environment.run(["hangs"]),
    }
    for name, check in checks.items():
        start = time.monotonic()
        print(f"{name} ...", flush=True)
        try:
            check()
        except (AssertionError, subprocess.CalledProcessError) as error:
            print(error)
            failed.append(name)
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    print(f"failed: {', '.join(failed) or 'nothing'}")
    return 1 if failed else 0


def _python(module: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", module, *arguments], check=True)


if __name__ == "__main__":
    sys.exit(main())
