"""Systems from keywords, as tests are short with them."""

from __future__ import annotations

from typing import Any

from lengthwise.policy import RoutingPolicy, SchedulingPolicy
from lengthwise.protocols import TimingModel
from lengthwise.serving import Engine, Node, System


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
