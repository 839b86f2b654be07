"""Sheng et al., "Fairness in Serving Large Language Models" (VTC), OSDI 2024."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lengthwise.eval.cells import Cells
from lengthwise.eval.reproductions.table import Case, Progress, Reproduction, beside, lines
from lengthwise.eval.source import Source, Spelled
from lengthwise.serving import Engine
from lengthwise.serving.records import PS, Records
from lengthwise.workload import Workload

POOL, TOKENS = 10_000, 256  # tokens of the KV cache, and of each prompt and each answer
OVERLOAD_S = 360.0
# dist_shift: requests/s of either client in thirds of 15 minutes; client 0 pauses every other
# minute of the first
PHASES, PHASE_S = ((0.5, 2.0), (1.0, 1.0), (0.5, 1.5)), 300.0
BOUND = 2 * 2 * POOL  # 2 max(w_p L_input, w_q M) of theorem 4.4, weights 1 and 2


@dataclass(frozen=True)
class DistShift:
    """The artifact's ``dist_shift``: even arrivals of two clients whose rates change twice."""

    name = "dist_shift"

    def load(self, rate: float | None, seed: int) -> Workload:
        """Draws when each client begins within its first interval."""
        rng, times, tenants = np.random.default_rng(seed), [], []
        for phase, rates in enumerate(PHASES):
            for client, each in enumerate(rates):
                at = (rng.random() + 1 + np.arange(int(each * PHASE_S))) / each
                if phase == 0 and client == 0:
                    at = at[(at // 60).astype(int) % 2 == 0]
                times.append(at + phase * PHASE_S)
                tenants.append(np.full(len(at), f"client-{client}", dtype=object))
        arrival, tenant = np.concatenate(times), np.concatenate(tenants)
        order = np.argsort(arrival, kind="stable")
        tokens = np.full(len(order), TOKENS)
        columns = {"prompt_tokens": tokens, "output_tokens": tokens, "tenant": tenant[order]}
        return Workload({"arrival_s": arrival[order], **columns}, name=self.name)


def served(records: Records, workload: Workload, at_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """What each client was served by each time, (clients, times), generated tokens twice."""
    scheduled, first, finish = (
        getattr(records, f"{name}_ps") / PS for name in ("scheduled", "first_token", "finish")
    )
    found = []
    for tenant in ("client-0", "client-1"):
        mine = workload["tenant"] == tenant
        total = np.zeros(len(at_s))
        for begin, end, tokens in (
            (scheduled[mine], first[mine], records.prompt_tokens[mine]),
            (first[mine], finish[mine], 2 * records.output_tokens[mine]),
        ):
            share = (at_s[:, None] - begin) / np.maximum(end - begin, 1e-9)
            total += np.clip(share, 0, 1) @ tokens
        found.append(total)
    return np.array(found)


def overload_share(records: Records, workload: Workload) -> float:
    """What client 1 was served for each token of client 0, from 60 to 300 s, while both wait."""
    begin, end = served(records, workload, np.array([60.0, 300.0])).T
    return float((end[1] - begin[1]) / (end[0] - begin[0]))


def overload_gap(records: Records, workload: Workload) -> float:
    """The largest difference in what they were served from 60 s on, tokens, until 300 s."""
    both = served(records, workload, np.arange(60.0, 301.0, 1.0))
    return float(np.abs((both[1] - both[1, 0]) - (both[0] - both[0, 0])).max())


def shift_share(records: Records, workload: Workload) -> float:
    """The same as ``overload_share`` in the second phase, where both send alike, after a minute."""
    begin, end = served(records, workload, np.array([PHASE_S + 60, 2 * PHASE_S])).T
    return float((end[1] - begin[1]) / (end[0] - begin[0]))


def vtc(
    seeds: int, processes: int, progress: Progress | None = None, cells: Cells | None = None,
    *, requests: int = 1620,
) -> Reproduction:  # fmt: skip
    """VTC (OSDI 2024): two clients that overload, and a shift; service of one over the other's."""
    engine = Engine(num_gpu_blocks=POOL // 16 + 1)

    def pair(source: Source) -> dict[str, Case]:
        return {
            name: Case(source, f"{policy}+admit:reserve=1", "oracle", engine,
                       "roofline:a10g/llama-2-7b")
            for name, policy in (
                ("FCFS", "fcfs"), ("LCF", "lcf"), ("VTC", "vtc"), ("WFQ", "wfq"),
            )
        }  # fmt: skip

    overload = pair(Spelled("overload", {"requests": requests}))
    rows = [
        *beside("overload, service ratio", overload, overload_share, {"FCFS": "2", "VTC": "1"}),
        *beside("overload, largest gap", overload, overload_gap, {"VTC": f"at most {BOUND}"}),
        *beside("dist_shift, service ratio", pair(DistShift()), shift_share, {"VTC": "1"}),
    ]
    return Reproduction(
        "VTC: what client 1 is served for each token of client 0",
        "ratio or tokens",
        lines(rows, seeds, processes, progress, cells),
        (
            "theirs: Llama-2-7B on an A10G in S-LoRA with a pool of 10,000 tokens; ours: the same "
            "pool on a roofline of that GPU, an estimate, in vLLM's scheduler",
            "theirs reserves for the answer's limit of 256 tokens before it admits; so does ours "
            "(`admit:reserve=1` with exact lengths)",
            "theirs compares with least counter first in other figures, whose numbers were not at "
            "hand",
        ),
        source="Sheng et al., OSDI 2024, figure 3 (overload), figure 10 (dist_shift), theorem 4.4 "
        "(the bound); rates and lengths as in the authors' artifact",
        why="Theirs are curves; what they show is that FCFS serves as clients ask (1 to 2) and VTC "
        "alike, and so it is here, with a gap far below its bound. Least counter first (LCF), "
        "without VTC's lift, gives client 0 more in the second phase, for the minutes that it was "
        "away in the first. WFQ is VTC where all requests are alike. A "
        "weighted VTC takes the workload's `tenant_weight`.",
    )
