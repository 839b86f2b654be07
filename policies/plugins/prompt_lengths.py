"""Lengths where calls come in: at a router, which sees texts and no tokens, or at a server."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from lengthwise.context import Context, given
from lengthwise.curves import RequestCurve
from lengthwise.policies.plugins.accuracy import UNKNOWN, Accuracy
from lengthwise.policies.plugins.calls import CHARACTERS_PER_TOKEN, Call
from lengthwise.policies.plugins.known import with_chat
from lengthwise.policies.plugins.metrics import Counters
from lengthwise.policies.plugins.saved import (
    abstained,
    count_abstained,
    curves_of,
    intervals,
    saved_predictor,
)
from lengthwise.policies.plugins.threads import Aside
from lengthwise.sessions import Sessions

Predict = Callable[[str], float]
Read = Callable[[Call], Call]
NOTHING: Mapping[str, Any] = MappingProxyType({})


class Expected(NamedTuple):
    """What is expected of a call, and what ``PromptLengths.ended`` needs to learn from it."""

    prompt: float  # tokens, estimated where they are not known
    answer: float  # tokens, as told, predicted or the default
    known: Mapping[str, Any] = NOTHING  # of the call, as columns of ``Context``
    source: str = "default"  # who predicted; nobody where the predictor abstained
    said: float = math.nan  # by the predictor, followed or not
    interval: tuple[float, float] = UNKNOWN
    curves: Mapping[str, RequestCurve] = NOTHING  # by feature, of what is still to come


class PromptLengths:
    """Tokens of prompts and of their answers.

    ``predict`` maps what was asked to its answer's tokens, or is the folder of a saved predictor.
    It runs in threads aside; a failure or a time-out means the default, is logged once and counted.
    A folder's predictor is told what ``read`` makes of the call, there too, and says the curves of
    the ``features`` that have some. Raises ``InputError`` for a folder that holds no predictor that
    reads prompts.
    """

    def __init__(
        self,
        predict: Predict | str | os.PathLike[str] | None,
        timeout_s: float,
        default_tokens: float,
        counters: Counters,
        *,
        read: Read = lambda call: call,
        features: Sequence[str] = (),
    ) -> None:
        self._aside: Aside[Expected] | None = None
        if predict is not None:
            work = _called(predict) if callable(predict) else _saved(predict, read, features)
            self._aside = Aside("router-predictor", work, counters)
        self._timeout_s = timeout_s
        self._default = default_tokens
        self._counters = counters
        self._accuracy = Accuracy(counters)
        self._sessions = Sessions()
        self._lock = threading.Lock()  # callers may end their calls in threads of their own

    async def of(self, call: Call) -> Expected:
        """Tokens of a call's prompt and of its answer: as told, or predicted.

        The answer has no more tokens than the client lets it have.
        """
        default = min(self._default, call.limit)
        nobody = Expected(_prompt(call), default, call.known)
        if call.told is not None:
            self._counters.add("predictions", "client")
            told = min(call.told, call.limit)
            return nobody._replace(answer=told, source="client", said=told)
        if self._aside is None:
            self._counters.add("predictions", "default")
            return nobody
        with self._lock:
            before = self._sessions.before(call.known)
        asked = call._replace(known=with_chat({**call.known, **before}, call.known))
        try:
            found = await self._aside.ask(asked, self._timeout_s)
            if not (math.isfinite(found.said) and found.said > 0):
                raise ValueError(f"it predicted {found.said!r} tokens")
        except Exception as error:
            self._counters.warn("predictor-error", f"the predictor failed: {error!r}")
            self._counters.add("fallbacks", "predictor-error")
            return nobody
        count_abstained(self._counters, int(found.source == "default"))
        if self._accuracy.drifted("predictor"):  # it goes on being watched
            self._counters.add("fallbacks", "drift")
            return found._replace(answer=default, curves=NOTHING)
        self._counters.add("predictions", "predictor")
        return found

    def ended(self, expected: Expected, generated: float) -> None:
        """An answer ended by itself after so many tokens."""
        with self._lock:
            self._sessions.finished(expected.known, generated)
            if expected.source != "default":
                self._accuracy.finished(
                    expected.source, expected.said, generated, expected.interval
                )


def _prompt(call: Call) -> float:
    """Its tokens, where they are not known by its characters."""
    return float(len(call.tokens)) if call.tokens else _estimate(call.text)


def _estimate(text: str) -> float:
    return max(len(text) / CHARACTERS_PER_TOKEN, 1.0)


def _expected(
    call: Call,
    tokens: float,
    interval: tuple[float, float] = UNKNOWN,
    source: str = "predictor",
    curves: Mapping[str, RequestCurve] = NOTHING,
) -> Expected:
    """What a predictor says of a call, none of it above the call's limit."""
    said, low, high = (min(value, call.limit) for value in (tokens, *interval))
    return Expected(_prompt(call), said, call.known, source, said, (low, high), curves)


def _called(told: Predict) -> Callable[[Call], Expected]:
    return lambda call: _expected(call, float(told(call.asked)))


def _saved(
    folder: str | os.PathLike[str], read: Read, features: Sequence[str]
) -> Callable[[Call], Expected]:
    predictor = saved_predictor(folder)

    def predict(call: Call) -> Expected:
        call = read(call)
        more: dict[str, Any] = {**given(predictor, Context.each([call.known]))}
        prompt = len(call.tokens) if call.tokens else _estimate(call.asked)
        found = predictor.predict([call.asked], prompt_tokens=[prompt], **more)
        low, high = intervals(found)[0].tolist()
        source = "default" if abstained(found).any() else "predictor"
        said = float(found.predicted_tokens[0])
        return _expected(call, said, (low, high), source, curves_of(found, features))

    return predict
