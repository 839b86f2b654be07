"""SGLang on a CPU, its scheduler or a whole server: its files, in the whole vLLM's environment.

    python -m tests.engines.sglang_environment

All of the wheel but its compiled kernels is unpacked once, under the same cache folder as vLLM's.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lengthwise.serving.vllm import environment as made
from tests.engines import live_server, whole_environment
from tests.engines.environments import PYARROW, ROOT, packages

VERSION = "0.5.23"
HTTP = ("orjson==3.13.0",)  # what its front needs beside what vLLM's environment has
ENTRY = "lengthwise = lengthwise.policies.plugins.sglang:register"
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


@contextmanager
def serving(folder: Path, model: Path, settings: dict[str, Any], *options: str) -> Iterator[str]:
    """The URL of a server with the plugin, its log in ``folder``; it is killed at the end.

    Raises ``AssertionError`` with the end of its log where it does not start.
    """
    root, python = made.cache_folder(), whole_environment.python()
    own = [packages(root, python, "packages-sglang", HTTP),
           packages(root, python, "packages-record", PYARROW)]  # fmt: skip
    installed = folder / "lengthwise-0.dist-info"  # by which SGLang finds the plugin
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: lengthwise\nVersion: 0\n")
    (installed / "entry_points.txt").write_text(f"[sglang.srt.plugins]\n{ENTRY}\n")
    port, log = live_server.free_port(), folder / "log"
    variables = {
        **os.environ, "PYTHONPATH": ":".join(map(str, [files(python), ROOT, folder, *own])),
        "OMP_NUM_THREADS": "1", "SGLANG_USE_CPU_ENGINE": "1", "HF_HUB_OFFLINE": "1",
        "LENGTHWISE_SGLANG": json.dumps(settings),
    }  # fmt: skip
    line = [
        str(python), "-m", "tests.engines.sglang_server", "--model-path", str(model),
        "--served-model-name", "tiny", "--load-format", "dummy", "--device", "cpu",
        "--attention-backend", "torch_native", "--sampling-backend", "pytorch",
        "--grammar-backend", "none", "--max-total-tokens", "2048", "--mem-fraction-static", "0.2",
        "--disable-overlap-schedule", "--skip-server-warmup", "--port", str(port), *options,
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as written:
        process = subprocess.Popen(
            line, start_new_session=True, stdout=written, stderr=written, env=variables, cwd=folder
        )
    try:
        live_server.until_healthy(process, url, log)
        yield url
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


if __name__ == "__main__":
    print(files(whole_environment.python()))
