"""What plugins measure, and by which clock."""

from __future__ import annotations

import asyncio
import ctypes
import http.server
import logging
import sys
import threading
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats

from lengthwise.policies.plugins import accuracy, record
from lengthwise.policies.plugins.accuracy import Accuracy, kendall_tau
from lengthwise.policies.plugins.budget import Budget
from lengthwise.policies.plugins.metrics import Counters
from lengthwise.policies.plugins.predictor_process import PredictorProcess
from lengthwise.policies.plugins.settings import Settings
from lengthwise.policies.plugins.threads import Aside, Exited, keep
from lengthwise.policies.plugins.vllm.clock import Clock
from lengthwise.policies.plugins.waits import Waits

FAKE = Path(__file__).parent / "engines" / "fake_predictor.py"


class Watched(Counters):
    """Keeps what is observed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str, float]] = []

    def observe(self, name: str, label: str, value: float) -> None:
        self.seen.append((name, label, value))


@pytest.mark.parametrize("seed", range(5))
def test_tau_is_scipy_s(seed: int) -> None:
    rng = np.random.default_rng(seed)
    left = rng.integers(1, 30, 200).astype(float)  # with ties
    right = np.maximum(1, left + rng.integers(-9, 9, 200)).astype(float)
    assert kendall_tau(left, right) == pytest.approx(stats.kendalltau(left, right).statistic)
    assert kendall_tau(left, np.ones(200)) == 0.0


def test_drift_is_seen_in_the_window() -> None:
    counters, rng = Counters(), np.random.default_rng(0)
    watch = Accuracy(counters)
    for factor, wanted in ((1.0, 0.0), (4.0, 2.0)):
        for _ in range(accuracy.WINDOW + accuracy.EVERY):
            predicted = float(rng.integers(10, 1000))
            watch.finished("predictor", predicted, int(predicted * factor))
        assert counters.gauges["recent_log2", "predictor"] == pytest.approx(wanted, abs=0.01)
        assert counters.gauges["recent_tau", "predictor"] == pytest.approx(1.0)


def test_what_says_nothing_of_a_prediction_is_left_out() -> None:
    counters = Watched()
    watch = Accuracy(counters)
    watch.finished("client", 0.0, 5)
    watch.finished("client", 5.0, 0)
    assert not counters.seen
    watch.finished("client", 8.0, 16)
    assert ("error_log2", "client", 1.0) in counters.seen


def test_waits_are_told_apart_by_the_quarter_of_the_score() -> None:
    counters, rng = Watched(), np.random.default_rng(0)
    waits = Waits(counters)
    for score in rng.uniform(0, 4, 4000):
        waits.admitted(score, wait_s=float(np.floor(score)))
    waits.admitted(float("nan"), 1.0)
    late = counters.seen[1000:]
    assert len(counters.seen) == 4000
    right = sum(int(quarter) - 1 == wait for _, quarter, wait in late)
    assert right > 0.95 * len(late)


def test_a_budget_forgives_with_time() -> None:
    now = [0.0]
    budget = Budget(lambda: now[0], times=2, window_s=10.0)
    assert [budget.take() for _ in range(3)] == [True, True, False]
    now[0] = 9.9
    assert not budget.take()
    now[0] = 10.0
    assert [budget.take() for _ in range(3)] == [True, True, False]


def test_three_times_in_ten_minutes_and_not_one_less() -> None:
    now = [0.0]
    budget = Budget(lambda: now[0])
    assert [budget.take() for _ in range(4)] == [True, True, True, False]
    now[0] = 599.9
    assert not budget.take()
    now[0] = 600.0
    assert [budget.take() for _ in range(4)] == [True, True, True, False]


def test_a_thread_that_fails_runs_again_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    counters, runs = Counters(), [0]

    def work() -> None:
        runs[0] += 1
        if runs[0] < 4:
            raise RuntimeError("once more")

    with caplog.at_level(logging.WARNING, "lengthwise"):
        keep("record", work, counters, threading.Event()).join(timeout=20)
    assert runs[0] == 4 and counters.counts["restarts", "record-thread"] == 3
    assert caplog.text.count("the record thread failed, and goes on") == 1


def test_a_thread_waits_for_its_budget_and_ends_when_told() -> None:
    counters, closed = Counters(), threading.Event()

    def work() -> None:
        raise RuntimeError("again")

    thread = keep("record", work, counters, closed, Budget(times=2))
    thread.join(timeout=0.2)
    assert thread.is_alive() and counters.counts["restarts", "record-thread"] == 3
    closed.set()
    thread.join(timeout=20)
    assert not thread.is_alive()


def test_a_thread_that_exits_runs_again_and_says_when_its_budget_is_spent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    counters, closed = Counters(), threading.Event()

    def work() -> None:
        raise SystemExit("a library's")

    thread = keep("record", work, counters, closed, Budget(times=1))
    while ("record-thread-off") not in counters._warned:
        thread.join(timeout=0.01)
    closed.set()
    thread.join(timeout=20)
    assert counters.counts["restarts", "record-thread"] == 2
    assert caplog.text.count("failed more than 1 times within 600 s and stays off") == 1


def kill(thread: threading.Thread) -> None:
    """Raises SystemExit in a thread at its next line of Python."""
    set_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
    assert set_in(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)) == 1


def named(name: str, before: list[threading.Thread]) -> threading.Thread:
    """The thread of that name; those of tests before may still be on their way out."""
    alive = (one for one in threading.enumerate() if one not in before)
    (found,) = (one for one in alive if one.name == f"lengthwise-{name}")
    return found


def until(done: Any) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)


def test_a_predictor_s_threads_are_killed_and_its_answers_go_on() -> None:
    counters, before = Counters(), threading.enumerate()
    process = PredictorProcess([sys.executable, str(FAKE), "works"], counters)
    try:
        for name in ("predictor-writer", "predictor"):
            kill(named(name, before))
            until(lambda name=name: counters.counts["restarts", f"{name}-thread"] == 1)
        found: list[Any] = []

        def answered() -> bool:
            process.send(1, [5, 5])
            found.extend(answer for answer in process.received() if answer.tokens == 4.0)
            return bool(found)

        until(answered)
    finally:
        process.close()


def test_a_record_s_thread_is_killed_and_nothing_is_missing_from_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "FLUSH_S", 0.02)
    counters, before = Counters(), threading.enumerate()
    model: Any = SimpleNamespace(model="m", tokenizer="t")
    made = record.Recorder(Settings(policy="sjf", record=str(tmp_path)), model, counters)
    kill(named("record", before))
    until(lambda: counters.counts["restarts", "record-thread"] == 1)
    made.finished(
        SimpleNamespace(
            request_id="a", arrival_time=0.0, prompt_token_ids=[1], num_prompt_tokens=1,
            num_output_tokens=3, sampling_params=None,
            status=SimpleNamespace(name="FINISHED_STOPPED"),
        )
    )  # fmt: skip
    made.close()
    assert counters.counts["recorded", "written"] == 1
    (file,) = tmp_path.glob("*.parquet")
    assert pq.read_table(file)["output_tokens"].to_pylist() == [3]


def test_the_metrics_server_is_watched_and_serves_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """As prometheus_client does: a server of the standard library, in a thread that is told of."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None: ...

    made: list[Any] = []

    def start_http_server(port: int, addr: str) -> Any:
        server = http.server.ThreadingHTTPServer((addr, port), Page)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        made.extend((server, thread))
        return server, thread

    counters = Counters()
    monkeypatch.setitem(
        sys.modules, "prometheus_client", SimpleNamespace(start_http_server=start_http_server)
    )
    counters._prometheus = {"some": None}
    counters.listen("127.0.0.1", 0)
    server, thread = made
    server.shutdown()  # its thread ends
    thread.join(timeout=20)
    until(lambda: counters.counts["restarts", "metrics-thread"] == 1)
    with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/", timeout=20) as answer:
        assert answer.status == 200
    counters.listen("no-host." + "a" * 70, 1)  # a name that no name server takes
    assert "metrics-port" in counters._warned


