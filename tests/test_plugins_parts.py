"""The small parts of plugins, each by hand: lengths, records, loads, settings, metrics."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import random
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from lengthwise.curves import RequestCurve
from lengthwise.errors import InputError, UnknownNameError
from lengthwise.policies import load_policy
from lengthwise.policies.bundle import write_bundle
from lengthwise.policies.plugins import (
    accuracy,
    client,
    litellm,
    part,
    predicting,
    predictor_process,
    prompt_lengths,
    record,
    routing,
    threads,
    waits,
)
from lengthwise.policies.plugins.accuracy import Accuracy
from lengthwise.policies.plugins.calls import Call, call_of
from lengthwise.policies.plugins.metrics import COUNTERS, GAUGES, HISTOGRAMS, Counters
from lengthwise.policies.plugins.predictor_process import Answer
from lengthwise.policies.plugins.priority import priority_for
from lengthwise.policies.plugins.prompt_lengths import PromptLengths
from lengthwise.policies.plugins.ray_serve import PolicyRouting
from lengthwise.policies.plugins.record import Recorder
from lengthwise.policies.plugins.routing import ReplicaRouter
from lengthwise.policies.plugins.scorer import SLOW_ALLOWED, Scorer
from lengthwise.policies.plugins.settings import Settings
from lengthwise.policies.plugins.vllm import lengths
from lengthwise.policies.plugins.vllm.clock import Clock
from lengthwise.policies.plugins.vllm.entry import Entry
from lengthwise.policies.plugins.vllm.lengths import Lengths
from lengthwise.policies.plugins.waits import Waits
from lengthwise.policy import Guard, RoutingPolicy, Score
from lengthwise.prediction import EDGES, Prediction
from tests.engines.odd_requests import RequestRouter, litellm_modules

MODEL = SimpleNamespace(
    tokenizer="tok", tokenizer_revision="rev", trust_remote_code=True, max_model_len=1000,
    model="m",
)  # fmt: skip


class Watched(Counters):
    """Keeps what is observed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str, float]] = []

    def observe(self, name: str, label: str, value: float) -> None:
        self.seen.append((name, label, value))


# Lengths in vLLM


class Process:
    """A predictor's process that says what the test says."""

    up = True

    def __init__(self, *given: Any) -> None:
        self.given = given
        self.sent: list[tuple[Any, ...]] = []
        self.says: list[Answer] = []

    def send(self, *given: Any) -> None:
        self.sent.append(given)

    def received(self) -> list[Answer]:
        said, self.says = self.says, []
        return said

    def close(self) -> None:
        self.up = False


def entry(sequence: int, prompt: int = 5, limit: int | None = None, **more: Any) -> Entry:
    request = SimpleNamespace(
        prompt_token_ids=list(range(prompt)), num_prompt_tokens=prompt,
        sampling_params=SimpleNamespace(max_tokens=limit, extra_args=None),
        status=SimpleNamespace(name="FINISHED_STOPPED"), num_output_tokens=9, **more,
    )  # fmt: skip
    return Entry(
        request=request, sequence=sequence, arrival_ps=0, arrival_s=0.0, predicted_tokens=1.0,
        priority=0, deadline_s=math.inf,
    )  # fmt: skip


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Process:
    made = Process()

    def start(*given: Any) -> Process:
        made.given = given
        return made

    monkeypatch.setattr(lengths, "PredictorProcess", start)
    return made


def asked(process: Process, counters: Counters, **settings: Any) -> Lengths:
    return Lengths(Settings(policy="sjf", predictor="x", **settings), MODEL, counters, ["residual"])


def test_the_predictor_is_started_with_the_model_s_tokenizer(process: Process) -> None:
    asked(process, Counters())
    line = process.given[0]
    assert line[1:] == [
        "-m", "lengthwise.policies.plugins.predicting", "x", "--tokenizer", "tok", "--revision",
        "rev", "--curves", "residual", "--trust-remote-code",
    ]  # fmt: skip
    assert predicting.command("x", tokenizer="t")[3:] == ["x", "--tokenizer", "t"]


def test_a_default_and_a_prediction_are_within_what_the_request_may_generate(
    process: Process,
) -> None:
    made = asked(process, Counters(), default_tokens=200.0)
    for prompt, limit, default, said in (
        (5, None, 200, 900), (5, 150, 150, 150), (900, None, 100, 100), (900, 150, 100, 100),
        (1000, None, 1, 1),
    ):  # fmt: skip
        one = entry(len(process.sent), prompt, limit)
        made.ask(one, None, needed=True)
        assert (one.predicted_tokens, one.source, one.state) == (default, "default", "pending")
        assert one.whole_tokens == 0  # a default is no prediction
        process.says = [Answer(one.sequence, 900.0, time.monotonic(), {}, (20.0, 2000.0))]
        assert made.news() == [one]
        assert (one.predicted_tokens, one.state) == (said, "ready")
        assert one.interval == (min(20.0, said), min(2000.0, max(1000 - prompt, 1), limit or 2000))
    sequence, sent, known = process.sent[0]
    assert (sequence, list(sent)) == (0, [0, 1, 2, 3, 4])
    assert known == b'{"model": "m"}'


def test_whose_length_nobody_reads_is_asked_and_never_waits(process: Process) -> None:
    counters = Counters()
    made = asked(process, counters)
    one = entry(0)
    made.ask(one, None, needed=False)
    assert one.state == "ready"
    process.says = [Answer(0, math.nan, 0.0)]
    assert made.news() == [one]
    assert one.state == "ready"
    assert counters.counts["fallbacks", "predictor-error"] == 1
    no_prompt = entry(1)
    no_prompt.request.prompt_token_ids = None
    made.ask(no_prompt, None, needed=True)
    assert no_prompt.state == "failed"
    assert counters.counts["fallbacks", "no-prompt"] == 1
    made.close()
    off = entry(2)
    made.ask(off, None, needed=False)
    assert off.state == "ready"
    assert counters.counts["fallbacks", "predictor-off"] == 1
    assert len(process.sent) == 1
    assert counters.counts["predictions", "default"] == 0


def test_an_abstained_length_is_used_counted_and_not_judged(process: Process) -> None:
    counters = Watched()
    made = asked(process, counters)
    one, two = entry(0), entry(1)
    for each in (one, two):
        made.ask(each, None, needed=True)
    curve = RequestCurve([0.0, 10.0], [5.0, 5.0])
    process.says = [Answer(0, -30.0, 0.0), Answer(1, 20.0, time.monotonic(), {"residual": curve})]
    made.news()
    assert (one.abstained, one.predicted_tokens, one.whole_tokens) == (True, 30.0, 30)
    assert (two.abstained, two.curves, two.limit) == (False, {"residual": curve}, 995)
    assert counters.counts["abstained", "predictor"] == 1
    assert counters.counts["predictions", "predictor"] == 2
    for each in (one, two):
        made.finished(each)
    kinds = Counter(name for name, *_ in counters.seen)
    assert kinds["predicted_tokens"] == 1  # of the second alone
    assert ("predicted_tokens", "predictor", 20.0) in counters.seen
    aborted = entry(2)
    aborted.predicted_tokens, aborted.source = 5.0, "client"
    aborted.request.status.name = "FINISHED_ABORTED"
    made.finished(aborted)
    assert kinds == Counter(name for name, *_ in counters.seen)


