"""One replica of the fast engine: what ``engine.Replica`` decides, iteration by iteration.

Functions take the state, the replica's index and often a slot. In the usual iteration nobody
touches the decoding requests: a look-up says how many blocks they need, and which of them, where
prefix caching tells blocks apart. Where blocks run out, or where a prefill that is not the last in
the batch takes tokens, the batch is walked as the reference does.
"""

# compiled from its text; to mypy every number that an array yields is Any
# mypy: disable-error-code="no-any-return, return-value, call-arg"

from __future__ import annotations

from typing import Any

from lengthwise.picoseconds import LAST_PS
from lengthwise.serving.events import SHIFT
from lengthwise.serving.fast.arrivals import push_child
from lengthwise.serving.fast.backlog import tally
from lengthwise.serving.fast.batch import (
    blocks_for,
    capped,
    computed_of,
    count_out,
    drain,
    end_prefill,
    generated_of,
    join,
    known_of,
    last_computed,
    leave,
    out_of_wheel,
    pending_of,
    residue,
    rounded_up,
    stall,
    wanted,
    worst,
)
from lengthwise.serving.fast.blocks import admit, demand, find, grow, release, remember
from lengthwise.serving.fast.compiler.jit import ceil, hot, kernel, node_of
from lengthwise.serving.fast.curves import curve_at
from lengthwise.serving.fast.flags import (
    ASYNC,
    EVENTS,
    GUARD,
    MORE,
    POLICY,
    PREFIX,
    ROLES,
    STOPS,
)
from lengthwise.serving.fast.guard import (
    guard_admission,
    guard_arrival,
    guard_iteration,
    guard_preemption,
)
from lengthwise.serving.fast.queue import (
    append,
    first,
    out_of_turn,
    pop_front,
    prepend,
    put,
    take_first,
    unlink,
)
from lengthwise.serving.fast.roles import hand_over, hands_over, set_out
from lengthwise.serving.fast.scores import look, score_running, score_waiting, weight_at
from lengthwise.serving.fast.state import (
    DECODE,
    DONE,
    DRAIN,
    ENDLESS,
    FREE,
    NONE,
    OUT,
    PREFILL,
    WAITS,
    WHEEL,
    YIELDED,
)
from lengthwise.serving.fast.tables import is_read, is_read_of, sum_of_terms
from lengthwise.serving.fast.tenants import tenant_arrives
from lengthwise.serving.reference.replica import FUTILE
from lengthwise.serving.scoring import MOST_RESERVED

# The end of an iteration


@kernel
def invite(S: Any, id: int, now: int) -> None:
    """The children of a finished request are put on the calendar."""
    child = S.first_child[id]
    while child != NONE:
        # beyond the last moment they are all alike, and too late
        S.arrival[child] = max(now + min(S.think[child], LAST_PS + 1 - now), S.planned[child])
        push_child(S, child)
        child = S.sibling[child]


@hot
def depart(S: Any, r: int, id: int, seen: int) -> None:
    """A request is done; the client sees its last token at ``seen``."""
    S.finish[id] = seen
    S.where[id] = r
    S.replica[r].departed += 1
    if MORE and is_read(S.run.reads, "outstanding_tokens"):
        S.replica[r].outstanding -= weight_at(S, r, id)
    if MORE and is_read_of(S.run.reads, "tenant"):
        S.tenants[r, S.tenant[id]].left += S.prompt[id] + 2 * S.output[id]
    if STOPS:
        S.run.in_system -= 1
    if STOPS or EVENTS:
        S.run.finished += 1
    if MORE and S.run.closed_loop:
        invite(S, id, seen)


@hot
def complete(S: Any, r: int, s: int, seen: int) -> None:
    """A request in the batch is done."""
    id = S.slot[s].id
    out_of_wheel(S, r, s)
    if S.slot[s].state == DECODE:
        count_out(S, r, s)
    if PREFIX and node_of(S, r).caching:
        release(S, r, s)
    elif not (ROLES and hands_over(S, r, id)):
        S.replica[r].free += blocks_for(S, r, last_computed(S, id))
    leave(S, r, s)
    if ROLES and hands_over(S, r, id):
        hand_over(S, r, id)
        return
    depart(S, r, id, seen)


