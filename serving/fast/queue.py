"""The waiting queues of the fast engine: a linked list for fcfs, a binary heap for scores."""

# compiled from its text; to mypy every number that an array yields is Any
# mypy: disable-error-code="no-any-return, return-value, call-arg"

from __future__ import annotations

from typing import Any

from lengthwise.serving.fast.compiler.jit import hot, kernel, node_of
from lengthwise.serving.fast.flags import ASYNC, GUARD, POLICY, ROLES
from lengthwise.serving.fast.state import AHEAD, NONE, OUT, WAITS

# By arrival


@hot
def append(S: Any, r: int, id: int) -> None:
    """An arrived request goes to the end of the fcfs queue."""
    rep = S.replica[r]
    S.link[id] = NONE
    if rep.queue_tail == NONE:
        rep.queue_head = id
    else:
        S.link[rep.queue_tail] = id
    rep.queue_tail = id


@hot
def prepend(S: Any, r: int, id: int) -> None:
    """A preempted request goes to the front of the fcfs queue."""
    rep = S.replica[r]
    S.link[id] = rep.queue_head
    rep.queue_head = id
    if rep.queue_tail == NONE:
        rep.queue_tail = id


@hot
def pop_front(S: Any, r: int) -> None:
    """The first request leaves the fcfs queue."""
    rep = S.replica[r]
    rep.queue_head = S.link[rep.queue_head]
    if rep.queue_head == NONE:
        rep.queue_tail = NONE


@kernel
def unlink(S: Any, r: int, id: int) -> None:
    """A request leaves the fcfs queue, wherever it stands: near the front, as it was preempted."""
    rep = S.replica[r]
    if rep.queue_head == id:
        pop_front(S, r)
        return
    before = rep.queue_head
    while S.link[before] != id:
        before = S.link[before]
    S.link[before] = S.link[id]
    if rep.queue_tail == id:
        rep.queue_tail = before


# By score


@hot
def precedes(S: Any, score: float, id: int, other_score: float, other: int) -> bool:
    """Whether a request comes before another: by score, arrival and id."""
    if score != other_score:
        return score < other_score
    if S.run.closed_loop and S.arrival[id] != S.arrival[other]:
        return S.arrival[id] < S.arrival[other]
    return id < other


@kernel
def push(S: Any, r: int, score: float, id: int) -> None:
    """Adds an entry to a replica's heap."""
    rep = S.replica[r]
    place = rep.heap
    rep.heap += 1
    while place > 0:
        parent = (place - 1) >> 1
        up = S.heap[rep.queue_at + parent]
        if not precedes(S, score, id, up.score, up.id):
            break
        here = S.heap[rep.queue_at + place]
        here.score, here.id = up.score, up.id
        place = parent
    here = S.heap[rep.queue_at + place]
    here.score, here.id = score, id


@kernel
def sink(S: Any, r: int, place: int, score: float, id: int) -> None:
    """Puts an entry at ``place`` or below it, where the heap has a hole."""
    rep = S.replica[r]
    size = rep.heap
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        down = S.heap[rep.queue_at + child]
        if child + 1 < size:
            right = S.heap[rep.queue_at + child + 1]
            if precedes(S, right.score, right.id, down.score, down.id):
                child += 1
                down = right
        if not precedes(S, down.score, down.id, score, id):
            break
        here = S.heap[rep.queue_at + place]
        here.score, here.id = down.score, down.id
        place = child
    here = S.heap[rep.queue_at + place]
    here.score, here.id = score, id


@kernel
def pop(S: Any, r: int) -> None:
    """The first entry leaves a replica's heap."""
    rep = S.replica[r]
    rep.heap -= 1
    if rep.heap > 0:
        last = S.heap[rep.queue_at + rep.heap]
        sink(S, r, 0, last.score, last.id)


@kernel
def heapify(S: Any, r: int) -> None:
    """Makes a heap of a replica's entries in any order."""
    rep = S.replica[r]
    place = rep.heap // 2 - 1
    while place >= 0:
        here = S.heap[rep.queue_at + place]
        sink(S, r, place, here.score, here.id)
        place -= 1


@hot
def is_valid(S: Any, r: int, score: float, id: int) -> bool:
    """Whether an entry still stands: its request waits, and with that score."""
    if S.link[id] == OUT:
        return False
    if ROLES and S.move[id].at != r:  # it waits at another replica by now
        return False
    if node_of(S, r).every:
        return True
    if GUARD and S.sent_ahead[id]:
        return score == AHEAD
    return S.score[id] == score


@kernel
def first(S: Any, r: int) -> int:
    """The waiting request that is next, by score; entries left behind are dropped on the way."""
    rep = S.replica[r]
    if POLICY or ASYNC or GUARD:
        while not is_valid(S, r, S.heap[rep.queue_at].score, S.heap[rep.queue_at].id):
            pop(S, r)
    return S.heap[rep.queue_at].id


@kernel
def take_first(S: Any, r: int) -> float:
    """The first request of the heap waits no longer; its score."""
    rep = S.replica[r]
    top = S.heap[rep.queue_at]
    score = top.score
    S.link[top.id] = OUT
    pop(S, r)
    return score


@kernel
def put(S: Any, r: int, score: float, id: int) -> None:
    """A request waits, with this score."""
    S.link[id] = WAITS
    push(S, r, score, id)


@kernel
def compact(S: Any, r: int) -> None:
    """Drops the entries that were left behind."""
    rep = S.replica[r]
    kept = 0
    for place in range(rep.heap):
        entry = S.heap[rep.queue_at + place]
        if is_valid(S, r, entry.score, entry.id):
            here = S.heap[rep.queue_at + kept]
            here.score, here.id = entry.score, entry.id
            kept += 1
    rep.heap = kept
    heapify(S, r)


@kernel
def sort_heap(S: Any, r: int) -> None:
    """Puts a replica's heap in full order, which is a heap too."""
    rep = S.replica[r]
    count = rep.heap
    for place in range(count):
        top, to = S.heap[rep.queue_at], S.stash[place]
        to.score, to.id = top.score, top.id
        pop(S, r)
    for place in range(count):
        to = S.heap[rep.queue_at + place]
        to.score, to.id = S.stash[place].score, S.stash[place].id
    rep.heap = count


@kernel
def out_of_turn(S: Any, r: int, id: int) -> float:
    """A request leaves either queue, wherever it stands; its score."""
    rep = S.replica[r]
    if not node_of(S, r).by_score:
        unlink(S, r, id)
        return 0.0
    place = 0
    while S.heap[rep.queue_at + place].id != id or not is_valid(
        S, r, S.heap[rep.queue_at + place].score, id
    ):
        place += 1
    score = S.heap[rep.queue_at + place].score
    S.link[id] = OUT
    rep.heap -= 1
    last = S.heap[rep.queue_at + rep.heap]
    last_score, last_id = last.score, last.id
    while place > 0:  # up, where it comes before those above it
        parent = (place - 1) >> 1
        up = S.heap[rep.queue_at + parent]
        if not precedes(S, last_score, last_id, up.score, up.id):
            break
        here = S.heap[rep.queue_at + place]
        here.score, here.id = up.score, up.id
        place = parent
    if place < rep.heap:
        sink(S, r, place, last_score, last_id)
    return score
