"""The cheapest mix of node types that carries a load: an integer program.

Griggs et al., "Mélange: Cost Efficient Large Language Model Serving by Exploiting GPU
Heterogeneity" (arXiv 2404.14527), section 5: nodes are bins with a price, slices of the load are
items whose size depends on the bin's type. Slices of one bucket are alike, so they are counted
here, and not told apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import LengthwiseError

SLICES = 8  # of each bucket, the paper's
TIME_LIMIT_S = 60.0
SLACK = 1e-6  # of a node, which the solver's arithmetic may take for nothing

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Mix:
    """How many nodes of each type, and which share of each bucket they serve.

    ``shares`` (types, buckets) sum to 1 over types; ``utilization`` (types,) is of the nodes that
    there are, 0 where there are none; ``gap`` is how much cheaper another mix could be at most, as
    a share, where the search was cut off (0: none is cheaper).
    """

    counts: tuple[int, ...]
    shares: Floats
    utilization: Floats
    cost: float
    gap: float = 0.0


def cheapest_mix(
    load: Floats,
    prices: Sequence[float],
    limits: Sequence[int | None] | None = None,
    slices: int = SLICES,
    time_limit_s: float = TIME_LIMIT_S,
) -> Mix | None:
    """The mix of least cost that serves all of the load; None where limits leave none.

    ``load`` (types, buckets) is how many nodes of a type a bucket's requests keep busy, infinite
    where the type can't serve them; ``prices`` are of a node, ``limits`` the most nodes of a type
    (None: any number). Each bucket is cut into ``slices`` equal parts, and each part goes to one
    type. Of the ways to share the load among the nodes that were found, the one is taken in which
    the busiest type is least busy, where slices are cut as finely as needed.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    types, buckets = load.shape
    serves = np.isfinite(load)
    if not serves.any(axis=0).all():
        return None
    each = np.where(serves, load, 0.0) / slices
    # columns: the slices of bucket b that type g serves, type by type; then the nodes of each type
    cuts = types * buckets
    whole = np.zeros((buckets, cuts + types))
    fits = np.zeros((types, cuts + types))
    for g in range(types):
        whole[np.arange(buckets), g * buckets + np.arange(buckets)] = 1
        fits[g, g * buckets : (g + 1) * buckets] = each[g]
        fits[g, cuts + g] = -1
    top = np.where(serves, slices, 0).ravel()
    most = [np.inf if limit is None else limit for limit in (limits or [None] * types)]
    found = milp(
        np.concatenate([np.zeros(cuts), prices]),
        integrality=np.ones(cuts + types),
        bounds=Bounds(0, np.concatenate([top, most])),
        constraints=[LinearConstraint(whole, slices, slices), LinearConstraint(fits, -np.inf, 0)],
        options={"time_limit": time_limit_s, "mip_rel_gap": 0.0},
    )
    status = int(found.status)
    if status == 2:  # infeasible
        return None
    if found.x is None:
        raise LengthwiseError(f"no mix was found within {time_limit_s:g} s: {found.message}")
    counts = np.rint(found.x[cuts:]).astype(np.int64)
    shares = _shares(load, counts)
    busy = (np.where(serves, load, 0.0) * shares).sum(axis=1)
    cost = float(counts @ np.asarray(prices, np.float64))
    gap = max(0.0, 1 - float(found.mip_dual_bound) / cost) if status == 1 else 0.0
    used = np.divide(busy, counts, out=np.zeros(types), where=counts > 0)
    return Mix(tuple(counts.tolist()), shares, used, cost, gap)


def nodes_alone(load: Floats) -> int:
    """How many nodes of one type carry its load (buckets,), which is finite."""
    return max(1, int(np.ceil(load.sum() - SLACK)))


def _shares(load: Floats, counts: NDArray[np.int64]) -> Floats:
    """Shares (types, buckets) that make the busiest type's utilisation least: a linear program."""
    from scipy.optimize import linprog

    types, buckets = load.shape
    usable = np.isfinite(load) & (counts > 0)[:, None]
    each = np.where(usable, load, 0.0)
    cuts = types * buckets
    fits = np.zeros((types, cuts + 1))
    whole = np.zeros((buckets, cuts + 1))
    for g in range(types):
        fits[g, g * buckets : (g + 1) * buckets] = each[g]
        fits[g, cuts] = -float(counts[g])
        whole[np.arange(buckets), g * buckets + np.arange(buckets)] = 1
    bounds = [(0.0, 1.0 if one else 0.0) for one in usable.ravel()]
    found = linprog(
        np.concatenate([np.zeros(cuts), [1.0]]), fits, np.zeros(types), whole, np.ones(buckets),
        [*bounds, (0.0, None)],
    )  # fmt: skip
    if found.x is None:
        raise LengthwiseError(f"no shares were found for the mix: {found.message}")
    shares = np.clip(found.x[:cuts].reshape(types, buckets), 0.0, 1.0)
    return np.asarray(shares / shares.sum(axis=0), np.float64)