@kernel
def complete_in_order(S: Any, r: int, iteration: int, seen: int) -> None:
    """The same where blocks are told apart: they are released in the batch's order. Or where
    others go on with the requests, which are handed over in that order."""
    node, rep = node_of(S, r), S.replica[r]
    if ASYNC and node.depth > 1:  # when they were scheduled their tokens were not known
        s = S.residue[r, residue(S, r, -(rep.iteration + 1))]
        while s != NONE:
            remember_yielded(S, r, s, iteration)
            s = S.slot[s].residue_next
    ending, s = 0, S.wheel[r, iteration & (WHEEL - 1)]
    last = NONE
    while s != NONE:
        if S.slot[s].finish == iteration:
            ending += 1
            last = s
        s = S.slot[s].wheel_next
    s = last if ending == 1 else rep.head
    while ending > 0:
        following = S.slot[s].next
        if S.slot[s].state != PREFILL and S.slot[s].finish == iteration:
            if ASYNC and node.depth > 1:
                remember_yielded(S, r, s, iteration)
            complete(S, r, s, seen)
            ending -= 1
        s = following


@kernel
def remember_yielded(S: Any, r: int, s: int, iteration: int) -> None:
    """Registers the blocks that a request has filled, now that an iteration's tokens are known."""
    rep, sl = S.replica[r], S.slot[s]
    tokens = last_computed(S, sl.id) - (sl.finish - iteration)
    if sl.state == DECODE:
        tokens = rep.iteration + 1 + sl.offset
        if rep.iteration > iteration and pending_since(S, r, s):
            tokens -= 1
    remember(S, r, s, tokens)


@hot
def pending_since(S: Any, r: int, s: int) -> bool:
    """Whether the latest iteration computed a token of a decoding request."""
    rep, sl = S.replica[r], S.slot[s]
    stalled = sl.stalled_odd if rep.iteration & 1 else sl.stalled_even
    return stalled != rep.iteration


@kernel
def return_orphans(S: Any, r: int, seen: int) -> None:
    """Tokens arrive of requests that were preempted in the meantime."""
    node, rep = node_of(S, r), S.replica[r]
    for place in range(rep.orphans):
        id = S.orphan[2 * rep.seat + place]
        tally(S, r, id, -1)
        S.generated[id] += 1
        rep.known += 1
        if S.generated[id] == S.output[id]:
            rep.waiting -= 1
            rep.known -= S.prompt[id] + S.output[id]
            if MORE and node.by_score:
                S.link[id] = OUT
            else:
                unlink(S, r, id)
            depart(S, r, id, seen)
            continue
        tally(S, r, id, 1)
        if POLICY and node.scored and node.by_score and not node.every:
            S.stale[rep.queue_at + rep.stale] = id
            rep.stale += 1
    rep.orphans = 0


@hot
def first_place(S: Any, r: int, parity: int) -> int:
    """Where in ``first`` the requests of an iteration of that parity begin."""
    return 2 * S.replica[r].seat + parity * node_of(S, r).max_seqs


@hot
def end_iteration(S: Any, r: int) -> None:
    """The oldest iteration under way ends: who has all tokens leaves."""
    rep = S.replica[r]
    rep.done += 1
    parity = rep.done & 1
    step = S.step[r, parity]
    for place in range(step.firsts):
        S.first_token[S.first[first_place(S, r, parity) + place]] = step.seen
    if ASYNC and rep.orphans > 0:
        return_orphans(S, r, step.seen)
    if STOPS:
        S.run.generated += step.yields
    if PREFIX and node_of(S, r).caching:
        complete_in_order(S, r, rep.done, step.seen)
        return
    if ROLES and node_of(S, r).prefills:
        complete_in_order(S, r, rep.done, step.seen)
        return
    s = S.wheel[r, rep.done & (WHEEL - 1)]
    while s != NONE:
        following = S.slot[s].wheel_next
        if S.slot[s].finish == rep.done:
            complete(S, r, s, step.seen)
        s = following


# Waiting requests


@hot
def known_waiting(S: Any, id: int) -> int:
    """Known tokens of a waiting request."""
    return S.prompt[id] + S.generated[id]


@hot
def stored_of(S: Any, id: int) -> int:
    """Computed tokens of a waiting request that lie in host memory."""
    return S.stored[id] if len(S.stored) else 0


