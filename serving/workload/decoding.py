"""Token ids to texts, with the tokenizer of the model that they were made for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lengthwise.errors import InputError


def decode(name: str, prompts: Iterable[Any], tokenizers: Iterable[Any]) -> list[str]:
    """The text of each prompt, special tokens left out; "" where there are no token ids.

    ``tokenizers`` names each prompt's: a folder or a name on the hub. Raises ``InputError`` for one
    that can't be loaded.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise InputError(
            f"{name}: its token ids need the package transformers: pip install 'lengthwise[bert]'"
        ) from None
    loaded: dict[str, Any] = {}
    texts = []
    for ids, tokenizer in zip(prompts, tokenizers, strict=True):
        if tokenizer not in loaded:
            try:
                loaded[tokenizer] = AutoTokenizer.from_pretrained(tokenizer)
            except (OSError, ValueError) as error:
                first = (str(error).splitlines() or [type(error).__name__])[0]
                raise InputError(
                    f"{name}: the tokenizer {tokenizer!r} of its token ids can't be loaded: {first}"
                ) from None
        texts.append("" if ids is None else loaded[tokenizer].decode(ids, skip_special_tokens=True))
    return texts
