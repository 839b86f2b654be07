"""Our wheel, installed by pip over the whole vLLM of ``whole_environment``.

An environment of its own sees vLLM's packages, which stay as they are, and takes what is new.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from lengthwise.serving.vllm import environment as made
from tests.engines import whole_environment
from tests.engines.environments import ROOT

NOT_OURS = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "__pycache__")
SITE = "import site; print(site.getsitepackages()[0])"


class Installed(NamedTuple):
    """An interpreter with vLLM and our wheel, and pip's lists of versions before and after."""

    python: Path
    before: frozenset[str]
    after: frozenset[str]


def installed(folder: Path) -> Installed:
    """The environment, made in an empty ``folder``; raises ``VllmUnavailable`` without network."""
    theirs = whole_environment.python()
    python = made._virtual_environment(folder / "environment", lambda install: None)
    (Path(_said(python, "-c", SITE)) / "theirs.pth").write_text(_said(theirs, "-c", SITE) + "\n")
    before = _versions(python)
    shutil.copytree(ROOT, folder / "source", symlinks=True, ignore=NOT_OURS)
    made._run([str(python), "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder),
               str(folder / "source")])  # fmt: skip
    (wheel,) = folder.glob("lengthwise-*.whl")
    made._run([str(python), "-m", "pip", "install", "-q", str(wheel)])
    return Installed(python, before, _versions(python))


def _versions(python: Path) -> frozenset[str]:
    return frozenset(_said(python, "-m", "pip", "list", "--format", "freeze").split())


def _said(python: Path, *arguments: str) -> str:
    done = subprocess.run([str(python), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()
