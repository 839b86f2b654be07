"""The starvation guard of the fast engine: ``lengthwise.starvation`` in arrays.

``since`` says of a waiting request when its waiting began, in effect, and of a running one how long
it waited. ``watched`` is a heap of those that may be sent ahead, oldest first, in which entries are
left behind when their request is admitted; ``waits`` is a ring of the shadow's last waits, longest
first. Where nobody is near starving an iteration costs some comparisons.
"""

# numba types what follows; to mypy every number that an array yields is Any
# mypy: disable-error-code="no-any-return, return-value, call-arg"

from __future__ import annotations

from typing import Any

from lengthwise.serving.fast.batch import rounded_up
from lengthwise.serving.fast.compiler.jit import ceil, floor, hot, kernel, node_of
from lengthwise.serving.fast.queue import put
from lengthwise.serving.fast.state import AHEAD, NONE, OUT, RING
from lengthwise.starvation import FOREVER_PS, UNKNOWN_TOKENS, WINDOW

# The shadow of first come, first served


@hot
def work_of(S: Any, id: int) -> int:
    """A request's work in tokens: the same in both of the guard's sums."""
    whole = rounded_up(S, id)
    return whole if whole > 0 else ceil(UNKNOWN_TOKENS)


@kernel
def guard_arrival(S: Any, r: int, id: int) -> None:
    """A request is about to wait in a replica."""
    rep = S.replica[r]
    if rep.running == 0 and rep.waiting == 0:  # predicted and true work may be squared
        rep.shadow_head = rep.shadow_tail = NONE
        rep.served = rep.begun = 0
    S.shadow[id] = NONE
    if rep.shadow_tail == NONE:
        rep.shadow_head = id
    else:
        S.shadow[rep.shadow_tail] = id
    rep.shadow_tail = id
    S.since[id] = S.arrival[id]
    watch(S, r, id)


@hot
def guard_admission(S: Any, r: int, id: int) -> None:
    """A request joins the batch: what it still owes will now be served."""
    S.replica[r].served += S.owed[id] if S.preemptions[id] > 0 else work_of(S, id)
    S.since[id] = S.run.now - S.since[id]


@kernel
def guard_preemption(S: Any, r: int, id: int, generated: int) -> None:
    """A request left the batch unfinished and waits again."""
    owed = max(work_of(S, id) - generated, 1)
    S.owed[id] = owed
    S.replica[r].served -= owed
    S.since[id] = S.run.now - S.since[id]
    if S.sent_ahead[id] == 0:
        watch(S, r, id)


@hot
def take_turns(S: Any, r: int) -> None:
    """Notes the waits of those that first come, first served would have started by now."""
    rep = S.replica[r]
    while rep.shadow_head != NONE:
        id = rep.shadow_head
        if S.finish[id] == 0 and rep.served <= rep.begun:
            break
        rep.shadow_head = S.shadow[id]
        if rep.shadow_head == NONE:
            rep.shadow_tail = NONE
        rep.begun += work_of(S, id)
        note(S, r, S.run.now - S.arrival[id])


@hot
def note(S: Any, r: int, wait: int) -> None:
    """Adds a wait; those that can't be the longest of the window any more are forgotten."""
    rep = S.replica[r]
    rep.turns += 1
    while rep.waits > 0 and S.waits[r, (rep.longest + rep.waits - 1) & (RING - 1)].wait <= wait:
        rep.waits -= 1
    to = S.waits[r, (rep.longest + rep.waits) & (RING - 1)]
    to.turn, to.wait = rep.turns, wait
    rep.waits += 1
    if S.waits[r, rep.longest & (RING - 1)].turn <= rep.turns - WINDOW:
        rep.longest += 1
        rep.waits -= 1


# Who starves


@hot
def watch(S: Any, r: int, id: int) -> None:
    """A request that waits may be sent ahead."""
    rep, start = S.replica[r], S.since[id]
    place = rep.watched
    rep.watched += 1
    while place > 0:
        parent = (place - 1) >> 1
        up = S.watched[rep.queue_at + parent]
        if up.start <= start:
            break
        here = S.watched[rep.queue_at + place]
        here.start, here.id = up.start, up.id
        place = parent
    here = S.watched[rep.queue_at + place]
    here.start, here.id = start, id


@kernel
def settle(S: Any, r: int, place: int, start: int, id: int) -> None:
    """Puts a watched request at ``place`` or below it, where the heap has a hole."""
    rep = S.replica[r]
    size = rep.watched
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if (
            child + 1 < size
            and S.watched[rep.queue_at + child + 1].start < S.watched[rep.queue_at + child].start
        ):
            child += 1
        down = S.watched[rep.queue_at + child]
        if start <= down.start:
            break
        here = S.watched[rep.queue_at + place]
        here.start, here.id = down.start, down.id
        place = child
    here = S.watched[rep.queue_at + place]
    here.start, here.id = start, id


@hot
def stands(S: Any, start: int, id: int) -> bool:
    """Whether a watched request waits, and has in effect since then."""
    return S.link[id] != OUT and S.since[id] == start and S.sent_ahead[id] == 0


@kernel
def drop_unwatched(S: Any, r: int) -> None:
    """Drops the entries that were left behind."""
    rep = S.replica[r]
    kept = 0
    for place in range(rep.watched):
        entry = S.watched[rep.queue_at + place]
        if stands(S, entry.start, entry.id):
            here = S.watched[rep.queue_at + kept]
            here.start, here.id = entry.start, entry.id
            kept += 1
    rep.watched = kept
    place = kept // 2 - 1
    while place >= 0:
        here = S.watched[rep.queue_at + place]
        settle(S, r, place, here.start, here.id)
        place -= 1


@kernel
def send_ahead(S: Any, r: int, bound: int) -> None:
    """Sends ahead who waited longer than ``bound``."""
    run, node, rep = S.run, node_of(S, r), S.replica[r]
    while rep.watched > 0 and run.now - S.watched[rep.queue_at].start > bound:
        id, stood = (
            S.watched[rep.queue_at].id,
            stands(S, S.watched[rep.queue_at].start, S.watched[rep.queue_at].id),
        )
        rep.watched -= 1
        if rep.watched > 0:
            last = S.watched[rep.queue_at + rep.watched]
            settle(S, r, 0, last.start, last.id)
        if stood:
            S.sent_ahead[id] = 1
            if not node.every:  # else its place is found when all scores are
                put(S, r, AHEAD, id)


@hot
def guard_iteration(S: Any, r: int) -> None:
    """An iteration begins: those that have waited too long by now go ahead of all others."""
    run, node, rep = S.run, node_of(S, r), S.replica[r]
    take_turns(S, r)
    if rep.watched == 0 or run.now - S.watched[rep.queue_at].start <= node.guard_floor:
        return
    longest = 0
    if rep.waits > 0:
        longest = S.waits[r, rep.longest & (RING - 1)].wait
    if rep.shadow_head != NONE:
        longest = max(longest, run.now - S.arrival[rep.shadow_head])
    bound = max(floor(min(node.guard_ratio * longest, FOREVER_PS)), node.guard_floor)
    if run.now - S.watched[rep.queue_at].start > bound:
        send_ahead(S, r, bound)
