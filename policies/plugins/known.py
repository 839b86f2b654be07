"""What a plugin knows of a request beside its prompt, as columns of ``Context``."""

from __future__ import annotations

import json
import math
from typing import Any

from lengthwise.policies.plugins import client

NUMBERS = ("temperature", "top_p", "max_tokens")
NAMES = ("session_id", "tenant", "task")  # that clients may send beside their parameters
LONGEST = 200  # characters of a name


def of_sampling(parameters: Any, model: str | None) -> dict[str, Any]:
    """From vLLM's ``SamplingParams``; names come from ``vllm_xargs``. The unknown is left out.

    ``tools`` are in the prompt by then and nobody can tell them from it; a schema is seen.
    """
    sent = getattr(parameters, "extra_args", None)
    found = _named(sent if isinstance(sent, dict) else {}, model)
    for name in NUMBERS:
        value = client.number(getattr(parameters, name, None))
        if value is not None and value >= 0:
            found[name] = value
    if hasattr(parameters, "structured_outputs"):
        found["json_schema"] = float(parameters.structured_outputs is not None)
    return found


def of_call(call: dict[str, Any], sent: dict[str, Any]) -> dict[str, Any]:
    """From the fields of an OpenAI request, and its ``vllm_xargs``."""
    model = call.get("model")
    found = _named(sent, model if isinstance(model, str) else None)
    for name in ("temperature", "top_p"):
        value = client.number(call.get(name))
        if value is not None and value >= 0:
            found[name] = value
    kind = call.get("response_format")
    if call:
        found["tools"] = float(bool(call.get("tools")))
        found["json_schema"] = float(isinstance(kind, dict) and kind.get("type") == "json_schema")
    return found


def packed(known: dict[str, Any]) -> bytes:
    """As JSON for the predictor's process."""
    sound = {k: v for k, v in known.items() if not isinstance(v, float) or math.isfinite(v)}
    return json.dumps(sound).encode() if sound else b""


def _named(sent: dict[str, Any], model: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {} if not model else {"model": model}
    for name in NAMES:
        value = sent.get(name)
        if isinstance(value, str | int) and str(value):
            found[name] = str(value)[:LONGEST]
    return found
