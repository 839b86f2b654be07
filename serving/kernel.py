"""The fast twin of the reference engine: the same records, bit for bit, from compiled code.

``supports`` says what it can't run. Scores reach it as machine code (``compile``) where they can,
else it calls them as Python with the arrays that the reference would pass.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lengthwise.errors import InputError, InvariantError
from lengthwise.policy import RoutingPolicy, SchedulingPolicy, Score
from lengthwise.protocols import TimingModel
from lengthwise.serving import kernel_state as ks
from lengthwise.serving.compile import NotCompilable, compile_score
from lengthwise.serving.inputs import Inputs, prepare
from lengthwise.serving.kernel_build import compiled
from lengthwise.serving.options import Engine
from lengthwise.serving.records import Iterations, Records
from lengthwise.serving.scoring import Features
from lengthwise.serving.timing.model import TimingTables
from lengthwise.workload import Workload

LONGEST = 2**30  # tokens of a request: the kernel keeps them in 32 bits


def supports(
    workload: Workload,
    *,
    policy: SchedulingPolicy,
    routing: RoutingPolicy,
    engine: Engine,
    timing: TimingModel,
    predicted_tokens: ArrayLike | None = None,
    replicas: int = 1,
    seed: int = 0,
    log_iterations: bool = False,
) -> str | None:
    """Why the fast engine can't run this; None if it can."""
    if engine.async_scheduling:
        return "the fast engine has no asynchronous scheduling"
    if engine.enable_prefix_caching:
        return "the fast engine has no prefix caching"
    if not hasattr(timing, "tables"):
        return f"timing {timing.name!r} has no integer tables, which the fast engine needs"
    if workload["prompt_tokens"].max() + workload["output_tokens"].max() >= LONGEST:
        return f"the fast engine takes requests of fewer than {LONGEST} tokens"
    return None


def run(
    workload: Workload,
    *,
    policy: SchedulingPolicy,
    routing: RoutingPolicy,
    engine: Engine,
    timing: TimingModel,
    predicted_tokens: ArrayLike | None = None,
    replicas: int = 1,
    seed: int = 0,
    log_iterations: bool = False,
) -> Records:
    """Simulates a workload; what ``supports`` refuses is an ``InputError``."""
    refused = supports(
        workload, policy=policy, routing=routing, engine=engine, timing=timing,
        predicted_tokens=predicted_tokens, replicas=replicas, seed=seed,
        log_iterations=log_iterations,
    )  # fmt: skip
    if refused is not None:
        raise InputError(refused)
    inputs = prepare(workload, policy, engine, timing, predicted_tokens, replicas)
    known = Features(workload, inputs.predicted, seed)
    known.require(policy.score.features, f"policy {policy.score.name!r}")
    known.require(routing.score.features, f"router {routing.score.name!r}")
    tables: TimingTables = timing.tables(engine.max_num_batched_tokens, engine.max_num_seqs)  # type: ignore[attr-defined]
    state = _allocate(workload, inputs, policy, engine, tables, replicas, log_iterations)
    row = state.run[0]
    _describe(row, workload, inputs, policy, routing, engine, tables, seed, log_iterations)
    scores = _Scores(policy, routing, replicas, closed_loop=inputs.think_ps is not None)
    row["callback"] = scores.any_python
    row["score_at"], row["router_at"] = scores.policy_at, scores.router_at
    if policy.queue == "priority" and not row["every"]:
        at_arrival = known.at_arrival(policy.score.features, inputs.arrival_ps)
        state = state._replace(score=_initial(policy.score, at_arrival, len(workload)))
    state = _finish(state, scores)
    return _records(state, workload, inputs, log_iterations)


def _finish(state: ks.State, scores: _Scores) -> ks.State:
    """Runs to the end; arrays grow on the way where they must."""
    run_until = compiled(POLICY=bool(state.run[0]["scored"] or state.run[0]["preemption"]))
    scores.bind(state)
    table = ks.address_table(state)
    while True:
        code = run_until(table.ctypes.data, ks.NEVER - 1)
        if code == ks.DONE:
            return state
        if code == ks.GROW:
            state = _grow(state)
            table = ks.address_table(state)
            scores.bind(state)
        elif code == ks.NAN:
            raise InputError(f"policy or router {scores.names} gave NaN for a score")
        elif code == ks.RAISED:
            scores.reraise()
        else:
            raise InvariantError(f"the fast engine stopped with code {code}")


