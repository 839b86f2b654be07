"""Chats as messages, and the one text of them that predictors are trained on and asked with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

# What datasets, templates and APIs call the roles of a chat. Collections name models by their
# family ("gpt4", "claude-2"), so those are beginnings of names.
ROLES = {
    "system": frozenset({"system", "developer"}),
    "user": frozenset({"user", "human", "prompter"}),
    "tool": frozenset({"tool", "function", "observation", "ipython", "environment"}),
}
MODELS = (
    "assistant", "gpt", "chatgpt", "chatbot", "model", "bot", "ai", "llm", "bing", "bard", "claude",
    "gemini", "palm", "llama", "mistral", "mixtral", "qwen", "vicuna", "alpaca", "deepseek", "phi",
    "o1", "o3", "o4", "command", "grok", "yi", "glm", "kimi",
)  # fmt: skip


class Message(NamedTuple):
    """One turn: "system", "user", "assistant" or "tool" says ``text``."""

    role: str
    text: str


def role_of(name: str) -> str | None:
    """Which of our roles somebody calls ``name``; None for a name that nobody is known by."""
    name = name.lower()
    for role, names in ROLES.items():
        if name in names:
            return role
    return "assistant" if name.startswith(MODELS) else None


def flat(content: Any) -> str:
    """The text of a message's content: a string, a list of OpenAI's parts, or nothing.

    Parts without text, such as images, are left out; parts are joined by line breaks.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        return ""
    parts = [part if isinstance(part, str) else field(part, "text") for part in content]
    return "\n".join(part for part in parts if isinstance(part, str) and part)


def messages(given: Iterable[Any]) -> list[Message]:
    """Messages from JSON or objects with role and content, or ShareGPT's from and value.

    Who has no name that is known counts as the user.
    """
    found = []
    for item in given:
        name = field(item, "from", "role")
        role = (role_of(name) if isinstance(name, str) else None) or "user"
        found.append(Message(role, flat(field(item, "value", "content"))))
    return found


def asked(chat: Sequence[Message]) -> str:
    """What a predictor reads: the last user turn, else everything that is not an answer.

    Predictors are trained on single questions; system prompts and earlier turns are not among
    what they know, and would only shift what they say.
    """
    for role, text in reversed(chat):
        if role == "user" and text:
            return text
    return "\n".join(text for role, text in chat if role != "assistant" and text)


def system_hash(chat: Sequence[Message]) -> str | None:
    """A hash of the system prompt that a chat begins with; None where it has none."""
    said = "\n".join(text.strip() for role, text in chat if role == "system" and text.strip())
    return blake2b(said.encode(errors="replace"), digest_size=8).hexdigest() if said else None


def field(item: Any, *names: str) -> Any:
    """The first of these that a dict holds or an object has; None if it has none."""
    for name in names:
        try:
            value = item.get(name) if isinstance(item, dict) else getattr(item, name, None)
        except Exception:  # of somebody's property
            continue
        if value is not None:
            return value
    return None
