"""A hindsight bound: the mean latency that no schedule beats, whatever it knows or may preempt.

An iteration computes p prompt tokens of q sequences and a token for each of d others, which attend
to c tokens in all, and lasts T(p, q, d, c). The seats allow d + q sequences, the budget d + p
tokens, and the KV cache holds c + p tokens. A request with a prompt of P tokens and O of output is
in q of one iteration at least, and then in d of s = O - 1, with c = P + 1, ..., P + s in turn. Each
relaxation below takes prices that no iteration undercuts, such as a p + e q + b d + f c <= T for
all iterations that seats, budget and cache allow; so what a request needs costs at least its price,
whatever it is served with. The best prices are those of a linear program, the dual of serving all
requests in the least time. Where an engine may compute a token in two ways, prices are such that
the one which is charged is no dearer: a last token of a prompt is computed as decoding is (a <= b),
and who was preempted may have its prompt and answer computed again in place of a decoding step
(b + f L <= e + a L for L above the shortest prompt).

The largest of three relaxations counts.

1. Alone. Every request takes at least as long as on an idle replica.

2. One machine. A request needs w = a P + e + b s + f (sum of c) of replica time, and the attention
   of its prompt. Giving each moment to the arrived request with the smallest w (preemptive shortest
   job first, on one machine as fast as all replicas) minimises the sum of mean busy times M_j, the
   average moment at which j's work is done (Goemans et al., SIAM J. Discrete Math. 2002). A
   request's tokens come one an iteration, so C_j >= M_j + g_j, where g_j is how long before C_j its
   average unit of work must have been done. Tight where a queue forms: its capacity is that of the
   best mix of iterations, with seats full, or the KV cache if that is full first.

3. Batching. n = d + q requests in an iteration wait T each, so serving them fast means small
   batches, which take more replica time a token. Give replica time a price of y requests: where
   T (n + y) >= A p + B n + F c for every iteration, the iterations until the last arrival at t give

       sum of latencies >= sum_j min(A P_j + B O_j + F (sum of c), t - arrival_j) - y replicas t,

   the second term of the minimum standing for requests unfinished at t; the best y counts. This is
   Little's law with the batch that the load needs. Tight in a steady state near saturation.

Requests are taken to be divisible among iterations of the best mix, and preemption to be free, so
the best schedule lies above.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lengthwise.protocols import TimingModel
from lengthwise.serving import Engine
from lengthwise.serving.clock import async_clock
from lengthwise.serving.inputs import gpu_blocks
from lengthwise.serving.records import PS
from lengthwise.serving.timing.model import TimingTables
from lengthwise.workload import Workload

Floats = NDArray[np.float64]
ROUNDS, ADDED = 60, 6  # of the linear program: at most, and iterations that each adds
PRICES, CLOSER = 9, 4  # of replica time, that are tried, and on either side of the best of them


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
    the first relaxation. With prefix caching, prompts that share prefixes count as cached, and who
    is preempted may not have a token computed again more cheaply than by decoding; with
    asynchronous scheduling only the GPU's time counts. NaN for a closed loop, whose arrivals depend
    on the schedule, and for a timing model without tables (``lengthwise.serving.timing.model``).
    """
    found = _tables(engine, timing)
    if found is None or "parent" in workload:
        return float("nan")
    tables, context_ps = found
    shared = engine.enable_prefix_caching and "prefix_hashes" in workload
    needs = _needs(workload, tables, shared)
    room = _room(needs, engine, timing, shared)
    bounds = [
        _one_machine(
            workload["arrival_s"], needs, _corners(engine, tables, context_ps, room), replicas
        ),
        _batching(workload["arrival_s"], needs, _cells(engine, tables, context_ps, room), replicas),
    ]
    if alone_s is not None and not shared:
        bounds.append(float(alone_s.mean()))
    return max(bounds)


def _tables(engine: Engine, timing: TimingModel) -> tuple[TimingTables, Floats] | None:
    """Tables whose iterations last no longer than the engine's, None where there are none.

    Beside them what a token costs that decoding sequences attend to where none prefills, ps, by
    their number, (max_num_seqs + 1,); what a fit has below 0 counts as 0. Terms that are not read
    below are left out: none is negative, so a bound stays one.
    """
    pipeline = async_clock(engine, timing)
    if pipeline is not None:
        context_ps = np.maximum(pipeline.decode_context_ps, 0).astype(np.float64)
        return TimingTables(pipeline.decode_ps, pipeline.mixed_ps, pipeline.terms), context_ps
    tables_of = getattr(timing, "tables", None)
    if tables_of is None:
        return None
    tables: TimingTables = tables_of(engine.max_num_batched_tokens, engine.max_num_seqs)
    return tables, np.full(engine.max_num_seqs + 1, float(max(tables.terms.get("context", 0), 0)))