@hot
def found_for(S: Any, r: int, id: int) -> int:
    """Tokens of a waiting request that are in the prefix cache; looks them up."""
    node = node_of(S, r)
    if not (PREFIX and node.caching):
        return 0
    find(S, r, id, known_waiting(S, id))
    return S.replica[r].hits * node.block_size


@hot
def enqueue(S: Any, r: int, id: int) -> None:
    """A request that has arrived waits."""
    node, rep = node_of(S, r), S.replica[r]
    if GUARD and node.guarded:
        guard_arrival(S, r, id)
    if MORE and is_read_of(S.run.reads, "tenant"):
        tenant_arrives(S, r, id)
    rep.waiting += 1
    rep.known += S.prompt[id]
    tally(S, r, id, 1)
    if MORE and node.by_score:
        put(S, r, 0.0 if node.every else S.score[id], id)
    else:
        append(S, r, id)


@hot
def store(S: Any, r: int, s: int) -> None:
    """A request's computed tokens go to host memory, as it gives way."""
    kept = min(computed_of(S, r, s), known_of(S, r, s) + pending_of(S, r, s) - 1)
    S.stored[S.slot[s].id] = kept
    S.replica[r].swapped += kept


@kernel
def preempt(S: Any, r: int, s: int, queued: bool) -> None:
    """Takes a request out of the batch: its blocks are lost; it waits, if ``queued``."""
    node, rep, sl = node_of(S, r), S.replica[r], S.slot[s]
    id = sl.id
    computed, known = computed_of(S, r, s), known_of(S, r, s)
    if ASYNC and rep.done < rep.iteration - 1:
        if pending_of(S, r, s):
            S.orphan[2 * rep.seat + rep.orphans] = id
            rep.orphans += 1
            S.flight[id] = rep.iteration - 1
        elif sl.state == PREFILL:
            S.flight[id] = sl.acted
    if PREFIX and node.caching:
        release(S, r, s)
    elif sl.state == PREFILL:
        rep.free += sl.held
    else:
        rep.free += blocks_for(S, r, computed)
        if sl.state == DECODE and sl.stamp == rep.iteration and residue(S, r, computed) == 0:
            rep.free += 1
    if sl.state == PREFILL:
        rep.prefilling -= 1
    else:
        out_of_wheel(S, r, s)
        if sl.state == DECODE:
            count_out(S, r, s)
    S.generated[id] = known - S.prompt[id]
    S.reach[id] = max(S.reach[id], computed)
    S.preemptions[id] += 1
    score = sl.score
    leave(S, r, s)
    rep.preempted += 1
    rep.waiting += 1
    rep.known += known
    tally(S, r, id, 1)
    rep.tenants_last = NONE  # it is among the running ones no more
    if not (MORE and node.by_score):
        prepend(S, r, id)
        return
    if GUARD and node.guarded:
        guard_preemption(S, r, id, known - S.prompt[id])
    if POLICY and node.scored and not node.every:
        S.score[id] = score
        S.stale[rep.queue_at + rep.stale] = id
        rep.stale += 1
    if queued:
        put(S, r, score, id)


@kernel
def reserved(S: Any, r: int, id: int) -> int:
    """Blocks that admission keeps for the predicted remainders of a candidate and the batch."""
    node = node_of(S, r)
    ahead = to_come(S, r, id, S.generated[id])
    s = S.replica[r].head
    while s != NONE:
        sl = S.slot[s]
        ahead += to_come(S, r, sl.id, generated_of(S, r, s))
        s = sl.next
    if ahead == 0:  # an infinite share of nothing is nothing
        return 0
    return ceil(min(node.reserve * ahead, MOST_RESERVED) / node.block_size)


@kernel
def to_come(S: Any, r: int, id: int, generated: int) -> int:
    """Tokens that a request is predicted to generate yet, as admission counts them."""
    node = node_of(S, r)
    if node.reserve_of == NONE:
        return max(rounded_up(S, id) - generated, 0)
    return ceil(curve_at(S, node.reserve_of, id, generated))


@kernel
def file_end(S: Any, r: int, count: int, id: int, generated: int, known: int) -> None:
    """Puts a request among ``count`` others in ``ends``, most to come first."""
    to_go = max(to_come(S, r, id, generated), 1)
    left = ceil(min(node_of(S, r).reserve * to_go, MOST_RESERVED))
    place = count
    while place > 0 and S.ends[place - 1].left < left:
        S.ends[place].left = S.ends[place - 1].left
        S.ends[place].known = S.ends[place - 1].known
        place -= 1
    S.ends[place].left = left
    S.ends[place].known = known


