"""Requests in buckets of prompt and answer lengths, and how many of one a node serves in time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.eval.metrics import meets_slo
from lengthwise.picoseconds import LONGEST_S
from lengthwise.serving.draws import stream
from lengthwise.serving.inputs import gpu_blocks
from lengthwise.serving.run import run
from lengthwise.serving.saturation import by_itself, saturation_rate
from lengthwise.serving.system import Node
from lengthwise.workload import Workload

# upper ends, tokens; the last of each holds all that is longer
PROMPTS = (25, 100, 250, 500, 1000, 2000, 4000, 8000, 16_000, 32_000)
OUTPUTS = (25, 100, 250, 500, 1000, 2000)
TOLERANCE = 0.03  # how closely a rate is found, relative
LEAST = 500  # requests on which a rate is tried
MOST = 6000
ROUNDS = 8  # times that each seat is filled, where that is more
SLOWEST = 2.0**-12  # of what a node serves at most: there requests are alone
ARRIVALS = 31  # the stream of random numbers of arrivals, and of who comes


@dataclass(frozen=True)
class Bucket:
    """Requests whose lengths lie above the one and up to the other end, tokens; an end of None
    holds all that is longer. ``share`` is of all requests; ``prompt_tokens`` and ``output_tokens``
    (n,) are theirs.
    """

    prompt: tuple[int, int | None]
    output: tuple[int, int | None]
    share: float
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"{_range(self.prompt)} prompt and {_range(self.output)} answer tokens"


def buckets_of(
    workload: Workload,
    prompts: tuple[int, ...] = PROMPTS,
    outputs: tuple[int, ...] = OUTPUTS,
) -> tuple[tuple[Bucket, ...], NDArray[np.int64]]:
    """The buckets that have requests, and the bucket of each request, (n,)."""
    prompt, output = workload["prompt_tokens"], workload["output_tokens"]
    row = np.minimum(np.searchsorted(prompts, prompt), len(prompts) - 1)
    column = np.minimum(np.searchsorted(outputs, output), len(outputs) - 1)
    cell = row * len(outputs) + column
    kinds, of = np.unique(cell, return_inverse=True)
    found = []
    for place, kind in enumerate(kinds.tolist()):
        i, j = divmod(kind, len(outputs))
        mine = of == place
        found.append(Bucket(
            _ends(prompts, i), _ends(outputs, j), float(mine.mean()), prompt[mine], output[mine]
        ))  # fmt: skip
    return tuple(found), of


def most_rate(
    node: Node, bucket: Bucket, slo: Mapping[str, float], attainment: float, seed: int = 0
) -> tuple[float, str]:
    """Requests/s of ``bucket`` alone that ``node`` serves so that at least the share
    ``attainment`` of them meets ``slo``; 0 and why where there is none.

    The bucket's own requests, drawn with replacement, arrive as a Poisson process; judged are those
    of the middle half, when the node is neither filling up nor running empty.
    """
    longest = int((bucket.prompt_tokens + bucket.output_tokens).max())
    blocks = gpu_blocks(node.engine, node.timing) - 1  # less vLLM's null block
    room = blocks * node.engine.block_size
    room = min(room, node.engine.max_model_len or room)
    if longest > room:
        return 0.0, f"one of {longest:,} tokens does not fit its {room:,}"
    alone = by_itself(node)
    fit = room / float((bucket.prompt_tokens + bucket.output_tokens).mean())
    count = int(np.clip(ROUNDS * min(node.engine.max_num_seqs, fit), LEAST, MOST))
    rng = stream(seed, ARRIVALS)
    who = rng.integers(len(bucket.prompt_tokens), size=count)
    gaps = rng.exponential(1.0, count)
    tried = Workload({
        "arrival_s": np.cumsum(gaps), "prompt_tokens": bucket.prompt_tokens[who],
        "output_tokens": bucket.output_tokens[who],
    }, name=bucket.label)  # fmt: skip

    def met(rate: float) -> float:
        records = run(tried.at_rate(rate), alone, seed=seed)
        return float(meets_slo(records, slo)[count // 4 : 3 * count // 4].mean())

    high = saturation_rate(tried, alone)
    slowest = max(high * SLOWEST, count / LONGEST_S * 4)  # the engines' clock ends at the latter
    best = met(slowest)
    if best < attainment:
        return 0.0, f"alone, {best:.0%} of them meet the SLO"
    if met(high) >= attainment:
        return high, ""
    low = high / 2
    while low > slowest and met(low) < attainment:
        low, high = low / 2, low
    while high / low > 1 + TOLERANCE:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if met(middle) >= attainment else (low, middle)
    return low, ""


def check_ends(name: str, given: object) -> tuple[int, ...]:
    """The upper ends of buckets as a user gave them: whole numbers that rise."""
    ends = given if isinstance(given, list) else []
    if not ends or any(not isinstance(end, int) or isinstance(end, bool) for end in ends):
        raise InputError(f"{name} must be a list of whole numbers of tokens, not {given!r}")
    if ends[0] < 1 or any(a >= b for a, b in pairwise(ends)):
        raise InputError(f"{name} must rise from 1 or more, unlike {given!r}")
    return tuple(ends)


def _ends(ends: tuple[int, ...], place: int) -> tuple[int, int | None]:
    last = place == len(ends) - 1
    return (ends[place - 1] if place else 0), None if last else ends[place]


def _range(ends: tuple[int, int | None]) -> str:
    return f"{ends[0] + 1:,}+" if ends[1] is None else f"{ends[0] + 1:,}–{ends[1]:,}"
