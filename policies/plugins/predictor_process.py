"""Talks to the process that a predictor runs in (``predicting``), and starts it again when it ends.

Two threads do that, so that whatever the process does, the engine's loop never waits for it: one
starts it and reads its answers, one writes prompts to it.
"""

from __future__ import annotations

import array
import json
import math
import os
import queue
import select
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import NamedTuple

from lengthwise.curves import RequestCurve
from lengthwise.errors import InputError
from lengthwise.policies.plugins.accuracy import UNKNOWN
from lengthwise.policies.plugins.budget import Budget
from lengthwise.policies.plugins.metrics import Counters
from lengthwise.policies.plugins.predicting import ASK, POINTS, TELL
from lengthwise.policies.plugins.threads import keep
from lengthwise.prediction import EDGES

START_S = 120.0  # to import libraries and read a model
STUCK_S = 10.0  # without an answer to what it was asked: the process is started again
BACKLOG = 4096  # prompts; more than that are not even sent
LOOK_S = 0.2  # how often the threads look up from waiting
LONGEST_LINE = 65536  # bytes of what the process says when it is ready
AT = EDGES.tolist()
NO_CURVES: Mapping[str, RequestCurve] = MappingProxyType({})


class Answer(NamedTuple):
    """One prediction; ``tokens`` is negative where the predictor abstained, NaN where it failed."""

    sequence: int
    tokens: float
    at_s: float  # on the process's clock
    curves: Mapping[str, RequestCurve] = NO_CURVES  # by feature, where it gave a distribution
    interval: tuple[float, float] = UNKNOWN  # where the length is said to lie


