"""Whether our package fits beside an engine's own pins: resolved by uv, from metadata alone.

Nothing is installed, built or downloaded but metadata, so that it takes seconds for an engine whose
wheels are gigabytes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

from lengthwise.serving.vllm.environment import NO_NETWORK

ROOT = Path(__file__).resolve().parents[2]
# The newest patch of each minor version of vLLM that the plugin takes.
VLLM = (
    "0.12.0", "0.13.0", "0.14.1", "0.15.1", "0.16.0", "0.17.1", "0.18.1", "0.19.1", "0.20.2",
    "0.21.0", "0.22.1", "0.23.0", "0.24.0", "0.25.1", "0.26.0", "0.27.1", "0.28.0", "0.29.0",
    "0.30.0", "0.31.0", "0.32.0", "0.33.0",
)  # fmt: skip
ENGINES = (
    *(f"vllm=={version}" for version in VLLM),
    "sglang==0.5.11", "sglang==0.5.23",
    "ray[serve]==2.60.0", "ray[serve,llm]==2.60.0",
    "litellm==1.106.0", "litellm[proxy]==1.106.0",
)  # fmt: skip
# SGLang's wheels ask for this glibc; what an engine needs of CUDA is for Linux alone
PLATFORM = "x86_64-manylinux_2_35"


class NoNetwork(Exception):
    """The package index can't be reached."""


class Unresolvable(Exception):
    """uv's explanation of why no set of versions does."""


def pins(engine: str) -> str:
    """The versions that an engine alone is installed with on this Python, one a line."""
    return _compile([], engine)


def beside(engine: str, taken: str) -> str:
    """The versions of our package's needs where those of the engine are ``taken`` and stay.

    An index of several servers can withhold a version that it named a moment ago. So a refusal
    counts where the engine alone is still granted its own versions, and is asked for twice.
    """
    ours = [str(ROOT / "pyproject.toml")]
    try:
        return _compile(ours, engine, constraints=taken)
    except Unresolvable:
        try:
            _compile([], engine, constraints=taken, refresh=True)
        except Unresolvable as error:
            raise NoNetwork(f"it no longer has what it just named: {error}") from error
        return _compile(ours, engine, constraints=taken, refresh=True)


def _compile(
    sources: list[str], engine: str, constraints: str = "", *, refresh: bool = False
) -> str:
    with tempfile.TemporaryDirectory() as folder:
        wanted, kept = Path(folder) / "engine.in", Path(folder) / "kept.txt"
        wanted.write_text(f"{engine}\n")
        kept.write_text(constraints)
        done = subprocess.run(
            [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-build", "--no-config",
             "--python", sys.executable, "--python-platform", PLATFORM, "--no-header",
             "--no-annotate", "--constraints", str(kept), *(["--refresh"] if refresh else []),
             *sources, str(wanted)],
            env={**os.environ, **_index()}, cwd=folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode == 0:
        return done.stdout
    if any(sign in done.stderr for sign in (*NO_NETWORK, "Failed to fetch", "dns error")):
        raise NoNetwork(f"{engine}: {done.stderr.strip().splitlines()[-1]}")
    assert "No solution found" in done.stderr, done.stderr
    raise Unresolvable(f"{engine}: {done.stderr}")


@lru_cache(maxsize=1)
def _index() -> dict[str, str]:
    """uv's names for the index and the certificates that pip is configured with."""
    asked = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    given = dict(line.split("=", 1) for line in asked.stdout.splitlines())
    found = {}
    for name, variable in (("index-url", "UV_DEFAULT_INDEX"), ("cert", "SSL_CERT_FILE")):
        for where in (":env:.", "global.", "install."):
            if where + name in given:
                found.setdefault(variable, given[where + name].strip("'"))
    return found
