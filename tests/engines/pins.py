"""What the tests' engines are installed with: exact versions, each file checked by its hash.

    python -m tests.engines.pins [NAME ...]

writes ``pins/NAME.txt`` anew from what ``pins/NAME.in`` asks for: the newest versions that fit,
with the hashes of their wheels for Linux on x86-64, or of their sources. Read the difference before
it is committed. torch is not among them: it comes from PyTorch's own index.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lengthwise.serving.vllm import environment as made
from tests.engines.resolving import _index

FOLDER = Path(__file__).with_name("pins")
WHOLE = ("whole",)  # those whose ``.in`` names every package, for what they need is left out
ALWAYS = "python_full_version >= '3.11'"  # of our own
PYTHONS = ("cp311", "cp312", "cp313")


def install(pip: Sequence[str], name: str) -> None:
    """Installs what ``pins/NAME.txt`` lists and nothing else; other files are refused."""
    made._run([*pip, "--no-deps", "--require-hashes", "-r", str(FOLDER / f"{name}.txt")])


def environment(name: str) -> Path:
    """The interpreter of an environment with these pins alone, made now if it is not there."""
    root = made.cache_folder()
    root.mkdir(parents=True, exist_ok=True)
    with made._locked(root / f"lock-{name}"):
        return made._virtual_environment(
            root / f"{name}-{digest(name)}", lambda pip: install(pip, name)
        )


def digest(name: str) -> str:
    """Which pins these are, for the name of a folder."""
    return hashlib.sha256((FOLDER / f"{name}.txt").read_bytes()).hexdigest()[:12]


def main(names: Sequence[str]) -> None:
    for name in names or sorted(one.stem for one in FOLDER.glob("*.in")):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "pylock.toml"
            subprocess.run(
                [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal",
                 "--no-config", "--no-build", "--python-version", "3.11", "--format",
                 "pylock.toml", *(["--no-deps"] if name in WHOLE else []),
                 str(FOLDER / f"{name}.in"), "-o", str(out)],
                env={**os.environ, **_index()}, check=True,
            )  # fmt: skip
            packages = tomllib.loads(out.read_text("utf-8"))["packages"]
        lines = [line for package in packages if (line := _pinned(package))]
        (FOLDER / f"{name}.txt").write_text("".join(lines), "utf-8")


def _pinned(package: dict[str, Any]) -> str:
    """A line of a requirements file; nothing for a package of other systems alone."""
    marker = package.get("marker", "")
    files = [one for one in package.get("wheels", ()) if _fits(one["url"].rpartition("/")[2])]
    if "sys_platform == 'win32'" in marker or "emscripten' and" in marker:
        return ""
    if not files:
        files = [package["sdist"]] if "sdist" in package else []
    found = sorted({one["hashes"]["sha256"] for one in files})
    if not found:
        return ""
    needed = [one for one in marker.split(" and ") if one not in ("", ALWAYS)]
    said = f" ; {' and '.join(needed)}" if needed else ""
    head = f"{package['name']}=={package['version']}{said}"
    return " \\\n".join([head, *(f"    --hash=sha256:{one}" for one in found)]) + "\n"


def _fits(wheel: str) -> bool:
    abi, platform = wheel.removesuffix(".whl").rsplit("-", 2)[1:]
    if platform != "any" and not (
        "linux" in platform and "x86_64" in platform and "musl" not in platform
    ):
        return False
    return abi in ("none", "abi3") or any(one in abi for one in PYTHONS)


if __name__ == "__main__":
    main(sys.argv[1:])