@dataclass(frozen=True)
class _Needs:
    """What each request needs, (n,): tokens, and seconds of attention that no batching spares."""

    prompt: Floats  # what must be computed of it
    context: Floats  # what is attended to of it
    steps: Floats
    prefill_attention_s: Floats

    def totals(self) -> Floats:
        """Prompt tokens, requests, steps, and tokens attended to in them, of all."""
        steps, attended = self.steps.sum(), self.attended().sum()
        return np.array([self.prompt.sum(), len(self.prompt), steps, attended])

    def first_s(self, a: float, e: float, b: float, f: float) -> Floats:
        """What prefill costs at these prices, (n,): a prompt of one token is decoded."""
        decoded = b + f
        long = self.prompt > 1
        return np.where(long, e + a * self.prompt, min(e + a, decoded)) + self.prefill_attention_s

    def steps_s(self, b: float, f: float) -> Floats:
        """What decoding costs at these prices, (n,)."""
        return b * self.steps + f * self.attended()

    def attended(self) -> Floats:
        """Tokens that the steps attend to, summed over them, (n,)."""
        return self.steps * self.context + self.steps * (self.steps + 1) / 2


def _needs(workload: Workload, tables: TimingTables, shared: bool) -> _Needs:
    prompt = workload["prompt_tokens"].astype(np.float64)
    steps = workload["output_tokens"].astype(np.float64) - 1
    if shared:  # a block's last token is always computed
        return _Needs(np.ones_like(prompt), prompt, steps, np.zeros_like(prompt))
    # of the prompt's last token, which may be computed as decoding is, the price f is counted
    pairs = prompt * (prompt - 1) / 2
    return _Needs(prompt, prompt, steps, tables.terms.get("chunk_context", 0) * pairs / PS)


@dataclass(frozen=True)
class _Room:
    """What a sequence that decodes attends to, least and most tokens, and what all may together."""

    least: float
    most: float
    all: float

    def of(self, sequences: ArrayLike) -> tuple[Floats, Floats]:
        """Least and most tokens that so many attend to."""
        count = np.asarray(sequences, dtype=np.float64)
        return count * self.least, np.minimum(count * self.most, self.all)


def _room(needs: _Needs, engine: Engine, timing: TimingModel, shared: bool) -> _Room:
    # a block that is shared is held once for many
    tokens = np.inf if shared else float(gpu_blocks(engine, timing) * engine.block_size)
    most = float((needs.context + needs.steps).max())
    return _Room(float(needs.context.min()), most, tokens)


@dataclass(frozen=True)
class _Iterations:
    """Iterations at which linear prices have to be checked; in between they hold as well."""

    amounts: Floats  # (m, k) of what has a price
    seconds: Floats  # (m,) least time
    sequences: Floats  # (m,) fewest


def _floors(
    tables: TimingTables, sequences: ArrayLike, context: Floats, per_context: Floats | float
) -> Floats:
    """The least time but for attention, ps: what waiting for the CPU leaves of it, or nothing.

    A time of ``max(gpu + attention, floor)`` is at least ``max(gpu, this) + attention``.
    """
    terms = tables.terms
    floor = terms.get("floor", 0) + terms.get("floor_seq", 0) * np.asarray(sequences)
    return np.maximum(floor - per_context * context, 0.0)


def _corners(engine: Engine, tables: TimingTables, context_ps: Floats, room: _Room) -> _Iterations:
    """For prices of (prompt tokens, prefilling sequences, decoding ones, tokens attended to).

    With so many decoding sequences, an iteration's time is convex in its prompt tokens once the
    table is replaced by its lower convex hull, and linear in the rest; prices grow linearly in
    them, and more slowly once the seats are full. So the worst lies at a bend of either.
    """
    seats, budget, terms = engine.max_num_seqs, engine.max_num_batched_tokens, tables.terms
    d = np.arange(seats + 1.0)
    least, most = room.of(d)
    d, least, most = (each[least <= most] for each in (d, least, most))
    parts = []

    alone_ps = context_ps[d.astype(int)]
    seconds = np.maximum(tables.decode_ps[d.astype(int)], _floors(tables, d, most, alone_ps))
    for c in (least, most):
        rows = np.stack((0 * d, 0 * d, d, c, seconds + alone_ps * c), axis=1)
        parts.append(rows[d > 0])

    beside_ps = max(terms.get("mixed_context", 0), 0)
    sizes, hull = _hull(tables.mixed_ps)
    own = terms.get("decode_seq", 0) * d + min(
        terms.get("prefill_seq", 0), terms.get("prefill_seq", 0) * seats
    )
    floors = _floors(tables, d + 1, most, beside_ps)
    meets = np.interp(floors - own, hull, sizes)  # where the hull comes out of the floor
    # the cache is full of the prompts and of the most, or the least, that the others attend to
    full = (d + np.clip(room.all - held, 0, budget) for held in (most, least))
    bends = np.stack((d + 1, np.full_like(d, min(seats, budget)), meets, *full), axis=1)
    n = np.concatenate((np.broadcast_to(sizes, (len(d), len(sizes))), bends), axis=1)
    p = n - d[:, None]
    seconds = np.maximum(np.interp(n, sizes, hull) + own[:, None], floors[:, None])
    q = np.minimum(seats - d[:, None], p)
    real = (p >= 1) & (q >= 1) & (n <= budget) & (p + least[:, None] <= room.all)
    for c in (least, most):
        tokens = np.minimum(c[:, None], room.all - p)
        sequences = np.broadcast_to(d[:, None], p.shape)
        rows = np.stack((p, q, sequences, tokens, seconds + beside_ps * tokens), axis=2)
        parts.append(rows[real])
    found = np.unique(np.concatenate(parts), axis=0)
    return _Iterations(found[:, :4], found[:, 4] / PS, found[:, 1] + found[:, 2])


