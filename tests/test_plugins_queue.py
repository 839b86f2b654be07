"""Waiting queues of the vLLM plugin, after every operation held to a sorted list."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lengthwise.policies import load_policy
from lengthwise.policies.plugins.metrics import Counters
from lengthwise.policies.plugins.scorer import Scorer
from lengthwise.policies.plugins.vllm.driver import REQUEST, SHARED
from lengthwise.policies.plugins.vllm.entry import Entry
from lengthwise.policies.plugins.vllm.queue import ClockQueue, RankQueue, ScoredQueue


def entry(sequence: int, rng: np.random.Generator) -> Entry:
    request = SimpleNamespace(num_prompt_tokens=5, num_output_tokens=0, priority=0)
    made = Entry(
        request=request, sequence=sequence, arrival_ps=0, arrival_s=float(rng.integers(0, 50)),
        predicted_tokens=float(rng.integers(1, 30)), priority=0, deadline_s=float("inf"),
    )  # fmt: skip
    request.lengthwise = made
    if rng.random() < 0.1:
        made.state = "failed"
    return made


@pytest.mark.parametrize("kind", ["rank", "clock"])
def test_any_order_of_operations_leaves_the_queue_sorted(kind: str) -> None:
    """hrrn by hand: waited / (predicted + 1), highest first; ties by arrival, then sequence."""
    rng = np.random.default_rng(2)
    view = {"now_s": 60.0}

    def score(one: Entry) -> float:
        return -(view["now_s"] - one.arrival_s) / (one.predicted_tokens + 1.0)

    def of(request: Any) -> Entry:
        return request.lengthwise  # type: ignore[no-any-return]

    def scored(one: Entry) -> None:
        one.score = score(one)

    queue: ScoredQueue
    if kind == "clock":
        scorer = Scorer(load_policy("hrrn").score, Counters(), 1e9)
        assert scorer.by_clock
        queue = ClockQueue(of, scorer, REQUEST, view, lambda one: None)
    else:
        queue = RankQueue(of, scored)
    there: list[Entry] = []

    def key(one: Entry) -> tuple[float, float, int]:
        rank = one.rank if one.ahead or one.state != "ready" else score(one)
        return rank, one.arrival_s, one.sequence

    for sequence in range(600):
        what = rng.integers(6)
        if what < 3 or not there:
            there.append(entry(sequence, rng))
            queue.add_request(there[-1].request)
        elif what == 3:
            there.sort(key=key)
            assert queue.pop_request() is there.pop(0).request
        elif what == 4:
            gone = there.pop(int(rng.integers(len(there))))
            queue.remove_request(gone.request)
            assert gone.request not in queue
        elif kind == "clock" and rng.random() < 0.3:
            view["now_s"] += 5.0
            queue.refresh()
        else:
            moved = there[int(rng.integers(len(there)))]
            moved.predicted_tokens, moved.ahead = float(rng.integers(1, 30)), rng.random() < 0.1
            moved.state = "ready"
            queue.reorder(moved)
        there.sort(key=key)
        assert len(queue) == len(there)
        if there:
            assert queue.peek_request() is there[0].request
        if sequence % 10 == 0:
            assert [one.sequence for one in queue.best(5)] == [o.sequence for o in there[:5]]
            assert list(queue) == [one.request for one in there]
    assert len(there) > 64  # more than are looked at in one go


def test_whoever_is_next_and_barred_bars_the_queue() -> None:
    rng = np.random.default_rng(0)
    queue = RankQueue(lambda request: request.lengthwise, lambda one: None)
    first, second = entry(0, rng), entry(1, rng)
    for place, one in enumerate((first, second)):
        one.state, one.score = "ready", float(place)
        queue.add_request(one.request)
    queue.barred = {1}
    assert queue
    queue.barred = {0}
    assert not queue and len(queue) == 2


def test_what_running_and_waiting_requests_owe_a_scheduler_by_hand() -> None:
    """Of a prompt what is not computed, of an answer what is predicted and not there yet."""

    def one(prompt: int, computed: int, output: int, predicted: float) -> Any:
        made = entry(0, np.random.default_rng(0))
        made.predicted_tokens, made.source = predicted, "client"
        return SimpleNamespace(
            num_prompt_tokens=prompt, num_computed_tokens=computed, num_output_tokens=output,
            lengthwise=made,
        )  # fmt: skip

    requests = [one(10, 4, 0, 6.5), one(10, 12, 3, 5.0), one(10, 20, 11, 5.0)]
    driver = SimpleNamespace(
        scheduler=SimpleNamespace(
            requests=dict(enumerate(requests)), running=requests[1:], max_num_running_reqs=5
        )
    )
    assert SHARED["prefill_backlog_tokens"](driver) == 6
    assert SHARED["decode_backlog_tokens"](driver) == 7 + 2 + 0
    assert SHARED["free_seats"](driver) == 3
    assert SHARED["max_seats"](driver) == 5
