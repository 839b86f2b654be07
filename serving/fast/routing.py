"""Where an arriving request goes: the replica with the lowest score of those that are looked at."""

# compiled from its text; to mypy every number that an array yields is Any
# mypy: disable-error-code="no-any-return, return-value, call-arg"

from __future__ import annotations

from typing import Any

import numpy as np

from lengthwise.serving.fast.compiler.jit import draw, hot, kernel, node_of
from lengthwise.serving.fast.flags import EVENTS, ROLES
from lengthwise.serving.fast.scores import evaluate, fill_replica
from lengthwise.serving.fast.state import DONE, KNOWN
from lengthwise.serving.fast.tables import write_features


@hot
def first_open(S: Any) -> int:
    """The first replica that is not known to be down; there must be one."""
    r = 0
    while S.replica[r].down == KNOWN:
        r += 1
    return r


@kernel
def list_open(S: Any) -> int:
    """Writes the replicas that are not known to be down to ``places``; returns how many."""
    count = 0
    for r in range(S.run.replicas):
        if S.replica[r].down != KNOWN:
            S.places[count] = r
            count += 1
    return count


@kernel
def sample(S: Any, id: int) -> int:
    """Which replicas are looked at, in ``places``; as ``draws.sample``. Returns how many."""
    run = S.run
    count = run.replicas
    for k in range(count):
        S.places[k] = k
    if EVENTS:
        count = list_open(S)
    return few(S, id, count, run.choices)


@kernel
def list_role(S: Any, prefills: bool) -> int:
    """Writes the replicas that only prefill, or all others, to ``places``; returns how many."""
    count = 0
    for r in range(S.run.replicas):
        if (node_of(S, r).prefills != 0) == prefills:
            S.places[count] = r
            count += 1
    return count


@kernel
def few(S: Any, id: int, count: int, choices: int) -> int:
    """Leaves ``choices`` of the ``count`` places, drawn at random; returns how many are left."""
    run = S.run
    if not 0 < choices < count:
        return count
    for k in range(choices):
        bits = draw(np.uint64(run.seed), id, count + k)
        other = k + np.int64(bits % np.uint64(count - k))
        value = S.places[k]
        S.places[k] = S.places[other]
        S.places[other] = value
    for k in range(1, choices):
        value, place = S.places[k], k
        while place > 0 and S.places[place - 1] > value:
            S.places[place] = S.places[place - 1]
            place -= 1
        S.places[place] = value
    return choices


@kernel
def route(S: Any, id: int) -> int:
    """The replica with the lowest score, the first of them; -1 - code if the score failed."""
    run = S.run
    if ROLES:
        count = list_role(S, S.prompt[id] >= run.min_prompt)
        if count == 1:
            return S.places[0]
        count = few(S, id, count, run.choices)
        return lowest(S, id, count, run.router_at, run.routing_reads)
    if EVENTS and run.open == 1:
        return first_open(S)
    return lowest(S, id, sample(S, id), run.router_at, run.routing_reads)


@kernel
def route_on(S: Any, id: int) -> int:
    """The same for a request whose prompt was computed, of those that don't only prefill."""
    run = S.run
    count = list_role(S, False)
    if count == 1:
        return S.places[0]
    count = few(S, id, count, run.decode_choices)
    return lowest(S, id, count, run.decode_at, run.decode_reads)


@kernel
def lowest(S: Any, id: int, count: int, address: int, reads: int) -> int:
    """The one with the lowest score of the places that are listed."""
    for row in range(count):
        fill_replica(S, row, id, S.places[row], reads)
    code = evaluate(S, address, count)
    if code != DONE:
        return -1 - code
    best = 0
    for row in range(1, count):
        if S.out[row] < S.out[best]:
            best = row
    return S.places[best]


@kernel
def scrape(S: Any, time: int) -> None:
    """The router sees all replicas anew, as they are before anything happens at this moment."""
    run = S.run
    run.scraped = time // run.interval
    for r in range(run.replicas):
        write_features(S.scraped[r], S.run.reads, "replica", last=S.replica[r].iteration)
