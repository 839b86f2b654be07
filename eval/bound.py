"""A hindsight bound: the mean latency that no schedule beats, whatever it knows or may preempt.

Two relaxations, of which the larger counts.

1. Every request takes at least as long as alone on an idle replica.

2. Replicas share their time. Find shares a, b such that an iteration with p prompt tokens and d
   decoding sequences lasts at least ``a p + b d`` for every p and d the engine allows; then a
   request needs ``w = a prompt + b (output - 1)`` (and its attention) of replica time. Give each
   moment of time to the arrived request with the smallest w (preemptive shortest job first on one
   machine as fast as all replicas): this minimises the sum of mean busy times M_j, the average
   moment at which j's work is done (Goemans et al., SIAM J. Discrete Math. 2002, lemma 2.1). Tokens
   of one request come one an iteration, each at least the shortest iteration after the one before,
   so C_j >= M_j + g_j, where g_j is how long before C_j its average unit of work must have been
   done.

Neither relaxation knows the KV cache, the batch limits' interplay or what a preemption costs, so
the best schedule lies above the bound, by how much is unknown.
"""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from lengthwise.serving import Engine
from lengthwise.serving.records import PS
from lengthwise.serving.timing.model import TimingTables
from lengthwise.workload import Workload

Floats = NDArray[np.float64]


def mean_latency_bound_s(
    workload: Workload,
    engine: Engine,
    tables: TimingTables,
    alone_s: Floats,
    *,
    replicas: int = 1,
) -> float:
    """No schedule of this workload on these replicas has a lower mean end-to-end latency, s.

    ``alone_s`` (n,) are the latencies on an idle replica (``lengthwise.eval.alone``). With prefix
    caching, prompts count as cached.
    """
    prompt = workload["prompt_tokens"].astype(np.float64)
    steps = workload["output_tokens"].astype(np.float64) - 1
    context_ps = max(0, tables.context_ps + min(0, tables.mixed_context_ps))
    prefill_share, decode_share = _shares(tables, engine, prompt.sum(), steps.sum())
    attended = prompt * (prompt + 1) / 2
    prefill = prefill_share * prompt + tables.chunk_context_ps * attended
    if engine.enable_prefix_caching:
        prefill = np.zeros_like(prompt)
    # the k-th output token after the first attends to prompt + k tokens; at least prompt of them
    decode = steps * (decode_share + context_ps * prompt)
    work = (prefill + decode) / PS  # (n,) s of replica time
    shortest = _shortest_iteration_ps(tables) / PS
    # a unit of prefill work is followed by `steps` iterations, the i-th decode by steps - i
    after = shortest * (prefill * steps + decode * np.maximum(steps - 1, 0) / 2) / PS
    gap = np.divide(after, work, out=np.zeros_like(after), where=work > 0)
    latencies = (tables.arrival_latency_ps + tables.output_latency_ps) / PS
    busy = _mean_busy_times(workload["arrival_s"], work / replicas)
    shared = float((busy + gap - workload["arrival_s"]).mean()) + latencies
    return shared if engine.enable_prefix_caching else max(shared, float(alone_s.mean()))


def _shortest_iteration_ps(tables: TimingTables) -> float:
    floor = tables.floor_ps + tables.floor_seq_ps
    mixed = tables.mixed_ps[1:] + min(0, tables.decode_seq_ps) * np.arange(len(tables.mixed_ps) - 1)
    least = min(float(tables.decode_ps[1:].min()), float(mixed.min()) if len(mixed) else np.inf)
    return max(float(floor), least, 0.0)


def _shares(
    tables: TimingTables, engine: Engine, prompt_total: float, decode_total: float
) -> tuple[float, float]:
    """The shares (a, b) in ps that every feasible iteration covers, best for these totals."""
    seqs = np.arange(engine.max_num_seqs + 1)[:, None]  # (S + 1, 1)
    tokens = np.arange(1, engine.max_num_batched_tokens + 1)[None, :]  # (1, B)
    total = np.minimum(seqs + tokens, engine.max_num_batched_tokens)
    feasible = seqs + tokens <= engine.max_num_batched_tokens
    lasts = tables.mixed_ps[total] + tables.prefill_seq_ps + tables.decode_seq_ps * seqs
    floor = tables.floor_ps + tables.floor_seq_ps * (seqs + 1)
    lasts = np.maximum(lasts, floor).astype(np.float64)
    n = np.arange(1, engine.max_num_seqs + 1)
    alone = np.maximum(tables.decode_ps[1 : len(n) + 1], tables.floor_ps + tables.floor_seq_ps * n)
    best, found = -1.0, (0.0, 0.0)
    for decode_share in np.linspace(0, float((alone / n).min()), 33):
        left = np.where(feasible, (lasts - decode_share * seqs) / tokens, np.inf)
        prefill_share = float(left.min())
        value = prefill_share * prompt_total + decode_share * decode_total
        if prefill_share >= 0 and value > best:
            best, found = value, (prefill_share, float(decode_share))
    return found


def _mean_busy_times(arrival_s: Floats, work: Floats) -> Floats:
    """The mean busy time of each job under preemptive shortest job first on one machine, (n,)."""
    n = len(work)
    left, moment = work.copy(), np.zeros(n)  # moment: integral of t over the work done
    ready: list[tuple[float, int]] = []
    now, i = 0.0, 0
    while i < n or ready:
        if not ready:
            now = max(now, float(arrival_s[i]))
        while i < n and arrival_s[i] <= now:
            heapq.heappush(ready, (float(work[i]), i))
            i += 1
        job = ready[0][1]
        until = now + left[job]
        if i < n and arrival_s[i] < until:
            until = float(arrival_s[i])
        else:
            heapq.heappop(ready)
        done = until - now
        moment[job] += done * (now + until) / 2
        left[job] -= done
        now = until
    return np.where(work > 0, moment / np.where(work > 0, work, 1.0), arrival_s)
