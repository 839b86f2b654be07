"""Runs a program for ``evaluate``, in a process that has given up what the program might misuse.

Standard input is the pickled task, standard output the answer as JSON: the metric on each window,
or the reason why there is none. What the program prints goes elsewhere.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import pickle
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

LARGEST_FILE = 64 * 2**20  # bytes that are written to one file: machine code, and what it prints
NEW_USER, NEW_NET = 0x10000000, 0x40000000  # of unshare(2)
REFUSED = (
    "socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork",
    "os.kill", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree", "ctypes.dlopen",
)  # fmt: skip


def main() -> None:
    """Limits first, then the task, then the program."""
    memory_mb, timeout_s = int(sys.argv[1]), float(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _limit(memory_mb, timeout_s)
    task = pickle.loads(sys.stdin.buffer.read())
    try:
        answer = _run(task)
    except MemoryError:
        answer = {"reason": f"it needs more than {memory_mb} MB"}
    except BaseException as error:
        answer = {"reason": _told(error)}
    answers.write(json.dumps(answer))
    answers.flush()
    os._exit(0)  # whatever the program has started or registered


def _limit(memory_mb: int, timeout_s: float) -> None:
    """Memory, time, files and, where the kernel lets anybody, the network."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        for what, most in (
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_FSIZE, LARGEST_FILE),
            (resource.RLIMIT_CPU, math.ceil(timeout_s) + 1),
            (resource.RLIMIT_AS, memory_mb * 2**20),
        ):
            hard = resource.getrlimit(what)[1]
            if hard == resource.RLIM_INFINITY or hard > most:
                resource.setrlimit(what, (most, most))
    with suppress(OSError, AttributeError):
        unshare = ctypes.CDLL(None).unshare
        if unshare(NEW_NET):  # root may; others only as the root of a space of their own
            unshare(NEW_USER | NEW_NET)


def _run(task: dict[str, Any]) -> dict[str, Any]:
    """The metric of the program on each window."""
    from lengthwise import contract
    from lengthwise.eval.tune import METRICS, records_of
    from lengthwise.policies import load_policy
    from lengthwise.policies.load import only_function
    from lengthwise.serving.fast.compiler import cache

    trials, beside = task["trials"], task["beside"]
    # what the engine compiles and loads is there, and kept, before the program begins
    records_of(trials[0], load_policy(f"hrrn{beside}"))
    setattr(cache, "write", lambda stem, code: None)  # noqa: B010  # nothing of the program is
    Path("program.py").write_text(task["program"], "utf-8")
    sys.addaudithook(_hook)
    policy = load_policy(f"program.py:{only_function('program.py')}{beside}", tried=False)
    if wrong := contract.problems(policy.score):
        return {"reason": str(wrong[0])}
    measure = METRICS[task["metric"]]
    return {"values": [float(measure(records_of(one, policy))) for one in trials]}


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event.startswith(REFUSED):
        raise PermissionError(f"a program that is judged may not use {event}")


def _told(error: BaseException) -> str:
    """Our own errors say which line; of others the kind is said too."""
    from lengthwise.errors import LengthwiseError

    name = "" if isinstance(error, LengthwiseError) else f"{type(error).__name__}: "
    return f"{name}{error}"


if __name__ == "__main__":
    main()
