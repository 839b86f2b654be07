"""Tokens of a server that has no model: four bytes of a text are one."""

from __future__ import annotations

import array
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

TEXT_BYTES, ID_BYTES = 4, 8
WORDS = tuple(
    f" {word}".encode()
    for word in (
        "add all and any are ask bad bed big box boy bus but buy can car cat cut day did dog dry "
        "eat egg end far few fly for fun get got had has hat her him his hot how its job key law "
        "let lot low man map may men mix new nor not now off old one our out own pay put red run"
    ).split()[:64]
)
_GOLDEN = 0x9E3779B97F4A7C15  # an odd number whose multiples scatter well (Knuth, TAOCP 6.4)


@dataclass(frozen=True)
class Prompt:
    """What was sent to be answered: its bytes, so many of them a token."""

    data: bytes
    unit: int

    @classmethod
    def of_text(cls, text: str) -> Prompt:
        """Four bytes of UTF-8 are a token."""
        return cls(text.encode("utf-8", "replace"), TEXT_BYTES)

    @classmethod
    def of_ids(cls, ids: Sequence[int]) -> Prompt:
        """A prompt that came as token ids, each below 2^63."""
        return cls(array.array("q", ids).tobytes(), ID_BYTES)

    @property
    def tokens(self) -> int:
        """At least one."""
        return max(1, -(-len(self.data) // self.unit))

    def block_keys(self, block_size: int) -> tuple[int, ...]:
        """What identifies the prompt up to the end of each of its full blocks."""
        size = block_size * self.unit
        keys, before = [], self.unit.to_bytes(1, "big")
        for start in range(0, len(self.data) - size + 1, size):
            chained = blake2b(before + self.data[start : start + size], digest_size=8)
            before = chained.digest()
            keys.append(int.from_bytes(before, "big"))
        return tuple(keys)

    def answer(self) -> Answer:
        """What the server says to it; always the same."""
        digest = blake2b(self.data, digest_size=8, person=b"answer").digest()
        return Answer(int.from_bytes(digest, "big"))


@dataclass(frozen=True)
class Answer:
    """A text without end; each of its tokens has four bytes."""

    seed: int

    def token(self, index: int) -> bytes:
        """Its token ``index``."""
        return WORDS[(self.seed + index * _GOLDEN & 0xFFFFFFFFFFFFFFFF) >> 58]

    def text(self, tokens: int) -> str:
        """Its first tokens."""
        return b"".join(map(self.token, range(tokens))).decode()
