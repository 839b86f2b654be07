"""Routing policies in LiteLLM's router.

    strategy = RoutingStrategy(router, "least-tokens", predict="./p")
    router.set_custom_routing_strategy(strategy)

Deployments that LiteLLM has on cooldown are not offered to the policy.
"""

from __future__ import annotations

import asyncio
import functools
import os
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any, cast
from weakref import WeakSet, finalize

from lengthwise.policies.plugins.answers import answer_tokens
from lengthwise.policies.plugins.calls import as_dict, call_of
from lengthwise.policies.plugins.metrics import Counters
from lengthwise.policies.plugins.prompt_lengths import Expected, Predict, PromptLengths
from lengthwise.policies.plugins.routing import LOST_S, ReplicaRouter
from lengthwise.policy import RoutingPolicy

TAG = "lengthwise_request"  # in a call's metadata, which LiteLLM hands back when the call ended
TELLS = ("prompt_tokens", "predicted_tokens", "now_s", "arrival_s")
MOST_CALLS = 100_000  # whose lengths are remembered at once
METADATA = ("litellm_metadata", "metadata")
_strategies: WeakSet[RoutingStrategy] = WeakSet()  # as LiteLLM's callbacks, one a process


class RoutingStrategy:
    """For ``Router.set_custom_routing_strategy``: runs a routing policy or an exported bundle.

    ``predict`` maps what was asked to its answer's tokens, or is the folder of a saved predictor; a
    failure or a time-out means the default. Raises ``InputError`` for a policy that reads what
    LiteLLM can't know, and for a folder that holds no predictor.
    """

    def __init__(
        self,
        router: Any,
        policy: str | RoutingPolicy,
        *,
        predict: Predict | str | os.PathLike[str] | None = None,
        predict_timeout_s: float = 0.5,
        default_tokens: float = 256.0,
        seed: int = 0,
    ) -> None:
        self.ranking = ReplicaRouter(policy, tells=TELLS, seed=seed)
        self._router = router
        self._lengths = PromptLengths(
            predict, predict_timeout_s, default_tokens, self.ranking.counters
        )
        self._expected: OrderedDict[str, Expected] = OrderedDict()  # by request, while it runs
        self._callers: dict[str, tuple[Any, Callable[[Any], None]]] = {}  # request -> its task
        _tell(self)
        self._watch_streams()

    @property
    def counters(self) -> Counters:
        """What was predicted and what fell back."""
        return self.ranking.counters

    async def async_get_available_deployment(
        self,
        model: str,
        messages: list[dict[str, str]] | None = None,
        input: str | list[Any] | None = None,
        specific_deployment: bool | None = False,
        request_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """The deployment that the policy ranks first among the healthy ones."""
        call = {} if request_kwargs is None else request_kwargs
        healthy = await self._router.async_get_healthy_deployments(
            model=model, request_kwargs=call, messages=messages, input=input,
            specific_deployment=specific_deployment,
        )  # fmt: skip
        if isinstance(healthy, dict):
            return healthy
        by_id = {deployment["model_info"]["id"]: deployment for deployment in healthy}
        now_s = time.time()
        asked = call_of({"messages": messages, "input": input}, call)
        expected = await self._lengths.of(asked)
        (best, *_) = self.ranking.rank(
            list(by_id), prompt_tokens=expected.prompt, predicted_tokens=expected.answer,
            now_s=now_s, arrival_s=now_s,
        )  # fmt: skip
        request = uuid.uuid4().hex
        self.ranking.sent(best, request, expected.prompt + expected.answer)
        self._expected[request] = expected
        if len(self._expected) > MOST_CALLS:  # LiteLLM does not tell of every end
            self._expected.popitem(last=False)
        name = next((name for name in METADATA if isinstance(call.get(name), dict)), METADATA[-1])
        call[name] = {**as_dict(call.get(name)), TAG: request}
        if (task := asyncio.current_task()) is not None:  # LiteLLM is silent about who hung up
            self._callers[request] = task, functools.partial(self._returned, request)
            task.add_done_callback(self._callers[request][1])
        return by_id[cast(str, best)]

    def get_available_deployment(self, *args: Any, **kwargs: Any) -> Any:
        """Not offered: only LiteLLM's asynchronous calls tell which request ended."""
        raise NotImplementedError(
            "lengthwise routes LiteLLM's asynchronous calls alone: await router.acompletion(...) "
            "instead of router.completion(...)"
        )

    def ended(self, kwargs: dict[str, Any], response: Any = None) -> None:
        """A call ended, well or not, perhaps another strategy's; ``kwargs``: LiteLLM's.

        ``response``: of one that ended well, for the length of its answer.
        """
        requests = _tags(kwargs)
        self._end(requests)
        generated = answer_tokens(response)
        for request in requests:
            expected = self._expected.pop(request, None)
            if expected is not None and generated is not None:
                self._lengths.ended(expected, generated)

    def _watch_streams(self) -> None:
        """Hears of a stream that its reader leaves, which LiteLLM reports to nobody.

        It does release the deployment's slot then: what that holds is told.
        """
        iterate = getattr(self._router, "_acompletion_streaming_iterator", None)
        if iterate is None:
            self.counters.warn(
                "litellm-streams",
                "this LiteLLM does not tell of streams that are broken off: each counts as load of "
                f"its deployment for up to {LOST_S:g} s",
            )
            return

        async def watched(
            *, model_response: Any, deployment_slot: AsyncExitStack | None = None, **rest: Any
        ) -> Any:
            left = functools.partial(
                self._end, _tags(model_response.logging_obj.model_call_details)
            )
            slot = AsyncExitStack() if deployment_slot is None else deployment_slot
            slot.callback(left)
            stream = await iterate(model_response=model_response, deployment_slot=slot, **rest)
            finalize(stream, left)  # one that nobody began to read is dropped and not closed
            return stream

        self._router._acompletion_streaming_iterator = watched

    def _returned(self, request: str, task: asyncio.Task[Any]) -> None:
        self._callers.pop(request, None)
        if task.cancelled():
            self.ranking.done(request)

    def _end(self, requests: list[str]) -> None:
        for request in requests:
            self.ranking.done(request)
            if request in self._callers:
                task, callback = self._callers.pop(request)
                task.remove_done_callback(callback)


def _tags(kwargs: dict[str, Any]) -> list[str]:
    """Our names of a call, from what LiteLLM knows of it; none of a call that we did not route."""
    parameters = as_dict(kwargs.get("litellm_params"))
    found = (as_dict(parameters.get(name)).get(TAG) for name in METADATA)
    return [request for request in found if request is not None]


def _tell(strategy: RoutingStrategy) -> None:
    """Has LiteLLM tell the strategy what ended."""
    import litellm
    from litellm.integrations.custom_logger import CustomLogger

    class LengthwiseWatch(CustomLogger):  # type: ignore[misc]
        # LiteLLM passes these by position or by name
        async def async_log_success_event(
            self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any
        ) -> None:
            _ended(kwargs, response_obj)

        async def async_log_failure_event(
            self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any
        ) -> None:
            _ended(kwargs)

    _strategies.add(strategy)
    # LiteLLM keeps one callback of a class, so that one serves every router of the process
    litellm.logging_callback_manager.add_litellm_callback(LengthwiseWatch())


def _ended(kwargs: dict[str, Any], response: Any = None) -> None:
    for strategy in list(_strategies):
        strategy.ended(kwargs, response)
