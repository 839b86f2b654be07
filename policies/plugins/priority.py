"""For clients and proxies that can only send an integer priority: the policy's score as one.

vLLM takes it as ``priority`` under ``--scheduling-policy priority`` (lowest first); SGLang under
``--enable-priority-scheduling`` (highest first, unless told otherwise: ``lowest_first=False``).
"""

from __future__ import annotations

from collections.abc import Callable

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.policies.load import load_policy
from lengthwise.policy import SchedulingPolicy
from lengthwise.prediction import CURVES
from lengthwise.provider import Provider

LARGEST = 2**31 - 1
# What is true of every request that arrives; its other features are given.
AT_ARRIVAL: Provider[int] = Provider(
    "a request that arrives",
    {"generated_tokens": 0, "computed_tokens": 0, "preemptions": 0, "priority": 0},
)


def priority_for(
    policy: str | SchedulingPolicy | Callable[..., object],
    *,
    lowest_first: bool = True,
    per_unit: float = 1.0,
    **features: float,
) -> int:
    """The priority of a request that arrives, from its features; ``per_unit`` steps per score unit.

    Scores of whole tokens need no more than the default; finer ones want a larger ``per_unit``.
    ``predicted_tokens`` also gives what a prediction's curve says: what is left of that length.
    The priority can't change later, so a score that moves with the clock or with the replica's
    state is refused. Raises ``InputError`` for that, and for a feature that is not given.
    """
    score = load_policy(policy).score
    moving = score.changes - {"token"}
    if moving:
        raise InputError(
            f"policy {score.name!r} changes with the {' and the '.join(sorted(moving))}; "
            "a priority is given once"
        )
    values: dict[str, float] = {**AT_ARRIVAL, **features}
    allowed = set(score.features)
    if allowed & set(CURVES):
        allowed |= {"predicted_tokens", "generated_tokens"}
        if "predicted_tokens" in features:
            left = max(features["predicted_tokens"] - values["generated_tokens"], 1.0)
            values = {**dict.fromkeys(CURVES, left), **values}
    for name in features:
        if name not in allowed:
            raise UnknownNameError(f"feature of policy {score.name!r}", name, sorted(allowed))
    for name in score.features:
        if name not in values:
            raise InputError(f"policy {score.name!r} reads {name}, which is not given")
    scaled = float(score.numbers(values, 1)[0]) * per_unit
    whole = round(min(max(scaled, -LARGEST), LARGEST))
    return whole if lowest_first else -whole
