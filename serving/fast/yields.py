"""Preemption by somebody who is asked: ``replica.preempt_by_policy``, victim by victim.

The walk along the queue is the same: each waiting request in turn is given a seat and blocks while
they last. Where it finds none, a running request may give way to it, or nobody, which ends the
walk.
"""

# compiled from its text; to mypy every number that an array yields is Any
# mypy: disable-error-code="no-any-return, return-value, call-arg"

from __future__ import annotations

from typing import Any

from lengthwise.serving.fast.batch import capped, is_protected, wanted
from lengthwise.serving.fast.compiler.jit import kernel, node_of
from lengthwise.serving.fast.queue import first, put, take_first
from lengthwise.serving.fast.replica import (
    admission_blocks,
    found_for,
    known_waiting,
    preempt,
    stored_of,
)
from lengthwise.serving.fast.scores import score_running, score_waiting
from lengthwise.serving.fast.shown import glance_at
from lengthwise.serving.fast.state import DONE, NONE, PREFILL, STOP, YIELDED


@kernel
def begin_walk(S: Any, k: int, r: int) -> int:
    """The replica is about to schedule while requests wait; a code."""
    node, rep, env = node_of(S, r), S.replica[r], S.env[k]
    glance_at(S, r)
    code = score_waiting(S, r)
    if code == DONE:
        code = score_running(S, r)
    if code != DONE:
        return code
    env.kv = (node.blocks - rep.free) / node.blocks
    env.seats = node.max_seqs - rep.running
    env.tokens = node.max_tokens - rep.decoding
    s, left = rep.tail, rep.prefilling
    while left > 0:
        if S.slot[s].state == PREFILL:
            env.tokens -= wanted(S, r, s)
            left -= 1
        s = S.slot[s].previous
    env.blocks = env.walked = env.victims = 0
    env.waiting = rep.waiting
    env.walking = 1
    return DONE


@kernel
def list_running(S: Any, k: int, r: int) -> int:
    """Writes who may give way to ``candidate``, in the batch's order; how many."""
    count, s = 0, S.replica[r].head
    while s != NONE:
        if not is_protected(S, r, s):
            S.candidate[count] = s
            count += 1
        s = S.slot[s].next
    return count


@kernel
def walk_queue(S: Any, k: int) -> int:
    """Walks on: STOP at a request that finds no place, DONE at the end of the walk."""
    env, r = S.env[k], S.run.due_node
    node, rep = node_of(S, r), S.replica[r]
    while env.walked < env.waiting:
        id = first(S, r)
        found = needed = 0
        placed = False
        if env.seats > 0:
            found = found_for(S, r, id)
            needed = admission_blocks(S, r, id, 0)
            placed = env.blocks + needed <= rep.free
        if not placed:
            env.running = list_running(S, k, r)
            if env.victims == node.max_per_step or env.tokens <= 0 or env.running == 0:
                break
            env.asked = id
            return STOP
        env.seats -= 1
        env.blocks += needed
        env.tokens -= capped(S, r, known_waiting(S, id) - max(found, stored_of(S, id)))
        to = S.stash[env.walked]
        to.score, to.id = S.heap[rep.queue_at].score, id
        env.walked += 1
        take_first(S, r)
    end_walk(S, k, r)
    return DONE


@kernel
def yield_place(S: Any, k: int, s: int) -> None:
    """A running request gives way; it will wait once the walk is over."""
    env, r = S.env[k], S.run.due_node
    env.seats += 1
    env.tokens += wanted(S, r, s)
    to = S.stash[len(S.stash) - 1 - env.victims]
    to.score, to.id = S.slot[s].score, S.slot[s].id
    env.victims += 1
    preempt(S, r, s, False)
    S.run.waiting += 1


@kernel
def end_walk(S: Any, k: int, r: int) -> None:
    """Who was walked past waits as before, and so do those that gave way."""
    env = S.env[k]
    for place in range(env.walked):
        put(S, r, S.stash[place].score, S.stash[place].id)
    for place in range(env.victims):
        back = S.stash[len(S.stash) - 1 - place]
        put(S, r, back.score, back.id)
        S.link[back.id] = YIELDED
    S.replica[r].victims = env.victims
    env.walking = 0
