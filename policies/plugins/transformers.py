"""Scheduling policies in transformers' continuous batching (5.17 and later).

    from lengthwise.policies.plugins.transformers import register
    register("srtf", predict=lambda prompts: [...])   # token ids in, predicted tokens out
    model.generate_batch(inputs, continuous_batching_config=ContinuousBatchingConfig(
        scheduler_type="lengthwise"))

The policy orders the waiting requests. Where it preempts, a running request is passed over and
keeps its KV cache, so that nothing is lost and preemption has no price there; ``margin``,
``max_per_step`` and ``protect_after`` hold as everywhere (``lengthwise.preemption``). The
starvation guard is on, as in vLLM, until the policy or ``guard=0`` switches it off.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any, cast

import numpy as np

from lengthwise.context import Context, given
from lengthwise.errors import InputError
from lengthwise.features import reads_prediction
from lengthwise.policies.load import load_policy
from lengthwise.policies.plugins import client
from lengthwise.policies.plugins.accuracy import UNKNOWN, Accuracy
from lengthwise.policies.plugins.known import known_of, sound, with_chat
from lengthwise.policies.plugins.metrics import Counters
from lengthwise.policies.plugins.saved import (
    abstained,
    count_abstained,
    curves_of,
    intervals,
    saved_predictor,
)
from lengthwise.policies.plugins.scorer import RAISED, Scorer
from lengthwise.policies.plugins.transformers_guard import BatchGuard
from lengthwise.policy import Guard, SchedulingPolicy
from lengthwise.prediction import CURVES, Prediction
from lengthwise.preemption import Demand, Victims, exchanges
from lengthwise.provider import Provider
from lengthwise.served_text import PromptReader
from lengthwise.sessions import Sessions
from lengthwise.starvation import UNKNOWN_TOKENS

Predict = Callable[[list[list[int]]], Sequence[float] | Prediction]
Known = Callable[[str], Mapping[str, Any]]
Asked = Callable[[list[int], Mapping[str, Any]], Sequence[float] | Prediction]


def _left(state: Any, feature: str) -> float:
    """What a curve of a request's prediction says now; of a single length, what is left of it."""
    done = len(state.generated_tokens)
    if (curve := state.lengthwise_curves.get(feature)) is None:
        return max(float(state.lengthwise_predicted) - done, 1.0)
    return float(min(curve.at(done), max(state.lengthwise_limit - done, 1.0)))


# Values of one request (its state in transformers), or of all requests (its scheduler).
REQUEST: Mapping[str, Callable[[Any], float]] = {
    "arrival_s": lambda s: s.created_time,
    "prompt_tokens": lambda s: s.lengthwise_prompt_tokens,
    "predicted_tokens": lambda s: s.lengthwise_predicted,
    **{name: partial(_left, feature=name) for name in CURVES},
    "generated_tokens": lambda s: len(s.generated_tokens),
    "computed_tokens": lambda s: s.position_offset,
}
SHARED: Mapping[str, Callable[[Any], float]] = {
    "now_s": lambda scheduler: scheduler.clock(),
    "running_requests": lambda scheduler: len(scheduler.active_requests),
    "waiting_requests": lambda scheduler: len(scheduler.waiting_requests),
}
VALUES: Provider[Callable[[Any], float]] = Provider("transformers", {**REQUEST, **SHARED})


