"""How long a model's answer was, as its ``usage`` says: at a router that sees answers go by."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from lengthwise.chat import field
from lengthwise.policies.plugins import client

DATA = "data:"  # that a line of a stream of events begins with


def answer_tokens(answer: Any) -> float | None:
    """Generated tokens of an answer, or of a part of one, that tells its usage; else None.

    OpenAI's JSON or objects, the text of an event stream, or a list of any of these, of which the
    last counts.
    """
    if isinstance(answer, list | tuple):
        return next(filter(None, map(answer_tokens, reversed(answer))), None)
    if isinstance(answer, bytes):
        answer = answer.decode("utf-8", "replace")
    if isinstance(answer, str):
        lines = (line.removeprefix(DATA) for line in reversed(answer.splitlines()))
        return next(filter(None, (_spelled(line) for line in lines if '"usage"' in line)), None)
    return client.length(field(field(answer, "usage"), "completion_tokens", "output_tokens"))


def hear(result: Any, ended: Callable[[float], None]) -> None:
    """Has ``ended`` hear the tokens of an answer of Ray Serve's (its ``ReplicaResult``).

    That is when its caller gets the answer, or the end of its stream, if that tells its usage.
    """
    heard: list[float] = []

    def part(answer: Any) -> Any:
        if (tokens := answer_tokens(answer)) is not None:
            heard[:] = [tokens]
        return answer

    def whole(answer: Any) -> Any:
        part(answer)
        end()
        return answer

    def end() -> None:
        if heard:
            ended(heard.pop())

    result.get = partial(_got, result.get, whole)
    result.get_async = partial(_awaited, result.get_async, whole)
    result.__next__ = partial(_next, result.__next__, part, end)
    result.__anext__ = partial(_anext, result.__anext__, part, end)


def _got(original: Any, whole: Any, *args: Any, **kwargs: Any) -> Any:
    return whole(original(*args, **kwargs))


async def _awaited(original: Any, whole: Any, *args: Any, **kwargs: Any) -> Any:
    return whole(await original(*args, **kwargs))


def _next(original: Any, part: Any, end: Any) -> Any:
    try:
        return part(original())
    except StopIteration:
        end()
        raise


async def _anext(original: Any, part: Any, end: Any) -> Any:
    try:
        return part(await original())
    except StopAsyncIteration:
        end()
        raise


def _spelled(line: str) -> float | None:
    try:
        return answer_tokens(json.loads(line))
    except (ValueError, RecursionError):
        return None
