"""Replicas of the fast engine behind a router: one total order of events, as in ``cluster``.

At one moment iterations end first (by replica), then replicas fail or come back, then requests
arrive (by id), then replicas that can schedule do so (by replica).
"""

# compiled from its text; to mypy every number that an array yields is Any
# mypy: disable-error-code="no-any-return, return-value, call-arg"

from __future__ import annotations

from typing import Any

from lengthwise.picoseconds import LAST_PS
from lengthwise.serving.events import FAIL, LOST, NOTICE, UP
from lengthwise.serving.fast.arrivals import next_arrival, push_child, reaches, take_arrival
from lengthwise.serving.fast.backlog import note_sent
from lengthwise.serving.fast.compiler.jit import as_state, hot, kernel, node_of
from lengthwise.serving.fast.failures import come_back, lose
from lengthwise.serving.fast.flags import ASYNC, EVENTS, GUARD, MORE, POLICY, ROLES, STOPS
from lengthwise.serving.fast.guard import drop_unwatched
from lengthwise.serving.fast.queue import compact
from lengthwise.serving.fast.replica import (
    begin_iteration,
    end_iteration,
    enqueue,
    give_way,
    let_yield,
    schedule_iteration,
)
from lengthwise.serving.fast.roles import land, next_landing, take_landing, take_over
from lengthwise.serving.fast.routing import route, route_on, scrape
from lengthwise.serving.fast.scores import score_at_arrival, weight_at
from lengthwise.serving.fast.state import (
    ADMIT,
    DONE,
    FAILED,
    GROW,
    HALF,
    HORIZON,
    LATE,
    NEVER,
    NONE,
    NOTHING,
    PREEMPT,
    ROUTE,
    STOP,
)
from lengthwise.serving.fast.stops import stop
from lengthwise.serving.fast.tables import is_read
from lengthwise.serving.system import HOLD

# Arrivals


@hot
def send(S: Any, id: int, r: int) -> int:
    """A request arrives at a replica and waits; a code."""
    run, node, rep = S.run, node_of(S, r), S.replica[r]
    if ROLES:
        rep.stuck = 0
        S.move[id].at = r
        if node.prefills:
            S.output[id] = 1
    if MORE and node.by_score and not node.every:
        if node.ahead_at != NONE:
            S.score[id] = S.ahead[node.ahead_at + id]
        if node.at_arrival or S.arrival[id] != S.planned[id]:
            code = score_at_arrival(S, r, id)
            if code != DONE:
                return code
    enqueue(S, r, id)
    note_sent(S, r, id)
    rep.routed += 1
    if MORE and is_read(run.reads, "outstanding_tokens"):
        rep.outstanding += weight_at(S, r, id)
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
    run, rep = S.run, S.replica[r]
    before = rep.waiting
    end_iteration(S, r)
    if STOPS:
        run.waiting += rep.waiting - before
    S.end[r] = NEVER if rep.iteration == rep.done else S.step[r, (rep.done + 1) & 1].end


@hot
def schedule(S: Any, r: int, passed: int) -> int:
    """Schedules the iteration that has begun, unless the caller is to be asked before; a code.

    ``passed`` is the stop that was due, which the caller has answered or left to the policy.
    """
    run, node, rep = S.run, node_of(S, r), S.replica[r]
    if not STOPS:
        code = let_yield(S, r)
        return code if code != DONE else schedule_iteration(S, r)
    if passed == NOTHING and run.at_preempt and rep.running > 0 and rep.waiting > 0:
        stop(S, PREEMPT, r, NONE, rep.running)
        return STOP
    before = rep.waiting
    code = DONE
    if passed != ADMIT:
        if passed == PREEMPT and run.chosen != NONE:
            give_way(S, r)
        else:
            code = let_yield(S, r)
        if code != DONE:
            return code
        run.waiting += rep.waiting - before
        before = rep.waiting
        if run.at_admit and rep.running < node.max_seqs and rep.waiting > 0:
            stop(S, ADMIT, r, NONE, rep.waiting)
            return STOP
        run.chosen = NONE
    code = schedule_iteration(S, r)
    run.waiting += rep.waiting - before
    run.preempted += rep.preempted
    return code


@kernel
def go_on(S: Any) -> int:
    """Takes the answer to the stop that was due; a code."""
    run, r, id, passed = S.run, S.run.due_node, S.run.due_request, S.run.due
    if passed == ROUTE and run.answer == HOLD:
        run.due = NOTHING
        push_child(S, id)
        return DONE
    if passed == ROUTE:
        r = run.answer
        if not has_room(S, r):
            run.at_replica = r
            return GROW
        run.due = NOTHING
        return send(S, id, r)
    run.due = NOTHING
    code = schedule(S, r, passed)
    while code == DONE and S.end[r] <= run.now:  # it took no time
        finish(S, r)
    return code


@hot
def come(S: Any, id: int) -> None:
    """A request comes, unless it was there before and the router held it."""
    take_arrival(S, id)
    if STOPS and S.asked[id] == 0:
        S.run.in_system += 1
        S.run.waiting += 1


