"""Scheduling policies in SGLang 0.5.11 and later, through its plugin entry point.

    LENGTHWISE_SGLANG='{"policy": "srtf"}' python -m sglang.launch_server ... \\
        --enable-priority-scheduling --schedule-low-priority-values-first

Without the environment variable the plugin does nothing. With it, each request's ``priority`` is
the policy's score while SGLang sorts its queue and while it chooses whom to preempt (at
``--priority-scheduling-preemption-threshold``, which is in score units). Everywhere else, as in a
full queue (``--max-queued-requests``), metrics and the prefix cache, it is what the client said.

Each tensor-parallel rank schedules by itself and all must agree, so scores may read no clock and
nothing that ranks see at different times. Lengths come from the client, as
``custom_params={"predicted_tokens": 120}`` of its sampling parameters, or are the default.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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
MANAGERS = "sglang.srt.managers"

VALUES: Provider[Callable[[Any], float]] = Provider(
    "SGLang's scheduler, where ranks must agree,",
    {
        "prompt_tokens": lambda r: len(r.origin_input_ids),
        "generated_tokens": lambda r: len(r.output_ids),
        "predicted_tokens": lambda r: r.lengthwise_predicted,
        # a length is one number here, and what is left of it
        **dict.fromkeys(CURVES, lambda r: max(r.lengthwise_predicted - len(r.output_ids), 1.0)),
        "priority": lambda r: r.lengthwise_urgency,
    },
)


def register() -> None:
    """SGLang's entry point: hooks the order of its queue, if the environment asks for it.

    Raises ``SystemExit`` for settings that can't work there: what else a plugin raises SGLang logs,
    and serves without it.
    """
    if not os.environ.get(ENVIRONMENT):
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    try:
        priorities = Priorities.from_environment()
    except InputError as error:
        raise SystemExit(f"{ENVIRONMENT}: {error}") from None
    policy = f"{MANAGERS}.schedule_policy.SchedulePolicy"
    HookRegistry.register(f"{policy}.__init__", priorities.check, HookType.AFTER)
    HookRegistry.register(f"{policy}.calc_priority", priorities.order, HookType.AROUND)
    HookRegistry.register(
        f"{MANAGERS}.schedule_policy.PrefillAdder.preempt_to_schedule", priorities.preempt,
        HookType.AROUND,
    )  # fmt: skip
    HookRegistry.register(
        f"{MANAGERS}.schedule_batch.ScheduleBatch.release_req", priorities.release, HookType.BEFORE
    )


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
        self._scorer = Scorer(policy.score, self.counters, math.inf, policy.trained_on)
        self._scorer.require(VALUES)
        self._default = settings.default_tokens
        self._believed = settings.client_lengths
        self._sign = 1  # of SGLang's priorities: 1 where the lowest goes first, else -1

    @classmethod
    def from_environment(cls) -> Priorities:
        """The settings of the environment variable."""
        try:
            given = json.loads(os.environ[ENVIRONMENT])
        except ValueError as error:
            raise InputError(f"{ENVIRONMENT} is not JSON: {error}") from None
        return cls(Settings.parse(given, USED, "SGLang"))

    def check(self, result: None, policy: Any, *args: Any, **kwargs: Any) -> None:
        """After ``SchedulePolicy.__init__``: refuses a server on which the policy has no effect."""
        if not policy.enable_priority_scheduling:
            raise InputError(f"{ENVIRONMENT} has no effect without --enable-priority-scheduling")
        self._sign = policy.priority_sign

    def order(
        self, original: Callable[..., Any], policy: Any, waiting_queue: list[Any], *args: Any,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Goes around ``SchedulePolicy.calc_priority``, which sorts the queue."""
        with self._scored(waiting_queue):
            return original(policy, waiting_queue, *args, **kwargs)

    def preempt(
        self, original: Callable[..., Any], adder: Any, request: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Goes around ``PrefillAdder.preempt_to_schedule``, which compares priorities."""
        with self._scored([request, *adder.running_batch.reqs]):
            return original(adder, request, *args, **kwargs)

    def release(self, batch: Any, index: int, *args: Any, **kwargs: Any) -> None:
        """Before ``ScheduleBatch.release_req``: a victim's cache is kept at its own priority."""
        request = batch.reqs[index]
        request.priority = getattr(request, "lengthwise_own", request.priority)

    @contextmanager
    def _scored(self, requests: Iterable[Any]) -> Iterator[None]:
        """Scores as priorities, for as long as it lasts."""
        scored = list(requests)
        try:
            for request in scored:
                self._set(request)
            yield
        finally:
            for request in scored:
                request.priority = getattr(request, "lengthwise_own", request.priority)

    def _set(self, request: Any) -> None:
        if not hasattr(request, "lengthwise_own"):
            own = client.number(request.priority)
            # lowest first, as scores are
            request.lengthwise_urgency = sys.maxsize if own is None else self._sign * own
            request.lengthwise_predicted = self._length(request)
            request.lengthwise_own = request.priority
        score = self._scorer.one({name: VALUES[name](request) for name in self._scorer.names})
        if math.isnan(score):
            self.counters.add("fallbacks", "policy")
            score = 0.0  # ahead of most, and first come, first served among its like
        request.priority = self._sign * score

    def _length(self, request: Any) -> float:
        limit = client.number(getattr(request.sampling_params, "max_new_tokens", None))
        most = math.inf if limit is None else max(limit, 1.0)
        custom = getattr(request.sampling_params, "custom_params", None)
        said = custom if self._believed and isinstance(custom, dict) else {}  # it may be anything
        sent = said.get("predicted_tokens")
        told = client.length(sent)
        if told is None and sent is not None:
            self.counters.add("ignored", "predicted_tokens")
        self.counters.add("predictions", "default" if told is None else "client")
        return min(self._default if told is None else told, most)