@pytest.mark.parametrize("ended", lengths.ENDED)
def test_lengths_of_all_who_ended_by_themselves_are_judged(process: Process, ended: str) -> None:
    counters = Watched()
    made = asked(process, counters)
    one = entry(0)
    made.ask(one, 18, needed=True)
    assert (one.predicted_tokens, one.source, one.state) == (18, "client", "ready")
    assert not process.sent
    one.request.status.name = ended
    made.finished(one)
    assert counters.seen[-1] == ("error_log2", "client", -1.0)


def test_seconds_of_a_prediction_are_from_asking_to_answer(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(lengths, "time", SimpleNamespace(monotonic=lambda: now[0]))
    counters = Watched()
    made = asked(process, counters)
    made.ask(entry(0), None, needed=True)
    now[0] = 107.0
    process.says = [Answer(0, 3.0, 100.25)]
    made.news()
    assert counters.seen == [("prediction_seconds", "predictor", 0.25)]


def test_a_predictor_that_drifted_is_doubted_and_watched(process: Process) -> None:
    counters = Watched()
    made = asked(process, counters)
    made._accuracy._drifted.add("predictor")
    needed, unread, unsure = entry(0), entry(1), entry(2)
    made.ask(needed, None, needed=True)
    made.ask(unread, None, needed=False)
    made.ask(unsure, None, needed=True)
    process.says = [Answer(0, 30.0, 0.0), Answer(1, 5000.0, 0.0), Answer(2, -30.0, 0.0)]
    made.news()
    assert (needed.state, needed.source, needed.doubted_tokens) == ("failed", "default", 30.0)
    assert (unread.state, unread.doubted_tokens) == ("ready", 995.0)
    assert unsure.doubted_tokens == 0.0
    assert counters.counts["fallbacks", "drift"] == 3
    for one in (needed, unread, unsure):
        made.finished(one)
    seen = [value for name, _, value in counters.seen if name == "predicted_tokens"]
    assert seen == [30.0, 995.0]


def test_answers_that_come_after_the_end_are_nobody_s(process: Process) -> None:
    counters = Counters()
    made = asked(process, counters)
    one = entry(0)
    made.ask(one, None, needed=True)
    made.finished(one)
    assert counters.counts["fallbacks", "predictor-timeout"] == 1
    process.says = [Answer(0, 30.0, 0.0), Answer(7, 30.0, 0.0)]
    assert made.news() == []
    assert counters.counts["predictions", "predictor"] == 0


def test_what_a_curve_says_is_within_the_limit_and_one_token_at_least() -> None:
    one = entry(0, limit=40)
    one.predicted_tokens, one.limit = 30.0, 40.0
    one.request.num_output_tokens = 10
    assert one.left("residual") == 20.0
    one.request.num_output_tokens = 35
    assert one.left("residual") == 1.0
    one.curves = {"residual": RequestCurve([0.0, 50.0], [9.0, 9.0])}
    assert one.left("residual") == 5.0  # five are left of its limit
    one.request.num_output_tokens = 3
    assert one.left("residual") == 9.0
    one.request.num_output_tokens = 60
    assert one.left("residual") == 1.0


def test_ranks_are_scores_but_for_the_guard_and_for_who_has_none() -> None:
    one = entry(0)
    one.score = 5.0
    assert one.rank == 5.0
    one.turn = True
    assert one.rank == 5.0
    one.state = "failed"
    assert one.rank == -math.inf
    one.turn = False
    assert one.rank == math.inf
    one.ahead = True
    assert one.rank == -math.inf
    one.state = "ready"
    assert one.rank == -math.inf


def test_arrivals_are_no_older_than_a_minute_and_never_in_the_future() -> None:
    monotonic, wall = [50.0], [1000.0]
    clock = Clock(lambda: monotonic[0], lambda: wall[0])
    monotonic[0], wall[0] = 150.0, 1100.0
    assert clock.now_s() == 100.0
    assert clock.arrival_s(1090.0) == 90.0
    assert clock.arrival_s(1200.0) == 100.0
    assert clock.arrival_s(10.0) == 40.0
    assert clock.arrival_s(math.nan) == 40.0
    wall[0] += 0.9  # slewed, not set
    assert clock.arrival_s(1090.0) == 90.0
    wall[0] += 200.0
    assert clock.arrival_s(1290.9) == 100.0  # set: it came just now
    assert clock.arrival_s(1290.9) == 90.0
    wall[0] -= 1.05
    assert clock.arrival_s(1289.0) == 100.0


# The predictor's own process


class Fixed:
    """Twice as many tokens as the prompt has."""

    needs = frozenset({"prompt_tokens"})

    def predict(self, prompts: Any, *, prompt_tokens: Any, **rest: Any) -> Prediction:
        return Prediction.exact(2.0 * np.asarray(prompt_tokens))


def test_a_process_s_rows_are_tokens_intervals_and_curves() -> None:
    batch = [(k, [0] * n, {}) for k, n in enumerate((4, 7))]
    said = predicting._predict(Fixed(), None, batch, ["residual", "remaining"])
    assert said.shape == (2, 3 + 2 * len(EDGES))
    assert said[:, 0].tolist() == [8, 14]
    assert np.isnan(said[:, 1:]).all()  # a length without a distribution has neither


def test_tau_is_looked_at_every_fifty_and_a_window_is_256() -> None:
    counters = Counters()
    watch = Accuracy(counters)
    for i in range(1, 50):
        watch.finished("client", float(i), float(i))
    assert not counters.gauges
    watch.finished("client", 50.0, 50.0)
    assert counters.gauges["recent_tau", "client"] == 1.0
    assert ("followed", "client") not in counters.gauges  # clients are believed or are not
    assert ("recent_coverage", "client") not in counters.gauges
    for i in range(49):
        watch.finished("client", float(i + 1), float(100 - i))
    assert counters.gauges["recent_tau", "client"] == 1.0
    watch.finished("client", 60.0, 50.0)
    assert counters.gauges["recent_tau", "client"] < 1.0
    for i in range(300):
        watch.finished("client", float(i + 1), 2.0 * (i + 1))
    # 350 + 50: the last look was at 400, when nothing but these was in the window
    assert counters.gauges["recent_tau", "client"] == 1.0
    assert counters.gauges["recent_log2", "client"] == 1.0
    assert len(watch._recent["client"]) == 256


def test_an_order_that_is_worse_than_chance_is_left_until_it_is_better(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of 50 the standard error of tau is 0.098: two of them below 0 are no accident."""
    rng = np.random.default_rng(1)

    def told(sign: float, count: int = 50) -> tuple[Accuracy, Counters]:
        counters = Counters()
        watch = Accuracy(counters)
        order = rng.permutation(50) + 1.0
        for i in range(count):
            noise = rng.normal(0, 60.0)
            watch.finished("predictor", order[i], max(sign * order[i] + noise + 300, 1.0))
        return watch, counters

    weak = [told(-0.15) for _ in range(30)]
    for watch, counters in weak:
        tau = counters.gauges["recent_tau", "predictor"]
        assert watch.drifted("predictor") == (tau < -2 * math.sqrt(2 * 105 / (9 * 50 * 49)))
        assert counters.gauges["followed", "predictor"] == float(not watch.drifted("predictor"))
    assert {watch.drifted("predictor") for watch, _ in weak} == {True, False}
    assert not told(-1.0, 49)[0].drifted("predictor")


def test_an_order_that_was_left_is_followed_again_above_chance_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    taus = iter([-0.1, -1.0, -0.001, 0.0, 0.001, -0.001])
    monkeypatch.setattr(accuracy, "kendall_tau", lambda left, right: next(taus))
    watch = Accuracy(Counters())
    seen = []
    for i in range(300):
        watch.finished("predictor", 1.0 + i % 50, 7.0)
        if i % 50 == 49:
            seen.append(watch.drifted("predictor"))
    assert seen == [False, True, True, True, False, False]


def test_coverage_is_of_whole_lengths_within_intervals(caplog: pytest.LogCaptureFixture) -> None:
    def covered(within: int, of: int = 50) -> tuple[float | None, bool]:
        caplog.clear()
        counters = Counters()
        watch = Accuracy(counters)
        for i in range(of):
            # from 10.4 to 19.6 tokens: of whole ones from 10 to 20
            generated = (10.0 if i % 2 else 20.0) if i < within else (9.0 if i % 2 else 21.0)
            watch.finished("predictor", 15.0 + i, generated, (10.4, 19.6))
        found = counters.gauges.get(("recent_coverage", "predictor"))
        return found, any("train it, or recalibrate it" in m for m in caplog.messages)

    assert covered(50) == (1.0, False)
    assert covered(38) == (0.76, False)
    assert covered(37) == (0.74, True)
    assert covered(49, of=49) == (None, False)


def test_waits_are_by_quarters_of_the_last_thousand_scores() -> None:
    counters = Watched()
    made = Waits(counters)
    for score in range(100):
        made.admitted(float(score), 1.0)
    counters.seen.clear()
    for score, quarter in ((25, "1"), (26, "2"), (49, "2"), (50, "3"), (74, "3"), (75, "4")):
        made.admitted(float(score), -5.0)
        assert counters.seen.pop() == ("wait_seconds", quarter, 0.0)
    made.admitted(math.nan, 1.0)
    assert not counters.seen
    assert (waits.WINDOW, made._scores.maxlen) == (1000, 1000)
    # bounds are of the scores of late: a hundred admissions later they have moved
    for _ in range(300):
        made.admitted(1000.0, 1.0)
    made.admitted(999.0, 1.0)
    assert counters.seen.pop()[1] == "2"


def test_the_first_waits_are_sorted_among_those_so_far() -> None:
    counters = Watched()
    made = Waits(counters)
    for score, quarter in ((4, "1"), (1, "1"), (3, "2"), (2, "1"), (5, "4")):
        made.admitted(float(score), 1.0)
        assert counters.seen.pop()[1] == quarter


def test_bounds_of_waits_stay_for_a_hundred_admissions() -> None:
    counters = Watched()
    made = Waits(counters)
    for score in [*range(100), 50.0, *[1000.0] * 98]:
        made.admitted(float(score), 1.0)
    for quarter in ("4", "2"):  # by those of the first hundred, and then of all
        made.admitted(80.0, 1.0)
        assert counters.seen.pop()[1] == quarter


# The record


def finished(index: int, prompt: int = 4, **more: Any) -> Any:
    request = SimpleNamespace(
        request_id=f"r{index}", arrival_time=float(index), prompt_token_ids=list(range(prompt)),
        num_prompt_tokens=prompt, num_output_tokens=index + 1,
        sampling_params=SimpleNamespace(
            max_tokens=64, temperature=0.5, top_p=None, extra_args={"session_id": "s"},
            structured_outputs=None,
        ),
        status=SimpleNamespace(name="FINISHED_STOPPED"),
    )  # fmt: skip
    vars(request).update(more)
    return request


def recorded(folder: Path, requests: list[Any], **settings: Any) -> tuple[Any, Counters]:
    counters = Counters()
    made = Recorder(Settings(policy="fcfs", record=str(folder), **settings), MODEL, counters)
    for request in requests:
        made.finished(request)
    made.close()
    tables = [pq.read_table(path) for path in sorted(folder.glob("*.parquet"))]
    return (tables[0].to_pydict() if tables else {}), counters


def test_every_column_of_the_record_by_hand(tmp_path: Path) -> None:
    told = finished(0)
    told.sampling_params.extra_args = {"predicted_tokens": 12, "tenant": "t"}
    predicted, unsure, default = finished(1), finished(2), finished(3)
    for request, source, unknown in (
        (predicted, "predictor", False), (unsure, "predictor", True), (default, "default", False)
    ):  # fmt: skip
        request.lengthwise = SimpleNamespace(
            predicted=source != "default", predicted_tokens=7.5, source=source, abstained=unknown
        )
    others = [
        finished(4 + i, status=SimpleNamespace(name=name))
        for i, name in enumerate(
            ("FINISHED_REPETITION", "FINISHED_LENGTH_CAPPED", "FINISHED_ABORTED", "FINISHED_OTHER")
        )
    ]
    others[0].sampling_params.max_tokens = None
    others[1].prompt_token_ids = None
    others[2].sampling_params.max_tokens = 10**30
    rows, counters = recorded(tmp_path, [told, predicted, unsure, default, *others])
    assert rows["request_id"] == [f"r{i}" for i in range(8)]
    assert rows["arrival_s"] == [float(i) for i in range(8)]
    assert all(abs(at - time.time()) < 60 for at in rows["finish_s"])
    assert rows["prompt_tokens"] == [4] * 8
    assert rows["output_tokens"] == list(range(1, 9))
    assert rows["predicted_tokens"][:4] == [12.0, 7.5, 7.5, None]
    assert rows["predicted_by"][:4] == ["client", "predictor", "abstained", None]
    assert rows["max_tokens"] == [64] * 4 + [None, 64, 2**63 - 1, 64]
    assert rows["finish_reason"] == ["stop"] * 5 + ["length", "abort", "error"]
    assert rows["session_id"] == [None] + ["s"] * 7
    assert rows["tenant"][0] == "t"
    assert rows["temperature"] == [0.5] * 8
    assert rows["json_schema"] == [0.0] * 8
    assert rows["model"] == ["m"] * 8
    assert rows["tokenizer"] == ["tok"] * 8
    assert rows["prompt_id"][5] is None
    assert rows["prompt_id"][0] == part.prompt_id([0, 1, 2, 3]) != part.prompt_id([0, 1, 2, 4])
    assert "prompt_token_ids" not in rows
    assert counters.counts["recorded", "written"] == 8
    assert counters.counts["recorded", "dropped"] == 0


def test_prompts_are_recorded_where_they_are_asked_for(tmp_path: Path) -> None:
    told = finished(0)
    told.sampling_params.extra_args = {"predicted_tokens": 12}
    rows, _ = recorded(tmp_path, [told], record_prompts=True, client_lengths=False)
    assert rows["prompt_token_ids"] == [[0, 1, 2, 3]]
    assert rows["predicted_tokens"] == [None]  # clients are not believed
    nothing, counters = recorded(
        tmp_path / "none", [finished(0, num_output_tokens=0), finished(1, resumable=True)]
    )
    assert nothing == {}
    assert not counters.counts


def test_a_part_ends_with_its_rows_its_tokens_or_its_age(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(
        part, "time", SimpleNamespace(monotonic=lambda: now[0], time_ns=time.time_ns)
    )
    monkeypatch.setattr(part, "PART_ROWS", 3)
    monkeypatch.setattr(part, "PART_TOKENS", 20)

    def row(tokens: int) -> dict[str, Any]:
        return {"request_id": "r", "prompt_token_ids": [1] * tokens}

    def parts(prompts: bool, *writes: int, ages: float = 0.0) -> list[int]:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        made = part.Part(folder, prompts, {"model": "m", "tokenizer": "t"})
        for tokens in writes:
            made.add(row(tokens))
            assert made.waiting == 1
            now[0] += ages
            assert made.write() == (1 + tokens, 0)
            assert made.waiting == 0
            assert made.write() == (0, 0)
        return [pq.read_table(path).num_rows for path in sorted(folder.glob("*.parquet"))]

    assert sorted(parts(False, 1, 1, 1, 1)) == [1, 3]
    assert sorted(parts(True, 9, 9, 1)) == [1, 2]  # ten and ten are twenty
    assert parts(True, 9, 8) == [2]
    assert parts(False, 9, 9) == [2]  # prompts that are not kept take no room
    assert sorted(parts(False, 1, 1, ages=part.PART_S)) == [2]
    assert sorted(parts(False, 1, 1, ages=part.PART_S + 1)) == [1, 1]


def test_a_backlog_holds_so_many_tokens_and_not_one_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "BACKLOG_TOKENS", 10)
    monkeypatch.setattr(record, "keep", lambda *given: SimpleNamespace(join=lambda timeout: None))
    counters = Counters()
    made = Recorder(Settings(policy="fcfs", record=str(tmp_path)), MODEL, counters)
    for _ in range(3):
        made.finished(finished(0))  # five each: two fit
    assert made._backlog == 10
    assert counters.counts["recorded", "dropped"] == 1
    made._part.add(made._queue.get())  # type: ignore[arg-type]
    assert made._flush()
    assert made._backlog == 5
    assert counters.counts["recorded", "written"] == 1
    made.finished(finished(0, prompt_token_ids=None))
    assert made._backlog == 6


# Routers


def router(policy: Any, **given: Any) -> ReplicaRouter:
    return ReplicaRouter(policy, tells=("prompt_tokens", "now_s"), **given)


def by(name: str) -> RoutingPolicy:
    """A router by one feature of replicas: the lowest first."""
    space: dict[str, Any] = {}
    exec(f"def score({name}):\n    return {name} * 1.0", space)
    return RoutingPolicy(Score.from_function(space["score"]))


def test_what_a_router_knows_of_its_replicas_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(routing, "time", SimpleNamespace(monotonic=lambda: now[0]))
    told = ("running_requests", "kv_utilization", "free_seats")
    made = router("jsq", reports=told)
    made.sent("a", 1, 30.0)
    now[0] = 1005.0
    made.sent("a", 2, 12.0)
    made.sent("b", 3, 50.0)
    made.done(2)
    made.report("b", kv_utilization="0.25", running_requests=True)
    known = [made._replicas[name] for name in "ab"]

    def value(name: str) -> Any:
        return routing.VALUES[name](made, known, {"prompt_tokens": 9.0})

    now[0] = 1007.0
    assert value("routed_requests") == [2, 1]
    assert value("outstanding_requests") == [1, 1]
    assert value("outstanding_tokens") == [30.0, 50.0]
    assert value("oldest_request_s") == [7.0, 2.0]
    assert value("waiting_requests") == [1, 1]  # where replicas say nothing: all of them
    assert value("running_requests") == [0.0, 0.0]
    assert value("kv_utilization") == [0.0, 0.25]
    assert value("prompt_tokens") == 9.0
    assert made.counters.counts["ignored", "running_requests"] == 1
    made.done(1)
    made.report("b", waiting_requests=4, running_requests=2.0)
    assert value("oldest_request_s") == [0.0, 2.0]
    assert value("waiting_requests") == [0, 4]
    assert value("running_requests") == [0.0, 2.0]
    with pytest.raises(InputError, match=r"reads now_s, which rank\(\) was not given"):
        routing.VALUES["now_s"](made, known, {})
    with pytest.raises(InputError, match=r"replicas report .*, not odd"):
        router("jsq", reports=("odd",))


def test_a_router_counts_where_requests_are() -> None:
    made = router("jsq")
    made.sent("a", 1, 5.0)
    made.sent("b", 1, 5.0)  # placed anew
    assert (made.unfinished("a"), made.unfinished("b")) == (0, 1)
    assert [made._replicas[name].routed for name in "ab"] == [0, 1]
    made.moved("c", 1)
    assert (made.unfinished("b"), made.unfinished("c")) == (0, 1)
    assert made._replicas["c"].owed == {1: 5.0}
    made.done(1, "b")  # it counts elsewhere by now
    assert made.unfinished("c") == 1
    made.done(1, "c")
    assert made.unfinished("c") == 0
    made.moved("a", 1)  # it ended
    assert made.unfinished("a") == 0
    made.done(99)
    made.done(99, "a")
    assert made.unfinished("z") == 0
    assert [made._replicas[name].routed for name in "abc"] == [0, 0, 1]


def test_replicas_that_come_start_at_the_least_that_others_were_sent() -> None:
    made = router("round-robin")
    for i in range(5):
        made.sent("a", i)
    for i in range(5, 8):
        made.sent("b", i)
    made.keep(["a", "b", "c"])
    assert [made._replicas[name].routed for name in "abc"] == [5, 3, 3]
    made.keep(["c", "b", "a"])  # the same ones
    made.keep(["c", "d"])
    assert {name: one.routed for name, one in made._replicas.items()} == {"c": 3, "d": 3}
    made.keep([])
    made.keep(["e"])
    assert made._replicas["e"].routed == 0


def test_a_request_that_nobody_reports_is_forgotten_after_half_an_hour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(routing, "time", SimpleNamespace(monotonic=lambda: now[0]))
    made = router("jsq")
    made.sent("a", 1)
    now[0] = 600.0
    made.sent("a", 2)
    now[0] = 1799.9
    made.rank(["a"])
    assert made.unfinished("a") == 2
    now[0] = 1800.0
    made.rank(["a"])
    assert made.unfinished("a") == 1
    assert made.counters.counts["fallbacks", "request-lost"] == 1


def test_sampled_replicas_are_those_of_the_seed_and_of_as_many_choices() -> None:
    policy = dataclasses.replace(by("routed_requests"), choices=2)
    made = router(policy, seed=3)
    for i in range(3):
        made.sent("b", i)
    draws = random.Random(3)
    for _ in range(40):
        first = draws.sample(list("abcd"), 2)
        ranked = made.rank(list("abcd"))
        best = [c for c in "abcd" if c in first]
        best.sort(key=lambda c: c == "b")
        assert ranked == best + [c for c in "abcd" if c not in first]
    all_ = router(dataclasses.replace(by("routed_requests"), choices=4), seed=3)
    assert all_.rank(list("abcd")) == list("abcd")
    drawn = router("random", seed=5)
    again = random.Random(5)
    expected = [again.random() for _ in range(3)]
    assert drawn.rank(["a", "b", "c"]) == [x for _, x in sorted(zip(expected, "abc", strict=True))]


def test_a_router_whose_policy_fails_takes_each_in_turn_and_counts_it() -> None:
    def score(routed_requests: Any) -> Any:
        return routed_requests * np.nan

    made = router(RoutingPolicy(Score.from_function(score)))
    made.sent("a", 1)
    assert made.rank(["a", "b"]) == ["b", "a"]
    assert made.counters.counts["fallbacks", "policy"] == 1


# Lengths at routers


def of(made: PromptLengths, *calls: Call) -> list[Any]:
    async def run() -> list[Any]:
        return [await made.of(call) for call in calls]

    return asyncio.run(run())


def test_lengths_at_a_router_are_told_predicted_or_the_default() -> None:
    counters = Watched()
    quiet = PromptLengths(None, 0.5, 200.0, counters)
    told, default, short = of(
        quiet, Call("a" * 40, "a", told=50.0, limit=30.0), Call("abc", "abc"),
        Call("x" * 9, "x", limit=7.0),
    )  # fmt: skip
    assert (told.prompt, told.answer, told.source, told.said) == (10.0, 30.0, "client", 30.0)
    assert (default.prompt, default.answer, default.source) == (1.0, 200.0, "default")
    assert (short.prompt, short.answer) == (2.25, 7.0)
    assert counters.counts["predictions", "client"] == 1
    assert counters.counts["predictions", "default"] == 2
    says: dict[str, Any] = {"a": 12, "b": 99.0, "c": math.nan, "d": -1, "e": 0, "f": "x"}
    asked = PromptLengths(lambda text: says[text], 5.0, 200.0, counters)
    found = of(asked, *(Call(name, name, limit=20.0) for name in says))
    assert [one.answer for one in found] == [12.0, 20.0, 20.0, 20.0, 20.0, 20.0]
    assert [one.source for one in found] == ["predictor"] * 2 + ["default"] * 4
    assert counters.counts["predictions", "predictor"] == 2
    assert counters.counts["fallbacks", "predictor-error"] == 4
    for one in (*found, told, default):
        asked.ended(one, 10.0)
    seen = [(label, value) for name, label, value in counters.seen if name == "predicted_tokens"]
    assert seen == [("predictor", 12.0), ("predictor", 20.0), ("client", 30.0)]
    asked._accuracy._drifted.add("predictor")
    (doubted,) = of(asked, Call("a", "a", limit=300.0))
    assert (doubted.answer, doubted.said, doubted.source) == (200.0, 12.0, "predictor")
    assert counters.counts["fallbacks", "drift"] == 1


def test_a_router_s_predictor_that_is_late_means_the_default() -> None:
    counters = Counters()
    slow = PromptLengths(lambda text: time.sleep(0.4) or 5.0, 0.05, 200.0, counters)
    (found,) = of(slow, Call("a", "a"))
    assert (found.answer, found.source) == (200.0, "default")
    assert counters.counts["fallbacks", "predictor-error"] == 1


def test_a_call_is_read_from_its_fields() -> None:
    call = call_of(
        {"messages": [{"role": "system", "content": "be brief"},
                      {"role": "user", "content": "why?"}],
         "max_tokens": 90, "max_completion_tokens": 80, "max_output_tokens": 2**53 + 2,
         "vllm_xargs": {"predicted_tokens": 7, "tenant": "t"}, "temperature": 0.5,
         "user": "u", "headers": {"X-Task": "qa"}, "metadata": {"session_id": "s"}},
        {"prompt": "more", "vllm_xargs": {"predicted_tokens": True}, "max_tokens": 0},
        "plain",
    )  # fmt: skip
    assert call.text == "be brief\nwhy?\nmore\nplain"
    assert (call.told, call.limit) == (7.0, 80.0)
    assert call.known["max_tokens"] == 80.0
    assert call.known["tenant"] == "t"
    assert call.known["task"] == "qa"
    assert call.known["session_id"] == "s"
    assert call.known["temperature"] == 0.5
    bare = call_of({"input": ["one", "two"]})
    assert bare.limit == math.inf
    assert "max_tokens" not in bare.known
    assert bare.told is None
    assert call_of({"vllm_xargs": {"predicted_tokens": 2.0**53}}).told == 2.0**53


def test_a_length_that_a_router_s_predictor_abstains_from_counts_as_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Unsure:
        needs: frozenset[str] = frozenset()
        uses: frozenset[str] = frozenset()

        def predict(self, prompts: Any, *, prompt_tokens: Any, **more: Any) -> Prediction:
            assert (prompts, prompt_tokens) == (["p"], [3])
            return dataclasses.replace(Prediction.exact([30.0]), abstained=np.array(unsure))

    unsure = [True]
    monkeypatch.setattr(prompt_lengths, "saved_predictor", lambda folder: Unsure())
    ask = prompt_lengths._saved("x", lambda call: call, [])
    call = Call("system p", "p", tokens=[1, 2, 3])
    for one, source in ((True, "default"), (False, "predictor")):
        unsure[:] = [one]
        found = ask(call)
        assert (found.source, found.answer) == (source, 30.0)


def test_a_name_is_a_text_or_an_integer_of_64_bits() -> None:
    for value, said in (
        ("a", "a"), (2**63 - 1, str(2**63 - 1)), (2**63, None), (1 - 2**63, str(1 - 2**63)),
        (-(2**63), None), (True, None), (1.5, None), (None, None), ("\ud800", "?"),
    ):  # fmt: skip
        assert client.text(value) == said


# LiteLLM and Ray Serve


class Lite:
    """LiteLLM's router, as far as the strategy sees it."""

    def __init__(self, ids: str = "ab") -> None:
        self.deployments: Any = [{"model_info": {"id": name}} for name in ids]

    async def async_get_healthy_deployments(self, **rest: Any) -> Any:
        return self.deployments


def test_litellm_s_calls_are_load_until_they_end() -> None:
    async def run() -> None:
        router_ = Lite()
        with litellm_modules():
            made = litellm.RoutingStrategy(router_, "least-tokens", predict=lambda text: 100.0)
        assert made.counters is made.ranking.counters
        call: dict[str, Any] = {"metadata": {"own": 1}, "litellm_metadata": None}
        found = await made.async_get_available_deployment(
            "m", messages=[{"role": "user", "content": "x" * 40}], request_kwargs=call
        )
        assert found["model_info"]["id"] == "a"
        tag = call["metadata"][litellm.TAG]
        assert call["metadata"]["own"] == 1
        assert made.ranking._replicas["a"].owed == {tag: 110.0}
        other: dict[str, Any] = {"litellm_metadata": {}}
        found = await made.async_get_available_deployment("m", input="y", request_kwargs=other)
        assert found["model_info"]["id"] == "b"
        assert litellm.TAG in other["litellm_metadata"]
        made.ended({"litellm_params": {"metadata": call["metadata"]}},
                   {"usage": {"completion_tokens": 50}})  # fmt: skip
        assert not made.ranking._replicas["a"].owed
        assert made.ranking._replicas["b"].owed
        assert tag not in made._expected
        assert made._lengths._accuracy._recent["predictor"][0] == (100.0, 50.0)
        made.ended({"litellm_params": {"metadata": {}}})  # somebody else's
        made.ended({})
        bare = await made.async_get_available_deployment("m", input="z")
        assert bare["model_info"]["id"] == "a"
        router_.deployments = {"model_info": {"id": "only"}}  # one that was asked for by name
        assert (await made.async_get_available_deployment("m"))["model_info"]["id"] == "only"
        assert "only" not in made.ranking._replicas
        with pytest.raises(NotImplementedError, match="asynchronous calls alone"):
            made.get_available_deployment("m")

    asyncio.run(run())


def test_litellm_tells_every_strategy_what_ended_well_or_not() -> None:
    async def run() -> None:
        told: list[Any] = []
        with litellm_modules():
            manager = sys.modules["litellm"].logging_callback_manager  # type: ignore[attr-defined]
            manager.add_litellm_callback = told.append
            strategies = [litellm.RoutingStrategy(Lite("a"), "jsq") for _ in range(2)]
        calls: list[dict[str, Any]] = [{}, {}]
        for one, call in zip(strategies, calls, strict=True):
            await one.async_get_available_deployment("m", input="y", request_kwargs=call)
        ends = [{"litellm_params": {"metadata": call["metadata"]}} for call in calls]
        await told[0].async_log_success_event(ends[0], None, 0.0, 1.0)
        assert [one.ranking.unfinished("a") for one in strategies] == [0, 1]
        await told[0].async_log_failure_event(
            kwargs=ends[1], response_obj=None, start_time=0.0, end_time=1.0
        )
        assert [one.ranking.unfinished("a") for one in strategies] == [0, 0]

    asyncio.run(run())


def test_litellm_s_call_that_is_cancelled_is_no_load_and_one_that_returns_still_may_be() -> None:
    async def run() -> None:
        with litellm_modules():
            made = litellm.RoutingStrategy(Lite("a"), "jsq")

        async def call(hold: bool) -> None:
            await made.async_get_available_deployment("m", input="x", request_kwargs={})
            if hold:
                await asyncio.sleep(60)

        task = asyncio.create_task(call(True))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert made.ranking.unfinished("a") == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0)
        assert made.ranking.unfinished("a") == 0
        await asyncio.create_task(call(False))
        await asyncio.sleep(0)
        assert made.ranking.unfinished("a") == 1  # its stream may go on
        assert not made._callers

    asyncio.run(run())


def test_litellm_remembers_a_bounded_number_of_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(litellm, "MOST_CALLS", 3)

    async def run() -> None:
        with litellm_modules():
            made = litellm.RoutingStrategy(Lite(), "jsq")
        kept = []
        for _ in range(5):
            call: dict[str, Any] = {}
            await made.async_get_available_deployment("m", input="x", request_kwargs=call)
            kept.append(call["metadata"][litellm.TAG])
        assert list(made._expected) == kept[-3:]

    asyncio.run(run())


@pytest.mark.parametrize("name", litellm.STREAMS)
def test_litellm_s_stream_that_is_left_is_no_load(name: str) -> None:
    closed: list[Any] = []

    class Stream:
        def __aiter__(self) -> Any:
            return self

        async def aclose(self) -> None:
            closed.append(self)

    async def run() -> None:
        router_: Any = Lite("a")

        async def complete(*, stream: bool, more: int) -> Any:
            assert more == 1
            await made.async_get_available_deployment("m", input="x", request_kwargs={})
            return Stream() if stream else SimpleNamespace()

        setattr(router_, name, complete)
        with litellm_modules():
            made = litellm.RoutingStrategy(router_, "jsq")
        call = getattr(router_, name)
        first = await call(stream=True, more=1)
        assert made.ranking.unfinished("a") == 1
        await first.aclose()
        assert made.ranking.unfinished("a") == 0 and closed == [first]
        second = await call(stream=True, more=1)
        assert made.ranking.unfinished("a") == 1
        del second  # nobody began to read it
        await asyncio.sleep(0)
        assert made.ranking.unfinished("a") == 0
        await call(stream=False, more=1)  # a whole answer: LiteLLM tells of its end
        assert made.ranking.unfinished("a") == 1

    asyncio.run(run())


def test_litellm_s_stream_may_be_dropped_while_the_router_is_asked() -> None:
    """The garbage collector runs at any line, also at one that holds the router's lock."""
    kept: list[Any] = []

    def score(outstanding_requests: Any) -> Any:
        kept.clear()
        return outstanding_requests

    class Stream:
        def __aiter__(self) -> Any:
            return self

    async def run() -> None:
        router_: Any = Lite("a")

        async def complete() -> Any:
            await made.async_get_available_deployment("m", input="x", request_kwargs={})
            return Stream()

        router_.acompletion = complete
        with litellm_modules():
            made = litellm.RoutingStrategy(router_, RoutingPolicy(Score.from_function(score)))
        for _ in range(2):
            kept.append(await router_.acompletion())
        await asyncio.sleep(0)
        assert made.ranking.unfinished("a") == 1

    asyncio.run(asyncio.wait_for(run(), 20))


def test_ray_serve_s_replicas_report_what_was_asked_for_and_count_what_is_placed() -> None:
    made: Any = type("Router", (PolicyRouting, RequestRouter), {})()
    made.initialize_state(policy="jsq", reports=("waiting_requests",), default_tokens=40.0)
    replicas = [
        SimpleNamespace(
            replica_id="a", routing_stats={"waiting_requests": 5, "running_requests": 3}
        ),
        SimpleNamespace(replica_id="b", routing_stats={}),
    ]
    made.curr_replicas = {one.replica_id: one for one in replicas}

    async def run() -> None:
        def pending(name: str) -> Any:
            return SimpleNamespace(
                args=("x" * 40,), kwargs={"body": {"max_tokens": 8}}, created_at=time.time(),
                future=asyncio.get_running_loop().create_future(),
                metadata=SimpleNamespace(internal_request_id=name),
            )  # fmt: skip

        ranked = await made.choose_replicas(replicas, pending("1"))
        assert [[one.replica_id for one in rank] for rank in ranked] == [["b"], ["a"]]
        known = made._lengthwise._replicas
        assert known["a"].reported == {"waiting_requests": 5.0}
        assert known["b"].owed == {"1": 10.0 + 8.0}
        await made.choose_replicas(replicas)  # nobody's request
        assert known["b"].owed == {"1": 18.0}
        done = pending("2")
        done.future.set_result(None)  # it went elsewhere by now
        await made.choose_replicas(replicas, done)
        assert known["b"].owed == {"1": 18.0}
        made.on_request_completed("a", "1")  # an attempt at another replica
        assert known["b"].owed
        made.on_request_completed("b", "1")
        assert not known["b"].owed
        waits = pending("3")
        made._lengthwise.sent("b", "3", 1.0)

        async def hangs_up(pending: Any) -> Any:
            raise asyncio.CancelledError

        made.__class__ = type("Gone", (PolicyRouting, Cancels), {})
        with pytest.raises(asyncio.CancelledError):
            await made._choose_replica_for_request(waits)
        assert made._lengthwise.unfinished("b") == 0

    asyncio.run(run())


class Accepts(RequestRouter):
    def on_request_routed(self, pending: Any, replica_id: Any, result: Any) -> None: ...


def test_ray_serve_s_answers_are_heard_of_what_is_known_and_http_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made: Any = type("Router", (PolicyRouting, Accepts), {})()
    made.initialize_state(policy="jsq")
    replicas = [SimpleNamespace(replica_id="a", routing_stats=None)]
    made.curr_replicas = {"a": replicas[0]}

    async def run() -> None:
        def pending(name: str, **more: Any) -> Any:
            return SimpleNamespace(
                args=("x",), kwargs={}, created_at=time.time(),
                future=asyncio.get_running_loop().create_future(),
                metadata=SimpleNamespace(internal_request_id=name, **more),
            )  # fmt: skip

        known = pending("1")
        await made.choose_replicas(replicas, known)
        assert list(made._lengthwise_expected) == ["1"] and "by HTTP" not in caplog.text
        made.on_request_routed(pending("2"), "a", None)  # nobody's that was placed here
        assert "is not heard" not in caplog.text
        made.on_request_routed(known, "a", object())  # a result that can't be listened to
        assert not made._lengthwise_expected and caplog.text.count("is not heard") == 1
        await made.choose_replicas(replicas, pending("3", is_http_request=False))
        assert "by HTTP" not in caplog.text
        await made.choose_replicas(replicas, pending("4", is_http_request=True))
        assert caplog.text.count("requests come by HTTP") == 1

    asyncio.run(run())


class Cancels(RequestRouter):
    async def _choose_replica_for_request(self, pending: Any, **rest: Any) -> Any:
        raise asyncio.CancelledError


# Settings


def refused(policy: str, **given: Any) -> str:
    settings = Settings.parse({"policy": policy, **given})
    try:
        settings.refuse_idle(settings.load())
    except InputError as error:
        return str(error)
    return ""


def test_a_setting_without_an_effect_is_refused_and_one_with_an_effect_is_not() -> None:
    cases: dict[tuple[str, str], tuple[Any, str, dict[str, Any]]] = {
        # (setting, policy): value, why it is idle, what else is said
        ("guard", "fcfs"): (2.0, "fcfs starves nobody", {}),
        ("guard", "sjf"): (2.0, "", {}),
        ("guard_floor_s", "fcfs"): (2.0, "there is no starvation guard", {}),
        ("guard_floor_s", "sjf"): (2.0, "there is no starvation guard", {"guard": 0}),
        ("guard_floor_s", "srtf"): (2.0, "", {}),
        ("policy_timeout_s", "fcfs"): (2.0, "evaluates nothing", {}),
        ("policy_timeout_s", "sjf"): (2.0, "", {}),
        ("default_tokens", "fcfs"): (9.0, "nothing reads predicted lengths", {}),
        ("default_tokens", "priority"): (9.0, "nothing reads predicted lengths", {"guard": 0}),
        ("default_tokens", "mlfq"): (9.0, "", {}),  # the guard does
        ("default_tokens", "sjf"): (9.0, "", {"guard": 0}),
        ("predict_timeout_s", "sjf"): (9.0, "there is no predictor", {}),
        ("predict_timeout_s", "srtf"): (9.0, "", {"predictor": "p"}),
        ("record_prompts", "sjf"): (True, "there is no record", {}),
        ("record_prompts", "fcfs"): (True, "", {"record": "r"}),
        ("metrics_port", "fcfs"): (9000, "stock fcfs counts nothing", {}),
        ("metrics_port", "sjf"): (9000, "", {}),
        ("metrics_host", "sjf"): ("::", "there is no metrics_port", {}),
        ("metrics_host", "srtf"): ("::", "", {"metrics_port": 1}),
    }  # fmt: skip
    for (name, policy), (value, why, more) in cases.items():
        said = refused(policy, **{name: value, **more})
        assert (why in said) if why else (said == ""), (name, policy, said)
    for more in ({"record": "r"}, {"predictor": "p"}):
        assert refused("fcfs", metrics_port=9000, **more) == ""
    # what is off may be said anywhere
    assert refused("fcfs", guard=0, guard_floor_s=0.0, record_prompts=False, metrics_port=0) == ""
    assert "says one of its own" in refused("sjf+guard:ratio=3", guard=2.0)
    assert refused("sjf+guard:ratio=2", guard=2.0) == ""


def test_settings_are_parsed_by_type_and_range() -> None:
    def said(**given: Any) -> str:
        try:
            Settings.parse({"policy": "sjf", **given})
        except InputError as error:
            return str(error)
        return ""

    assert said(guard=2) == said(client_lengths=False) == said(metrics_port=65535) == ""
    assert "guard takes float, not True" in said(guard=True)
    assert "client_lengths takes bool, not 1" in said(client_lengths=1)
    assert "metrics_port takes int, not 1.5" in said(metrics_port=1.5)
    assert "record takes str" in said(record=1)
    assert "guard must be 0 or more, not -0.1" in said(guard=-0.1)
    assert "guard must be 0 or more, not nan" in said(guard=math.nan)
    assert "metrics_port must be 65535 or less, not 65536" in said(metrics_port=65536)
    assert "default_tokens must be 1 or more" in said(default_tokens=0.5)
    assert said(default_tokens=1) == ""
    assert "either a policy or a bundle" in said(bundle="b")
    with pytest.raises(InputError, match="takes an object of settings, not 5"):
        Settings.parse(5)
    with pytest.raises(InputError, match="either a policy or a bundle"):
        Settings.parse({})
    with pytest.raises(UnknownNameError, match="did you mean 'guard_floor_s'"):
        Settings.parse({"policy": "sjf", "guard_flor_s": 1})
    assert Settings.parse({"policy": "sjf", "guard": 2}).given == {"policy", "guard"}


def test_defaults_of_settings_are_those_that_the_manual_says() -> None:
    made = Settings(policy="sjf")
    said = {f.name: getattr(made, f.name) for f in dataclasses.fields(made) if f.name != "given"}
    assert said == {
        "policy": "sjf", "bundle": "", "predictor": "", "default_tokens": 256.0,
        "guard": Guard.ratio, "guard_floor_s": Guard.floor_s, "predict_timeout_s": 0.5,
        "policy_timeout_s": 0.1, "client_lengths": True, "record": "", "record_prompts": False,
        "metrics_port": 0, "metrics_host": "127.0.0.1",
    }  # fmt: skip


def test_a_bundle_s_predictor_is_used_unless_another_is_named(tmp_path: Path) -> None:
    bundle = write_bundle(load_policy("sjf"), tmp_path / "b")
    assert Settings(bundle=str(bundle)).predictor_folder == ""
    (bundle / "predictor").mkdir()
    assert Settings(bundle=str(bundle)).predictor_folder == str(bundle / "predictor")
    assert Settings(bundle=str(bundle), predictor="p").predictor_folder == "p"
    assert Settings(policy="sjf").predictor_folder == ""
    assert Settings(bundle=str(bundle)).load().score == load_policy("sjf").score
    with pytest.raises(InputError, match="no bundle at"):
        Settings(bundle=str(tmp_path / "none")).load()


# Scores


def scored(function: Any, timeout_s: float = 1e9) -> tuple[Scorer, Counters]:
    counters = Counters()
    return Scorer(Score.from_function(function), counters, timeout_s), counters


def test_a_policy_that_is_slow_thrice_in_a_row_is_switched_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lengthwise.policies.plugins import scorer as module

    now, takes = [0.0], [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def score(prompt_tokens: Any) -> Any:
        now[0] += takes[0]
        return prompt_tokens * 1.0

    made, _ = scored(score, 0.1)
    for took, off in ((0.2, False), (0.2, False), (0.05, False), (0.2, False), (0.2, False)):
        takes[0] = took
        assert made.one({"prompt_tokens": 3}) == 3.0
        assert made.off is off
    takes[0] = 0.2
    made.many({"prompt_tokens": np.array([1, 2])}, 2)
    assert made.off
    assert math.isnan(made.one({"prompt_tokens": 3}))
    assert np.isnan(made.many({"prompt_tokens": np.array([1, 2])}, 2)).tolist() == [True, True]
    assert SLOW_ALLOWED == 3


def test_scores_of_many_are_those_of_each() -> None:
    def odd(prompt_tokens: Any, now_s: Any) -> Any:
        if np.ndim(prompt_tokens):
            raise TypeError("one by one")
        if prompt_tokens == 3:
            sys_exit = SystemExit(3)
            raise sys_exit
        return "no number" if prompt_tokens == 2 else prompt_tokens + now_s

    made, _ = scored(odd)
    found = made.many({"prompt_tokens": np.array([1.0, 2.0, 3.0, 4.0]), "now_s": 10.0}, 4)
    assert np.isnan(found).tolist() == [False, True, True, False]
    assert found[[0, 3]].tolist() == [11.0, 14.0]
    same, _ = scored(lambda now_s: now_s * 2.0)
    assert same.many({"now_s": 4.0}, 3).tolist() == [8.0, 8.0, 8.0]
    one_nan, _ = scored(lambda prompt_tokens: prompt_tokens * np.nan)
    assert math.isnan(one_nan.one({"prompt_tokens": 1.0}))


# Priorities, metrics, threads


def test_a_priority_by_hand() -> None:
    assert priority_for("sjf", predicted_tokens=7.6) == 8
    assert priority_for("sjf", predicted_tokens=7.6, lowest_first=False) == -8
    assert priority_for("sjf", predicted_tokens=7.64, per_unit=10) == 76
    assert priority_for("srtf", predicted_tokens=30.0) == 30
    assert priority_for("srtf", predicted_tokens=30.0, generated_tokens=12) == 18
    assert priority_for("srtf", predicted_tokens=3.0, generated_tokens=12) == 1
    assert priority_for("sjf", predicted_tokens=1e30) == 2**31 - 1
    assert priority_for("sjf", predicted_tokens=1e30, lowest_first=False) == 1 - 2**31
    assert priority_for("priority", priority=-(2**40)) == 1 - 2**31
    assert priority_for("priority") == 0
    with pytest.raises(InputError, match="gave NaN"):
        priority_for(lambda prompt_tokens: math.nan * prompt_tokens, prompt_tokens=1)


def test_metrics_are_in_prometheus_from_the_start_and_count_there_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    prometheus = pytest.importorskip("prometheus_client")

    def sample(name: str, **labels: str) -> Any:
        return prometheus.REGISTRY.get_sample_value(
            f"lengthwise_{name}", {"engine": "e7", **labels}
        )

    counters = Counters(engine="e7")
    for name, row in COUNTERS.items():
        for value in row.values:
            assert sample(f"{name}_total", **{row.label: value}) == 0.0
    for name, row in HISTOGRAMS.items():
        for value in row.values:
            assert sample(f"{name}_count", **{row.label: value}) == 0.0
        bounds = [f"{float(b)}" for b in row.buckets]
        assert all(
            sample(f"{name}_bucket", le=bound, **{row.label: row.values[0]}) == 0.0
            for bound in bounds
        )
    for name, row in GAUGES.items():  # what is not known has no value
        assert all(sample(name, **{row.label: value}) is None for value in row.values)
    counters.add("predictions", "client")
    counters.add("predictions", "client", 4)
    counters.set("recent_tau", "client", 0.5)
    counters.observe("wait_seconds", "2", 0.05)
    assert counters.counts["predictions", "client"] == 5
    assert counters.gauges["recent_tau", "client"] == 0.5
    assert sample("predictions_total", source="client") == 5.0
    assert sample("recent_tau", source="client") == 0.5
    assert sample("wait_seconds_sum", score_quarter="2") == 0.05
    assert sample("wait_seconds_bucket", score_quarter="2", le="0.03") == 0.0
    assert sample("wait_seconds_bucket", score_quarter="2", le="0.1") == 1.0
    assert prometheus.REGISTRY.get_sample_value(
        "lengthwise_predictions_total", {"engine": "other", "source": "client"}
    ) is None  # fmt: skip
    caplog.set_level(logging.WARNING, "lengthwise")
    for _ in range(3):
        counters.warn("kind", "it happened")
    counters.warn("other", "that too")
    assert sum("it happened (kind)" in m for m in caplog.messages) == 1
    assert sum("that too (other)" in m for m in caplog.messages) == 1


def test_buckets_of_histograms_grow() -> None:
    for row in HISTOGRAMS.values():
        assert list(row.buckets) == sorted(set(row.buckets))
    assert HISTOGRAMS["prediction_seconds"].buckets[-1] == 10
    assert HISTOGRAMS["wait_seconds"].buckets[-1] == 300
    assert HISTOGRAMS["predicted_tokens"].values == ("client", "predictor")
    assert GAUGES["followed"].values == ("predictor",)


def test_stuck_threads_are_counted_once_and_replaced() -> None:
    now, counters = [0.0], Counters()
    made: threads.Aside[float] = threads.Aside("x", lambda value: value, counters, lambda: now[0])
    made._since = {0: 0.0, 1: 5.0}
    now[0] = 10.0
    assert made._stuck() == 0
    assert not made._given_up
    now[0] = 10.1
    assert made._stuck() == 0
    assert made._given_up == {0}
    assert counters.counts["restarts", "x-thread"] == 1
    assert made._stuck() == 0
    assert counters.counts["restarts", "x-thread"] == 1
    made._since |= {2: 0.0, 3: 0.0, 1: 0.0}
    assert made._stuck() == 1  # three in ten minutes are replaced, no more
    assert counters.counts["restarts", "x-thread"] == 3


def test_a_process_s_answer_is_unpacked_as_it_was_packed() -> None:
    made = object.__new__(predictor_process.PredictorProcess)
    made._curves = ["residual", "remaining"]
    k = predicting.POINTS
    values = np.arange(2.0 * k)
    found = made._told(bytearray(values.tobytes()))
    at = float(EDGES[3])
    assert found["residual"].at(at) == pytest.approx(3.0)
    assert found["remaining"].at(at) == pytest.approx(k + 3.0)
    assert made._told(bytearray(np.full(2 * k, np.nan).tobytes())) == {}
    assert made._told(bytearray()) == {}
    assert prompt_lengths._estimate("abcdefgh") == 2.0
    assert accuracy.LEVEL == 0.9


def test_rows_that_are_dropped_are_counted_each(tmp_path: Path) -> None:
    counters = Counters()
    made = Recorder(Settings(policy="fcfs", record=str(tmp_path / "r")), MODEL, counters)
    made.finished(SimpleNamespace(num_output_tokens=3))  # of which nothing is known
    assert counters.counts == {("recorded", "dropped"): 1}
    made.finished(SimpleNamespace(num_output_tokens=0))
    made.finished(SimpleNamespace(num_output_tokens=3, resumable=True))
    made._backlog = record.BACKLOG_TOKENS
    made.put({"prompt_tokens": 1})
    assert counters.counts == {("recorded", "dropped"): 2}
    made._backlog = 0
    waited: list[float] = []
    join = made._thread.join

    def joined(timeout: float) -> None:
        waited.append(timeout)
        join(timeout)

    made._thread.join = joined  # type: ignore[method-assign,assignment]
    made.close()
    assert waited == [30]  # seconds, and no longer
    assert not made._thread.is_alive() and made._closed.is_set()
    assert counters.counts == {("recorded", "dropped"): 2}


def test_what_the_disk_does_not_take_waits_and_is_dropped_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    counters = Counters()
    monkeypatch.setattr(record, "FLUSH_S", 0.01)
    made = record.Rows(str(tmp_path / "r"), False, {"tokenizer": ""}, counters)
    tries = [0]

    def write() -> tuple[int, int]:
        tries[0] += 1
        raise OSError("the disk is full")

    made._part.write = write  # type: ignore[method-assign]
    for _ in range(3):
        made.put({"prompt_tokens": 1})
    assert made._backlog == 3
    deadline = time.monotonic() + 10
    while tries[0] < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    made.close()
    assert made._backlog == 3 and counters.counts == {("recorded", "dropped"): 3}
    assert caplog.text.count("the record waits for its folder") == 1


def test_prompts_are_named_by_128_bits_of_their_tokens_or_text() -> None:
    from hashlib import blake2b

    tokens = [5, 70_000, 2]
    data = b"".join(token.to_bytes(4, "little") for token in tokens)
    assert part.prompt_id(tokens) == blake2b(data, digest_size=16).hexdigest()
    assert part.text_id("ab\ud800") == blake2b(b"ab?", digest_size=16).hexdigest()
    assert len(part.prompt_id([])) == len(part.text_id("")) == 32
    assert part.size_of({"prompt_token_ids": tokens, "prompt": "x" * 9}) == 1 + 3 + 2
    assert part.size_of({}) == part.size_of({"prompt": None, "prompt_token_ids": None}) == 1


@pytest.mark.parametrize(("tools", "told"), [([], 0.0), ([{}], 1.0), (7, 0.0), ({"a": 1}, 1.0)])
def test_a_call_without_tools_has_none(tools: Any, told: float) -> None:
    assert call_of({"prompt": "a", "tools": tools}).known["tools"] == told
