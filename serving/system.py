"""What serves, and what a run of it offers: nodes that may differ behind a router, and their stops.

Both engines offer the same resumable ``Run``. Environments, costs and judging see nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.picoseconds import LONGEST_S
from lengthwise.policy import RoutingPolicy, SchedulingPolicy
from lengthwise.protocols import TimingModel
from lengthwise.serving.events import Event, Fail, check_events, downtime_ps
from lengthwise.serving.options import Engine
from lengthwise.serving.records import PS, Records
from lengthwise.serving.transfer import KVTransfer, check_roles

Role = Literal["both", "prefill", "decode"]
ROLES: tuple[Role, ...] = ("both", "prefill", "decode")
MOST_SEATS = 2**21  # each takes about 200 bytes of a run's memory
HOLD = -1  # the answer to a route stop that leaves the request at the router for now


@dataclass(frozen=True)
class Node:
    """One replica: its engine's options, how long its iterations take, its policy and role.

    ``prefill`` computes prompts and hands them over, ``decode`` takes them over, ``both`` serves
    whole requests and takes over where there are prefill nodes (``serving.transfer``).
    """

    engine: Engine
    timing: TimingModel
    policy: SchedulingPolicy
    role: Role = "both"
    name: str = ""

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise UnknownNameError("node role", str(self.role), ROLES)


def check_seats(nodes: int, seats: int) -> None:
    """Raises ``InputError`` for more seats than a run can hold; before nodes are made of it."""
    if seats > MOST_SEATS:
        raise InputError(
            f"{nodes} nodes have {seats} seats (max_num_seqs) in all; a run takes up "
            f"to {MOST_SEATS}: fewer replicas, or fewer seats each"
        )


@dataclass(frozen=True)
class System:
    """Nodes behind a router.

    ``metrics_interval_s`` > 0 lets the router see the state of each node as it was at the last
    multiple of that interval, before anything else happened at that moment, as a router does that
    scrapes metrics; 0 is the present moment. What the router counts itself (requests and tokens
    that it sent and that came back) is never old.

    ``events`` are what happens to nodes in a run (``serving.events``). ``kv_transfer`` joins nodes
    of roles ``prefill`` and ``decode`` (``serving.transfer``).
    """

    nodes: tuple[Node, ...]
    routing: RoutingPolicy
    metrics_interval_s: float = 0.0
    events: tuple[Event, ...] = ()
    kv_transfer: KVTransfer | None = None

    def __post_init__(self) -> None:
        if not self.nodes:
            raise InputError("a system needs at least one node")
        check_seats(len(self.nodes), sum(node.engine.max_num_seqs for node in self.nodes))
        interval = self.metrics_interval_s
        number = isinstance(interval, int | float) and not isinstance(interval, bool)
        if not (number and 0 <= interval <= LONGEST_S):
            raise InputError(
                f"metrics_interval_s must be a number from 0 to {LONGEST_S:g}, not {interval!r}"
            )
        object.__setattr__(self, "events", tuple(self.events))
        check_events(self.events, self.names)
        check_roles(self)

    @classmethod
    def replicated(
        cls,
        node: Node,
        count: int,
        routing: RoutingPolicy,
        metrics_interval_s: float = 0.0,
        events: Sequence[Event] = (),
    ) -> System:
        """``count`` nodes of one kind."""
        if count < 1:
            raise InputError(f"replicas must be 1 or more, not {count}")
        check_seats(count, count * node.engine.max_num_seqs)
        return cls((node,) * count, routing, metrics_interval_s, tuple(events))

    @property
    def names(self) -> tuple[str, ...]:
        """What each node is called, "" where it has no name."""
        return tuple(node.name for node in self.nodes)

    @property
    def uniform(self) -> bool:
        """Whether all nodes are of one kind: the same engine, timing, policy and role."""
        first = self.nodes[0]
        return all(
            node is first
            or (
                (node.timing is first.timing or node.timing == first.timing)
                and node.engine == first.engine
                and node.policy == first.policy
                and node.role == first.role
            )
            for node in self.nodes
        )

    def downtime_s(self, until_ps: int) -> float | None:
        """How long nodes are down up to a moment, summed over nodes; None where none fails."""
        if not any(isinstance(event, Fail) for event in self.events):
            return None
        return downtime_ps(self.events, until_ps) / PS

    @property
    def interval_ps(self) -> int:
        """``metrics_interval_s`` in picoseconds."""
        return round(self.metrics_interval_s * PS)

    def label(self, index: int) -> str:
        """What messages call a node: its place, and its name or its timing's."""
        return f"node {index} ({self.nodes[index].name or self.nodes[index].timing.name})"


@dataclass(frozen=True)
class Stops:
    """Where a run is to stop before its end.

    ``horizon_ps``: at this moment, once all that happens up to and at it has happened.
    ``hold_ps`` (1 or more): how much later a request that was answered with ``HOLD`` is asked for
    again.
    """

    route: bool = False
    admit: bool = False
    preempt: bool = False
    horizon_ps: int | None = None
    hold_ps: int = 20 * 10**9


@dataclass(frozen=True)
class Stop:
    """Why a run stands still.

    "route": ``request`` has arrived; candidates are the nodes; answer with a node or ``HOLD``.
    ``closed`` are those of them that are known to be down, which are no answer.
    "preempt": ``node`` is about to schedule while requests wait; candidates are the running ones,
    in the batch's order; answer with the places of those that give way (in the policy's mode, or by
    recomputing), which may be none. "admit": ``node`` is about to schedule with a free seat and
    requests waiting; candidates are these in queue order; answer with an order of places (those
    named go first), which may be empty. One node's "preempt" comes before its "admit".

    "route" must be answered; where "preempt" or "admit" is not, the node's policy decides.
    "horizon" and "done" ask for nothing.
    """

    kind: Literal["done", "route", "admit", "preempt", "horizon"]
    node: int = -1
    request: int = -1
    candidates: int = 0
    closed: tuple[int, ...] = ()


@dataclass(frozen=True)
class Totals:
    """A run so far: what costs are functions of.

    Tokens count when the iteration that made them ends, preemptions and recomputed tokens when the
    iteration is scheduled.
    """

    now_ps: int
    in_system: int  # requests that have come and have not finished
    request_ps: int  # integral over time of the requests in the system
    waiting_ps: int  # of those of them that wait in a queue or at the router
    finished: int
    generated_tokens: int
    preemptions: int
    recomputed_tokens: int
    retries: int = 0  # requests that lost their node and went back to the router
    lost_tokens: int = 0  # of ``generated_tokens``, those that were lost with a node


class Run(Protocol):
    """A run under way; what both engines offer."""

    def advance(self, stops: Stops = ...) -> Stop:
        """Goes on to the next stop that was asked for, or to the end."""

    def features(self, names: Sequence[str], out: NDArray[Any]) -> int:
        """Writes features of the candidates of the stop that is due to ``out`` (rows, F), in place.

        Returns the number of rows written: of the candidates, at most ``len(out)``, the first ones.
        Raises ``InputError`` where nothing is due or a feature has no values in this run.
        """

    def answer(self, choice: int | Sequence[int] | NDArray[Any]) -> None:
        """Answers the stop that is due; see ``Stop``."""

    @property
    def totals(self) -> Totals:
        """The integrals up to now."""

    def records(self) -> Records:
        """One row a request, and its visits to nodes, once the run is done."""
