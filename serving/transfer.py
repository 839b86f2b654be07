"""Prefill and decode on nodes of their own: how keys and values get from one to the other.

A prompt of ``min_prompt_tokens`` or more goes to a node of role ``prefill``, which computes it and
generates the first token, as in DistServe (Zhong et al., OSDI 2024, section 4.1). Then the router
chooses a node of role ``decode`` or ``both``, where the request waits as any other does; when it is
its turn there, its KV blocks and a seat are taken and the transfer begins: the decoding side pulls,
as in DistServe (section 4.3) and in vLLM's NixlConnector. The prefill node keeps its blocks until
the transfer has ended, so that a full decode node holds up the prefill nodes. Shorter prompts are
served whole on a node of role ``decode`` or ``both``, as llm-d's and Dynamo's conditional
disaggregation does.

Each node has one link, which carries one transfer at a time: a transfer starts when the links of
both of its ends are free, in the order in which transfers were asked for. It takes ``latency_s``,
which does not occupy the links, and the time of its whole blocks at ``bandwidth_gb_s``, which does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.features import get
from lengthwise.picoseconds import LAST_PS, LONGEST_S, MOST_PS, PS
from lengthwise.policy import RoutingPolicy
from lengthwise.reading import whole_number
from lengthwise.registry import loader
from lengthwise.serving.events import Fail
from lengthwise.serving.timing.kv_size import kv_bytes_per_token

if TYPE_CHECKING:
    from lengthwise.serving.system import Node, System
    from lengthwise.workload import Workload

MOST_BYTES = 2**40  # of keys and values, one token's


@dataclass(frozen=True)
class KVTransfer:
    """What carries keys and values between nodes, and which prompts take that way.

    ``bandwidth_gb_s`` is a node's link in 10^9 bytes/s (``inf`` takes no time), ``latency_s`` what
    each transfer takes beside. Prompts of fewer than ``min_prompt_tokens`` are not sent away.
    ``decode_routing`` chooses the node that decodes; None is the system's router.
    ``kv_bytes_per_token``: None takes it from the model that the nodes' timings were made for.
    """

    bandwidth_gb_s: float
    latency_s: float = 0.0
    min_prompt_tokens: int = 0
    decode_routing: RoutingPolicy | None = None
    kv_bytes_per_token: int | None = None

    def __post_init__(self) -> None:
        bandwidth, latency = self.bandwidth_gb_s, self.latency_s
        if not _is_number(bandwidth) or not bandwidth > 0:
            raise InputError(
                f"kv transfer: bandwidth_gb_s must be a number above 0, not {bandwidth!r}"
            )
        if not _is_number(latency) or not 0 <= latency <= LONGEST_S:
            raise InputError(
                f"kv transfer: latency_s must be a number from 0 to {LONGEST_S:g}, not {latency!r}"
            )
        whole_number(self.min_prompt_tokens, "kv transfer: min_prompt_tokens", 0, 2**40)
        if self.kv_bytes_per_token is not None:
            whole_number(self.kv_bytes_per_token, "kv transfer: kv_bytes_per_token", 1, MOST_BYTES)

    def to_dict(self) -> dict[str, Any]:
        """Its keys and values, as ``read_transfer`` takes them."""
        found = {key: getattr(self, key) for key in KEYS if key != "decode_router"}
        if self.decode_routing is not None:
            found["decode_router"] = self.decode_routing.name
        return {key: value for key, value in found.items() if value is not None}


KEYS = tuple(
    "decode_router" if field.name == "decode_routing" else field.name
    for field in fields(KVTransfer)
)


def read_transfer(given: Any) -> KVTransfer | None:
    """One that was made, or a mapping with its keys, but for ``decode_router``, a router's name.

    Raises ``InputError`` for what can't be read, ``UnknownNameError`` for unknown keys and routers.
    """
    if given is None or isinstance(given, KVTransfer):
        return given
    if not isinstance(given, Mapping):
        raise InputError(f"kv transfer: expected keys and values, not {given!r}"[:200])
    for key in given:
        if key not in KEYS:
            raise UnknownNameError("key of kv transfer", str(key), KEYS)
    if "bandwidth_gb_s" not in given:
        raise InputError("kv transfer: it needs bandwidth_gb_s, the speed of a node's link")
    named = dict(given)
    router = named.pop("decode_router", None)
    return KVTransfer(**named, decode_routing=None if router is None else loader("router")(router))


def check_roles(system: System) -> None:
    """Raises ``InputError`` unless somebody fills each role that is needed, and they are joined."""
    roles = {node.role for node in system.nodes}
    if roles == {"both"}:
        if system.kv_transfer is not None:
            raise InputError(
                "a kv transfer joins prefill and decode nodes, and every node's role is both"
            )
        return
    if "prefill" not in roles:
        raise InputError("no node has the role prefill: decode nodes need one that hands over")
    if roles == {"prefill"}:
        raise InputError("no node has the role decode or both: nobody could take over from prefill")
    if system.kv_transfer is None:
        raise InputError(
            "prefill and decode nodes need a link that carries KV from one to the other: give a "
            "kv_transfer beside the nodes, such as bandwidth_gb_s: 50"
        )
    for event in system.events:
        if isinstance(event, Fail):
            raise InputError(
                "failures of nodes can't be run together with roles prefill and decode yet; "
                "slow-downs can"
            )
    routers = [system.routing]
    if system.kv_transfer.decode_routing is not None:
        routers.append(system.kv_transfer.decode_routing)
    for router in routers:
        _check_reads(f"router {router.name!r}", router.score.features)
    for index, node in enumerate(system.nodes):
        _check_node(node, system.label(index))


def _check_node(node: Node, label: str) -> None:
    """What a node that hands over, or is handed to, can't have yet."""
    engine, policy = node.engine, node.policy
    for wrong, what in (
        (engine.enable_prefix_caching, "enable_prefix_caching"),
        (engine.async_scheduling, "async_scheduling"),
        (policy.preemption.mode != "none",
         f"policy {policy.name!r}, which preempts ({policy.preemption.mode}),"),
        (policy.admission.reserve > 0, "admission with reserve > 0"),
    ):  # fmt: skip
        if wrong:
            raise InputError(
                f"{label}: {what} can't be run together with roles prefill and decode yet"
            )
    _check_reads(f"{label}: policy {policy.name!r}", policy.score.features)


