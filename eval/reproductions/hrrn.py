"""SGLang's HRRN schedule policy: sgl-project/sglang, pull request 32911 (2026)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lengthwise.eval.cells import Cells
from lengthwise.eval.reproductions.table import Case, Progress, Reproduction, Row, beside, lines
from lengthwise.eval.source import Spelled
from lengthwise.policy import SchedulingPolicy, Score
from lengthwise.serving import Engine
from lengthwise.workload import Workload

CLIENTS, BLOCK = 100, 512
# s of FCFS, LPM and HRRN at 100 requests at a time
THEIRS = {
    "mean TTFT": ("ttft_mean_s", (24.2, 16.4, 7.48)),
    "P50 TTFT": ("ttft_p50_s", (13.43, 5.6, 4.5)),
    "P90 TTFT": ("ttft_p90_s", (50.92, 32.79, 9.64)),
    "P99 TTFT": ("ttft_p99_s", (60.5, 213.3, 55.48)),
}


def uncached_hrrn(now_s: Any, arrival_s: Any, prompt_tokens: Any, cached_tokens: Any) -> Any:
    """Longest wait for each prompt token that has to be computed first."""
    return -(now_s - arrival_s) / (prompt_tokens - cached_tokens + 1.0)


POLICIES: dict[str, str | SchedulingPolicy] = {
    "FCFS": "fcfs",
    "LPM": "lpm",
    "HRRN": SchedulingPolicy(Score.from_function(uncached_hrrn)),
}


@dataclass(frozen=True)
class Fresh:
    """Prompts of Mooncake's conversations by a hundred clients, their answers elsewhere."""

    requests: int
    name = "mooncake-conversation, 100 at a time"

    def load(self, rate: float | None, seed: int) -> Workload:
        """Draws it: answers of one token, as on a node that only computes prompts."""
        arrivals = f"closed:{CLIENTS},think_s=0.1"
        options = {"requests": self.requests, "arrivals": arrivals}
        work = Spelled("mooncake-conversation", options).load(None, seed)
        return work.replace(output_tokens=np.ones(len(work), dtype=np.int64))


@dataclass(frozen=True)
class Conversations:
    """A hundred conversations of ``turns``, each prompt all of the one before and more.

    First prompts have 8,000 tokens in the mean, each turn adds 2,000, log-normal (sigma 1.2).
    """

    turns: int
    name = "conversations, 100 at a time"

    def load(self, rate: float | None, seed: int) -> Workload:
        """Draws it: answers of one token, as on a node that only computes prompts."""
        rng, shape = np.random.default_rng(seed), (self.turns, CLIENTS)
        means = np.where(np.arange(self.turns) == 0, 8000.0, 2000.0)[:, None]
        added = np.maximum(means * rng.lognormal(-0.72, 1.2, shape), 16.0).astype(np.int64)
        prompt = np.minimum(added.cumsum(axis=0), 120_000)
        ids = np.arange(prompt.size).reshape(shape)
        parent = np.vstack([np.full((1, CLIENTS), -1), ids[:-1]])
        hashes = np.empty(prompt.size, dtype=object)
        for turn in range(self.turns):
            for client in range(CLIENTS):
                first = (client + 1) * 1_000_000
                blocks = range(first, first + int(prompt[turn, client]) // BLOCK)
                hashes[ids[turn, client]] = tuple(blocks)
        return Workload(
            {
                "arrival_s": np.zeros(prompt.size), "prompt_tokens": prompt.ravel(),
                "output_tokens": np.ones(prompt.size, dtype=np.int64),
                "parent": parent.ravel(), "prefix_hashes": hashes,
                "think_s": np.where(parent.ravel() < 0, 0.0, rng.exponential(0.1, prompt.size)),
                "hash_block_tokens": np.full(prompt.size, BLOCK),
            },
            name=self.name,
        )  # fmt: skip


def hrrn(
    seeds: int, processes: int, progress: Progress | None = None, cells: Cells | None = None,
    *, turns: int = 10,
) -> Reproduction:  # fmt: skip
    """SGLang's HRRN (2026): time to first token, 100 requests at a time, against FCFS and LPM."""
    engine = Engine(max_num_batched_tokens=8192, enable_prefix_caching=True)
    rows: list[Row] = []
    for what, source in (
        ("new prompts", Fresh(CLIENTS * turns)),
        ("conversations", Conversations(turns)),
    ):
        cases = {name: Case(source, policy, None, engine) for name, policy in POLICIES.items()}
        for label, (metric, values) in THEIRS.items():
            theirs = {name: f"{s:g}" for name, s in zip(POLICIES, values, strict=True)}
            ratios = {
                name: f"{s / values[0]:.2f}" for name, s in zip(POLICIES, values, strict=True)
            }
            rows += beside(f"{label}, {what}", cases, metric, theirs, ratios)
    return Reproduction(
        "SGLang's HRRN: time to first token, 100 requests at a time",
        "s",
        lines(rows, seeds, processes, progress, cells),
        (
            "theirs: GLM-5.2 in NVFP4, prefill and decoding apart on 2 x 8 B200; ours: a node that "
            "only computes prompts, h200/llama-3.1-8b, so that only the ratios compare",
            "their traffic is their own; ours is two kinds: prompts that share little "
            "(mooncake-conversation), and conversations whose prefixes don't all fit in the cache",
            "HRRN here is the wait over the uncached prompt, as in SGLang; the policy `hrrn` takes "
            "the predicted answer in its place",
        ),
        source="sgl-project/sglang pull request 32911: table for concurrency 100",
        why="Theirs lies between our two kinds. What HRRN gains is mostly prefixes that are still "
        "in the cache when their next turn goes first: where there are few it gains 42% in the "
        "mean for a P99 of three times FCFS's, where there are many it gains 88% and the P99 falls "
        "too.",
    )
