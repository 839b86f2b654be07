"""Every supported Python, with the oldest and the newest packages that pyproject allows.

    python -m tests.matrix                                  # all cells, a few minutes each
    python -m tests.matrix --python 3.12 --packages oldest

Each cell is an environment of its own, made by uv: the sdist is built, a wheel from the sdist, and
that is installed with ``[plot]``; then, outside the checkout, ``lengthwise demo`` and the tests of
``FAST``. No other extra is installed: torch alone would be gigabytes a cell. Pythons are those on
PATH, else uv fetches them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.engines.environments import ROOT
from tests.engines.installed import NOT_OURS
from tests.engines.numba_versions import RUNS_TESTS, needs
from tests.engines.resolving import _index

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PACKAGES = {"oldest": ("--resolution", "lowest-direct"), "newest": ()}
# what needs no extra and no file of the checkout but the tests themselves
FAST = (
    "tests/test_workload.py", "tests/test_prediction.py", "tests/test_eval_metrics.py",
    "tests/test_policies_bundle.py", "tests/test_serving_workload_readers.py",
    "tests/test_plugins_odd.py", "tests/test_cli.py::test_every_command_has_help",
)  # fmt: skip
SHOWN = ("numba", "numpy", "pandas", "pyarrow", "scikit-learn", "scipy")


def wheel(folder: Path) -> Path:
    """Our wheel, built from our sdist."""
    source = folder / "source"
    shutil.copytree(ROOT, source, symlinks=True, ignore=NOT_OURS)
    _run(["build", "--quiet", "--sdist", "--out-dir", str(folder), str(source)], folder)
    (sdist,) = folder.glob("*.tar.gz")
    _run(["build", "--quiet", "--wheel", "--out-dir", str(folder), str(sdist)], folder)
    (made,) = folder.glob("*.whl")
    return made


def cell(python: str, packages: str, made: Path, folder: Path) -> str:
    """What became of one cell, in a line."""
    try:
        _run(["venv", "--quiet", "--python", python, str(folder / "env")], folder)
    except subprocess.CalledProcessError as error:
        return f"no Python: {_last(error)}"
    inside = str(folder / "env" / "bin" / "python")
    install = ["pip", "install", "--quiet", "--python", inside, "--only-binary", ":all:"]
    try:
        ours = f"lengthwise[plot] @ {made.as_uri()}"
        # what lowest-direct takes for direct is what is named here
        _run([*install, *PACKAGES[packages], ours, *map(str, needs())], folder)
        _run([*install, *RUNS_TESTS, "packaging"], folder)
    except subprocess.CalledProcessError as error:
        return f"can't be installed: {_last(error)}"
    listed = _run(["pip", "freeze", "--quiet", "--python", inside], folder).split()
    versions = ", ".join(one.replace("==", " ") for one in listed if one.split("==")[0] in SHOWN)
    shutil.copytree(ROOT / "tests", folder / "tests")
    shutil.copy(ROOT / "pyproject.toml", folder)
    tries = {
        "demo": [str(folder / "env" / "bin" / "lengthwise"), "demo"],
        "tests": [inside, "-m", "pytest", "-q", "-p", "no:cacheprovider", *FAST],
    }
    said = []
    for name, command in tries.items():
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=False,
            env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
        )  # fmt: skip
        if done.returncode:
            print(done.stdout[-6000:], done.stderr[-3000:], file=sys.stderr)
        lines = done.stdout.strip().splitlines() if name == "tests" else []
        said.append(f"{name} {'fails' if done.returncode else 'runs'} {lines[-1] if lines else ''}")
    return f"{'; '.join(one.strip() for one in said)} ({versions})"


def _run(arguments: list[str], folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "uv", "--no-config", *arguments], cwd=folder, capture_output=True,
        text=True, check=True, env={**os.environ, **_index()},
    )  # fmt: skip
    return done.stdout


def _last(error: subprocess.CalledProcessError) -> str:
    return " ".join(str(error.stderr).split())[:300]


def main() -> None:
    parser = argparse.ArgumentParser(description="Installs and tries the wheel everywhere.")
    parser.add_argument("--python", action="append", choices=PYTHONS)
    parser.add_argument("--packages", action="append", choices=[*PACKAGES])
    options = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as root:
        made = wheel(Path(root))
        for python in options.python or PYTHONS:
            for packages in options.packages or PACKAGES:
                folder = Path(root) / f"{python}-{packages}"
                folder.mkdir()
                found = cell(python, packages, made, folder)
                failed |= "fails" in found
                print(f"Python {python}, {packages}: {found}", flush=True)
                shutil.rmtree(folder)
    sys.exit(failed)


if __name__ == "__main__":
    main()
