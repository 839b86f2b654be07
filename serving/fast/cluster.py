"""Replicas of the fast engine behind a router: one total order of events, as in ``cluster``.

At one moment iterations end first (by replica), then requests arrive (by id), then replicas that
can schedule do so (by replica).
"""

# compiled from its text; to mypy every number that an array yields is Any
# mypy: disable-error-code="no-any-return, return-value, call-arg"

from __future__ import annotations

from typing import Any

import numpy as np

from lengthwise.picoseconds import PS
from lengthwise.serving.fast.compiler.jit import as_state, draw, hot, kernel, node_of, uniform
from lengthwise.serving.fast.curves import fill_curves
from lengthwise.serving.fast.flags import ASYNC, GUARD, MORE, POLICY
from lengthwise.serving.fast.guard import drop_unwatched
from lengthwise.serving.fast.queue import compact
from lengthwise.serving.fast.replica import begin_iteration, end_iteration, enqueue
from lengthwise.serving.fast.scores import evaluate, fill_request, score_at_arrival, weight
from lengthwise.serving.fast.state import DONE, GROW, NEVER, NONE
from lengthwise.serving.scoring import FRACTION

# Arrivals


@hot
def reaches(S: Any, id: int) -> int:
    """When the scheduler sees a request."""
    return S.arrival[id] + S.reach_ps[id] if len(S.reach_ps) else S.arrival[id]


@hot
def earlier(S: Any, id: int, other: int) -> bool:
    """Whether a request comes before another, in time or else by id."""
    time, other_time = reaches(S, id), reaches(S, other)
    return time < other_time if time != other_time else id < other


@hot
def next_arrival(S: Any) -> int:
    """The request that arrives next, NONE if none does before another finishes."""
    run = S.run
    if not (MORE and run.closed_loop):
        return run.next_root if run.next_root < run.requests else NONE
    root = S.roots[run.next_root] if run.next_root < len(S.roots) else NONE
    if run.children == 0:
        return root
    child = S.calendar[0]
    return child if root == NONE or earlier(S, child, root) else root


@kernel
def pop_child(S: Any) -> None:
    """The first child leaves the calendar."""
    run = S.run
    run.children -= 1
    last = S.calendar[run.children]
    place = 0
    while True:
        down = 2 * place + 1
        if down >= run.children:
            break
        if down + 1 < run.children and earlier(S, S.calendar[down + 1], S.calendar[down]):
            down += 1
        if not earlier(S, S.calendar[down], last):
            break
        S.calendar[place] = S.calendar[down]
        place = down
    S.calendar[place] = last


@hot
def take_arrival(S: Any, id: int) -> None:
    """An arrival leaves the calendar."""
    run = S.run
    if MORE and run.children > 0 and S.calendar[0] == id:
        pop_child(S)
    else:
        run.next_root += 1


# Routing


@kernel
def sample(S: Any, id: int) -> int:
    """Which replicas are looked at, in ``places``; as ``draws.sample``. Returns how many."""
    run = S.run
    count = run.replicas
    for k in range(count):
        S.places[k] = k
    if not 0 < run.choices < count:
        return count
    for k in range(run.choices):
        bits = draw(np.uint64(run.seed), id, count + k)
        other = k + np.int64(bits % np.uint64(count - k))
        value = S.places[k]
        S.places[k] = S.places[other]
        S.places[other] = value
    for k in range(1, run.choices):
        value, place = S.places[k], k
        while place > 0 and S.places[place - 1] > value:
            S.places[place] = S.places[place - 1]
            place -= 1
        S.places[place] = value
    return run.choices


@hot
def fill_replica(S: Any, row: int, id: int, r: int) -> None:
    """Writes the features of a replica, and those of a request that arrives now."""
    run, node, rep, to = S.run, node_of(S, r), S.replica[r], S.rows[row]
    to.running_requests = rep.running
    to.waiting_requests = rep.waiting
    to.kv_utilization = (node.blocks - rep.free) / node.blocks
    to.routed_requests = rep.routed
    to.outstanding_tokens = rep.outstanding / FRACTION
    if run.draws:
        to.random_draw = uniform(np.uint64(run.seed), id, r)
    if run.reads_request:
        fill_request(S, row, id)
    if run.reads_curves:
        fill_curves(S, row, id, 0)
    if run.reads_times:
        to.arrival_s = np.float64(S.arrival[id]) / PS
        to.now_s = np.float64(run.now) / PS
    to.generated_tokens = 0
    to.computed_tokens = 0
    to.preemptions = 0


