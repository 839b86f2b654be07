"""The KV blocks of the fast engine where prefix caching tells them apart: ``kv_cache.KVCache``.

A block that holds known content stands in a bucket of a hash table, behind those that came to hold
the same before it; when nobody uses it, it waits in a queue to be evicted, oldest first.
"""

# compiled from its text; to mypy every number that an array yields is Any
# mypy: disable-error-code="no-any-return, return-value, call-arg"

from __future__ import annotations

from typing import Any

import numpy as np

from lengthwise.serving.fast.batch import blocks_for
from lengthwise.serving.fast.compiler.jit import as_state, hot, kernel, node_of, splitmix64
from lengthwise.serving.fast.state import DONE, NONE

INDEX_BITS = 24  # of a key: the block's place in its request


@kernel
def number_prefixes(table: int) -> int:
    """Numbers each prefix of each request's hashes in ``chain``, equal prefixes alike.

    ``prefix`` (size, 3) is scratch, filled with -1, its size a power of two of at least twice the
    hashes: (prefix before, hash, number).
    """
    S: Any = as_state(table)
    mask = np.uint64(len(S.prefix) - 1)
    count = 0
    for request in range(S.run.requests):
        before = -1
        for place in range(S.chain_at[request], S.chain_at[request + 1]):
            value = S.hashes[place]
            mixed = splitmix64(np.uint64(value)) + np.uint64(before)
            at = np.int64(splitmix64(mixed) & mask)
            while S.prefix[at, 2] >= 0 and (S.prefix[at, 0] != before or S.prefix[at, 1] != value):
                at = np.int64((np.uint64(at) + np.uint64(1)) & mask)
            if S.prefix[at, 2] < 0:
                S.prefix[at, 0] = before
                S.prefix[at, 1] = value
                S.prefix[at, 2] = count
                count += 1
            before = S.prefix[at, 2]
            S.chain[place] = before
    return DONE


@kernel
def shared_blocks(S: Any, r: int, id: int) -> int:
    """Leading blocks of a prompt whose content other requests may have too."""
    hashes = S.chain_at[id + 1] - S.chain_at[id]
    return min(hashes * S.run.hash_tokens, S.prompt[id]) // node_of(S, r).block_size


@hot
def key_of(S: Any, r: int, id: int, index: int, shared: int) -> int:
    """The identity of a request's tokens up to the end of its block ``index``; never 0."""
    if index < shared:
        last = ((index + 1) * node_of(S, r).block_size - 1) // S.run.hash_tokens
        return ((S.chain[S.chain_at[id] + last] + 1) << INDEX_BITS) | index
    return -1 - ((id << INDEX_BITS) | index)


@hot
def bucket_of(S: Any, r: int, key: int) -> int:
    """Where in a replica's hash table a key stands; the number of buckets is a power of two."""
    mask = node_of(S, r).bucket_mask
    return S.replica[r].bucket_at + np.int64(splitmix64(np.uint64(key)) & np.uint64(mask))


@hot
def place_of(S: Any, r: int, s: int) -> int:
    """Where in ``held`` the blocks of a slot begin."""
    rep = S.replica[r]
    return rep.held_at + (s - rep.seat) * node_of(S, r).longest


