"""Routing policies in Ray Serve (2.60), for its LLM deployments and any others.

    RequestRouterConfig(
        request_router_class="lengthwise.policies.plugins.ray_serve:PolicyRouter",
        request_router_kwargs={"policy": "least-tokens", "predictor": "DIR"})

A replica may report ``waiting_requests``, ``running_requests`` and ``kv_utilization`` from its
``record_routing_stats``; name those that it does in ``reports``. Predictions are judged by the
``usage`` that answers tell, OpenAI's, as these go by to their callers.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any

from lengthwise.policies.plugins.answers import hear
from lengthwise.policies.plugins.calls import call_of
from lengthwise.policies.plugins.prompt_lengths import Expected, PromptLengths
from lengthwise.policies.plugins.routing import ReplicaRouter
from lengthwise.policies.plugins.vllm.clock import Clock

TELLS = ("prompt_tokens", "predicted_tokens", "now_s", "arrival_s")
MOST_CALLS = 100_000  # whose expectations are remembered at once


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
        self._lengthwise = ReplicaRouter(policy, reports=reports, tells=TELLS, seed=seed)
        self._lengthwise_clock = Clock()  # the wall clock, which Ray Serve reads, may be set
        self._lengthwise_reports = tuple(reports)
        self._lengthwise_lengths = PromptLengths(
            predictor or None, predict_timeout_s, default_tokens, self._lengthwise.counters
        )
        self._lengthwise_expected: OrderedDict[str, Expected] = OrderedDict()

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
        given = (
            *getattr(pending_request, "args", ()),
            *getattr(pending_request, "kwargs", {}).values(),
        )
        if getattr(getattr(pending_request, "metadata", None), "is_http_request", False):
            self._lengthwise.counters.warn(
                "ingress",
                "requests come by HTTP, whose bodies are not there yet when Ray Serve routes: all "
                "count alike; give the router to the deployment behind the ingress",
            )
        asked = call_of(*given)
        expected = await self._lengthwise_lengths.of(asked)
        clock = self._lengthwise_clock
        arrival_s = clock.arrival_s(getattr(pending_request, "created_at", time.time()))
        ranked = self._lengthwise.rank(
            list(by_id), prompt_tokens=expected.prompt, predicted_tokens=expected.answer,
            now_s=clock.now_s(), arrival_s=arrival_s,
        )  # fmt: skip
        if pending_request is not None and ranked and not pending_request.future.done():
            # It counts from now on: many are placed at once, before the first of them is accepted.
            request = pending_request.metadata.internal_request_id
            self._lengthwise.sent(ranked[0], request, expected.prompt + expected.answer)
            self._lengthwise_expected[request] = expected
            if len(self._lengthwise_expected) > MOST_CALLS:  # some are never accepted
                self._lengthwise_expected.popitem(last=False)
        return [[by_id[str(name)]] for name in ranked]

    async def _choose_replica_for_request(self, pending_request: Any, **rest: Any) -> Any:
        """Ray Serve's own wait for a seat: the one place that hears of a client who hangs up in it.

        The replica that it gives is the first choice, or another where that was full.
        """
        request = pending_request.metadata.internal_request_id
        try:
            replica = await super()._choose_replica_for_request(  # type: ignore[misc]
                pending_request, **rest
            )
        except BaseException:
            self._lengthwise.done(request)
            self._lengthwise_expected.pop(request, None)
            raise
        self._lengthwise.moved(str(replica.replica_id), request)
        return replica

    def on_request_routed(self, pending_request: Any, replica_id: Any, result: Any) -> None:
        """A replica accepted a request: ``result`` is what its caller reads the answer from."""
        super().on_request_routed(pending_request, replica_id, result)  # type: ignore[misc]
        request = pending_request.metadata.internal_request_id
        expected = self._lengthwise_expected.pop(request, None)
        if expected is None:
            return
        try:
            hear(result, partial(self._lengthwise_lengths.ended, expected))
        except AttributeError as error:
            self._lengthwise.counters.warn("answers", f"how long answers are is not heard: {error}")

    def on_request_completed(self, replica_id: Any, internal_request_id: str) -> None:
        """An attempt ended, well or not; one that was rejected, or whose replica died, goes on."""
        super().on_request_completed(replica_id, internal_request_id)  # type: ignore[misc]
        self._lengthwise.done(internal_request_id, str(replica_id))


def __getattr__(name: str) -> Any:
    if name != "PolicyRouter":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ray.serve.request_router import RequestRouter

    made = type(name, (PolicyRouting, RequestRouter), {"__module__": __name__})
    globals()[name] = made
    return made
