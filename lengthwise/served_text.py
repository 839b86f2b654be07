"""What a predictor reads of a prompt: the same in training, evaluation and every plugin.

Predictors are trained on bare questions, engines get them wrapped in a chat template.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lengthwise.chat import Message, asked, system_hash
from lengthwise.chat_template import KNOWN, PLAIN, Template, of_tokenizer
from lengthwise.sessions import Answers

# Of a long text the beginning and the end are read, where what is asked for mostly stands. The cap
# is here, so that training and every plugin agree, and so that a prompt of megabytes costs no more.
HEAD, TAIL = 8_000, 4_000  # characters
# what every template of KNOWN has some of: a look for these is all that other texts cost
MARKS = ("<|", "[INST]", "[SYSTEM_PROMPT]", "<start_of_turn>", "<｜")
LAST = 100  # characters, in which the mark stands at which an answer begins
ANSWER = re.compile(r"(ASSISTANT:|### Response:|Assistant:)\s*$")  # where one of PLAIN's begins


class Served(NamedTuple):
    """What predictors get of a prompt: what was asked, and what its chat tells beside that."""

    text: str
    told: Mapping[str, Any]  # columns of ``Context``


def messages_of(text: str, template: Template | None = None) -> list[Message] | None:
    """The messages of a rendered prompt; None if it is of no known template."""
    tried = KNOWN if any(mark in text for mark in MARKS) else ()
    tried = tried if template is None else (template, *tried)
    if ANSWER.search(text[-LAST:]):
        tried = (*tried, *PLAIN)
    for one in tried:
        found = one.messages(text)
        if found:
            return found
    return None


def served_text(text: str, template: Template | None = None) -> str:
    """What a predictor reads of a prompt: of a rendered chat what was asked, else all of it."""
    found = messages_of(text, template)
    return capped_text(text if found is None else asked(found))


def told(chat: Sequence[Message], tokens_per_character: float) -> dict[str, Any]:
    """What a chat tells beside what was asked last, as columns of ``Context``.

    These are a hash of its system prompt, and how long its earlier answers were. What is not there
    is left out.
    """
    found: dict[str, Any] = {}
    if (hashed := system_hash(chat)) is not None:
        found["system_hash"] = hashed
    answers = Answers()
    for role, text in chat:
        if role == "assistant" and text:
            answers = answers.then(max(len(text) * tokens_per_character, 1.0))
    return found | (answers.row() if answers.count else {})


def capped_text(text: str) -> str:
    """The text, of a long one the first ``HEAD`` and the last ``TAIL`` characters."""
    return text if len(text) <= HEAD + TAIL else f"{text[:HEAD]}\n{text[-TAIL + 1 :]}"


def asked_texts(columns: Mapping[str, Any]) -> list[str]:
    """What a predictor reads of requests, from the columns ``asked`` or else ``prompt``."""
    if "asked" in columns:
        return [*map(capped_text, columns["asked"])]
    return [*map(served_text, columns["prompt"])]


class PromptReader:
    """Token ids of prompts, as an engine gets them, to what a predictor reads."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._template = of_tokenizer(tokenizer)
        self._special = re.compile("|".join(map(re.escape, tokenizer.all_special_tokens)) or "(?!)")

    @classmethod
    def load(cls, name: str | os.PathLike[str], **options: Any) -> PromptReader:
        """With the tokenizer in a folder or on the hub; ``options`` are ``from_pretrained``'s.

        Its code is not run, unless ``trust_remote_code`` is among them.
        """
        from transformers import AutoTokenizer

        options.setdefault("trust_remote_code", False)
        return cls(AutoTokenizer.from_pretrained(os.fspath(name), **options))

    def whole(self, token_ids: Sequence[int]) -> str:
        """The text of all tokens but the special ones."""
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))

    def asked(self, token_ids: Sequence[int]) -> str:
        """What a predictor reads: the chat template is recognised and left out."""
        return self.served(token_ids).text

    def served(self, token_ids: Sequence[int]) -> Served:
        """What a predictor reads, and what the chat around it tells."""
        text = str(self._tokenizer.decode(token_ids, skip_special_tokens=False))
        found = messages_of(text, self._template)
        if found is None:
            return Served(capped_text(self.whole(token_ids)), {})
        chat = [Message(role, self._special.sub("", said).strip()) for role, said in found]
        return Served(capped_text(asked(chat)), told(chat, len(token_ids) / len(text)))
