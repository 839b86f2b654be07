"""What a blended score is made of: quantities that are worth a wait, as scores of their own.

Each is a plain function of features like any policy, without bounds, and grows with what it counts:
a blend with non-negative weights is monotone, and orders 30,000 predicted tokens after 3,000
wherever it was trained. Among a blend's terms may also be registered scores by their names.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lengthwise.policy import Score


def predicted(predicted_tokens: Any) -> Any:
    """The predicted answer, tokens."""
    return predicted_tokens


def root_predicted(predicted_tokens: Any) -> Any:
    """The root of the predicted answer: an error-prone prediction counts less the longer it is."""
    return np.sqrt(np.maximum(predicted_tokens, 0.0))


def prompt(prompt_tokens: Any) -> Any:
    """The prompt, tokens."""
    return prompt_tokens


def footprint(predicted_tokens: Any, prompt_tokens: Any) -> Any:
    """The KV cache that the request takes, thousands of tokens times iterations."""
    return predicted_tokens * (prompt_tokens + 0.5 * predicted_tokens) / 1000.0


def arrival(arrival_s: Any) -> Any:
    """When the request arrived, s: who waits grows ahead of who comes."""
    return arrival_s


def remaining(predicted_tokens: Any, generated_tokens: Any) -> Any:
    """What is left of the predicted answer, tokens."""
    return predicted_tokens - generated_tokens


def expected_remaining(expected_remaining_tokens: Any) -> Any:
    """What is expected to be left of the answer given what was generated, tokens."""
    return expected_remaining_tokens


def left_prompt(prompt_tokens: Any, computed_tokens: Any) -> Any:
    """What is left of the prompt to be computed, tokens."""
    return np.maximum(prompt_tokens - computed_tokens, 0)


def requests(running_requests: Any, waiting_requests: Any) -> Any:
    """The requests in the replica."""
    return 1.0 * running_requests + waiting_requests


def requests_per_seat(running_requests: Any, waiting_requests: Any, max_seats: Any) -> Any:
    """The requests in the replica for each of its seats."""
    return (running_requests + waiting_requests) / np.maximum(max_seats, 1)


def unfinished_s(outstanding_requests: Any, decode_tokens_per_s: Any) -> Any:
    """Requests sent there and not finished, this one counted, over the nominal speed,
    thousandths: the router's own count, which is never old.
    """
    return 1000.0 * (outstanding_requests + 1) / np.maximum(decode_tokens_per_s, 1.0)


def unfinished_per_seat(outstanding_requests: Any, max_seats: Any) -> Any:
    """The same for each of the replica's seats."""
    return (outstanding_requests + 1) / np.maximum(max_seats, 1)


def own_step_s(predicted_tokens: Any, max_seats: Any, decode_tokens_per_s: Any) -> Any:
    """The request's own answer at one token an iteration of the nominal batch, s."""
    batch = np.minimum(max_seats, 32)
    return predicted_tokens * batch / np.maximum(decode_tokens_per_s, 1.0)


def own_crowd_s(predicted_tokens: Any, outstanding_requests: Any, decode_tokens_per_s: Any) -> Any:
    """The request's own answer times the requests there over the nominal speed, s: how much
    they slow it, and it slows them.
    """
    return predicted_tokens * outstanding_requests / np.maximum(decode_tokens_per_s, 1.0)


def prompt_crowd_s(prompt_tokens: Any, outstanding_requests: Any, decode_tokens_per_s: Any) -> Any:
    """The request's own prompt times the requests there over the nominal speed, s: they all wait
    while it is computed.
    """
    return prompt_tokens * outstanding_requests / np.maximum(decode_tokens_per_s, 1.0)


def outstanding(outstanding_tokens: Any) -> Any:
    """Tokens sent there and not finished."""
    return outstanding_tokens


def outstanding_s(outstanding_tokens: Any, decode_tokens_per_s: Any) -> Any:
    """The same at the replica's nominal speed, s."""
    return outstanding_tokens / np.maximum(decode_tokens_per_s, 1.0)


def outstanding_per_seat(outstanding_tokens: Any, max_seats: Any) -> Any:
    """The same for each of its seats, tokens."""
    return outstanding_tokens / np.maximum(max_seats, 1)


def prefill_s(prefill_backlog_tokens: Any, decode_tokens_per_s: Any) -> Any:
    """Prompt tokens ahead over the nominal speed, s."""
    return prefill_backlog_tokens / np.maximum(decode_tokens_per_s, 1.0)


def decode_s(decode_backlog_tokens: Any, decode_tokens_per_s: Any) -> Any:
    """Tokens to be decoded there at the nominal speed, s."""
    return decode_backlog_tokens / np.maximum(decode_tokens_per_s, 1.0)


def seat_wait_s(
    decode_backlog_tokens: Any,
    running_requests: Any,
    waiting_requests: Any,
    max_seats: Any,
    decode_tokens_per_s: Any,
) -> Any:
    """Until a seat is free: the share of the decode backlog that must end first, s."""
    here = running_requests + waiting_requests
    ahead = np.maximum(here + 1 - max_seats, 0) / np.maximum(here, 1)
    return decode_backlog_tokens / np.maximum(decode_tokens_per_s, 1.0) * ahead


def own_s(predicted_tokens: Any, decode_tokens_per_s: Any) -> Any:
    """The request's own answer at the nominal speed, s: long ones gain most on a fast replica."""
    return predicted_tokens / np.maximum(decode_tokens_per_s, 1.0)


def own_prompt_s(prompt_tokens: Any, decode_tokens_per_s: Any) -> Any:
    """The request's own prompt at the same speed, s."""
    return prompt_tokens / np.maximum(decode_tokens_per_s, 1.0)


def turn(routed_requests: Any, decode_tokens_per_s: Any) -> Any:
    """Requests sent so far over the nominal speed, thousandths: whose turn it is."""
    return 1000.0 * (routed_requests + 1) / np.maximum(decode_tokens_per_s, 1.0)


def kv(kv_utilization: Any) -> Any:
    """The share of the KV cache in use."""
    return kv_utilization


def new_tokens_requests(
    prefill_backlog_tokens: Any, prompt_tokens: Any, running_requests: Any, waiting_requests: Any
) -> Any:
    """Prefill tokens times requests, thousands (LMetric, OSDI 2026, without its cache)."""
    new_tokens = 1.0 * prefill_backlog_tokens + prompt_tokens
    return new_tokens * (running_requests + waiting_requests) / 1000.0


TERMS: dict[str, Score] = {
    function.__name__: Score.from_function(function)
    for function in (
        predicted, root_predicted, prompt, footprint, arrival, remaining, requests,
        expected_remaining, left_prompt, requests_per_seat, outstanding, outstanding_s,
        outstanding_per_seat, prefill_s, decode_s, seat_wait_s, own_s, own_prompt_s, turn, kv,
        unfinished_s, unfinished_per_seat, own_step_s, own_crowd_s,
        prompt_crowd_s, new_tokens_requests,
    )
}  # fmt: skip
