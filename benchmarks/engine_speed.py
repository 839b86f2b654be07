"""The fast engine beside the reference in one run: speed, growth, memory, starts, two processes.

    python -m benchmarks.engine_speed

All but the last row are CPU seconds, medians where it says nothing else, since a busy machine
stretches wall time. Takes a few minutes; the targets stand beside what was measured.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

import lengthwise as lw
from lengthwise.envs.columns import Columns
from lengthwise.eval.pool import over_cores
from lengthwise.policies import load_policy, load_router
from lengthwise.policy import RoutingPolicy, SchedulingPolicy, Score
from lengthwise.serving import KVTransfer, Node, System, run

TIMING = lw.LinearTiming(
    base_s=6.5e-3, per_prefill_token_s=21e-6, per_sequence_s=40e-6, num_gpu_blocks=56_105
)
RATE = 400.0  # requests/s of one replica, which can serve 405: 200 run and a few wait
OVERLOAD = 450.0  # hundreds wait for a seat, and more and more of them
FEW, MANY = 4_000, 300_000
COMPILED_START = """
import time
from benchmarks.engine_speed import simulate, workload
requests = workload(1000, 300.0)
begin = time.process_time()
simulate(requests, policy={policy!r}, replicas={replicas})
print(time.process_time() - begin)
"""


def workload(requests: int, rate: float) -> lw.Workload:
    """Poisson arrivals, prompts of 16 to 63 tokens, geometric answers of 24 tokens on average."""
    rng = np.random.default_rng(0)
    return lw.Workload(
        {
            "arrival_s": np.cumsum(rng.exponential(1 / rate, requests)),
            "prompt_tokens": rng.integers(16, 64, requests),
            "output_tokens": np.minimum(rng.geometric(1 / 24, requests), 400),
        }
    )


def conversations(requests: int, rate: float) -> lw.Workload:
    """The same arrivals as turns of conversations, whose prompts repeat what was said before."""
    rng = np.random.default_rng(0)
    plain = workload(requests, rate)
    turns: dict[int, int] = {}
    hashes = []
    for one in rng.integers(0, max(requests // 8, 1), requests).tolist():
        turns[one] = turns.get(one, 0) + 1
        system = one % 20  # prompts begin with one of 20 instructions
        hashes.append((system, *(100 + 16 * one + turn for turn in range(min(turns[one], 15)))))
    prompt = 16 * np.array([len(row) for row in hashes]) + rng.integers(1, 16, requests)
    return lw.Workload(
        {
            "arrival_s": plain["arrival_s"],
            "prompt_tokens": prompt,
            "output_tokens": plain["output_tokens"],
            "hash_block_tokens": np.full(requests, 16),
            "prefix_hashes": hashes,
        }
    )


def crowd(requests: int, people: int) -> lw.Workload:
    """The same lengths from people who ask again at once: so many are always in the system."""
    plain = workload(requests, 1.0)
    return lw.Workload(
        {
            "arrival_s": np.zeros(requests),
            "prompt_tokens": plain["prompt_tokens"],
            "output_tokens": plain["output_tokens"],
            "parent": np.maximum(np.arange(requests) - people, -1),
            "think_s": np.zeros(requests),
        }
    )


def learned(*seen: str, width: int = 32) -> Score:
    """A network of the size that training gives by default, over an environment's columns."""
    rng = np.random.default_rng(0)
    layers = [
        (rng.normal(size=(outputs, inputs)) / np.sqrt(inputs), np.zeros(outputs))
        for inputs, outputs in ((len(seen), width), (width, width), (width, 1))
    ]
    return Score("learned", *Columns.of(seen).score(layers))


def longest_wait(arrival_s: Any, now_s: Any, prompt_tokens: Any) -> Any:
    """A score that stays Python: the last bit of a logarithm depends on who computes it."""
    return prompt_tokens - np.log1p(now_s - arrival_s)


def lightest(running_requests: Any, waiting_requests: Any) -> Any:
    """A router that stays Python."""
    return np.log1p(running_requests + waiting_requests)


