"""Predicted lengths in an engine: who is asked, and what happens when nobody answers in time."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lengthwise.errors import InputError
from lengthwise.policies.plugins import predicting
from lengthwise.policies.plugins.metrics import Counters
from lengthwise.policies.plugins.predicting import PredictorProcess, command
from lengthwise.policies.plugins.settings import Settings
from lengthwise.policies.plugins.vllm import lengths
from lengthwise.policies.plugins.vllm.entry import Entry
from lengthwise.policies.plugins.vllm.lengths import Lengths
from lengthwise.predictors import make_predictor
from tests import word_tokenizer

FAKE = Path(__file__).parent / "engines" / "fake_predictor.py"
MODEL = SimpleNamespace(tokenizer="none", tokenizer_revision=None, trust_remote_code=False)


def entry(sequence: int, prompt: int) -> Entry:
    request = SimpleNamespace(prompt_token_ids=list(range(prompt)))
    return Entry(
        request=request, sequence=sequence, arrival_s=0.0, predicted_tokens=256.0, priority=0,
        deadline_s=float("inf"),
    )  # fmt: skip


@contextmanager
def asked(
    monkeypatch: pytest.MonkeyPatch, how: str, **settings: Any
) -> Iterator[tuple[Lengths, Counters]]:
    monkeypatch.setattr(lengths, "command", lambda *a, **k: [sys.executable, str(FAKE), how])
    counters = Counters()
    made = Lengths(Settings(policy="sjf", predictor="x", **settings), MODEL, counters)
    try:
        yield made, counters
    finally:
        made.close()


def until(done: Callable[[], bool], lengths: Lengths, most_s: float = 20.0) -> None:
    """Polls for news as an engine's steps would."""
    deadline = time.monotonic() + most_s
    while not done():
        assert time.monotonic() < deadline, "nothing happened"
        lengths.news()
        time.sleep(0.01)


def test_the_client_is_asked_first_then_the_predictor(monkeypatch: pytest.MonkeyPatch) -> None:
    with asked(monkeypatch, "works", predict_timeout_s=20.0) as (made, counters):
        told, guessed = entry(0, 5), entry(1, 7)
        made.ask(told, 99, needed=True)
        made.ask(guessed, None, needed=True)
        assert (told.state, told.predicted_tokens) == ("ready", 99.0)
        assert guessed.state == "pending"
        until(lambda: guessed.state == "ready", made)
        assert guessed.predicted_tokens == 14.0
        assert counters.counts == {("predictions", "client"): 1, ("predictions", "predictor"): 1}


def test_a_predictor_that_raises_costs_that_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with asked(monkeypatch, "raises", predict_timeout_s=20.0) as (made, counters):
        entries = [entry(i, n) for i, n in enumerate((4, 13, 6))]
        for e in entries:
            made.ask(e, None, needed=True)
        until(lambda: all(e.state != "pending" for e in entries), made)
        assert [e.state for e in entries] == ["ready", "failed", "ready"]
        assert counters.counts["fallbacks", "predictor-error"] == 1


@pytest.mark.parametrize("how", ["hangs", "dies"])
def test_a_silent_predictor_means_fcfs_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    monkeypatch.setattr(predicting, "RESTARTS", 0)
    with (
        caplog.at_level(logging.WARNING, "lengthwise"),
        asked(monkeypatch, how, predict_timeout_s=0.3) as (made, counters),
    ):
        entries = [entry(i, 5) for i in range(6)]
        made.ask(entries[0], None, needed=True)
        until(lambda: entries[0].state != "pending", made)
        start = time.monotonic()
        for e in entries[1:]:
            made.ask(e, None, needed=True)
        assert time.monotonic() - start < 0.2  # nobody waits for it
        until(lambda: all(e.state != "pending" for e in entries), made)
        assert all(e.state == "failed" for e in entries[1:])
        # A process that died may be known to be off before the last requests are asked about.
        reasons = ("predictor-timeout", "predictor-off")
        failed = sum(e.state == "failed" for e in entries)  # what hangs has answered the first
        assert sum(counters.counts["fallbacks", reason] for reason in reasons) == failed
    late = [r for r in caplog.records if "predictor-timeout" in r.getMessage()]
    assert len(late) == 1


def test_a_dead_predictor_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with asked(monkeypatch, "works", predict_timeout_s=20.0) as (made, _):
        process = made._process
        assert process is not None
        process._child.kill()
        process._child.wait()
        answered = []
        deadline = time.monotonic() + 20
        while not answered and time.monotonic() < deadline:
            process.send(7, [1, 2, 3])
            time.sleep(0.2)
            answered = process.received()
        assert answered[0] == (7, 6.0)


def test_what_is_no_length_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    with asked(monkeypatch, "babbles", predict_timeout_s=20.0) as (made, _):
        e = entry(0, 5)
        made.ask(e, None, needed=True)
        until(lambda: e.state != "pending", made)
        assert (e.state, e.predicted_tokens) == ("failed", 256.0)


def test_a_predictor_that_can_t_be_loaded_is_named_at_the_start() -> None:
    with pytest.raises(InputError, match="no such folder"):
        PredictorProcess([sys.executable, str(FAKE), "refuses"], Counters())
    with pytest.raises(InputError, match="'/nowhere' is no saved predictor"):
        PredictorProcess(command("/nowhere", tokenizer="none"), Counters())


def test_a_saved_predictor_answers_as_it_does_here(tmp_path: Path) -> None:
    prompts = [f"{'word ' * n}please" for n in range(1, 41)]
    made = make_predictor("ridge").fit(prompts, np.arange(1, 41) * 5)
    made.save(tmp_path / "predictor")
    tokenizer = word_tokenizer.save(tmp_path / "tokenizer", ["word", "please"])
    ids = [[0] * 3 + [1], [0] * 30 + [1]]
    process = PredictorProcess(
        command(str(tmp_path / "predictor"), tokenizer=str(tokenizer)), Counters()
    )
    try:
        for sequence, prompt in enumerate(ids):
            process.send(sequence, prompt)
        answers: dict[int, float] = {}
        deadline = time.monotonic() + 60
        while len(answers) < 2 and time.monotonic() < deadline:
            answers.update(process.received())
            time.sleep(0.01)
    finally:
        process.close()
    texts = ["word " * n + "please" for n in (3, 30)]
    wanted = made.predict(texts, prompt_tokens=[4, 31]).predicted_tokens
    np.testing.assert_allclose([answers[0], answers[1]], wanted, rtol=1e-9)
