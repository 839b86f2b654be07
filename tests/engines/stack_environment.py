"""The Python router of vLLM's production stack, in an environment of its own (about 400 MB).

    python -m tests.engines.stack_environment

It is on no package index: one commit's files come from GitHub and are checked by a hash of all of
them. Its needs are pinned as it pins them, but for numpy.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

from lengthwise.serving.vllm import VllmUnavailable
from lengthwise.serving.vllm import environment as made
from tests.engines import pins

NAME = "stack"
COMMIT = "a6c01db05f65f556235413ba8dbcfb0c01132fff"  # of 5 August 2026, after vllm-stack-0.1.9
ARCHIVE = f"https://github.com/vllm-project/production-stack/archive/{COMMIT}.tar.gz"
HASH = "081193813957d9444f6a49183222cdbe1506405190fe4ad7dcb2018de6bceb74"
INSIDE = f"production-stack-{COMMIT}/src/"


def files() -> Path:
    """The folder that ``vllm_router`` lies in, fetched now if it is not there."""
    root = made.cache_folder()
    root.mkdir(parents=True, exist_ok=True)
    folder = root / f"production-stack-{COMMIT[:12]}"
    with made._locked(root / "lock-stack"):
        if not folder.exists():
            part = root / f"{folder.name}.part"
            try:
                with urllib.request.urlopen(ARCHIVE, timeout=60) as answer:
                    archive = tarfile.open(fileobj=io.BytesIO(answer.read()))
            except (urllib.error.URLError, OSError) as error:
                raise VllmUnavailable(f"GitHub can't be reached: {error}") from None
            for member in archive.getmembers():
                name = member.name.removeprefix(INSIDE)
                data = archive.extractfile(member)
                if data is not None and name.startswith("vllm_router/"):
                    (part / name).parent.mkdir(parents=True, exist_ok=True)
                    (part / name).write_bytes(data.read())
            part.rename(folder)
    found = digest(folder)
    assert found == HASH, f"{folder} is not what was tested: {found}"
    return folder


def digest(folder: Path) -> str:
    """Of the names and bytes of all Python files."""
    said = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        said.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
        said.update(path.read_bytes())
    return said.hexdigest()


def python() -> Path:
    """The interpreter of the environment, made now if it is not there."""
    return pins.environment(NAME)


if __name__ == "__main__":
    print(python(), files())
