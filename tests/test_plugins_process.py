"""The predictor's process and who talks to it, each by hand: frames, batches, ends, budgets."""

from __future__ import annotations

import argparse
import array
import asyncio
import io
import json
import math
import os
import queue
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lengthwise.curves import RequestCurve
from lengthwise.errors import InputError
from lengthwise.policies.plugins import predicting, predictor_process, saved, threads
from lengthwise.policies.plugins.accuracy import LEVEL
from lengthwise.policies.plugins.budget import Budget
from lengthwise.policies.plugins.metrics import Counters
from lengthwise.policies.plugins.predictor_process import Answer, PredictorProcess
from lengthwise.policies.plugins.threads import Aside, Exited, keep
from lengthwise.prediction import CURVES, EDGES, Prediction

POINTS = len(EDGES)


def spread(tokens: Any) -> Prediction:
    return Prediction.distribution(np.outer(tokens, [0.5, 1.0, 2.0]), [0.05, 0.5, 0.95])


class Doubles:
    """Says twice the prompt's tokens; what is odd it abstains from; of 13 tokens it fails."""

    needs, uses = frozenset({"prompt_tokens"}), frozenset({"max_tokens", "session_id"})

    def __init__(self) -> None:
        self.asked: list[tuple[list[str], list[int], Any]] = []

    def predict(self, prompts: Any, *, prompt_tokens: Any, context: Any) -> Prediction:
        self.asked.append((list(prompts), list(prompt_tokens), context))
        if 13 in prompt_tokens:
            raise ValueError("thirteen")
        told = 2.0 * np.asarray(prompt_tokens)
        return spread(told).abstaining(np.asarray(prompt_tokens) % 2 == 1, spread(99.0))


def frame(sequence: int, tokens: list[int], known: dict[str, Any] | None = None) -> bytes:
    more = json.dumps(known).encode() if known else b""
    head = struct.pack("<qqq", sequence, len(tokens), len(more))
    return head + array.array("i", tokens).tobytes() + more


def served(
    monkeypatch: pytest.MonkeyPatch, predictor: Any, data: bytes, *curves: str
) -> tuple[dict[str, Any], bytes]:
    """What the process says first, and its answers, given all that it is ever asked."""
    out = io.BytesIO()
    swapped: list[tuple[int, int]] = []
    fake = SimpleNamespace(
        dup=lambda number: 100 + number, fdopen=lambda number, mode: {101: out}[number],
        dup2=lambda old, new: swapped.append((old, new)),
    )  # fmt: skip
    monkeypatch.setattr(predicting, "os", fake)
    monkeypatch.setattr(predicting, "saved_predictor", lambda folder: {"D": predictor}[folder])
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))

    class AtOnce(threading.Thread):
        def start(self) -> None:
            assert self.daemon  # the process ends though nobody closes its stdin
            self.run()

    monkeypatch.setattr(predicting, "threading", SimpleNamespace(Thread=AtOnce))
    more = ["--curves", ",".join(curves)] if curves else []
    monkeypatch.setattr(sys, "argv", ["predicting", "D", "--tokenizer", "T", *more])
    predicting.main()
    assert swapped == [(2, 1)]  # what libraries print goes where errors go
    first, _, rest = out.getvalue().partition(b"\n")
    return json.loads(first), rest


def test_what_a_process_is_started_with() -> None:
    plain = [sys.executable, "-m", "lengthwise.policies.plugins.predicting", "F", "--tokenizer"]
    assert predicting.command("F", tokenizer="T") == [*plain, "T"]
    assert predicting.command(
        "F", tokenizer="T", revision="r", trust_remote_code=True, curves=["a", "b"]
    ) == [*plain, "T", "--revision", "r", "--curves", "a,b", "--trust-remote-code"]


