"""The process that a predictor runs in, beside an engine; ``predictor_process`` is who talks to it.

``python -m lengthwise.policies.plugins.predicting DIR ...`` says one JSON line when it is ready,
``{"needs": [...], "curves": [...]}`` or ``{"error": "..."}``; then it reads frames of a request's
prompt tokens and context, takes whatever has arrived as one batch, and writes a frame for each
prediction.
"""

from __future__ import annotations

import argparse
import array
import json
import os
import queue
import struct
import sys
import threading
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lengthwise.context import Context, given
from lengthwise.policies.plugins.known import with_chat
from lengthwise.policies.plugins.saved import abstained, intervals, saved_predictor
from lengthwise.prediction import EDGES
from lengthwise.served_text import PromptReader, Served

# sequence, tokens that follow as int32, and bytes of JSON that follow those: columns of ``Context``
ASK = struct.Struct("<qqq")
# sequence, predicted tokens: negative where the predictor abstained, NaN where it failed; from
# where to where the length is said to lie, NaN where that is not known
TELL = struct.Struct("<qddd")
TOLD = 3  # numbers of these for each request
# Behind it, for each of the curves, the float64 values at ``EDGES``; NaN where there is none, for a
# length without a distribution and where the predictor failed.
POINTS = len(EDGES)
BATCH = 64
Asked = tuple[int, Sequence[int], dict[str, Any]]  # sequence, prompt, what is known beside it


def command(
    folder: str,
    *,
    tokenizer: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    curves: Sequence[str] = (),
) -> list[str]:
    """How the process of a saved predictor is started; ``curves`` are features that it tells."""
    line = [sys.executable, "-m", "lengthwise.policies.plugins.predicting", folder]
    line += ["--tokenizer", tokenizer]
    if revision:
        line += ["--revision", revision]
    if curves:
        line += ["--curves", ",".join(curves)]
    return [*line, "--trust-remote-code"] if trust_remote_code else line


def main() -> None:
    """Reads prompts from stdin and writes predictions to stdout until stdin ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--revision")
    parser.add_argument("--trust-remote-code", action="store_true")
    parser.add_argument("--curves", type=lambda names: names.split(","), default=[])
    options = parser.parse_args()
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get between the frames
    try:
        predictor = saved_predictor(options.folder)
        read = _reader(options) if "prompt" in predictor.needs else None
        _predict(predictor, read, [(0, [0], {})], options.curves)
    except Exception as error:
        _say(out, {"error": f"{error}" or repr(error)})
        return
    _say(out, {"needs": sorted(predictor.needs), "curves": options.curves})
    asked: queue.SimpleQueue[Asked | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(asked,), daemon=True).start()
    while (first := asked.get()) is not None:
        batch = [first]
        while len(batch) < BATCH and not asked.empty():
            more = asked.get()
            if more is None:
                asked.put(None)  # the end, once these are answered
                break
            batch.append(more)
        said = _predict_each(predictor, read, batch, options.curves)
        for (sequence, *_), row in zip(batch, said, strict=True):
            out.write(TELL.pack(sequence, *row[:TOLD]) + row[TOLD:].tobytes())
        out.flush()


def _say(out: BinaryIO, message: dict[str, Any]) -> None:
    out.write(json.dumps(message).encode() + b"\n")
    out.flush()


def _listen(asked: queue.SimpleQueue[Asked | None]) -> None:
    """Reads frames until there are no more; when it fails, too, that is the process's end.

    The engine then starts another.
    """
    pipe = sys.stdin.buffer
    try:
        while len(frame := pipe.read(ASK.size)) == ASK.size:
            sequence, length, known = ASK.unpack(frame)
            tokens = array.array("i", pipe.read(4 * length))
            asked.put((sequence, tokens.tolist(), json.loads(pipe.read(known)) if known else {}))
    finally:
        asked.put(None)


def _reader(options: argparse.Namespace) -> PromptReader:
    return PromptReader.load(
        options.tokenizer, revision=options.revision, trust_remote_code=options.trust_remote_code
    )


def _predict(
    predictor: Any, read: PromptReader | None, batch: list[Asked], curves: Sequence[str]
) -> NDArray[np.float64]:
    """What is said of n prompts: the tokens, their interval, the curves, (n, 3 + curves x K)."""
    prompts = [prompt for _, prompt, _ in batch]
    served = [Served("", {}) if read is None else read.served(prompt) for prompt in prompts]
    rows = zip(batch, served, strict=True)
    context = Context.each(with_chat(known, one.told) for (*_, known), one in rows)
    predicted = predictor.predict(
        [one.text for one in served],
        prompt_tokens=[len(p) for p in prompts],
        **given(predictor, context),
    )
    tokens = predicted.predicted_tokens
    said = np.full((len(prompts), TOLD + len(curves) * POINTS), np.nan)
    said[:, 1:TOLD] = intervals(predicted)
    said[:, 0] = np.where(abstained(predicted), -tokens, tokens)
    if not predicted.certain:
        for k, name in enumerate(curves):
            curve = predicted.curve(name)
            said[:, TOLD + k * POINTS : TOLD + (k + 1) * POINTS] = curve.values[curve.row]
    return said


def _predict_each(
    predictor: Any, read: PromptReader | None, batch: list[Asked], curves: Sequence[str]
) -> NDArray[np.float64]:
    """A batch; should it fail, one by one, so that a bad prompt spoils no other's prediction."""
    try:
        return _predict(predictor, read, batch, curves)
    except Exception as error:
        if len(batch) == 1:
            print(f"lengthwise predictor: {error!r}", file=sys.stderr)
            return np.full((1, TOLD + len(curves) * POINTS), np.nan)
        each = [_predict_each(predictor, read, [one], curves) for one in batch]
        return np.concatenate(each)


if __name__ == "__main__":
    main()
