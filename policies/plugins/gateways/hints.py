"""Hints that engines take with a request, put into its JSON where its client left them out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.policies.load import load_policy
from lengthwise.policies.plugins import client
from lengthwise.policies.plugins.calls import Call, call_of
from lengthwise.policies.plugins.priority import priority_for
from lengthwise.policies.plugins.prompt_lengths import Expected
from lengthwise.prediction import CURVES

Path = tuple[str, ...]  # of names, from the request inwards
NAMES = ("session_id", "tenant", "task")  # which may have come as headers, that no engine hands on


class Places(NamedTuple):
    """Where an engine looks for what."""

    priority: Path
    tokens: Path  # the answer's, as somebody predicts them
    names: Path = ()  # the object that ``NAMES`` go to, if any reads them
    lowest_first: bool = False  # of priorities
    needs: str = ""  # what its server must be started with


PLACES: Mapping[str, Places] = {
    # vLLM's ChatCompletionRequest, CompletionRequest and ResponsesRequest
    "vllm": Places(
        ("priority",), ("vllm_xargs", "predicted_tokens"), ("vllm_xargs",), lowest_first=True,
        needs="vLLM orders by priority under --scheduling-policy priority, by predicted_tokens "
        "with lengthwise's scheduler class; without either it accepts both and ignores them",
    ),
    # SGLang's classes of the same names
    "sglang": Places(
        ("priority",), ("custom_params", "predicted_tokens"), ("custom_params",),
        needs="SGLang orders by priority under --enable-priority-scheduling, by predicted_tokens "
        "with lengthwise's plugin; without either it accepts both and ignores them",
    ),
    # Dynamo's NvExt: 32-bit numbers, the highest priority first whatever its backend has
    "dynamo": Places(
        ("nvext", "agent_hints", "priority"), ("nvext", "agent_hints", "osl"),
        needs="Dynamo's router uses osl under --router-track-output-blocks, and priority where "
        "requests queue or the backend schedules by it",
    ),
}  # fmt: skip


class Hints:
    """What one kind of engine is told of requests; ``policy`` makes the priority.

    ``per_unit`` are steps of the priority a unit of the policy's score, ``lowest_first`` is for an
    SGLang with ``--schedule-low-priority-values-first``. Raises ``InputError`` for an engine that
    is not known, and for a policy whose score can't be known once and for all when a request
    arrives.
    """

    def __init__(
        self,
        fill: str = "vllm",
        policy: str = "sjf",
        *,
        per_unit: float = 1.0,
        lowest_first: bool = False,
    ) -> None:
        if fill not in PLACES:
            raise UnknownNameError("engine to fill hints of", fill, PLACES)
        if lowest_first and fill != "sglang":
            raise InputError(
                "lowest first is a choice in SGLang alone (--schedule-low-priority-values-first)"
            )
        self.places = PLACES[fill]
        self._lowest_first = self.places.lowest_first or lowest_first
        self._per_unit = per_unit
        self._policy = load_policy(policy)
        beside = [
            part
            for part, acts in (
                ("+preempt", "+preempt" in policy),
                ("+admit", bool(self._policy.admission.reserve)),
                ("+guard", self._policy.acting_guard is not None),
            )
            if acts
        ]
        if beside:
            raise InputError(f"policy {policy!r}: a priority is an order alone, no {beside[0]}")
        self.features: Sequence[str] = self._policy.score.features
        self._known = [
            name
            for name in ("prompt_tokens", "arrival_s", "predicted_tokens")
            if name in self.features
            or (name == "predicted_tokens" and not set(CURVES).isdisjoint(self.features))
        ]
        self.priority(Expected(1.0, 1.0), 0.0)

    def read(self, body: bytes, headers: Mapping[str, str]) -> tuple[dict[str, Any], Call] | None:
        """A request as JSON, and as a predictor reads it; None for what has another shape."""
        try:
            if not json.detect_encoding(body).startswith("utf-8"):
                return None  # what is added is UTF-8
            said = json.loads(body)
        except (ValueError, RecursionError):
            return None
        if not isinstance(said, dict):
            return None
        try:
            call = call_of({**said, "headers": dict(headers)})
        except Exception:  # of a shape that nobody thought of
            return None
        told = client.length(_at(said, self.places.tokens))
        return said, call if told is None else call._replace(told=told)

    def priority(self, expected: Expected, arrival_s: float) -> int:
        """What the engine is to order a request by; ``arrival_s`` by any clock that stands still.

        Raises ``InputError`` where the policy reads something else.
        """
        values = {
            "prompt_tokens": expected.prompt, "predicted_tokens": expected.answer,
            "arrival_s": arrival_s,
        }  # fmt: skip
        curves = {name: curve.at(0) for name, curve in expected.curves.items()}
        return priority_for(
            self._policy, lowest_first=self._lowest_first, per_unit=self._per_unit,
            **{name: values[name] for name in self._known}, **curves,
        )  # fmt: skip

    def wanted(self, call: Call, expected: Expected, arrival_s: float) -> list[tuple[Path, Any]]:
        """What the engine is to be told of a call, each with its place."""
        places = self.places
        found: list[tuple[Path, Any]] = [
            (places.priority, self.priority(expected, arrival_s)),
            (places.tokens, max(round(expected.answer), 1)),
        ]
        if places.names:
            found += [((*places.names, n), call.known[n]) for n in NAMES if n in call.known]
        return found


def filled(
    body: bytes, said: Mapping[str, Any], wanted: Iterable[tuple[Path, Any]]
) -> tuple[bytes, int]:
    """A body with what it lacks of ``wanted``, and how much that is.

    ``said``: the body's JSON. What its client said stays, byte for byte where none of the objects
    that something is added to was there. Raises ``ValueError`` where it can't be written anew.
    """
    made, new, count = dict(said), {}, 0
    for path, value in wanted:
        if _add(made, path, value):
            count += 1
            new[path[0]] = made[path[0]]
    if not count:
        return body, 0
    if any(name in said for name in new):
        return json.dumps(made, allow_nan=False).encode(), count
    end = body.rindex(b"}")
    added = json.dumps(new).encode()[1:-1]
    return body[:end] + (b"," if said else b"") + added + body[end:], count


def _at(said: Any, path: Path) -> Any:
    for name in path:
        said = said.get(name) if isinstance(said, Mapping) else None
    return said


def _add(made: dict[str, Any], path: Path, value: Any) -> bool:
    """Whether there was room for it: nobody said it yet, and no other kind of value is there."""
    *outer, last = path
    at = made
    for name in outer:
        inner = at.get(name)
        if inner is not None and not isinstance(inner, dict):
            return False
        at[name] = at = dict(inner or {})
    if last in at:
        return False
    at[last] = value
    return True
