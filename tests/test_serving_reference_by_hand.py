"""The reference engine, its small parts by hand: blocks, queues, requests, clocks, the guard."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lengthwise.errors import InputError
from lengthwise.picoseconds import PS
from lengthwise.policies import load_policy, load_router
from lengthwise.policy import Guard
from lengthwise.protocols import Batch
from lengthwise.serving import Engine, Node, System
from lengthwise.serving.clock import Clock
from lengthwise.serving.reference.kv_cache import KVCache
from lengthwise.serving.reference.replica import FUTILE, endless, too_late
from lengthwise.serving.reference.request import Request
from lengthwise.serving.reference.run import ReferenceRun
from lengthwise.serving.reference.starvation import Watch
from lengthwise.serving.reference.timeline import Step, Timeline
from lengthwise.serving.reference.waiting import ArrivalQueue, ScoreQueue
from lengthwise.serving.timing import LinearTiming
from lengthwise.workload import Workload


def request(id: int, prompt: int = 9, output: int = 3, *keys: int, arrival: int = 0) -> Request:
    return Request(id, prompt, output, arrival, 7, keys)


# Blocks


def test_blocks_without_a_prefix_cache_are_a_number() -> None:
    cache = KVCache(11, 4, False)
    assert (cache.total, cache.free, cache.used) == (10, 10, 0)  # one is vLLM's null block
    assert [cache.blocks_for(tokens) for tokens in (0, 1, 4, 5, 8)] == [0, 1, 1, 2, 2]
    one, two = request(0), request(1)
    assert cache.find(one) == [] and cache.demand(9, []) == 3
    cache.admit(one, [], 9)
    assert (one.held, cache.free, cache.used) == (3, 7, 3) and one.blocks == []
    assert cache.grow(one, 12) and one.held == 3  # 12 tokens are 3 blocks
    assert cache.grow(one, 13) and one.held == 4 and cache.free == 6
    assert not cache.grow(two, 25) and two.held == 0 and cache.free == 6  # 7 blocks
    assert cache.grow(two, 24) and cache.free == 0
    cache.check([one, two])
    cache.remember(one, 8)
    cache.release(one)
    assert (cache.free, one.held) == (4, 0)
    cache.check([two])


def test_prefixes_are_found_shared_and_evicted_last_used_first() -> None:
    cache = KVCache(6, 4, True)  # five blocks
    first = request(0, 9, 3, 100, 101)
    cache.admit(first, [], 9)
    assert len(first.blocks) == 3 == len(set(first.blocks)) and first.hashed == 0
    cache.remember(first, 9)
    assert first.hashed == 2  # two full blocks
    same = request(1, 9, 3, 100, 101)
    hits = cache.find(same)
    assert hits == first.blocks[:2]
    assert cache.demand(9, hits) == 1  # both are held: only the third is new
    # the last known token is computed again: eight tokens find one block, nine find both
    assert cache.find(request(2, 8, 3, 100, 101)) == first.blocks[:1]
    assert cache.find(request(3, 9, 3, 100, 999)) == first.blocks[:1]
    assert cache.find(request(4, 9, 3, 999, 101)) == []
    cache.admit(same, [*hits], 9)
    assert same.blocks[:2] == hits and cache.free == 1 and same.hashed == 2
    cache.check([first, same])
    cache.release(first)
    assert cache.free == 2 and first.blocks == []  # its third; the others are still held
    cache.check([same])
    cache.release(same)
    assert cache.free == 5 and cache.used == 0
    assert cache.demand(9, hits) == 3  # what is free but cached counts as taken
    # blank blocks first; then the tail of the prefix, then its head
    other = request(5, 16)
    cache.admit(other, [], 16)
    assert cache.find(request(6, 9, 3, 100, 101)) == hits[:1]
    assert cache.grow(other, 20) and cache.find(request(6, 9, 3, 100, 101)) == []
    cache.check([other])


def test_a_block_of_one_s_own_is_no_other_s() -> None:
    one, other = request(3, 20, 3, 7), request(4, 20, 3, 7)
    assert one.key(0) == 7 == other.key(0)
    assert one.key(1) == -1 - (3 << 24 | 1) and one.key(1) != other.key(1) and one.key(2) < 0
    cache = KVCache(20, 4, True)
    cache.admit(one, [], 20)
    cache.remember(one, 20)
    assert cache.find(other) == one.blocks[:1] and one.hashed == 5
    cache.remember(one, 8)
    assert one.hashed == 5
    again = KVCache(20, 4, True)
    first, second = request(0, 9, 1, 5, 6), request(1, 9, 1, 5, 6)
    for each in (first, second):  # the same content twice: the first cached is found
        again.admit(each, [], 9)
        again.remember(each, 9)
    assert again.find(request(2, 9, 1, 5, 6)) == first.blocks[:2]


# Queues


def test_the_queue_of_arrivals() -> None:
    queue = ArrivalQueue()
    a, b, c = (request(id) for id in range(3))
    for each in (a, b, c):
        queue.push(each)
    assert queue.peek() is a and len(queue) == 3
    queue.remove(b)
    queue.push_back(b)
    queue.reorder([c])
    assert queue.ordered() == [b, a, c]
    queue.remove(b)
    assert queue.peek() is a and len(queue) == 2


def test_the_queue_by_score_breaks_ties_by_arrival_then_number() -> None:
    queue = ScoreQueue()
    given = [request(id, arrival=at) for id, at in ((0, 5), (1, 3), (2, 3), (3, 9))]
    for each, score in zip(given, (1.0, 1.0, 1.0, 0.5), strict=True):
        each.score = score
        queue.push(each)
    assert [each.id for each in queue.ordered()] == [3, 1, 2, 0] and queue.peek() is given[3]
    queue.remove(given[3])
    assert queue.peek() is given[1] and len(queue) == 3
    given[0].ahead = True  # before all scores
    queue.reorder([given[0]])
    assert queue.peek() is given[0] and given[0].rank == -math.inf
    given[2].score = 0.0
    queue.reorder([given[2]])
    queue.remove(given[0])
    assert queue.peek() is given[2]
    queue.push_back(given[0])
    assert queue.ordered()[0] is given[0]


def test_few_changes_among_many_are_found() -> None:
    queue = ScoreQueue()
    many = [request(id) for id in range(20)]
    for each in many:
        each.score = 10.0 + each.id
        queue.push(each)
    many[7].score = 1.0
    queue.reorder([many[7]])
    many[0].score = 99.0
    queue.reorder([many[0]])
    assert queue.peek() is many[7]
    queue.remove(many[7])
    assert queue.peek() is many[1]
    many[1].score, many[2].score = 50.0, 60.0
    queue.reorder(many[:6])
    assert queue.peek() is many[3] and len(queue) == 19


# Requests


def test_how_far_a_request_has_come() -> None:
    one = request(0, 10, 5)
    assert (one.generated, one.missing, one.prefill_left, one.decode_left) == (0, 10, 10, 7)
    assert (one.cached, one.scheduled_ps, one.first_token_ps) == (-1, -1, -1)
    assert (one.preemptions, one.stored, one.reach, one.recomputed, one.pending) == (0,) * 5
    one.computed = 4
    assert (one.missing, one.prefill_left) == (6, 6)
    one.stored = 6
    assert one.prefill_left == 4
    one.known, one.computed, one.pending = 19, 18, 1
    assert (one.generated, one.missing, one.prefill_left, one.decode_left) == (9, 2, 0, 0)
    assert one.rank == one.score == 0.0


# Clocks


def timeline(*slow: tuple[int, int, int]) -> Timeline:
    clock = Clock(lambda batch: 100 + batch.decode_seqs, 7)
    return Timeline(clock, slow)


def step(seqs: int, start: int, swapped: int = 0) -> Step:
    made = Step(batch=Batch(decode_seqs=seqs), swapped_tokens=swapped, start_ps=start)
    made.scheduled = {request(0): 1} if seqs else {}
    return made


def test_iterations_follow_each_other_on_one_clock() -> None:
    times = timeline()
    assert times.starts_ps(5) == 5
    first = step(3, 5)
    times.place(first, 5, 1, None)
    assert (first.end_ps, first.seen_ps) == (108, 108) and times.starts_ps(5) == 108
    assert times.starts_ps(200) == 200
    swap = step(0, 108, swapped=4)  # nothing is computed; tokens move
    times.place(swap, 5, 1, None)
    assert swap.end_ps == 108 + 28
    both = step(2, 136, swapped=1)
    times.place(both, 5, 1, None)
    assert both.end_ps == 136 + 102 + 7


def test_what_starts_in_a_slow_window_takes_longer() -> None:
    times = timeline((10, 20, 3 << 20), (20, 30, 2 << 20))
    for start, took in ((9, 101), (10, 303), (19, 303), (20, 202), (29, 202), (30, 101)):
        made = step(1, start)
        times.place(made, start, 1, None)
        assert made.end_ps == start + took


def test_errors_that_both_engines_say() -> None:
    assert FUTILE == 1000
    assert str(endless(3, 1, PS // 2)) == (
        "3 requests preempt each other forever for want of KV blocks, as they would in vLLM "
        "(replica 1, 0.5 s): num_gpu_blocks is too small for this policy"
    )
    assert "beyond 9.2e+06 s (106 days)" in str(too_late())


# The guard's feed


def test_the_guard_hears_of_predictions_and_of_who_left() -> None:
    watch = Watch(Guard(0.5, 0.0))
    one, silent = request(0, arrival=0), request(1, arrival=0)
    silent.predicted = 0
    watch.arrived(one, idle=True)
    watch.arrived(silent, idle=False)
    assert one.waiter is not None and silent.waiter is not None
    assert (one.waiter.predicted_tokens, silent.waiter.predicted_tokens) == (7, 256)
    assert (one.waiter.sequence, silent.waiter.arrival_ps) == (0, 0) and not one.waiter.gone
    assert watch.send_ahead(10) == [one, silent] and one.ahead and silent.ahead
    one.known += 3
    assert one.waiter.gone
    left, silent.waiter = silent.waiter, None
    assert left.gone  # it went to another replica


# A run


def columns(**given: Any) -> Workload:
    return Workload({"prompt_tokens": [4] * len(given["arrival_s"]), **given})


def run(workload: Workload, router: str = "jsq", nodes: int = 2, **given: Any) -> ReferenceRun:
    node = Node(Engine(max_num_seqs=1, num_gpu_blocks=50), LinearTiming(1.0), load_policy("fcfs"))
    system = System((node,) * nodes, load_router(router), **given)
    return ReferenceRun(workload, system, [5.0] * len(workload), check=True)


def test_integrals_of_a_run_by_hand() -> None:
    """One seat, a second a token: the second of three waits 2 s, the third 3 - 0.5 s."""
    made = run(columns(arrival_s=[0.0, 0.0, 0.5], output_tokens=[2, 1, 1]), nodes=1)
    assert made.advance().kind == "done"
    totals = made.totals
    assert totals.now_ps == 4 * PS and totals.finished == 3 and totals.in_system == 0
    # in the system for 2 + 3 + 3.5 s, of which they wait 0 + 2 + 2.5
    assert totals.request_ps == int(8.5 * PS) and totals.waiting_ps == int(4.5 * PS)
    assert totals.generated_tokens == 4 and totals.preemptions == 0 == totals.recomputed_tokens
    found = made.records()
    assert found.finish_ps.tolist() == [2 * PS, 3 * PS, 4 * PS]
    assert found.scheduled_ps.tolist() == [0, 2 * PS, 3 * PS]
    with pytest.raises(InputError, match="nothing waits for an answer"):
        made.answer(0)


def test_routers_see_their_books_now_and_metrics_of_the_last_look() -> None:
    """Two nodes, three seconds a request: who reads queues of long ago sends all to one."""
    given = columns(arrival_s=[0.0, 0.5, 1.0, 1.5], output_tokens=[3, 3, 3, 3])
    for router, interval, nodes in (
        ("jsq", 0.0, [0, 1, 0, 1]), ("jsq", 10.0, [0, 0, 0, 0]), ("jsq", 0.75, [0, 0, 1, 1]),
        ("round-robin", 10.0, [0, 1, 0, 1]), ("least-requests", 10.0, [0, 1, 0, 1]),
    ):  # fmt: skip
        made = run(given, router, metrics_interval_s=interval)
        made.advance()
        assert made.records().replica.tolist() == nodes, (router, interval)


def test_children_come_after_their_parents_and_not_before_their_time() -> None:
    given = columns(arrival_s=[0.0, 0.0, 9.0], output_tokens=[2, 1, 1], parent=[-1, 0, 0],
                    think_s=[0.0, 0.5, 0.5])  # fmt: skip
    made = run(given)
    made.advance()
    found = made.records()
    assert found.arrival_ps.tolist() == [0, int(2.5 * PS), 9 * PS]
    assert found.finish_ps.tolist() == [2 * PS, int(3.5 * PS), 10 * PS]
