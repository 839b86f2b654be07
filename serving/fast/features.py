"""What the fast engine can tell of requests and replicas: for each feature, where it lies."""

from __future__ import annotations

from lengthwise.prediction import CURVES
from lengthwise.provider import Provider

# Expressions over the state S, a request's id, a replica's index r, its row rep and its node's row
# node, and what the caller knows of the request's progress.
ACCESSORS: Provider[str] = Provider(
    "the fast engine",
    {
        "arrival_s": "np.float64(S.arrival[id]) / PS",
        "prompt_tokens": "S.prompt[id]",
        "predicted_tokens": "S.predicted[id]",
        **{name: f"curve_at(S, {place}, id, generated)" for place, name in enumerate(CURVES)},
        "priority": "S.priority[id]",
        "deadline_s": "S.deadline[id]",
        "generated_tokens": "generated",
        "computed_tokens": "computed",
        "preemptions": "preemptions",
        "now_s": "np.float64(run.now) / PS",
        "running_requests": "rep.running",
        "waiting_requests": "rep.waiting",
        "kv_utilization": "(node.blocks - rep.free) / node.blocks",
        "routed_requests": "rep.routed",
        "outstanding_tokens": "rep.outstanding / FRACTION",
        "random_draw": "uniform(np.uint64(run.seed), id, r)",
    },
)
