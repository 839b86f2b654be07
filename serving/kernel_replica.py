"""One replica of the fast engine: what ``engine.Replica`` decides, with a virtual clock.

Functions take the state, the replica's index and often a slot. In the usual iteration nobody
touches the decoding requests: a look-up says how many blocks they need. Where blocks run out, or a
prefill that is not the last in the batch takes tokens, the batch is walked as the reference does.
"""

# numba types what follows; to mypy every number that an array yields is Any
# mypy: disable-error-code="no-any-return, return-value, call-arg"

from __future__ import annotations

from typing import Any

import numpy as np

from lengthwise.serving.kernel_calls import call_score, hot, kernel, uniform
from lengthwise.serving.kernel_flags import POLICY
from lengthwise.serving.kernel_queue import (
    append,
    first,
    heapify,
    pop,
    pop_front,
    prepend,
    push,
)
from lengthwise.serving.kernel_state import (
    DECODE,
    DONE,
    FREE,
    NAN,
    NONE,
    PREFILL,
    RAISED,
    WHEEL,
)

PS = 10**12
FRACTION = 1024


# Arithmetic


@hot
def blocks_for(S: Any, tokens: int) -> int:
    """Blocks that hold ``tokens`` tokens."""
    run = S.run
    if run.shift >= 0:
        return (tokens + run.block_size - 1) >> run.shift
    return (tokens + run.block_size - 1) // run.block_size


@hot
def residue(S: Any, x: int) -> int:
    """``x`` modulo the block size, also below zero."""
    run = S.run
    return x & (run.block_size - 1) if run.shift >= 0 else x % run.block_size


@hot
def capped(S: Any, r: int, tokens: int) -> int:
    """At most the long-prefill threshold of this iteration."""
    threshold = S.replica[r].threshold
    return threshold if 0 < threshold < tokens else tokens


@hot
def rounded_up(S: Any, id: int) -> int:
    """The predicted answer length in whole tokens, 0 without a prediction."""
    return np.int64(np.ceil(S.predicted[id])) if len(S.predicted) else 0


@hot
def weight(S: Any, id: int) -> int:
    """Prompt and predicted tokens x FRACTION."""
    tokens = np.float64(S.prompt[id])
    if len(S.predicted):
        tokens += S.predicted[id]
    return np.int64(np.rint(tokens * FRACTION))


# Decoding: the virtual clock


@hot
def into_wheel(S: Any, r: int, s: int, finish: int) -> None:
    """Files a slot under the iteration at which it finishes."""
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


@hot
def start_decoding(S: Any, r: int, s: int, computed: int, left: int) -> None:
    """From the next iteration on the slot decodes: ``left`` tokens are to come."""
    rep, sl = S.replica[r], S.slot[s]
    sl.state = DECODE
    sl.offset = computed - (rep.iteration + 1)
    into_wheel(S, r, s, rep.iteration + left)
    rep.decoding += 1
    rep.offsets += sl.offset
    S.hist[r, residue(S, sl.offset)] += 1


@hot
def stop_decoding(S: Any, r: int, s: int) -> None:
    """The slot leaves the counts of decoding requests, but not its list on the wheel."""
    rep, sl = S.replica[r], S.slot[s]
    rep.decoding -= 1
    rep.offsets -= sl.offset
    S.hist[r, residue(S, sl.offset)] -= 1


@kernel
def stall(S: Any, r: int, s: int) -> None:
    """A decoding request gets no token in this iteration: all that it does comes one later."""
    rep, sl = S.replica[r], S.slot[s]
    out_of_wheel(S, r, s)
    stop_decoding(S, r, s)
    sl.offset -= 1
    into_wheel(S, r, s, sl.finish + 1)
    rep.decoding += 1
    rep.offsets += sl.offset
    S.hist[r, residue(S, sl.offset)] += 1
    rep.stalled += 1
    rep.stalled_offsets += sl.offset


@hot
def computed_of(S: Any, r: int, s: int) -> int:
    """Computed tokens of a running request, before this iteration."""
    sl = S.slot[s]
    return S.replica[r].iteration + sl.offset if sl.state == DECODE else sl.computed


@hot
def known_of(S: Any, r: int, s: int) -> int:
    """Known tokens of a running request."""
    sl = S.slot[s]
    return S.replica[r].iteration + sl.offset + 1 if sl.state == DECODE else sl.known


