"""The KV cache of one replica: paged blocks, reference counts, prefix hashes, eviction order.

What vLLM's ``BlockPool`` and ``FullAttentionManager`` do, and nothing more. Two facts make it
short. Free blocks that hold no cached content are handed out first and are all alike, so they need
no order; those that do are evicted in the order in which they were freed (least recently used
first). And without prefix caching only the number of blocks matters.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

from lengthwise.errors import InvariantError


class Holder(Protocol):
    """What the cache keeps of a request: the blocks it holds and their content."""

    blocks: list[int]  # with prefix caching: the ids of its blocks, in order
    held: int  # number of blocks it holds
    hashed: int  # how many of them, from the first, are registered as cached content
    known: int  # tokens known: the prompt and what was generated

    def key(self, index: int) -> int:
        """The identity of all tokens up to the end of its block ``index``, which is full."""
        ...


class KVCache:
    """``num_gpu_blocks`` blocks of ``block_size`` tokens, of which vLLM keeps one as a null block.

    All state is integers. ``used + free == total`` always; a block is used while any request
    refers to it.
    """

    def __init__(self, num_gpu_blocks: int, block_size: int, prefix_caching: bool) -> None:
        self.total = num_gpu_blocks - 1  # block 0 is vLLM's null block
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self.free = self.total
        # The rest is used with prefix caching only.
        self._blank = list(range(self.total, 0, -1)) if prefix_caching else []
        self._evictable: OrderedDict[int, None] = OrderedDict()  # free, cached; oldest first
        self._references: dict[int, int] = {}  # block -> requests that hold it, if any do
        self._key_of: dict[int, int] = {}  # cached block -> its key
        self._blocks_of: dict[int, dict[int, None]] = {}  # key -> blocks, first cached first

    @property
    def used(self) -> int:
        """Blocks that some request holds."""
        return self.total - self.free

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold ``tokens`` tokens."""
        return -(-tokens // self.block_size)

    def find(self, request: Holder) -> list[int]:
        """The cached blocks of a request's longest cached prefix.

        The last known token is never taken from the cache: computing it yields the next one.
        """
        hits: list[int] = []
        if not self.prefix_caching:
            return hits
        for index in range((request.known - 1) // self.block_size):
            blocks = self._blocks_of.get(request.key(index))
            if not blocks:
                break
            hits.append(next(iter(blocks)))
        return hits

    def demand(self, tokens: int, hits: list[int]) -> int:
        """Free blocks that a new request of ``tokens`` tokens takes, given its cached blocks."""
        evictable = sum(1 for block in hits if block not in self._references)
        return self.blocks_for(tokens) - len(hits) + evictable

    def admit(self, request: Holder, hits: list[int], tokens: int) -> None:
        """Gives a new request its cached blocks and room for ``tokens`` tokens in all.

        The caller has checked ``demand(tokens, hits) <= free``.
        """
        for block in hits:
            if block in self._references:
                self._references[block] += 1
            else:
                del self._evictable[block]
                self._references[block] = 1
                self.free -= 1
        request.blocks = hits
        request.held = request.hashed = len(hits)
        self.grow(request, tokens)

    def grow(self, request: Holder, tokens: int) -> bool:
        """Room for ``tokens`` tokens in all, or False if there are not enough free blocks."""
        more = self.blocks_for(tokens) - request.held
        if more <= 0:
            return True
        if more > self.free:
            return False
        self.free -= more
        request.held += more
        if self.prefix_caching:
            request.blocks.extend(self._take() for _ in range(more))
        return True

    def remember(self, request: Holder, tokens: int) -> None:
        """Registers the request's full blocks among its first ``tokens`` tokens as cached."""
        if not self.prefix_caching:
            return
        full = tokens // self.block_size
        for index in range(request.hashed, full):
            block, key = request.blocks[index], request.key(index)
            self._key_of[block] = key
            self._blocks_of.setdefault(key, {})[block] = None
        request.hashed = max(request.hashed, full)

    def release(self, request: Holder) -> None:
        """Takes a request's blocks back, its last block first, so that tails are evicted first."""
        if not self.prefix_caching:
            self.free += request.held
        for block in reversed(request.blocks):
            self._references[block] -= 1
            if self._references[block] == 0:
                del self._references[block]
                self.free += 1
                if block in self._key_of:
                    self._evictable[block] = None
                else:
                    self._blank.append(block)
        request.blocks, request.held, request.hashed = [], 0, 0

    def check(self, holders: Sequence[Holder]) -> None:
        """Raises ``InvariantError`` unless the books balance: ``holders`` hold all used blocks."""
        if not 0 <= self.free <= self.total:
            raise InvariantError(f"{self.free} of {self.total} KV blocks are free")
        if not self.prefix_caching:
            if sum(request.held for request in holders) != self.used:
                raise InvariantError("KV blocks held and KV blocks used differ")
            return
        counted: dict[int, int] = {}
        for request in holders:
            if len(request.blocks) != request.held or len(set(request.blocks)) != request.held:
                raise InvariantError("a request holds a KV block twice")
            for block in request.blocks:
                counted[block] = counted.get(block, 0) + 1
        if counted != self._references:
            raise InvariantError("KV reference counts differ from the requests' blocks")
        free = [*self._blank, *self._evictable]
        if len(free) != self.free or len(set(free)) != self.free or set(free) & set(counted):
            raise InvariantError("free KV blocks are counted wrongly")
        if len(self._key_of) != sum(map(len, self._blocks_of.values())):
            raise InvariantError("the prefix index and the cached KV blocks differ")

    def _take(self) -> int:
        """A free block: one without content if there is any, else the least recently used."""
        if self._blank:
            block = self._blank.pop()
        else:
            block, _ = self._evictable.popitem(last=False)
            key = self._key_of.pop(block)
            blocks = self._blocks_of[key]
            del blocks[block]
            if not blocks:
                del self._blocks_of[key]
        self._references[block] = 1
        return block
