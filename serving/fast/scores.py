"""What the fast engine's scores see and when they are evaluated, as in ``scoring``."""

# compiled from its text; to mypy every number that an array yields is Any
# mypy: disable-error-code="no-any-return, return-value, call-arg"

from __future__ import annotations

from typing import Any

import numpy as np

from lengthwise.serving.fast.batch import computed_of, generated_of, next_seat
from lengthwise.serving.fast.compiler.jit import call_score, hot, kernel, node_of, rint
from lengthwise.serving.fast.flags import ASYNC, GUARD, ROLES
from lengthwise.serving.fast.queue import compact, heapify, push, sort_heap
from lengthwise.serving.fast.state import AHEAD, DONE, NAN, NONE, RAISED, TAKEN, WAITS
from lengthwise.serving.fast.tables import (
    copy_features,
    is_read_of,
    write_counted_features,
    write_features,
)
from lengthwise.serving.scoring import FRACTION


@hot
def weight(S: Any, id: int) -> int:
    """Prompt and predicted tokens x FRACTION."""
    tokens = np.float64(S.prompt[id])
    if len(S.predicted):
        tokens += S.predicted[id]
    return rint(tokens * FRACTION)


@hot
def weight_at(S: Any, r: int, id: int) -> int:
    """The same, as far as they are a replica's."""
    if ROLES and node_of(S, r).prefills:
        tokens = np.float64(S.prompt[id])
        if len(S.predicted):
            tokens += min(S.predicted[id], 1.0)
        return rint(tokens * FRACTION)
    return weight(S, id)


@kernel
def look(S: Any, r: int) -> None:
    """Fixes what the scores of this iteration see of the replica."""
    if is_read_of(node_of(S, r).reads, "replica"):
        write_features(S.seen[r], node_of(S, r).reads, "replica", last=S.replica[r].iteration - 1)


@hot
def fill(
    S: Any, r: int, row: int, id: int, generated: int, computed: int, preemptions: int
) -> None:
    """Writes those features of a request in a replica that are read."""
    write_features(S.rows[row], node_of(S, r).reads, "request")
    if is_read_of(node_of(S, r).reads, "replica", "pair", "tenant"):
        fill_further(S, r, row, id, generated)


@kernel
def fill_further(S: Any, r: int, row: int, id: int, generated: int) -> None:
    """The same for what is not the request's alone."""
    write_features(
        S.rows[row], node_of(S, r).reads, "pair", "tenant", last=S.replica[r].iteration - 1
    )
    copy_features(S.rows[row], S.seen[r], node_of(S, r).reads, "replica")


@hot
def fill_replica(S: Any, row: int, id: int, r: int, wanted: int) -> None:
    """Writes the ``wanted`` features of a replica, as the router sees it, and of a request that
    arrives now; ``wanted`` is a mask."""
    if S.run.interval > 0:
        fill_scraped(S, row, r, wanted)
    else:
        write_features(S.rows[row], wanted, "replica", last=S.replica[r].iteration)
    if is_read_of(wanted, "request", "pair", "tenant"):
        write_features(
            S.rows[row], wanted, "request", "pair", "tenant", generated=0, computed=0,
            preemptions=0, last=S.replica[r].iteration,
        )  # fmt: skip


@kernel
def fill_scraped(S: Any, row: int, r: int, wanted: int) -> None:
    """The same of a replica as it was seen last, but for what the router counts itself."""
    copy_features(S.rows[row], S.scraped[r], wanted, "replica")
    write_counted_features(S.rows[row], wanted)


@kernel
def evaluate(S: Any, address: int, count: int) -> int:
    """Scores of the rows that were filled; a code."""
    run = S.run
    if call_score(address, run.rows_at, count, run.out_at):
        return RAISED
    for i in range(count):
        if S.out[i] != S.out[i]:  # NaN
            return NAN
    return DONE


@hot
def score_at_arrival(S: Any, r: int, id: int) -> int:
    """Writes the score of a request that arrives now to ``score``; a code."""
    look(S, r)
    fill(S, r, 0, id, 0, 0, 0)
    code = evaluate(S, node_of(S, r).score_at, 1)
    S.score[id] = S.out[0]
    return code


