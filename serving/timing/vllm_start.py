"""Starting a vLLM of our own: what its environment needs, and why it did not start, in one line."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

MOST_SAID = 300  # characters of a cause
# What each process that learns of another's failure says; the cause stands before it.
ECHOES = (
    "Engine core initialization failed", "WorkerProc initialization failed",
    "EngineCore encountered an issue", "See stack trace", "See root cause",
)  # fmt: skip
HINTS = (
    ("out of memory", "is another process using the GPU? --tensor-parallel shares a model"),
    ("No available memory for the cache", "the model leaves no room: --tensor-parallel shares it"),
    ("max seq len", "--max-model-len takes less"),
)
_PREFIX = re.compile(
    r"^(?:\x1b\[[0-9;]*m)*(?:\([^)]*pid=\d+\))?(?:\x1b\[[0-9;]*m)*\s?"
    r"(?:(?:ERROR|WARNING|INFO|DEBUG|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d (?:\[[^\]]*\] ?)?)?"
)
_RAISED = re.compile(r"^((?:\w+\.)*\w*(?:Error|Exception|Exit|Interrupt|Failure))(?::\s*(.*))?$")
_CHAINED = ("The above exception was the direct cause", "During handling of the above exception")


def settle() -> dict[str, str]:
    """Sets the variables that vLLM needs here and that are not set; returns them.

    No download, no usage statistics; vLLM's own sampler where FlashInfer's kernels are not there
    and can't be compiled; caches in a temporary folder where the home folder can't be written.
    """
    needed = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # torch has seen the GPU in this process
    }
    if not _flashinfer():
        needed["VLLM_USE_FLASHINFER_SAMPLER"] = "0"
    home = Path(os.path.expanduser("~"))
    if not os.access(home, os.W_OK):
        caches = Path(tempfile.gettempdir()) / "lengthwise-vllm"
        for name in ("VLLM_CACHE_ROOT", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
            needed[name] = str(caches / name.lower())
    fresh = {name: value for name, value in needed.items() if name not in os.environ}
    os.environ.update(fresh)
    return fresh


def _flashinfer() -> bool:
    """Whether FlashInfer's sampling kernels are there, or a compiler that makes them."""
    if find_spec("flashinfer") is None:
        return False
    cuda = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    compiles = shutil.which("nvcc") is not None or (cuda / "bin" / "nvcc").exists()
    return compiles or find_spec("flashinfer_jit_cache") is not None


@contextmanager
def output_to(path: Path) -> Iterator[None]:
    """What this process and those that it starts print goes to the file ``path``.

    Processes that were started inside keep it. ``sys.stderr`` stays where it was, so that progress
    is seen.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    before, shown = {number: os.dup(number) for number in (1, 2)}, sys.stderr
    with path.open("ab") as log, os.fdopen(os.dup(2), "w", buffering=1) as terminal:
        try:
            for number in before:
                os.dup2(log.fileno(), number)
            if _number(shown) == 2:
                sys.stderr = terminal
            yield
        finally:
            sys.stdout.flush()
            sys.stderr = shown
            for number, kept in before.items():
                os.dup2(kept, number)
                os.close(kept)


def _number(stream: Any) -> int:
    """The file's number; -1 of a stream without a file, such as one that a test listens to."""
    try:
        return int(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return -1


def cause(log: str, error: BaseException | None = None) -> str:
    """Why vLLM did not start, in one line: from what it printed and what was raised here.

    The first exception of the last chain that is not another process's echo of it.
    """
    chains: list[list[str]] = []
    chained = False
    lines = [_PREFIX.sub("", line) for line in log.splitlines()]
    for at, line in enumerate(lines):
        if line.startswith(_CHAINED):
            chained = True
        elif (found := _RAISED.match(line)) and _in_traceback(lines, at):
            said = found[2] or _next(lines, at)
            text = f"{found[1].rpartition('.')[2]}: {said}".rstrip(": ")
            if chained and chains:
                chains[-1].append(text)
            else:
                chains.append([text])
            chained = False
    told = [[text for text in chain if not _echo(text)] for chain in chains]
    told = [chain for chain in told if chain]
    raised = "" if error is None else _of_exception(error)
    if raised and not _echo(raised):
        text = raised
    elif told:
        text = told[-1][0]
    elif signal := re.search(r"Failed core proc\(s\): \{[^}]*: -(\d+)", str(error)):
        memory = ", as the machine does when its memory is full" if signal[1] == "9" else ""
        text = f"its process was ended by signal {signal[1]}{memory}"
    else:
        text = raised or "nothing was said"
    text = re.sub(r"\s+", " ", text).strip()
    text = text if len(text) <= MOST_SAID else text[: MOST_SAID - 1] + "…"
    hint = next((told for part, told in HINTS if part in text), "")
    return f"{text} ({hint})" if hint else text


def _in_traceback(lines: list[str], at: int) -> bool:
    """An indented line of code stands before the exception, as it does in a traceback."""
    return at > 0 and lines[at - 1].startswith((" ", "\t", "Traceback"))


def _next(lines: list[str], at: int) -> str:
    return lines[at + 1].strip() if at + 1 < len(lines) else ""


def _echo(text: str) -> bool:
    return any(echo in text for echo in ECHOES)


def _of_exception(error: BaseException) -> str:
    """The first exception of a chain; of a validation error's lines the one that says why."""
    while True:
        before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if before is None:
            break
        error = before
    said = str(error)
    if found := re.search(r"Value error, (.*?)(?:\s*\[type=|$)", said, re.DOTALL):
        said = found[1]
    return f"{type(error).__name__}: {said}".rstrip(": ")