class PredictorProcess:
    """Sends prompts and receives predictions; none of its methods block after construction.

    ``up`` says whether the process answers. When it ends, or owes an answer for ``STUCK_S``, it is
    started again, as often as ``Budget`` allows by ``clock``. Raises ``InputError`` from the
    constructor if the predictor can't be loaded.
    """

    def __init__(
        self,
        line: Sequence[str],
        counters: Counters,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._line = list(line)
        self._counters = counters
        self._clock = clock
        self._budget = Budget(clock)
        self._answers: deque[Answer] = deque()
        self._prompts: queue.SimpleQueue[tuple[int, Sequence[int], bytes]] = queue.SimpleQueue()
        self._owed: dict[int, float] = {}  # sequence -> since when, oldest first
        self._lock = threading.Lock()  # over what is owed
        self._closed = threading.Event()
        self._curves: list[str] = []  # features that each answer ends with
        self._child: subprocess.Popen[bytes] | None = self._start()
        self.up = True
        self._counters.set("predictor_up", "predictor", 1.0)
        self._thread = keep("predictor", self._supervise, counters, self._closed)
        keep("predictor-writer", self._write, counters, self._closed)

    def send(self, sequence: int, prompt: Sequence[int], known: bytes = b"") -> None:
        """Asks for a prediction; ``known`` is the request's context (``known.packed``)."""
        if self.up and self._prompts.qsize() < BACKLOG:
            self._prompts.put((sequence, prompt, known))
        else:
            self._answer(sequence, math.nan)

    def received(self) -> list[Answer]:
        """What was answered since the last call."""
        found: list[Answer] = []
        while self._answers:
            found.append(self._answers.popleft())
        return found

    def close(self) -> None:
        """Ends the process and its threads."""
        self._closed.set()
        if (child := self._child) is not None:
            child.kill()
        self._thread.join(timeout=STUCK_S)

    def _answer(
        self,
        sequence: int,
        tokens: float,
        curves: Mapping[str, RequestCurve] = NO_CURVES,
        interval: tuple[float, float] = UNKNOWN,
    ) -> None:
        self._answers.append(Answer(sequence, tokens, self._clock(), curves, interval))

    # The thread that reads

    def _supervise(self) -> None:
        while not self._closed.is_set():
            if self._child is not None:
                try:
                    self._listen(self._child)
                finally:
                    self._ended(self._child)
            elif not self._budget.take():
                self._counters.warn(
                    "predictor-off",
                    f"the predictor failed {self._budget.times} times within "
                    f"{self._budget.window_s:g} s and stays off for a while",
                )
                self._closed.wait(LOOK_S)
            else:
                self._again()

    def _listen(self, child: subprocess.Popen[bytes]) -> None:
        """Takes answers until the process ends, or is stuck."""
        assert child.stdout is not None
        pipe, heard = child.stdout.fileno(), bytearray()
        size = TELL.size + 8 * POINTS * len(self._curves)
        while not self._closed.is_set() and not self._stuck():
            if not _readable(pipe, LOOK_S):
                continue
            if not (data := os.read(pipe, 1 << 16)):
                return
            heard += data
            whole = len(heard) // size * size
            for start in range(0, whole, size):
                sequence, tokens, *within = TELL.unpack_from(heard, start)
                with self._lock:
                    self._owed.pop(sequence, None)
                curves = self._told(heard[start + TELL.size : start + size])
                self._answer(sequence, tokens, curves, (within[0], within[1]))
            del heard[:whole]

    def _told(self, data: bytearray) -> Mapping[str, RequestCurve]:
        """The curves that an answer ends with; none where a length has no distribution."""
        if not data or math.isnan((values := array.array("d", bytes(data)).tolist())[0]):
            return NO_CURVES
        return {
            name: RequestCurve(AT, values[k * POINTS : (k + 1) * POINTS])
            for k, name in enumerate(self._curves)
        }

    def _stuck(self) -> bool:
        with self._lock:
            oldest = next(iter(self._owed.values()), math.inf)
        return self._clock() - oldest > STUCK_S

    def _ended(self, child: subprocess.Popen[bytes]) -> None:
        self.up, self._child = False, None
        _end(child)
        with self._lock:
            lost, self._owed = list(self._owed), {}
        for sequence in lost:
            self._answer(sequence, math.nan)
        if not self._closed.is_set():
            self._counters.set("predictor_up", "predictor", 0.0)
            self._counters.add("restarts", "predictor")
            self._counters.warn(
                "predictor-died", "the predictor's process ended, or was stuck, and starts again"
            )

    def _again(self) -> None:
        try:
            self._child = self._start()
        except InputError as error:
            self._counters.warn("predictor-load", f"{error}; it is tried again")
        else:
            self.up = True
            self._counters.set("predictor_up", "predictor", 1.0)

    def _start(self) -> subprocess.Popen[bytes]:
        try:
            child = subprocess.Popen(self._line, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError as error:
            raise InputError(f"predictor: can't start its process: {error}") from None
        line = self._first_line(child)
        try:
            said = json.loads(line)
        except ValueError:
            ended = child.poll() is not None or line.endswith(b"\n")
            said = {"error": "its process did not start" if ended else "it took too long to load"}
        if not isinstance(said, dict) or "error" in said:
            _end(child)
            raise InputError(
                f"predictor: {said['error'] if isinstance(said, dict) else repr(said)}"
            )
        self._curves = list(said.get("curves", ()))
        return child

    def _first_line(self, child: subprocess.Popen[bytes]) -> bytes:
        """What it says when it is ready; what came of it when time is up, or when it ends."""
        assert child.stdout is not None
        pipe, line, deadline = child.stdout.fileno(), b"", time.monotonic() + START_S
        while not line.endswith(b"\n") and len(line) < LONGEST_LINE:
            if self._closed.is_set() or time.monotonic() > deadline:
                break
            if _readable(pipe, LOOK_S):
                if not (byte := os.read(pipe, 1)):  # no more: what follows are answers
                    child.wait()
                    break
                line += byte
        return line

    # The thread that writes

    def _write(self) -> None:
        while not self._closed.is_set():
            try:
                sequence, prompt, known = self._prompts.get(timeout=LOOK_S)
            except queue.Empty:
                continue
            try:
                self._tell(sequence, prompt, known)
            except (OSError, OverflowError, TypeError, ValueError) as error:
                # a process that ended, or what is no token id
                self._counters.warn("predictor-prompt", f"a prompt was not sent: {error!r}")
                with self._lock:
                    self._owed.pop(sequence, None)
                self._answer(sequence, math.nan)

    def _tell(self, sequence: int, prompt: Sequence[int], known: bytes) -> None:
        tokens = array.array("i", prompt)
        if (child := self._child) is None or child.stdin is None:
            raise OSError("the predictor's process is not there")
        with self._lock:
            self._owed[sequence] = self._clock()
        child.stdin.write(ASK.pack(sequence, len(tokens), len(known)) + tokens.tobytes() + known)
        child.stdin.flush()


def _readable(pipe: int, timeout_s: float) -> bool:
    waiting = select.poll()  # select.select refuses the many file numbers of a busy server
    waiting.register(pipe, select.POLLIN)
    return bool(waiting.poll(1000 * timeout_s))


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with suppress(OSError):  # a flush of what nobody reads any more
                pipe.close()