@hot
def ranked(S: Any, id: int, score: float) -> float:
    """A score as a place among others: who was sent ahead has the first."""
    if GUARD and S.sent_ahead[id]:
        return AHEAD
    return score


@kernel
def score_running(S: Any, r: int) -> int:
    """Scores of the running requests, once an iteration."""
    node, rep = node_of(S, r), S.replica[r]
    if not node.scored or rep.running_scored == rep.iteration or rep.running == 0:
        return DONE
    rep.running_scored = rep.iteration
    if node.callback:
        return score_batch(S, r)
    s, row = next_seat(S, r, rep.seat), 0
    while s != NONE:
        id = S.slot[s].id
        fill(S, r, row, id, generated_of(S, r, s), computed_of(S, r, s), S.preemptions[id])
        row += 1
        s = next_seat(S, r, s + 1)
    code = evaluate(S, node.score_at, row)
    s, row = next_seat(S, r, rep.seat), 0
    while s != NONE:
        S.slot[s].score = ranked(S, S.slot[s].id, S.out[row])
        row += 1
        s = next_seat(S, r, s + 1)
    return code


@kernel
def score_batch(S: Any, r: int) -> int:
    """The same in the order of the batch, on which array arithmetic may depend."""
    s, row = S.replica[r].head, 0
    while s != NONE:
        id = S.slot[s].id
        fill(S, r, row, id, generated_of(S, r, s), computed_of(S, r, s), S.preemptions[id])
        row += 1
        s = S.slot[s].next
    code = evaluate(S, node_of(S, r).score_at, row)
    s, row = S.replica[r].head, 0
    while s != NONE:
        S.slot[s].score = ranked(S, S.slot[s].id, S.out[row])
        row += 1
        s = S.slot[s].next
    return code


@kernel
def score_waiting(S: Any, r: int) -> int:
    """Scores of those waiting requests whose scores may have changed, once an iteration."""
    node, rep = node_of(S, r), S.replica[r]
    if not node.scored or not node.by_score or rep.waiting_scored == rep.iteration:
        return DONE
    rep.waiting_scored = rep.iteration
    if node.every:
        return score_all_waiting(S, r)
    count = 0
    for place in range(rep.stale):
        id = S.stale[rep.queue_at + place]
        if S.link[id] == WAITS:  # and was not taken before
            S.link[id] = TAKEN
            S.stale[rep.queue_at + count] = id
            fill(S, r, count, id, S.generated[id], 0, S.preemptions[id])
            count += 1
    rep.stale = 0
    if count == 0:
        return DONE
    code = evaluate(S, node.score_at, count)
    for place in range(count):
        id = S.stale[rep.queue_at + place]
        S.link[id] = WAITS
        if S.out[place] != S.score[id]:
            S.score[id] = S.out[place]
            if not (GUARD and S.sent_ahead[id]):
                push(S, r, S.score[id], id)
    return code


@kernel
def score_all_waiting(S: Any, r: int) -> int:
    """Scores of all waiting requests: they change with the clock or the replica's state."""
    node, rep = node_of(S, r), S.replica[r]
    if ASYNC:
        compact(S, r)
    if rep.heap == 0:
        return DONE
    if node.callback:  # array arithmetic may depend on the order
        if GUARD:
            for place in range(rep.heap):
                entry = S.heap[rep.queue_at + place]
                entry.score = ranked(S, entry.id, entry.score)
            heapify(S, r)
        sort_heap(S, r)
    done = 0
    while done < rep.heap:
        count = min(rep.heap - done, len(S.rows))
        for row in range(count):
            id = S.heap[rep.queue_at + done + row].id
            fill(S, r, row, id, S.generated[id], 0, S.preemptions[id])
        code = evaluate(S, node.score_at, count)
        if code != DONE:
            return code
        for row in range(count):
            entry = S.heap[rep.queue_at + done + row]
            if GUARD:
                S.score[entry.id] = S.out[row]
            entry.score = ranked(S, entry.id, S.out[row])
        done += count
    heapify(S, r)
    return DONE
