"""Random workloads and engine options, from starving to ample: one case a seed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.policies.plugins.vllm.driver import VALUES
from lengthwise.policy import RoutingPolicy, SchedulingPolicy, Score
from lengthwise.serving import Engine, Node, System
from lengthwise.serving.timing import LinearTiming
from lengthwise.serving.vllm.backend import plugin_settings
from lengthwise.workload import Workload
from tests.random_policies import random_policy


def arrival(arrival_s: Any) -> Any:
    return arrival_s


def priority(priority: Any) -> Any:
    return priority


def any_replica(routed_requests: Any) -> Any:
    return routed_requests


FCFS = SchedulingPolicy(Score.from_function(arrival), queue="fcfs")
PRIORITY = SchedulingPolicy(Score.from_function(priority))
ROUTING = RoutingPolicy(Score.from_function(any_replica))
SCORES = 24  # random ones
# What the plugin tells to the last bit: its times count from when it was made (HRRN, registered,
# reads differences), vLLM's share of blocks in use is 1 - free / all, and a deadline reaches it as
# the time that is left.
EXACT = sorted(set(VALUES) - {"arrival_s", "now_s", "kv_utilization", "deadline_s"})


@dataclass(frozen=True)
class Case:
    """A run that both engines must make alike."""

    name: str
    workload: Workload
    engine: Engine
    policy: SchedulingPolicy
    timing: LinearTiming
    replicas: int = 1
    predictions: NDArray[np.float64] | None = None
    plugin: dict[str, Any] | None = None  # the plugin's settings; without, vLLM is stock

    def arguments(self) -> dict[str, Any]:
        """The arguments of a run beside the workload."""
        node = Node(self.engine, self.timing, self.policy)
        system = System.replicated(node, self.replicas, ROUTING)
        return {"system": system, "predictions": self.predictions, "log_iterations": True}


def random_case(seed: int, version: str) -> Case:
    """The case of a seed; the same for every version but for the options in which they differ."""
    rng = np.random.default_rng(seed)
    requests = int(rng.integers(1, 61))
    prompt = _lengths(rng, requests, 120)
    output = _lengths(rng, requests, 60)
    timing = LinearTiming(0.01, per_prefill_token_s=1e-4 * rng.random(), per_sequence_s=1e-4)
    total = prompt + output
    block_size = int(rng.choice([1, 2, 4, 8, 16, 32]))
    caching = bool(rng.random() < 0.5)
    chunked = bool(rng.random() < 0.85)
    seats = int(rng.integers(1, 25))
    budget = int(rng.integers(max(seats, 4), 200)) if chunked else int(total.max() + seats)
    # blocks: what the largest request needs, and up to what all of them need
    least = -(-(int(total.max()) - 1) // block_size)
    ample = int((-(-total // block_size)).sum())
    blocks = 1 + least + int(rng.choice([0, 1, 3, least, ample])) + int(rng.integers(0, 4))
    columns: dict[str, Any] = {
        "arrival_s": _arrivals(rng, requests),
        "prompt_tokens": prompt,
        "output_tokens": output,
        "priority": rng.integers(0, int(rng.choice([1, 3, 100])), requests),
    }
    if caching:
        columns |= _shared_prefixes(rng, prompt, block_size)
    if rng.random() < 0.15:
        columns |= _closed_loop(rng, requests)
    engine = Engine.of_vllm(
        version,
        max_num_seqs=seats,
        max_num_batched_tokens=budget,
        num_gpu_blocks=blocks,
        block_size=block_size,
        max_model_len=int(total.max()) if rng.random() < 0.3 else None,
        enable_chunked_prefill=chunked,
        enable_prefix_caching=caching,
        long_prefill_token_threshold=_threshold(rng, total),
        async_scheduling=bool(rng.random() < 0.4),
        scheduler_reserve_full_isl=bool(rng.random() < 0.7),
        watermark=float(rng.choice([0.0, 0.0, 0.02, 0.2])),
    )
    policy = PRIORITY if rng.random() < 0.5 else FCFS
    replicas = int(rng.choice([1, 1, 1, 2]))
    return Case(f"seed {seed}", Workload(columns), engine, policy, timing, replicas)


def policy_case(seed: int, version: str) -> Case:
    """The same under a policy that vLLM's plugin follows: any registered one, or a random score."""
    case = random_case(seed, version)
    workload = case.workload
    if "parent" in workload:
        workload = workload.replace(parent=None, think_s=None)
    rng = np.random.default_rng([seed, 1])
    while True:
        policy = random_policy(rng, EXACT, SCORES, beyond=False)
        reads = policy.score.features
        carried = VALUES.lacks(reads, policy.name) is None and "deadline_s" not in reads
        if carried and plugin_settings(policy) is not None:  # fcfs is vLLM's own
            break
    return replace(
        case, name=f"seed {seed}, {policy.name}", workload=workload, policy=policy,
        # the plugin's walk asks for all blocks of a request, as vLLM does by default
        engine=replace(case.engine, scheduler_reserve_full_isl=True),
        predictions=noisy_lengths(rng, workload, case.engine),
        plugin=plugin_settings(policy),
    )  # fmt: skip