@kernel
def peak_blocks(S: Any, r: int, id: int) -> int:
    """``Scheduler._peak_blocks`` of the batch and a candidate."""
    node = node_of(S, r)
    file_end(S, r, 0, id, S.generated[id], known_waiting(S, id))
    count = 1
    s = S.replica[r].head
    while s != NONE:
        file_end(S, r, count, S.slot[s].id, generated_of(S, r, s), known_of(S, r, s))
        count += 1
        s = S.slot[s].next
    peak = known = 0
    for place in range(count):
        known += S.ends[place].known
        each = S.ends[place].left - 1 + node.block_size - 1
        peak = max(peak, known + (place + 1) * each)
    return peak // node.block_size


@hot
def seated(S: Any, r: int) -> int:
    """Requests that have a seat."""
    if ROLES:
        return S.replica[r].running + S.replica[r].pulled
    return S.replica[r].running


@hot
def admission_blocks(S: Any, r: int, id: int, tokens: int) -> int:
    """Free blocks that must be there for a waiting request to be admitted."""
    node, rep = node_of(S, r), S.replica[r]
    if node.full_isl or tokens == 0:
        tokens = known_waiting(S, id)
    needed = demand(S, r, tokens) if PREFIX and node.caching else blocks_for(S, r, tokens)
    if seated(S, r) > 0:
        needed += node.watermark
        if MORE and node.reserve > 0:
            if node.reserve_peak:
                peak = peak_blocks(S, r, id) + node.watermark
                needed = max(needed, peak - (node.blocks - rep.free))
            else:
                needed += reserved(S, r, id)
    return needed


# Preemption by policy


@kernel
def nobody_must_yield(S: Any, r: int) -> bool:
    """Whether all who wait find a seat and blocks: then nobody is preempted for them."""
    node, rep = node_of(S, r), S.replica[r]
    if node.callback or node.reserve > 0 or node.max_seqs - rep.running < rep.waiting:
        return False
    each = 1 + node.watermark  # what rounding up and the watermark can add
    return blocks_for(S, r, rep.known) + rep.waiting * each <= rep.free


@kernel
def preempt_by_policy(S: Any, r: int) -> int:
    """Lets waiting requests take the place of running ones, as ``preemption.exchanges``; a code."""
    node, rep = node_of(S, r), S.replica[r]
    if nobody_must_yield(S, r):
        return DONE
    code = score_waiting(S, r)
    if code != DONE:
        return code
    seats = node.max_seqs - rep.running
    budget = node.max_tokens - rep.decoding
    s, left = rep.tail, rep.prefilling
    while left > 0:
        if S.slot[s].state == PREFILL:
            budget -= wanted(S, r, s)
            left -= 1
        s = S.slot[s].previous
    blocks = walked = victims = 0
    running, waiting = rep.running, rep.waiting
    crowding = max(1.0, running / waiting)
    satisfied = True
    while satisfied and walked < waiting:
        id = first(S, r)
        rank = score = S.heap[rep.queue_at].score
        if GUARD and S.sent_ahead[id]:
            score = S.score[id]
        found = needed = 0
        while True:
            if seats > 0:
                found = found_for(S, r, id)
                needed = admission_blocks(S, r, id, 0)
                if blocks + needed <= rep.free:
                    break
            satisfied = False  # unless a victim is found
            if victims == node.max_per_step:
                break
            code = score_running(S, r)
            if code != DONE:
                break
            s = worst(S, r, True)
            if s == NONE:
                break
            computed = computed_of(S, r, s)
            lost = computed + node.overhead
            cost = node.price * lost * (running + waiting) * crowding
            if not S.slot[s].score - score > node.margin + cost or budget <= 0:
                break
            satisfied = True
            seats += 1
            budget += wanted(S, r, s)
            victim = S.slot[s].id
            if node.swaps:
                store(S, r, s)
            to = S.stash[len(S.stash) - 1 - victims]
            to.score, to.id = S.slot[s].score, victim
            victims += 1
            preempt(S, r, s, False)
        if not satisfied:
            break
        seats -= 1
        blocks += needed
        budget -= capped(S, r, known_waiting(S, id) - max(found, stored_of(S, id)))
        to = S.stash[walked]
        to.score, to.id = rank, id
        walked += 1
        take_first(S, r)
    for place in range(walked):
        put(S, r, S.stash[place].score, S.stash[place].id)
    for place in range(victims):
        back = S.stash[len(S.stash) - 1 - place]
        put(S, r, back.score, back.id)
        S.link[back.id] = YIELDED
    rep.victims = victims
    return code


