"""What plugins measure, and by which clock."""

from __future__ import annotations

import logging
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from lengthwise.policies.plugins import accuracy
from lengthwise.policies.plugins.accuracy import Accuracy, kendall_tau
from lengthwise.policies.plugins.budget import Budget
from lengthwise.policies.plugins.metrics import Counters
from lengthwise.policies.plugins.threads import keep
from lengthwise.policies.plugins.vllm.clock import Clock
from lengthwise.policies.plugins.waits import Waits


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
