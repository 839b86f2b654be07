"""vLLM's Prometheus metrics, by the names and buckets of vLLM 0.33 (``vllm/v1/metrics``).

Times are the engine's: a server that runs at twice the speed reports what one at full length would.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from lengthwise.picoseconds import PS
from lengthwise.serving.live import LiveNode
from lengthwise.serving.reference.request import Request

LATENCY = (
    0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680,
)  # fmt: skip
FIRST_TOKEN = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40,
    80, 160, 640, 2560,
)  # fmt: skip
BETWEEN_TOKENS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80,
)  # fmt: skip
REASONS = ("stop", "length", "abort")
# name, meaning, and buckets; None: those of token counts
GAUGES = {
    "num_requests_running": "Number of requests in model execution batches.",
    "num_requests_waiting": "Number of requests waiting to be processed.",
    "kv_cache_usage_perc": "KV-cache usage. 1 means 100 percent usage.",
}
COUNTERS = {
    "num_preemptions": "Cumulative number of preemption from the engine.",
    "prompt_tokens": "Number of prefill tokens processed.",
    "generation_tokens": "Number of generation tokens processed.",
    "prefix_cache_queries": "Prefix cache queries, in terms of number of queried tokens.",
    "prefix_cache_hits": "Prefix cache hits, in terms of number of cached tokens.",
}
HISTOGRAMS: dict[str, tuple[str, tuple[float, ...] | None]] = {
    "time_to_first_token_seconds": ("Histogram of time to first token in seconds.", FIRST_TOKEN),
    "inter_token_latency_seconds": (
        "Histogram of inter-token latency in seconds.", BETWEEN_TOKENS,
    ),
    "request_time_per_output_token_seconds": (
        "Histogram of time_per_output_token_seconds per request.", BETWEEN_TOKENS,
    ),
    "e2e_request_latency_seconds": ("Histogram of e2e request latency in seconds.", LATENCY),
    "request_queue_time_seconds": (
        "Histogram of time spent in WAITING phase for request.", LATENCY,
    ),
    "request_prompt_tokens": ("Number of prefill tokens processed.", None),
    "request_generation_tokens": ("Number of generation tokens processed.", None),
}  # fmt: skip


class Metrics:
    """What a server of one model shows at ``/metrics``."""

    def __init__(self, node: LiveNode, model: str) -> None:
        self._node = node
        self._registry = registry = CollectorRegistry()
        names = ("model_name", "engine")
        labels = (model, "0")

        def made(kind: Any, name: str, meaning: str, **options: Any) -> Any:
            whole = kind(f"vllm:{name}", meaning, names, registry=registry, **options)
            return whole.labels(*labels)

        self._gauges = {name: made(Gauge, name, said) for name, said in GAUGES.items()}
        self._counters = {name: made(Counter, name, said) for name, said in COUNTERS.items()}
        tokens = _one_two_five(node.longest)
        self._histograms = {
            name: made(Histogram, name, said, buckets=buckets or tokens)
            for name, (said, buckets) in HISTOGRAMS.items()
        }
        success = Counter(
            "vllm:request_success", "Count of successfully processed requests.",
            (*names, "finished_reason"), registry=registry,
        )  # fmt: skip
        self._ended = {reason: success.labels(*labels, reason) for reason in REASONS}
        engine = {name: str(value) for name, value in asdict(node.engine).items()}
        engine |= {"num_gpu_blocks": str(node.num_gpu_blocks), "engine": "0"}
        Gauge(
            "vllm:cache_config_info", "Information of the LLMEngine CacheConfig",
            tuple(engine), registry=registry,
        ).labels(**engine).set(1)  # fmt: skip
        self._preemptions = 0

    def first_token(self, request: Request, seen_ps: int) -> None:
        """A client has the first token of its answer."""
        self._seen("time_to_first_token_seconds", (seen_ps - request.arrival_ps) / PS)
        self._seen("request_queue_time_seconds", (request.scheduled_ps - request.arrival_ps) / PS)
        self._counters["prompt_tokens"].inc(request.prompt)
        self._counters["generation_tokens"].inc()
        if self._node.engine.enable_prefix_caching:
            self._counters["prefix_cache_queries"].inc(request.prompt)
            self._counters["prefix_cache_hits"].inc(max(request.cached, 0))

    def token(self, took_ps: int) -> None:
        """A client has another one."""
        self._seen("inter_token_latency_seconds", took_ps / PS)
        self._counters["generation_tokens"].inc()

    def ended(self, request: Request, reason: str, first_ps: int, last_ps: int) -> None:
        """An answer is complete, or its client hung up."""
        self._ended[reason].inc()
        if reason == "abort":
            return
        self._seen("e2e_request_latency_seconds", (last_ps - request.arrival_ps) / PS)
        self._seen("request_prompt_tokens", request.prompt)
        self._seen("request_generation_tokens", request.output)
        if request.output > 1:
            took_s = (last_ps - first_ps) / PS / (request.output - 1)
            self._seen("request_time_per_output_token_seconds", took_s)

    def text(self) -> bytes:
        """All of it in Prometheus's format, the engine's state as it is now."""
        self._gauges["num_requests_running"].set(self._node.running)
        self._gauges["num_requests_waiting"].set(self._node.waiting)
        self._gauges["kv_cache_usage_perc"].set(self._node.kv_utilization)
        new, self._preemptions = self._node.preemptions - self._preemptions, self._node.preemptions
        self._counters["num_preemptions"].inc(new)
        return generate_latest(self._registry)

    def _seen(self, name: str, value: float) -> None:
        self._histograms[name].observe(value)


def _one_two_five(most: int) -> list[int]:
    """1, 2, 5, 10, ... up to a number, as vLLM's ``build_1_2_5_buckets``."""
    found: list[int] = []
    power = 1
    while True:
        for mantissa in (1, 2, 5):
            if mantissa * power > most:
                return found
            found.append(mantissa * power)
        power *= 10
