"""The state of the fast engine: one tuple of arrays that compiled functions share.

A decoding request stores no progress. It stores the iteration at which it finishes and the
difference between its computed tokens and its replica's iteration count, which stays the same for
as long as it decodes; ``hist`` counts those differences modulo the block size, so one look-up gives
the blocks that all decoding requests need in an iteration, and ``wheel`` holds, by iteration, the
requests that finish.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise import features
from lengthwise.errors import InvariantError

NONE = -1  # no slot, no request
FREE, PREFILL, DECODE = 0, 1, 2  # states of a slot
NEVER = 2**63 - 1  # a time that does not come
WHEEL = 1024  # iterations; one that lies further ahead is passed over once a turn

# One row a request or replica: every feature, whether read or not, in the table's order.
FEATURE_ROW = np.dtype([(f.name, f.dtype) for f in features.FEATURES.values()])

# What run_until returns.
DONE, HORIZON, ROUTE, GROW, RAISED, NAN = 0, 1, 2, 3, 4, 5


def _row(*names: str) -> np.dtype[np.void]:
    return np.dtype([(name, np.int64) for name in names])


# One row a run: its constants and, from ``now`` on, its place in time.
RUN = np.dtype(
    [
        *((name, np.int64) for name in (
            "requests", "replicas", "seed", "closed_loop",
            "max_seqs", "max_tokens", "block_size", "shift", "blocks", "watermark", "threshold",
            "chunked", "full_isl", "prefix", "by_score", "scored", "every", "callback", "draws",
            "preemption", "max_per_step", "past_preemption", "applies_alone", "swap_ps",
            "weighted", "choices",
            "prefill_seq_ps", "decode_seq_ps", "context_ps", "mixed_context_ps",
            "chunk_context_ps", "floor_ps", "floor_seq_ps",
            "score_at", "router_at", "rows_at", "out_at", "log",
            "now", "next_root", "children", "log_rows", "ask_route", "pending", "answer",
        )),
        *((name, np.float64) for name in ("price", "margin", "protect_after", "reserve")),
    ]
)  # fmt: skip

REPLICA = _row(
    "head", "tail", "free_slot", "running", "decoding", "offsets", "prefilling",
    "free", "iteration", "waiting", "known", "queue_head", "queue_tail", "heap", "stale",
    "routed", "outstanding", "acting", "swapped", "preempted", "pressed", "start",
    "stalled", "stalled_offsets", "threshold", "running_scored", "waiting_scored",
    "seen_running", "seen_waiting", "seen_used", "seen_routed", "seen_outstanding",
)  # fmt: skip

# A seat in a replica's batch. ``offset`` (decoding): computed tokens less iterations.
SLOT = np.dtype(
    [
        *((name, np.int32) for name in (
            "id", "state", "previous", "next", "wheel_previous", "wheel_next",
            "stamp", "again",
        )),
        *((name, np.int64) for name in ("finish", "offset", "computed", "known", "held", "tokens")),
        ("score", np.float64),
    ],
    align=True,
)  # fmt: skip

WAITING = np.dtype([("score", np.float64), ("id", np.int64)])

LOG = _row(
    "replica", "start_ps", "duration_ps", "prefill_tokens", "decode_seqs", "running", "waiting",
    "used_blocks", "preempted",
)  # fmt: skip


class State(NamedTuple):
    """Arrays of a run of n requests on R replicas with M seats each; empty where not used."""

    run: NDArray[Any]  # (1,) RUN
    replica: NDArray[Any]  # (R,) REPLICA
    end: NDArray[Any]  # (R,) when the iteration under way ends, NEVER if none is
    slot: NDArray[Any]  # (R * M,) SLOT
    acting: NDArray[Any]  # (R, M) slots that prefill in this iteration, in order
    wheel: NDArray[Any]  # (R, WHEEL) first slot of each list
    hist: NDArray[Any]  # (R, block_size)
    heap: NDArray[Any]  # (R, capacity) WAITING
    stash: NDArray[Any]  # (capacity,) WAITING
    stale: NDArray[Any]  # (R, capacity)
    decode_ps: NDArray[Any]
    mixed_ps: NDArray[Any]
    log: NDArray[Any]  # (capacity,) LOG
    rows: NDArray[Any]  # (capacity,) FEATURE_ROW
    out: NDArray[Any]  # (capacity,)
    places: NDArray[Any]  # (R,) scratch
    # requests, (n,) each
    arrival: NDArray[Any]  # ps; children of a closed loop get theirs in the run
    planned: NDArray[Any]
    prompt: NDArray[Any]
    output: NDArray[Any]
    predicted: NDArray[Any]
    priority: NDArray[Any]
    deadline: NDArray[Any]
    score: NDArray[Any]
    link: NDArray[Any]  # the next in an fcfs queue; whether it waits, in one by score
    generated: NDArray[Any]  # of requests that wait
    reach: NDArray[Any]  # computed tokens lost in preemptions
    stored: NDArray[Any]
    think: NDArray[Any]
    first_child: NDArray[Any]
    sibling: NDArray[Any]
    calendar: NDArray[Any]  # heap of children that are to arrive
    roots: NDArray[Any]  # requests without a parent, in order; empty if that is all
    # records, (n,) each
    where: NDArray[Any]
    scheduled: NDArray[Any]
    first_token: NDArray[Any]
    finish: NDArray[Any]
    preemptions: NDArray[Any]
    recomputed: NDArray[Any]
    cached: NDArray[Any]


# dtype and dimensions of each, as the compiled functions take them
KINDS: dict[str, tuple[np.dtype[Any], int]] = {
    name: (np.dtype(np.int64), 1) for name in State._fields
} | {
    "run": (RUN, 0), "replica": (REPLICA, 1), "slot": (SLOT, 1), "log": (LOG, 1),
    "heap": (WAITING, 2), "stash": (WAITING, 1), "rows": (FEATURE_ROW, 1),
    "acting": (np.dtype(np.int32), 2), "wheel": (np.dtype(np.int32), 2),
    "hist": (np.dtype(np.int64), 2), "stale": (np.dtype(np.int32), 2),
    **{name: (np.dtype(np.float64), 1) for name in ("out", "predicted", "deadline", "score")},
    **{
        name: (np.dtype(np.int32), 1)
        for name in (
            "link", "generated", "reach", "stored", "first_child", "sibling", "calendar", "roots"
        )
    },
}  # fmt: skip


def address_table(state: State) -> NDArray[np.int64]:
    """Where each array lies and its shape, (fields, 3): what ``kernel_type`` reads."""
    table = np.zeros((len(state), 3), np.int64)
    for row, (name, array) in zip(table, state._asdict().items(), strict=True):
        kind, dimensions = KINDS[name]
        if array.dtype != kind or array.ndim != max(dimensions, 1) or not array.flags.c_contiguous:
            raise InvariantError(f"the fast engine's array {name} is {array.dtype} {array.shape}")
        row[0] = array.ctypes.data
        row[1 : 1 + array.ndim] = array.shape
    return table
