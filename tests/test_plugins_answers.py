"""How long answers were, as they go by at a router."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from lengthwise.policies.plugins.answers import answer_tokens, hear

USAGE = {"usage": {"prompt_tokens": 3, "completion_tokens": 7, "total_tokens": 10}}
EVENTS = """data: {"choices": [{"text": "\\"usage\\""}]}

data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 7}}

data: [DONE]

"""


@pytest.mark.parametrize(
    ("answer", "tokens"),
    [
        (USAGE, 7),
        (SimpleNamespace(usage=SimpleNamespace(completion_tokens=7)), 7),
        ({"usage": {"input_tokens": 3, "output_tokens": 7}}, 7),
        (EVENTS, 7),
        (EVENTS.encode(), 7),
        ([EVENTS, "data: [DONE]\n\n"], 7),
        ([{"usage": {"completion_tokens": 6}}, USAGE, {"usage": None}], 7),
        ("a word", None),
        ('data: {"usage": {"completion_tokens"', None),
        ('{"usage": ' + "[" * 100_000, None),
        ({"usage": {"completion_tokens": "many"}}, None),
        ({"usage": {"completion_tokens": 10**400}}, None),
        (None, None),
    ],
)
def test_an_answer_tells_its_length_or_nothing(answer: Any, tokens: float | None) -> None:
    assert answer_tokens(answer) == tokens


class Result:
    """A result of Ray Serve's: it may be read in four ways."""

    def __init__(self, *parts: Any) -> None:
        self.parts: Iterator[Any] = iter(parts)

    def get(self, timeout_s: float | None) -> Any:
        return next(self.parts)

    async def get_async(self) -> Any:
        return next(self.parts)

    def __next__(self) -> Any:
        return next(self.parts)

    async def __anext__(self) -> Any:
        try:
            return next(self.parts)
        except StopIteration:
            raise StopAsyncIteration from None


async def listed(result: Any) -> list[Any]:
    async def parts() -> AsyncIterator[Any]:
        while True:
            try:
                yield await result.__anext__()  # as Ray Serve's handle does
            except StopAsyncIteration:
                return

    return [part async for part in parts()]


def test_each_way_to_read_an_answer_is_heard_once_and_changes_nothing() -> None:
    ended: list[float] = []
    early = {"usage": {"completion_tokens": 2}}  # some tell it with every part
    made = [Result(USAGE) for _ in range(2)] + [Result("a", early, USAGE) for _ in range(2)]
    for one in made:
        hear(one, ended.append)
    assert made[0].get(None) is USAGE
    assert asyncio.run(made[1].get_async()) is USAGE
    assert ended == [7, 7]
    assert [made[2].__next__() for _ in range(3)] == ["a", early, USAGE] and ended == [7, 7]
    with pytest.raises(StopIteration):
        made[2].__next__()
    assert asyncio.run(listed(made[3])) == ["a", early, USAGE]
    assert ended == [7] * 4


def test_an_answer_that_fails_or_tells_nothing_is_not_heard() -> None:
    ended: list[float] = []
    silent, failed = Result("a"), Result()
    for one in (silent, failed):
        hear(one, ended.append)
    assert silent.get(None) == "a"
    with pytest.raises(StopIteration):
        failed.get(None)
    assert ended == []
