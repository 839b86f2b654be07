"""What the fast engine can tell of requests and replicas: for each feature, an expression.

Where scores are to see features, ``tables.write_features`` writes one assignment each, behind a bit
of the mask of those that are read. An expression sees the state ``S``, its rows ``run``, ``node``
and ``rep`` of replica ``r``, a request's ``id``, how far it has come (``generated``, ``computed``,
``preemptions``) and ``last``, the number of the last iteration that was launched.
"""

from __future__ import annotations

from collections.abc import Iterable

from lengthwise.features import FEATURES
from lengthwise.picoseconds import PS
from lengthwise.prediction import CURVES
from lengthwise.provider import Provider
from lengthwise.serving.scoring import FRACTION

ACCESSORS: Provider[str] = Provider(
    "the fast engine",
    {
        "arrival_s": f"np.float64(S.arrival[id]) / {PS}",
        "prompt_tokens": "S.prompt[id]",
        "predicted_tokens": "S.predicted[id]",
        **{name: f"curve_at(S, {place}, id, generated)" for place, name in enumerate(CURVES)},
        "priority": "S.priority[id]",
        "deadline_s": "S.deadline[id]",
        "generated_tokens": "generated",
        "computed_tokens": "computed",
        "preemptions": "preemptions",
        "now_s": f"np.float64(run.now) / {PS}",
        "running_requests": "rep.running",
        "waiting_requests": "rep.waiting + rep.pulled",
        "kv_utilization": "(node.blocks - rep.free) / node.blocks",
        "routed_requests": "rep.routed",
        "outstanding_requests": "rep.routed - rep.departed",
        "outstanding_tokens": f"rep.outstanding / {FRACTION}",
        "oldest_request_s": f"np.float64(run.now - oldest(S, r)) / {PS}",
        "prefill_backlog_tokens": "prefill_backlog(S, r)",
        "decode_backlog_tokens": "decode_backlog(S, r, last)",
        "free_seats": "node.max_seqs - rep.running - rep.pulled",
        "max_seats": "node.max_seqs",
        "decode_tokens_per_s": "node.decode_tokens_per_s",
        "random_draw": "uniform(np.uint64(run.seed), id, r)",
        "cached_tokens": "cached_prefix(S, r, id, generated)",
        "tenant_weight": "S.weight[id]",
        "tenant_service": "tenant_service(S, r, id, last)",
        "tenant_attained": "tenant_attained(S, r, id, last)",
    },
)

# The bit of each feature in masks, and masks of several.
BITS = {name: 1 << place for place, name in enumerate(FEATURES)}


def mask(names: Iterable[str]) -> int:
    """The bits of these features."""
    return sum(BITS[name] for name in set(names))
