"""What tenants were served at a replica, as VTC counts it: ``reference.tenants``, walked seldom.

A tenant's tokens are those of who left, of who waits and of who runs. The last are walked for, at
most once between two iterations, and only in runs that read them.
"""

# numba types what follows; to mypy every number that an array yields is Any
# mypy: disable-error-code="no-any-return, return-value, call-arg"

from __future__ import annotations

from typing import Any

import numpy as np

from lengthwise.serving.fast.backlog import generated_so_far
from lengthwise.serving.fast.batch import next_seat
from lengthwise.serving.fast.compiler.jit import hot, kernel
from lengthwise.serving.fast.state import NONE


@kernel
def sum_tenants(S: Any, r: int, last: int) -> None:
    """Tokens of the running requests, by tenant; ``last``: the last iteration that was launched."""
    rep = S.replica[r]
    if rep.tenants_last == last and rep.tenants_done == rep.done:
        return
    rep.tenants_last, rep.tenants_done = last, rep.done
    for t in range(len(S.share)):
        S.tenants[r, t].running = 0
    s = next_seat(S, r, rep.seat)
    while s != NONE:
        id = S.slot[s].id
        tokens = S.prompt[id] + 2 * generated_so_far(S, r, s, last)
        S.tenants[r, S.tenant[id]].running += tokens
        s = next_seat(S, r, s + 1)


@hot
def attained_by(S: Any, r: int, t: int) -> float:
    """The tokens of a tenant over its weight."""
    row = S.tenants[r, t]
    return np.float64(row.left + row.queued + row.running) / S.share[t]


@hot
def service_of(S: Any, r: int, t: int) -> float:
    """The same from where it began."""
    return S.tenants[r, t].offset + attained_by(S, r, t)


@kernel
def tenant_service(S: Any, r: int, id: int, last: int) -> float:
    """The same of a request's tenant."""
    sum_tenants(S, r, last)
    return service_of(S, r, S.tenant[id])


@kernel
def tenant_attained(S: Any, r: int, id: int, last: int) -> float:
    """What a request's tenant attained, wherever it began."""
    sum_tenants(S, r, last)
    return attained_by(S, r, S.tenant[id])


@kernel
def tenant_arrives(S: Any, r: int, id: int) -> None:
    """A request arrives: a tenant of whom nobody waits begins where the others are."""
    rep, t = S.replica[r], S.tenant[id]
    if S.tenants[r, t].waiting > 0:
        return
    sum_tenants(S, r, rep.iteration)
    others, least = 0, 0.0
    for other in range(len(S.share)):
        if S.tenants[r, other].waiting > 0:
            service = service_of(S, r, other)
            if others == 0 or service < least:
                least = service
            others += 1
    if others == 0:
        if rep.tenant_admitted == NONE:
            return
        least = service_of(S, r, rep.tenant_admitted)
    behind = least - service_of(S, r, t)
    if behind > 0.0:
        S.tenants[r, t].offset += behind


@kernel
def forget_tenants(S: Any, r: int) -> None:
    """A replica has failed: it begins anew."""
    for t in range(len(S.share)):
        row = S.tenants[r, t]
        row.left = row.queued = row.running = row.waiting = 0
        row.offset = 0.0