def _hull(table: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """The corners of a table's lower convex hull from 1 on, made to never fall: (k,) each."""
    values = np.minimum.accumulate(table[:0:-1])[::-1].astype(np.float64)
    corners: list[tuple[float, float]] = []
    for x, y in enumerate(values.tolist(), 1):
        while len(corners) > 1:
            (x0, y0), (x1, y1) = corners[-2:]
            if (y1 - y0) * (x - x0) < (y - y0) * (x1 - x0):
                break
            corners.pop()
        corners.append((float(x), y))
    sizes, hull = np.array(corners).T
    return sizes, hull


def _cells(engine: Engine, tables: TimingTables, context_ps: Floats, room: _Room) -> _Iterations:
    """For prices of (prompt tokens, sequences, tokens attended to): cells of a grid of iterations.

    Each stands for iterations with up to as much, which take at least as long and have at least
    as many sequences.
    """
    terms, budget = tables.terms, engine.max_num_batched_tokens
    n, p = _edges(1, engine.max_num_seqs), _edges(1, int(min(budget, room.all)))
    low, high, tokens = n[:-1], n[1:] - 1.0, p[:-1]
    least, most = room.of(low)[0], room.of(high)[1]
    mixed_ps = np.minimum.accumulate(tables.mixed_ps[::-1])[::-1]
    decode_ps = np.minimum.accumulate(tables.decode_ps[::-1])[::-1]

    alone_ps = np.array(
        [context_ps[first:end].min() for first, end in zip(low, n[1:], strict=False)]
    )
    alone = np.maximum(decode_ps[low], _floors(tables, low, most, alone_ps))
    beside_ps = max(terms.get("mixed_context", 0), 0)
    # a sequence prefills at least a token, and at least one of them prefills
    at = np.minimum(np.maximum(low[:, None], tokens[None, :]), budget)
    each_ps = (terms.get("decode_seq", 0), terms.get("prefill_seq", 0))
    many = low if min(each_ps) >= 0 else high
    beside = min(each_ps) * (many - 1.0) + each_ps[1]
    floors = _floors(tables, low, most, beside_ps)
    mixed = np.maximum(mixed_ps[at] + beside[:, None], floors[:, None])

    fits = least <= most
    parts = [
        [each[fits] for each in (0 * high, high, c, alone + alone_ps * c, low)]
        for c in (least, most)
    ]
    for most_of_all in (0 * most, most):  # those that prefill attend to nothing here
        c = np.minimum(most_of_all[:, None], room.all - tokens[None, :])
        columns = np.broadcast_arrays(
            (p[1:] - 1.0)[None, :], high[:, None], c, mixed + beside_ps * c, low[:, None]
        )
        parts.append([each.ravel() for each in columns])
    found = np.concatenate([np.stack(part, axis=1) for part in parts])
    return _Iterations(found[:, :3], np.maximum(found[:, 3], 0) / PS, found[:, 4])


def _edges(low: int, high: int) -> NDArray[np.int64]:
    """Cell borders from ``low`` to ``high`` + 1: single steps first, then 5% apart."""
    steps = np.rint(np.geomspace(1, high + 1, int(np.log(high + 1) / 0.05) + 2)).astype(np.int64)
    return np.unique(np.concatenate(([low], steps, [high + 1])))


class _Program:
    """The linear program of the best prices: what no iteration's cost (m,) undercuts.

    Prices (k,) are ``bends @ z`` with ``z >= 0`` and ``side @ z <= 0``: what orders them. Of its
    many rows a few are given to the solver, then those that its answer breaks most; what rounding
    leaves of that, all prices are lowered by. Rows that were needed once are kept for other costs.
    """

    def __init__(
        self, found: _Iterations, totals: Floats, bends: Floats, side: Floats | None = None
    ) -> None:
        weights = totals @ bends
        self.bends, self.scale = bends, np.where(weights > 0, weights, 1.0)
        self.goal = np.where(weights > 0, -1.0, 0.0)
        rows = (found.amounts @ bends) / self.scale
        self.most = rows.max(axis=1)
        self.rows = rows / self.most[:, None]
        more = np.zeros((0, len(weights))) if side is None else (side / self.scale)[None, :]
        self.more = more / np.abs(more).max() if len(more) else more
        spread = range(0, len(rows), max(1, len(rows) // 40))
        self.chosen = [*self.rows.argmax(axis=0).tolist(), *spread]

    def prices(self, cost: Floats) -> Floats:
        """The best for the totals that were given, (k,)."""
        from scipy.optimize import linprog

        limit = cost / self.most
        unit = limit.min()
        if unit <= 0:
            return np.zeros(len(self.bends))
        limit = limit / unit
        z = np.zeros(len(self.goal))
        for _ in range(ROUNDS):
            answer = linprog(
                self.goal, np.vstack((self.rows[self.chosen], self.more)),
                np.concatenate((limit[self.chosen], np.zeros(len(self.more)))), bounds=(0, None),
            )  # fmt: skip
            if answer.x is None:
                break
            z = np.maximum(answer.x, 0.0)
            broken = self.rows @ z / limit
            worst = np.argpartition(-broken, min(ADDED, len(broken)) - 1)[:ADDED]
            if broken[worst].max() <= 1 + 1e-7:
                break
            self.chosen += worst.tolist()
        z = z * (unit / self.scale) / max(1.0, float((self.rows @ z / limit).max()))
        return np.asarray(self.bends @ z)


# Columns of ``bends`` are what prices are sums of. Of (a, e, b, f): f in all of a, b and f; a - f;
# b - a; and e. So f <= a <= b. Of (A, B, F) likewise, without e.
FOUR = np.array([[1.0, 1, 0, 0], [0, 0, 0, 1], [1, 1, 1, 0], [1, 0, 0, 0]])
THREE = np.array([[1.0, 1, 0], [1, 1, 1], [1, 0, 0]])


def _one_machine(arrival_s: Floats, needs: _Needs, found: _Iterations, replicas: int) -> float:
    # who is computed again has the shortest prompt and an answer's token at least
    side = np.array([1.0, 1 - float(needs.prompt.min()) - 1, 1, -1])
    a, e, b, f = _Program(found, needs.totals(), FOUR, side).prices(found.seconds)
    b = min(b, e + (a - f) * (float(needs.prompt.min()) + 1))  # what the solver's rounding left
    prefill, decode = needs.first_s(a, e, b, f), needs.steps_s(b, f)
    work = prefill + decode  # (n,) s of replica time
    # prefill work is followed by all `steps` iterations, decoding by half of them and more
    step = b + f * (needs.context + 1)
    after = prefill * needs.steps + step * needs.steps * np.maximum(needs.steps - 1, 0) / 2
    least = found.seconds.min()
    gap = least * np.divide(after, work, out=np.zeros_like(after), where=work > 0)
    busy = _mean_busy_times(arrival_s, work / replicas)
    return float((busy + gap - arrival_s).mean())


def _batching(arrival_s: Floats, needs: _Needs, found: _Iterations, replicas: int) -> float:
    until = float(arrival_s[-1])
    left = until - arrival_s
    prompt, requests, steps, attended = needs.totals()
    totals = np.array([prompt, requests + steps, attended])
    program = _Program(found, totals, THREE)

    def at(price: float) -> float:
        a, b, f = program.prices(found.seconds * (found.sequences + price))
        attention = price * needs.prefill_attention_s
        priced = needs.first_s(a, b, b, f) + needs.steps_s(b, f) + attention
        total = np.minimum(priced, left).sum() - price * replicas * (until - arrival_s[0])
        return float(total) / len(arrival_s)

    tried = np.geomspace(1, 16 * found.sequences.max() * replicas, PRICES)
    values = [at(price) for price in tried.tolist()]
    best = int(np.argmax(values))
    around = tried[[max(best - 1, 0), best, min(best + 1, PRICES - 1)]]
    closer = np.geomspace(around[:-1], around[1:], CLOSER + 2)[1:-1].ravel()
    return max(0.0, *values, *(at(price) for price in closer.tolist()))


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
