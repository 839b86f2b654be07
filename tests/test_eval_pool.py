"""Work over the cores: the processes are kept where asked, predictions are made once."""

from __future__ import annotations

import multiprocessing
import os
from typing import Any

import pytest

import lengthwise as lw
from lengthwise.errors import InputError
from lengthwise.eval import compare as comparing
from lengthwise.eval import pool
from lengthwise.eval.source import Cut


def _who(fail: int) -> int:
    if fail == 3:
        raise InputError("three is not allowed")
    return os.getpid()


def test_kept_workers_are_the_same_ones_and_end_with_their_block() -> None:
    with pool.kept_workers(2):
        with pool.kept_workers(2):  # inside, the outer ones
            first = set(pool.over_cores(_who, [(0,), (1,)], 2))
        with pytest.raises(InputError, match="three is not allowed"):
            list(pool.over_cores(_who, [(3,), (4,)], 2))  # what is asked later still works
        again = set(pool.over_cores(_who, [(n,) for n in (0, 1, 2, 4)], 2))
        held = {child.pid for child in multiprocessing.active_children()}
        assert first <= held and again <= held and len(first | again) <= 2
        assert os.getpid() not in again
    assert not pool._kept
    assert set(pool.over_cores(_who, [(0,)], 2)) == {os.getpid()}  # one task needs no other process


def test_a_predictor_that_several_policies_read_is_asked_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []
    honest = comparing.predict

    def predict(predictor: Any, workload: Any, seed: int) -> Any:
        asked.append((predictor, seed))
        return honest(predictor, workload, seed)

    monkeypatch.setattr(comparing, "predict", predict)
    workload = lw.Workload.preset("azure-conv-2023", requests=20, seed=0)
    found = comparing.compare(workload, ["sjf", "srtf"], ["oracle"], rates=[5.0, 9.0], seeds=2)
    assert sorted(asked, key=str) == sorted(
        [(None, 0), (None, 1), ("oracle", 0), ("oracle", 1)], key=str
    )
    assert len(found.contenders) == 3


def test_a_seed_s_process_is_sent_its_own_window_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []

    def over_cores(task: Any, tasks: Any, processes: int) -> Any:
        sent.extend(tasks)
        return (task(*each) for each in tasks)

    windows = tuple(lw.Workload.preset("azure-conv-2023", requests=9 + n, seed=n) for n in (0, 1))
    cut = Cut("two", windows)
    monkeypatch.setattr(comparing, "over_cores", over_cores)
    found = comparing.compare(cut, ["fcfs"], rates=[5.0], seeds=3)
    assert [source.windows for source, _ in sent] == [windows[:1], windows[1:], windows[:1]]
    assert [seed for _, seed in sent] == [0, 1, 2] and found.source is cut
    assert found.runs[found.runs["policy"] == "fcfs"]["requests"].tolist() == [9, 10, 9]