def noisy_lengths(rng: np.random.Generator, workload: Workload, engine: Engine) -> Any:
    """Noisy lengths, within what vLLM lets a request generate: the plugin caps them there."""
    noisy = workload["output_tokens"] * rng.lognormal(0, 0.5, len(workload))
    return np.clip(noisy, 1.0, longest(engine) - workload["prompt_tokens"])


def longest(engine: Engine) -> int:
    """The tokens that vLLM's configuration lets a request have, its prompt's among them."""
    most = engine.max_model_len or 1 << 20
    return most if engine.enable_chunked_prefill else min(most, engine.max_num_batched_tokens)


def _lengths(rng: np.random.Generator, count: int, longest: int) -> Any:
    kind = rng.integers(3)
    if kind == 0:
        return rng.integers(1, longest + 1, count)
    if kind == 1:
        return np.full(count, rng.integers(1, longest + 1))
    return np.clip(np.rint(rng.lognormal(2.0, 1.3, count)), 1, longest).astype(np.int64)


def _arrivals(rng: np.random.Generator, count: int) -> Any:
    kind = rng.integers(3)
    if kind == 0:
        return np.zeros(count)
    gaps = rng.exponential(10 ** rng.uniform(-3, 0), count)
    if kind == 1:
        return np.cumsum(gaps)
    return np.sort(rng.choice(np.cumsum(gaps), count))  # bursts of equal arrivals


def _threshold(rng: np.random.Generator, total: Any) -> int:
    return 0 if rng.random() < 0.6 else int(rng.integers(1, int(total.max()) + 1))


def _shared_prefixes(rng: np.random.Generator, prompt: Any, block_size: int) -> dict[str, Any]:
    """Prompts that begin like earlier ones, to a random depth, and then go their own way."""
    size = int(rng.choice([block_size, 2 * block_size, max(1, block_size // 2), 5]))
    rows: list[tuple[int, ...]] = []
    fresh = 0
    for tokens in prompt.tolist():
        blocks = int(tokens) // size
        row: list[int] = []
        if rows and rng.random() < 0.7:
            model = rows[int(rng.integers(len(rows)))]
            row = list(model[: int(rng.integers(len(model) + 1))])[:blocks]
        while len(row) < blocks and rng.random() < 0.9:
            row.append(fresh if rng.random() < 0.7 else int(rng.integers(fresh + 1)))
            fresh += 1
        rows.append(tuple(row))
    return {"prefix_hashes": rows, "hash_block_tokens": np.full(len(prompt), size)}


def _closed_loop(rng: np.random.Generator, count: int) -> dict[str, Any]:
    parents = [int(rng.integers(-1, i)) if rng.random() < 0.5 else -1 for i in range(count)]
    return {"parent": parents, "think_s": rng.exponential(0.05, count) * (rng.random(count) < 0.8)}
