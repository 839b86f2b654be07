"""What serves in an evaluation: all of a system but the policy that is looked at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lengthwise.errors import InputError
from lengthwise.eval.hosts import Host, on_host
from lengthwise.policies import load_policy, load_router
from lengthwise.policy import RoutingPolicy, SchedulingPolicy
from lengthwise.protocols import TimingModel
from lengthwise.serving import Engine, System
from lengthwise.serving.events import Event, EventsLike, check_events, read_events
from lengthwise.serving.nodes import Kind, NodesLike, nodes_of, read_kv_transfer, read_nodes
from lengthwise.serving.options import DEFAULT_TIMING
from lengthwise.serving.timing import timing as load_timing
from lengthwise.serving.transfer import KVTransfer

PolicyLike = str | SchedulingPolicy | Callable[..., Any]
RouterLike = str | RoutingPolicy | Callable[..., Any]


@dataclass(frozen=True)
class Setting:
    """As the user spelled it, so that it can be sent to other processes.

    ``nodes`` describe nodes that may differ (``lengthwise.serving.nodes``), for which ``engine``
    and ``timing`` are defaults; without them there are ``replicas`` equal ones. ``failures`` is
    what happens to nodes (``lengthwise.serving.events``). On another ``host`` the times of all
    timings differ from what their names say.
    """

    engine: Engine = field(default_factory=Engine)
    timing: str | TimingModel = DEFAULT_TIMING
    replicas: int = 1
    router: RouterLike = "round-robin"
    nodes: NodesLike | None = None
    metrics_interval_s: float = 0.0
    failures: EventsLike | None = None
    host: Host | None = None

    def load(self) -> Loaded:
        """Everything that is named here, loaded; raises ``InputError`` for what can't be."""
        if self.nodes is not None:
            if self.replicas != 1:
                raise InputError(f"give nodes or replicas ({self.replicas}), not both")
            kinds = read_nodes(self.nodes, self.engine, self.timing)
        else:
            model = load_timing(self.timing) if isinstance(self.timing, str) else self.timing
            if not isinstance(self.replicas, int) or self.replicas < 1:
                raise InputError(
                    f"replicas must be a whole number of at least 1, not {self.replicas!r}"
                )
            kinds = (Kind(self.replicas, self.engine, model),)
        if self.host is not None:
            kinds = tuple(replace(k, timing=on_host(k.timing, self.host)) for k in kinds)
        events = read_events(self.failures)
        check_events(events, [kind.name for kind in kinds for _ in range(kind.count)])
        transfer = None if self.nodes is None else read_kv_transfer(self.nodes)
        routing = load_router(self.router)
        found = Loaded(kinds, routing, self.metrics_interval_s, events, transfer)
        found.system("fcfs")  # roles that don't fit are told now
        return found


@dataclass(frozen=True)
class Loaded:
    """A setting with all that it names."""

    kinds: tuple[Kind, ...]
    routing: RoutingPolicy
    metrics_interval_s: float
    events: tuple[Event, ...] = ()
    kv_transfer: KVTransfer | None = None

    @property
    def alike(self) -> bool:
        """Whether all nodes are as fast and as large as each other, and serve whole requests."""
        if self.kv_transfer is not None:
            return False
        first = self.kinds[0]
        return all((k.engine, k.timing) == (first.engine, first.timing) for k in self.kinds)

    def system(self, policy: PolicyLike) -> System:
        """The system in which the nodes that have no policy of their own follow ``policy``."""
        nodes = nodes_of(self.kinds, load_policy(policy))
        return System(nodes, self.routing, self.metrics_interval_s, self.events, self.kv_transfer)

    def config(self) -> dict[str, Any]:
        """What a result's config says of it."""
        count = sum(kind.count for kind in self.kinds)
        first = self.kinds[0]
        said: dict[str, Any] = {
            "router": self.routing.name,
            "replicas": count,
            "engine": asdict(first.engine),
            "timing": first.timing.name,
        }
        if len(self.kinds) > 1:
            said["nodes"] = [_said(kind) for kind in self.kinds]
            said["timing"] = " + ".join(f"{kind.count} x {kind.timing.name}" for kind in self.kinds)
            del said["engine"]
        off = [e for kind in self.kinds if (e := getattr(kind.timing, "error", None)) is not None]
        if off:  # of the mean latencies by an estimate, as a share
            said["timing_error"] = {"mean": off[0].mean, "worst": off[0].worst}
        if self.metrics_interval_s:
            said["metrics_interval_s"] = self.metrics_interval_s
        if self.kv_transfer is not None:
            said["kv_transfer"] = self.kv_transfer.to_dict()
        if self.events:
            said["failures"] = [{"kind": event.kind, **asdict(event)} for event in self.events]
        return said


def _said(kind: Kind) -> dict[str, Any]:
    own = {} if kind.policy is None else {"policy": kind.policy.name}
    named = {"name": kind.name} if kind.name else {}
    return {
        "count": kind.count, **named, "role": kind.role, "timing": kind.timing.name, **own,
        "engine": asdict(kind.engine),
    }  # fmt: skip
