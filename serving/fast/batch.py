"""A replica's batch in the fast engine: seats in order, decoding requests on a virtual clock."""

# compiled from its text; to mypy every number that an array yields is Any
# mypy: disable-error-code="no-any-return, return-value, call-arg"

from __future__ import annotations

from typing import Any

from lengthwise.serving.fast.compiler.jit import ceil, hot, kernel, node_of
from lengthwise.serving.fast.flags import ASYNC, GUARD, PREFIX
from lengthwise.serving.fast.state import DECODE, DRAIN, FREE, NONE, PREFILL, WHEEL

# Arithmetic


@hot
def blocks_for(S: Any, r: int, tokens: int) -> int:
    """Blocks of a replica that hold ``tokens`` tokens."""
    node = node_of(S, r)
    if node.shift >= 0:
        return (tokens + node.block_size - 1) >> node.shift
    return (tokens + node.block_size - 1) // node.block_size


@hot
def residue(S: Any, r: int, x: int) -> int:
    """``x`` modulo a replica's block size, also below zero."""
    node = node_of(S, r)
    return x & (node.block_size - 1) if node.shift >= 0 else x % node.block_size


@hot
def capped(S: Any, r: int, tokens: int) -> int:
    """At most the long-prefill threshold of this iteration."""
    threshold = S.replica[r].threshold
    return threshold if 0 < threshold < tokens else tokens


@hot
def rounded_up(S: Any, id: int) -> int:
    """The predicted answer length in whole tokens, 0 without a prediction."""
    return ceil(S.predicted[id]) if len(S.predicted) else 0


@hot
def last_computed(S: Any, id: int) -> int:
    """Computed tokens of a request that has computed its last."""
    return S.prompt[id] + S.output[id] - 1


# Seats


@hot
def join(S: Any, r: int, id: int) -> int:
    """Gives a request a slot at the end of the batch."""
    rep = S.replica[r]
    s = rep.free_slot
    sl = S.slot[s]
    rep.free_slot = sl.next
    sl.id = id
    sl.state = PREFILL
    sl.next = NONE
    sl.previous = rep.tail
    if rep.tail == NONE:
        rep.head = s
    else:
        S.slot[rep.tail].next = s
    rep.tail = s
    rep.running += 1
    rep.prefilling += 1
    return s


@hot
def leave(S: Any, r: int, s: int) -> None:
    """Frees a slot; its blocks and its place on the wheel are the caller's business."""
    rep, sl = S.replica[r], S.slot[s]
    if sl.previous == NONE:
        rep.head = sl.next
    else:
        S.slot[sl.previous].next = sl.next
    if sl.next == NONE:
        rep.tail = sl.previous
    else:
        S.slot[sl.next].previous = sl.previous
    sl.state = FREE
    sl.next = rep.free_slot
    rep.free_slot = s
    rep.running -= 1


# The clock


@hot
def into_wheel(S: Any, r: int, s: int, finish: int) -> None:
    """Files a slot under the iteration that computes its last token."""
    sl = S.slot[s]
    sl.finish = finish
    spoke = finish & (WHEEL - 1)
    head = S.wheel[r, spoke]
    sl.wheel_next = head
    sl.wheel_previous = NONE
    if head != NONE:
        S.slot[head].wheel_previous = s
    S.wheel[r, spoke] = s


@hot
def out_of_wheel(S: Any, r: int, s: int) -> None:
    """Takes a slot off its list."""
    sl = S.slot[s]
    if sl.wheel_previous == NONE:
        S.wheel[r, sl.finish & (WHEEL - 1)] = sl.wheel_next
    else:
        S.slot[sl.wheel_previous].wheel_next = sl.wheel_next
    if sl.wheel_next != NONE:
        S.slot[sl.wheel_next].wheel_previous = sl.wheel_previous


@kernel
def into_residue(S: Any, r: int, s: int) -> None:
    """Files a decoding slot under the iterations in which it begins a block."""
    sl = S.slot[s]
    of = residue(S, r, sl.offset)
    head = S.residue[r, of]
    sl.residue_next, sl.residue_previous = head, NONE
    if head != NONE:
        S.slot[head].residue_previous = s
    S.residue[r, of] = s


@kernel
def out_of_residue(S: Any, r: int, s: int) -> None:
    """Takes a slot off that list."""
    sl = S.slot[s]
    if sl.residue_previous == NONE:
        S.residue[r, residue(S, r, sl.offset)] = sl.residue_next
    else:
        S.slot[sl.residue_previous].residue_next = sl.residue_next
    if sl.residue_next != NONE:
        S.slot[sl.residue_next].residue_previous = sl.residue_previous


@hot
def count_in(S: Any, r: int, s: int) -> None:
    """The slot counts among the decoding requests."""
    rep, sl = S.replica[r], S.slot[s]
    rep.decoding += 1
    rep.offsets += sl.offset
    S.hist[r, residue(S, r, sl.offset)] += 1
    if PREFIX and node_of(S, r).caching:
        into_residue(S, r, s)


@hot
def count_out(S: Any, r: int, s: int) -> None:
    """The slot no longer counts among the decoding requests."""
    rep, sl = S.replica[r], S.slot[s]
    rep.decoding -= 1
    rep.offsets -= sl.offset
    S.hist[r, residue(S, r, sl.offset)] -= 1
    if PREFIX and node_of(S, r).caching:
        out_of_residue(S, r, s)


