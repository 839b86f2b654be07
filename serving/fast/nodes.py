"""What the fast engine knows of nodes: one row for each kind, and the tables that kinds share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.policy import Score
from lengthwise.prediction import CURVES
from lengthwise.serving.fast import state as ks
from lengthwise.serving.fast.calls import ScoreCalls
from lengthwise.serving.fast.features import mask
from lengthwise.serving.inputs import NodeInputs
from lengthwise.serving.scoring import Features
from lengthwise.serving.system import Node
from lengthwise.workload import Workload


@dataclass(frozen=True)
class Kinds:
    """The kinds of nodes in a system, and of which kind each node is."""

    nodes: tuple[Node, ...]  # one of each kind
    inputs: tuple[NodeInputs, ...]  # of each kind
    of: tuple[int, ...]  # the kind of each node of the system

    @property
    def caching(self) -> bool:
        """Whether any node tells KV blocks apart."""
        return any(node.engine.enable_prefix_caching for node in self.nodes)

    @property
    def overlapped(self) -> bool:
        """Whether any node schedules an iteration while the one before it runs."""
        return any(node.engine.async_scheduling for node in self.nodes)

    def largest(self, option: str) -> int:
        """The largest value of an engine's option."""
        return max(int(getattr(node.engine, option)) for node in self.nodes)


def kinds_of(nodes: Sequence[Node]) -> tuple[tuple[Node, ...], tuple[int, ...]]:
    """One node of each kind, and of which kind each node is."""
    seen: dict[Any, int] = {}
    first: list[Node] = []
    of = []
    for node in nodes:
        key = (node.engine, id(node.timing), id(node.policy), node.role)
        if key not in seen:
            seen[key] = len(first)
            first.append(node)
        of.append(seen[key])
    return tuple(first), tuple(of)


class _Tables:
    """Integer tables one after the other; one that is there already is shared."""

    def __init__(self) -> None:
        self._parts: list[NDArray[np.int64]] = []
        self._seen: dict[bytes, int] = {}
        self._size = 0

    def add(self, table: NDArray[np.int64]) -> int:
        """Where the table begins."""
        content = table.tobytes()
        if content not in self._seen:
            self._seen[content] = self._size
            self._parts.append(table)
            self._size += len(table)
        return self._seen[content]

    def whole(self) -> NDArray[np.int64]:
        """All of them, (size,)."""
        if len(self._parts) == 1:
            return np.ascontiguousarray(self._parts[0])
        return np.concatenate(self._parts) if self._parts else np.zeros(0, np.int64)


def describe(
    workload: Workload,
    arrival_ps: NDArray[np.int64],
    kinds: Kinds,
    calls: ScoreCalls,
    features: Features,
) -> dict[str, NDArray[Any]]:
    """Rows of ``NODE`` and the tables that they point into."""
    longest = int((workload["prompt_tokens"] + workload["output_tokens"]).max())
    rows = np.zeros(len(kinds.nodes), ks.NODE)
    tables = {name: _Tables() for name in (
        "decode_ps", "mixed_ps", "decode_context_ps", "mixed_launch_ps"
    )}  # fmt: skip
    ahead: list[NDArray[np.float64]] = []
    for kind, (node, inputs) in enumerate(zip(kinds.nodes, kinds.inputs, strict=True)):
        row = rows[kind : kind + 1]
        for name, value in _constants(node, inputs, longest).items():
            row[name] = value
        _time(row, inputs, node, tables)
        row["score_at"], row["ahead_at"] = calls.policy_at[kind], ks.NONE
        if row["by_score"][0]:
            row["callback"] = calls.why[kind] is not None
            row["at_arrival"] = calls.why[kind] is None
            if row["callback"][0] and not row["every"][0]:
                row["ahead_at"] = len(ahead) * len(arrival_ps)
                ahead.append(_ahead(node.policy.score, features, arrival_ps))
    return {
        "node": rows,
        **{name: table.whole() for name, table in tables.items()},
        "ahead": np.concatenate(ahead) if ahead else np.zeros(0),
    }


def _constants(node: Node, inputs: NodeInputs, longest: int) -> dict[str, Any]:
    engine, policy, rule = node.engine, node.policy, node.policy.preemption
    size, changes, guard = engine.block_size, policy.score.changes, policy.acting_guard
    return {
        "max_seqs": engine.max_num_seqs, "max_tokens": engine.max_num_batched_tokens,
        "block_size": size, "shift": size.bit_length() - 1 if size & (size - 1) == 0 else -1,
        "blocks": inputs.num_gpu_blocks - 1,
        "watermark": int(engine.watermark * inputs.num_gpu_blocks),
        "threshold": engine.long_prefill_token_threshold,
        "chunked": engine.enable_chunked_prefill, "full_isl": engine.scheduler_reserve_full_isl,
        "by_score": policy.queue == "priority", "scored": bool(changes),
        "every": bool(changes & {"clock", "state"}), "reads": mask(policy.score.features),
        "preemption": rule.mode != "none", "swaps": rule.mode == "swap",
        "max_per_step": rule.max_per_step,
        "past_preemption": engine.schedule_past_preemption,
        "applies_alone": engine.long_prefill_applies_alone,
        "swap_ps": inputs.clock.swap_ps_per_token,
        "overhead": rule.overhead_tokens, "price": rule.price, "margin": rule.margin,
        "protect_after": rule.protect_after, "reserve": policy.admission.reserve,
        "reserve_peak": policy.admission.by == "peak", "reserve_of": _curve(policy.admission.of),
        "caching": engine.enable_prefix_caching,
        "bucket_mask": (1 << (2 * inputs.num_gpu_blocks).bit_length()) - 1,
        "longest": -(-longest // size),
        "guarded": guard is not None, "guard_ratio": guard.ratio if guard else 0.0,
        "guard_floor": guard.floor_ps if guard else 0,
        "prefills": node.role == "prefill",
        "depth": 2 if engine.async_scheduling else 1,
        "decode_tokens_per_s": inputs.clock.decode_tokens_per_s(engine),
    }  # fmt: skip


def _curve(name: str) -> int:
    """The place of a feature among the curves, NONE for one that is none."""
    return list(CURVES).index(name) if name in CURVES else ks.NONE


def _time(row: Any, inputs: NodeInputs, node: Node, tables: dict[str, _Tables]) -> None:
    """The tables of one clock or of two; their linear terms go into ``row``."""
    two = inputs.clock.pipeline
    timing: Any = node.timing
    clock = two or timing.tables(node.engine.max_num_batched_tokens, node.engine.max_num_seqs)
    row["decode_at"] = tables["decode_ps"].add(clock.decode_ps)
    row["mixed_at"] = tables["mixed_ps"].add(clock.mixed_ps)
    if two is not None:
        row["pipeline"] = True
        row["decode_context_at"] = tables["decode_context_ps"].add(two.decode_context_ps)
        row["mixed_launch_at"] = tables["mixed_launch_ps"].add(two.mixed_launch_ps)
    for name, ps in clock.terms.items():
        row[f"{name}_ps"] = ps


def _ahead(score: Score, features: Features, arrival_ps: NDArray[np.int64]) -> NDArray[np.float64]:
    """Scores at arrival as one array, (n,)."""
    values = features.at_arrival(score.features, arrival_ps)
    return np.array(score.numbers(values, len(arrival_ps)))
