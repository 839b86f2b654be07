"""How many requests a second a system serves at most: what a load is a share of."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from lengthwise.registry import load
from lengthwise.serving.inputs import gpu_blocks
from lengthwise.serving.records import PS
from lengthwise.serving.run import run
from lengthwise.serving.system import Node, System
from lengthwise.workload import REQUIRED, Workload

AFRESH = 2**62 + 1  # between the hashes of one round and of the next
ROUNDS = 8  # times that each seat is filled: far more work than the ramp and the tail hold


def saturation_rate(workload: Workload, system: System) -> float:
    """Requests/s of ``workload``'s mix that ``system`` completes, first come, first served.

    The sum over nodes, as a router that errs nowhere would have it: each node alone is given a
    burst of the workload's requests, over and over, and its rate is that of the middle half of the
    completions, when all seats (or all of the KV cache) are taken. Beyond it queues grow forever.
    Prompts that share a prefix do so within a round; no request finds its own of the round before.
    Nodes of roles prefill and decode are given the burst together, with their own router.
    """
    if system.kv_transfer is not None:
        fcfs = tuple(map(_fcfs, system.nodes))
        count = sum(_seats(workload, node) for node in system.nodes)
        return _of_burst(workload, replace(system, nodes=fcfs, events=()), ROUNDS * count)
    known: dict[tuple[object, object], float] = {}
    total = 0.0
    for node in system.nodes:
        key = (node.engine, id(node.timing))
        if key not in known:
            known[key] = _alone(workload, node)
        total += known[key]
    return total


def by_itself(node: Node) -> System:
    """A node that serves all that comes, in the order of arrival."""
    return System((_fcfs(node),), load("router", "round-robin"))


def _fcfs(node: Node) -> Node:
    return replace(node, policy=load("policy", "fcfs"))


def _alone(workload: Workload, node: Node) -> float:
    return _of_burst(workload, by_itself(node), ROUNDS * _seats(workload, node))


def _seats(workload: Workload, node: Node) -> int:
    """Requests that are served at once, as far as seats and prompts' KV tell."""
    blocks = gpu_blocks(node.engine, node.timing)
    fit = blocks * node.engine.block_size / float(workload["prompt_tokens"].mean())
    return min(node.engine.max_num_seqs, math.ceil(fit))


def _of_burst(workload: Workload, system: System, least: int) -> float:
    """The rate of the middle half of the completions of a burst of ``least`` requests or more."""
    count = max(least, len(workload))
    rounds, again = np.divmod(np.arange(count), len(workload))
    columns: dict[str, Any] = {name: workload[name][again] for name in REQUIRED[1:]}
    caching = any(node.engine.enable_prefix_caching for node in system.nodes)
    if caching and "prefix_hashes" in workload:
        columns["prefix_hashes"] = [  # a prefix is known by its first hash on
            (int(hashes[0]) + AFRESH * turn, *hashes[1:]) if turn and len(hashes) else hashes
            for hashes, turn in zip(workload["prefix_hashes"][again], rounds.tolist(), strict=True)
        ]
        columns["hash_block_tokens"] = workload["hash_block_tokens"][again]
    burst = Workload({"arrival_s": np.zeros(count), **columns}, name=workload.name)
    finish = np.sort(run(burst, system).finish_ps)
    first, last = count // 4, 3 * count // 4
    if finish[last] == finish[first]:  # all at the same instant, as alike as they are
        return float(count * PS / int(finish[-1]))
    return float((last - first) * PS / int(finish[last] - finish[first]))
