"""``python -m tests.fuzz --inputs 20000 --jobs 16``: spoiled inputs by the thousand, and a table.

Each input is a function of the seed, its kind and its number alone. It runs in a worker that may
hang, be killed or die of a signal without ending the others. An escape is whatever comes back
beside "accepted" and a line of the library's own: its input and traceback are kept in ``--out``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import multiprocessing.connection
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any, NoReturn

HANG_S = 10.0  # of one input; a busy machine doubles what each takes
MOST_MB = 1024
CHUNK = 250  # inputs a worker


class Hang(BaseException):
    """One input took too long."""


@dataclass
class Tally:
    """What came of one kind's inputs."""

    counts: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    peak_mb: float = 0.0
    escapes: list[tuple[int, str]] = field(default_factory=list)


def try_one(kind: str, number: int, seed: int, base: Path, folder: Path) -> str:
    """Makes an input in ``folder`` and uses it: "accepted" or "refused"."""
    from tests.fuzz.kinds import KINDS, outcome

    made = KINDS[kind].make(Random(f"{seed}/{kind}/{number}"), base, folder)
    return outcome(KINDS[kind].run, made)


def _late(signum: int, frame: FrameType | None) -> NoReturn:
    raise Hang


def _work(
    kind: str, numbers: range, seed: int, base: Path, out: Path, scratch: Path, pipe: Any
) -> None:
    """One worker: says each number before it is tried, and what came of it."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    signal.signal(signal.SIGALRM, _late)
    own = before = _peak_mb()  # the libraries that it shares with its parent count as its own
    for number in numbers:
        folder = scratch / str(number)
        folder.mkdir()
        pipe.send(("start", number))
        begun = time.process_time(), time.monotonic()
        why = ""
        signal.setitimer(signal.ITIMER_REAL, 4 * HANG_S)
        try:
            came = try_one(kind, number, seed, base, folder)
        except BaseException as error:
            came, why = "escape", "".join(traceback.format_exception(error))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        took = time.process_time() - begun[0]
        peak = _peak_mb()
        if came != "escape" and took > HANG_S:
            came, why = "escape", f"Hang: {took:.1f} s\n"
        if came != "escape" and peak - own > MOST_MB > before - own:
            came, why = "escape", f"Memory: {before:.0f} to {peak:.0f} MB\n"
        before = peak
        if came == "escape":
            _keep(folder, out / f"{kind}-{number}", why)
        shutil.rmtree(folder, ignore_errors=True)
        pipe.send(("end", number, came, took, peak - own, why))
    pipe.send(("done",))


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _keep(folder: Path, to: Path, why: str) -> None:
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir(parents=True, exist_ok=True)
    (to / "TRACEBACK").write_text(why)
    for found in folder.rglob("*"):
        if found.is_file() and not found.is_symlink():
            target = to / found.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found, target)


def _run(kinds: list[str], inputs: int, jobs: int, seed: int, base: Path, out: Path,
         seconds: float) -> dict[str, Tally]:  # fmt: skip
    context = multiprocessing.get_context("fork")
    tallies = {kind: Tally() for kind in kinds}
    todo = [(kind, range(at, min(at + CHUNK, inputs)))
            for at in range(0, inputs, CHUNK) for kind in kinds]  # fmt: skip
    todo.reverse()
    running: list[list[Any]] = []  # process, pipe, kind, numbers, number now, since, scratch
    end = time.monotonic() + seconds

    def start(kind: str, numbers: range) -> None:
        ours, theirs = context.Pipe(duplex=False)
        scratch = Path(tempfile.mkdtemp(prefix=f"{kind}-"))
        process = context.Process(
            target=_work, args=(kind, numbers, seed, base / kind, out, scratch, theirs)
        )
        process.start()
        theirs.close()
        running.append([process, ours, kind, numbers, numbers[0], time.monotonic(), scratch])

    while todo or running:
        if time.monotonic() > end:
            todo.clear()
        while todo and len(running) < jobs:
            start(*todo.pop())
        multiprocessing.connection.wait([row[1] for row in running], timeout=1.0)
        for row in list(running):
            process, pipe, kind, numbers, number, _, scratch = row
            tally, over = tallies[kind], False
            try:
                while pipe.poll():
                    message = pipe.recv()
                    if message[0] == "start":
                        row[4], row[5] = message[1], time.monotonic()
                    elif message[0] == "done":
                        over = True
                        break
                    else:
                        _, number, came, took, peak, why = message
                        tally.counts[came] += 1
                        tally.slowest_s = max(tally.slowest_s, took)
                        tally.peak_mb = max(tally.peak_mb, peak)
                        if came == "escape":
                            tally.escapes.append((number, why))
                        row[4] = number + 1
            except EOFError:
                over = True
                if row[4] < numbers.stop:
                    process.join()
                    why = f"Died: exit code {process.exitcode}\n"
                    tally.counts["escape"] += 1
                    tally.escapes.append((row[4], why))
                    _keep(scratch / str(row[4]), out / f"{kind}-{row[4]}", why)
                    if row[4] + 1 < numbers.stop:
                        todo.append((kind, range(row[4] + 1, numbers.stop)))
            if not over and time.monotonic() - row[5] > 6 * HANG_S:
                process.kill()  # its pipe ends, which counts as an escape
            if over:
                process.join()
                running.remove(row)
                shutil.rmtree(scratch, ignore_errors=True)
    return tallies


def signature(why: str) -> str:
    """The last frame of ours and the error's first line: what groups escapes."""
    lines = why.strip().splitlines()
    frames = [line.strip() for line in lines if re.match(r'  File ".*lengthwise/', line)]
    last = next((line for line in reversed(lines) if re.match(r"[A-Za-z_.]+(:|$)", line)), "")
    return f"{frames[-1] if frames else ''} {last[:160]}"