# The batch


@hot
def join(S: Any, r: int, id: int) -> int:
    """Gives a request a slot at the end of the batch."""
    rep = S.replica[r]
    s = rep.free_slot
    sl = S.slot[s]
    rep.free_slot = sl.next
    sl.id = id
    sl.state = PREFILL
    sl.stamp = 0
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


@hot
def complete(S: Any, r: int, s: int, held: int, now: int) -> None:
    """A request is done."""
    rep, id = S.replica[r], S.slot[s].id
    rep.free += held
    leave(S, r, s)
    S.finish[id] = now
    S.where[id] = r
    if S.run.weighted:
        rep.outstanding -= weight(S, id)
    if S.run.closed_loop:
        invite(S, id, now)


@kernel
def invite(S: Any, id: int, now: int) -> None:
    """The children of a finished request are put on the calendar, a heap by (arrival, id)."""
    run = S.run
    child = S.first_child[id]
    while child != NONE:
        arrival = max(now + S.think[child], S.planned[child])
        S.arrival[child] = arrival
        place = run.children
        run.children += 1
        while place > 0:
            up = S.calendar[(place - 1) >> 1]
            if S.arrival[up] < arrival or (S.arrival[up] == arrival and up < child):
                break
            S.calendar[place] = up
            place = (place - 1) >> 1
        S.calendar[place] = child
        child = S.sibling[child]


@hot
def end_iteration(S: Any, r: int, now: int) -> None:
    """The iteration under way ends: who has all tokens leaves, who has its first decodes."""
    rep = S.replica[r]
    for place in range(rep.acting):
        s = S.acting[r, place]
        sl = S.slot[s]
        if sl.state == FREE or sl.computed != sl.known:
            continue
        id = sl.id
        generated = sl.known + 1 - S.prompt[id]
        if generated == 1:
            S.first_token[id] = now
        rep.prefilling -= 1
        if generated == S.output[id]:
            complete(S, r, s, sl.held, now)
        else:
            start_decoding(S, r, s, sl.known, S.output[id] - generated)
    s = S.wheel[r, rep.iteration & (WHEEL - 1)]
    while s != NONE:
        sl = S.slot[s]
        following = sl.wheel_next
        if sl.finish == rep.iteration:
            out_of_wheel(S, r, s)
            stop_decoding(S, r, s)
            complete(S, r, s, blocks_for(S, rep.iteration + sl.offset + 1), now)
        s = following


# Waiting requests


@hot
def known_waiting(S: Any, id: int) -> int:
    """Known tokens of a waiting request."""
    return S.prompt[id] + S.generated[id]


@hot
def enqueue(S: Any, r: int, id: int, score: float) -> None:
    """A request that has arrived waits."""
    rep = S.replica[r]
    rep.waiting += 1
    rep.known += S.prompt[id]
    if S.run.by_score:
        S.link[id] = 1
        push(S, r, score, id)
    else:
        append(S, r, id)


@kernel
def preempt(S: Any, r: int, s: int, queued: bool) -> None:
    """Takes a request out of the batch: its blocks are lost; it waits, if ``queued``."""
    run, rep, sl = S.run, S.replica[r], S.slot[s]
    id = sl.id
    computed = computed_of(S, r, s)
    known = known_of(S, r, s)
    if sl.state == DECODE:
        held = blocks_for(S, computed)
        if sl.stamp == rep.iteration and residue(S, computed) == 0:
            held += 1
        out_of_wheel(S, r, s)
        stop_decoding(S, r, s)
    else:
        held = sl.held
        rep.prefilling -= 1
    rep.free += held
    S.generated[id] = known - S.prompt[id]
    S.reach[id] = max(S.reach[id], computed)
    S.preemptions[id] += 1
    score = sl.score
    leave(S, r, s)
    rep.preempted += 1
    rep.waiting += 1
    rep.known += known
    if POLICY and run.scored and run.by_score and not run.every:
        S.stale[r, rep.stale] = id
        rep.stale += 1
    if not run.by_score:
        prepend(S, r, id)
        return
    if POLICY and run.scored and not run.every:
        S.score[id] = score
    if queued:
        S.link[id] = 1
        push(S, r, score, id)


# Scores


