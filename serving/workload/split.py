"""Train and test halves by a hash of the prompt's text, so that no prompt is in both."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError, UnknownNameError

Split = Literal["train", "test"]


def split_of(prompt: str, test_share: float = 0.5) -> Split:
    """The half that a prompt belongs to: always the same, on every machine and in every file."""
    digest = blake2b(prompt.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return "test" if int.from_bytes(digest) < test_share * 2.0**64 else "train"


def in_split(prompts: Iterable[str], split: str, test_share: float = 0.5) -> NDArray[np.bool_]:
    """Which prompts belong to ``split``, "train" or "test"; shape (n,)."""
    if split not in ("train", "test"):
        raise UnknownNameError("split", split, ("train", "test"))
    if not 0 < test_share < 1:
        raise InputError(f"test_share must be between 0 and 1, not {test_share!r}")
    return np.array([split_of(prompt, test_share) == split for prompt in prompts], dtype=bool)