def register(
    policy: str | SchedulingPolicy | Callable[..., Any],
    *,
    predict: Predict | str | os.PathLike[str] | None = None,
    tokenizer: Any = None,
    known: Known | None = None,
    default_tokens: float = UNKNOWN_TOKENS,
    guard: float = Guard.ratio,
    guard_floor_s: float = Guard.floor_s,
    name: str = "lengthwise",
) -> type[Any]:
    """Adds a scheduler class under ``name`` to transformers' table, and returns it.

    ``predict`` maps the token ids of n prompts to n predicted lengths, or to a ``Prediction``, or
    is the folder of a saved predictor, which reads them through the model's ``tokenizer``; it is
    called in the generation thread, once for each request, and no length exceeds the request's
    ``max_new_tokens``.

    ``known`` tells what is known of a request by its id, as columns of ``context.Context``: with
    ``session_id`` the lengths of its session's finished answers are kept, and told to the saved
    predictor. A chat's system prompt and earlier answers are read from the prompt.

    ``guard`` and ``guard_floor_s`` are a ``policy.Guard`` for a policy that says nothing of one: 0
    is off, there as here. Raises
    ``InputError`` for a policy that reads what transformers doesn't have, for a folder that holds
    no predictor, and for a name that is taken by one of its own schedulers.
    """
    from transformers.generation.continuous_batching.scheduler import (
        SCHEDULER_MAPPING,
        FIFOScheduler,
    )

    chosen = load_policy(policy)
    if chosen.preemption.mode == "swap" or chosen.admission.reserve:
        raise InputError(f"policy {chosen.name!r} in transformers: no swapping, no +admit")
    Scorer(chosen.score, Counters(), math.inf).require(VALUES)
    taken = SCHEDULER_MAPPING.get(name)
    if taken is not None and not issubclass(taken, PolicyOrder):
        raise InputError(f"scheduler {name!r} is transformers' own; choose another name")
    rule = Guard(guard, guard_floor_s) if chosen.guard is None else chosen.guard
    asked = None if predict is None else _asked(predict, tokenizer)
    made = type(
        "PolicyScheduler",
        (PolicyOrder, FIFOScheduler),
        {"policy": chosen, "predict": staticmethod(asked) if asked else None,
         "known": staticmethod(known) if known else None,
         "default_tokens": default_tokens, "rule": rule},
    )  # fmt: skip
    SCHEDULER_MAPPING[name] = cast(Any, made)
    return made


def _asked(predict: Predict | str | os.PathLike[str], tokenizer: Any) -> Asked:
    """What a predictor says of one prompt, and of what is known beside it."""
    if callable(predict):
        told = predict
        return lambda prompt, known: told([prompt])
    predictor = saved_predictor(predict)
    if tokenizer is None:
        raise InputError(
            f"predictor {os.fspath(predict)!r} reads texts: give the model's tokenizer"
        )
    reader = PromptReader(tokenizer)

    def ask(prompt: list[int], known: Mapping[str, Any]) -> Prediction:
        text, told = reader.served(prompt)
        more: dict[str, Any] = {**given(predictor, Context.each([with_chat(known, told)]))}
        return predictor.predict([text], prompt_tokens=[len(prompt)], **more)

    return ask