def main() -> None:
    """Runs it and prints the table; exits 1 if anything escaped."""
    from tests.fuzz.kinds import KINDS

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--kind", action="append", choices=sorted(KINDS), help="default: all")
    parser.add_argument("--inputs", type=int, default=2000, help="of each kind")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no more work after it")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"))
    given = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    kinds = given.kind or list(KINDS)
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        base = Path(made)
        for kind in kinds:
            (base / kind).mkdir()
            KINDS[kind].prepare(base / kind)
        warm(kinds, base)
        begun = time.monotonic()
        tallies = _run(kinds, given.inputs, given.jobs, given.seed, base, given.out.absolute(),
                       given.seconds)  # fmt: skip
    head = ("kind", "inputs", "refused", "accepted", "escapes", "slowest, CPU s", "peak MB")
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for kind, tally in tallies.items():
        count = tally.counts
        row = (kind, count.total(), count["refused"], count["accepted"], count["escape"],
               f"{tally.slowest_s:.2f}", f"{tally.peak_mb:.0f}")  # fmt: skip
        lines.append(f"| {' | '.join(map(str, row))} |")
    table = "\n".join(lines)
    print(f"seed {given.seed}, {given.jobs} jobs, {time.monotonic() - begun:.0f} s\n\n{table}\n")
    groups: dict[str, list[str]] = {}
    for kind, tally in tallies.items():
        for number, why in tally.escapes:
            groups.setdefault(signature(why), []).append(f"{kind}-{number}")
    for name, where in sorted(groups.items(), key=lambda item: -len(item[1])):
        print(f"{len(where):5}  {name}\n       {', '.join(where[:6])}")
    (given.out / "table.md").write_text(table + "\n")
    sys.exit(1 if groups else 0)


def warm(kinds: list[str], base: Path) -> None:
    """Imports and compiles before workers are forked, so that no input pays for it."""
    from tests.fuzz.kinds import _run as run
    from tests.fuzz.kinds import _small

    for policy in ("fcfs", "srtf", "mlfq", "hrrn", "priority"):
        for prefix in (False, True):
            from lengthwise.serving import Engine

            run(_small(), Random(0), policy=policy, engine=Engine(enable_prefix_caching=prefix))
    if {"predictor", "encoder"} & set(kinds):
        import sklearn.linear_model  # noqa: F401
    if "encoder" in kinds:
        import torch

        torch.set_num_threads(1)


if __name__ == "__main__":
    main()
