"""Routing policies in LiteLLM's router.

    strategy = RoutingStrategy(router, "least-tokens", predict=lambda text: 120)
    router.set_custom_routing_strategy(strategy)

Deployments that LiteLLM has on cooldown are not offered to the policy.
"""

from __future__ import annotations

import asyncio
import math
import uuid
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any, cast

from lengthwise.policies.plugins.routing import ReplicaRouter
from lengthwise.policy import RoutingPolicy

CHARACTERS_PER_TOKEN = 4.0  # where nothing better is known of a prompt


def RoutingStrategy(
    router: Any,
    policy: str | RoutingPolicy,
    *,
    predict: Callable[[str], float] | None = None,
    predict_timeout_s: float = 0.5,
    default_tokens: float = 256.0,
    seed: int = 0,
) -> Any:
    """A ``CustomRoutingStrategyBase`` for ``router`` that runs a routing policy.

    ``predict`` maps a prompt to its answer's tokens; it runs in a thread, and a failure or a
    time-out means the default. Raises ``InputError`` for a policy that reads what LiteLLM can't
    know.
    """
    import litellm
    from litellm.integrations.custom_logger import CustomLogger
    from litellm.types.router import CustomRoutingStrategyBase

    strategy = _Strategy(
        router, ReplicaRouter(policy, seed=seed), predict, predict_timeout_s, default_tokens
    )

    class Watch(CustomLogger):  # type: ignore[misc]
        """Tells the strategy what ended."""

        async def async_log_success_event(self, kwargs: Any, *rest: Any) -> None:
            strategy.ended(kwargs)

        async def async_log_failure_event(self, kwargs: Any, *rest: Any) -> None:
            strategy.ended(kwargs)

    made = type("LengthwiseRoutingStrategy", (_Strategy, CustomRoutingStrategyBase), {})
    strategy.__class__ = cast(Any, made)
    litellm.logging_callback_manager.add_litellm_callback(Watch())
    return strategy


class _Strategy:
    def __init__(
        self,
        router: Any,
        ranking: ReplicaRouter,
        predict: Callable[[str], float] | None,
        timeout_s: float,
        default_tokens: float,
    ) -> None:
        self.ranking = ranking
        self._router = router
        self._predict, self._timeout_s = predict, timeout_s
        self._default = default_tokens
        self._sent: defaultdict[str, deque[str]] = defaultdict(deque)  # deployment -> requests

    async def async_get_available_deployment(
        self,
        model: str,
        messages: list[dict[str, str]] | None = None,
        input: str | list[Any] | None = None,
        specific_deployment: bool | None = False,
        request_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """The deployment that the policy ranks first among the healthy ones."""
        healthy = await self._router.async_get_healthy_deployments(
            model=model, request_kwargs=request_kwargs or {}, messages=messages, input=input,
            specific_deployment=specific_deployment,
        )  # fmt: skip
        if isinstance(healthy, dict):
            return healthy
        by_id = {deployment["model_info"]["id"]: deployment for deployment in healthy}
        text = _text(messages, input)
        prompt = max(len(text) / CHARACTERS_PER_TOKEN, 1.0)
        predicted = await self._length(text)
        (best, *_) = self.ranking.rank(
            list(by_id), prompt_tokens=prompt, predicted_tokens=predicted
        )
        request = uuid.uuid4().hex
        self._sent[str(best)].append(request)
        self.ranking.sent(best, request, prompt + predicted)
        return by_id[cast(str, best)]

    def get_available_deployment(self, *args: Any, **kwargs: Any) -> Any:
        """Not offered: only LiteLLM's asynchronous calls report what ended."""
        raise NotImplementedError("lengthwise routes LiteLLM's asynchronous calls: use acompletion")

    def ended(self, kwargs: dict[str, Any]) -> None:
        """A call ended; of those that a deployment has, LiteLLM doesn't say which: the oldest."""
        parameters = kwargs.get("litellm_params") or {}
        deployment = (parameters.get("model_info") or {}).get("id")
        if deployment is not None and self._sent[deployment]:
            self.ranking.done(deployment, self._sent[deployment].popleft())

    async def _length(self, text: str) -> float:
        if self._predict is None:
            return self._default
        try:
            predicted = float(
                await asyncio.wait_for(asyncio.to_thread(self._predict, text), self._timeout_s)
            )
            if math.isfinite(predicted) and predicted > 0:
                return predicted
            raise ValueError(f"it predicted {predicted!r} tokens")
        except Exception as error:
            self.ranking.counters.warn("predictor-error", f"the predictor failed: {error!r}")
            self.ranking.counters.add("fallbacks", "predictor-error")
            return self._default


def _text(messages: list[dict[str, Any]] | None, input: str | list[Any] | None) -> str:
    parts = [message.get("content") or "" for message in messages or []]
    if isinstance(input, str):
        parts.append(input)
    return "\n".join(part for part in parts if isinstance(part, str))