def test_frames_in_and_frames_out(monkeypatch: pytest.MonkeyPatch) -> None:
    names = list(CURVES)[:2]
    made = Doubles()
    data = frame(5, [1, 2]) + frame(7, [1] * 3, {"max_tokens": 9.0, "session_id": "s"})
    # the last frame is cut short, and nobody's
    first, said = served(monkeypatch, made, data + frame(9, [1] * 4)[:20], *names)
    assert first == {"needs": ["prompt_tokens"], "curves": names}
    assert made.asked[0][:2] == ([""], [1])  # before it is ready, one of its own
    size = 32 + 2 * 8 * POINTS
    assert len(said) == 2 * size
    wanted = spread([4.0, 6.0])
    typical = spread(99.0).predicted_tokens[0]
    rows = [said[k * size : (k + 1) * size] for k in range(2)]
    told = [struct.unpack_from("<qddd", row) for row in rows]
    low, high = wanted.interval(LEVEL)
    assert told[0] == (
        5,
        pytest.approx(wanted.predicted_tokens[0]),
        pytest.approx(low[0]),
        pytest.approx(high[0]),
    )
    assert told[1][:2] == (7, pytest.approx(-typical))  # it abstained
    for k, name in enumerate(names):
        curve = wanted.curve(name)
        points = np.frombuffer(rows[0], np.float64, POINTS, 32 + k * 8 * POINTS)
        np.testing.assert_allclose(points, curve.values[curve.row[0]])
    context = made.asked[1][2]
    assert context.max_tokens.tolist()[1] == 9.0 and context.session_id[1] == "s"


def test_a_batch_is_what_has_arrived_up_to_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Doubles()
    data = b"".join(frame(k, [0] * (2 * k + 2)) for k in range(70))
    _, said = served(monkeypatch, made, data)
    assert [len(asked[0]) for asked in made.asked] == [1, 64, 6]
    told = [struct.unpack_from("<qddd", said, 32 * k) for k in range(70)]
    assert len(said) == 70 * 32 and predicting.BATCH == 64
    assert [one[0] for one in told] == list(range(70))
    lengths = spread([4.0 * k + 4 for k in range(70)]).predicted_tokens
    assert [one[1] for one in told] == pytest.approx(lengths.tolist())
    # a prompt that fails spoils no other, and none is said of it
    made = Doubles()
    _, said = served(monkeypatch, made, frame(0, [0] * 4) + frame(1, [0] * 13), *list(CURVES)[:1])
    good, bad = said[: len(said) // 2], said[len(said) // 2 :]
    assert struct.unpack_from("<qd", good) == (0, pytest.approx(lengths[1]))
    assert struct.unpack_from("<q", bad) == (1,)
    assert np.isnan(np.frombuffer(bad, np.float64, -1, 8)).all()
    assert len(bad) == 32 + 8 * POINTS


def test_lengths_without_a_distribution_have_neither_interval_nor_curve() -> None:
    class Exact(Doubles):
        def predict(self, prompts: Any, *, prompt_tokens: Any, context: Any) -> Prediction:
            return Prediction.exact(2.0 * np.asarray(prompt_tokens))

    found = predicting._predict(Exact(), None, [(0, [0] * 4, {}), (1, [], {})], ["a"])
    assert found.shape == (2, 3 + POINTS) and found[0, 0] == 8.0
    assert np.isnan(found[:, 1:]).all()


@pytest.mark.parametrize("error", [ValueError("no such layer"), ValueError()])
def test_a_predictor_that_fails_at_once_is_told(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    class Fails(Doubles):
        def predict(self, *given: Any, **more: Any) -> Any:
            raise error

    first, said = served(monkeypatch, Fails(), frame(1, [2]))
    assert first == {"error": f"{error}" or "ValueError()"} and said == b""


def test_a_predictor_that_reads_texts_gets_them_of_the_tokenizer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Reads(Doubles):
        needs = frozenset({"prompt", "prompt_tokens"})

    asked: list[Any] = []

    class Reader:
        def served(self, tokens: list[int]) -> Any:
            return SimpleNamespace(text=f"<{len(tokens)}>", told={"tools": 1.0})

    def load(name: str, **options: Any) -> Reader:
        asked.append((name, options))
        return Reader()

    monkeypatch.setattr(predicting, "PromptReader", SimpleNamespace(load=load))
    made = Reads()
    first, _ = served(monkeypatch, made, frame(1, [2, 2]))
    assert first["needs"] == ["prompt", "prompt_tokens"]
    assert made.asked[-1][:2] == (["<2>"], [2])
    assert asked == [("T", {"revision": None, "trust_remote_code": False})]
    options = argparse.Namespace(tokenizer="X", revision="r", trust_remote_code=True)
    predicting._reader(options)
    assert asked[-1] == ("X", {"revision": "r", "trust_remote_code": True})


def test_what_is_no_frame_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: queue.SimpleQueue[Any] = queue.SimpleQueue()
    broken = struct.pack("<qqq", 1, 0, 3) + b"{{{" + frame(2, [1])
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(frame(0, [7]) + broken)))
    with pytest.raises(ValueError):
        predicting._listen(asked)
    assert asked.get() == (0, [7], {}) and asked.get() is None and asked.empty()


