"""A hindsight bound: the mean latency that no schedule beats, whatever it knows or may preempt.

Three relaxations, of which the largest counts. T(p, d) is the least time of an iteration with p
prompt tokens and d decoding sequences; shares a, b are such that T(p, d) >= a p + b d always.

1. Alone. Every request takes at least as long as on an idle replica.

2. One machine. A request needs at least w = a prompt + b (output - 1), and its attention, of
   replica time. Giving each moment to the arrived request with the smallest w (preemptive shortest
   job first, on one machine as fast as all replicas) minimises the sum of mean busy times M_j, the
   average moment at which j's work is done (Goemans et al., SIAM J. Discrete Math. 2002). A
   request's tokens come one an iteration, so C_j >= M_j + g_j, where g_j is how long before C_j its
   average unit of work must have been done. Tight where a queue forms.

3. Batching. n requests in an iteration wait T each, so serving them fast means small batches, which
   take more replica time a token. Give replica time a price of y requests: where
   T(p, d) (sequences + y) >= A p + B d for every iteration, the iterations until the last arrival
   at t give

       sum of latencies >= sum_j min(A prompt_j + B (output_j - 1), t - arrival_j) - y replicas t,

   the second term of the minimum standing for requests unfinished at t; the best y counts. This is
   Little's law with the batch that the load needs. Tight in a steady state near saturation.

None of them knows the KV cache or what a preemption costs, so the best schedule lies above.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lengthwise.protocols import TimingModel
from lengthwise.serving import Engine
from lengthwise.serving.clock import async_clock
from lengthwise.serving.records import PS
from lengthwise.serving.timing.model import TimingTables
from lengthwise.workload import Workload

Floats = NDArray[np.float64]


def mean_latency_bound_s(
    workload: Workload,
    engine: Engine,
    timing: TimingModel,
    alone_s: Floats | None,
    *,
    replicas: int = 1,
) -> float:
    """No schedule of this workload on these replicas has a lower mean end-to-end latency, s.

    ``alone_s`` (n,) are the latencies on an idle replica (``lengthwise.eval.alone``), None without
    the first relaxation. With prefix caching, prompts count as cached; with asynchronous scheduling
    only the GPU's time counts. NaN for a closed loop, whose arrivals depend on the schedule, and
    for a timing model without tables (``lengthwise.serving.timing.model``).
    """
    tables = _tables(engine, timing)
    if tables is None or "parent" in workload:
        return float("nan")
    needs = _needs(workload, engine, tables)
    cells = _cells(engine, tables)
    bounds = [
        _one_machine(workload["arrival_s"], needs, cells, replicas),
        _batching(workload["arrival_s"], needs, cells, replicas),
    ]
    if alone_s is not None and not engine.enable_prefix_caching:
        bounds.append(float(alone_s.mean()))
    return max(bounds)


def _tables(engine: Engine, timing: TimingModel) -> TimingTables | None:
    """Tables whose iterations last no longer than the engine's, None where there are none.

    Terms that are not read below are left out: none is negative, so a bound stays one.
    """
    pipeline = async_clock(engine, timing)
    if pipeline is None:
        tables_of = getattr(timing, "tables", None)
        if tables_of is None:
            return None
        tables: TimingTables = tables_of(engine.max_num_batched_tokens, engine.max_num_seqs)
        return tables
    context_ps = int(pipeline.decode_context_ps[1:].min())
    return TimingTables(
        decode_ps=pipeline.decode_ps,
        mixed_ps=pipeline.mixed_ps,
        terms=dict(pipeline.terms) | {"context": context_ps},
    )


@dataclass(frozen=True)
class _Needs:
    """What each request needs, (n,): tokens, and seconds of attention that no batching spares."""

    prompt: Floats
    steps: Floats
    prefill_attention_s: Floats
    decode_attention_s: Floats


@dataclass(frozen=True)
class _Cells:
    """Iterations in cells of a grid: the least time within, the most tokens within."""

    least_s: Floats  # (D, P)
    decode: Floats  # (D, 1) most decoding sequences
    prefill: Floats  # (1, P) most prompt tokens
    sequences: Floats  # (D, P) fewest sequences


def _needs(workload: Workload, engine: Engine, tables: TimingTables) -> _Needs:
    prompt = workload["prompt_tokens"].astype(np.float64)
    steps = workload["output_tokens"].astype(np.float64) - 1
    terms = tables.terms
    context_ps = max(0, min(terms.get("context", 0), terms.get("mixed_context", 0)))
    # the k-th output token after the first attends to prompt + k tokens; at least to the prompt
    decode_attention = context_ps * prompt * steps / PS
    prefill_attention = terms.get("chunk_context", 0) * prompt * (prompt + 1) / 2 / PS
    if engine.enable_prefix_caching:
        nothing = np.zeros_like(prompt)
        return _Needs(nothing, steps, nothing, decode_attention)
    return _Needs(prompt, steps, prefill_attention, decode_attention)


def _cells(engine: Engine, tables: TimingTables) -> _Cells:
    """The grid; an iteration of a cell lasts at least as long as one of its lower corner.

    Times are lowered where needed to never fall when a sequence or a token is added.
    """
    d, p = _edges(0, engine.max_num_seqs), _edges(1, engine.max_num_batched_tokens)
    d_low, p_low = d[:-1, None], p[None, :-1]
    mixed_ps = np.minimum.accumulate(tables.mixed_ps[::-1])[::-1]
    decode_ps = np.minimum.accumulate(tables.decode_ps[::-1])[::-1]
    terms = tables.terms
    decode_seq_ps = terms.get("decode_seq", 0)
    beside = decode_seq_ps * (d_low if decode_seq_ps >= 0 else d[1:, None] - 1)
    tokens = d_low + p_low
    mixed = mixed_ps[np.minimum(tokens, len(mixed_ps) - 1)] + terms.get("prefill_seq", 0) + beside
    feasible = tokens <= engine.max_num_batched_tokens
    mixed = np.where(feasible, mixed, np.inf)
    alone = np.minimum(decode_ps[d[:-1]], mixed.min(axis=1))[:, None]
    least = np.concatenate((alone, mixed), axis=1)
    sequences = np.concatenate((d_low, d_low + np.ones_like(p_low)), axis=1)
    floor = terms.get("floor", 0) + terms.get("floor_seq", 0) * sequences
    least = np.maximum(least, floor)
    least[0, 0] = np.inf  # no sequence: no iteration
    return _Cells(
        least_s=np.maximum(least, 0) / PS,
        decode=(d[1:, None] - 1).astype(np.float64),
        prefill=np.concatenate(([0.0], p[1:] - 1.0))[None, :],
        sequences=sequences.astype(np.float64),
    )


def _edges(low: int, high: int) -> NDArray[np.int64]:
    """Cell borders from ``low`` to ``high`` + 1: single steps first, then 5% apart."""
    steps = np.rint(np.geomspace(1, high + 1, int(np.log(high + 1) / 0.05) + 2)).astype(np.int64)
    return np.unique(np.concatenate(([low], steps, [high + 1])))


def _prices(cells: _Cells, cost: Floats, prompt: float, steps: float) -> tuple[float, float]:
    """A and B with ``A p + B d <= cost`` in every cell, best for these totals of tokens."""
    with np.errstate(divide="ignore", invalid="ignore"):
        highest = float(np.nanmin(np.where(cells.decode > 0, cost / cells.decode, np.inf)))
    tried = np.linspace(0, highest, 65)
    p, c, d = cells.prefill[:, 1:], cost[:, 1:], cells.decode
    per_prompt = np.array([float(((c - b * d) / p).min()) for b in tried])
    value = np.where(per_prompt >= 0, per_prompt * prompt + tried * steps, -np.inf)
    best = int(value.argmax())
    return float(per_prompt[best]), float(tried[best])


def _one_machine(arrival_s: Floats, needs: _Needs, cells: _Cells, replicas: int) -> float:
    a, b = _prices(cells, cells.least_s, needs.prompt.sum(), needs.steps.sum())
    prefill = a * needs.prompt + needs.prefill_attention_s
    decode = b * needs.steps + needs.decode_attention_s
    work = prefill + decode  # (n,) s of replica time
    # prefill work is followed by all `steps` iterations, decoding by half of them on average
    after = prefill * needs.steps + decode * np.maximum(needs.steps - 1, 0) / 2
    gap = cells.least_s.min() * np.divide(after, work, out=np.zeros_like(after), where=work > 0)
    busy = _mean_busy_times(arrival_s, work / replicas)
    return float((busy + gap - arrival_s).mean())


def _batching(arrival_s: Floats, needs: _Needs, cells: _Cells, replicas: int) -> float:
    until = float(arrival_s[-1])
    left = until - arrival_s
    best = 0.0
    for price in np.geomspace(1, 16 * cells.sequences.max() * replicas, 40):
        cost = cells.least_s * (cells.sequences + price)
        a, b = _prices(cells, cost, needs.prompt.sum(), needs.steps.sum())
        attention = (1 + price) * (needs.prefill_attention_s + needs.decode_attention_s)
        priced = a * needs.prompt + b * needs.steps + attention
        total = np.minimum(priced, left).sum() - price * replicas * (until - arrival_s[0])
        best = max(best, float(total) / len(arrival_s))
    return best


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
