"""Interpreters that import vLLM's scheduler, of versions old and new."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from lengthwise.serving.vllm import environment as made

ROOT = Path(__file__).resolve().parents[2]
CHECKS = Path(__file__).with_name("checks.py")
VERSIONS = ("0.12.0", "0.19.1", "0.26.0", "0.33.0")
# What vLLM before about 0.20 imports beside or instead of what later versions do
OLD = (
    "transformers==4.57.6", "huggingface-hub==0.36.2", "tokenizers==0.22.2", "gguf==0.19.0",
    "diskcache==5.6.3", "blake3==1.0.11",
)  # fmt: skip


PYARROW = ("pyarrow==26.0.1",)  # of lengthwise's own needs, the one that its record has


def variables(version: str) -> tuple[str, dict[str, str]]:
    """An interpreter and its environment variables; made now if they are not there."""
    newest = made.environment()
    root = made.cache_folder()
    with made._locked(root / "lock"):
        files = made._python_files(root, version)
        paths = [files, ROOT, packages(root, newest.python, "packages-record", PYARROW)]
        if version < "0.20":
            paths.insert(1, packages(root, newest.python, "packages-before-0.20", OLD))
    found = made.Environment(newest.python, files).variables()
    return str(newest.python), {**found, "PYTHONPATH": ":".join(map(str, paths))}


def packages(root: Path, python: Path, name: str, needs: tuple[str, ...]) -> Path:
    """A folder for PYTHONPATH with just these packages, made now if it is not there."""
    folder = root / name
    if not folder.exists():
        part = root / f"{name}.part"
        made._run([str(python), "-m", "pip", "install", "-q", "--no-deps",
                   "--target", str(part), *needs])  # fmt: skip
        part.rename(folder)
    return folder


def run_checks(version: str, tasks: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """The answers to tasks of ``checks.py``, all from one process."""
    python, environment = variables(version)
    done = subprocess.run(
        [python, str(CHECKS)], env=environment, input=json.dumps(tasks), text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    if len(answers) != len(tasks):
        print(done.stderr[-3000:], file=sys.stderr)
        raise AssertionError(f"vLLM {version}: {len(answers)} of {len(tasks)} tasks were answered")
    return answers