class PolicyOrder:
    """Goes before transformers' ``FIFOScheduler`` in a class made of both."""

    policy: SchedulingPolicy
    predict: Asked | None
    known: Known | None
    default_tokens: float
    rule: Guard  # a ratio of 0 is no guard
    clock: Callable[[], float] = staticmethod(time.perf_counter)  # that of arrivals
    # transformers' own
    active_requests: dict[str, Any]
    waiting_requests: dict[str, Any]
    waiting_requests_order: Any
    max_requests_per_batch: int
    block_new_requests: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.lengthwise_counters = Counters()
        self._lengthwise_scorer = Scorer(
            self.policy.score, self.lengthwise_counters, 0.1, self.policy.trained_on
        )
        self._lengthwise_accuracy = Accuracy(self.lengthwise_counters)
        self._lengthwise_sessions = Sessions()
        self._lengthwise_sequence = count()
        self._lengthwise_seated: set[str] = set()  # ids in the last batch
        guarded = self.rule.ratio > 0 and self.policy.queue == "priority"
        self._lengthwise_guard = BatchGuard(self.rule, self._has) if guarded else None
        super().__init__(*args, **kwargs)

    def add_waiting_request(self, state: Any) -> None:
        """A request arrives, or comes back after its KV cache was given up."""
        if not hasattr(state, "lengthwise_sequence"):
            state.lengthwise_sequence = next(self._lengthwise_sequence)
            state.lengthwise_prompt_tokens = len(state.initial_tokens)
            self._predict(state)
        if self._lengthwise_guard is not None:
            idle = not self.active_requests and not self.waiting_requests
            self._lengthwise_guard.arrived(state, idle=idle)
        super().add_waiting_request(state)  # type: ignore[misc]

    def schedule_batch(self, token_budget: int, cache_budget: int) -> Any:
        """One batch: transformers' own choice among those that the policy does not pass over."""
        guard, now_s = self._lengthwise_guard, self.clock()
        if guard is not None:
            self.lengthwise_counters.add("guarded", "wait", guard.send_ahead(now_s))
        found = self._schedule_batch(token_budget, cache_budget)
        if guard is not None and found[0] is not None:
            known = {**self.active_requests, **self.waiting_requests}
            guard.scheduled([future.state for future in found[0]], now_s, known)
        return found

    def finish_request(self, request_id: str) -> None:
        """A request has all its tokens, or failed: what its prediction was worth shows."""
        state = self.active_requests.get(request_id)
        if state is not None and getattr(state, "error", None) is None:
            self._learn(state)
        super().finish_request(request_id)  # type: ignore[misc]

    def _learn(self, state: Any) -> None:
        generated, said = len(state.generated_tokens), state.lengthwise_said
        self._lengthwise_sessions.finished(state.lengthwise_known, generated)
        if said is not None:
            self._lengthwise_accuracy.finished("predictor", said[0], generated, said[1])

    def _known(self, state: Any, limit: float) -> dict[str, Any]:
        """What is known of a request beside its prompt."""
        limits = {} if math.isinf(limit) else known_of(numbers={"max_tokens": limit})
        if self.known is None:
            return limits
        try:
            return {**limits, **sound(self.known(state.request_id))}
        except RAISED as error:
            self.lengthwise_counters.warn("known", f"known failed: {error!r}")
            return limits

    def _schedule_batch(self, token_budget: int, cache_budget: int) -> Any:
        if self.policy.preemption.mode == "none" or self.block_new_requests:
            return super().schedule_batch(token_budget, cache_budget)  # type: ignore[misc]
        passed = self._to_pass_over(token_budget)
        order = dict(self.active_requests)
        for request_id in passed:
            del self.active_requests[request_id]
        try:
            found = super().schedule_batch(token_budget, cache_budget)  # type: ignore[misc]
        finally:
            joined = {i: s for i, s in self.active_requests.items() if i not in order}
            self.active_requests.clear()
            self.active_requests.update({**order, **joined})
        if passed and not found[0]:  # nobody could take their place: they go on after all
            found = super().schedule_batch(token_budget, cache_budget)  # type: ignore[misc]
        self._lengthwise_seated = {future.state.request_id for future in found[0] or ()}
        return found

    def _has(self, request_id: str) -> bool:
        return request_id in self.active_requests or request_id in self.waiting_requests

    def _is_ahead(self, state: Any) -> bool:
        guard = self._lengthwise_guard
        return guard is not None and guard.is_ahead(state.request_id)

    def _get_waiting_candidates(self) -> list[Any]:
        waiting = [self.waiting_requests[request_id] for request_id in self.waiting_requests_order]
        return [state for _, state in self._ranked(waiting)]

    def _predict(self, state: Any) -> None:
        """Notes the predicted length, and whether the request is served FCFS for want of one."""
        most = client.number(getattr(state, "max_new_tokens", None))
        limit = math.inf if most is None else max(most, 1.0)
        state.lengthwise_predicted, state.lengthwise_fcfs = min(self.default_tokens, limit), False
        state.lengthwise_curves, state.lengthwise_limit = {}, limit
        state.lengthwise_whole = 0  # the predicted length, rounded up; 0 while it is the default
        state.lengthwise_said = None  # what the predictor said, and within what: followed or not
        state.lengthwise_known = self._known(state, limit)
        if self.predict is None or not reads_prediction(self.policy.score.features):
            return
        try:
            known = state.lengthwise_known
            known = {**known, **self._lengthwise_sessions.before(known)}
            said = self.predict(state.initial_tokens, known)
            interval, unsure, curves = UNKNOWN, False, {}
            if isinstance(said, Prediction):
                unsure = bool(abstained(said).any())
                low, high = np.minimum(intervals(said)[0], limit).tolist()
                curves, interval = curves_of(said, self.policy.score.features), (low, high)
                said = said.predicted_tokens.tolist()
            predicted = float(said[0])
            if not (math.isfinite(predicted) and predicted > 0):
                raise ValueError(f"it predicted {predicted!r} tokens")
            predicted = min(predicted, limit)
        except RAISED as error:
            self.lengthwise_counters.warn("predictor-error", f"the predictor failed: {error!r}")
            self.lengthwise_counters.add("fallbacks", "predictor-error")
            state.lengthwise_fcfs = True
            return
        count_abstained(self.lengthwise_counters, int(unsure))
        state.lengthwise_said = None if unsure else (predicted, interval)
        if self._lengthwise_accuracy.drifted("predictor"):
            self.lengthwise_counters.add("fallbacks", "drift")
            state.lengthwise_fcfs = True
            return
        state.lengthwise_predicted, state.lengthwise_whole = predicted, math.ceil(predicted)
        state.lengthwise_curves = curves
        self.lengthwise_counters.add("predictions", "predictor")

    def _ranked(self, states: list[Any]) -> list[tuple[float, Any]]:
        """States and their scores, by (score, arrival), those that the guard sent ahead first.

        Those without a score keep their place in line: FCFS.
        """
        if not states:
            return []
        values: dict[str, Any] = {}
        for name in self._lengthwise_scorer.names:
            of = VALUES[name]
            if name in SHARED:
                values[name] = of(self)
            else:
                values[name] = np.array([float(of(state)) for state in states])
        scores = self._lengthwise_scorer.many(values, len(states))
        failed = np.isnan(scores) | np.array([s.lengthwise_fcfs for s in states])
        if failed.any():
            self.lengthwise_counters.add("fallbacks", "policy", int(np.isnan(scores).sum()))
        scored = sorted(
            (i for i in range(len(states)) if not failed[i]),
            key=lambda i: (
                -math.inf if self._is_ahead(states[i]) else scores[i],
                states[i].lengthwise_sequence,
            ),
        )
        ranked = [(float(scores[i]), states[i]) for i in scored]
        in_line = sorted(range(len(states)), key=lambda i: states[i].lengthwise_sequence)
        for place, i in enumerate(in_line):
            if failed[i]:
                ranked.insert(place, (math.nan, states[i]))
        return ranked

    def _to_pass_over(self, token_budget: int) -> set[str]:
        """Active requests without a seat in this batch: those that gave way now or before.

        Free seats go to the best of those that wait or were passed over; then the best of the rest
        may take the seat of the worst of those that have one.
        """
        rule = self.policy.preemption
        active = self.active_requests
        seated = {i: s for i, s in active.items() if i in self._lengthwise_seated}
        scores = {state.request_id: score for score, state in self._ranked([*seated.values()])}
        others = [state for i, state in active.items() if i not in seated]
        standing = self._ranked([*others, *self.waiting_requests.values()])
        free = max(self.max_requests_per_batch - len(seated), 0)
        taken = {state.request_id for _, state in standing[:free]}
        spent = sum(_wanted(state) for _, state in standing[:free])
        walk = exchanges(
            # nothing is lost, so that nothing is paid for
            replace(rule, price=0.0), standing[free:],
            lambda: Victims(
                [*seated.values()], [scores[i] for i in seated],
                arrival=lambda s: s.lengthwise_sequence, lost=lambda s: 0,
                protected=lambda s: self._is_ahead(s)
                or rule.protects(len(s.generated_tokens), s.lengthwise_whole),
            ),
            seats=0, in_replica=(len(seated), max(len(standing), 1)),
            score=lambda ranked: ranked[0],
            demand=lambda ranked: Demand(0, _wanted(ranked[1])),
            free_blocks=lambda: 0,  # who is passed over keeps its blocks
            spare_tokens=lambda: token_budget - spent - sum(map(_wanted, seated.values())),
        )  # fmt: skip
        for victim, (_, state) in walk:
            del seated[victim.request_id]
            taken.add(state.request_id)
            self.lengthwise_counters.add("preemptions", "policy")
        taken.update(seated)
        return {request_id for request_id in active if request_id not in taken}


def _wanted(state: Any) -> int:
    """Tokens that a request would compute in the next batch, but for its budget."""
    return len(state.remaining_prefill_tokens) or 1
