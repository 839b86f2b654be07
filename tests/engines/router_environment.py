"""Ray Serve and LiteLLM, in an environment of their own outside the tree (about 900 MB).

    python -m tests.engines.router_environment

It is made once, under the same cache folder as vLLM's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.engines import pins

ROOT = Path(__file__).resolve().parents[2]
NAME = "routers"  # of the pins: Ray 2.60.0 and LiteLLM 1.106.0


def python() -> Path:
    """The interpreter of the environment, made now if it is not there."""
    return pins.environment(NAME)


def run_check(script: str, task: dict[str, Any], timeout_s: float = 900) -> Any:
    """What a script of this folder prints, as JSON, for a task on its standard input."""
    variables = {
        **os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run(
        [str(python()), str(Path(__file__).with_name(script))], env=variables,
        input=json.dumps(task), text=True, capture_output=True, check=False, timeout=timeout_s,
    )  # fmt: skip
    if done.returncode:
        print(done.stderr[-4000:], file=sys.stderr)
        raise AssertionError(f"{script}: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(python())
