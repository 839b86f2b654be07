"""SGLang's own scheduler on a CPU: its files, in the whole vLLM's environment.

    python -m tests.engines.sglang_environment

All of the wheel but its compiled kernels is unpacked once, under the same cache folder as vLLM's.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from lengthwise.serving.vllm import environment as made
from tests.engines import whole_environment
from tests.engines.environments import ROOT

VERSION = "0.5.23"
CHECKS = Path(__file__).with_name("sglang_checks.py")


def files(python: Path) -> Path:
    """The folder with SGLang's files, made now if it is not there."""
    root = made.cache_folder()
    folder = root / f"sglang-{VERSION}"
    with made._locked(root / "lock-sglang"):
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=root) as fetched:
                made._run([
                    str(python), "-m", "pip", "download", "-q", "--retries", "1", "--no-deps",
                    "--no-cache-dir", "--only-binary", ":all:", "--python-version", "3.11",
                    "--platform", "manylinux_2_34_x86_64", "-d", fetched, f"sglang=={VERSION}",
                ])  # fmt: skip
                (wheel,) = Path(fetched).glob("sglang-*.whl")
                with zipfile.ZipFile(wheel) as archive:
                    names = [name for name in archive.namelist() if not name.endswith(".so")]
                    archive.extractall(Path(fetched) / "files", names)
                (Path(fetched) / "files").rename(folder)
    return folder


def run_checks() -> dict[str, Any]:
    """What ``sglang_checks.py`` found."""
    python = whole_environment.python()
    done = subprocess.run(
        [str(python), str(CHECKS)], text=True, capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": f"{files(python)}:{ROOT}", "OMP_NUM_THREADS": "1",
             "LENGTHWISE_SGLANG": '{"policy": "srtf", "default_tokens": 50}'},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    print(files(whole_environment.python()))
