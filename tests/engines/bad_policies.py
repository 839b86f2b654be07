"""Policies that fail, each in its own way, but for the prompts that a policy is tried on when it is
loaded: those that fail there are refused.
"""

import time
from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np

from lengthwise.contract import SEED, TRIED
from lengthwise.sampled import with_edges

AT_LOAD = with_edges(TRIED, seed=SEED)["prompt_tokens"]


def once_loaded(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @wraps(function)
    def score(prompt_tokens: Any) -> Any:
        return prompt_tokens if np.isin(prompt_tokens, AT_LOAD).all() else function(prompt_tokens)

    return score


def unlucky(prompt_tokens: Any) -> Any:
    if np.any(np.asarray(prompt_tokens) == 13):
        raise ValueError("thirteen")
    return prompt_tokens


def unlucky_by_clock(prompt_tokens: Any, now_s: Any) -> Any:
    return unlucky(prompt_tokens) + 0 * now_s


@once_loaded
def broken(prompt_tokens: Any) -> Any:
    return prompt_tokens / 0 if np.ndim(prompt_tokens) == 0 else prompt_tokens["no"]


@once_loaded
def not_a_number(prompt_tokens: Any) -> Any:
    return prompt_tokens * np.nan


@once_loaded
def text(prompt_tokens: Any) -> Any:
    return "first"


@once_loaded
def exits(prompt_tokens: Any) -> Any:
    raise SystemExit(3)


def slow(prompt_tokens: Any) -> Any:
    time.sleep(0.02)
    return prompt_tokens