def simulate(
    requests: lw.Workload,
    *,
    policy: str | SchedulingPolicy = "fcfs",
    router: Any = "jsq",
    replicas: int = 1,
    prefill: int = 0,
    backend: Any = "fast",
    **options: Any,
) -> Any:
    """One run; ``prefill`` of the replicas only prefill, ``options`` are the engine's."""
    node = Node(lw.Engine(**options), TIMING, load_policy(policy))
    system = System.replicated(node, replicas, load_router(router))
    if prefill:
        roles = (replace(node, role="prefill"),) * prefill
        decode = (replace(node, role="decode"),) * (replicas - prefill)
        link = KVTransfer(50.0, 1e-5, kv_bytes_per_token=131_072)
        system = System(roles + decode, system.routing, kv_transfer=link)
    return run(requests, system, requests["output_tokens"].astype(float), backend=backend)


def cpu_seconds(call: Callable[[], Any], repeats: int = 3) -> float:
    """CPU seconds of a call, the median of some."""
    spent = []
    for _ in range(repeats):
        begin = time.process_time()
        call()
        spent.append(time.process_time() - begin)
    return statistics.median(spent)


@dataclass(frozen=True)
class Case:
    """What is simulated, on how many requests, and what is wanted."""

    label: str
    want: str
    options: dict[str, Any] = field(default_factory=dict)
    make: Callable[[int, float], lw.Workload] = workload
    many: int = MANY
    rate: float = RATE  # of one replica


CASES = (
    Case("fcfs", ">= 300 x"),
    Case("fcfs, 8 replicas, jsq", ">= 200 x", {"replicas": 8}),
    Case("fcfs, 2 that prefill and 6 that decode, jsq", ">= 0.5M", {"replicas": 8, "prefill": 2},
         many=100_000, rate=200.0),
    Case("srtf, stable", ">= fcfs / 2", {"policy": "srtf"}),
    Case("mlfq, stable", ">= fcfs / 2", {"policy": "mlfq"}),
    Case("srtf, preemption free of charge: thrashing", ">= 0.5M",
         {"policy": "srtf+preempt:price=0.0"}, many=100_000),
    Case("srtf+guard, stable", ">= 1M", {"policy": "srtf+guard"}),
    Case("srtf, overload", "", {"policy": "srtf"}, many=100_000, rate=OVERLOAD),
    Case("srtf+guard, overload", ">= srtf / 2", {"policy": "srtf+guard"}, many=100_000,
         rate=OVERLOAD),
    Case("srtf+guard, asynchronous, prefix caching: as vLLM ships", ">= 0.4M",
         {"policy": "srtf+guard", "async_scheduling": True, "enable_prefix_caching": True},
         conversations, 100_000),
    Case("fcfs, prefix caching", ">= 0.3M", {"enable_prefix_caching": True, "num_gpu_blocks": 2000},
         conversations, 100_000),
    Case("learned router, 4 replicas", ">= 0.4M",
         {"replicas": 4, "router": RoutingPolicy(learned(
             "running_requests", "waiting_requests", "outstanding_tokens", "predicted_tokens"))},
         many=100_000),
    Case("learned scheduler, lengths alone", ">= 0.3M",
         {"policy": SchedulingPolicy(learned("remaining_tokens", "prompt_tokens"))}, many=100_000),
)  # fmt: skip


def speeds() -> None:
    """Both engines on the same kind of work, side by side."""
    print("| case | reference, requests/s | fast, requests/s | ratio | output tokens/s | wanted |")
    print("|---|---:|---:|---:|---:|---|")
    for case in CASES:
        rate = case.rate * case.options.get("replicas", 1)
        few, many = case.make(FEW, rate), case.make(case.many, rate)
        simulate(few, **case.options)  # compiles
        slow = FEW / cpu_seconds(partial(simulate, few, backend="reference", **case.options))
        fast = case.many / cpu_seconds(partial(simulate, many, **case.options))
        tokens = fast * float(many["output_tokens"].mean())
        print(
            f"| {case.label} | {slow:,.0f} | {fast:,.0f} | {fast / slow:.0f} | "
            f"{tokens / 1e6:.1f}M | {case.want} |",
            flush=True,
        )


