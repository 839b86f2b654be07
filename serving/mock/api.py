"""OpenAI's completions and chats as vLLM speaks them: what comes in, and what goes out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lengthwise.chat import flat
from lengthwise.serving.mock.text import Prompt

COMPLETION_TOKENS = 16  # where a completion's client names no limit, as in OpenAI's API
OUTPUT_HEADER = "x-output-tokens"  # how long an answer is to be
MOST = 2**40
TYPES = {400: "BadRequestError", 404: "NotFoundError", 503: "ServiceUnavailableError"}


class Refused(Exception):
    """A request that can't be answered: an HTTP status, and a message for the client."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    @property
    def body(self) -> bytes:
        """The message in the shape in which vLLM sends it."""
        said = {"message": str(self), "type": TYPES[self.status], "code": self.status}
        return json.dumps({"error": said}).encode()


@dataclass(frozen=True)
class Call:
    """A request as it was understood; what the client left open is None."""

    chat: bool
    prompt: Prompt
    limit: int | None  # max_tokens
    least: int  # min_tokens
    told: int | None  # how long the answer is to be
    ignore_eos: bool
    stream: bool
    usage: bool  # whether a stream ends with it
    priority: int
    due_in_s: float  # from its arrival; infinite where nobody said
    text: str  # of the prompt, as a predictor reads it: a chat's messages, or its text
    messages: Any  # of a chat, as they came


def call_of(body: bytes, headers: Mapping[str, str], model: str, *, chat: bool) -> Call:
    """Reads a request; raises ``Refused`` for one that vLLM would refuse, or that has no fake."""
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "the body is no JSON") from None
    if not isinstance(given, dict):
        raise Refused(400, "the body is no JSON object")
    asked = given.get("model", model)
    if asked != model:
        raise Refused(404, f"The model `{asked}` does not exist.")
    for name in ("n", "best_of"):
        if given.get(name, 1) not in (1, None):
            raise Refused(400, f"{name} above 1: this server gives one answer")
    text, prompt = _chat(given) if chat else _prompt(given)
    extra = given.get("vllm_xargs")
    sent = extra if isinstance(extra, dict) else {}
    told = sent.get("output_tokens", headers.get(OUTPUT_HEADER))
    limit = _whole(given, "max_completion_tokens") if chat else None
    limit = _whole(given, "max_tokens") if limit is None else limit
    options = given.get("stream_options")
    due = sent.get("deadline_s", math.inf)
    if isinstance(due, bool) or not isinstance(due, int | float) or not abs(due) < math.inf:
        due = math.inf
    return Call(
        chat=chat, prompt=prompt, text=text, messages=given.get("messages"),
        limit=COMPLETION_TOKENS if limit is None and not chat else limit,
        least=_whole(given, "min_tokens", least=0) or 0,
        told=None if told is None else _told(told),
        ignore_eos=given.get("ignore_eos") is True, stream=given.get("stream") is True,
        usage=isinstance(options, dict) and options.get("include_usage") is True,
        priority=_whole(given, "priority", least=-MOST) or 0, due_in_s=float(due),
    )  # fmt: skip


def _chat(given: Mapping[str, Any]) -> tuple[str, Prompt]:
    said = given.get("messages")
    if not isinstance(said, list) or not said or not all(isinstance(one, dict) for one in said):
        raise Refused(400, "messages must be a list of objects, at least one")
    turns = [f"<|{one.get('role')}|>{flat(one.get('content'))}" for one in said]
    text = "".join((*turns, "<|assistant|>"))
    return text, Prompt.of_text(text)


def _prompt(given: Mapping[str, Any]) -> tuple[str, Prompt]:
    said = given.get("prompt")
    if isinstance(said, list) and len(said) == 1 and isinstance(said[0], str | list):
        said = said[0]
    if isinstance(said, str):
        return said, Prompt.of_text(said)
    ids = isinstance(said, list) and all(
        isinstance(id, int) and not isinstance(id, bool) and 0 <= id < 2**63 for id in said
    )
    if not ids or not said:
        raise Refused(400, "prompt must be one text, or one list of token ids")
    return "", Prompt.of_ids(said)


def _whole(given: Mapping[str, Any], name: str, least: int = 1) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MOST:
        raise Refused(400, f"{name} must be a whole number of at least {least}")
    return value


def _told(value: Any) -> int:
    try:
        told = int(value)
    except (TypeError, ValueError, OverflowError):
        told = 0
    if not 1 <= told <= MOST:
        raise Refused(400, "output_tokens must be a whole number of at least 1")
    return told


@dataclass(frozen=True)
class Reply:
    """What of an answer is the same in all of its chunks."""

    id: str
    model: str
    created: int
    chat: bool

    def whole(self, text: str, reason: str, usage: Mapping[str, int]) -> bytes:
        """An answer that is not streamed."""
        said: dict[str, Any] = (
            {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        )
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": reason}
        return json.dumps({**self._head(), "choices": [choice], "usage": usage}).encode()

    def opening(self) -> bytes:
        """The first chunk of a streamed chat, which names the role; empty for a completion."""
        if not self.chat:
            return b""
        return self._chunk({"delta": {"role": "assistant", "content": ""}}, None)

    def pieces(self) -> tuple[bytes, bytes]:
        """What stands before and after a token's text in its chunk."""
        said: dict[str, Any] = {"delta": {"content": "\0"}} if self.chat else {"text": "\0"}
        before, _, after = self._chunk(said, None).partition(b"\\u0000")
        return before, after

    def last(self, text: str, reason: str) -> bytes:
        """The chunk of the last token."""
        return self._chunk({"delta": {"content": text}} if self.chat else {"text": text}, reason)

    def usage(self, usage: Mapping[str, int]) -> bytes:
        """The chunk after the last one, where usage was asked for."""
        return _event({**self._head(stream=True), "choices": [], "usage": usage})

    def _head(self, stream: bool = False) -> dict[str, Any]:
        kind = "text_completion"
        if self.chat:
            kind = "chat.completion.chunk" if stream else "chat.completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(self, said: Mapping[str, Any], reason: str | None) -> bytes:
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": reason}
        return _event({**self._head(stream=True), "choices": [choice]})


DONE = b"data: [DONE]\n\n"


def _event(value: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"
