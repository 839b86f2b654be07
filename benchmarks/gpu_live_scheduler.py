"""Schedulers whose answers end where their request says, for ``gpu_live``: the weights are random.

``max_tokens`` is the client's limit there; ``answer_tokens`` in ``extra_args`` is what the model
would have said.
"""

from __future__ import annotations

from typing import Any

from lengthwise.policies.plugins.vllm import scheduler as plugin
from lengthwise.policies.plugins.vllm.scheduling import _base


def scheduler(vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
    """vLLM's own scheduler, or the plugin's if the configuration has its settings."""
    if "lengthwise" in (vllm_config.additional_config or {}):
        made = plugin(vllm_config, *args, **kwargs)
    else:
        made = _base(vllm_config)(vllm_config, *args, **kwargs)
    add = made.add_request

    def add_request(request: Any) -> None:
        extra = getattr(request.sampling_params, "extra_args", None) or {}
        if "answer_tokens" in extra:  # the plugin reads the client's limit in sampling_params
            request.max_tokens = extra["answer_tokens"]
        add(request)

    made.add_request = add_request
    return made
