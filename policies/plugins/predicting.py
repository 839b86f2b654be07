"""A predictor in a process of its own, and the two threads that talk to it.

``python -m lengthwise.policies.plugins.predicting DIR ...`` is the process. It says one JSON line
when it is ready, ``{"needs": [...]}`` or ``{"error": "..."}``; then it reads frames of a request's
prompt tokens, takes whatever has arrived as one batch, and writes a frame for each prediction.
"""

from __future__ import annotations

import argparse
import array
import json
import math
import os
import queue
import select
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, BinaryIO, TypeGuard

from lengthwise.errors import InputError
from lengthwise.policies.plugins.metrics import Counters
from lengthwise.policies.plugins.saved import saved_predictor
from lengthwise.served_text import PromptReader

ASK = struct.Struct("<qq")  # sequence, tokens that follow as int32
TELL = struct.Struct("<qd")  # sequence, predicted tokens; NaN where the predictor failed
START_S = 120.0  # to import libraries and read a model
STUCK_S = 10.0  # without an answer while some are owed: the process is started again
RESTARTS = 3  # then predictions stay off
BATCH = 64
BACKLOG = 4096  # prompts; more than that are not even sent


def command(
    folder: str, *, tokenizer: str, revision: str | None = None, trust_remote_code: bool = False
) -> list[str]:
    """How the process of a saved predictor is started."""
    line = [sys.executable, "-m", "lengthwise.policies.plugins.predicting", folder]
    line += ["--tokenizer", tokenizer]
    if revision:
        line += ["--revision", revision]
    return [*line, "--trust-remote-code"] if trust_remote_code else line


