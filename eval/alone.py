"""How long each request would take alone on an idle replica: what slowdown divides by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache

import numpy as np
from numpy.typing import NDArray

from lengthwise.protocols import Batch, TimingModel
from lengthwise.serving import Engine, System
from lengthwise.serving.clock import iteration_clock
from lengthwise.serving.records import PS, Ints
from lengthwise.serving.timing.model import TimingTables
from lengthwise.workload import Workload


@dataclass(frozen=True)
class Alone:
    """Latencies of all requests alone, on each kind of node."""

    kind: NDArray[np.int64]  # (nodes,)
    seconds: NDArray[np.float64]  # (kinds, n)

    @classmethod
    def of(cls, workload: Workload, system: System) -> Alone | None:
        """``alone_s`` on every node; None where one of them schedules ahead."""
        kinds: dict[tuple[int, int], int] = {}
        seconds: list[NDArray[np.float64]] = []
        of_node: list[int] = []
        for node in system.nodes:
            key = id(node.engine), id(node.timing)
            if key not in kinds:
                kinds[key] = len(kinds)
                found = alone_s(workload, node.engine, node.timing)
                if found is None:
                    return None
                seconds.append(found)
            of_node.append(kinds[key])
        return cls(np.array(of_node), np.stack(seconds))

    def where_served(self, node: NDArray[np.int64]) -> NDArray[np.float64]:
        """The latency of each request alone on the node (n,) that served it, (n,)."""
        return np.asarray(self.seconds[self.kind[node], np.arange(len(node))])


def alone_s(workload: Workload, engine: Engine, timing: TimingModel) -> NDArray[np.float64] | None:
    """End-to-end latency of each request on an idle replica, seconds, shape (n,).

    The prompt is computed in chunks of the engine's token budget, then one token an iteration;
    no prefix is cached. None with asynchronous scheduling, whose iterations overlap, so that a
    request's latency alone is no sum of theirs.
    """
    if engine.async_scheduling:
        return None
    prompt, output = workload["prompt_tokens"], workload["output_tokens"]
    many_ps = _many(engine, timing)
    budget = engine.max_num_batched_tokens
    if engine.long_prefill_token_threshold > 0:
        budget = min(budget, engine.long_prefill_token_threshold)
    contexts = np.arange(int((prompt + output).max()))
    steps = many_ps(decode_seqs=np.ones_like(contexts), context_tokens=contexts)
    until = np.cumsum(steps)  # (longest,) all steps up to a context
    # the prefill gives the first output token; the k-th after it attends to prompt + k tokens
    decoding = until[prompt + output - 1] - until[prompt]
    # a prompt is some whole chunks and then a last one, of 1 to ``budget`` tokens
    whole = (prompt - 1) // budget
    starts = np.arange(int(whole.max())) * budget
    chunks = _chunks(many_ps, np.full_like(starts, budget), starts)
    before = np.concatenate(([0], np.cumsum(chunks)))[whole]
    last = prompt - whole * budget
    # one last token is computed as decoding is
    rest = np.where(last == 1, steps[prompt], 0)
    several = last > 1
    rest[several] = _chunks(many_ps, last[several], (whole * budget)[several])
    return np.asarray((before + rest + decoding) / PS)


def _chunks(many_ps: Callable[..., Ints], tokens: Ints, start: Ints) -> Ints:
    """Iterations that compute a chunk of one prompt each, of so many tokens from ``start`` on."""
    if not len(tokens):
        return tokens
    attended = tokens * start + tokens * (tokens + 1) // 2
    return many_ps(prefill_tokens=tokens, prefill_seqs=np.ones_like(tokens), chunk_context=attended)


def _many(engine: Engine, timing: TimingModel) -> Callable[..., Ints]:
    """Durations of many iterations at once, from arrays (n,) of fields of ``Batch``; others 0."""
    tables = getattr(timing, "tables", None)
    names = [f.name for f in fields(Batch)]
    if tables is not None:
        made: TimingTables = tables(engine.max_num_batched_tokens, engine.max_num_seqs)
        return lambda **given: made.iterations_ps(**_all(names, given))
    one_ps = iteration_clock(engine, timing)

    def each_ps(**given: Ints) -> Ints:
        rows = zip(*(column.tolist() for column in _all(names, given).values()), strict=True)
        known = cache(lambda row: one_ps(Batch(*row)))
        return np.array([known(row) for row in rows], dtype=np.int64)

    return each_ps


def _all(names: list[str], given: dict[str, Ints]) -> dict[str, Ints]:
    nothing = np.zeros_like(next(iter(given.values())))
    return {name: given.get(name, nothing) for name in names}
