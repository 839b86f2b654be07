"""What a program that somebody else wrote is worth as a score: for evolvers that write programs.

A language model's program may be wrong in any way. It runs in a process of its own, for so long and
in so much memory as it is given, and whatever it does, the answer is a score and a reason.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.eval.compare import BASELINE
from lengthwise.eval.setting import RouterLike, Setting
from lengthwise.eval.source import Source
from lengthwise.eval.statistics import paired_ratio
from lengthwise.eval.tune import METRICS, records_of
from lengthwise.eval.tuned import REQUESTS, SETS, held_out
from lengthwise.policies import load_policy
from lengthwise.predictors.predict import PredictorLike
from lengthwise.protocols import TimingModel
from lengthwise.serving import Engine
from lengthwise.serving.events import EventsLike
from lengthwise.serving.nodes import NodesLike
from lengthwise.serving.options import DEFAULT_TIMING
from lengthwise.workload import Workload

CHILD = Path(__file__).with_name("evaluate_child.py")
TIMEOUT_S, MEMORY_MB = 60.0, 4096
LONGEST = 2**20  # bytes of a program
SHOWN = 300  # characters of a reason


@dataclass(frozen=True)
class Evaluation:
    """What a program is worth: ``score`` is how many times the baseline's metric is its own, 0 for
    one that does not run, and then ``reason`` says why, in one line. Higher is better.

    ``low`` and ``high`` are the ends of the score's 95% interval over windows (NaN of one window),
    ``values`` the metric on each of them, seconds.
    """

    score: float
    reason: str = ""
    low: float = math.nan
    high: float = math.nan
    values: tuple[float, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether it ran."""
        return not self.reason


class Evaluator:
    """Judges programs on the same windows of a workload: ``judge = Evaluator("trace.csv.gz")``.

    A program is the text of a policy's file, or the path of one: a function ``score``, or the only
    one that it defines. ``beside`` stands behind it, such as ``+preempt:price=0.01``. Everything
    else is as for ``searched.search_policy``; the windows that ``search`` holds out are judged on
    with ``on="test"``, which an evolver must not see.

    ``timeout_s`` and ``memory_mb`` are what one program may take, compiling and all its runs
    included. It has no network where the system lets a process give that up, and may not start
    others; but a process is no jail: run models' programs where nothing is to be lost.
    """

    def __init__(
        self,
        workload: str | Workload | Source,
        *,
        metric: str = "e2e_mean",
        baseline: str = BASELINE,
        beside: str = "",
        on: Literal["train", "test"] = "train",
        rates: Sequence[float] | Literal["auto"] = (),
        requests: int = REQUESTS,
        seeds: int = 5,
        predictor: PredictorLike = "oracle",
        engine: Engine | None = None,
        timing: str | TimingModel = DEFAULT_TIMING,
        replicas: int = 1,
        router: RouterLike = "round-robin",
        nodes: NodesLike | None = None,
        failures: EventsLike | None = None,
        timeout_s: float = TIMEOUT_S,
        memory_mb: int = MEMORY_MB,
    ) -> None:
        if metric not in METRICS:
            raise UnknownNameError("metric", metric, METRICS)
        if on not in SETS:
            raise UnknownNameError("set of windows", on, SETS)
        if seeds < 1 or requests < 1 or not timeout_s > 0 or memory_mb < 1:
            raise InputError("judging programs needs 1 window, 1 request, time and memory")
        if not sys.executable:
            raise InputError("a program runs in a Python process, and sys.executable is empty")
        loaded = Setting(engine or Engine(), timing, replicas, router, nodes, 0.0, failures).load()
        self.trials = held_out(workload, loaded, predictor, rates, requests, seeds).trials(on)
        load_policy(BASELINE + beside)  # says what is wrong with it
        policy = load_policy(baseline)
        self.metric, self.beside, self.timeout_s, self.memory_mb = (
            metric, beside, timeout_s, memory_mb,
        )  # fmt: skip
        self.baseline = [METRICS[metric](records_of(one, policy)) for one in self.trials]

    def evaluate(self, program: str | Path) -> Evaluation:
        """A program's score; never raises for what a program does.

        A ``Path``, or a text that ends in ``.py`` and has one line, is a file's name.
        """
        if isinstance(program, Path) or (program.endswith(".py") and "\n" not in program):
            try:
                program = Path(program).read_text("utf-8")
            except (OSError, UnicodeDecodeError) as error:
                return Evaluation(0.0, f"can't read {str(program)!r}: {error}")
        if len(program) > LONGEST:
            return Evaluation(0.0, f"a program of {len(program)} characters, more than {LONGEST}")
        task = {
            "program": program, "beside": self.beside, "metric": self.metric,
            "trials": self.trials,
        }  # fmt: skip
        answer = self._answer(pickle.dumps(task))
        if "reason" in answer:
            return Evaluation(0.0, " ".join(str(answer["reason"]).split())[:SHOWN])
        values = answer["values"]
        if len(values) != len(self.baseline) or not all(0 < one < math.inf for one in values):
            return Evaluation(0.0, f"its {self.metric} is {values[0] if values else 'missing'}")
        ratio = paired_ratio(self.baseline, values)
        return Evaluation(ratio.mean, "", ratio.low, ratio.high, tuple(values))

    def _answer(self, task: bytes) -> dict[str, Any]:
        """What the process says, or why it says nothing."""
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as said:
            child = subprocess.Popen(
                [sys.executable, "-P", str(CHILD), str(self.memory_mb), str(self.timeout_s)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, cwd=folder,
                start_new_session=True, env=_environment(folder),
            )  # fmt: skip
            try:
                out, _ = child.communicate(task, self.timeout_s)
            except subprocess.TimeoutExpired:
                return {"reason": f"it took more than {self.timeout_s:g} s"}
            finally:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(child.pid, signal.SIGKILL)  # and what it may have started
                child.communicate()
            try:
                found = json.loads(out)
                if isinstance(found, dict) and ("reason" in found or "values" in found):
                    return found
            except ValueError:
                pass
            said.seek(0)
            last = said.read()[-2000:].decode("utf-8", "replace").strip().splitlines()
        if child.returncode == -signal.SIGXCPU:
            return {"reason": f"it took more than {self.timeout_s:g} s"}
        if child.returncode < 0:
            return {"reason": f"its process ended in {signal.Signals(-child.returncode).name}"}
        end = last[-1] if last else f"code {child.returncode}"
        return {"reason": f"its process ended without an answer: {end}"}


def _environment(folder: str) -> dict[str, str]:
    """Where packages are found, and one thread: nothing else of ours."""
    kept = ("PATH", "HOME", "LANG", "SYSTEMROOT", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME")
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {
        **{name: os.environ[name] for name in kept if name in os.environ}, **threads,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TMPDIR": folder,
    }  # fmt: skip


def evaluate(program: str | Path, workload: str | Workload | Source, **options: Any) -> Evaluation:
    """One program's score; ``options`` are those of ``Evaluator``, which is for many."""
    return Evaluator(workload, **options).evaluate(program)
