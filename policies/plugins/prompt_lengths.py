"""Lengths at a router, which sees a prompt's text and no tokens."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable
from typing import Any

from lengthwise.context import Context, given
from lengthwise.policies.plugins.calls import Call
from lengthwise.policies.plugins.metrics import Counters
from lengthwise.policies.plugins.saved import abstained, count_abstained, saved_predictor

CHARACTERS_PER_TOKEN = 4.0  # where nothing better is known of a prompt

Predict = Callable[[str], float]


class PromptLengths:
    """Tokens of prompts and of their answers.

    ``predict`` maps what was asked to its answer's tokens, or is the folder of a saved predictor.
    It runs in a thread; a failure or a time-out means the default, is logged once and counted.
    Raises ``InputError`` for a folder that holds no predictor that reads prompts.
    """

    def __init__(
        self,
        predict: Predict | str | os.PathLike[str] | None,
        timeout_s: float,
        default_tokens: float,
        counters: Counters,
    ) -> None:
        self._predict: Callable[[Call], float] | None
        if predict is None:
            self._predict = None
        elif callable(predict):
            told = predict
            self._predict = lambda call: told(call.asked)
        else:
            self._predict = _saved(predict, counters)
        self._timeout_s = timeout_s
        self._default = default_tokens
        self._counters = counters

    async def of(self, call: Call) -> tuple[float, float]:
        """Tokens of a call's prompt, estimated, and of its answer: as told, or predicted.

        The answer has no more tokens than the client lets it have.
        """
        return _estimate(call.text), min(await self._answer(call), call.limit)

    async def _answer(self, call: Call) -> float:
        if call.told is not None:
            self._counters.add("predictions", "client")
            return call.told
        if self._predict is None:
            self._counters.add("predictions", "default")
            return self._default
        try:
            predicted = float(
                await asyncio.wait_for(asyncio.to_thread(self._predict, call), self._timeout_s)
            )
            if not (math.isfinite(predicted) and predicted > 0):
                raise ValueError(f"it predicted {predicted!r} tokens")
        except Exception as error:
            self._counters.warn("predictor-error", f"the predictor failed: {error!r}")
            self._counters.add("fallbacks", "predictor-error")
            return self._default
        self._counters.add("predictions", "predictor")
        return predicted


def _estimate(text: str) -> float:
    return max(len(text) / CHARACTERS_PER_TOKEN, 1.0)


def _saved(folder: str | os.PathLike[str], counters: Counters) -> Callable[[Call], float]:
    predictor = saved_predictor(folder)

    def predict(call: Call) -> float:
        more: dict[str, Any] = {**given(predictor, Context.each([call.known]))}
        found = predictor.predict([call.asked], prompt_tokens=[_estimate(call.asked)], **more)
        count_abstained(counters, int(abstained(found).sum()))
        return float(found.predicted_tokens[0])

    return predict