def _check_reads(reader: str, names: tuple[str, ...]) -> None:
    for name in names:
        if get(name).of == "tenant":
            raise InputError(
                f"{reader} reads {name}, which is not counted across roles prefill and decode yet"
            )


@dataclass(frozen=True)
class Transfers:
    """What the engines need of it, in integers; ``prefill`` and ``decode`` are places of nodes."""

    prefill: tuple[int, ...]
    decode: tuple[int, ...]  # of role both, too
    min_prompt: int
    latency_ps: int
    block_ps: tuple[int, ...]  # of each node's blocks
    block_bytes: tuple[int, ...]
    routing: RoutingPolicy  # to who decodes


def transfers_of(workload: Workload, system: System) -> Transfers | None:
    """None where all nodes are of role both; raises ``InputError`` for what can't be timed."""
    made = system.kv_transfer
    if made is None:
        return None
    places = range(len(system.nodes))
    size = made.kv_bytes_per_token or _kv_bytes(system)
    blocks = tuple(node.engine.block_size * size for node in system.nodes)
    speed = made.bandwidth_gb_s
    block_ps = tuple(0 if math.isinf(speed) else round(n * PS / (speed * 1e9)) for n in blocks)
    prefill = tuple(at for at in places if system.nodes[at].role == "prefill")
    longest = int(workload["prompt_tokens"].max())
    for at in prefill:
        took = block_ps[at] * -(-longest // system.nodes[at].engine.block_size)
        if took > MOST_PS:
            raise InputError(
                f"kv transfer: at {speed:g} GB/s a prompt of {longest} tokens takes {took / PS:g} "
                f"s; {MOST_PS / PS:.0f} s are the most"
            )
    return Transfers(
        prefill=prefill,
        decode=tuple(at for at in places if system.nodes[at].role != "prefill"),
        min_prompt=made.min_prompt_tokens, latency_ps=min(round(made.latency_s * PS), LAST_PS),
        block_ps=block_ps, block_bytes=blocks,
        routing=system.routing if made.decode_routing is None else made.decode_routing,
    )  # fmt: skip


def _kv_bytes(system: System) -> int:
    """Bytes of keys and values of a token of the model that all nodes serve."""
    found: dict[int, str] = {}
    for index, node in enumerate(system.nodes):
        size = kv_bytes_per_token(node.timing)
        if size is None:
            raise InputError(
                f"{system.label(index)}: timing {node.timing.name!r} doesn't say how large its "
                "model's KV is: give the kv transfer kv_bytes_per_token"
            )
        found.setdefault(size, system.label(index))
    if len(found) > 1:
        (first, one), (second, other), *_ = found.items()
        raise InputError(
            f"KV of {one} takes {first} bytes a token and that of {other} {second}: nodes that "
            "hand over must serve one model"
        )
    return next(iter(found))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