@kernel
def look(S: Any, r: int) -> None:
    """Fixes what the scores of this iteration see of the replica."""
    rep = S.replica[r]
    rep.seen_running = rep.running
    rep.seen_waiting = rep.waiting
    rep.seen_used = S.run.blocks - rep.free
    rep.seen_routed = rep.routed
    rep.seen_outstanding = rep.outstanding


@hot
def fill(
    S: Any, r: int, row: int, id: int, generated: int, computed: int, preemptions: int
) -> None:
    """Writes the features of a request in a replica."""
    run, rep, to = S.run, S.replica[r], S.rows[row]
    to.arrival_s = np.float64(S.arrival[id]) / PS
    to.prompt_tokens = S.prompt[id]
    if len(S.predicted):
        to.predicted_tokens = S.predicted[id]
    if len(S.priority):
        to.priority = S.priority[id]
    if len(S.deadline):
        to.deadline_s = S.deadline[id]
    to.generated_tokens = generated
    to.computed_tokens = computed
    to.preemptions = preemptions
    to.now_s = np.float64(run.now) / PS
    to.running_requests = rep.seen_running
    to.waiting_requests = rep.seen_waiting
    to.kv_utilization = rep.seen_used / run.blocks
    to.routed_requests = rep.seen_routed
    to.outstanding_tokens = rep.seen_outstanding / FRACTION
    if run.draws:
        to.random_draw = uniform(np.uint64(run.seed), id, r)


@kernel
def evaluate(S: Any, address: int, count: int) -> int:
    """Scores of the rows that were filled; a code."""
    run = S.run
    if call_score(address, run.rows_at, count, run.out_at):
        return RAISED
    for i in range(count):
        if np.isnan(S.out[i]):
            return NAN
    return DONE


@kernel
def score_running(S: Any, r: int) -> int:
    """Scores of the running requests, once an iteration."""
    run, rep = S.run, S.replica[r]
    if not run.scored or rep.running_scored == rep.iteration or rep.running == 0:
        return DONE
    rep.running_scored = rep.iteration
    s, row = rep.head, 0
    while s != NONE:
        sl = S.slot[s]
        id = sl.id
        generated = known_of(S, r, s) - S.prompt[id]
        fill(S, r, row, id, generated, computed_of(S, r, s), S.preemptions[id])
        row += 1
        s = sl.next
    code = evaluate(S, run.score_at, row)
    s, row = rep.head, 0
    while s != NONE and code == DONE:
        S.slot[s].score = S.out[row]
        row += 1
        s = S.slot[s].next
    return code


@kernel
def sort_heap(S: Any, r: int) -> None:
    """Puts a replica's heap in full order, which is a heap too."""
    rep = S.replica[r]
    count = rep.heap
    for place in range(count):
        top = S.heap[r, 0]
        to = S.stash[place]
        to.score, to.id = top.score, top.id
        pop(S, r)
    for place in range(count):
        to = S.heap[r, place]
        to.score, to.id = S.stash[place].score, S.stash[place].id
    rep.heap = count


@kernel
def score_waiting(S: Any, r: int) -> int:
    """Scores of those waiting requests whose scores may have changed, once an iteration."""
    run, rep = S.run, S.replica[r]
    if not run.scored or not run.by_score or rep.waiting_scored == rep.iteration:
        return DONE
    rep.waiting_scored = rep.iteration
    if run.every:
        return score_all_waiting(S, r)
    count = 0
    for place in range(rep.stale):
        id = S.stale[r, place]
        if S.link[id] == 1:  # it waits, and was not taken before
            S.link[id] = 2
            S.stale[r, count] = id
            fill(S, r, count, id, S.generated[id], 0, S.preemptions[id])
            count += 1
    rep.stale = 0
    if count == 0:
        return DONE
    code = evaluate(S, run.score_at, count)
    if code != DONE:
        return code
    for place in range(count):
        id = S.stale[r, place]
        S.link[id] = 1
        if S.out[place] != S.score[id]:
            S.score[id] = S.out[place]
            push(S, r, S.score[id], id)
    return DONE