class _Scores:
    """The addresses of the scores that a run calls; Python ones are wrapped."""

    def __init__(
        self, policy: SchedulingPolicy, routing: RoutingPolicy, replicas: int, *, closed_loop: bool
    ) -> None:
        self.names = f"{policy.score.name!r} or {routing.score.name!r}"
        self.any_python = False
        self._error: BaseException | None = None
        self._state: ks.State | None = None
        self._kept: list[Any] = []  # ctypes callbacks live as long as they may be called
        # in a closed loop even a static score has to wait for the arrival
        changes = bool(policy.score.changes) or closed_loop
        needs_policy = changes and policy.queue == "priority"
        self.policy_at = self._address(policy.score) if needs_policy else 0
        self.router_at = self._address(routing.score) if replicas > 1 else 0

    def bind(self, state: ks.State) -> None:
        """Takes the arrays that scores are called with."""
        self._state = state
        state.run[0]["rows_at"] = state.rows.ctypes.data
        state.run[0]["out_at"] = state.out.ctypes.data

    def reraise(self) -> None:
        """Raises what a score raised."""
        if self._error is not None:
            raise self._error
        raise InputError(f"policy or router {self.names} divided by zero or failed otherwise")

    def _address(self, score: Score) -> int:
        try:
            return compile_score(score).address
        except NotCompilable:
            self.any_python = True
        prototype = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 3)

        def call(rows: int, count: int, out: int) -> int:
            try:
                assert self._state is not None
                # contiguous, as the reference passes them: the last bit may depend on it
                values = {
                    name: np.ascontiguousarray(self._state.rows[name][:count])
                    for name in score.features
                }
                self._state.out[:count] = score.evaluate(values)
            except BaseException as error:  # it would vanish in machine code
                self._error = error
                return 1
            return 0

        wrapped = prototype(call)
        self._kept.append(wrapped)
        return int(ctypes.cast(wrapped, ctypes.c_void_p).value or 0)


def _initial(score: Score, values: dict[str, NDArray[Any]], count: int) -> NDArray[np.float64]:
    """Scores at arrival, in one array; it is written to where scores change."""
    scores = np.asarray(score.evaluate(values), dtype=np.float64)
    if np.isnan(scores).any():
        raise InputError(f"policy {score.name!r} gave NaN for a score")
    return np.array(np.broadcast_to(scores, (count,)))


def _describe(
    row: Any,
    workload: Workload,
    inputs: Inputs,
    policy: SchedulingPolicy,
    routing: RoutingPolicy,
    engine: Engine,
    tables: TimingTables,
    seed: int,
    log: bool,
) -> None:
    """Fills the constants of a run."""
    size, rule = engine.block_size, policy.preemption
    names = (*policy.score.features, *routing.score.features)
    for name in (
        "prefill_seq_ps", "decode_seq_ps", "context_ps", "mixed_context_ps", "chunk_context_ps",
        "floor_ps", "floor_seq_ps",
    ):  # fmt: skip
        row[name] = getattr(tables, name)
    values = {
        "requests": len(workload), "seed": np.uint64(seed % 2**64).astype(np.int64),
        "closed_loop": inputs.think_ps is not None,
        "max_seqs": engine.max_num_seqs, "max_tokens": engine.max_num_batched_tokens,
        "block_size": size, "shift": size.bit_length() - 1 if size & (size - 1) == 0 else -1,
        "blocks": inputs.num_gpu_blocks - 1,
        "watermark": int(engine.watermark * inputs.num_gpu_blocks),
        "threshold": engine.long_prefill_token_threshold,
        "chunked": engine.enable_chunked_prefill, "full_isl": engine.scheduler_reserve_full_isl,
        "by_score": policy.queue == "priority", "scored": bool(policy.score.changes),
        "every": bool(policy.score.changes & {"clock", "state"}),
        "draws": "random_draw" in names, "weighted": "outstanding_tokens" in names,
        "preemption": ("none", "recompute", "swap").index(rule.mode),
        "max_per_step": rule.max_per_step, "swap_ps": inputs.clock.swap_ps_per_token,
        "past_preemption": engine.schedule_past_preemption,
        "applies_alone": engine.long_prefill_applies_alone,
        "choices": routing.choices, "log": log, "pending": ks.NONE, "answer": ks.NONE,
        "price": rule.price, "margin": rule.margin, "protect_after": rule.protect_after,
        "reserve": policy.admission.reserve,
    }  # fmt: skip
    for name, value in values.items():
        row[name] = value


