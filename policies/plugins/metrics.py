"""What a plugin counts and measures: in dicts always, in Prometheus where its client is installed.

Every metric carries ``engine``, the data-parallel rank, as vLLM's own do, and one label more. A
label's known values are there from the start, at 0, so that a rate over them is never "no data".
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from lengthwise.policies.plugins.threads import keep


class Metric(NamedTuple):
    """A row of the table: its label, the label's values, what is counted, and buckets if any."""

    label: str
    values: Sequence[str]
    meaning: str
    buckets: Sequence[float] = ()


SOURCES = ("client", "predictor", "default")
QUARTERS = ("1", "2", "3", "4")
SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
LENGTHS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 16384, 65536)

COUNTERS = {
    "predictions": Metric("source", SOURCES, "Requests by where their predicted length came from"),
    "fallbacks": Metric(
        "reason",
        (
            "policy", "plugin", "predictor-timeout", "predictor-error", "predictor-off",
            "no-prompt", "drift",
        ),
        "Requests served first come, first served because the policy gave them no score (policy), "
        "the plugin could not read them (plugin) or the predictor gave no length (all others)",
    ),
    "abstained": Metric(
        "by", ("predictor",),
        "Predicted requests that got the typical length, in the order of arrival, because the "
        "predictor knows too little of their like",
    ),
    "ignored": Metric(
        "value", ("predicted_tokens", "deadline_s"),
        "Values sent by clients that are no such thing; their requests went on without",
    ),
    "failed_steps": Metric(
        "part", ("policy", "shadow"),
        "Engine steps that this part was left out of because the plugin failed",
    ),
    "preemptions": Metric(
        "by", ("policy",),
        "Running requests that the policy preempted for better-scored ones; the engine's own "
        "preemptions, for want of KV blocks, are not among them",
    ),
    "guarded": Metric(
        "by", ("wait",), "Waiting requests that the starvation guard sent ahead of all others"
    ),
    "recorded": Metric(
        "result", ("written", "dropped"), "Finished requests by what became of their record"
    ),
    "restarts": Metric(
        "part",
        (
            "predictor", "predictor-thread", "predictor-writer-thread", "record-thread",
            "metrics-thread", "router-predictor-thread",
        ),
        "Times that a part of the plugin failed and was started again",
    ),
}  # fmt: skip
HISTOGRAMS = {
    "prediction_seconds": Metric(
        "source", ("predictor",), "Seconds from asking the predictor to its answer", SECONDS[:7]
    ),
    "predicted_tokens": Metric(
        "source", SOURCES[:2], "Predicted length of requests that then finished", LENGTHS
    ),
    "actual_tokens": Metric(
        "source", SOURCES[:2], "Generated tokens of these same requests", LENGTHS
    ),
    "error_log2": Metric(
        "source", SOURCES[:2],
        "Base-2 logarithm of generated over predicted tokens of these requests: 1 is twice as long",
        (-5, -4, -3, -2, -1, -0.5, 0, 0.5, 1, 2, 3, 4, 5),
    ),
    "wait_seconds": Metric(
        "score_quarter", QUARTERS,
        "Seconds from arrival to first admission, by where the score lay among those of the last "
        "1000 admitted: 1 is the quarter that goes first (in shadow mode: the shortest)",
        SECONDS,
    ),
}  # fmt: skip
GAUGES = {
    "predictor_up": Metric("part", ("predictor",), "1 while the predictor's process answers"),
    "recent_tau": Metric(
        "source", SOURCES[:2],
        "Kendall's tau of predicted and generated tokens over the last 256 finished requests",
    ),
    "followed": Metric(
        "source", SOURCES[1:2],
        "1 while requests are ordered by these lengths, 0 while they are served first come, first "
        "served because recent_tau was below 0 by two standard errors",
    ),
    "recent_coverage": Metric(
        "source", SOURCES[1:2],
        "Share of the last 256 finished requests whose length lay within its 90% interval",
    ),
    "recent_log2": Metric(
        "source", SOURCES[:2],
        "Mean base-2 logarithm of generated over predicted tokens over the same requests: drift",
    ),
}  # fmt: skip
_prometheus: dict[str, Any] = {}  # the library's registry is one a process, and so is this