@kernel
def wait_for_replica(S: Any, id: int) -> None:
    """A request comes while all replicas are known to be down: it waits for the first that is
    back."""
    come(S, id)
    place = S.run.next_turn
    while S.turn[place].kind != UP:
        place += 1
    S.asked[id] = S.turn[place].time
    push_child(S, id)


@kernel
def pass_on(S: Any) -> int:
    """KV arrives, and requests whose prompts are computed are sent to who decodes them; a code."""
    run = S.run
    while next_landing(S) <= run.now:
        land(S, take_landing(S))
    while run.hand_next < run.hand_end:
        id = S.handed[run.hand_next]
        r = route_on(S, id)
        if r < 0:
            return -1 - r
        if not has_room(S, r):
            run.at_replica = r
            return GROW
        run.hand_next += 1
        code = take_over(S, r, id)
        if code != DONE:
            return code
    return DONE


@hot
def next_turn(S: Any) -> int:
    """When a replica fails, is known to have failed or comes back next."""
    run = S.run
    if run.next_turn == len(S.turn) or run.finished == run.requests:
        return NEVER
    return S.turn[run.next_turn].time


@kernel
def happen(S: Any) -> int:
    """Replicas fail, are known to have failed, and come back, as the timetable says; a code."""
    run = S.run
    while next_turn(S) <= run.now:
        turn = S.turn[run.next_turn]
        r, rep = turn.node, S.replica[turn.node]
        if turn.kind == UP:
            come_back(S, r)
        elif turn.kind != FAIL:
            run.lost_room = run.lost_rows + rep.running + rep.waiting
            if run.lost_room > len(S.lost):
                return GROW
        if turn.kind == FAIL or turn.kind == LOST:
            rep.down = FAILED
            S.end[r] = NEVER
        if turn.kind == NOTICE or turn.kind == LOST:
            lose(S, r)
        run.next_turn += 1
    return DONE


@hot
def pass_time(S: Any, to: int) -> None:
    """Lets time pass in which nothing happens."""
    run = S.run
    if MORE and run.interval > 0 and to // run.interval > run.scraped:
        scrape(S, to)
    if STOPS:
        high, low = (to - run.now) >> HALF, (to - run.now) & ((1 << HALF) - 1)
        run.request_low += run.in_system * low
        run.request_high += run.in_system * high + (run.request_low >> HALF)
        run.request_low &= (1 << HALF) - 1
        run.waiting_low += run.waiting * low
        run.waiting_high += run.waiting * high + (run.waiting_low >> HALF)
        run.waiting_low &= (1 << HALF) - 1
    run.now = to


@kernel
def run_until(table: int) -> int:
    """Goes on until all is done or something stops it; a code.

    ``table`` is the address of an address table. GROW: call again with larger arrays.
    """
    S: Any = as_state(table)
    run = S.run
    if MORE and run.interval > 0 and run.scraped == NONE:
        scrape(S, 0)
    if STOPS and run.due != NOTHING:
        code = go_on(S)
        if code != DONE:
            return code
    while True:
        now = run.now
        if ROLES:
            code = pass_on(S)
            if code != DONE:
                return code
        if EVENTS:
            code = happen(S)
            if code != DONE:
                return code
        while True:
            id = next_arrival(S)
            if id == NONE or reaches(S, id) > now:
                break
            if EVENTS and run.open == 0:
                wait_for_replica(S, id)
                continue
            if STOPS and run.at_route:
                come(S, id)
                stop(S, ROUTE, NONE, id, run.replicas)
                return STOP
            r = 0
            if MORE and run.replicas > 1:
                r = route(S, id)
                if r < 0:
                    return -1 - r
            if not has_room(S, r):
                run.at_replica = r
                return GROW
            come(S, id)
            code = send(S, id, r)
            if code != DONE:
                return code
        following = NEVER if id == NONE else reaches(S, id)
        if EVENTS:
            following = min(following, next_turn(S))
        for r in range(run.replicas):
            rep = S.replica[r]
            if EVENTS and rep.down:
                continue
            depth = node_of(S, r).depth if ASYNC else 1
            while rep.iteration - rep.done < depth and (rep.running > 0 or rep.waiting > 0):
                if ROLES and rep.stuck and rep.running == 0:
                    break
                if ASYNC and rep.launched > now:  # the CPU is busy
                    following = min(following, rep.launched)
                    break
                if not has_room(S, r):
                    run.at_replica = r
                    return GROW
                begin_iteration(S, r, now)
                code = schedule(S, r, NOTHING)
                if code != DONE:
                    return code
                if S.end[r] <= now:  # it took no time: what it brings comes first
                    following = now
                    while S.end[r] <= now:
                        finish(S, r)
                    break
                if ROLES and next_landing(S) <= now:
                    following = now
                    break
            if following <= now:
                break
            following = min(following, S.end[r])
        if ROLES:
            following = min(following, next_landing(S))
        if following <= now:
            continue
        if following == NEVER:
            return DONE
        if STOPS and following > run.horizon:
            pass_time(S, max(run.horizon, now))
            return HORIZON
        if following > LAST_PS:
            return LATE
        pass_time(S, following)
        for r in range(run.replicas):
            while S.end[r] <= following:
                finish(S, r)
