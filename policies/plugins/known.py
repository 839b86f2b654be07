"""What a plugin knows of a request beside its prompt, as columns of ``Context``.

One function says it for every engine and router (``known_of``); what differs is where each keeps
what the client sent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sized
from typing import Any

from lengthwise.context import COLUMNS, NAMES, PREVIOUS
from lengthwise.policies.plugins import client

NUMBERS = ("temperature", "top_p", "max_tokens")
# What clients call a name, beside their parameters or in a header; the first that is there counts.
# Whoever names no conversation may still be one user, or share one cache.
CALLED: Mapping[str, tuple[str, ...]] = {
    "session_id": (
        "session_id", "conversation_id", "x-session-id", "x-conversation-id",
        "litellm_session_id", "user", "cache_salt",
    ),
    "tenant": (
        "tenant", "x-tenant-id", "x-gateway-inference-fairness-id",
        "x-llm-d-inference-fairness-id",
    ),
    "task": ("task", "x-task"),
}  # fmt: skip
LONGEST = 200  # characters of a name


def known_of(
    *sent: Any,
    model: Any = None,
    numbers: Mapping[str, Any] | None = None,
    tools: bool | None = None,
    json_schema: bool | None = None,
) -> dict[str, Any]:
    """Columns of ``Context`` for one request; what is not known, or makes no sense, is left out.

    ``sent``: where a client's names may stand (its extra parameters, headers, its call), the most
    trusted first; ``numbers``: its sampling parameters.
    """
    found: dict[str, Any] = {}
    if isinstance(model, str) and model:
        found["model"] = client.text(model)
    places = [place for place in sent if isinstance(place, Mapping)]
    for column, names in CALLED.items():
        told = (_name(place.get(name)) for name in names for place in places)
        if (value := next(filter(None, told), None)) is not None:
            found[column] = value
    for name in NUMBERS:
        number = client.number((numbers or {}).get(name))
        if number is not None and number >= 0:
            found[name] = number
    for name, flag in (("tools", tools), ("json_schema", json_schema)):
        if flag is not None:
            found[name] = float(flag)
    return found


def of_sampling(parameters: Any, model: str | None, salt: str | None = None) -> dict[str, Any]:
    """From vLLM's ``SamplingParams``; names come from ``vllm_xargs``, else from ``cache_salt``.

    ``tools`` are in the prompt by then and nobody can tell them from it, unless the client says so
    in ``vllm_xargs``; a schema is seen.
    """
    sent = client.sent(parameters)
    tools = client.number(sent.get("tools"))
    schema = getattr(parameters, "structured_outputs", _UNSEEN)
    return known_of(
        sent, {"cache_salt": salt}, model=model,
        numbers={name: getattr(parameters, name, None) for name in NUMBERS},
        tools=None if tools is None else tools != 0,
        json_schema=None if schema is _UNSEEN else schema is not None,
    )  # fmt: skip


def of_call(
    call: Mapping[str, Any], sent: Mapping[str, Any], headers: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """From the fields of an OpenAI request, its ``vllm_xargs`` or metadata, and HTTP headers."""
    kind = call.get("response_format")
    lower = {n.lower(): value for n, value in (headers or {}).items() if isinstance(n, str)}
    tools = call.get("tools")
    return known_of(
        sent, lower, call, model=call.get("model"),
        numbers={name: call.get(name) for name in ("temperature", "top_p")},
        tools=isinstance(tools, Sized) and len(tools) > 0 if call else None,
        json_schema=isinstance(kind, dict) and kind.get("type") == "json_schema" if call else None,
    )  # fmt: skip


def with_chat(known: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of a request, and what its chat tells where nobody knows better.

    ``told``: from ``served_text.told``. Answers that were seen count before those that the chat
    holds, whose lengths are estimates.
    """
    seen = known.get("previous_answers", 0) > 0
    rest = {name: value for name, value in told.items() if not (seen and name in PREVIOUS)}
    return {**known, **rest}


def sound(known: Any) -> dict[str, Any]:
    """Of what somebody says to be known, the columns of ``Context`` that hold what they should."""
    if not isinstance(known, Mapping):
        return {}
    found = {}
    for name in COLUMNS:
        value = _name(known.get(name)) if name in NAMES else client.number(known.get(name))
        if value is not None:
            found[name] = value
    return found


def packed(known: dict[str, Any]) -> bytes:
    """As JSON for the predictor's process."""
    told = {k: v for k, v in known.items() if not isinstance(v, float) or math.isfinite(v)}
    return json.dumps(told).encode() if told else b""


def _name(value: Any) -> str | None:
    return (client.text(value) or "")[:LONGEST] or None


_UNSEEN = object()
