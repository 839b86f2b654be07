"""What a picker reads of an answer that passes by: its tokens so far, and its usage at the end."""

from __future__ import annotations

import re

TAIL = 16_384  # bytes; usage stands at an answer's end
EVENT = b"\ndata:"
NUMBER = rb'(?<!\\)"%s"\s*:\s*(\d{1,12})'
PROMPT, GENERATED = (re.compile(NUMBER % name) for name in (b"prompt_tokens", b"completion_tokens"))
REASON = re.compile(rb'(?<!\\)"finish_reason"\s*:\s*"(\w{1,40})"')


class Answer:
    """Bytes go in, whole or in pieces of any size; nothing but the last of them is kept."""

    def __init__(self) -> None:
        self.status = 0  # HTTP's; 0 until it is known
        self.events = 0  # of a stream: about one a token
        self.ended = False
        self._tail = b""
        self._before = b"\n"  # the last bytes that came, in which an event may have begun

    def feed(self, data: bytes) -> None:
        """Some more of it."""
        self.events += (self._before + data).count(EVENT)
        self._before = (self._before + data)[1 - len(EVENT) :]
        self._tail = (self._tail + data)[-TAIL:]

    @property
    def generated_tokens(self) -> int | None:
        """As the engine counted them; None while it has not said."""
        return _last(GENERATED, self._tail)

    @property
    def prompt_tokens(self) -> int | None:
        """As the engine counted them; None while it has not said."""
        return _last(PROMPT, self._tail)

    @property
    def finish_reason(self) -> str | None:
        """Why it ended, in OpenAI's words; None while it has not."""
        found = REASON.findall(self._tail)
        return found[-1].decode() if found else None


def _last(pattern: re.Pattern[bytes], data: bytes) -> int | None:
    found = pattern.findall(data)
    return int(found[-1]) if found else None
