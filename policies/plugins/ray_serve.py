"""Routing policies in Ray Serve (2.60), for its LLM deployments and any others.

    RequestRouterConfig(
        request_router_class="lengthwise.policies.plugins.ray_serve:PolicyRouter",
        request_router_kwargs={"policy": "least-tokens", "predictor": "DIR"})

A replica may report ``waiting_requests``, ``running_requests`` and ``kv_utilization`` from its
``record_routing_stats``; name those that it does in ``reports``.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from typing import Any

from lengthwise.policies.plugins.routing import ReplicaRouter
from lengthwise.registry import resolve

CHARACTERS_PER_TOKEN = 4.0  # where nothing better is known of a prompt
LONGEST_QUEUE = 100_000  # requests that wait for a replica


class PolicyRouting:
    """Goes before Ray Serve's ``RequestRouter`` in a class made of both, ``PolicyRouter``."""

    curr_replicas: Any  # Ray Serve's own

    def initialize_state(
        self,
        policy: str = "jsq",
        predictor: str = "",
        reports: Sequence[str] = (),
        default_tokens: float = 256.0,
        predict_timeout_s: float = 0.5,
        seed: int = 0,
        **rest: Any,
    ) -> None:
        """Called by Ray Serve with ``request_router_kwargs``.

        Raises ``InputError`` for a policy that reads what is not reported, and for a folder that
        is no predictor.
        """
        super().initialize_state(**rest)  # type: ignore[misc]
        self._lengthwise = ReplicaRouter(policy, reports=reports, seed=seed)
        self._lengthwise_reports = tuple(reports)
        self._lengthwise_default = default_tokens
        self._lengthwise_timeout_s = predict_timeout_s
        self._lengthwise_predictor = None
        if predictor:
            load = resolve("lengthwise.predictors:load_predictor")
            self._lengthwise_predictor = load(predictor)
        self._lengthwise_tokens: dict[str, float] = {}  # of requests that wait for their replica

    async def choose_replicas(
        self, candidate_replicas: list[Any], pending_request: Any = None
    ) -> list[list[Any]]:
        """The candidates in the policy's order, each a rank of its own."""
        by_id = {str(replica.replica_id): replica for replica in candidate_replicas}
        self._lengthwise.keep([str(replica_id) for replica_id in self.curr_replicas])
        for name, replica in by_id.items():
            stats = {k: v for k, v in (replica.routing_stats or {}).items()
                     if k in self._lengthwise_reports}  # fmt: skip
            if stats:
                self._lengthwise.report(name, **stats)
        prompt, predicted = await self._lengthwise_lengths(pending_request)
        if pending_request is not None:
            request = pending_request.metadata.internal_request_id
            self._lengthwise_tokens[request] = prompt + predicted
            if len(self._lengthwise_tokens) > LONGEST_QUEUE:  # of requests that were never routed
                self._lengthwise_tokens.pop(next(iter(self._lengthwise_tokens)))
        now_s = time.time()
        ranked = self._lengthwise.rank(
            list(by_id), prompt_tokens=prompt, predicted_tokens=predicted, now_s=now_s,
            arrival_s=getattr(pending_request, "created_at", now_s),
        )  # fmt: skip
        return [[by_id[str(name)]] for name in ranked]

    def on_request_routed(self, pending_request: Any, replica_id: Any, result: Any) -> None:
        """A replica took a request."""
        super().on_request_routed(pending_request, replica_id, result)  # type: ignore[misc]
        request = pending_request.metadata.internal_request_id
        tokens = self._lengthwise_tokens.pop(request, 0.0)
        self._lengthwise.sent(str(replica_id), request, tokens)

    def on_request_completed(self, replica_id: Any, internal_request_id: str) -> None:
        """A request ended, well or not."""
        super().on_request_completed(replica_id, internal_request_id)  # type: ignore[misc]
        self._lengthwise.done(str(replica_id), internal_request_id)

    async def _lengthwise_lengths(self, pending: Any) -> tuple[float, float]:
        """Tokens of the prompt and of its predicted answer."""
        text, told = request_text(pending)
        prompt = max(len(text) / CHARACTERS_PER_TOKEN, 1.0)
        if told is not None:
            return prompt, told
        if self._lengthwise_predictor is None:
            return prompt, self._lengthwise_default
        try:
            predict = self._lengthwise_predictor.predict
            found = await asyncio.wait_for(
                asyncio.to_thread(predict, [text], prompt_tokens=[prompt]),
                self._lengthwise_timeout_s,
            )
            return prompt, float(found.predicted_tokens[0])
        except Exception as error:
            self._lengthwise.counters.warn("predictor-error", f"the predictor failed: {error!r}")
            self._lengthwise.counters.add("fallbacks", "predictor-error")
            return prompt, self._lengthwise_default


def request_text(pending: Any) -> tuple[str, float | None]:
    """The prompt of a request as far as it is text, and its length if the client told it.

    Understands strings, and OpenAI requests as dicts or objects, with ``prompt`` or ``messages``.
    """
    parts: list[str] = []
    told: float | None = None
    for value in (*getattr(pending, "args", ()), *getattr(pending, "kwargs", {}).values()):
        if isinstance(value, str):
            parts.append(value)
        for message in _get(value, "messages") or []:
            content = _get(message, "content")
            parts.append(content if isinstance(content, str) else "")
        prompt = _get(value, "prompt")
        parts.append(prompt if isinstance(prompt, str) else "")
        length = _get(_get(value, "vllm_xargs"), "predicted_tokens")
        if isinstance(length, int | float) and math.isfinite(length) and length > 0:
            told = float(length)
    return "\n".join(filter(None, parts)), told


def _get(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else getattr(value, name, None)


def __getattr__(name: str) -> Any:
    if name != "PolicyRouter":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ray.serve.request_router import RequestRouter

    made = type(name, (PolicyRouting, RequestRouter), {"__module__": __name__})
    globals()[name] = made
    return made