# The iteration


@kernel
def walk_running(S: Any, r: int) -> int:
    """Tokens and blocks for the running requests, one after the other.

    Returns the budget left, or -1 - code if a score failed; whether blocks ran out is in
    ``pressed``.
    """
    node, rep = node_of(S, r), S.replica[r]
    budget = node.max_tokens
    passed_over = 0
    s = rep.head
    while s != NONE and budget > 0:
        sl = S.slot[s]
        tokens = min(wanted(S, r, s), budget)
        if ASYNC and tokens == 0:  # its last token is under way
            sl.stamp = rep.iteration
            s = sl.next
            continue
        computed = computed_of(S, r, s)
        if (PREFIX and node.caching) or sl.state == PREFILL:
            more = max(blocks_for(S, r, computed + tokens) - sl.held, 0)
        else:
            more = 1 if residue(S, r, computed) == 0 else 0
        following = sl.next
        skipped = 0
        while more > rep.free:
            rep.pressed = 1
            victim = rep.tail
            if MORE and node.by_score:
                if POLICY:
                    code = score_running(S, r)
                    if code != DONE:
                        return -1 - code
                victim = worst(S, r, False)
                if S.slot[victim].stamp == rep.iteration:
                    if S.slot[victim].state != DRAIN:
                        budget += S.slot[victim].tokens
                    elif not node.past_preemption:
                        skipped += 1
            if victim == following:
                following = S.slot[victim].next
            preempt(S, r, victim, True)
            if victim == s:
                break
        if S.slot[s].state == FREE:  # it had to give way itself
            s = following
            if MORE and node.by_score and node.past_preemption:
                continue
            break
        if PREFIX and node.caching:
            grow(S, r, s, more)
            remember(S, r, s, min(computed + tokens, known_of(S, r, s)))
        else:
            rep.free -= more
            if sl.state == PREFILL:
                sl.held += more
        sl.stamp = rep.iteration
        sl.tokens = tokens
        budget -= tokens
        if sl.state == PREFILL:
            S.acting[rep.seat + rep.acting] = s
            rep.acting += 1
        s = following
        while skipped > 0 and s != NONE:
            s = S.slot[s].next
            skipped -= 1
            passed_over = 1
    if passed_over:
        s = rep.head
    while s != NONE:  # nothing was left for these
        if S.slot[s].state == DECODE and S.slot[s].stamp != rep.iteration:
            stall(S, r, s)
        s = S.slot[s].next
    return budget


@kernel
def decode_blocks(S: Any, r: int) -> None:
    """Gives those that begin a block one, and registers those that are full, of a batch in which
    everybody gets a token."""
    rep = S.replica[r]
    s = S.residue[r, residue(S, r, -rep.iteration)]
    while s != NONE:
        grow(S, r, s, 1)
        remember(S, r, s, min(rep.iteration + S.slot[s].offset + 1, known_of(S, r, s)))
        s = S.slot[s].residue_next
    s = S.residue[r, residue(S, r, -(rep.iteration + 1))]
    while s != NONE:
        remember(S, r, s, min(rep.iteration + S.slot[s].offset + 1, known_of(S, r, s)))
        s = S.slot[s].residue_next


@hot
def schedule_running(S: Any, r: int) -> int:
    """The same by look-up where it is possible: all running requests get what they want."""
    node, rep = node_of(S, r), S.replica[r]
    s = rep.tail
    usual = rep.prefilling == 0 or (rep.prefilling == 1 and S.slot[s].state == PREFILL)
    if usual:
        budget = node.max_tokens - rep.decoding
        more = S.hist[r, residue(S, r, -rep.iteration)]
        tokens = grown = 0
        if rep.prefilling == 1:
            sl = S.slot[s]
            tokens = min(capped(S, r, sl.known - sl.computed), budget)
            if tokens > 0:
                grown = max(blocks_for(S, r, sl.computed + tokens) - sl.held, 0)
        if more + grown <= rep.free:
            if PREFIX and node.caching:
                decode_blocks(S, r)
            else:
                rep.free -= more + grown
            if tokens > 0:
                sl = S.slot[s]
                if PREFIX and node.caching:
                    grow(S, r, s, grown)
                    remember(S, r, s, sl.computed + tokens)
                else:
                    sl.held += grown
                sl.tokens = tokens
                S.acting[rep.seat] = s
                rep.acting = 1
            return budget - tokens
    return walk_running(S, r)


