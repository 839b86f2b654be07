"""What endpoints probably hold of a prompt: hashes of the prompts that were sent there."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from lengthwise.policies.plugins.calls import CHARACTERS_PER_TOKEN

BLOCK = 16  # tokens, as in vLLM, where an endpoint says nothing else
MOST_BLOCKS = 50_000  # that are remembered of an endpoint: what an 80 GB GPU holds of an 8B model
LONGEST = 4096  # blocks of a prompt that are looked at
LARGEST = 2**62 - 1  # token id; what a client sends need not be one
Prompt = str | Sequence[int]  # a text, or token ids


class Prefixes:
    """The leading blocks of the prompts that each endpoint was sent, the last ones used.

    A router's guess of the feature ``cached_tokens``: what an endpoint evicted it does not know.
    """

    def __init__(self, most: int = MOST_BLOCKS) -> None:
        self._most = most
        self._blocks: dict[str, OrderedDict[bytes, None]] = {}
        self.size: dict[str, int] = {}  # of a block, in tokens, where an endpoint told

    def cached_tokens(self, prompt: Prompt, addresses: Iterable[str]) -> dict[str, float]:
        """Leading tokens of a prompt that are likely to be at each of these endpoints."""
        hashes: dict[int, list[bytes]] = {}
        found = {}
        for address in addresses:
            size = self.size.get(address, BLOCK)
            if size not in hashes:
                hashes[size] = blocks(prompt, size)
            here = self._blocks.get(address, OrderedDict())
            held = 0
            for block in hashes[size]:
                if block not in here:
                    break
                held += 1
            found[address] = float(held * size)
        return found

    def sent(self, prompt: Prompt, address: str) -> None:
        """A prompt went to an endpoint."""
        here = self._blocks.setdefault(address, OrderedDict())
        # its last block is the first to be forgotten, as in the engine
        for block in reversed(blocks(prompt, self.size.get(address, BLOCK))):
            here[block] = None
            here.move_to_end(block)
        while len(here) > self._most:
            here.popitem(last=False)

    def keep(self, addresses: Iterable[str]) -> None:
        """Forgets all other endpoints."""
        kept = set(addresses)
        self._blocks = {one: held for one, held in self._blocks.items() if one in kept}
        self.size = {one: size for one, size in self.size.items() if one in kept}


def blocks(prompt: Prompt, size: int) -> list[bytes]:
    """A hash for each full block of ``size`` tokens, of all that stands up to its end."""
    step = int(size * CHARACTERS_PER_TOKEN) if isinstance(prompt, str) else size
    found, before = [], b""
    for start in range(0, min(len(prompt) - step + 1, LONGEST * step), step):
        piece = prompt[start : start + step]
        before = blake2b(before + _bytes(piece), digest_size=8).digest()
        found.append(before)
    return found


def _bytes(piece: Prompt) -> bytes:
    if isinstance(piece, str):
        return piece.encode("utf-8", "replace")
    return array("q", (one & LARGEST for one in piece)).tobytes()