@kernel
def score_all_waiting(S: Any, r: int) -> int:
    """Scores of all waiting requests: they change with the clock or the replica's state."""
    run, rep = S.run, S.replica[r]
    rep.stale = 0
    if rep.heap == 0:
        return DONE
    if run.callback:  # array arithmetic may depend on the order
        sort_heap(S, r)
    done = 0
    while done < rep.heap:
        count = min(rep.heap - done, len(S.rows))
        for row in range(count):
            id = S.heap[r, done + row].id
            fill(S, r, row, id, S.generated[id], 0, S.preemptions[id])
        code = evaluate(S, run.score_at, count)
        if code != DONE:
            return code
        for row in range(count):
            S.heap[r, done + row].score = S.out[row]
        done += count
    heapify(S, r)
    return DONE


# Preemption by policy


@hot
def is_protected(S: Any, r: int, s: int) -> bool:
    """Whether a request is too close to its predicted end to be preempted by policy."""
    id = S.slot[s].id
    predicted = rounded_up(S, id)
    generated = known_of(S, r, s) - S.prompt[id]
    return predicted > 0 and generated >= S.run.protect_after * predicted


@kernel
def worst(S: Any, r: int, spare_protected: bool) -> int:
    """vLLM's victim: highest score, then latest arrival, then first in the batch."""
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


@hot
def wanted(S: Any, r: int, s: int) -> int:
    """Tokens that a running request would compute, but for the budget."""
    sl = S.slot[s]
    return 1 if sl.state == DECODE else capped(S, r, sl.known - sl.computed)


@kernel
def reserved(S: Any, r: int, id: int) -> int:
    """Blocks that admission keeps for the predicted remainders of a candidate and the batch."""
    run = S.run
    ahead = max(rounded_up(S, id) - S.generated[id], 0)
    s = S.replica[r].head
    while s != NONE:
        sl = S.slot[s]
        ahead += max(rounded_up(S, sl.id) - (known_of(S, r, s) - S.prompt[sl.id]), 0)
        s = sl.next
    return np.int64(np.ceil(run.reserve * ahead / run.block_size))


@hot
def admission_blocks(S: Any, r: int, id: int, tokens: int) -> int:
    """Free blocks that must be there for a waiting request to be admitted."""
    run, rep = S.run, S.replica[r]
    if run.full_isl or tokens == 0:
        tokens = known_waiting(S, id)
    needed = blocks_for(S, tokens)
    if rep.running > 0:
        needed += run.watermark
        if run.reserve > 0:
            needed += reserved(S, r, id)
    return needed


@hot
def stored_of(S: Any, id: int) -> int:
    """Computed tokens of a waiting request that lie in host memory."""
    return S.stored[id] if len(S.stored) else 0


@kernel
def nobody_must_yield(S: Any, r: int) -> bool:
    """Whether all who wait find a seat and blocks: then nobody is preempted for them."""
    run, rep = S.run, S.replica[r]
    if run.callback or run.reserve > 0 or run.max_seqs - rep.running < rep.waiting:
        return False
    each = 1 + run.watermark  # what rounding up and the watermark can add
    return blocks_for(S, rep.known) + rep.waiting * each <= rep.free


@kernel
def preempt_by_policy(S: Any, r: int) -> int:
    """Lets waiting requests take the place of running ones, as the reference does; a code."""
    run, rep = S.run, S.replica[r]
    if nobody_must_yield(S, r):
        return DONE
    code = score_waiting(S, r)
    if code == DONE and run.callback:
        code = score_running(S, r)
    if code != DONE:
        return code
    seats = run.max_seqs - rep.running
    budget = run.max_tokens - rep.decoding
    s, left = rep.tail, rep.prefilling
    while left > 0:
        if S.slot[s].state == PREFILL:
            budget -= wanted(S, r, s)
            left -= 1
        s = S.slot[s].previous
    blocks = 0
    in_replica = rep.running + rep.waiting
    crowding = max(1.0, rep.running / rep.waiting)
    walked = victims = 0
    waiting = rep.waiting
    open_ = True
    while open_ and walked < waiting:
        id = first(S, r)
        score = S.heap[r, 0].score
        needed = admission_blocks(S, r, id, 0)
        while seats == 0 or blocks + needed > rep.free:
            open_ = False  # unless a victim is found
            if victims == run.max_per_step or budget <= 0:
                break
            code = score_running(S, r)
            if code != DONE:
                break
            s = worst(S, r, True)
            if s == NONE:
                break
            computed = computed_of(S, r, s)
            cost = run.price * computed * in_replica * crowding
            if not S.slot[s].score - score > run.margin + cost:
                break
            open_ = True
            seats += 1
            budget += wanted(S, r, s)
            victim = S.slot[s].id
            if run.preemption == 2:
                kept = min(computed, known_of(S, r, s) - 1)
                S.stored[victim] = kept
                rep.swapped += kept
            to = S.stash[len(S.stash) - 1 - victims]
            to.score, to.id = S.slot[s].score, victim
            victims += 1
            preempt(S, r, s, False)
        if not open_:
            break
        seats -= 1
        blocks += needed
        budget -= capped(S, r, known_waiting(S, id) - stored_of(S, id))
        to = S.stash[walked]
        to.score, to.id = score, id
        walked += 1
        pop(S, r)
        S.link[id] = 0
    for place in range(walked):
        S.link[S.stash[place].id] = 1
        push(S, r, S.stash[place].score, S.stash[place].id)
    for place in range(victims):
        back = S.stash[len(S.stash) - 1 - place]
        S.link[back.id] = 1
        push(S, r, back.score, back.id)
    return code


