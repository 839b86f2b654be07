"""Environments in which the fast engine meets the numba of other people.

``oldest``: every lower bound of pyproject at once. ``overlay``: the test's own environment with the
numba and numpy that an engine pins, laid over it by PYTHONPATH. Both are made once, under the same
cache folder as vLLM's.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

from lengthwise.serving.vllm import environment as made
from tests.engines.environments import ROOT, packages

# vLLM's pins: of 0.12 to 0.19, and of 0.20 to 0.33
PINNED = {
    "0.61.2": ("numba==0.61.2", "llvmlite==0.44.0", "numpy==2.2.6"),
    "0.65.0": ("numba==0.65.0", "llvmlite==0.47.0", "numpy==2.3.5"),
}
RUNS_TESTS = ("pytest==9.2.0", "pytest-timeout==2.4.0", "hypothesis==6.170.15")


def needs() -> list[Requirement]:
    """What a plain installation needs, as pyproject says it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [Requirement(need) for need in project["dependencies"]]


def oldest_allowed(need: Requirement) -> str:
    (least,) = (bound.version for bound in need.specifier if bound.operator == ">=")
    return f"{need.name}=={least}"


def oldest() -> tuple[str, dict[str, str]]:
    """An interpreter with every package at its lower bound, and its environment variables."""
    root = _root()
    wanted = [*map(oldest_allowed, needs()), *RUNS_TESTS]
    with made._locked(root / "lock-oldest"):
        python = made._virtual_environment(
            root / f"oldest-{hashlib.sha256(str(wanted).encode()).hexdigest()[:12]}",
            lambda install: made._run([*install, *wanted]),
        )
    return str(python), {**os.environ, "PYTHONPATH": str(ROOT)}


def overlay(version: str) -> tuple[str, dict[str, str]]:
    """This interpreter under one version of numba, and the environment variables for it."""
    root = _root()
    name = f"numba-{version}-python-{sys.version_info[0]}.{sys.version_info[1]}"
    with made._locked(root / "lock-numba"):
        folder = packages(root, Path(sys.executable), name, PINNED[version])
    return sys.executable, {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"}


def _root() -> Path:
    root = made.cache_folder()
    root.mkdir(parents=True, exist_ok=True)
    return root
