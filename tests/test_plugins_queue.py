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


def plain(sequence: int, score: float, arrival: float = 0.0) -> Entry:
    made = entry(sequence, np.random.default_rng(0))
    made.state, made.score, made.arrival_s = "ready", score, arrival
    return made


def queues() -> tuple[list[ScoredQueue], list[Entry], list[int]]:
    """One of each kind whose score is the predicted length; who failed, and how often many were
    scored."""
    failed: list[Entry] = []
    evaluated: list[int] = []

    class Told:
        names = ("predicted_tokens", "now_s")

        def many(self, values: Any, count: int) -> Any:
            evaluated.append(count)
            assert values["now_s"] == 3.0 and len(values["predicted_tokens"]) == count
            return np.where(values["predicted_tokens"] < 0, np.nan, values["predicted_tokens"])

    def fails(one: Entry) -> None:
        failed.append(one)
        one.state = "failed"

    def score(one: Entry) -> None:
        one.score = one.predicted_tokens

    def of(request: Any) -> Entry:
        return request.lengthwise  # type: ignore[no-any-return]

    clock = ClockQueue(of, Told(), REQUEST, {"now_s": 3.0, "more": 9.0}, fails)  # type: ignore[arg-type]
    return [RankQueue(of, score), clock], failed, evaluated


def test_queues_have_what_an_engine_calls() -> None:
    made, *_ = queues()
    for queue in made:
        for call in (queue.peek_request, queue.pop_request):
            with pytest.raises(IndexError, match="from an empty queue"):
                call()
        entries = [plain(k, 0.0) for k in range(4)]
        for one, tokens in zip(entries, (5.0, 3.0, 5.0, 1.0), strict=True):
            one.predicted_tokens = tokens
        requests = [one.request for one in entries]
        queue.prepend_request(requests[0])
        queue.prepend_requests(requests[1:3])
        with pytest.raises(ValueError, match="the request is not in this queue"):
            queue.remove_request(requests[3])
        queue.remove_requests([requests[3]])  # not here: as it was
        assert list(queue) == [requests[1], requests[0], requests[2]]
        assert list(reversed(queue)) == [requests[2], requests[0], requests[1]]
        assert [one.sequence for one in queue.best(1)] == [1] and len(queue.best(9)) == 3
        assert requests[1].priority == 3.0 and bool(queue)
        queue.add(entries[3])
        assert queue.peek_request() is requests[3] and requests[3] in queue
        queue.remove_requests([requests[3], requests[0]])
        assert list(queue) == [requests[1], requests[2]] and requests[0] not in queue
        assert queue.pop_request() is requests[1] and queue.pop_request() is requests[2]
        assert not queue and len(queue) == 0
        twin = plain(2, 0.0)  # another request of the same number
        queue.add(entries[2])
        with pytest.raises(ValueError, match="the request is not in this queue"):
            queue.remove_request(twin.request)
        queue.reorder(entries[0])  # who isn't here moves nothing
        assert list(queue) == [requests[2]]


def test_a_heap_throws_away_what_is_stale_once_it_is_most_of_it() -> None:
    (queue, _), *_ = queues()
    assert isinstance(queue, RankQueue)
    one = plain(0, 0.0)
    queue.add(one)
    for _ in range(65):
        queue.reorder(one)
    assert len(queue._heap) == 66  # 2 a member, and 64
    queue.reorder(one)
    assert len(queue._heap) == 1 and queue.first() is one
    assert [found.sequence for found in queue.best(1)] == [0]


def test_a_clock_s_scores_are_evaluated_once_a_step_and_fail_one_by_one() -> None:
    (_, queue), failed, evaluated = queues()
    assert isinstance(queue, ClockQueue)
    entries = [plain(k, 0.0, arrival=float(-k)) for k in range(130)]
    for k, one in enumerate(entries):
        one.predicted_tokens = -1.0 if k == 7 else float(k % 50)
        queue.add(one)
    order = sorted((one for one in entries if one.sequence != 7),
                   key=lambda one: (one.predicted_tokens, one.arrival_s))  # fmt: skip
    taken = [queue.pop_request().lengthwise.sequence for _ in range(70)]
    assert failed == [entries[7]] and entries[7].state == "failed"
    wanted = [one.sequence for one in order]
    assert taken == wanted[:70]  # who failed comes after all
    assert evaluated == [130]  # all of them, once
    assert entries[taken[-1]].score == entries[taken[-1]].predicted_tokens
    queue.refresh()
    entries[wanted[-1]].predicted_tokens = 0.0  # what stood still is as it was noted
    assert queue.first().sequence == wanted[70]
    assert evaluated == [130, 60]
    queue.reorder(entries[wanted[-1]])
    assert queue.first().sequence == wanted[-1] and evaluated == [130, 60, 60]
    assert list(queue)[-1] is entries[7].request
