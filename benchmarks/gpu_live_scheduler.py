"""Schedulers whose answers end where their request says, for ``gpu_live``: the weights are random.

``max_tokens`` is the client's limit there; ``answer_tokens`` in ``extra_args`` is what the model
would have said.
"""

from __future__ import annotations

from typing import Any

from lengthwise.policies.plugins.vllm import scheduler as plugin
from lengthwise.policies.plugins.vllm.scheduling import _base


class Ends:
    """Goes before a scheduler's class: vLLM ends a request at its ``max_tokens``."""

    def add_request(self, request: Any) -> None:
        """A request arrives."""
        extra = getattr(request.sampling_params, "extra_args", None) or {}
        if "answer_tokens" in extra:  # the plugin reads the client's limit in sampling_params
            request.max_tokens = extra["answer_tokens"]
        super().add_request(request)  # type: ignore[misc]


def scheduler(vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
    """vLLM's own scheduler, or the plugin's if the configuration has its settings."""
    if "lengthwise" in (vllm_config.additional_config or {}):
        made = plugin(vllm_config, *args, **kwargs)
    else:
        made = _base(vllm_config)(vllm_config, *args, **kwargs)
    made.__class__ = type(f"Ending{type(made).__name__}", (Ends, type(made)), {})
    return made