@hot
def schedule_waiting(S: Any, r: int, budget: int) -> int:
    """Admits waiting requests, in order, until one finds no seat, no tokens or no blocks."""
    run, node, rep = S.run, node_of(S, r), S.replica[r]
    if rep.waiting == 0 or seated(S, r) >= node.max_seqs:
        return DONE
    if POLICY:
        code = score_waiting(S, r)
        if code != DONE:
            return code
    passed = ahead = 0
    while rep.waiting > passed and budget > 0 and seated(S, r) < node.max_seqs:
        named = False
        if STOPS:
            named = ahead < run.chosen
        if STOPS and named:
            id = S.candidate[ahead]
        else:
            id = first(S, r) if MORE and node.by_score else rep.queue_head
        if ASYNC and S.flight[id] > rep.done:  # what it computed has yet to come back
            to = S.stash[passed]
            to.id = id
            if STOPS and named:
                ahead += 1
                to.score = out_of_turn(S, r, id)
            elif MORE and node.by_score:
                to.score = take_first(S, r)
            else:
                pop_front(S, r)
            passed += 1
            continue
        if POLICY and node.by_score and S.link[id] == YIELDED:
            break
        if STOPS and S.gave[id] == rep.iteration:
            break
        known = known_waiting(S, id)
        if ROLES and S.stored[id] > 0:  # its KV lies at another replica
            if admission_blocks(S, r, id, 0) > rep.free:
                break
            if node.by_score:
                take_first(S, r)
            else:
                pop_front(S, r)
            rep.waiting -= 1
            rep.known -= known
            rep.free -= blocks_for(S, r, known)
            rep.pulled += 1
            set_out(S, r, id)
            continue
        found = found_for(S, r, id)
        start = max(found, stored_of(S, id))
        tokens = capped(S, r, known - start)
        if tokens > budget:
            if not node.chunked:
                break
            tokens = budget
        if admission_blocks(S, r, id, start + tokens) > rep.free:
            break
        s = join(S, r, id)
        sl = S.slot[s]
        if STOPS and named:
            ahead += 1
            sl.score = out_of_turn(S, r, id)
        elif MORE and node.by_score:
            sl.score = take_first(S, r)
        else:
            pop_front(S, r)
        if GUARD and node.guarded:
            guard_admission(S, r, id)
        rep.waiting -= 1
        rep.known -= known
        tally(S, r, id, -1)
        if MORE and is_read_of(S.run.reads, "tenant"):
            rep.tenant_admitted = S.tenant[id]
        sl.computed = start
        sl.known = known
        sl.tokens = tokens
        if PREFIX and node.caching:
            admit(S, r, s, start + tokens)
            remember(S, r, s, start + tokens)
        else:
            sl.held = blocks_for(S, r, start + tokens)
            rep.free -= sl.held
        sl.again = S.preemptions[id] > 0
        if not sl.again:
            if PREFIX and node.caching:
                S.cached[id] = min(found, S.prompt[id])
            S.scheduled[id] = rep.start
        if start > found:
            rep.swapped += start - found
        if node.swaps:
            S.stored[id] = 0
        S.acting[rep.seat + rep.acting] = s
        rep.acting += 1
        budget -= tokens
    while passed > 0:
        passed -= 1
        back = S.stash[passed]
        if MORE and node.by_score:
            put(S, r, back.score, back.id)
        else:
            prepend(S, r, back.id)
    return DONE


@hot
def one_clock(
    S: Any, r: int, decodes: int, context: int, prefills: int, tokens: int, pairs: int
) -> int:
    """An iteration's duration: ``TimingTables.iteration_ps``."""
    if tokens + decodes == 0:
        return 0
    node, sequences = node_of(S, r), prefills + decodes
    if tokens == 0:
        duration = S.decode_ps[node.decode_at + decodes] + decode_terms(S, r, decodes, context)
    else:
        duration = S.mixed_ps[node.mixed_at + tokens + decodes]
        duration += mixed_terms(S, r, decodes, context, prefills, tokens, pairs)
    return max(duration, sum_of_terms(node, "floor", sequences=sequences), 1)


