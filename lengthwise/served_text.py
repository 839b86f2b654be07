"""What a predictor reads of a prompt: the same in training, evaluation and every plugin.

Predictors are trained on bare questions, engines get them wrapped in a chat template.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lengthwise.chat import Message, asked
from lengthwise.chat_template import KNOWN, PLAIN, Template, of_tokenizer

ANSWER = re.compile(r"(ASSISTANT:|### Response:|Assistant:)\s*$")  # where one of PLAIN's begins


def messages_of(text: str, template: Template | None = None) -> list[Message] | None:
    """The messages of a rendered prompt; None if it is of no known template."""
    tried = KNOWN if template is None else (template, *KNOWN)
    if ANSWER.search(text):
        tried = (*tried, *PLAIN)
    for one in tried:
        found = one.messages(text)
        if found:
            return found
    return None


def served_text(text: str, template: Template | None = None) -> str:
    """What a predictor reads of a prompt: of a rendered chat what was asked, else all of it."""
    found = messages_of(text, template)
    return text if found is None else asked(found)


def asked_texts(columns: Mapping[str, Any]) -> list[str]:
    """What a predictor reads of requests, from the columns ``asked`` or else ``prompt``."""
    return list(columns["asked"]) if "asked" in columns else [*map(served_text, columns["prompt"])]


class PromptReader:
    """Token ids of prompts, as an engine gets them, to what a predictor reads."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._template = of_tokenizer(tokenizer)
        self._special = re.compile("|".join(map(re.escape, tokenizer.all_special_tokens)) or "(?!)")

    @classmethod
    def load(cls, name: str | os.PathLike[str], **options: Any) -> PromptReader:
        """With the tokenizer in a folder or on the hub; ``options`` are ``from_pretrained``'s."""
        from transformers import AutoTokenizer

        return cls(AutoTokenizer.from_pretrained(os.fspath(name), **options))

    def whole(self, token_ids: Sequence[int]) -> str:
        """The text of all tokens but the special ones."""
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))

    def asked(self, token_ids: Sequence[int]) -> str:
        """What a predictor reads: the chat template is recognised and left out."""
        text = str(self._tokenizer.decode(token_ids, skip_special_tokens=False))
        found = messages_of(text, self._template)
        if found is None:
            return self.whole(token_ids)
        return self._special.sub("", asked(found)).strip()