class PredictorProcess:
    """Sends prompts and receives predictions; none of its methods block after construction.

    Raises ``InputError`` from the constructor if the predictor can't be loaded.
    """

    def __init__(self, line: Sequence[str], counters: Counters) -> None:
        self._line = list(line)
        self._counters = counters
        self._answers: deque[tuple[int, float]] = deque()
        self._prompts: queue.SimpleQueue[tuple[int, Sequence[int]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._owed_since: float | None = None
        self._owed = 0
        self._starts = 0
        self._closed = False
        self.off = False  # it failed too often and isn't asked any more
        self._child = self._start()

    def send(self, sequence: int, prompt: Sequence[int]) -> None:
        """Asks for a prediction."""
        if self._prompts.qsize() < BACKLOG:
            self._prompts.put((sequence, prompt))

    def received(self) -> list[tuple[int, float]]:
        """The predictions that came since the last call: (sequence, tokens)."""
        found: list[tuple[int, float]] = []
        while self._answers:
            found.append(self._answers.popleft())
        if self._owed_since is not None and time.monotonic() - self._owed_since > STUCK_S:
            self._owed_since = None
            self._child.kill()  # its reader sees the end and starts another
        return found

    def close(self) -> None:
        """Ends the process and its threads."""
        self._closed = True
        self._child.kill()
        self._reader.join(timeout=STUCK_S)

    def _start(self) -> subprocess.Popen[bytes]:
        self._starts += 1
        child = subprocess.Popen(self._line, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert child.stdin is not None and child.stdout is not None
        ready, _, _ = select.select([child.stdout], [], [], START_S)
        line = child.stdout.readline() if ready else b""
        try:
            said = json.loads(line)
        except ValueError:
            said = {"error": "its process did not start" if ready else "it took too long to load"}
        if "error" in said:
            _end(child)
            raise InputError(f"predictor: {said['error']}")
        self._owed, self._owed_since = 0, None
        writer = threading.Thread(target=self._write, args=(child.stdin,), daemon=True)
        self._reader = threading.Thread(target=self._read, args=(child, writer), daemon=True)
        writer.start()
        self._reader.start()
        return child

    def _write(self, pipe: BinaryIO) -> None:
        broken = False
        while (asked := self._prompts.get()) is not None:
            if broken:
                continue  # the process ended; what it was asked is late, and so served FCFS
            sequence, prompt = asked
            tokens = array.array("i", prompt)
            with self._lock:
                self._owed += 1
                if self._owed_since is None:
                    self._owed_since = time.monotonic()
            try:
                pipe.write(ASK.pack(sequence, len(tokens)) + tokens.tobytes())
                pipe.flush()
            except (OSError, ValueError):
                broken = True

    def _read(self, child: subprocess.Popen[bytes], writer: threading.Thread) -> None:
        assert child.stdout is not None
        while len(frame := child.stdout.read(TELL.size)) == TELL.size:
            self._answers.append(TELL.unpack(frame))
            with self._lock:
                self._owed -= 1
                self._owed_since = time.monotonic() if self._owed else None
        child.kill()
        self._prompts.put(None)
        writer.join()
        _end(child)
        if self._closed:
            return
        self._counters.warn("predictor-died", "the predictor's process ended and is started again")
        if self._starts > RESTARTS:
            self.off = True
            self._counters.warn("predictor-off", "the predictor keeps failing and stays off")
            return
        try:
            self._child = self._start()
        except InputError as error:
            self.off = True
            self._counters.warn("predictor-off", f"{error}; it stays off")
        if self._closed:  # meanwhile
            self._child.kill()


def is_length(value: Any) -> TypeGuard[float]:
    """Whether a client's or a predictor's word is a number of tokens."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > 0


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with suppress(OSError):  # a flush of what nobody reads any more
                pipe.close()


# The process itself


def main() -> None:
    """Reads prompts from stdin and writes predictions to stdout until stdin ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--revision")
    parser.add_argument("--trust-remote-code", action="store_true")
    given = parser.parse_args()
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get between the frames
    try:
        predictor = saved_predictor(given.folder)
        read = _reader(given) if "prompt" in predictor.needs else None
        _predict(predictor, read, [[0]])
    except Exception as error:
        _say(out, {"error": f"{error}" or repr(error)})
        return
    _say(out, {"needs": sorted(predictor.needs)})
    asked: queue.SimpleQueue[tuple[int, Sequence[int]] | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(asked,), daemon=True).start()
    while (first := asked.get()) is not None:
        batch = [first]
        while len(batch) < BATCH and not asked.empty():
            more = asked.get()
            if more is None:
                break
            batch.append(more)
        tokens = _predict_each(predictor, read, [prompt for _, prompt in batch])
        for (sequence, _), predicted in zip(batch, tokens, strict=True):
            out.write(TELL.pack(sequence, predicted))
        out.flush()


def _say(out: BinaryIO, message: dict[str, Any]) -> None:
    out.write(json.dumps(message).encode() + b"\n")
    out.flush()


def _listen(asked: queue.SimpleQueue[tuple[int, Sequence[int]] | None]) -> None:
    pipe = sys.stdin.buffer
    while len(frame := pipe.read(ASK.size)) == ASK.size:
        sequence, length = ASK.unpack(frame)
        tokens = array.array("i", pipe.read(4 * length))
        asked.put((sequence, tokens.tolist()))
    asked.put(None)


def _reader(given: argparse.Namespace) -> PromptReader:
    return PromptReader.load(
        given.tokenizer, revision=given.revision, trust_remote_code=given.trust_remote_code
    )


def _predict(
    predictor: Any, read: PromptReader | None, prompts: list[Sequence[int]]
) -> list[float]:
    texts = ["" if read is None else read.asked(prompt) for prompt in prompts]
    predicted = predictor.predict(texts, prompt_tokens=[len(p) for p in prompts])
    return [float(tokens) for tokens in predicted.predicted_tokens]


def _predict_each(
    predictor: Any, read: PromptReader | None, prompts: list[Sequence[int]]
) -> list[float]:
    """A batch; should it fail, one by one, so that a bad prompt spoils no other's prediction."""
    try:
        return _predict(predictor, read, prompts)
    except Exception as error:
        if len(prompts) == 1:
            print(f"lengthwise predictor: {error!r}", file=sys.stderr)
            return [math.nan]
        return [_predict_each(predictor, read, [prompt])[0] for prompt in prompts]


if __name__ == "__main__":
    main()
