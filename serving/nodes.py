"""From what a user writes to nodes: ``2xh200/llama-3.1-8b,roofline:l40s/llama-3.1-8b``, or a file.

Spelled, nodes are timings between commas, each after how many there are (``2x``; one without). A
``.yaml`` or ``.json`` file is a list of nodes with the keys ``count``, ``timing``, ``speed`` (a
factor: 0.5 takes twice as long), ``role``, ``name``, ``policy`` and any option of ``Engine``.
What it leaves out is the run's. Where nodes have the roles prefill and decode the list stands under
the key ``nodes``, and ``kv_transfer`` beside it (``serving.transfer``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.policy import SchedulingPolicy
from lengthwise.protocols import TimingModel
from lengthwise.registry import loader
from lengthwise.serving.listed import YAML, read_with
from lengthwise.serving.options import Engine
from lengthwise.serving.system import Node, Role, check_seats
from lengthwise.serving.timing import timing as load_timing
from lengthwise.serving.timing.speed import at_speed
from lengthwise.serving.transfer import KVTransfer, read_transfer

NodesLike = str | Path | Sequence[Node | Mapping[str, Any]] | Mapping[str, Any]
BESIDE = "kv_transfer"
OPTIONS = tuple(field.name for field in fields(Engine))
KEYS = ("count", "timing", "speed", "role", "name", "policy", *OPTIONS)


@dataclass(frozen=True)
class Kind:
    """Some nodes that are alike; ``policy`` None stands for the one that a run is told."""

    count: int
    engine: Engine
    timing: TimingModel
    policy: SchedulingPolicy | None = None
    role: Role = "both"
    name: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.count, int) or isinstance(self.count, bool) or self.count < 1:
            raise InputError(f"a node's count must be a whole number from 1, not {self.count!r}")
        check_seats(self.count, self.count * self.engine.max_num_seqs)


def nodes_of(kinds: Iterable[Kind], policy: SchedulingPolicy) -> tuple[Node, ...]:
    """All nodes, in order; those without a policy of their own take ``policy``."""
    found: list[Node] = []
    for kind in kinds:
        own = policy if kind.policy is None else kind.policy
        found += [Node(kind.engine, kind.timing, own, kind.role, kind.name)] * kind.count
    return tuple(found)


def read_nodes(given: NodesLike, engine: Engine, timing: str | TimingModel) -> tuple[Kind, ...]:
    """The nodes that were spelled, written to a file or made; ``engine`` and ``timing`` are the
    run's. Raises ``InputError`` for none and for what can't be read, ``UnknownNameError`` for
    unknown keys, roles, timings and policies.
    """
    loaded: dict[str, TimingModel] = {}  # nodes of one name share one model

    def model(name: str | TimingModel) -> TimingModel:
        if not isinstance(name, str):
            return name
        if name not in loaded:
            loaded[name] = load_timing(name)
        return loaded[name]

    where, rows, _ = _listed(given)
    if not rows:
        raise InputError(f"{where}: a system needs at least one node")
    kinds: list[Kind] = []
    for index, one in enumerate(rows):
        if isinstance(one, Node):
            kinds.append(Kind(1, one.engine, one.timing, one.policy, one.role, one.name))
            continue
        kinds.append(_kind(one, f"node {index} in {where}", engine, timing, model))
    return tuple(kinds)


def read_kv_transfer(given: NodesLike) -> KVTransfer | None:
    """The kv transfer that stands beside nodes, None where none does; errors as of
    ``transfer.read_transfer``."""
    where, _, beside = _listed(given)
    try:
        return read_transfer(beside.get(BESIDE))
    except UnknownNameError:
        raise
    except (InputError, TypeError) as error:
        raise InputError(f"{where}: {error}") from None


def _listed(given: NodesLike) -> tuple[str, list[Any], Mapping[str, Any]]:
    """What messages call the place of the nodes, the nodes, and what stands beside them."""
    if isinstance(given, str | Path):
        text = os.fspath(given)
        # a profile's file is a timing: as a node it is spelled with its count, 1xPROFILE.json
        if text.endswith(YAML) or (text.endswith(".json") and os.path.isfile(text)):
            return text, *read_with(Path(text), "nodes", BESIDE)
        return "nodes", [_spelled(item) for item in text.split(",") if item], {}
    if not isinstance(given, Mapping):
        return "nodes", list(given), {}
    for key in given:
        if key not in ("nodes", BESIDE):
            raise UnknownNameError("key of nodes", str(key), ("nodes", BESIDE))
    rows = given.get("nodes")
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        raise InputError(f"nodes: expected a list of nodes, not {rows!r}"[:200])
    return "nodes", list(rows), given


def _kind(
    row: object,
    where: str,
    engine: Engine,
    timing: str | TimingModel,
    model: Callable[[str | TimingModel], TimingModel],
) -> Kind:
    """The nodes that one entry describes."""
    if not isinstance(row, Mapping):
        raise InputError(f"{where}: expected the keys and values of a node, not {row!r}")
    for key in row:
        if key not in KEYS:
            raise UnknownNameError(f"key of {where}", str(key), KEYS)
    for key in ("timing", "policy", "name"):
        if not isinstance(row.get(key, ""), str):
            raise InputError(f"{where}: {key} must be a name, not {row[key]!r}")
    policy = loader("policy")(row["policy"]) if "policy" in row else None
    try:
        own = replace(engine, **{name: row[name] for name in OPTIONS if name in row})
        kind = Kind(
            row.get("count", 1), own,
            at_speed(model(row.get("timing", timing)), row.get("speed", 1)), policy,
            row.get("role", "both"), row.get("name", ""),
        )  # fmt: skip
        nodes_of((kind,), policy or loader("policy")("fcfs"))  # the role is told now
    except UnknownNameError:
        raise
    except (InputError, TypeError) as error:
        raise InputError(f"{where}: {error}") from None
    return kind


def _spelled(item: str) -> dict[str, Any]:
    """``2xTIMING``, or ``TIMING``."""
    found = re.fullmatch(r"(?:(\d+)x)?(.+)", item, re.DOTALL)  # a stray line break is told of
    assert found is not None
    return {"count": int(found[1] or 1), "timing": found[2]}
