"""Scheduling policies in SGLang 0.5.11 and later, through its plugin entry point.

    LENGTHWISE_SGLANG='{"policy": "srtf"}' python -m sglang.launch_server ... \\
        --enable-priority-scheduling --schedule-low-priority-values-first

Without the environment variable the plugin does nothing. With it, each request's ``priority`` is
the policy's score while SGLang sorts its queue and while it chooses whom to preempt (at
``--priority-scheduling-preemption-threshold``, which is in score units). Everywhere else, as in a
full queue (``--max-queued-requests``), metrics and the prefix cache, it is what the client said.

Each tensor-parallel rank schedules by itself and all must agree, so scores may read no clock and
nothing that ranks see at different times. Lengths come from the client, as
``custom_params={"predicted_tokens": 120}`` of its sampling parameters, from the ``predictor``,
which SGLang's front asks (``sglang_front``), or are the default. With policy ``fcfs`` SGLang
schedules as it would, and lengths are predicted and recorded beside it.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

from lengthwise.curves import RequestCurve
from lengthwise.errors import InputError
from lengthwise.policies.plugins import client
from lengthwise.policies.plugins.metrics import Counters
from lengthwise.policies.plugins.scorer import Scorer
from lengthwise.policies.plugins.settings import Settings
from lengthwise.policies.plugins.sglang_front import CURVE, TOKENS, Front
from lengthwise.prediction import CURVES, EDGES
from lengthwise.provider import Provider

ENVIRONMENT = "LENGTHWISE_SGLANG"
USED = (
    "policy", "bundle", "predictor", "default_tokens", "client_lengths", "predict_timeout_s",
    "record", "record_prompts",
)  # fmt: skip
MANAGERS = "sglang.srt.managers"
AT = EDGES.tolist()


def _left(request: Any, feature: str) -> float:
    """What a curve of a request's prediction says now; of a single length, what is left of it."""
    done = len(request.output_ids)
    if (curve := request.lengthwise_curves.get(feature)) is None:
        return max(float(request.lengthwise_predicted) - done, 1.0)
    return float(min(curve.at(done), max(request.lengthwise_limit - done, 1.0)))


VALUES: Provider[Callable[[Any], float]] = Provider(
    "SGLang's scheduler, where ranks must agree,",
    {
        "prompt_tokens": lambda r: len(r.origin_input_ids),
        "generated_tokens": lambda r: len(r.output_ids),
        "predicted_tokens": lambda r: r.lengthwise_predicted,
        **{name: partial(_left, feature=name) for name in CURVES},
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
        settings = configured()
        policy = settings.load()
        priorities = None if policy.queue == "fcfs" else Priorities(settings)
    except InputError as error:
        raise SystemExit(f"{ENVIRONMENT}: {error}") from None
    if priorities is not None:
        order = f"{MANAGERS}.schedule_policy.SchedulePolicy"
        adder = f"{MANAGERS}.schedule_policy.PrefillAdder"
        batch = f"{MANAGERS}.schedule_batch.ScheduleBatch"
        HookRegistry.register(f"{order}.__init__", priorities.check, HookType.AFTER)
        HookRegistry.register(f"{order}.calc_priority", priorities.order, HookType.AROUND)
        HookRegistry.register(f"{adder}.preempt_to_schedule", priorities.preempt, HookType.AROUND)
        HookRegistry.register(f"{batch}.release_req", priorities.release, HookType.BEFORE)
    if settings.predictor_folder or settings.record:
        front = Front(settings, policy.score.features)
        manager = f"{MANAGERS}.tokenizer_manager.TokenizerManager"
        for name, hook, kind in (
            ("__init__", front.begin, HookType.AFTER),
            ("_tokenize_one_request", front.tokenized, HookType.AROUND),
            ("_batch_tokenize_and_process", front.tokenized_batch, HookType.AROUND),
            ("_handle_batch_output", front.output, HookType.BEFORE),
        ):
            HookRegistry.register(f"{manager}.{name}", hook, kind)


def configured() -> Settings:
    """The settings of the environment variable; raises ``InputError`` for some that do nothing."""
    try:
        given = json.loads(os.environ[ENVIRONMENT])
    except ValueError as error:
        raise InputError(f"{ENVIRONMENT} is not JSON: {error}") from None
    return checked(given)


def checked(given: Any) -> Settings:
    """Settings that do something in SGLang; raises ``InputError`` for others."""
    settings = Settings.parse(given, USED, "SGLang")
    policy = settings.load()
    settings.refuse_idle(policy)
    if policy.queue == "fcfs" and not (settings.predictor_folder or settings.record):
        raise InputError("policy fcfs is SGLang's own: without predictor or record it does nothing")
    return settings


class Priorities:
    """Sets ``priority`` on SGLang's requests; raises ``InputError`` for what can't work there."""

    def __init__(self, settings: Settings) -> None:
        policy = self._policy = settings.load()
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
        VALUES.require(policy.score.features, f"policy {policy.name!r}")
        self._default = settings.default_tokens
        self._believed = settings.client_lengths
        self._predicted = bool(settings.predictor_folder)  # by SGLang's front, for all ranks
        self._sign = 1  # of SGLang's priorities: 1 where the lowest goes first, else -1

    @cached_property
    def counters(self) -> Counters:
        """Made when they are needed: SGLang says where Prometheus writes, and that late."""
        return Counters()

    @cached_property
    def _scorer(self) -> Scorer:
        # a rank that is slower than the others must not switch its policy off alone
        return Scorer(self._policy.score, self.counters, math.inf, self._policy.trained_on)

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
            self._note(request)
            request.lengthwise_own = request.priority
        score = self._scorer.one({name: VALUES[name](request) for name in self._scorer.names})
        if math.isnan(score):
            self.counters.add("fallbacks", "policy")
            score = 0.0  # ahead of most, and first come, first served among its like
        request.priority = self._sign * score

    def _note(self, request: Any) -> None:
        """Notes how long a request is held to be: by the front, by its client, or by nobody."""
        limit = client.number(getattr(request.sampling_params, "max_new_tokens", None))
        most = request.lengthwise_limit = math.inf if limit is None else max(limit, 1.0)
        custom = getattr(request.sampling_params, "custom_params", None)
        said = custom if isinstance(custom, dict) else {}  # it may be anything
        request.lengthwise_curves = {}
        if self._predicted and (told := client.length(said.get(TOKENS))) is not None:
            request.lengthwise_predicted = min(told, most)
            request.lengthwise_curves = _curves(said)
            return
        if self._predicted:
            self.counters.add("fallbacks", "predictor-off")
            self.counters.warn(
                "front",
                "a request came from a front that predicts nothing, as with "
                "--tokenizer-worker-num above 1",
            )
        sent = said.get("predicted_tokens") if self._believed else None
        told = client.length(sent)
        if told is None and sent is not None:
            self.counters.add("ignored", "predicted_tokens")
        self.counters.add("predictions", "default" if told is None else "client")
        request.lengthwise_predicted = min(self._default if told is None else told, most)


def _curves(said: Mapping[str, Any]) -> dict[str, RequestCurve]:
    """By feature, as the front sent them."""
    return {name: RequestCurve(AT, said[CURVE + name]) for name in CURVES if CURVE + name in said}
