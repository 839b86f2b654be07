"""The stat logger as vLLM finds, makes and calls it; run in the environment of a whole vLLM."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

ENTRY = (
    "[vllm.stat_logger_plugins]\nlengthwise = lengthwise.policies.plugins.vllm.gauges:StatLogger\n"
)


def main() -> None:
    """Prints the metrics after two iterations."""
    from vllm.v1.metrics.loggers import StatLoggerBase, load_stat_logger_plugin_factories
    from vllm.v1.metrics.stats import IterationStats, SchedulerStats

    with tempfile.TemporaryDirectory() as folder:  # as an installed package is found
        info = Path(folder) / "lengthwise-0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lengthwise\nVersion: 0\n")
        (info / "entry_points.txt").write_text(ENTRY)
        sys.path.insert(0, folder)
        (factory,) = load_stat_logger_plugin_factories()
    assert issubclass(factory, StatLoggerBase)
    config = SimpleNamespace(model_config=SimpleNamespace(served_model_name="tiny", model="x"))
    os.environ["LENGTHWISE_GAUGES"] = "1"
    logger = factory(config, 0)
    logger.log_engine_initialized()
    iteration = IterationStats()
    iteration.num_generation_tokens = 40
    iteration.finished_requests = [SimpleNamespace(num_generation_tokens=30)]  # type: ignore[list-item]
    stats = SchedulerStats(num_running_reqs=2, num_waiting_reqs=3)
    logger.record(stats, iteration, mm_cache_stats=None, engine_idx=0)
    logger.record(None, None)
    logger.log()
    import prometheus_client

    for line in prometheus_client.generate_latest().decode().splitlines():
        if line.startswith("lengthwise:"):
            print(line)


if __name__ == "__main__":
    main()
