"""Routing policies in LiteLLM's router.

    strategy = RoutingStrategy(router, "least-tokens", predict="./p")
    router.set_custom_routing_strategy(strategy)

In LiteLLM's proxy, without Python, by its list of plugins:

    LENGTHWISE_LITELLM='{"policy": "least-tokens", "predictor": "./p"}' litellm --config config.yaml

    router_settings:
      plugins: ["lengthwise.policies.plugins.litellm.plugin"]

Deployments that LiteLLM has on cooldown are not offered to the policy.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, cast
from weakref import WeakSet, finalize, ref

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.policies.plugins.answers import answer_tokens
from lengthwise.policies.plugins.calls import as_dict, call_of
from lengthwise.policies.plugins.metrics import Counters
from lengthwise.policies.plugins.prompt_lengths import Expected, Predict, PromptLengths
from lengthwise.policies.plugins.routing import ReplicaRouter
from lengthwise.policy import RoutingPolicy

TAG = "lengthwise_request"  # in a call's metadata, which LiteLLM hands back when the call ended
TELLS = ("prompt_tokens", "predicted_tokens", "now_s", "arrival_s")
MOST_CALLS = 100_000  # whose lengths are remembered at once
ENVIRONMENT = "LENGTHWISE_LITELLM"
EXAMPLE = f"""{ENVIRONMENT}='{{"policy": "least-tokens"}}'"""
SETTINGS = {  # of ours, by what RoutingStrategy calls them
    "policy": "policy", "predictor": "predict", "default_tokens": "default_tokens",
    "predict_timeout_s": "predict_timeout_s", "seed": "seed",
}  # fmt: skip
METADATA = ("litellm_metadata", "metadata")
# a router's calls that may answer with a stream
STREAMS = ("acompletion", "atext_completion", "aresponses", "aanthropic_messages")
_placed: ContextVar[list[str] | None] = ContextVar("placed", default=None)  # by the current call
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
        # LiteLLM's own strategies begin with it: plugins of its list have their say here
        if (hook := getattr(self._router, "async_pre_routing_hook", None)) is not None:
            said = await hook(
                model=model, request_kwargs=call, messages=messages, input=input,
                specific_deployment=specific_deployment,
            )  # fmt: skip
            if said is not None:
                model, messages = said.model, said.messages
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
        if (placed := _placed.get()) is not None:
            placed.append(request)
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

        It ends when it is closed, or dropped: also one that nobody began to read.
        """
        for name in STREAMS:
            if (original := getattr(self._router, name, None)) is not None:
                setattr(self._router, name, functools.partial(self._watched, original))

    async def _watched(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        requests: list[str] = []
        token = _placed.set(requests)
        try:
            answer = await original(*args, **kwargs)
        finally:
            _placed.reset(token)
        if hasattr(answer, "__aiter__"):
            left = functools.partial(self._end, requests)
            finalize(answer, _soon, asyncio.get_running_loop(), left)
            close = getattr(type(answer), "aclose", None)
            with suppress(AttributeError):  # of a generator, which can't be told apart from its end
                if close is not None:  # by a weak reference: a cycle would keep it alive
                    answer.aclose = functools.partial(_closed, close, ref(answer), left)
        return answer

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


class ProxyPlugin:
    """For ``router_settings.plugins`` of LiteLLM's proxy: routes as ``ENVIRONMENT`` says.

    LiteLLM asks its plugins before each choice, and at the first of them the proxy's router gets
    our strategy: that one request goes where LiteLLM's own strategy says.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        unknown = next((name for name in settings if name not in SETTINGS), None)
        if unknown is not None:
            raise UnknownNameError(f"setting in {ENVIRONMENT}", str(unknown), SETTINGS)
        if not isinstance(settings.get("policy"), str):
            raise InputError(f"{ENVIRONMENT} takes a policy, as in {EXAMPLE}")
        self._given = {SETTINGS[name]: value for name, value in settings.items()}
        self.strategy: RoutingStrategy | None = None
        self._made({})  # what can't work is told as the proxy starts

    async def run(self, context: Any) -> Any:
        """LiteLLM's: all candidates stay; the proxy's router gets our strategy if it has it not."""
        from litellm.proxy import proxy_server

        router = proxy_server.llm_router
        if router is None:
            raise InputError(
                "this plugin is for LiteLLM's proxy; in Python: "
                "router.set_custom_routing_strategy(RoutingStrategy(router, ...))"
            )
        if self.strategy is None or self.strategy._router is not router:
            self.strategy = self._made(router)
        # the proxy takes a strategy away again when its settings are changed
        if "async_get_available_deployment" not in vars(router):
            router.set_custom_routing_strategy(self.strategy)
        return context

    def _made(self, router: Any) -> RoutingStrategy:
        return RoutingStrategy(router, **self._given)


def __getattr__(name: str) -> Any:
    if name != "plugin":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        settings = json.loads(os.environ[ENVIRONMENT])
    except KeyError:
        raise InputError(f"{ENVIRONMENT} is not set: say {EXAMPLE}") from None
    except ValueError as error:
        raise InputError(f"{ENVIRONMENT} is not JSON: {error}") from None
    if not isinstance(settings, dict):
        raise InputError(f"{ENVIRONMENT} takes an object, as in {EXAMPLE}")
    globals()[name] = made = ProxyPlugin(settings)
    return made


async def _closed(close: Any, stream: Callable[[], Any], left: Callable[[], None]) -> None:
    try:
        await close(stream())
    finally:
        left()


def _soon(loop: asyncio.AbstractEventLoop, left: Callable[[], None]) -> None:
    """For finalizers: garbage is collected at any line, also at one that holds a lock."""
    with suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(left)


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
