"""The state of the fast engine: one tuple of arrays that compiled functions share.

A decoding request stores no progress. It stores the iteration that computes its last token and the
difference between its computed tokens and its replica's iteration count, which stays the same for
as long as it decodes; ``hist`` counts those differences modulo the block size, so one look-up gives
the blocks that all decoding requests need in an iteration, and ``wheel`` holds, by iteration, the
requests that come to their last token.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise import features
from lengthwise.errors import InvariantError
from lengthwise.serving.records import LOST
from lengthwise.serving.timing.terms import TERMS

NONE = -1  # no slot, no request, no block
# States of a slot; DRAIN: its last token is under way.
FREE, PREFILL, DECODE, DRAIN = 0, 1, 2, 3
# What ``link`` says of a request in a queue by score: TAKEN while its score is evaluated, YIELDED
# when it was preempted by policy in this very iteration.
OUT, WAITS, TAKEN, YIELDED = 0, 1, 2, 3
NEVER = 2**63 - 1  # a time that does not come
AHEAD = -math.inf  # the place of whom the starvation guard sent ahead
RING = 1024  # waits that the starvation guard keeps: more than its window
WHEEL = 1024  # iterations; one that lies further ahead is passed over once a turn

# One row a request or replica: every feature, whether read or not, in the table's order.
FEATURE_ROW = np.dtype([(f.name, f.dtype) for f in features.FEATURES.values()])

# What run_until returns, and beside that step_many: an environment needs a new episode, has one
# without any choice, was given an action that is none, or was not reset. LATE: simulated time goes
# beyond what its integers hold.
DONE, GROW, RAISED, NAN, ENDLESS, FAULT, STOP, HORIZON = 0, 1, 2, 3, 4, 5, 6, 7
DRAW, EMPTY, NO_ACTION, NO_RUN, LATE = 8, 9, 10, 11, 12

# What a run that stands still asks for; NOTHING is due otherwise.
NOTHING, ROUTE, PREEMPT, ADMIT = 0, 1, 2, 3


def _row(*names: str) -> np.dtype[np.void]:
    return np.dtype([(name, np.int64) for name in names])


# One row a run: its constants and, from ``now`` on, its place in time.
RUN = _row(
    "requests", "replicas", "seed", "closed_loop",
    "reads", "routing_reads",  # masks of features: anybody's, the router's
    "choices", "log", "hash_tokens",
    "router_at", "rows_at", "out_at",  # addresses
    # between two looks of the router at the replicas, 0 if it always sees them; how many of them
    # lie behind the last look, NONE before the first
    "interval", "scraped",
    "at_route", "at_preempt", "at_admit", "horizon",  # where to stop
    "now", "next_root", "children", "log_rows", "at_replica",
    # the stop that is due; ``listed`` and ``chosen`` are NONE until it is looked at, answered
    "due", "due_node", "due_request", "candidates", "listed", "shown", "chosen", "answer",
    # totals; integrals in two words of which the lower one has HALF bits
    "in_system", "waiting", "finished", "generated", "preempted", "recomputed",
    "request_high", "request_low", "waiting_high", "waiting_low",
    # failures: the place in the timetable, nodes that are not known to be down, rows of ``lost``,
    # how many there must be room for, tokens that were lost
    "next_turn", "open", "lost_rows", "lost_room", "lost_tokens",
    # roles: whose prompts are prefilled apart, who chooses who decodes, and how; a transfer's
    # latency; how many transfers are under way; the part of ``handed`` that has yet to be sent on
    "min_prompt", "decode_at", "decode_reads", "decode_choices", "latency", "flying", "hand_next",
    "hand_end",
)  # fmt: skip
HALF = 31

# Constants of a node; equal nodes share a row. ``_at``: where its part of a table begins, but for
# ``score_at``, the address of its score; ``ahead_at`` is NONE where scores are not made ahead.
NODE = np.dtype(
    [
        *((name, np.int64) for name in (
            "max_seqs", "max_tokens", "block_size", "shift", "blocks", "watermark", "threshold",
            "chunked", "full_isl", "by_score", "scored", "every", "at_arrival", "callback",
            "reads",  # a mask of features
            "preemption", "swaps", "overhead", "max_per_step", "past_preemption", "applies_alone",
            "swap_ps", "caching", "bucket_mask", "longest", "depth", "score_at", "ahead_at",
            "guarded", "guard_floor",
            "reserve_peak", "reserve_of",  # the place of a curve, or NONE
            "decode_at", "mixed_at", "decode_context_at", "mixed_launch_at",
            "pipeline",  # whether there are two clocks
            "prefills", "block_ps",  # whether that is all it does; how long its link takes a block
            *(f"{term}_ps" for term in TERMS),
        )),
        *((name, np.float64) for name in (
            "price", "margin", "protect_after", "reserve", "guard_ratio", "decode_tokens_per_s",
        )),
    ]
)  # fmt: skip

# ``seat`` to ``seats_end``: its slots; ``queue_at``, ``capacity``: its part of ``heap``, ``stale``
# and ``watched``; ``bucket_at``, ``held_at``: its part of those tables.
REPLICA = _row(
    "node", "seat", "seats_end", "queue_at", "capacity", "bucket_at", "held_at",
    "head", "tail", "free_slot", "running", "decoding", "offsets", "prefilling",
    "free", "iteration", "done", "waiting", "known", "queue_head", "queue_tail", "heap", "stale",
    "routed", "departed", "outstanding", "acting", "swapped", "preempted", "pressed", "victims",
    "orphans",
    "futile", "start", "free_at", "launched", "threshold", "stalled", "stalled_offsets",
    "blank", "oldest", "newest",
    # the last search of the prefix cache: for whom and how many known tokens, its number, what it
    # found and where that begins in ``hit``, how much of it nobody uses, the key that is not there
    "sought", "sought_known", "search", "hits", "hit_at", "idle", "missing",
    "running_scored", "waiting_scored",
    "shadow_head", "shadow_tail", "served", "begun", "turns", "longest", "waits", "watched",
    # of ``backlog``: sums over the queue and the batch, the latter as of two iterations; a list
    "queued_prefill", "queued_decode", "running_decode", "summed_last", "summed_done",
    "sent_head", "sent_tail",
    "tenants_last", "tenants_done", "tenant_admitted",  # of ``tenants``; the last admitted
    "down",  # 0; FAILED; KNOWN, the router knows it too
    # of ``roles``: requests that await their KV in a seat; whether it can schedule nothing before
    # something comes or leaves; when its link is free
    "pulled", "stuck", "link_free",
    "slow_at", "slow_end",  # of its windows in ``slow``, the first that is not over, and the last
)  # fmt: skip

# A tenant at a replica: tokens of who left, waits and runs; how many wait; where it began.
TENANT = np.dtype([*_row("left", "queued", "running", "waiting").descr, ("offset", np.float64)])

# An iteration in flight: two rows a replica, by the parity of its number.
STEP = _row("end", "seen", "firsts", "sequences", "yields")

# A seat in a replica's batch. ``offset`` (decoding): computed tokens less iterations.
# What the scores of the batch need comes first: it fits a cache line.
SLOT = np.dtype(
    [
        *_row("id", "state", "offset").descr, ("score", np.float64),
        *_row(
            "next", "previous", "finish", "wheel_next", "wheel_previous",
            "computed", "known", "held", "hashed", "tokens", "stamp", "acted", "again",
            "stalled_even", "stalled_odd", "residue_next", "residue_previous",
        ).descr,
    ]
)  # fmt: skip

# When a node is slow, one window after the other, and how much: x 2 ** events.SHIFT.
SLOW = _row("begins", "ends", "factor")

# Failures: what happens when to which node, one of those of ``events``; and a stay at a node that
# failed, with the columns of ``records.LOST``.
TURN = _row("time", "kind", "node")
LOST_VISIT = _row(*LOST)
FAILED, KNOWN = 1, 2

# Of a request where prefill and decode have replicas of their own: where it waits or runs; its
# output tokens; with NONE until it is so: who prefilled it and who decodes it, when its prefill
# ended, its transfer began and ended, and when its first iteration at the target began.
MOVE = _row("at", "whole", "source", "target", "ready", "start", "end", "decode")

# Of a request in the batch, as admission foresees it: tokens to come, and those that are known.
ENDS = _row("left", "known")

WAITING = np.dtype([("score", np.float64), ("id", np.int64)])

# The starvation guard: a wait of the shadow by its turn, and who may be sent ahead, since when.
WAIT = _row("turn", "wait")
WATCHED = _row("start", "id")

# A KV block. ``key`` is what it holds, 0 for nothing; the queue is that of eviction.
# ``search`` is the number of the last search that found it.
BLOCK = _row("key", "references", "older", "newer", "bucket_previous", "bucket_next", "search")

LOG = _row(
    "replica", "start_ps", "duration_ps", "prefill_tokens", "decode_seqs", "running", "waiting",
    "used_blocks", "preempted",
)  # fmt: skip


# The curves of one feature: where its edges and its values begin in ``curve_data``, edges, and the
# place of what lies between them in ``lengthwise.curves.BETWEEN``, or behind them ``CERTAIN`` of
# ``tabulated``. No edges: not tabulated.
CURVE = _row("edges_at", "points", "values_at", "between")

# Environments: what all of one batch share, one row each for a batch, an environment, an episode
# that is prepared for it, and a column that agents see (``plus`` less ``minus``, features' places
# in FEATURE_ROW; ``minus`` may be NONE; ``kept`` is its row of that table, or NONE).
GYM = np.dtype(
    [
        *_row(
            "kind", "slots", "columns", "reads", "hold", "hold_ps", "mode", "envs", "bank", "at",
            "variant", "left", "keep", "show",
        ).descr, ("illegal_penalty", np.float64),
    ]
)  # fmt: skip
TOTALS = (
    "now", "in_system", "request_high", "request_low", "waiting_high", "waiting_low", "finished",
    "generated", "preempted", "recomputed", "lost_rows", "lost_tokens",
)  # fmt: skip
ENV = np.dtype(
    [
        *_row(
            "table", "place", "variant", "stage", "pending", "present", "illegal", "turn",
            "last_place", "paid_high", "paid_low", *(f"last_{name}" for name in TOTALS),
            # of the choice that is due: who waits and runs, seats and tokens left, who was picked
            "waiting", "running", "seats", "tokens", "picked",
            "again",  # the place of who was picked last at this very stop, counted from 1
            # of the walk along the queue in which running requests are told to give way
            "walking", "walked", "victims", "blocks", "asked",
        ).descr, ("scale", np.float64), ("last_scale", np.float64), ("kv", np.float64),
    ]
)  # fmt: skip
PLACE = np.dtype(
    [
        *_row(
            "table", "variant", "plays", "block_at", "pristine_at", "words", "run_at",
            "run_pristine_at", "run_words",
        ).descr, ("scale", np.float64),
    ]
)  # fmt: skip
COLUMN = np.dtype(
    [
        *_row("plus", "plus_float", "minus", "minus_float", "log", "kept").descr,
        ("shift", np.float64), ("scale", np.float64),
    ]
)  # fmt: skip
# Stages of an environment; modes of what follows an episode's end.
IDLE, CHOICE, GOING, BEGIN, FIRST, OVER = 0, 1, 2, 3, 4, 5
NEXT_STEP, SAME_STEP, DISABLED = 0, 1, 2
# Which requests of a queue that is longer than ``slots`` can be chosen.
SHOWN = ("first", "spread")


def _no(kind: Any, *shape: int) -> NDArray[Any]:
    """What stands for a table of environments in a run that is none of theirs."""
    return np.zeros(shape or (0,), kind)


class State(NamedTuple):
    """Arrays of a run of n requests on R replicas with M seats in all; empty where not used."""

    run: NDArray[Any]  # (1,) RUN
    node: NDArray[Any]  # (kinds of nodes,) NODE
    replica: NDArray[Any]  # (R,) REPLICA
    end: NDArray[Any]  # (R,) when the oldest iteration under way ends, NEVER if none is
    step: NDArray[Any]  # (R, 2) STEP
    slot: NDArray[Any]  # (M,) SLOT, those of one replica after the other
    acting: NDArray[Any]  # (M,) slots that prefill in this iteration, in order
    first: NDArray[Any]  # (2 * M,) requests whose first token an iteration makes, by its parity
    orphan: NDArray[Any]  # (2 * M,) requests preempted while a token of theirs is under way
    wheel: NDArray[Any]  # (R, WHEEL) first slot of each list
    hist: NDArray[Any]  # (R, largest block_size) decoding slots by their offsets' residues
    residue: NDArray[Any]  # the same with prefix caching: the first slot of each list
    heap: NDArray[Any]  # (all capacities,) WAITING
    stash: NDArray[Any]  # (largest capacity,) WAITING
    ends: NDArray[Any]  # (largest max_num_seqs + 1,) ENDS, scratch
    stale: NDArray[Any]  # (all capacities,) requests whose scores are out of date
    waits: NDArray[Any]  # (R, RING) WAIT
    watched: NDArray[Any]  # (all capacities,) WATCHED
    decode_ps: NDArray[Any]
    mixed_ps: NDArray[Any]
    decode_context_ps: NDArray[Any]
    mixed_launch_ps: NDArray[Any]
    log: NDArray[Any]  # (iterations,) LOG
    seen: NDArray[Any]  # (R,) FEATURE_ROW: replicas as the scores of an iteration see them
    scraped: NDArray[Any]  # (R,) FEATURE_ROW: as the router saw them last, where it looks at times
    rows: NDArray[Any]  # (largest capacity,) FEATURE_ROW
    out: NDArray[Any]  # (largest capacity,)
    places: NDArray[Any]  # (R,) scratch
    # prefix caching: all replicas' blocks, of which each one's first is vLLM's null block
    block: NDArray[Any]  # (blocks,) BLOCK
    bucket: NDArray[Any]  # (buckets,) first block of each list
    bucket_end: NDArray[Any]  # (buckets,) last block of each list
    held: NDArray[Any]  # (M x blocks of the longest request,)
    hit: NDArray[Any]  # (R x blocks of the longest request,) what a search has found
    hashes: NDArray[Any]  # (hashes,) of prompts, one request after the other
    prefix: NDArray[Any]  # (size, 3) scratch of number_prefixes
    chain: NDArray[Any]  # (hashes,) identities of all prefixes that end with a hash
    chain_at: NDArray[Any]  # (n + 1,) where a request's begin
    # requests, (n,) each
    arrival: NDArray[Any]  # ps; children of a closed loop get theirs in the run
    planned: NDArray[Any]
    reach_ps: NDArray[Any]  # from the arrival until the scheduler sees it
    prompt: NDArray[Any]
    output: NDArray[Any]
    predicted: NDArray[Any]
    curve: NDArray[Any]  # (features,) CURVE, in the order of lengthwise.prediction.CURVES
    curve_data: NDArray[Any]
    curve_row: NDArray[Any]  # (features, n) which curve each request follows
    limit: NDArray[Any]  # the clients' max_tokens
    priority: NDArray[Any]
    deadline: NDArray[Any]
    tenant: NDArray[Any]  # empty where nobody reads it
    weight: NDArray[Any]
    share: NDArray[Any]  # (tenants,) their weights
    tenants: NDArray[Any]  # (R, tenants) TENANT
    score: NDArray[Any]
    ahead: NDArray[Any]  # (policies x n,) scores that were made before the run
    link: NDArray[Any]  # the next in an fcfs queue; OUT, WAITS ... in one by score
    generated: NDArray[Any]  # of requests that wait
    reach: NDArray[Any]  # the most tokens ever computed, of requests that were preempted
    flight: NDArray[Any]  # the iteration that a preempted request was in last
    stored: NDArray[Any]
    # of the starvation guard: the next in its shadow queue, when waiting began or how long it took,
    # what is owed since a preemption, and whether it was sent ahead
    shadow: NDArray[Any]
    since: NDArray[Any]
    owed: NDArray[Any]
    sent_ahead: NDArray[Any]
    sent: NDArray[Any]  # the next that was sent to the same replica
    think: NDArray[Any]
    first_child: NDArray[Any]
    sibling: NDArray[Any]
    calendar: NDArray[Any]  # heap of children that are to arrive
    roots: NDArray[Any]  # requests without a parent, in order; empty if that is all
    # stops
    asked: NDArray[Any]  # when the router asks again for a request that it holds, else 0
    gave: NDArray[Any]  # the iteration before which a request was told to give way
    candidate: NDArray[Any]  # slots or waiting requests; what was chosen of them comes first
    slow: NDArray[Any]  # (windows,) SLOW, those of one replica after the other
    turn: NDArray[Any]  # (failures' turns,) TURN
    fresh: NDArray[Any]  # (R,) REPLICA: as they were at the beginning, where one may fail
    lost: NDArray[Any]  # (visits,) LOST_VISIT
    # records, (n,) each
    where: NDArray[Any]
    scheduled: NDArray[Any]
    first_token: NDArray[Any]
    finish: NDArray[Any]
    preemptions: NDArray[Any]
    recomputed: NDArray[Any]
    cached: NDArray[Any]
    # environments; all of one batch of E have the same arrays, but for the last three
    gym: NDArray[Any] = _no(GYM, 1)
    env: NDArray[Any] = _no(ENV)  # (E,)
    place: NDArray[Any] = _no(PLACE)  # (E * bank,)
    column: NDArray[Any] = _no(COLUMN)  # (F,)
    action: NDArray[Any] = _no(np.int64)  # (E,)
    flat: NDArray[Any] = _no(np.float32, 0, 0)  # (E, slots * F + slots + situation)
    mask: NDArray[Any] = _no(np.int8, 0, 0)  # (E, slots)
    reward: NDArray[Any] = _no(np.float64)  # (E,)
    ended: NDArray[Any] = _no(np.int8)  # (E,)
    now_s: NDArray[Any] = _no(np.float64)  # (E,)
    illegal: NDArray[Any] = _no(np.int64)  # (E,)
    final_now_s: NDArray[Any] = _no(np.float64)  # (E,) as an episode ended
    final_illegal: NDArray[Any] = _no(np.int64)  # (E,)
    mean_latency_s: NDArray[Any] = _no(np.float64)  # (E,)
    glance: NDArray[Any] = _no(FEATURE_ROW)  # (1,) the replica whose choice is due
    kept: NDArray[Any] = _no(np.float64, 0, 0)  # (columns that stay, n) as agents see them
    # roles
    move: NDArray[Any] = _no(MOVE)  # (n,)
    flying: NDArray[Any] = _no(np.int32)  # (n,) heap of requests whose KV is on its way
    handed: NDArray[Any] = _no(np.int32)  # (n,) requests as their prefills ended
    words: NDArray[Any] = _no(np.int64, 0, 0)  # the memory of rows, by the features' places


_INT32 = (
    "link", "generated", "reach", "flight", "stored", "sent", "first_child", "sibling", "calendar",
    "roots", "flying", "handed", "shadow", "sent_ahead", "tenant",
    "acting", "first", "orphan", "stale", "bucket", "bucket_end", "held", "candidate",
)  # fmt: skip
_FLOATS = (
    "out", "predicted", "curve_data", "deadline", "score", "ahead", "weight", "share",
    "reward", "now_s", "final_now_s", "mean_latency_s",
)  # fmt: skip

# dtype and dimensions of each, as the compiled functions take them
KINDS: dict[str, tuple[np.dtype[Any], int]] = {
    name: (np.dtype(np.int64), 1) for name in State._fields
} | {
    "run": (RUN, 0), "node": (NODE, 1), "replica": (REPLICA, 1), "slot": (SLOT, 1), "log": (LOG, 1),
    "step": (STEP, 2), "heap": (WAITING, 1), "stash": (WAITING, 1), "ends": (ENDS, 1),
    "rows": (FEATURE_ROW, 1), "seen": (FEATURE_ROW, 1), "scraped": (FEATURE_ROW, 1),
    "curve": (CURVE, 1), "block": (BLOCK, 1), "prefix": (np.dtype(np.int64), 2),
    "hist": (np.dtype(np.int64), 2),
    **{name: (np.dtype(np.float64), 1) for name in _FLOATS},
    **{name: (np.dtype(np.int32), 1) for name in _INT32},
    **{name: (np.dtype(np.int32), 2) for name in ("wheel", "residue", "curve_row")},
    "move": (MOVE, 1),
    "slow": (SLOW, 1), "turn": (TURN, 1), "fresh": (REPLICA, 1), "lost": (LOST_VISIT, 1),
    "waits": (WAIT, 2), "watched": (WATCHED, 1), "tenants": (TENANT, 2),
    "gym": (GYM, 0), "env": (ENV, 1), "place": (PLACE, 1), "column": (COLUMN, 1),
    "flat": (np.dtype(np.float32), 2), "mask": (np.dtype(np.int8), 2),
    "ended": (np.dtype(np.int8), 1), "glance": (FEATURE_ROW, 1),
    "words": (np.dtype(np.int64), 2), "kept": (np.dtype(np.float64), 2),
}  # fmt: skip


def address_table(state: State) -> NDArray[np.int64]:
    """Where each array lies and its shape, (fields, 3): what ``compiler.memory`` reads."""
    table = np.zeros((len(state), 3), np.int64)
    for row, (name, array) in zip(table, state._asdict().items(), strict=True):
        kind, dimensions = KINDS[name]
        if array.dtype != kind or array.ndim != max(dimensions, 1) or not array.flags.c_contiguous:
            raise InvariantError(f"the fast engine's array {name} is {array.dtype} {array.shape}")
        row[0] = array.ctypes.data
        row[1 : 1 + array.ndim] = array.shape
    return table
