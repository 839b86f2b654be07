"""Random numbers by counter: each is a function of (seed, request, replica) and of nothing else.

SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) on 64-bit unsigned integers; two runs with the same
seed draw the same numbers for the same request, whatever the policy did in between.
"""

from __future__ import annotations

import numpy as np

from lengthwise.errors import InputError

_MASK = (1 << 64) - 1


def stream(seed: int, *key: int) -> np.random.Generator:
    """numpy's generator for one purpose of a seed: streams with different keys are independent.

    Raises ``InputError`` for a seed that is not a whole number of 0 or more.
    """
    if not isinstance(seed, int | np.integer) or isinstance(seed, bool) or seed < 0:
        raise InputError(f"seed must be a whole number of 0 or more, not {seed!r}")
    return np.random.default_rng(np.random.SeedSequence(int(seed), spawn_key=key))


def splitmix64(x: int) -> int:
    """The SplitMix64 finaliser of a 64-bit integer."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def draw(seed: int, request: int, counter: int) -> int:
    """64 random bits; seed and request are taken modulo 2**64."""
    key = splitmix64(seed & _MASK)
    key = splitmix64((key + request) & _MASK)
    return splitmix64((key + counter) & _MASK)


def uniform(seed: int, request: int, replica: int) -> float:
    """The feature ``random_draw``: uniform in [0, 1), the upper 53 bits of ``draw``."""
    return (draw(seed, request, replica) >> 11) / (1 << 53)


def sample(seed: int, request: int, replicas: int, choices: int) -> list[int]:
    """``choices`` distinct replicas of ``replicas``, in ascending order.

    The first steps of a Fisher-Yates shuffle; step k swaps place k with place
    ``k + draw(seed, request, replicas + k) mod (replicas - k)``.
    """
    places = list(range(replicas))
    for k in range(min(choices, replicas)):
        other = k + draw(seed, request, replicas + k) % (replicas - k)
        places[k], places[other] = places[other], places[k]
    return sorted(places[:choices])