@hot
def decode_terms(S: Any, r: int, decodes: int, context: int) -> int:
    """The GPU's work on an iteration without prefill, beyond what the tables hold."""
    node = node_of(S, r)
    return sum_of_terms(
        node, "gpu", "decode", decode_seqs=decodes, sequences=decodes, context_tokens=context
    )


@hot
def mixed_terms(
    S: Any, r: int, decodes: int, context: int, prefills: int, tokens: int, pairs: int
) -> int:
    """The same for any other iteration."""
    node = node_of(S, r)
    return sum_of_terms(
        node, "gpu", "mixed", prefill_tokens=tokens, prefill_seqs=prefills, decode_seqs=decodes,
        sequences=prefills + decodes, context_tokens=context, chunk_context=pairs,
    )  # fmt: skip


@hot
def update_of(S: Any, r: int, sequences: int) -> int:
    """Taking in an iteration's result: ``Pipeline.update_ps``."""
    node = node_of(S, r)
    return sum_of_terms(node, "update", sequences=sequences)


@hot
def output_of(S: Any, r: int, yields: int) -> int:
    """Until clients have an iteration's tokens: ``Pipeline.output_ps``."""
    node = node_of(S, r)
    return sum_of_terms(node, "output", yields=yields)


@kernel
def slowed(S: Any, r: int, duration: int, start: int) -> int:
    """How long the GPU's work takes that starts at a moment: ``timeline.Timeline``."""
    rep = S.replica[r]
    while rep.slow_at < rep.slow_end and S.slow[rep.slow_at].ends <= start:
        rep.slow_at += 1
    if rep.slow_at == rep.slow_end or start < S.slow[rep.slow_at].begins:
        return duration
    factor = S.slow[rep.slow_at].factor
    rest = (duration & ((1 << SHIFT) - 1)) * factor + (1 << (SHIFT - 1))
    return (duration >> SHIFT) * factor + (rest >> SHIFT)


@kernel
def two_clocks(
    S: Any, r: int, decodes: int, context: int, prefills: int, tokens: int, pairs: int, swap: int
) -> None:
    """Times an iteration on the CPU's and the GPU's clock: ``replica._time_pipelined``."""
    run, node, rep = S.run, node_of(S, r), S.replica[r]
    sequences = decodes + prefills
    scheduled = max(run.now, rep.launched) + sum_of_terms(node, "schedule", running=rep.running)
    work = prepare = launch = tail = 0
    if sequences > 0:
        if tokens == 0:
            work = S.decode_ps[node.decode_at + decodes]
            work += S.decode_context_ps[node.decode_context_at + decodes] * context
            work += decode_terms(S, r, decodes, context)
            launch = sum_of_terms(node, "launch", "decode", sequences=sequences)
        else:
            work = S.mixed_ps[node.mixed_at + tokens + decodes]
            work += mixed_terms(S, r, decodes, context, prefills, tokens, pairs)
            launch = S.mixed_launch_ps[node.mixed_launch_at + tokens + decodes] + sum_of_terms(
                node, "launch", "mixed", sequences=sequences, prefill_seqs=prefills
            )
        prepare = min(sum_of_terms(node, "prepare", sequences=sequences), launch)
        tail = sum_of_terms(node, "tail")
    rep.launched = scheduled + launch
    rep.start = max(rep.free_at, scheduled + prepare)
    work += swap
    if EVENTS:
        work = slowed(S, r, work, rep.start)
    rep.free_at = max(rep.start + work, rep.launched + tail)
    seen = rep.free_at
    step = S.step[r, rep.iteration & 1]
    if rep.done < rep.iteration - 1:
        before = S.step[r, (rep.iteration - 1) & 1]
        before.end = max(before.end, rep.launched + update_of(S, r, before.sequences))
        before.seen = before.end + output_of(S, r, before.yields)
        seen = max(seen, before.end)
    step.end = seen + update_of(S, r, sequences)
    step.seen = step.end + output_of(S, r, step.yields)


