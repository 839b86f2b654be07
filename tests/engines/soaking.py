"""One vLLM scheduler with the plugin for as long as it is told: run by ``python -m tests.soak``.

Reads ``{"minutes": ..., "steps": ..., "log": FILE or null}`` from standard input, prints one JSON
line. Rounds of random requests follow each other on the same scheduler, with KV blocks for a few of
them, clients that hang up, sessions and tenants that are always new, a wall clock that is set now
and then, and a predictor whose process is killed. After each round, when all is served and
collected, memory is looked at in three ways: the process's, what Python's allocator has given out,
and what malloc has.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what vLLM prints must not mix with the answers

# ruff: noqa: E402
import numpy as np
from stepping import Engine, Job, make_config, make_scheduler

from lengthwise.policies.plugins.vllm import lengths

FAKE = str(Path(__file__).with_name("fake_predictor.py"))
JOBS = 300  # in a round
KILL_S = 240.0  # between two ends of the predictor's process: its budget is three in ten minutes
SERVER = {
    "max_num_seqs": 16, "max_num_batched_tokens": 256, "blocks": 120, "block_size": 16,
    "enable_prefix_caching": True, "async_scheduling": True,
}  # fmt: skip


def jobs(rng: random.Random, begin_s: float, number: int) -> list[Job]:
    """A round's requests: some share prefixes, some say their length, some are hung up on."""
    stem = [rng.randint(0, 400) for _ in range(100)]
    made = []
    for index in range(JOBS):
        prompt, output = rng.randint(1, 120), rng.randint(1, 60)
        shared = min(rng.choice([0, 0, 40, 100]), prompt)
        own = [rng.randint(1000, 2**31 - 1) for _ in range(prompt - shared)]
        if rng.random() < 0.01:
            own = [2**31] * len(own)  # no token that a predictor could be sent
        after_s = rng.random() * 6  # 600 steps of 0.01 s
        sent: dict[str, Any] = {"session_id": f"{number}-{index // 2}", "tenant": f"t{number}"}
        if rng.random() < 0.3:
            sent["predicted_tokens"] = rng.choice([output, 2 * output, "7", "9" * 400, [1]])
        made.append(
            Job(
                arrival_s=begin_s + after_s, prompt=prompt, output=output, extra=sent,
                tokens=stem[:shared] + own,
                abort_step=int(100 * after_s) + rng.randint(1, 80) if rng.random() < 0.15 else None,
            )
        )  # fmt: skip
    return made


class _Mallinfo(ctypes.Structure):
    """glibc's ``struct mallinfo2``."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
        "fordblks", "keepcost")]  # fmt: skip


_mallinfo = ctypes.CDLL(None).mallinfo2
_mallinfo.restype = _Mallinfo


def memory() -> tuple[float, float, float]:
    """KiB of this process, objects that Python's allocator has given out, and malloc's KiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    given = _mallinfo()
    return (
        pages * os.sysconf("SC_PAGE_SIZE") / 1024, float(sys.getallocatedblocks()),
        (given.uordblks + given.hblkhd) / 1024,
    )  # fmt: skip


def slope(x: list[float], y: list[float]) -> tuple[float, float]:
    """Least squares, and the standard error."""
    a, b = np.array(x), np.array(y)
    fit = np.polyfit(a, b, 1)
    left = b - np.polyval(fit, a)
    error = np.sqrt((left**2).sum() / (len(a) - 2) / ((a - a.mean()) ** 2).sum())
    return float(fit[0]), float(error)


def soak(minutes: float, steps: int, log: str | None = None) -> dict[str, Any]:
    """Serves until the time is over or so many steps are done, whichever comes first."""
    lengths.command = lambda *_, **__: [sys.executable, FAKE, "works"]
    rng, begin = random.Random(0), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        settings = {"policy": "srtf+preempt:mode=recompute", "predictor": "x", "record": folder}
        scheduler = make_scheduler(make_config(lengthwise=settings, **SERVER))
        driver = scheduler.lengthwise
        done = served = aborted = preempted = kills = jumps = 0
        at: list[float] = []
        seen: list[tuple[float, float, float]] = []
        now_s, killed_s = 0.0, begin
        while done < steps and time.monotonic() - begin < 60 * minutes:
            engine = Engine(scheduler, jobs(rng, now_s, len(at)))
            engine.now_s, driver.clock._origin_s = now_s, 0.0  # time goes on
            if rng.random() < 0.5:
                engine.set_clock(rng.choice([-1.0, 1.0]) * rng.choice([5.0, 3600.0, 1e6]))
                jumps += 1
            run = engine.serve()  # and its check: nothing lost, nothing cut, every block is back
            now_s = engine.now_s
            done += len(run.steps)
            served += len(run.finish_s)
            aborted += len(run.aborted)
            preempted += sum(map(len, run.preempted))
            if time.monotonic() - killed_s > KILL_S:
                if (child := driver._lengths._process._child) is not None:
                    child.kill()
                killed_s, kills = time.monotonic(), kills + 1
            for old in sorted(Path(folder).glob("part-*"))[:-2]:
                old.unlink()  # a disk is not what is tried here
            del engine, run
            gc.collect()
            at.append(float(done))
            seen.append(memory())
            if log is not None:
                with open(log, "a") as file:
                    print(f"{(time.monotonic() - begin) / 60:.3f}", done, served, *seen[-1],
                          sep=",", file=file)  # fmt: skip
        scheduler.shutdown()
        counts = {f"{key}:{label}": n for (key, label), n in driver.counters.counts.items()}
    half = len(at) // 2
    grows = [
        slope([n / 1e6 for n in at[half:]], [one[kind] for one in seen[half:]]) for kind in range(3)
    ]
    recorded = counts.get("recorded:written", 0) + counts.get("recorded:dropped", 0)
    assert not any(name.startswith("failed_steps") for name in counts), counts
    return {
        "minutes": (time.monotonic() - begin) / 60, "steps": done, "served": served,
        "aborted": aborted, "preempted": preempted, "predictor kills": kills, "jumps": jumps,
        "recorded": recorded,
        "rss_mib": [seen[at_][0] / 1024 for at_ in (0, half, -1)],
        "python_objects": [seen[at_][1] for at_ in (0, half, -1)],
        "malloc_mib": [seen[at_][2] / 1024 for at_ in (0, half, -1)],
        # over the second half, and the standard error: a million times what a step leaves behind
        "rss, KiB per million steps": grows[0], "objects per million steps": grows[1],
        "malloc, KiB per million steps": grows[2], "counts": counts,
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(soak(**json.load(sys.stdin))), file=ANSWERS, flush=True)
