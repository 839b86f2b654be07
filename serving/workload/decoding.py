"""Token ids to texts, with the tokenizer of the model that they were made for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lengthwise.errors import InputError
from lengthwise.served_text import PromptReader, Served


def decode(
    name: str, prompts: Iterable[Any], tokenizers: Iterable[Any]
) -> tuple[list[str], list[Served]]:
    """Each prompt's text without special tokens, and what predictors get of it.

    Both are empty where there are no token ids. ``tokenizers`` names each prompt's: a folder or a
    name on the hub. Raises ``InputError`` for one that can't be loaded.
    """
    readers: dict[str, PromptReader] = {}
    whole, served = [], []
    for ids, tokenizer in zip(prompts, tokenizers, strict=True):
        if tokenizer not in readers:
            readers[tokenizer] = _reader(name, tokenizer)
        whole.append("" if ids is None else readers[tokenizer].whole(ids))
        served.append(Served("", {}) if ids is None else readers[tokenizer].served(ids))
    return whole, served


def _reader(name: str, tokenizer: str) -> PromptReader:
    try:
        return PromptReader.load(tokenizer)
    except ImportError:
        raise InputError(
            f"{name}: its token ids need the package transformers: pip install 'lengthwise[bert]'"
        ) from None
    except (OSError, ValueError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{name}: the tokenizer {tokenizer!r} of its token ids can't be loaded: {first}"
        ) from None