def python_scores() -> None:
    """Decisions that are made by Python functions."""
    decisions = 0

    def counted(function: Any) -> Score:
        def count(*values: Any) -> Any:
            nonlocal decisions
            decisions += len(values[0])
            return function(*values)

        made = Score.from_function(function)
        return Score(made.name, count, made.features)

    requests = workload(20_000, OVERLOAD)
    policy = SchedulingPolicy(counted(longest_wait))
    seconds = cpu_seconds(partial(simulate, requests, policy=policy), 1)
    row("Python policy, scores/s", f"{decisions / seconds:,.0f}", ">= 0.2M")
    requests = workload(100_000, 8 * RATE)
    router = lw.policy.RoutingPolicy(Score.from_function(lightest))
    seconds = cpu_seconds(partial(simulate, requests, router=router, replicas=8), 1)
    row("Python router, decisions/s", f"{len(requests) / seconds:,.0f}", ">= 0.2M")


def learned_queues() -> None:
    """A learned scheduler that reads the clock, by how many wait all the time for 128 seats."""
    policy = SchedulingPolicy(learned("predicted_tokens", "prompt_tokens", "waited_s"))
    for waiting, want in ((1, ""), (50, ">= 50,000"), (500, "")):
        requests = crowd(50_000, 128 + waiting)
        simulate(requests, policy=policy, max_num_seqs=128)  # compiles
        seconds = cpu_seconds(partial(simulate, requests, policy=policy, max_num_seqs=128))
        label = f"learned scheduler that reads the clock, {waiting} waiting, requests/s"
        row(label, f"{len(requests) / seconds:,.0f}", want)


def growth() -> None:
    """Time and memory a request from 10k to 10M requests."""
    each = []
    for count in (10_000, 100_000, 1_000_000, 10_000_000):
        requests = workload(count, RATE)
        simulate(requests)
        each.append(cpu_seconds(partial(simulate, requests), 3 if count < 10**7 else 1) / count)
        row(f"fcfs, us a request of {count:,}", f"{each[-1] * 1e6:.3f}", "")
    row("growth from 10k to 10M", f"{each[-1] / each[0]:.2f}", "<= 1.5")
    row("growth from 100k to 10M", f"{each[-1] / each[1]:.2f}", "<= 1.5")
    for policy in ("fcfs", "srtf"):
        requests = workload(1_000_000, RATE)
        tracemalloc.start()
        simulate(requests, policy=policy)
        peak = tracemalloc.get_traced_memory()[1] / len(requests)
        tracemalloc.stop()
        row(f"{policy}, bytes a request beyond the inputs", f"{peak:.0f}", "<= 150")


def starts() -> None:
    """The first run of a process, without and with machine code on disk; imports not counted."""
    for policy, replicas in (("fcfs", 1), ("srtf", 1), ("srtf", 8)):
        with tempfile.TemporaryDirectory() as cache:
            for kind, want in (("cold", "<= 6"), ("warm", "<= 0.3")):
                done = subprocess.run(
                    [sys.executable, "-c", COMPILED_START.format(policy=policy, replicas=replicas)],
                    env={**os.environ, "XDG_CACHE_HOME": cache},
                    capture_output=True, text=True, check=True,
                )  # fmt: skip
                label = f"{kind} start, {policy}, {replicas} replica{'s' * (replicas > 1)}, s"
                row(label, f"{float(done.stdout):.2f}", want)


def job(seed: int) -> int:
    """One of several equal jobs; returns its process."""
    requests = workload(300_000, RATE)
    for _ in range(40):
        simulate(requests)
    return os.getpid()


def processes() -> None:
    """The same four jobs in one process and in two."""
    spent = []
    for count in (1, 2):
        begin = time.perf_counter()
        used = len(set(over_cores(job, [(seed,) for seed in range(4)], count)))
        spent.append(time.perf_counter() - begin)
        assert used == count
    row("two processes are faster by, wall", f"{spent[0] / spent[1]:.2f}", "2, less their start")


def row(label: str, value: str, want: str) -> None:
    """Prints a row of the second table."""
    print(f"| {label} | {value} | {want} |", flush=True)


def main() -> None:
    """Prints two tables in Markdown."""
    begin = time.perf_counter()
    print(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    speeds()
    print("\n| | measured | wanted |\n|---|---:|---|")
    python_scores()
    learned_queues()
    growth()
    starts()
    processes()
    load = os.getloadavg()[0]
    print(f"\nload after: {load:.1f}; took {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