@hot
def end_prefill(S: Any, r: int, s: int) -> None:
    """All that the request knows is computed by this iteration: from the next on it decodes."""
    rep, sl = S.replica[r], S.slot[s]
    left = S.output[sl.id] - (sl.known + 1 - S.prompt[sl.id])
    rep.prefilling -= 1
    sl.stalled_even = sl.stalled_odd = NONE
    into_wheel(S, r, s, rep.iteration + left)
    if left == 0:
        sl.state = DRAIN
        return
    sl.state = DECODE
    sl.offset = sl.computed - (rep.iteration + 1)
    count_in(S, r, s)


@kernel
def drain(S: Any, r: int) -> None:
    """The decoding requests whose last token this iteration computes get no more."""
    iteration = S.replica[r].iteration
    s = S.wheel[r, iteration & (WHEEL - 1)]
    while s != NONE:
        sl = S.slot[s]
        if sl.finish == iteration and sl.state == DECODE:
            count_out(S, r, s)
            sl.state = DRAIN
        s = sl.wheel_next


@kernel
def stall(S: Any, r: int, s: int) -> None:
    """A decoding request gets no token in this iteration: all that it does comes one later."""
    rep, sl = S.replica[r], S.slot[s]
    out_of_wheel(S, r, s)
    count_out(S, r, s)
    sl.offset -= 1
    into_wheel(S, r, s, sl.finish + 1)
    count_in(S, r, s)
    rep.stalled += 1
    rep.stalled_offsets += sl.offset
    if rep.iteration & 1:
        sl.stalled_odd = rep.iteration
    else:
        sl.stalled_even = rep.iteration


# What a running request has, while the iteration is being decided


@hot
def computed_of(S: Any, r: int, s: int) -> int:
    """Computed tokens, those of an iteration in flight included."""
    sl = S.slot[s]
    if sl.state == DECODE:
        return S.replica[r].iteration + sl.offset
    return last_computed(S, sl.id) if sl.state == DRAIN else sl.computed


@hot
def pending_of(S: Any, r: int, s: int) -> int:
    """1 while the iteration in flight is to yield a token of the request."""
    if not ASYNC:
        return 0
    rep, sl = S.replica[r], S.slot[s]
    before = rep.iteration - 1
    if rep.done == before or sl.state == PREFILL:
        return 0
    return 0 if (sl.stalled_odd if before & 1 else sl.stalled_even) == before else 1


@hot
def known_of(S: Any, r: int, s: int) -> int:
    """Known tokens, without the one that is pending."""
    sl = S.slot[s]
    if sl.state == PREFILL:
        return sl.known
    return computed_of(S, r, s) + 1 - pending_of(S, r, s)


@hot
def generated_of(S: Any, r: int, s: int) -> int:
    """Output tokens of a running request."""
    return known_of(S, r, s) - S.prompt[S.slot[s].id]


@hot
def wanted(S: Any, r: int, s: int) -> int:
    """Tokens that a running request would compute, but for the budget."""
    sl = S.slot[s]
    if sl.state == PREFILL:
        return capped(S, r, sl.known - sl.computed)
    return 1 if sl.state == DECODE else 0


@hot
def is_protected(S: Any, r: int, s: int) -> bool:
    """Whether a request is ahead or too close to its predicted end for policy preemption."""
    if GUARD and S.sent_ahead[S.slot[s].id]:
        return True
    predicted = rounded_up(S, S.slot[s].id)
    return predicted > 0 and generated_of(S, r, s) >= node_of(S, r).protect_after * predicted


@hot
def next_seat(S: Any, r: int, s: int) -> int:
    """The taken slot at or after ``s`` in memory, NONE after the last: faster than the list."""
    end = S.replica[r].seats_end
    while s < end and S.slot[s].state == FREE:
        s += 1
    return s if s < end else NONE


@kernel
def worst(S: Any, r: int, spare_protected: bool) -> int:
    """vLLM's victim: highest score, then latest arrival, then first in the batch."""
    best, tied = NONE, False
    s = next_seat(S, r, S.replica[r].seat)
    while s != NONE:
        sl = S.slot[s]
        if best == NONE or sl.score >= S.slot[best].score:
            if not (spare_protected and is_protected(S, r, s)):
                if best == NONE or sl.score > S.slot[best].score:
                    best, tied = s, False
                else:
                    later = S.arrival[sl.id] - S.arrival[S.slot[best].id]
                    if later > 0:
                        best, tied = s, False
                    elif later == 0:
                        tied = True
        s = next_seat(S, r, s + 1)
    return worst_in_order(S, r, spare_protected) if tied else best


@kernel
def worst_in_order(S: Any, r: int, spare_protected: bool) -> int:
    """The same where it takes the order of the batch to tell."""
    best, s = NONE, S.replica[r].head
    while s != NONE:
        sl = S.slot[s]
        if not (spare_protected and is_protected(S, r, s)):
            if best == NONE or sl.score > S.slot[best].score:
                best = s
            elif sl.score == S.slot[best].score:
                if S.arrival[sl.id] > S.arrival[S.slot[best].id]:
                    best = s
        s = sl.next
    return best