@kernel
def find(S: Any, r: int, id: int, known: int) -> None:
    """Writes the blocks of a request's longest cached prefix to ``hit``, their number to ``hits``.

    The last known token is never taken from the cache: computing it yields the next one. Who waits
    is looked up in every iteration, so what was found stays: it goes on where a block was added or
    lost at its end, and begins anew for somebody else.
    """
    rep = S.replica[r]
    if rep.sought != id or rep.sought_known != known:
        rep.sought, rep.sought_known = id, known
        rep.search += 1
        rep.hits = rep.idle = rep.missing = 0
    if rep.missing != 0:
        return
    shared = shared_blocks(S, r, id)
    count, idle = rep.hits, rep.idle
    for index in range(count, (known - 1) // node_of(S, r).block_size):
        key = key_of(S, r, id, index, shared)
        block = S.bucket[bucket_of(S, r, key)]
        while block != NONE and S.block[block].key != key:
            block = S.block[block].bucket_next
        if block == NONE:
            rep.missing = key
            break
        bl = S.block[block]
        bl.search = rep.search
        if bl.references == 0:
            idle += 1
        S.hit[rep.hit_at + count] = block
        count += 1
    rep.hits, rep.idle = count, idle


@kernel
def demand(S: Any, r: int, tokens: int) -> int:
    """Free blocks that a request of ``tokens`` tokens takes, given what ``find`` wrote."""
    rep = S.replica[r]
    return blocks_for(S, r, tokens) - rep.hits + rep.idle


@kernel
def lose_hit(S: Any, r: int, block: int) -> None:
    """A block that the last search found is evicted; most often its last one."""
    rep = S.replica[r]
    S.block[block].search = 0
    if rep.hits > 0 and S.hit[rep.hit_at + rep.hits - 1] == block:
        rep.hits -= 1
        rep.idle -= 1
        rep.missing = 0  # another block may hold the same
    else:
        rep.sought = NONE


@hot
def out_of_queue(S: Any, r: int, block: int) -> None:
    """A block that was to be evicted is used again, or is evicted."""
    rep, bl = S.replica[r], S.block[block]
    if bl.older == NONE:
        rep.oldest = bl.newer
    else:
        S.block[bl.older].newer = bl.newer
    if bl.newer == NONE:
        rep.newest = bl.older
    else:
        S.block[bl.newer].older = bl.older


@kernel
def forget(S: Any, r: int, block: int) -> None:
    """A block's content is lost."""
    bl = S.block[block]
    if bl.search == S.replica[r].search:
        lose_hit(S, r, block)
    bucket = bucket_of(S, r, bl.key)
    if bl.bucket_previous == NONE:
        S.bucket[bucket] = bl.bucket_next
    else:
        S.block[bl.bucket_previous].bucket_next = bl.bucket_next
    if bl.bucket_next == NONE:
        S.bucket_end[bucket] = bl.bucket_previous
    else:
        S.block[bl.bucket_next].bucket_previous = bl.bucket_previous
    bl.key = 0


@hot
def take(S: Any, r: int) -> int:
    """A free block: one without content if there is any, else the least recently used."""
    rep = S.replica[r]
    block = rep.blank
    if block != NONE:
        rep.blank = S.block[block].newer
    else:
        block = rep.oldest
        out_of_queue(S, r, block)
        forget(S, r, block)
    S.block[block].references = 1
    return block


@kernel
def admit(S: Any, r: int, s: int, tokens: int) -> None:
    """Gives a new request the blocks that ``find`` wrote, and room for ``tokens`` in all."""
    rep, sl = S.replica[r], S.slot[s]
    for place in range(rep.hits):
        block = S.hit[rep.hit_at + place]
        bl = S.block[block]
        if bl.references == 0:
            out_of_queue(S, r, block)
            rep.free -= 1
        bl.references += 1
        S.held[place_of(S, r, s) + place] = block
    sl.held = sl.hashed = rep.hits
    rep.sought = NONE
    grow(S, r, s, blocks_for(S, r, tokens) - sl.held)


@kernel
def grow(S: Any, r: int, s: int, more: int) -> None:
    """Gives a request ``more`` blocks, which are there."""
    rep, sl = S.replica[r], S.slot[s]
    for place in range(sl.held, sl.held + more):
        S.held[place_of(S, r, s) + place] = take(S, r)
    rep.free -= more
    sl.held += more


@kernel
def remember(S: Any, r: int, s: int, tokens: int) -> None:
    """Registers the request's full blocks among its first ``tokens`` tokens as cached."""
    sl = S.slot[s]
    full = tokens // node_of(S, r).block_size
    if full <= sl.hashed:
        return
    shared = shared_blocks(S, r, sl.id)
    for index in range(sl.hashed, full):
        block = S.held[place_of(S, r, s) + index]
        bl = S.block[block]
        bl.key = key_of(S, r, sl.id, index, shared)
        if bl.key == S.replica[r].missing:
            S.replica[r].missing = 0
        bucket = bucket_of(S, r, bl.key)
        last = S.bucket_end[bucket]
        bl.bucket_previous, bl.bucket_next = last, NONE
        if last == NONE:
            S.bucket[bucket] = block
        else:
            S.block[last].bucket_next = block
        S.bucket_end[bucket] = block
    sl.hashed = full


@kernel
def release(S: Any, r: int, s: int) -> None:
    """Takes a request's blocks back, its last block first, so that tails are evicted first."""
    rep, sl = S.replica[r], S.slot[s]
    place = sl.held - 1
    while place >= 0:
        block = S.held[place_of(S, r, s) + place]
        bl = S.block[block]
        bl.references -= 1
        if bl.references == 0:
            rep.free += 1
            if bl.search == rep.search:
                rep.idle += 1
            if bl.key != 0:
                bl.older, bl.newer = rep.newest, NONE
                if rep.newest == NONE:
                    rep.oldest = block
                else:
                    S.block[rep.newest].newer = block
                rep.newest = block
            else:
                bl.newer = rep.blank
                rep.blank = block
        place -= 1