# Saved predictors


def test_a_saved_predictor_reads_what_engines_know(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr(saved, "loader", lambda kind: lambda folder: made[-1])
    made.append(None)
    with pytest.raises(InputError, match="predictor 'F' is none"):
        saved.saved_predictor("F")
    made.append(SimpleNamespace(needs=frozenset({"hidden", "answer", "prompt"})))
    with pytest.raises(InputError, match="predictor 'F' needs answer, hidden, which no engine"):
        saved.saved_predictor("F")
    for needs in ((), ("prompt",), ("prompt", "prompt_tokens")):
        made.append(SimpleNamespace(needs=frozenset(needs)))
        assert saved.saved_predictor("F") is made[-1]
    made.append(SimpleNamespace(needs=frozenset(), stream=lambda: "one by one"))
    streaming: Any = saved.saved_predictor("F")
    assert streaming == "one by one"


def test_what_is_read_of_a_prediction_by_hand() -> None:
    exact, wide = Prediction.exact([5.0, 6.0]), spread([5.0, 6.0])
    assert np.isnan(saved.intervals(exact)).all() and saved.intervals(exact).shape == (2, 2)
    low, high = wide.interval(LEVEL)
    np.testing.assert_array_equal(saved.intervals(wide), np.column_stack([low, high]))
    assert saved.abstained(exact).tolist() == [False, False]
    none = wide.abstaining(np.array([True, False]), spread(9.0))
    assert saved.abstained(none).tolist() == [True, False]
    name = "gittins_index"
    assert saved.curves_of(exact, [name]) == {}
    found = saved.curves_of(spread([8.0]), ["prompt_tokens", name])
    assert list(found) == [name]
    curve = spread([8.0]).curve(name)
    assert found[name].at(3) == pytest.approx(curve.at(np.array([0]), [3])[0])
    counters = Counters()
    saved.count_abstained(counters, 0)
    assert not counters.counts
    saved.count_abstained(counters, 3)
    assert counters.counts == {("abstained", "predictor"): 3}


# Who talks to the process


class Child:
    """A process whose pipes are the test's."""

    def __init__(self) -> None:
        self.pipe, self.says = os.pipe()
        self.stdout = os.fdopen(self.pipe, "rb", 0)
        self.stdin = io.BytesIO()
        self.done: list[str] = []

    def end(self) -> None:
        os.close(self.says)
        self.stdout.close()

    def kill(self) -> None:
        self.done.append("kill")

    def wait(self) -> None:
        self.done.append("wait")


class Talks(PredictorProcess):
    """One that starts no process and no threads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *curves: str) -> None:
        self.kept: list[tuple[str, Any]] = []
        self.starts: list[Any] = []
        self.children: list[Child] = []
        self.now, self.counts = [0.0], Counters()
        self.told_curves = list(curves)
        joined = SimpleNamespace(join=lambda timeout: self.kept.append(("joined", timeout)))

        def kept(name: str, work: Any, counters: Any, closed: Any) -> Any:
            self.kept.append((name, work))
            return joined

        monkeypatch.setattr(predictor_process, "keep", kept)
        super().__init__(["line"], self.counts, lambda: self.now[0])

    def _start(self) -> Any:
        self._curves = self.told_curves
        if self.starts:
            raise self.starts.pop(0)
        self.children.append(Child())
        return self.children[-1]


@contextmanager
def talks(monkeypatch: pytest.MonkeyPatch, *curves: str) -> Iterator[Talks]:
    made = Talks(monkeypatch, *curves)
    yield made
    for child in made.children:
        child.end()


def test_two_threads_are_kept_and_close_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    with talks(monkeypatch) as made:
        assert [name for name, _ in made.kept] == ["predictor", "predictor-writer"]
        assert made.kept[0][1] == made._supervise and made.kept[1][1] == made._write
        assert made.up and made.counts.gauges["predictor_up", "predictor"] == 1.0
        child: Any = made._child
        made.close()
        assert child.done == ["kill"] and made._closed.is_set()
        assert made.kept[2:] == [("joined", predictor_process.STUCK_S)]
    made._child = None
    made.close()


def test_prompts_wait_up_to_a_backlog_and_are_answered_at_once_beyond_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(predictor_process, "BACKLOG", 2)
    with talks(monkeypatch) as made:
        made.now[0] = 3.0
        for sequence in range(3):
            made.send(sequence, [sequence], b"k")
        assert [made._prompts.get() for _ in range(2)] == [(0, [0], b"k"), (1, [1], b"k")]
        (lost,) = made.received()
        assert (lost.sequence, lost.at_s) == (2, 3.0) and math.isnan(lost.tokens)
        assert lost.curves == {} and all(map(math.isnan, lost.interval))
        made.up = False
        made.send(7, [1])
        assert made._prompts.empty() and made.received()[0].sequence == 7
        assert made.received() == []


def test_answers_are_read_in_any_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a", "b"]
    with talks(monkeypatch, *names) as made:
        child: Any = made._child
        first = [*range(POINTS)], [float(-k) for k in range(POINTS)]
        frames = [
            struct.pack("<qddd", 1, 30.0, 10.0, 50.0)
            + b"".join(array.array("d", values).tobytes() for values in first),
            struct.pack("<qddd", 2, -7.0, math.nan, math.nan)
            + array.array("d", [math.nan] * 2 * POINTS).tobytes(),
            struct.pack("<qddd", 3, 1.0, 1.0, 1.0) + bytes(16 * POINTS),
        ]
        made._owed = {1: 0.0, 2: 0.0, 3: 0.0, 4: 0.0}
        made.now[0] = 2.5
        data = b"".join(frames)[:-1]  # the last never ends
        reads = [data[:50], data[50:60], data[60:]]
        monkeypatch.setattr(
            predictor_process, "os",
            SimpleNamespace(read=lambda pipe, most: reads.pop(0) if reads else b""),
        )  # fmt: skip
        ready = [True, False, True, True, True]
        waited: list[Any] = []

        def readable(pipe: int, timeout_s: float) -> bool:
            waited.append((pipe == child.pipe, timeout_s))
            return ready.pop(0)

        monkeypatch.setattr(predictor_process, "_readable", readable)
        made._listen(child)  # until its end
        assert waited == [(True, predictor_process.LOOK_S)] * 5 and list(made._owed) == [3, 4]
        one, two = made.received()
        assert one[:3] == (1, 30.0, 2.5) and one.interval == (10.0, 50.0)
        assert list(one.curves) == names
        edges = EDGES.tolist()
        for name, values in zip(names, first, strict=True):
            wanted = RequestCurve(edges, [float(v) for v in values])
            assert [one.curves[name].at(k) for k in (0, 3, 40)] == [
                wanted.at(k) for k in (0, 3, 40)
            ]
        assert two[:2] == (2, -7.0) and two.curves == {}


def test_a_process_that_owes_an_answer_too_long_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    with talks(monkeypatch) as made:
        made.now[0] = 1e9
        assert not made._stuck()
        made._owed = {4: 1e9 - 10.0, 5: 1e9 - 90.0}  # oldest first
        assert not made._stuck()
        made.now[0] += 0.5
        assert made._stuck()
        listened: list[Any] = []
        monkeypatch.setattr(predictor_process, "_readable", lambda *a: listened.append(a))
        made._listen(made._child)  # type: ignore[arg-type]
        made._owed = {}
        made._closed.set()
        made._listen(made._child)  # type: ignore[arg-type]
        assert listened == []


def test_what_a_process_that_ended_owed_is_answered_with_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with talks(monkeypatch) as made:
        child: Any = made._child
        made._owed = {4: 0.0, 6: 0.0}
        made._ended(child)
        assert not made.up and made._child is None and made._owed == {}
        assert child.done == ["kill", "wait"] and child.stdin.closed and child.stdout.closed
        assert [one.sequence for one in made.received()] == [4, 6]
        assert made.counts.gauges["predictor_up", "predictor"] == 0.0
        assert made.counts.counts == {("restarts", "predictor"): 1}
        assert caplog.text.count("ended, or was stuck, and starts again") == 1
        made._closed.set()  # on purpose
        made._ended(child)
        assert made.counts.counts == {("restarts", "predictor"): 1}


def test_a_process_is_started_again_within_its_budget(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with talks(monkeypatch) as made:
        done: list[str] = []
        allowed = [True, False, True]

        def listen(child: Any) -> None:
            done.append("listens")
            if len(done) == 1:
                raise OSError("its pipe")
            made._closed.set()

        monkeypatch.setattr(made, "_listen", listen)

        def ended(child: Any) -> None:
            done.append("ended")
            made._child = None

        monkeypatch.setattr(made, "_ended", ended)
        monkeypatch.setattr(made._budget, "take", lambda: allowed.pop(0))
        waited: list[float] = []
        wait = made._closed.wait

        def waits(seconds: float) -> bool:
            waited.append(seconds)
            return wait(0)

        monkeypatch.setattr(made._closed, "wait", waits)
        with pytest.raises(OSError, match="its pipe"):  # its thread is kept, and runs it anew
            made._supervise()
        made.starts = [InputError("no memory")]
        made.up = False
        made._supervise()
        assert done == ["listens", "ended", "listens", "ended"]
        assert waited == [predictor_process.LOOK_S] and allowed == []
        assert "no memory; it is tried again" in caplog.text
        assert "failed 3 times within 600 s and stays off" in caplog.text
        assert made.up and made.counts.gauges["predictor_up", "predictor"] == 1.0


def test_a_failed_start_leaves_it_down(monkeypatch: pytest.MonkeyPatch) -> None:
    with talks(monkeypatch) as made:
        made.up, made.starts = False, [InputError("no memory")]
        made.counts.gauges.clear()
        made._again()
        assert not made.up and not made.counts.gauges
        made._again()
        assert made.up and made.counts.gauges["predictor_up", "predictor"] == 1.0


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ('echo \'{"error": "no such folder"}\'', "^predictor: no such folder$"),
        ("echo '[1]'", r"^predictor: \[1\]$"),
        ("echo nothing of it; sleep 20", "its process did not start$"),
        ("printf '{\"needs'", "its process did not start$"),
        ("printf '{\"needs'; sleep 20", "it took too long to load$"),
        ("printf '%0200d' 0; sleep 20", "it took too long to load$"),
    ],
)
def test_what_a_process_says_first(monkeypatch: pytest.MonkeyPatch, script: str, said: str) -> None:
    monkeypatch.setattr(predictor_process, "START_S", 0.3)
    monkeypatch.setattr(predictor_process, "LOOK_S", 0.02)
    monkeypatch.setattr(predictor_process, "LONGEST_LINE", 100)
    with pytest.raises(InputError, match=said):
        PredictorProcess(["sh", "-c", script], Counters())


def test_a_process_that_is_ready_says_its_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="can't start its process"):
        PredictorProcess(["/nowhere/at/all"], Counters())
    monkeypatch.setattr(predictor_process, "LOOK_S", 0.02)
    made = PredictorProcess(["sh", "-c", 'echo \'{"curves": ["a"]}\'; cat'], Counters())
    assert made._curves == ["a"] and made.up
    made.close()
    assert made._closed.is_set() and not made._thread.is_alive()
    assert (predictor_process.START_S, predictor_process.STUCK_S) == (120.0, 10.0)
    assert (predictor_process.BACKLOG, predictor_process.LONGEST_LINE) == (4096, 65536)


def test_a_prompt_is_told_in_one_frame_and_owed_from_then(monkeypatch: pytest.MonkeyPatch) -> None:
    with talks(monkeypatch) as made:
        child: Any = made._child
        made.now[0] = 7.0
        made._tell(3, [1, 2, 2**31 - 1], b"{}")
        assert (
            child.stdin.getvalue()
            == struct.pack("<qqq", 3, 3, 2) + array.array("i", [1, 2, 2**31 - 1]).tobytes() + b"{}"
        )
        assert made._owed == {3: 7.0}
        made._owed = {}
        with pytest.raises(OverflowError):
            made._tell(4, [2**31], b"")
        child.stdin = None
        with pytest.raises(OSError, match="not there"):
            made._tell(4, [1], b"")
        assert made._owed == {}
        made._child = None
        with pytest.raises(OSError, match="not there"):
            made._tell(4, [1], b"")


def test_prompts_that_can_t_be_sent_are_answered_with_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with talks(monkeypatch) as made:
        told: list[Any] = []
        monkeypatch.setattr(predictor_process, "LOOK_S", 0.001)

        def tell(sequence: int, prompt: Any, known: bytes) -> None:
            told.append((sequence, prompt, known))
            made._owed[sequence] = 0.0
            if sequence == 3:
                made._closed.set()
            else:
                raise BrokenPipeError

        monkeypatch.setattr(made, "_tell", tell)

        def ask() -> None:
            for k in (1, 2, 3):
                made.send(k, [k], b"k")

        timer = threading.Timer(0.01, ask)
        timer.start()  # it waits until somebody asks
        made._write()
        timer.join()
        assert told == [(k, [k], b"k") for k in (1, 2, 3)]
        assert [one.sequence for one in made.received()] == [1, 2]
        assert list(made._owed) == [3]
        assert caplog.text.count("a prompt was not sent: BrokenPipeError()") == 1


def test_a_pipe_is_readable_when_something_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    there, end = os.pipe()
    assert not predictor_process._readable(there, 0.0)
    os.write(end, b"x")
    assert predictor_process._readable(there, 60.0)
    for pipe in (there, end):
        os.close(pipe)
    asked: list[Any] = []

    def wait(milliseconds: float) -> list[Any]:
        asked.append(milliseconds)
        return []

    poll = SimpleNamespace(register=lambda *a: asked.append(a), poll=wait)
    fake = SimpleNamespace(poll=lambda: poll, POLLIN="in")
    monkeypatch.setattr(predictor_process, "select", fake)
    assert not predictor_process._readable(3, 0.25)
    assert asked == [(3, "in"), 250.0]


# Budgets and threads


def test_a_budget_is_of_any_such_time() -> None:
    now = [0.0]
    made = Budget(lambda: now[0], times=2, window_s=10.0)
    taken = []
    for when in (0.0, 6.0, 9.9, 10.0, 11.0, 15.9, 16.0, 20.0):
        now[0] = when
        taken.append(made.take())
    assert taken == [True, True, False, True, False, False, True, True]
    plain = Budget(lambda: now[0])
    assert [plain.take() for _ in range(4)] == [True, True, True, False]
    now[0] += 599.9
    assert not plain.take()
    now[0] += 0.2
    assert plain.take()


def runs(work: Callable[[], None], **more: Any) -> tuple[Counters, threading.Event]:
    counters, closed = Counters(), threading.Event()
    thread = keep("part", work, counters, closed, **more)
    assert thread.daemon and thread.name == "lengthwise-part"
    thread.join(10)
    assert not thread.is_alive()
    return counters, closed


def test_a_thread_that_fails_goes_on_and_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    def fails_twice() -> None:
        calls.append(1)
        if len(calls) < 3:
            raise SystemExit("of a library")

    counters, _ = runs(fails_twice)
    assert len(calls) == 3 and counters.counts == {("restarts", "part-thread"): 2}
    assert caplog.text.count("the part thread failed, and goes on: SystemExit") == 1


def test_a_thread_without_a_budget_waits_for_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(threads, "LOOK_S", 0.001)
    looks = [0]

    class Later(Budget):
        def take(self) -> bool:
            looks[0] += 1
            return looks[0] % 4 == 0

    calls = []

    def fails_once() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError

    counters, _ = runs(fails_once, budget=Later(times=7, window_s=30.0))
    assert len(calls) == 2 and looks == [4]
    assert counters.counts == {("restarts", "part-thread"): 1}
    assert caplog.text.count("failed more than 7 times within 30 s and stays off") == 1
    # it ends where nobody needs it any more, however long it would still wait
    monkeypatch.setattr(threads, "LOOK_S", 60.0)
    closed = threading.Event()
    thread = keep("part", lambda: 1 / 0, Counters(), closed, Budget(times=0))  # type: ignore[arg-type]
    closed.set()
    thread.join(10)
    assert not thread.is_alive()


def test_calls_aside_are_answered_late_or_never() -> None:
    gates = [threading.Event() for _ in range(8)]
    began: list[Any] = []
    now, counters = [0.0], Counters()

    def work(value: Any) -> Any:
        began.append(value)
        if isinstance(value, BaseException):
            raise value
        if isinstance(value, int):
            assert gates[value].wait(20)
        return value

    made = Aside("part", work, counters, lambda: now[0])

    async def run() -> None:
        assert await made.ask("a", 5) == "a"
        with pytest.raises(ZeroDivisionError):
            await made.ask(ZeroDivisionError(), 5)
        with pytest.raises(Exited):  # what would end the event loop
            await made.ask(SystemExit(1), 5)
        assert counters.counts == {}
        for k in range(threads.AT_ONCE):
            with pytest.raises(TimeoutError):
                await made.ask(k, 0.03)
        # a call that nobody waits for any more is not begun
        with pytest.raises(TimeoutError):
            await made.ask("later", 0.03)
        now[0] = threads.STUCK_S  # not longer than that
        waits = asyncio.create_task(made.ask("b", 5))
        await asyncio.sleep(0.01)
        assert counters.counts == {} and "b" not in began
        gates[0].set()
        assert await waits == "b" and "later" not in began
        now[0] += 0.1
        # three hang; as many are replaced as may be started again
        assert await made.ask("c", 5) == "c"
        assert counters.counts == {("restarts", "part-thread"): 3}
        for k in range(4, 8):
            with pytest.raises(TimeoutError):
                await made.ask(k, 0.03)
        now[0] += 10.1
        with pytest.raises(TimeoutError, match="all its threads hang"):
            await made.ask("d", 5)
        assert "d" not in began
        gates[4].set()
        while made._stuck() == 4:
            await asyncio.sleep(0.005)
        assert await made.ask("e", 5) == "e"
        assert counters.counts == {("restarts", "part-thread"): 3}

    asyncio.run(run())
    for gate in gates:
        gate.set()
    assert (threads.AT_ONCE, threads.STUCK_S) == (4, 10.0)


def test_who_gives_up_a_call_is_given_up_though_its_answer_is_there() -> None:
    made = Aside("part", lambda value: value, Counters())

    async def run() -> None:
        task = asyncio.create_task(made.ask(1, 5))
        while not task.done():
            await asyncio.sleep(0)
            waits = getattr(task, "_fut_waiter", None)
            if waits is not None and waits.done():
                task.cancel()  # in the moment between the answer and its caller
                break
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert Answer(1, 2.0, 3.0).curves == {}
