"""Requests with hints in vLLM's own classes and priority queue: run by ``whole_environment``.

Reads ``[[path, body], ...]`` from its argument, a file; prints one JSON line: what vLLM makes of
each, and the order of vLLM's queue.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.request_queue import SchedulingPolicy, create_request_queue
from vllm.v1.request import Request

KINDS: dict[str, Any] = {
    "/v1/chat/completions": ChatCompletionRequest, "/v1/completions": CompletionRequest,
    "/v1/responses": ResponsesRequest,
}  # fmt: skip


def main() -> None:
    queue = create_request_queue(SchedulingPolicy.PRIORITY)
    read = []
    for number, (path, body) in enumerate(json.loads(Path(sys.argv[1]).read_text("utf-8"))):
        made = KINDS[path].model_validate(json.loads(body))
        read.append([made.priority, made.vllm_xargs, sorted(made.model_extra or {})])
        queue.add_request(
            Request(
                request_id=str(number), prompt_token_ids=[1], arrival_time=float(number),
                sampling_params=SamplingParams(max_tokens=5), pooling_params=None,
                priority=made.priority,
            )
        )  # fmt: skip
    order = [int(queue.pop_request().request_id) for _ in read]
    print(json.dumps({"read": read, "order": order}), flush=True)


if __name__ == "__main__":
    main()
