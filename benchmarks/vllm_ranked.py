"""vLLM's scheduler with an order of ours and policy preemption, to measure what ranking gains.

``scheduler_cls="benchmarks.vllm_ranked.ranked"``. A request's ``max_tokens`` (with ``ignore_eos``)
is its exact output length, so the scores are those of an oracle. A command request
``{"lengthwise": {"policy": {...}}}`` sets the policy for the requests after it. The walk over the
queue is that of ``lengthwise.serving.engine.Replica``; a preemption costs ``price`` for each lost
token and request in the replica. The plugin for production is in ``lengthwise.policies.plugins``.
"""

from __future__ import annotations

import time
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler

from lengthwise.policies.mlfq import mlfq
from lengthwise.serving.timing.vllm_recorder import _Recorder


class Ranked(_Recorder, AsyncScheduler):  # type: ignore[misc]
    """Orders by score; preempts by recompute where the policy says so."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["vllm_config"].scheduler_config.policy = "priority"
        super().__init__(*args, **kwargs)
        self._policy: dict[str, Any] = {"name": "fcfs"}
        self._stale: list[Any] = []
        self._policy_preemptions = 0

    def add_request(self, request: Any) -> None:
        extra = (request.sampling_params.extra_args or {}).get("lengthwise", {})
        self._policy = extra.get("policy", self._policy)
        request.priority = self._score(request)
        super().add_request(request)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        if self._policy.get("preempt") and self.waiting:
            self._preempt_by_policy()
        return super().schedule(*args, **kwargs)

    def _score(self, request: Any) -> float:
        name = self._policy["name"]
        if name == "fcfs":
            return float(request.arrival_time)
        if name == "sjf":
            return float(request.max_tokens)
        if name == "srtf":
            return float(request.max_tokens - request.num_output_tokens)
        tunables = self._policy.get("tunables", {})
        return float(mlfq(request.num_output_tokens, request.num_prompt_tokens, **tunables))

    def _preempt_by_policy(self) -> None:
        for request in self._stale:
            if request.request_id in self.requests and request not in self.running:
                score = self._score(request)
                if score != request.priority:
                    self.waiting.remove_request(request)
                    request.priority = score
                    self.waiting.add_request(request)
        self._stale = []
        for request in self.running:
            request.priority = self._score(request)
        price, margin = self._policy.get("price", 0.0), self._policy.get("margin", 0.0)
        seats = self.max_num_running_reqs - len(self.running)
        budget = self.max_num_scheduled_tokens - sum(map(self._wanted, self.running))
        free = self.kv_cache_manager.block_pool.get_num_free_blocks()
        in_replica = len(self.running) + len(self.waiting)
        victims = blocks = 0
        for request in iter(self.waiting):
            needed = -(-request.num_tokens // self.block_size)
            while seats == 0 or blocks + needed > free:
                if victims == self._policy.get("max_per_step", 8) or not self.running:
                    return
                if budget <= 0:
                    return
                victim = max(self.running, key=lambda r: (r.priority, r.arrival_time))
                cost = price * victim.num_computed_tokens * in_replica
                if not victim.priority - request.priority > margin + cost:
                    return
                seats += 1
                budget += self._wanted(victim)
                self.running.remove(victim)
                self._preempt_request(victim, time.monotonic())
                self._stale.append(victim)
                self._policy_preemptions += 1
                victims += 1
                free = self.kv_cache_manager.block_pool.get_num_free_blocks()
            seats -= 1
            blocks += needed
            budget -= request.num_tokens

    def _wanted(self, request: Any) -> int:
        pending = request.num_output_placeholders
        if pending and request.num_output_tokens + 1 == request.max_tokens:
            return 0
        return int(request.num_tokens + pending - request.num_computed_tokens)


def ranked(*args: Any, **kwargs: Any) -> Any:
    """What ``scheduler_cls`` names."""
    return Ranked(*args, **kwargs)
