"""Where an arriving request goes: the replica with the lowest score of those that are looked at."""

# compiled from its text; to mypy every number that an array yields is Any
# mypy: disable-error-code="no-any-return, return-value, call-arg"

from __future__ import annotations

from typing import Any

import numpy as np

from lengthwise.picoseconds import PS
from lengthwise.serving.fast.compiler.jit import draw, hot, kernel, node_of, uniform
from lengthwise.serving.fast.curves import fill_curves
from lengthwise.serving.fast.scores import evaluate, fill_request
from lengthwise.serving.fast.state import DONE
from lengthwise.serving.scoring import FRACTION


@kernel
def sample(S: Any, id: int) -> int:
    """Which replicas are looked at, in ``places``; as ``draws.sample``. Returns how many."""
    run = S.run
    count = run.replicas
    for k in range(count):
        S.places[k] = k
    if not 0 < run.choices < count:
        return count
    for k in range(run.choices):
        bits = draw(np.uint64(run.seed), id, count + k)
        other = k + np.int64(bits % np.uint64(count - k))
        value = S.places[k]
        S.places[k] = S.places[other]
        S.places[other] = value
    for k in range(1, run.choices):
        value, place = S.places[k], k
        while place > 0 and S.places[place - 1] > value:
            S.places[place] = S.places[place - 1]
            place -= 1
        S.places[place] = value
    return run.choices


@hot
def fill_replica(S: Any, row: int, id: int, r: int) -> None:
    """Writes the features of a replica, and those of a request that arrives now."""
    run, node, rep, to = S.run, node_of(S, r), S.replica[r], S.rows[row]
    if run.interval > 0:
        to.running_requests = rep.scraped_running
        to.waiting_requests = rep.scraped_waiting
        to.kv_utilization = rep.scraped_used / node.blocks
    else:
        to.running_requests = rep.running
        to.waiting_requests = rep.waiting
        to.kv_utilization = (node.blocks - rep.free) / node.blocks
    to.routed_requests = rep.routed
    to.outstanding_tokens = rep.outstanding / FRACTION
    if run.draws:
        to.random_draw = uniform(np.uint64(run.seed), id, r)
    if run.reads_request:
        fill_request(S, row, id)
    if run.reads_curves:
        fill_curves(S, row, id, 0)
    if run.reads_times:
        to.arrival_s = np.float64(S.arrival[id]) / PS
        to.now_s = np.float64(run.now) / PS
    to.generated_tokens = 0
    to.computed_tokens = 0
    to.preemptions = 0


@kernel
def route(S: Any, id: int) -> int:
    """The replica with the lowest score, the first of them; -1 - code if the score failed."""
    run = S.run
    count = sample(S, id)
    for row in range(count):
        fill_replica(S, row, id, S.places[row])
    code = evaluate(S, run.router_at, count)
    if code != DONE:
        return -1 - code
    best = 0
    for row in range(1, count):
        if S.out[row] < S.out[best]:
            best = row
    return S.places[best]


@kernel
def scrape(S: Any) -> None:
    """The router sees all replicas anew, as they are before anything happens at this moment."""
    for r in range(S.run.replicas):
        rep = S.replica[r]
        rep.scraped_running = rep.running
        rep.scraped_waiting = rep.waiting
        rep.scraped_used = node_of(S, r).blocks - rep.free
