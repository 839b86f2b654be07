"""What routers ask of a replica beyond its counters: backlogs, ages and cached prefixes.

Sums over the queue are kept as it changes. Those over the batch are walked for, at most once
between two iterations: the walk is paid for by runs that read them, and by nobody else.
"""

# numba types what follows; to mypy every number that an array yields is Any
# mypy: disable-error-code="no-any-return, return-value, call-arg"

from __future__ import annotations

from typing import Any

from lengthwise.serving.fast.batch import last_computed, next_seat, rounded_up
from lengthwise.serving.fast.blocks import find
from lengthwise.serving.fast.compiler.jit import hot, kernel, node_of
from lengthwise.serving.fast.flags import MORE, PREFIX, ROLES
from lengthwise.serving.fast.state import DRAIN, NONE, PREFILL
from lengthwise.serving.fast.tables import is_read, is_read_of

# The queue


@hot
def foreseen(S: Any, r: int, id: int) -> int:
    """Tokens that a request is predicted to generate, as far as it does so at a replica."""
    if ROLES and node_of(S, r).prefills:
        return min(rounded_up(S, id), 1)
    return rounded_up(S, id)


@hot
def tally(S: Any, r: int, id: int, sign: int) -> None:
    """Books a request that joins (1) or leaves (-1) the queue, or is about to change there."""
    if MORE and is_read(S.run.reads, "prefill_backlog_tokens", "decode_backlog_tokens"):
        rep = S.replica[r]
        stored = S.stored[id] if len(S.stored) else 0
        rep.queued_prefill += sign * max(S.prompt[id] - stored, 0)
        rep.queued_decode += sign * max(foreseen(S, r, id) - S.generated[id], 0)
    if MORE and is_read_of(S.run.reads, "tenant"):
        row = S.tenants[r, S.tenant[id]]
        row.waiting += sign
        if S.preemptions[id] > 0:
            row.queued += sign * (S.prompt[id] + 2 * S.generated[id])


# The batch


@kernel
def prefill_backlog(S: Any, r: int) -> int:
    """``Request.prefill_left``, summed over a replica's requests."""
    rep = S.replica[r]
    total = rep.queued_prefill
    s, left = rep.tail, rep.prefilling
    while left > 0:
        sl = S.slot[s]
        if sl.state == PREFILL:
            total += max(S.prompt[sl.id] - sl.computed, 0)
            left -= 1
        s = sl.previous
    return total


@kernel
def decode_backlog(S: Any, r: int, last: int) -> int:
    """``Request.decode_left``, summed; ``last``: the last iteration that was launched."""
    rep = S.replica[r]
    if rep.summed_last != last or rep.summed_done != rep.done:
        rep.summed_last, rep.summed_done = last, rep.done
        total = 0
        s = next_seat(S, r, rep.seat)
        while s != NONE:
            total += max(foreseen(S, r, S.slot[s].id) - generated_so_far(S, r, s, last), 0)
            s = next_seat(S, r, s + 1)
        rep.running_decode = total
    return rep.queued_decode + rep.running_decode


@hot
def generated_so_far(S: Any, r: int, s: int, last: int) -> int:
    """Output tokens of a running request that are known, whatever is under way."""
    rep, sl = S.replica[r], S.slot[s]
    if sl.state == PREFILL:
        return sl.known - S.prompt[sl.id]
    computed = last_computed(S, sl.id) if sl.state == DRAIN else last + 1 + sl.offset
    pending = 0
    iteration = rep.done + 1
    while iteration <= last:
        stalled = sl.stalled_odd if iteration & 1 else sl.stalled_even
        if sl.acted <= iteration and iteration <= sl.finish and stalled != iteration:
            pending += 1
        iteration += 1
    return computed + 1 - pending - S.prompt[sl.id]


# Ages


@hot
def note_sent(S: Any, r: int, id: int) -> None:
    """A request was sent to a replica: it goes to the end of the list of those sent there."""
    if MORE and is_read(S.run.reads, "oldest_request_s"):
        rep = S.replica[r]
        S.sent[id] = NONE
        if rep.sent_head == NONE:
            rep.sent_head = id
        else:
            S.sent[rep.sent_tail] = id
        rep.sent_tail = id


@kernel
def oldest(S: Any, r: int) -> int:
    """The arrival of the request that is there longest; now if there is none."""
    rep = S.replica[r]
    while rep.sent_head != NONE and S.finish[rep.sent_head] > 0:
        rep.sent_head = S.sent[rep.sent_head]
    return S.run.now if rep.sent_head == NONE else S.arrival[rep.sent_head]


# The prefix cache


@hot
def cached_prefix(S: Any, r: int, id: int, generated: int) -> int:
    """Leading tokens of a request that are in a replica's prefix cache."""
    if not (PREFIX and node_of(S, r).caching):
        return 0
    find(S, r, id, S.prompt[id] + generated)
    return S.replica[r].hits * node_of(S, r).block_size
