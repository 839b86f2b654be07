"""Which policies can't do without predictions."""

from __future__ import annotations

from lengthwise.errors import InputError
from lengthwise.features import reads_prediction
from lengthwise.policy import RoutingPolicy, SchedulingPolicy
from lengthwise.predictors.predict import ORACLES


def needs_prediction(policy: SchedulingPolicy, router: RoutingPolicy | None = None) -> str:
    """The name of the policy (or router) that can't do without predictions, or ""."""
    if reads_prediction(policy.score.features):
        return policy.name
    if policy.admission.reserve > 0:
        return f"{policy.name} (admission reserve)"
    if router is not None and reads_prediction(router.score.features):
        return router.name
    return ""


def check_prediction(policy: SchedulingPolicy, router: RoutingPolicy, *, predicted: bool) -> None:
    """Raises ``InputError`` where ``policy`` or ``router`` reads predictions and has none."""
    name = needs_prediction(policy, router)
    if name and not predicted:
        raise InputError(
            f"{name!r} reads predicted_tokens and no predictor was given; "
            f"give one, or its bound: --predictor {ORACLES}"
        )
