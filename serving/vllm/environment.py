"""Makes, once, the environment in which vLLM's own scheduler runs on a CPU.

A virtual environment with CPU torch and the small packages that the scheduler imports (1.3 GB),
shared by all versions, and beside it the Python files of each vLLM wheel (57 MB of 400 to 900):
its compiled kernels are not needed to schedule. Everything lies under
``$XDG_CACHE_HOME/lengthwise/vllm`` (``~/.cache`` by default) and may be deleted at any time.

    python -m lengthwise.serving.vllm.environment [VERSION ...]
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lengthwise.errors import LengthwiseError, UnknownNameError
from lengthwise.serving.options import VERSIONS

NEWEST = list(VERSIONS)[-1]

TORCH = "torch==2.13.0+cpu" if sys.platform == "linux" else "torch==2.13.0"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
WITHOUT_DEPENDENCIES = "xgrammar==0.2.8"  # its dependencies pull in triton; it imports without
REQUIREMENTS = Path(__file__).parent / "data" / "requirements.txt"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_31_x86_64", "manylinux_2_35_x86_64")
NO_NETWORK = (
    "Failed to resolve", "Name or service not known", "Temporary failure in name resolution",
    "Network is unreachable", "Connection refused", "timed out", "Max retries exceeded",
)  # fmt: skip


class VllmUnavailable(LengthwiseError):
    """The environment can't be made for lack of network; the message says what was tried."""


@dataclass(frozen=True)
class Environment:
    """An interpreter and the folder with the Python files of one vLLM version."""

    python: Path
    vllm: Path

    def variables(self) -> dict[str, str]:
        """The environment variables under which the interpreter imports that version, offline."""
        return {
            **os.environ,
            "PYTHONPATH": str(self.vllm),
            "HF_HUB_OFFLINE": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
        }


def environment(version: str = NEWEST) -> Environment:
    """The environment for a vLLM version, made now if it is not there (a minute or two).

    Processes that ask at the same time wait for the first one. Raises ``VllmUnavailable`` without
    network, ``LengthwiseError`` if an installation fails otherwise.
    """
    if version not in VERSIONS:
        raise UnknownNameError("vLLM version", version, VERSIONS)
    root = cache_folder()
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / "lock"):
        return Environment(_interpreter(root), _python_files(root, version))


def is_made(version: str = NEWEST) -> bool:
    """Whether the environment for a vLLM version is there, so that nothing need be fetched."""
    root = cache_folder()
    return (_folder(root) / "complete").exists() and (root / f"vllm-{version}").exists()


def cache_folder() -> Path:
    """Where the environments lie."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "lengthwise" / "vllm"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _folder(root: Path) -> Path:
    pins = f"{REQUIREMENTS.read_text()}{TORCH}{WITHOUT_DEPENDENCIES}{platform.python_version()}"
    return root / f"env-{hashlib.sha256(pins.encode()).hexdigest()[:12]}"


def _interpreter(root: Path) -> Path:
    folder = _folder(root)

    def fill(install: list[str]) -> None:
        _say(f"making {folder} (CPU torch and 24 small packages, about 1.3 GB)")
        _run([*install, "--extra-index-url", TORCH_INDEX, TORCH])
        _run([*install, "-r", str(REQUIREMENTS)])
        _run([*install, "--no-deps", WITHOUT_DEPENDENCIES])

    return _virtual_environment(folder, fill)


def _virtual_environment(folder: Path, fill: Callable[[list[str]], None]) -> Path:
    """The interpreter of a virtual environment; one that is not complete is made anew.

    ``fill`` installs into it: it is given the pip command that packages are appended to.
    """
    python, complete = folder / "bin" / "python", folder / "complete"
    if not complete.exists():
        shutil.rmtree(folder, ignore_errors=True)  # an interrupted attempt
        _run([sys.executable, "-m", "venv", str(folder)])
        fill([str(python), "-m", "pip", "install", "-q", "--retries", "1"])
        complete.touch()
    return python


def _python_files(root: Path, version: str) -> Path:
    folder = root / f"vllm-{version}"
    if folder.exists():
        return folder
    _say(f"fetching vLLM {version}; its Python files go to {folder}")
    with tempfile.TemporaryDirectory(dir=root) as made:
        fetch = [sys.executable, "-m", "pip", "download", "-q", "--retries", "1", "--no-deps"]
        fetch += ["--no-cache-dir", "--only-binary", ":all:", "--python-version", "3.11"]
        for name in PLATFORMS:
            fetch += ["--platform", name]
        _run([*fetch, "-d", made, f"vllm=={version}"])
        wheel = next(Path(made).glob("vllm-*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith(".py") or ".dist-info/" in name:
                    archive.extract(name, Path(made) / "files")
        (Path(made) / "files").rename(folder)
    return folder


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    output = done.stderr + done.stdout
    last = next((line for line in reversed(output.splitlines()) if line.strip()), "no output")
    if any(sign in output for sign in NO_NETWORK):
        raise VllmUnavailable(
            f"no network to make the vLLM environment: {' '.join(command[-3:])}: {last}"
        )
    raise LengthwiseError(f"making the vLLM environment failed: {' '.join(command)}: {last}")


def _say(what: str) -> None:
    print(f"lengthwise: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    for wanted in sys.argv[1:] or VERSIONS:
        print(environment(wanted))