def _allocate(
    workload: Workload,
    inputs: Inputs,
    policy: SchedulingPolicy,
    engine: Engine,
    tables: TimingTables,
    replicas: int,
    log: bool,
) -> ks.State:
    """Arrays for a run that is about to begin."""
    n, seats, size = len(workload), engine.max_num_seqs, engine.block_size
    by_score = policy.queue == "priority"
    closed = inputs.think_ps is not None
    run = np.zeros(1, ks.RUN)
    run["replicas"] = replicas
    replica = np.zeros(replicas, ks.REPLICA)
    for name in ("head", "tail", "queue_head", "queue_tail"):
        replica[name] = ks.NONE
    replica["free"] = inputs.num_gpu_blocks - 1
    replica["free_slot"] = np.arange(replicas) * seats
    slot = np.zeros(replicas * seats, ks.SLOT)
    slot["next"] = np.arange(1, replicas * seats + 1)
    slot["next"][seats - 1 :: seats] = ks.NONE
    capacity = 4 * seats + 64 if by_score else 1
    rows = max(capacity, replicas)
    first_child, sibling = _families(workload) if closed else (_none(np.int32), _none(np.int32))
    return ks.State(
        run=run, replica=replica, end=np.full(replicas, ks.NEVER), slot=slot,
        acting=np.zeros((replicas, seats), np.int32),
        wheel=np.full((replicas, ks.WHEEL), ks.NONE, np.int32),
        hist=np.zeros((replicas, size), np.int64),
        heap=np.zeros((replicas, capacity), ks.WAITING), stash=np.zeros(capacity, ks.WAITING),
        stale=np.zeros((replicas, capacity), np.int32),
        decode_ps=tables.decode_ps, mixed_ps=tables.mixed_ps,
        log=np.zeros(1024 if log else 0, ks.LOG),
        rows=np.zeros(rows, ks.FEATURE_ROW), out=np.zeros(rows),
        arrival=inputs.arrival_ps.copy() if closed else inputs.arrival_ps,
        planned=inputs.arrival_ps,
        prompt=workload["prompt_tokens"], output=workload["output_tokens"],
        predicted=_none(np.float64) if inputs.predicted is None else inputs.predicted,
        priority=_column(workload, "priority", np.int64),
        deadline=_column(workload, "deadline_s", np.float64),
        score=_none(np.float64), link=np.zeros(n, np.int32), generated=np.zeros(n, np.int32),
        reach=np.zeros(n, np.int32),
        stored=np.zeros(n if policy.preemption.mode == "swap" else 0, np.int32),
        think=_none(np.int64) if inputs.think_ps is None else inputs.think_ps,
        first_child=first_child, sibling=sibling,
        calendar=np.zeros(n if closed else 0, np.int32),
        roots=np.flatnonzero(workload["parent"] < 0).astype(np.int32) if closed
        else _none(np.int32),
        places=np.zeros(replicas, np.int64), where=np.zeros(n, np.int64),
        scheduled=np.zeros(n, np.int64), first_token=np.zeros(n, np.int64),
        finish=np.zeros(n, np.int64), preemptions=np.zeros(n, np.int64),
        recomputed=np.zeros(n, np.int64), cached=np.zeros(n, np.int64),
    )  # fmt: skip


def _none(kind: Any) -> NDArray[Any]:
    return np.zeros(0, kind)


def _column(workload: Workload, name: str, kind: Any) -> NDArray[Any]:
    return workload[name] if name in workload else _none(kind)


def _families(workload: Workload) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The first child of each request and the next child of the same parent, both (n,)."""
    parent = workload["parent"]
    first = np.full(len(parent), ks.NONE, np.int32)
    sibling = np.full(len(parent), ks.NONE, np.int32)
    for child in range(len(parent) - 1, -1, -1):
        if parent[child] >= 0:
            sibling[child] = first[parent[child]]
            first[parent[child]] = child
    return first, sibling


def _grow(state: ks.State) -> ks.State:
    """The same state in arrays of twice the size."""

    def doubled(array: NDArray[Any], axis: int) -> NDArray[Any]:
        return np.concatenate((array, np.zeros_like(array)), axis=axis)

    changed = {"log": doubled(state.log, 0)}
    if state.run[0]["by_score"]:
        changed |= {name: doubled(getattr(state, name), 1) for name in ("heap", "stale")}
        changed |= {name: doubled(getattr(state, name), 0) for name in ("stash", "rows", "out")}
    return state._replace(**changed)


def _records(state: ks.State, workload: Workload, inputs: Inputs, log: bool) -> Records:
    iterations = None
    if log:
        rows = state.log[: state.run[0]["log_rows"]]
        iterations = Iterations(*(np.ascontiguousarray(rows[name]) for name in ks.LOG.names or ()))
    predicted = inputs.predicted
    return Records(
        replica=state.where, arrival_ps=state.arrival, scheduled_ps=state.scheduled,
        first_token_ps=state.first_token, finish_ps=state.finish,
        prompt_tokens=state.prompt, output_tokens=state.output,
        predicted_tokens=np.full(len(workload), np.nan) if predicted is None else predicted,
        preemptions=state.preemptions, recomputed_tokens=state.recomputed,
        cached_tokens=state.cached, backend="fast", iterations=iterations,
    )  # fmt: skip
