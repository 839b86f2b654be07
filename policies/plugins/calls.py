"""A client's call as a router sees it: OpenAI's JSON or objects, or plain text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from lengthwise.chat import Message, asked, field, flat, messages
from lengthwise.policies.plugins.known import of_call, with_chat
from lengthwise.served_text import capped_text, served_text
from lengthwise.served_text import told as told_of

MOST = 2.0**53  # tokens: no client means more, and integers may be too large for a float
READ = (
    "model", "temperature", "top_p", "tools", "response_format", "user", "cache_salt", "session_id",
    "conversation_id", "litellm_session_id",
)  # fmt: skip
CHARACTERS_PER_TOKEN = 4.0  # where nothing better is known of a text
LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")


class Call(NamedTuple):
    """What a router knows of a call: its texts, and what the client says of the answer."""

    text: str  # all of it
    asked: str  # what a predictor reads of it
    told: float | None = None  # the answer's tokens, as the client predicts them
    limit: float = math.inf  # the most tokens that it lets the answer have
    known: Mapping[str, Any] = MappingProxyType({})  # more of it, as columns of ``Context``
    tokens: Sequence[int] | None = None  # of its prompt, where they are known


def call_of(*values: Any) -> Call:
    """A call from its arguments: strings, or OpenAI requests as dicts or objects.

    Of those it reads ``messages``, ``prompt`` (a text, or token ids), ``input`` (a text, texts or,
    with ``instructions``, the turns of OpenAI's responses), the limits of the answer, and
    ``predicted_tokens`` in ``vllm_xargs``. What has another shape is read as nothing: whether a
    call is a right one is for the model behind the router to say.
    """
    texts: list[str] = []
    ids: Sequence[int] | None = None
    chat: list[Message] = []
    told, limit = None, math.inf
    known: dict[str, Any] = {}
    for value in values:
        if isinstance(value, str):
            texts.append(value)
            continue
        said = field(value, "messages")
        chat += messages(said) if isinstance(said, list | tuple) else ()
        entered = field(value, "input")
        turns = _turns(entered)
        if turns and isinstance(before := field(value, "instructions"), str):
            chat.append(Message("system", before))
        chat += messages(turns)
        texts += filter(None, map(flat, (field(value, "prompt"), None if turns else entered)))
        ids = _ids(field(value, "prompt")) or ids
        length = _tokens(field(field(value, "vllm_xargs"), "predicted_tokens"))
        told = told if length is None else length
        sent, more = field(value, "vllm_xargs"), field(value, "metadata", "litellm_metadata")
        fields = {name: field(value, name) for name in READ}
        known |= of_call(
            {name: given for name, given in fields.items() if given is not None},
            {**as_dict(more), **as_dict(sent)},
            as_dict(field(value, "headers")) or as_dict(field(more, "headers")),
        )
        limit = min(limit, *(_tokens(field(value, name)) or math.inf for name in LIMITS))
    text = "\n".join(filter(None, (*(text for _, text in chat), *texts)))
    if math.isfinite(limit):
        known["max_tokens"] = limit
    known = with_chat(known, told_of(chat, 1 / CHARACTERS_PER_TOKEN))
    read = capped_text(asked(chat)) or "\n".join(map(served_text, texts))
    return Call(text, read, told, limit, known, ids)


def _turns(entered: Any) -> list[Any]:
    """The turns of a chat among the items of a response's ``input``."""
    items = entered if isinstance(entered, list | tuple) else ()
    return [one for one in items if isinstance(one, dict) and "role" in one and "content" in one]


def as_dict(value: Any) -> dict[str, Any]:
    """The value if it is a dict; empty for anything else."""
    return value if isinstance(value, dict) else {}


def _ids(prompt: Any) -> Sequence[int] | None:
    """A prompt that came as the ids of its tokens, alone or as the only one of a list."""
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], list):
        prompt = prompt[0]
    whole = isinstance(prompt, list) and prompt and all(type(one) is int for one in prompt)
    return prompt if whole else None


def _tokens(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and 0 < value <= MOST else None