@hot
def gave_way(S: Any, r: int, id: int) -> bool:
    """Whether a request was preempted by policy in this iteration: then it does not return in it.

    Without KV pressure all that were preempted are those that ``preempt_by_policy`` noted.
    """
    for place in range(S.replica[r].preempted):
        if S.stash[len(S.stash) - 1 - place].id == id:
            return True
    return False


# The iteration


@kernel
def walk_running(S: Any, r: int) -> int:
    """Tokens and blocks for the running requests, one after the other; the budget left or a code.

    Returns -1 - code if a score failed, else the budget. ``pressed`` is in ``preempted``.
    """
    run, rep = S.run, S.replica[r]
    budget = run.max_tokens
    s = rep.head
    while s != NONE and budget > 0:
        sl = S.slot[s]
        computed = computed_of(S, r, s)
        tokens = min(wanted(S, r, s), budget)
        if sl.state == DECODE:
            more = 1 if residue(S, computed) == 0 else 0
        else:
            more = max(blocks_for(S, computed + tokens) - sl.held, 0)
        following = sl.next
        while more > rep.free:
            rep.pressed = 1
            if run.by_score:
                if POLICY:
                    code = score_running(S, r)
                    if code != DONE:
                        return -1 - code
                victim = worst(S, r, False)
                if S.slot[victim].stamp == rep.iteration:
                    budget += S.slot[victim].tokens
            else:
                victim = rep.tail
            if victim == following:
                following = S.slot[victim].next
            preempt(S, r, victim, True)
            if victim == s:
                break
        if S.slot[s].state == FREE:  # it had to give way itself
            s = following
            if run.by_score and run.past_preemption:
                continue
            break
        rep.free -= more
        sl.stamp = rep.iteration
        sl.tokens = tokens
        budget -= tokens
        if sl.state == PREFILL:
            sl.held += more
            S.acting[r, rep.acting] = s
            rep.acting += 1
        s = following
    while s != NONE:  # nothing was left for these
        if S.slot[s].state == DECODE:
            stall(S, r, s)
        s = S.slot[s].next
    return budget


@hot
def schedule_running(S: Any, r: int) -> int:
    """The same by look-up where it is possible: all running requests get what they want."""
    run, rep = S.run, S.replica[r]
    s = rep.tail
    if rep.prefilling == 0 or (rep.prefilling == 1 and S.slot[s].state == PREFILL):
        budget = run.max_tokens - rep.decoding
        more = S.hist[r, residue(S, -rep.iteration)]
        tokens = grown = 0
        if rep.prefilling == 1:
            sl = S.slot[s]
            tokens = min(capped(S, r, sl.known - sl.computed), budget)
            if tokens > 0:
                grown = max(blocks_for(S, sl.computed + tokens) - sl.held, 0)
        if more + grown <= rep.free:
            rep.free -= more + grown
            if tokens > 0:
                sl = S.slot[s]
                sl.held += grown
                sl.tokens = tokens
                S.acting[r, 0] = s
                rep.acting = 1
            return budget - tokens
    return walk_running(S, r)


