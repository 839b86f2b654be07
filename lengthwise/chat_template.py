"""Chat templates: from the text that an engine's model is given back to the messages it was.

A template is a list of marks; each begins a role's text or, with no role, ends one. A tokenizer's
own is learned by rendering a chat whose texts are known; published formats stand in a table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from lengthwise.chat import Message, role_of

SAID = ("lengthwiseSystemText", "lengthwiseFirstQuestion", "lengthwiseAnswer", "lengthwiseQuestion")


@dataclass(frozen=True)
class Template:
    """``marks``: a regular expression and the role whose text it begins.

    The role is None where a text ends, and "" where the expression's only group names it.
    """

    name: str
    marks: tuple[tuple[str, str | None], ...]

    def messages(self, text: str) -> list[Message] | None:
        """The messages of a rendered prompt; None if it is not of this template.

        It is if a user's text is followed by another mark: what ends it or begins the answer.
        """
        both = "|".join(f"({mark})" for mark, _ in self.marks)
        found: list[Message] = []
        role, start, whole = None, 0, False
        for match in re.finditer(both, text):
            if role is not None:
                found.append(Message(role, text[start : match.start()].strip()))
                whole = whole or role == "user"
            role, start = self._begun(match), match.end()
        if role is not None and text[start:].strip():
            found.append(Message(role, text[start:].strip()))
        return [message for message in found if message.text] if whole else None

    def _begun(self, match: re.Match[str]) -> str | None:
        """The role whose text the mark begins that matched."""
        place = 1
        for mark, role in self.marks:
            if match.group(place) is not None:
                return role_of(match.group(place + 1)) if role == "" else role
            place += 1 + re.compile(mark).groups
        raise AssertionError(f"no mark of {self.name} matched")


NAMED = "(system|developer|user|assistant|model|tool|function|ipython)"
# Published formats; those with the more distinctive marks first.
KNOWN = (
    # ChatML, Qwen, Yi, Hermes; Phi-4 has a separator after the role
    Template(
        "chatml", ((rf"<\|im_start\|>\s*{NAMED}(?:<\|im_sep\|>)?", ""), (r"<\|im_end\|>", None))
    ),
    Template("llama-3", (
        (rf"<\|start_header_id\|>\s*{NAMED}\s*<\|end_header_id\|>", ""),
        (r"<\|eot_id\|>|<\|eom_id\|>|<\|end_of_text\|>", None),
    )),
    Template(
        "llama-4",
        ((rf"<\|header_start\|>\s*{NAMED}\s*<\|header_end\|>", ""), (r"<\|eot\|>", None)),
    ),
    # Llama-2, with the system's text within the first question, and Mistral
    Template("inst", (
        (r"\[INST\]\s*<<SYS>>|\[SYSTEM_PROMPT\]|\[AVAILABLE_TOOLS\]", "system"),
        (r"<</SYS>>|\[INST\]", "user"),
        (r"\[TOOL_RESULTS\]", "tool"),
        (r"\[/INST\]|\[/TOOL_RESULTS\]", "assistant"),
        (r"\[/SYSTEM_PROMPT\]|\[/AVAILABLE_TOOLS\]|</s>", None),
    )),
    Template("gemma", ((rf"<start_of_turn>\s*{NAMED}", ""), (r"<end_of_turn>", None))),
    Template("phi-3", (
        (r"<\|(system|user|assistant|tool)\|>", ""),
        (r"<\|end\|>|<\|endoftext\|>|</s>", None),
    )),
    Template("harmony", (
        (rf"<\|start\|>{NAMED}(?:<\|channel\|>\w+)?(?:<\|message\|>|$)", ""),
        (r"<\|end\|>|<\|return\|>", None),
    )),
    Template("deepseek", (
        (r"<｜User｜>", "user"), (r"<｜Assistant｜>", "assistant"),
        (r"<｜end▁of▁sentence｜>", None),
    )),
    Template("command", (
        (r"<\|START_OF_TURN_TOKEN\|><\|(SYSTEM|USER|CHATBOT)_TOKEN\|>", ""),
        (r"<\|END_OF_TURN_TOKEN\|>", None),
    )),
)  # fmt: skip
# These have no marks but words, so that only a prompt counts that ends where the answer begins.
PLAIN = (
    Template("vicuna", ((r"(?:^|\s|(?<=</s>))(USER|ASSISTANT):", ""), (r"</s>", None))),
    Template("alpaca", (
        (r"(?:^|\n)### Instruction:", "user"), (r"(?:^|\n)### Response:", "assistant"),
    )),
    Template("human", ((r"(?:^|\n)(Human|Assistant):", ""),)),
)  # fmt: skip


def learned(render: Callable[[list[dict[str, str]], bool], str]) -> Template | None:
    """The template behind ``render(messages, add_generation_prompt)``; None if it shows no marks.

    What stands between texts that are known begins the one that follows.
    """
    system, first, answer, question = SAID
    later = [
        {"role": "user", "content": first},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": question},
    ]
    plain = render(later, True)
    begins, ends, again, opens = _between(plain, (first, answer, question))
    marks = [(again, "user"), (ends, "assistant"), (opens, "assistant")]
    common = _common_end(begins, again)  # without a date, or a system text that is always there
    marks.append((common if _is_mark(common) else begins, "user"))
    # some refuse a system's message, others write it into the question
    given = _tried(render, [{"role": "system", "content": system}, *later])
    if given is not None and system in given:
        before, after = _between(given, (system, first))[:2]
        marks += [(before, "system"), (after, "user")]
    roles = {mark: role for mark, role in marks if _is_mark(mark)}
    if any(roles[mark] != role for mark, role in marks if mark in roles):
        return None  # one mark for two roles
    if not {"user", "assistant"} <= set(roles.values()):
        return None
    longest_first = sorted(roles, key=lambda mark: (-len(mark), mark))
    return Template("the tokenizer's own", tuple((_loose(m), roles[m]) for m in longest_first))


def of_tokenizer(tokenizer: Any) -> Template | None:
    """The template of a transformers tokenizer, None where it has none that can be learned."""
    if not getattr(tokenizer, "chat_template", None):
        return None

    def render(chat: list[dict[str, str]], add_generation_prompt: bool) -> str:
        return str(
            tokenizer.apply_chat_template(
                chat, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )

    try:
        return learned(render)
    except Exception:  # a template is a program of somebody else's: the known formats remain
        return None


def _between(text: str, said: Sequence[str]) -> list[str]:
    """What stands before, between and after the texts; ValueError if one is missing."""
    found, start = [], 0
    for part in said:
        at = text.index(part, start)
        found.append(text[start:at])
        start = at + len(part)
    return [*found, text[start:]]


def _tried(render: Callable[..., str], chat: list[dict[str, str]]) -> str | None:
    try:
        return render(chat, True)
    except Exception:  # templates say so by raising, each in its own way
        return None


def _common_end(one: str, other: str) -> str:
    pairs = zip(reversed(one), reversed(other), strict=False)
    length = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return one[len(one) - length :]


def _is_mark(text: str) -> bool:
    return len(text.strip()) >= 3


def _loose(mark: str) -> str:
    """The mark as a regular expression: decoding may have lost or added blanks."""
    return r"\s*".join(map(re.escape, mark.split()))
