"""What a plugin counts: in a dict always, in Prometheus where its client library is installed."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

log = logging.getLogger("lengthwise")

# name -> (label, what is counted)
COUNTED = {
    "predictions": ("source", "requests by where their predicted length came from"),
    "fallbacks": ("reason", "requests scheduled first come, first served, by why"),
    "preemptions": ("by", "running requests that gave way to better-scored ones"),
    "recorded": ("result", "finished requests by what became of their record"),
    "guarded": ("by", "waiting requests that the starvation guard sent ahead"),
}
_prometheus: dict[str, Any] = {}  # the library's registry is one a process, and so is this


class Counters:
    """Counts by (name, label value); warns of each kind of trouble once."""

    def __init__(self, metrics_port: int = 0) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self._warned: set[str] = set()
        try:
            import prometheus_client  # type: ignore[import-not-found,unused-ignore]
        except ImportError:
            return
        for name, (label, meaning) in COUNTED.items():
            if name not in _prometheus:
                _prometheus[name] = prometheus_client.Counter(
                    f"lengthwise_{name}", f"lengthwise: {meaning}", [label]
                )
        if metrics_port:
            prometheus_client.start_http_server(metrics_port)

    def add(self, name: str, label: str, count: int = 1) -> None:
        """Counts ``count`` more of ``name`` (a key of ``COUNTED``)."""
        self.counts[name, label] += count
        if name in _prometheus:
            _prometheus[name].labels(label).inc(count)

    def warn(self, reason: str, detail: str) -> None:
        """Logs the first trouble of a kind; later ones are only counted."""
        if reason not in self._warned:
            self._warned.add(reason)
            log.warning("%s (%s); more of this is counted, not logged", detail, reason)