@hot
def schedule_waiting(S: Any, r: int, budget: int) -> int:
    """Admits waiting requests, in order, until one finds no seat, no tokens or no blocks."""
    run, rep = S.run, S.replica[r]
    if rep.waiting == 0 or rep.running >= run.max_seqs:
        return DONE
    if POLICY:
        code = score_waiting(S, r)
        if code != DONE:
            return code
    while rep.waiting > 0 and budget > 0 and rep.running < run.max_seqs:
        id = first(S, r) if run.by_score else rep.queue_head
        if rep.preempted > 0 and gave_way(S, r, id):
            break
        known = known_waiting(S, id)
        start = stored_of(S, id)
        tokens = capped(S, r, known - start)
        if tokens > budget:
            if not run.chunked:
                break
            tokens = budget
        if admission_blocks(S, r, id, start + tokens) > rep.free:
            break
        s = join(S, r, id)
        sl = S.slot[s]
        if run.by_score:
            sl.score = S.heap[r, 0].score
            pop(S, r)
            S.link[id] = 0
        else:
            pop_front(S, r)
        rep.waiting -= 1
        rep.known -= known
        sl.held = blocks_for(S, start + tokens)
        rep.free -= sl.held
        sl.computed = start
        sl.known = known
        sl.tokens = tokens
        sl.again = S.preemptions[id] > 0
        if not sl.again:
            S.scheduled[id] = rep.start
        if start > 0:
            rep.swapped += start
            S.stored[id] = 0
        S.acting[r, rep.acting] = s
        rep.acting += 1
        budget -= tokens
    return DONE


@hot
def launch(S: Any, r: int) -> int:
    """Counts the batch, takes its tokens as computed, and says how long it runs."""
    run, rep = S.run, S.replica[r]
    decodes = rep.decoding - rep.stalled
    context = rep.offsets - rep.stalled_offsets + decodes * (rep.iteration + 1)
    prefills = tokens = pairs = 0
    for place in range(rep.acting):
        sl = S.slot[S.acting[r, place]]
        if sl.state == FREE:
            continue
        start = sl.computed
        after = start + sl.tokens
        sl.computed = after
        if sl.tokens == 1 and after == sl.known:
            decodes += 1
            context += after
        else:
            prefills += 1
            tokens += sl.tokens
            pairs += sl.tokens * start + sl.tokens * (sl.tokens + 1) // 2
        if sl.again:
            reach = S.reach[sl.id]
            if reach > start:
                S.recomputed[sl.id] += min(after, reach) - start
            if after > reach:
                S.reach[sl.id] = after
    duration = 0
    if tokens + decodes > 0:
        if tokens == 0:
            duration = S.decode_ps[decodes]
        else:
            duration = S.mixed_ps[tokens + decodes]
            duration += run.prefill_seq_ps * prefills
            duration += run.decode_seq_ps * decodes
            duration += run.mixed_context_ps * context
        duration += run.context_ps * context
        duration += run.chunk_context_ps * pairs
        floor = run.floor_ps + run.floor_seq_ps * (prefills + decodes)
        duration = max(duration, floor, 1)
    duration += rep.swapped * run.swap_ps
    if run.log:
        to = S.log[run.log_rows]
        run.log_rows += 1
        to.replica = r
        to.start_ps = rep.start
        to.duration_ps = duration
        to.prefill_tokens = tokens
        to.decode_seqs = decodes
        to.running = rep.running
        to.waiting = rep.waiting
        to.used_blocks = run.blocks - rep.free
        to.preempted = rep.preempted
    return duration


@hot
def begin_iteration(S: Any, r: int, now: int) -> int:
    """Decides an iteration and starts it; a code."""
    run, rep = S.run, S.replica[r]
    rep.iteration += 1
    rep.start = now
    rep.acting = rep.swapped = rep.preempted = rep.pressed = 0
    rep.stalled = rep.stalled_offsets = 0
    alone = rep.running + rep.waiting == 1
    rep.threshold = 0 if alone and not run.applies_alone else run.threshold
    if POLICY and run.scored:
        look(S, r)
    if POLICY and run.preemption and rep.waiting > 0:
        code = preempt_by_policy(S, r)
        if code != DONE:
            return code
    budget = schedule_running(S, r)
    if budget < 0:
        return -1 - budget
    if not rep.pressed:
        code = schedule_waiting(S, r, budget)
        if code != DONE:
            return code
    S.end[r] = now + launch(S, r)
    return DONE
