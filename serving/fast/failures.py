"""Replicas that fail: what is there is lost and goes back to the router, and how they come back.

All of it stands behind the flag EVENTS; a run in which nothing happens pays nothing for it.
"""

# compiled from its text; to mypy every number that an array yields is Any
# mypy: disable-error-code="no-any-return, return-value, call-arg"

from __future__ import annotations

from typing import Any

from lengthwise.serving.fast.arrivals import push_child
from lengthwise.serving.fast.backlog import generated_so_far
from lengthwise.serving.fast.compiler.jit import hot, kernel, node_of
from lengthwise.serving.fast.flags import MORE, PREFIX, STOPS
from lengthwise.serving.fast.state import FREE, KNOWN, NONE, OUT, WHEEL
from lengthwise.serving.fast.tables import is_read_of, restore
from lengthwise.serving.fast.tenants import forget_tenants


@hot
def let_go(S: Any, r: int, id: int, generated: int) -> None:
    """A request goes back to the router, as if it had never been sent."""
    run = S.run
    row = S.lost[run.lost_rows]
    run.lost_rows += 1
    run.lost_tokens += generated
    start = S.scheduled[id]
    row.request, row.node, row.finish_ps, row.lost_tokens = id, r, run.now, generated
    row.start_ps = start if start < run.now else NONE
    row.preemptions, row.recomputed_tokens = S.preemptions[id], S.recomputed[id]
    S.scheduled[id] = NONE
    S.preemptions[id] = S.recomputed[id] = S.cached[id] = 0
    S.generated[id] = S.reach[id] = 0
    S.link[id] = OUT
    if len(S.flight):
        S.flight[id] = 0
    if len(S.stored):
        S.stored[id] = 0
    if len(S.sent_ahead):
        S.sent_ahead[id] = 0
    if STOPS:
        S.gave[id] = 0
    S.asked[id] = run.now
    push_child(S, id)


@kernel
def lose(S: Any, r: int) -> None:
    """The router knows that a replica has failed: all that is there comes back to it."""
    run, node, rep = S.run, node_of(S, r), S.replica[r]
    if STOPS:
        run.waiting += rep.running
    s = rep.head
    while s != NONE:
        let_go(S, r, S.slot[s].id, generated_so_far(S, r, s, rep.iteration))
        s = S.slot[s].next
    if MORE and node.by_score:
        for place in range(rep.heap):
            id = S.heap[rep.queue_at + place].id
            if S.link[id] != OUT:  # entries of who left are left behind
                let_go(S, r, id, S.generated[id])
    else:
        id = rep.queue_head
        while id != NONE:
            following = S.link[id]
            let_go(S, r, id, S.generated[id])
            id = following
    renew(S, r)
    rep.down = KNOWN
    run.open -= 1


@kernel
def renew(S: Any, r: int) -> None:
    """A replica is as it was at the beginning, but for what counts requests and iterations."""
    node, rep = node_of(S, r), S.replica[r]
    restore(rep, S.fresh[r], "queue_at", "capacity", "routed", "iteration")
    rep.departed, rep.done, rep.summed_last = rep.routed, rep.iteration, NONE
    if MORE and is_read_of(S.run.reads, "tenant"):
        forget_tenants(S, r)
    for s in range(rep.seat, rep.seats_end):
        S.slot[s].state = FREE
        S.slot[s].next = s + 1
    S.slot[rep.seats_end - 1].next = NONE
    for spoke in range(WHEEL):
        S.wheel[r, spoke] = NONE
    for residue in range(node.block_size):
        S.hist[r, residue] = 0
        if PREFIX and node.caching:
            S.residue[r, residue] = NONE
    if PREFIX and node.caching and rep.blank != NONE:
        for block in range(rep.blank, rep.blank + node.blocks):
            S.block[block].key = S.block[block].references = S.block[block].search = 0
            S.block[block].newer = block + 1
        S.block[rep.blank + node.blocks - 1].newer = NONE
        for bucket in range(rep.bucket_at, rep.bucket_at + node.bucket_mask + 1):
            S.bucket[bucket] = S.bucket_end[bucket] = NONE


@kernel
def come_back(S: Any, r: int) -> None:
    """A replica is up again; it counts as often sent to as the least of the others, so that a
    router which counts does not make up for the time."""
    run, rep = S.run, S.replica[r]
    least = NONE
    for other in range(run.replicas):
        if S.replica[other].down != KNOWN and (least == NONE or S.replica[other].routed < least):
            least = S.replica[other].routed
    if least > rep.routed:
        rep.departed += least - rep.routed
        rep.routed = least
    rep.down = 0
    run.open += 1
