"""Spoiling what was right: bytes, values of JSON, and texts; all drawn from one ``Random``.

``random.Random`` drives the long runs, hypothesis' own (``st.randoms``) the test command's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

ODD = (
    None, True, False, 0, 1, -1, 2, 16, 1000, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 10**19,
    int("9" * 400), 0.5, -0.0, 1e-320, 1e19, 1e308, -1e308, math.nan, math.inf, -math.inf,
    "", " ", "nan", "None", "x", "1", "-1", "1e19", "\x00", "\ud83d", "ß" * 70, "a" * 5000, "../x",
    "/etc/passwd", "oracle", "fcfs", [], {}, [1], [[]], [None, "a"], {"a": 1}, [0] * 300,
    {"role": "user", "content": 5}, [[[[[[[["deep"]]]]]]]], b"bytes".hex(),
)  # fmt: skip
WORDS = (
    b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\n", b"\r\n", b",", b'"', b"'", b"{", b"}", b"[",
    b"]", b":", b"=", b"+", b"-", b"1", b"0", b"9" * 25, b"1e400", b"NaN", b"Infinity", b"null",
    b"true", b"\\u0000", b"\\ud800", b"[" * 400, b'{"a":' * 300, b"\x1f\x8b", b"PAR1", b"%", b"//",
)  # fmt: skip
LETTERS = "abefnoqrtux0123456789.:=,+-/@ \t\n_%$~é世\x00"


def spoiled(data: bytes, rng: Random) -> bytes:
    """``data`` with a few bytes flipped, cut, doubled, swapped, or replaced by awkward words."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 12))):
        size = len(out)
        at = rng.randrange(size + 1)
        end = min(size, at + rng.choice((1, 2, 4, 30, 300)))
        how = rng.randrange(8)
        if how == 0 and size:
            out[at - 1] ^= 1 << rng.randrange(8)
        elif how == 1 and size:
            out[at - 1] = rng.randrange(256)
        elif how == 2:
            del out[at:end]
        elif how == 3:
            out[at:at] = out[at:end] * rng.choice((1, 1, 3, 50))
        elif how == 4:
            out[at:at] = rng.choice(WORDS)
        elif how == 5:
            out[at:end] = rng.choice(WORDS)
        elif how == 6:
            del out[at:]
        else:
            other = rng.randrange(size + 1)
            out[at:end] = out[other : other + (end - at)]
    return bytes(out)


def bent(value: Any, rng: Random) -> Any:
    """A copy of a JSON value in which a few places hold something else, or are gone."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        value = _bend(value, rng)
    return value


def _bend(value: Any, rng: Random) -> Any:
    if not isinstance(value, dict | list) or not value or rng.random() < 0.03:
        return _other(value, rng)
    key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
    if isinstance(value[key], dict | list) and value[key] and rng.random() < 0.8:
        value[key] = _bend(value[key], rng)
        return value
    how = rng.randrange(6)
    if how == 0:
        del value[key]
    elif how == 1 and isinstance(value, list):
        value.insert(key, value[rng.randrange(len(value))])
    elif how == 1:
        value[f"{key}_"] = value.pop(key)
    elif how == 2:
        other = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        value[key], value[other] = value[other], value[key]
    else:
        value[key] = _other(value[key], rng)
    return value


def _other(value: Any, rng: Random) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    how = rng.randrange(4)
    if number and how == 0 and abs(value) < 1e300:
        return value * rng.choice((-1, 0, 10, 1e6, 1e-6, 1 / 3))
    if isinstance(value, str) and how == 0:
        return worded(value, rng)
    if how == 1:
        return str(value)[:200]
    return copy.deepcopy(rng.choice(ODD))


def worded(text: str, rng: Random) -> str:
    """``text`` with a few characters changed, or parts cut, doubled or replaced."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(text) + 1)
        end = min(len(text), at + rng.choice((1, 1, 2, 6)))
        how = rng.randrange(6)
        if how == 0:
            text = text[:at] + rng.choice(LETTERS) + text[end:]
        elif how == 1:
            text = text[:at] + text[end:]
        elif how == 2:
            text = text[:at] + text[at:end] * 3 + text[end:]
        elif how == 3:
            text = text[:at] + str(rng.choice(ODD))[:30] + text[end:]
        elif how == 4:
            text = text[:at]
        else:
            text = text[:at] + rng.choice((":", "=", ",", "+", "x", "/", "@")) + text[at:]
    return text


def one_of(rng: Random, *makers: Callable[[Random], Any]) -> Any:
    """What one of some makers makes."""
    return rng.choice(makers)(rng)


def some(rng: Random, values: Sequence[Any], most: int = 3) -> list[Any]:
    """Up to ``most`` of some values, in any order, perhaps twice."""
    return [rng.choice(values) for _ in range(rng.randrange(most + 1))]
