"""Scheduling policies in SGLang 0.5, through its plugin entry point.

    LENGTHWISE_SGLANG='{"policy": "srtf"}' python -m sglang.launch_server ... \\
        --enable-priority-scheduling --schedule-low-priority-values-first

Without the environment variable the plugin does nothing. With it, each request's ``priority`` is
the policy's score whenever SGLang orders its queue; SGLang's own sort and its own preemption (at
``--priority-scheduling-preemption-threshold``, which is in score units) do the rest.

Each tensor-parallel rank schedules by itself and all must agree, so scores may read no clock and
nothing that ranks see at different times. Lengths come from the client, as
``custom_params={"predicted_tokens": 120}`` of its sampling parameters, or are the default.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from typing import Any

from lengthwise.errors import InputError
from lengthwise.policies.plugins import client
from lengthwise.policies.plugins.metrics import Counters
from lengthwise.policies.plugins.scorer import Scorer
from lengthwise.policies.plugins.settings import Settings
from lengthwise.prediction import CURVES
from lengthwise.provider import Provider

ENVIRONMENT = "LENGTHWISE_SGLANG"
USED = ("policy", "bundle", "default_tokens", "client_lengths")  # settings
TARGET = "sglang.srt.managers.schedule_policy.SchedulePolicy.calc_priority"

VALUES: Provider[Callable[[Any], float]] = Provider(
    "SGLang's scheduler, where ranks must agree,",
    {
        "prompt_tokens": lambda r: len(r.origin_input_ids),
        "generated_tokens": lambda r: len(r.output_ids),
        "predicted_tokens": lambda r: r.lengthwise_predicted,
        # a length is one number here, and what is left of it
        **dict.fromkeys(CURVES, lambda r: max(r.lengthwise_predicted - len(r.output_ids), 1.0)),
        "priority": lambda r: r.lengthwise_priority,
    },
)


def register() -> None:
    """SGLang's entry point: hooks the order of its queue, if the environment asks for it."""
    if not os.environ.get(ENVIRONMENT):
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(TARGET, Priorities.from_environment().around, HookType.AROUND)


class Priorities:
    """Sets ``priority`` on SGLang's requests; raises ``InputError`` for what can't work there."""

    def __init__(self, settings: Settings) -> None:
        policy = settings.load()
        refused = [
            part
            for part, said in (
                ("swapping", policy.preemption.mode == "swap"),
                ("+preempt", "+preempt" in settings.policy),
                ("+admit", bool(policy.admission.reserve)),
                ("+guard", policy.acting_guard is not None),
            )
            if said
        ]
        if refused:
            raise InputError(
                f"policy {policy.name!r} in SGLang: no {', no '.join(refused)}; SGLang itself "
                "preempts, at --priority-scheduling-preemption-threshold"
            )
        self.counters = Counters()
        if settings.predictor_folder:
            self.counters.warn("sglang-predictor", "the bundle's predictor is not used in SGLang")
        # a rank that is slower than the others must not switch its policy off alone
        self._scorer = Scorer(policy.score, self.counters, math.inf)
        self._scorer.require(VALUES)
        self._default = settings.default_tokens
        self._believed = settings.client_lengths

    @classmethod
    def from_environment(cls) -> Priorities:
        """The settings of the environment variable."""
        try:
            given = json.loads(os.environ[ENVIRONMENT])
        except ValueError as error:
            raise InputError(f"{ENVIRONMENT} is not JSON: {error}") from None
        return cls(Settings.parse(given, USED, "SGLang"))

    def around(
        self,
        original: Callable[..., Any],
        policy: Any,
        waiting_queue: list[Any],
        running_batch: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Goes around ``SchedulePolicy.calc_priority``."""
        if policy.enable_priority_scheduling:
            for request in waiting_queue:
                self._set(request, policy.priority_sign)
            for request in getattr(running_batch, "reqs", None) or ():
                self._set(request, policy.priority_sign)
        else:
            self.counters.warn(
                "sglang-priority", "the policy has no effect without --enable-priority-scheduling"
            )
        return original(policy, waiting_queue, running_batch, *args, **kwargs)

    def _set(self, request: Any, sign: int) -> None:
        if not hasattr(request, "lengthwise_predicted"):
            request.lengthwise_priority = request.priority
            request.lengthwise_predicted = self._length(request)
        score = self._scorer.one({name: VALUES[name](request) for name in self._scorer.names})
        if math.isnan(score):
            self.counters.add("fallbacks", "policy")
            score = 0.0  # ahead of most, and first come, first served among its like
        request.priority = sign * score

    def _length(self, request: Any) -> float:
        limit = getattr(request.sampling_params, "max_new_tokens", None)
        most = math.inf if limit is None else max(float(limit), 1.0)
        custom = getattr(request.sampling_params, "custom_params", None) or {}
        sent = custom.get("predicted_tokens") if self._believed else None
        told = client.length(sent)
        if told is None and sent is not None:
            self.counters.add("ignored", "predicted_tokens")
        self.counters.add("predictions", "default" if told is None else "client")
        return min(self._default if told is None else told, most)