class Counters:
    """Counts by (name, label value), measures by the same; warns of each kind of trouble once.

    ``log`` is the logger of the engine, whose format and level hold then.
    """

    def __init__(self, log: logging.Logger | None = None, engine: str = "0") -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.gauges: dict[tuple[str, str], float] = {}
        self.log = log or logging.getLogger("lengthwise")
        self._engine = engine
        self._warned: set[str] = set()
        self._prometheus = _made(engine)

    def listen(self, host: str, port: int) -> None:
        """Serves the metrics over HTTP; a port that can't be had is said, and that is all."""
        if not self._prometheus:
            self.warn("metrics", "no metrics are served: the package prometheus_client is missing")
            return
        import prometheus_client  # type: ignore[import-not-found,unused-ignore]

        try:
            started = prometheus_client.start_http_server(port, addr=host)
        except (OSError, OverflowError, ValueError) as error:  # the last: of a host's name
            why = getattr(error, "strerror", None) or error
            self.warn(
                "metrics-port",
                f"no metrics are served: can't listen on metrics_host {host!r}, port {port}: {why}",
            )
        else:
            if isinstance(started, tuple):  # prometheus_client 0.19 and later tell what they made
                keep("metrics", partial(_serve, *started), self, threading.Event())

    def add(self, name: str, label: str, count: int = 1) -> None:
        """Counts ``count`` more of ``name`` (a key of ``COUNTERS``)."""
        self.counts[name, label] += count
        if name in self._prometheus:
            self._prometheus[name].labels(self._engine, label).inc(count)

    def observe(self, name: str, label: str, value: float) -> None:
        """Adds a measurement to ``name`` (a key of ``HISTOGRAMS``)."""
        if name in self._prometheus:
            self._prometheus[name].labels(self._engine, label).observe(value)

    def set(self, name: str, label: str, value: float) -> None:
        """Sets ``name`` (a key of ``GAUGES``)."""
        self.gauges[name, label] = value
        if name in self._prometheus:
            self._prometheus[name].labels(self._engine, label).set(value)

    def warn(self, reason: str, detail: str) -> None:
        """Logs the first trouble of a kind; later ones are only counted."""
        if reason not in self._warned:
            self._warned.add(reason)
            self.log.warning(
                "lengthwise: %s (%s); more of this is counted, not logged", detail, reason
            )


def _serve(server: Any, thread: threading.Thread) -> None:
    """Watches the thread that serves; when that has ended, serves in its place."""
    if thread.is_alive():
        thread.join()
    else:
        server.serve_forever()
    raise RuntimeError("the metrics' server ended")


def _made(engine: str) -> dict[str, Any]:
    """The process's Prometheus metrics, with a series for each known label; empty without it."""
    try:
        import prometheus_client  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return {}
    kinds: tuple[tuple[dict[str, Metric], Any, dict[str, Any]], ...] = (
        (COUNTERS, prometheus_client.Counter, {}),
        (HISTOGRAMS, prometheus_client.Histogram, {}),
        # where several processes write into one folder, the last word is the right one
        (GAUGES, prometheus_client.Gauge, {"multiprocess_mode": "mostrecent"}),
    )
    for table, make, options in kinds:
        for name, row in table.items():
            if name not in _prometheus:
                given = {**options, "buckets": row.buckets} if row.buckets else options
                _prometheus[name] = make(
                    f"lengthwise_{name}", row.meaning, ["engine", row.label], **given
                )
            for value in row.values if table is not GAUGES else ():
                _prometheus[name].labels(engine, value)
    return _prometheus
