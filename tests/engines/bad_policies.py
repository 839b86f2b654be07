"""Policies that fail, each in its own way."""

import time
from typing import Any

import numpy as np


def unlucky(prompt_tokens: Any) -> Any:
    if np.any(np.asarray(prompt_tokens) == 13):
        raise ValueError("thirteen")
    return prompt_tokens


def unlucky_by_clock(prompt_tokens: Any, now_s: Any) -> Any:
    return unlucky(prompt_tokens) + 0 * now_s


def broken(prompt_tokens: Any) -> Any:
    return prompt_tokens / 0 if np.ndim(prompt_tokens) == 0 else prompt_tokens["no"]


def not_a_number(prompt_tokens: Any) -> Any:
    return prompt_tokens * np.nan


def text(prompt_tokens: Any) -> Any:
    return "first"


def exits(prompt_tokens: Any) -> Any:
    raise SystemExit(3)


def slow(prompt_tokens: Any) -> Any:
    time.sleep(0.02)
    return prompt_tokens
