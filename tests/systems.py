"""Systems and workloads, as tests are short with them."""

from __future__ import annotations

from typing import Any

import numpy as np

from lengthwise.policy import RoutingPolicy, SchedulingPolicy
from lengthwise.protocols import TimingModel
from lengthwise.serving import Engine, Node, System
from lengthwise.workload import Workload


def alike(
    *,
    policy: SchedulingPolicy,
    routing: RoutingPolicy,
    engine: Engine,
    timing: TimingModel,
    replicas: int = 1,
    **given: Any,
) -> dict[str, Any]:
    """Arguments of a run on equal nodes: ``system``, and ``given`` as it is."""
    return {"system": System.replicated(Node(engine, timing, policy), replicas, routing), **given}


def burst(seed: int) -> Workload:
    """Six jobs of 1 token and six of 5, all at time 0: on one machine shortest first is optimal."""
    output = np.repeat([1, 5], 6)
    np.random.default_rng(seed).shuffle(output)
    return Workload(
        {"arrival_s": np.zeros(12), "prompt_tokens": np.full(12, 8), "output_tokens": output},
        name="burst",
    )