@hot
def launch(S: Any, r: int) -> int:
    """Counts the batch, takes its tokens as computed, and times it; a code."""
    run, node, rep = S.run, node_of(S, r), S.replica[r]
    decodes = rep.decoding - rep.stalled
    context = rep.offsets - rep.stalled_offsets + decodes * (rep.iteration + 1)
    parity = rep.iteration & 1
    step = S.step[r, parity]
    step.firsts = 0
    step.yields = decodes
    prefills = tokens = pairs = 0
    further = decodes > 0  # somebody gets further than ever before
    if ASYNC and node.depth > 1:
        drain(S, r)
    for place in range(rep.acting):
        s = S.acting[rep.seat + place]
        sl = S.slot[s]
        if sl.state == FREE:
            continue
        if ROLES and S.move[sl.id].target == r and S.move[sl.id].decode == NONE:
            S.move[sl.id].decode = rep.start
        start = sl.computed
        after = start + sl.tokens
        sl.computed = after
        sl.acted = rep.iteration
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
                if STOPS:
                    run.recomputed += min(after, reach) - start
            if after > reach:
                S.reach[sl.id] = after
                further = True
        elif sl.tokens > 0:
            further = True
        if after == sl.known:
            step.yields += 1
            if sl.known == S.prompt[sl.id]:
                S.first[first_place(S, r, parity) + step.firsts] = sl.id
                step.firsts += 1
            end_prefill(S, r, s)
    rep.futile = rep.preempted if further else rep.futile + rep.preempted
    if rep.futile > FUTILE:
        run.at_replica = r
        return ENDLESS
    step.sequences = decodes + prefills
    swap = rep.swapped * node.swap_ps
    if ASYNC and node.pipeline:
        two_clocks(S, r, decodes, context, prefills, tokens, pairs, swap)
    else:
        duration = one_clock(S, r, decodes, context, prefills, tokens, pairs) + swap
        if EVENTS:
            duration = slowed(S, r, duration, rep.start)
        step.end = step.seen = rep.free_at = rep.start + duration
    S.end[r] = S.step[r, (rep.done + 1) & 1].end
    if run.log:
        to = S.log[run.log_rows]
        run.log_rows += 1
        to.replica = r
        to.start_ps = rep.start
        to.duration_ps = step.end - rep.start
        to.prefill_tokens = tokens
        to.decode_seqs = decodes
        to.running = rep.running
        to.waiting = rep.waiting
        to.used_blocks = node.blocks - rep.free
        to.preempted = rep.preempted
    return DONE


@hot
def begin_iteration(S: Any, r: int, now: int) -> None:
    """Starts an iteration: fixes what its scores see."""
    node, rep = node_of(S, r), S.replica[r]
    rep.iteration += 1
    rep.start = max(now, rep.free_at)
    rep.acting = rep.swapped = rep.preempted = rep.pressed = rep.victims = 0
    rep.stalled = rep.stalled_offsets = 0
    alone = rep.running + rep.waiting == 1
    rep.threshold = 0 if alone and not node.applies_alone else node.threshold
    if POLICY and node.scored:
        look(S, r)
    if GUARD and node.guarded:
        guard_iteration(S, r)


@hot
def let_yield(S: Any, r: int) -> int:
    """Running requests give way as the policy says; a code."""
    if POLICY and node_of(S, r).preemption and S.replica[r].waiting > 0:
        return preempt_by_policy(S, r)
    return DONE


@kernel
def give_way(S: Any, r: int) -> None:
    """The running requests that a caller chose give way, in the policy's mode."""
    run, node, rep = S.run, node_of(S, r), S.replica[r]
    for place in range(run.chosen):
        s = S.candidate[place]
        if node.swaps:
            store(S, r, s)
        S.gave[S.slot[s].id] = rep.iteration
        preempt(S, r, s, True)


@hot
def schedule_iteration(S: Any, r: int) -> int:
    """Decides the iteration that has begun, and launches it; a code."""
    rep = S.replica[r]
    budget = schedule_running(S, r)
    if budget < 0:
        return -1 - budget
    if not rep.pressed:
        code = schedule_waiting(S, r, budget)
        if code != DONE:
            return code
    if POLICY:
        for place in range(rep.victims):
            S.link[S.stash[len(S.stash) - 1 - place].id] = WAITS
    if ROLES and rep.running == 0 and rep.preempted == 0:
        # whoever waits needs blocks that others' KV takes: there is no iteration
        rep.stuck = 1
        rep.iteration -= 1
        rep.running_scored = rep.waiting_scored = NONE
        return DONE
    return launch(S, r)
