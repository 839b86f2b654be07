"""What a picker shows to Prometheus, beside what all plugins count."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)
WAITS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class PickerMetrics:
    """The metrics of one picker."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "lengthwise_epp_requests", "Requests by what was answered to the gateway.",
            ("answer",), registry=registry,
        )  # fmt: skip
        for answer in ("picked", "429", "413", "503", "dry-run"):
            self.requests.labels(answer)
        self.picks = Counter(
            "lengthwise_epp_picks", "Requests sent to each endpoint.", ("endpoint",),
            registry=registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "lengthwise_epp_decision_seconds",
            "From the last byte of a request to the endpoint that it goes to.",
            registry=registry, buckets=SECONDS,
        )  # fmt: skip
        self.queued = Gauge(
            "lengthwise_epp_queue", "Requests that wait here for an endpoint.", registry=registry
        )
        self.waited = Histogram(
            "lengthwise_epp_queue_seconds", "How long those that waited here did, sent or not.",
            registry=registry, buckets=WAITS,
        )  # fmt: skip
        self.under_way = Gauge(
            "lengthwise_epp_requests_under_way", "Requests whose stream the gateway has open.",
            registry=registry,
        )  # fmt: skip
        self.up = Gauge(
            "lengthwise_epp_endpoint_up", "1 for endpoints that may be picked.", ("endpoint",),
            registry=registry,
        )  # fmt: skip
        self.scrapes = Counter(
            "lengthwise_epp_scrapes", "Looks at endpoints' metrics by what came of them.",
            ("result",), registry=registry,
        )  # fmt: skip
        for result in ("read", "unreadable", "unreachable"):
            self.scrapes.labels(result)
        self.broken = Counter(
            "lengthwise_epp_streams", "Streams of gateways by how they ended.", ("end",),
            registry=registry,
        )  # fmt: skip
        for end in ("answered", "broken off", "protocol error"):
            self.broken.labels(end)

    def forget(self, endpoint: str) -> None:
        """An endpoint is gone."""
        for metric in (self.up, self.picks):
            if (endpoint,) in metric._metrics:
                metric.remove(endpoint)

    def text(self) -> bytes:
        """In Prometheus's format, with what the plugins' own counters hold."""
        return generate_latest(self._registry) + generate_latest()
