"""The one table of features: what a policy may read, in which unit, and when it changes.

A policy names features by its positional parameters; from the ``changes`` column the engine infers
how often a score must be evaluated again. The true output length is not a feature, and a router's
features are what a real router can know. Who can tell which of them is a ``provider.Provider``'s
business: a feature that stands here and nowhere else is refused by all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from lengthwise.errors import UnknownNameError

Changes = Literal["arrival", "token", "clock", "state"]
# Whose it is. A pair is a request and the replica that it is or may be sent to.
Of = Literal["request", "replica", "pair", "tenant", "job"]


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature: its name, unit, numpy dtype, meaning, what it belongs to and when it changes.

    ``given`` says what a run must be given for it: a "column" of its name in the workload, or a
    "prediction" of each answer's length, "tenant" a column that says whose each request is.
    ``counted``: a router counts it itself, so that it is
    never old; what a replica alone knows is as of the last time that it was asked.
    """

    name: str
    unit: str
    dtype: Literal["int64", "float64"]
    of: Of
    changes: Changes
    meaning: str
    given: Literal["", "column", "prediction", "tenant"] = ""
    counted: bool = False


FEATURES: dict[str, Feature] = {
    feature.name: feature
    for feature in (
        Feature("arrival_s", "s", "float64", "request", "arrival", "when the request arrived"),
        Feature("prompt_tokens", "tokens", "int64", "request", "arrival", "length of the prompt"),
        Feature(
            "predicted_tokens", "tokens", "float64", "request", "arrival",
            "predicted length of the whole answer", given="prediction",
        ),
        Feature(
            "expected_remaining_tokens", "tokens", "float64", "request", "token",
            "tokens expected to come, given those generated", given="prediction",
        ),
        Feature(
            "remaining_tokens_p90", "tokens", "float64", "request", "token",
            "tokens to come that are not exceeded with probability 0.9", given="prediction",
        ),
        Feature(
            "gittins_index", "tokens", "float64", "request", "token",
            "least expected work for a chance to finish, over that chance", given="prediction",
        ),
        Feature(
            "priority", "1", "int64", "request", "arrival", "the client's priority; low first",
            given="column",
        ),
        Feature(
            "deadline_s", "s", "float64", "request", "arrival", "when the answer is due",
            given="column",
        ),
        Feature(
            "generated_tokens", "tokens", "int64", "request", "token", "output tokens so far"
        ),
        Feature(
            "computed_tokens", "tokens", "int64", "request", "token",
            "tokens whose keys and values are in the cache",
        ),
        Feature("preemptions", "1", "int64", "request", "token", "times the request was preempted"),
        Feature("now_s", "s", "float64", "request", "clock", "the time of the decision"),
        Feature(
            "running_requests", "requests", "int64", "replica", "state", "requests in the batch"
        ),
        Feature(
            "waiting_requests", "requests", "int64", "replica", "state", "requests in the queue"
        ),
        Feature(
            "kv_utilization", "1", "float64", "replica", "state", "share of KV blocks in use"
        ),
        Feature(
            "routed_requests", "requests", "int64", "replica", "state",
            "requests sent to the replica so far", counted=True,
        ),
        Feature(
            "outstanding_requests", "requests", "int64", "replica", "state",
            "requests sent to the replica and not finished", counted=True,
        ),
        Feature(
            "outstanding_tokens", "tokens", "float64", "replica", "state",
            "prompt and predicted tokens of the requests sent to the replica and not finished",
            given="prediction", counted=True,
        ),
        Feature(
            "oldest_request_s", "s", "float64", "replica", "state",
            "time since the arrival of the request sent there first of those not finished, else 0",
            counted=True,
        ),
        Feature(
            "prefill_backlog_tokens", "tokens", "int64", "replica", "state",
            "prompt tokens of its requests that no iteration has computed or is computing",
        ),
        Feature(
            "decode_backlog_tokens", "tokens", "int64", "replica", "state",
            "predicted tokens (rounded up) that its requests have not generated, each at least 0",
            given="prediction",
        ),
        Feature(
            "free_seats", "requests", "int64", "replica", "state", "seats in the batch left free"
        ),
        Feature(
            "max_seats", "requests", "int64", "replica", "state",
            "seats in the batch: the most requests that run at once",
        ),
        Feature(
            "decode_tokens_per_s", "tokens/s", "float64", "replica", "state",
            "the replica's nominal speed: decoding 32 sequences (or all its seats) of 1000 tokens",
        ),
        Feature(
            "random_draw", "1", "float64", "pair", "state",
            "uniform in [0, 1), drawn from (seed, request, replica)",
        ),
        Feature(
            "cached_tokens", "tokens", "int64", "pair", "state",
            "leading tokens of the request in the replica's prefix cache; 0 where it keeps none",
        ),
        Feature(
            "tenant_weight", "1", "float64", "request", "arrival",
            "the share of the tenant beside others; 1 where the workload says none",
            given="tenant",
        ),
        Feature(
            "tenant_service", "tokens", "float64", "tenant", "state",
            "tokens served to the request's tenant there, generated ones twice, over its weight",
            given="tenant",
        ),
        Feature(
            "tenant_attained", "tokens", "float64", "tenant", "state",
            "the same, but that a tenant who comes back begins where it ended",
            given="tenant",
        ),
    )
}  # fmt: skip


def get(name: str) -> Feature:
    """The feature called ``name``; raises ``UnknownNameError`` with the nearest name."""
    try:
        return FEATURES[name]
    except KeyError:
        raise UnknownNameError("feature", name, FEATURES) from None


def changes(names: Iterable[str]) -> frozenset[Changes]:
    """When a score that reads ``names`` changes, "arrival" left out: empty means it never does."""
    return frozenset(get(name).changes for name in names) - {"arrival"}


def reads_prediction(names: Iterable[str]) -> bool:
    """Whether ``names`` hold a feature that comes from a prediction of the answer's length."""
    return any(get(name).given == "prediction" for name in names)
