"""Where a run stands still for its caller: what there is to choose from, and what was answered.

All of it stands behind the flag STOPS; a run without stops pays nothing for it.
"""

# compiled from its text; to mypy every number that an array yields is Any
# mypy: disable-error-code="no-any-return, return-value, call-arg"

from __future__ import annotations

from typing import Any

from lengthwise.serving.fast.batch import computed_of, generated_of
from lengthwise.serving.fast.compiler.jit import as_state, hot, kernel, node_of
from lengthwise.serving.fast.queue import compact, sort_heap
from lengthwise.serving.fast.scores import fill, fill_replica, look, score_waiting
from lengthwise.serving.fast.state import (
    ADMIT,
    DONE,
    NONE,
    PREEMPT,
    ROUTE,
)


@hot
def stop(S: Any, due: int, r: int, id: int, candidates: int) -> None:
    """The run stands still until this is answered or passed over."""
    run = S.run
    run.due, run.due_node, run.due_request, run.candidates = due, r, id, candidates
    run.chosen = run.listed = NONE


@kernel
def list_candidates(S: Any) -> int:
    """Writes the requests or slots to choose from to ``candidate``, once a stop; a code."""
    run, r = S.run, S.run.due_node
    if run.listed != NONE or run.due == ROUTE:
        return DONE
    node, rep = node_of(S, r), S.replica[r]
    run.listed = 0
    if run.due == PREEMPT:
        s = rep.head
        while s != NONE:
            S.candidate[run.listed] = s
            run.listed += 1
            s = S.slot[s].next
        return DONE
    code = score_waiting(S, r)
    if code != DONE:
        return code
    if not node.by_score:
        id = rep.queue_head
        while id != NONE:
            S.candidate[run.listed] = id
            run.listed += 1
            id = S.link[id]
        return DONE
    compact(S, r)
    sort_heap(S, r)
    before = NONE
    for place in range(rep.heap):
        id = S.heap[rep.queue_at + place].id
        if id != before:  # one may stand there twice with one score
            S.candidate[run.listed] = id
            run.listed += 1
        before = id
    return DONE


@kernel
def show_candidates(table: int) -> int:
    """Fills rows with features of the first ``shown`` candidates, as of now; a code."""
    S: Any = as_state(table)
    run, r = S.run, S.run.due_node
    code = list_candidates(S)
    if code != DONE:
        return code
    if run.due == ROUTE:
        for row in range(run.shown):
            fill_replica(S, row, run.due_request, row, run.routing_reads)
        return DONE
    S.replica[r].summed_last = NONE  # whoever gave way is still in the sum
    look(S, r)  # the caller keeps what the iteration's scores are to see
    for row in range(run.shown):
        one = S.candidate[row]
        if run.due == ADMIT:
            fill(S, r, row, one, S.generated[one], 0, S.preemptions[one])
        else:
            id = S.slot[one].id
            generated, computed = generated_of(S, r, one), computed_of(S, r, one)
            fill(S, r, row, id, generated, computed, S.preemptions[id])
    return DONE
