"""Prefill and decode on replicas of their own: who is sent where, and KV on its way between them.

All of it stands behind the flag ROLES; a run in which replicas serve whole requests pays nothing.
While a request is at a replica that only prefills, ``output`` holds the one token that it is to
generate there.
"""

# compiled from its text; to mypy every number that an array yields is Any
# mypy: disable-error-code="no-any-return, return-value, call-arg"

from __future__ import annotations

from typing import Any

from lengthwise.picoseconds import LAST_PS
from lengthwise.serving.fast.backlog import tally
from lengthwise.serving.fast.batch import blocks_for, join
from lengthwise.serving.fast.compiler.jit import hot, kernel, node_of
from lengthwise.serving.fast.queue import append, put
from lengthwise.serving.fast.scores import evaluate, fill, look, weight_at
from lengthwise.serving.fast.state import DONE, NEVER
from lengthwise.serving.fast.tables import is_read

# KV on its way, a heap by (end, id)


@hot
def next_landing(S: Any) -> int:
    """When KV arrives next."""
    return S.move[S.flying[0]].end if S.run.flying > 0 else NEVER


@hot
def lands_before(S: Any, id: int, other: int) -> bool:
    """Whether a request's KV arrives before another's."""
    end, other_end = S.move[id].end, S.move[other].end
    return end < other_end if end != other_end else id < other


@kernel
def set_out(S: Any, r: int, id: int) -> None:
    """A request's KV sets out as soon as the links of both its ends are free."""
    run, move = S.run, S.move[id]
    rep, source = S.replica[r], S.replica[move.source]
    blocks = blocks_for(S, move.source, S.prompt[id])
    move.start = max(run.now, max(rep.link_free, source.link_free))
    # beyond the last moment they are all alike, and too late
    free = min(move.start + blocks * node_of(S, move.source).block_ps, LAST_PS + 1)
    rep.link_free = source.link_free = free
    move.end = min(free + run.latency, LAST_PS + 1)
    place = run.flying
    run.flying += 1
    while place > 0:
        up = S.flying[(place - 1) >> 1]
        if lands_before(S, up, id):
            break
        S.flying[place] = up
        place = (place - 1) >> 1
    S.flying[place] = id


@kernel
def take_landing(S: Any) -> int:
    """The request whose KV has arrived, which leaves the heap."""
    run = S.run
    id = S.flying[0]
    run.flying -= 1
    last = S.flying[run.flying]
    place = 0
    while True:
        down = 2 * place + 1
        if down >= run.flying:
            break
        if down + 1 < run.flying and lands_before(S, S.flying[down + 1], S.flying[down]):
            down += 1
        if not lands_before(S, S.flying[down], last):
            break
        S.flying[place] = S.flying[down]
        place = down
    S.flying[place] = last
    return id


@kernel
def land(S: Any, id: int) -> None:
    """A request's KV has arrived: it joins the batch, and its blocks at the source are free."""
    move = S.move[id]
    r = move.target
    rep, source = S.replica[r], S.replica[move.source]
    source.free += blocks_for(S, move.source, S.prompt[id])
    source.stuck = rep.stuck = 0
    tally(S, r, id, -1)
    S.stored[id] = 0
    rep.pulled -= 1
    s = join(S, r, id)
    sl = S.slot[s]
    sl.computed = S.prompt[id]
    sl.known = S.prompt[id] + 1
    sl.held = blocks_for(S, r, sl.known)
    sl.tokens = sl.again = 0
    if node_of(S, r).by_score:
        sl.score = S.score[id]


# From one replica to another


@hot
def hands_over(S: Any, r: int, id: int) -> bool:
    """Whether another replica goes on with a request that is done at this one."""
    return node_of(S, r).prefills and S.move[id].whole > 1


@kernel
def hand_over(S: Any, r: int, id: int) -> None:
    """A request's prompt is computed: it leaves, and its blocks stay until its KV has left."""
    run, rep, move = S.run, S.replica[r], S.move[id]
    rep.departed += 1
    if is_read(run.reads, "outstanding_tokens"):
        rep.outstanding -= weight_at(S, r, id)
    S.output[id] = move.whole
    move.source, move.ready = r, run.now
    S.handed[run.hand_end] = id
    run.hand_end += 1


@kernel
def take_over(S: Any, r: int, id: int) -> int:
    """A request whose prompt was computed elsewhere waits at a replica; a code."""
    run, node, rep = S.run, node_of(S, r), S.replica[r]
    S.move[id].target = S.move[id].at = r
    S.generated[id] = 1
    S.stored[id] = S.prompt[id]
    if node.by_score and not node.every:
        look(S, r)
        fill(S, r, 0, id, 1, 0, S.preemptions[id])
        code = evaluate(S, node.score_at, 1)
        if code != DONE:
            return code
        S.score[id] = S.out[0]
    rep.stuck = 0
    rep.waiting += 1
    rep.known += S.prompt[id] + 1
    tally(S, r, id, 1)
    if node.by_score:
        put(S, r, 0.0 if node.every else S.score[id], id)
    else:
        append(S, r, id)
    rep.routed += 1
    if is_read(run.reads, "outstanding_tokens"):
        rep.outstanding += weight_at(S, r, id)
    return DONE
