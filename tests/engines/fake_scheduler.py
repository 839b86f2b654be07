"""A scheduler with vLLM's names and a dozen of its rules, for tests that need none of vLLM.

One token a step for each running request; seats are all that is scarce, but for the KV blocks that
it counts. Goes behind the plugin's classes as vLLM's own does.
"""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

SIZE = 16  # tokens of a block


class Request:
    """A request as vLLM's scheduler sees it, from what a client sent."""

    def __init__(self, name: str, *, output: int = 2, **given: Any) -> None:
        self.request_id, self.output = name, output
        self.prompt_token_ids: Any = given.get("prompt", [1, 2, 3])
        self.num_prompt_tokens = 1 if self.prompt_token_ids is None else len(self.prompt_token_ids)
        self.arrival_time: Any = given.get("arrival", 0.0)
        self.priority: Any = given.get("priority", 0)
        self.sampling_params = SimpleNamespace(
            extra_args=given.get("sent"), max_tokens=given.get("limit", 64),
            temperature=given.get("temperature"), top_p=given.get("top_p"),
            structured_outputs=None,
        )  # fmt: skip
        self.lora_request = None
        self.status = SimpleNamespace(name="WAITING")
        self.num_output_tokens = self.num_computed_tokens = self.num_preemptions = 0
        self.num_output_placeholders, self.max_tokens, self.block_hashes = 0, 64, ()

    @property
    def num_tokens(self) -> int:
        return int(self.num_prompt_tokens + self.num_output_tokens)

    num_tokens_with_spec = num_tokens

    def is_finished(self) -> bool:
        return str(self.status.name).startswith("FINISHED")


class Waiting(deque[Any]):
    """vLLM's first come, first served queue, as far as it is used here."""

    pop_request, add_request = deque.popleft, deque.append

    def prepend_request(self, request: Any) -> None:
        self.appendleft(request)

    def remove_requests(self, requests: Any) -> None:
        for request in requests:
            self.remove(request)


class FakeScheduler:
    """``finished`` holds the ids of requests in the order in which they ended."""

    def __init__(self, vllm_config: Any) -> None:
        self.vllm_config, self.scheduler_config = vllm_config, vllm_config.scheduler_config
        self.requests: dict[str, Any] = {}
        self.waiting: Any = Waiting()
        self.running: list[Any] = []
        self.finished: list[str] = []
        self.max_num_running_reqs = vllm_config.seats
        self.max_num_scheduled_tokens, self.num_lookahead_tokens, self.block_size = 64, 0, SIZE
        self.max_model_len, self.lora_config = 4096, None
        self.kv_cache_config = SimpleNamespace(kv_cache_groups=[None])
        self.kv_cache_manager = SimpleNamespace(
            usage=0.5, enable_caching=False,
            block_pool=SimpleNamespace(get_num_free_blocks=lambda: 8),
        )  # fmt: skip

    def add_request(self, request: Any) -> None:
        self.requests[request.request_id] = request
        self.waiting.add_request(request)

    def schedule(self) -> Any:
        while self.waiting and len(self.running) < self.max_num_running_reqs:
            request = self.waiting.pop_request()
            request.status.name = "RUNNING"
            self.running.append(request)
        scheduled = {request.request_id: 1 for request in self.running}
        return SimpleNamespace(num_scheduled_tokens=scheduled, preempted_req_ids=None)

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> None:
        for request in list(self.running):
            request.num_computed_tokens = request.num_tokens
            request.num_output_tokens += 1
            if request.num_output_tokens >= request.output:
                self._end(request, "FINISHED_STOPPED")

    def finish_requests(self, request_id: str) -> None:
        """A client hangs up."""
        if request_id in self.requests:
            self._end(self.requests[request_id], "FINISHED_ABORTED")

    def shutdown(self) -> None: ...

    def _end(self, request: Any, status: str) -> None:
        if request in self.running:
            self.running.remove(request)
        else:
            self.waiting.remove_requests([request])
        request.status.name = status
        self._free_request(request)

    def _free_request(self, request: Any) -> None:
        del self.requests[request.request_id]
        self.finished.append(request.request_id)

    def _preempt_request(self, request: Any, at_s: float) -> None:
        request.status.name = "PREEMPTED"
        request.num_computed_tokens = 0
        request.num_preemptions += 1
        self.waiting.prepend_request(request)


def config(seats: int = 2) -> Any:
    """As much of vLLM's configuration as the plugin reads."""
    return SimpleNamespace(
        seats=seats, kv_transfer_config=None,
        model_config=SimpleNamespace(
            max_model_len=4096, model="m", tokenizer="none", tokenizer_revision=None,
            trust_remote_code=False,
        ),
        scheduler_config=SimpleNamespace(policy="fcfs", long_prefill_token_threshold=0),
        parallel_config=SimpleNamespace(pipeline_parallel_size=1, data_parallel_rank=0),
    )  # fmt: skip