def test_calls_that_hang_are_left_and_their_threads_replaced_within_a_budget() -> None:
    counters, now, free = Counters(), [0.0], threading.Event()

    def work(value: int) -> int:
        if value < 0:
            free.wait()
        if value == 0:
            raise SystemExit("a user's")
        return 2 * value

    async def run() -> None:
        aside = Aside("router-predictor", work, counters, lambda: now[0])
        assert await aside.ask(4, 60.0) == 8
        with pytest.raises(Exited, match="a user's"):
            await aside.ask(0, 60.0)
        hung = [asyncio.create_task(aside.ask(-1, 60.0)) for _ in range(7)]
        while len(aside._since) < 4:
            await asyncio.sleep(0)
        now[0] = 11.0
        for at_s, replaced in ((11.0, 3), (22.0, 3)):  # three new ones, which then hang as well
            now[0] = at_s
            with pytest.raises(TimeoutError):
                await aside.ask(5, 0.2)
            assert counters.counts["restarts", "router-predictor-thread"] == replaced
        with pytest.raises(TimeoutError, match="all its threads hang"):
            await aside.ask(5, 60.0)
        now[0] = 700.0  # what is past is forgiven
        assert await aside.ask(5, 60.0) == 10
        free.set()
        assert await asyncio.gather(*hung) == [-2] * 7

    asyncio.run(run())


@pytest.fixture
def times() -> Any:
    return SimpleNamespace(monotonic=50.0, wall=1.7e9)


@pytest.fixture
def clock(times: Any) -> Clock:
    return Clock(lambda: times.monotonic, lambda: times.wall)


def pass_(times: Any, seconds: float) -> None:
    times.monotonic += seconds
    times.wall += seconds


def test_arrivals_are_on_the_clock_s_scale(clock: Clock, times: Any) -> None:
    pass_(times, 10.0)
    assert clock.now_s() == 10.0
    assert clock.arrival_s(1.7e9 + 9.5) == pytest.approx(9.5)


@pytest.mark.parametrize("jump_s", [-3600.0, 3600.0])
def test_a_clock_that_is_set_makes_nobody_wait_longer(
    clock: Clock, times: Any, jump_s: float
) -> None:
    pass_(times, 100.0)
    stamped = times.wall
    times.wall += jump_s
    pass_(times, 1.0)
    assert clock.now_s() == 101.0
    assert clock.arrival_s(stamped) == 101.0  # stamped before, here after: it came just now
    assert 41.0 <= clock.arrival_s(stamped) <= 101.0  # and the next such
    pass_(times, 1.0)
    assert clock.arrival_s(times.wall - 0.25) == pytest.approx(101.75)