@kernel
def route(S: Any, id: int) -> int:
    """The replica with the lowest score, the first of them; -1 - code if the score failed."""
    run = S.run
    count = sample(S, id)
    for row in range(count):
        fill_replica(S, row, id, S.places[row])
    code = evaluate(S, run.router_at, count)
    if code != DONE:
        return -1 - code
    best = 0
    for row in range(1, count):
        if S.out[row] < S.out[best]:
            best = row
    return S.places[best]


@hot
def send(S: Any, id: int, r: int) -> int:
    """A request arrives at a replica and waits; a code."""
    run, node, rep = S.run, node_of(S, r), S.replica[r]
    if MORE and node.by_score and not node.every:
        if node.ahead_at != NONE:
            S.score[id] = S.ahead[node.ahead_at + id]
        if node.at_arrival or S.arrival[id] != S.planned[id]:
            code = score_at_arrival(S, r, id)
            if code != DONE:
                return code
    enqueue(S, r, id)
    rep.routed += 1
    if MORE and run.weighted:
        rep.outstanding += weight(S, id)
    return DONE


# Room


@hot
def has_room(S: Any, r: int) -> bool:
    """Whether an arrival or an iteration of this replica can't overflow any array."""
    run, node, rep = S.run, node_of(S, r), S.replica[r]
    if run.log and run.log_rows >= len(S.log):
        return False
    if not (MORE and node.by_score):
        return True
    capacity = rep.capacity
    if node.callback and rep.waiting + node.max_seqs >= capacity:
        return False
    slack = 3 * node.max_seqs + 1
    if GUARD and node.guarded:
        slack += min(rep.waiting, rep.watched)  # so many may be sent ahead
        if rep.watched + node.max_seqs + 1 >= capacity:
            drop_unwatched(S, r)
            if 2 * (rep.watched + node.max_seqs + 1) >= capacity:
                return False
    if POLICY or ASYNC or GUARD:
        if rep.stale + slack >= capacity:
            return False
        if rep.heap + rep.stale + slack >= capacity and rep.heap > 2 * rep.waiting:
            compact(S, r)
    return rep.heap + rep.stale + slack < capacity


# The run


@hot
def finish(S: Any, r: int) -> None:
    """The oldest iteration under way ends; the next one is the oldest."""
    rep = S.replica[r]
    end_iteration(S, r)
    S.end[r] = NEVER if rep.iteration == rep.done else S.step[r, (rep.done + 1) & 1].end


@kernel
def run_until(table: int) -> int:
    """Goes on until all is done or something stops it; a code.

    ``table`` is the address of an address table. GROW: call again with larger arrays.
    """
    S: Any = as_state(table)
    run = S.run
    while True:
        now = run.now
        while True:
            id = next_arrival(S)
            if id == NONE or reaches(S, id) > now:
                break
            r = 0
            if MORE and run.replicas > 1:
                r = route(S, id)
                if r < 0:
                    return -1 - r
            if not has_room(S, r):
                run.at_replica = r
                return GROW
            take_arrival(S, id)
            code = send(S, id, r)
            if code != DONE:
                return code
        following = NEVER if id == NONE else reaches(S, id)
        for r in range(run.replicas):
            rep = S.replica[r]
            depth = node_of(S, r).depth if ASYNC else 1
            while rep.iteration - rep.done < depth and (rep.running > 0 or rep.waiting > 0):
                if ASYNC and rep.launched > now:  # the CPU is busy
                    following = min(following, rep.launched)
                    break
                if not has_room(S, r):
                    run.at_replica = r
                    return GROW
                code = begin_iteration(S, r, now)
                if code != DONE:
                    return code
                if S.end[r] <= now:  # it took no time: what it brings comes first
                    following = now
                    while S.end[r] <= now:
                        finish(S, r)
                    break
            if following <= now:
                break
            following = min(following, S.end[r])
        if following <= now:
            continue
        if following == NEVER:
            return DONE
        run.now = following
        for r in range(run.replicas):
            while S.end[r] <= following:
                finish(S, r)
