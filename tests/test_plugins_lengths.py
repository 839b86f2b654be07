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

from lengthwise.curves import RequestCurve
from lengthwise.errors import InputError
from lengthwise.policies.plugins import budget, predicting, predictor_process
from lengthwise.policies.plugins.metrics import Counters
from lengthwise.policies.plugins.predicting import command
from lengthwise.policies.plugins.predictor_process import PredictorProcess
from lengthwise.policies.plugins.settings import Settings
from lengthwise.policies.plugins.vllm import lengths
from lengthwise.policies.plugins.vllm.entry import Entry, entry_of
from lengthwise.policies.plugins.vllm.lengths import Lengths
from lengthwise.policies.plugins.vllm.scheduling import PolicyScheduling
from lengthwise.prediction import CURVES, Prediction
from lengthwise.predictors import make_predictor
from tests import word_tokenizer
from tests.engines.fake_scheduler import FakeScheduler, Request, config

FAKE = Path(__file__).parent / "engines" / "fake_predictor.py"
MODEL = SimpleNamespace(
    tokenizer="none", tokenizer_revision=None, trust_remote_code=False, max_model_len=4096
)


def entry(sequence: int, prompt: int, **request_: Any) -> Entry:
    request = SimpleNamespace(
        prompt_token_ids=list(range(prompt)), num_prompt_tokens=prompt, sampling_params=None,
        status=SimpleNamespace(name="FINISHED_STOPPED"), num_output_tokens=9,
    )  # fmt: skip
    vars(request).update(request_)
    return Entry(
        request=request, sequence=sequence, arrival_ps=0, arrival_s=0.0, predicted_tokens=256.0,
        priority=0, deadline_s=float("inf"),
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


def test_what_the_predictor_does_not_know_is_counted_and_is_no_error_of_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with asked(monkeypatch, "abstains", predict_timeout_s=20.0) as (made, counters):
        unknown = [entry(sequence, 7) for sequence in range(2)]
        for one in unknown:
            made.ask(one, None, needed=True)
        until(lambda: all(one.state == "ready" for one in unknown), made)
        assert [(one.predicted_tokens, one.abstained) for one in unknown] == [(14.0, True)] * 2
        for one in unknown:
            made.finished(one)
        assert counters.counts["abstained", "predictor"] == 2
        assert not counters.gauges.keys() & {("recent_tau", "predictor")}
    assert caplog.text.count("too unlike what the predictor was trained on") == 1


def test_a_predictor_that_orders_the_wrong_way_round_is_not_followed_until_it_recovers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The fake says twice the prompt's length: what comes of it is the answer's own affair."""

    def serve(made: Lengths, prompts: list[int], length: Callable[[int], int]) -> list[Entry]:
        entries = [
            entry(n, prompt, num_output_tokens=length(prompt)) for n, prompt in enumerate(prompts)
        ]
        for one in entries:
            made.ask(one, None, needed=True)
        until(lambda: all(one.state != "pending" for one in entries), made)
        for one in entries:
            made.finished(one)
        return entries

    some = list(range(20, 120))
    with asked(monkeypatch, "works", predict_timeout_s=20.0) as (made, counters):
        assert {one.state for one in serve(made, some, lambda prompt: 500 - prompt)} == {"ready"}
        assert counters.gauges["recent_tau", "predictor"] == -1.0
        doubted = serve(made, some * 3, lambda prompt: prompt)
        assert {(one.state, one.predicted_tokens) for one in doubted} == {("failed", 256.0)}
        assert counters.counts["fallbacks", "drift"] == 300
        assert counters.gauges["recent_tau", "predictor"] > 0  # of what it would have said
        assert {one.state for one in serve(made, some, lambda prompt: prompt)} == {"ready"}


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
    monkeypatch.setattr(budget.Budget, "take", lambda self: False)
    with (
        caplog.at_level(logging.WARNING, "lengthwise"),
        asked(monkeypatch, how, predict_timeout_s=0.3) as (made, counters),
    ):
        entries = [entry(i, 5) for i in range(6)]
        made.ask(entries[0], None, needed=True)
        until(lambda: entries[0].state != "pending", made)
        took = []
        for e in entries[1:]:
            start = time.monotonic()
            made.ask(e, None, needed=True)
            took.append(time.monotonic() - start)
        assert min(took) < 0.2  # nobody waits for it, however busy the machine is
        until(lambda: all(e.state != "pending" for e in entries), made)
        assert all(e.state == "failed" for e in entries[1:])
        # A process that died may be known to be off before the last requests are asked about.
        reasons = ("predictor-timeout", "predictor-off", "predictor-error")
        failed = sum(e.state == "failed" for e in entries)  # what hangs has answered the first
        assert sum(counters.counts["fallbacks", reason] for reason in reasons) == failed
    said = [r.getMessage() for r in caplog.records if "got no predicted length" in r.getMessage()]
    assert 0 < len(said) == len(set(said))


class Told:
    """A predictor's process that says what the test says."""

    up = True

    def __init__(self, *given: Any) -> None:
        self.sent: list[int] = []
        self.says: list[predictor_process.Answer] = []

    def send(self, sequence: int, *given: Any) -> None:
        self.sent.append(sequence)

    def received(self) -> list[predictor_process.Answer]:
        said, self.says = self.says, []
        return said

    def close(self) -> None: ...


def test_an_answer_that_is_late_changes_nothing_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second is in time, more is not: the request is served by arrival, and stays so."""
    told, now = Told(), [100.0]
    monkeypatch.setattr(lengths, "PredictorProcess", lambda *given: told)
    monkeypatch.setattr(lengths, "time", SimpleNamespace(monotonic=lambda: now[0]))
    counters = Counters()
    made = Lengths(Settings(policy="sjf", predictor="x", predict_timeout_s=0.5), MODEL, counters)
    early, late = entry(0, 5), entry(1, 5)
    for one in (early, late):
        made.ask(one, None, needed=True)
    assert told.sent == [0, 1]
    now[0] = 100.5
    told.says = [predictor_process.Answer(0, 30.0, 100.4)]
    assert made.news() == [early]
    assert (early.state, early.predicted_tokens, early.source) == ("ready", 30.0, "predictor")
    assert late.state == "pending"
    now[0] = 100.51
    assert made.news() == [late]
    assert late.state == "failed"
    told.says = [predictor_process.Answer(1, 30.0, 100.6)]
    assert made.news() == []
    assert (late.state, late.predicted_tokens, late.source) == ("failed", 256.0, "default")
    assert counters.counts["fallbacks", "predictor-timeout"] == 1
    assert counters.counts["predictions", "predictor"] == 1
    assert not made._asked


def test_one_bad_prompt_spoils_no_other_of_its_batch() -> None:
    class Picky:
        needs = frozenset({"prompt_tokens"})

        def predict(self, prompts: Any, *, prompt_tokens: Any, **rest: Any) -> Any:
            if 13 in list(prompt_tokens):
                raise ValueError("thirteen")
            return Prediction.exact(2.0 * np.asarray(prompt_tokens))

    batch = [(k, [0] * length, {}) for k, length in enumerate((4, 13, 6, 13, 8))]
    said = predicting._predict_each(Picky(), None, batch, ())
    assert said.shape[0] == 5
    assert said[[0, 2, 4], 0].tolist() == [8.0, 12.0, 16.0]
    assert np.isnan(said[[1, 3], 0]).all()
    assert predicting._predict_each(Picky(), None, batch[:1], ()).shape[0] == 1


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
            answered = [a for a in process.received() if a.tokens == a.tokens]
        assert answered[0][:2] == (7, 6.0)


def test_a_predictor_that_dies_now_and_then_is_always_started_again() -> None:
    """Five deaths over an hour of simulated time; then four within a minute, and a rest."""
    now, counters = [0.0], Counters()
    process = PredictorProcess([sys.executable, str(FAKE), "works"], counters, lambda: now[0])

    def killed() -> None:
        child = process._child
        assert child is not None
        child.kill()
        wait_for(lambda: process._child is not child)

    try:
        for _ in range(5):
            killed()
            wait_for(lambda: process.up)
            now[0] += 720.0
        for _ in range(3):
            killed()
            wait_for(lambda: process.up)
        killed()
        time.sleep(1.0)
        assert not process.up and counters.gauges["predictor_up", "predictor"] == 0.0
        process.send(1, [5])
        assert [a.sequence for a in process.received()][-1] == 1  # answered at once: with nothing
        now[0] += 601.0
        wait_for(lambda: process.up)
        assert counters.counts["restarts", "predictor"] == 9
    finally:
        process.close()


def wait_for(done: Callable[[], bool], most_s: float = 20.0) -> None:
    deadline = time.monotonic() + most_s
    while not done():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)


def test_half_a_line_and_half_an_answer_hold_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor_process, "START_S", 1.0)
    with pytest.raises(InputError, match="too long to load"):
        PredictorProcess([sys.executable, str(FAKE), "half-line"], Counters())
    monkeypatch.setattr(predictor_process, "START_S", 120.0)
    monkeypatch.setattr(predictor_process, "STUCK_S", 1.0)
    with asked(monkeypatch, "half-frame", predict_timeout_s=20.0) as (made, counters):
        e = entry(0, 5)
        made.ask(e, None, needed=True)
        until(lambda: e.state == "failed", made)
        assert counters.counts["fallbacks", "predictor-error"] == 1
        assert counters.counts["restarts", "predictor"] == 1


def test_what_is_no_token_costs_that_prompt_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with asked(monkeypatch, "works", predict_timeout_s=20.0) as (made, _):
        odd, even = entry(0, 5), entry(1, 6)
        odd.request.prompt_token_ids = [1, 2**31]
        made.ask(odd, None, needed=True)
        made.ask(even, None, needed=True)
        until(lambda: even.state != "pending" and odd.state != "pending", made)
        assert (odd.state, even.state, even.predicted_tokens) == ("failed", "ready", 12.0)


@pytest.mark.parametrize(
    "said, means",
    [(120, 120), (12.5, 12.5), ("120", 120), (" 7 ", 7), (0.25, 1.0), (1e300, 4091.0)],
)
def test_a_client_s_number_is_a_number(said: Any, means: float) -> None:
    made, counters = Lengths(Settings(policy="sjf"), MODEL, counts := Counters()), counts
    e = entry(0, 5)
    made.ask(e, said, needed=True)
    assert (e.predicted_tokens, e.state, e.source) == (means, "ready", "client")
    assert counters.counts == {("predictions", "client"): 1}


@pytest.mark.parametrize(
    "said",
    [10**400, "9" * 400, float("nan"), float("inf"), -3, 0, True, [7], {}, "", "many", "nan", b"1"],
)
def test_nonsense_from_a_client_is_counted_and_never_raises(said: Any) -> None:
    counters = Counters()
    e = entry(0, 5)
    Lengths(Settings(policy="sjf"), MODEL, counters).ask(e, said, needed=True)
    assert (e.predicted_tokens, e.state) == (256.0, "ready")
    assert counters.counts == {("predictions", "default"): 1, ("ignored", "predicted_tokens"): 1}


def test_clients_need_not_be_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    with asked(monkeypatch, "works", client_lengths=False, predict_timeout_s=20.0) as (made, _):
        e = entry(0, 5)
        made.ask(e, 1, needed=True)
        until(lambda: e.state == "ready", made)
        assert (e.predicted_tokens, e.source) == (10.0, "predictor")


def test_no_length_exceeds_what_the_request_may_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    def limited(sequence: int, prompt: int, most: int | None) -> Entry:
        return entry(sequence, prompt, sampling_params=SimpleNamespace(max_tokens=most))

    with asked(monkeypatch, "works", predict_timeout_s=20.0) as (made, _):
        told, guessed, default = limited(0, 8, 10), limited(1, 8, 10), limited(2, 8, 10)
        made.ask(told, 145, needed=True)
        assert told.predicted_tokens == 10.0
        made.ask(guessed, None, needed=True)
        until(lambda: guessed.state == "ready", made)
        assert guessed.predicted_tokens == 10.0  # the predictor said 16
        made._process = None
        made.ask(default, None, needed=True)
        assert default.predicted_tokens == 10.0
        for prompt, room in ((4090, 6.0), (4096, 1.0), (5000, 1.0)):
            full = limited(3, prompt, None)
            made.ask(full, 100, needed=True)
            assert full.predicted_tokens == room


def test_who_ends_without_an_answer_is_counted_then(monkeypatch: pytest.MonkeyPatch) -> None:
    with asked(monkeypatch, "hangs", predict_timeout_s=3600.0) as (made, counters):
        entries = [entry(i, 5) for i in range(4)]
        for e in entries:
            made.ask(e, None, needed=True)
        until(lambda: entries[0].state == "ready", made)
        for e in entries:
            made.finished(e)
        assert counters.counts["fallbacks", "predictor-timeout"] == 3
        assert not made._asked


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


@pytest.mark.parametrize("target", ["exact", "bucket"])
def test_a_saved_predictor_answers_as_it_does_here(tmp_path: Path, target: str) -> None:
    """Its lengths, and the curves that were asked for."""
    prompts = [f"{'word ' * n}please" for n in range(1, 41)]
    made = make_predictor("ridge", target=target).fit(prompts, np.arange(1, 41) * 5)
    made.save(tmp_path / "predictor")
    tokenizer = word_tokenizer.save(tmp_path / "tokenizer", ["word", "please"])
    ids = [[0] * 3 + [1], [0] * 30 + [1]]
    process = PredictorProcess(
        command(str(tmp_path / "predictor"), tokenizer=str(tokenizer), curves=list(CURVES)[:2]),
        Counters(),
    )
    try:
        for sequence, prompt in enumerate(ids):
            process.send(sequence, prompt)
        answers: dict[int, Any] = {}
        deadline = time.monotonic() + 60
        while len(answers) < 2 and time.monotonic() < deadline:
            answers.update((a.sequence, a) for a in process.received())
            time.sleep(0.01)
    finally:
        process.close()
    texts = ["word " * n + "please" for n in (3, 30)]
    wanted = made.predict(texts, prompt_tokens=[4, 31])
    np.testing.assert_allclose(
        [answers[0].tokens, answers[1].tokens], wanted.predicted_tokens, rtol=1e-9
    )
    run = wanted.of_run()
    for request in range(2):
        assert list(answers[request].curves) == list(CURVES)[:2]
        for name, curve in answers[request].curves.items():
            told = [curve.at(done) for done in (0, 30, 77, 150, 999)]
            there = run.at(name, [request] * 5, [0, 30, 77, 150, 999])
            np.testing.assert_allclose(told, there, rtol=1e-9, err_msg=name)


def test_what_a_client_allows_bounds_what_is_left() -> None:
    one = entry(0, 5, num_output_tokens=30)
    one.curves, one.limit = {"gittins_index": RequestCurve([0.0, 60.0], [100.0, 40.0])}, 90
    assert one.left("gittins_index") == 60.0  # 70, of which 60 may come
    assert one.left("expected_remaining_tokens") == 226.0  # no curve: what is left of the length
    one.request.num_output_tokens = 95
    assert one.left("gittins_index") == 1.0


NO_TIMES = (10**400, 10**5000, float("nan"), [3], {}, "soon", b"1", True)


@pytest.mark.parametrize("said", NO_TIMES, ids=range(len(NO_TIMES)))
def test_a_deadline_that_is_none_is_counted_and_never_raises(said: Any) -> None:
    counters = Counters()
    one = Request("a", sent={"deadline_s": said}, priority=10**400)
    made = entry_of(one, 0, 5.0, counters)
    assert (made.deadline_s, made.priority) == (float("inf"), 0.0)
    assert counters.counts == {("ignored", "deadline_s"): 1}
    assert entry_of(Request("a", sent={"deadline_s": "2.5"}), 0, 5.0, counters).deadline_s == 7.5
    assert entry_of(Request("a", sent=[said]), 0, 5.0, counters).deadline_s == float("inf")


@pytest.mark.parametrize("policy", ["srtf", "hrrn"])
def test_a_request_that_the_plugin_can_t_read_is_served_by_arrival(policy: str) -> None:
    counters, settings = Counters(), Settings(policy=policy)
    made: Any = type("Policy", (PolicyScheduling, FakeScheduler), {})(
        config(seats=1), lengthwise=(settings, settings.load(), counters)
    )
    watched: list[str] = []
    watch = made.lengthwise._guard.watch
    made.lengthwise._guard.watch = lambda one: (watched.append(one.request.request_id), watch(one))
    for name, sent in (("a", 50), ("b", None), ("c", 4)):
        one = Request(name, sent={"predicted_tokens": sent}, limit=None if sent else "most")
        made.add_request(one)
    assert watched == ["a", "b", "c"]  # who can't be read may be sent ahead, too
    while made.requests:
        made.update_from_output(made.schedule(), None)
    assert made.finished == ["c", "a", "b"]  # as after a policy that gives no score
    assert counters.counts["fallbacks", "plugin"] == 1
