"""What ``serve-latency`` foretells, against a run of the simulator and against trees.

    python -m benchmarks.latency_door [--requests 3000] [--timing h200/llama-3.1-8b]

One node serves ``sharegpt`` at two loads. Of each request is known what an endpoint picker sees as
it arrives (waiting and running requests, KV use, tokens under way). The first requests are
observed, the last half is foretold: mean absolute error over the mean, and how many latencies lie
below the 90% quantile. Beside it: timing alone, gradient boosting as llm-d's predictor has it
(scikit-learn's, on the same rows), and the mean of what was observed.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor

import lengthwise as lw
from lengthwise.eval.latency import LatencyModel, Seen
from lengthwise.serving.saturation import saturation_rate

OBSERVED = (50, 500)
SEATS = 64


def rows(requests: int, rate: float, timing: str, seed: int) -> tuple[list[Seen], Any, Any]:
    """What is seen at each arrival, and seconds to the first token and for each further one."""
    work = lw.Workload.preset("sharegpt", requests=requests, rate=rate, seed=seed)
    engine = lw.Engine(max_num_seqs=SEATS)
    found = lw.simulate(work, "fcfs", None, engine, timing=timing).requests
    arrival, begun, first, end = (
        found[name].to_numpy() for name in ("arrival_s", "scheduled_s", "first_token_s", "finish_s")
    )
    prompt, output = found["prompt_tokens"].to_numpy(), found["output_tokens"].to_numpy()
    room = lw.timing(timing).num_gpu_blocks * engine.block_size
    tpot = np.maximum(end - first, 1e-9) / np.maximum(output - 1, 1)
    seen = []
    for k, at in enumerate(arrival.tolist()):
        here = np.flatnonzero((arrival < at) & (end > at))
        running = here[begun[here] <= at]
        made = ((at - first[running]) / tpot[running]).clip(0, output[running])
        left = np.maximum(output[here] - 1, 0).sum() - made.sum()
        held = (prompt[running] + made).sum() / room
        seen.append(
            Seen(
                float(min(held, 1.0)), int(prompt[k]), len(here) - len(running), len(running),
                prefill_tokens=int(prompt[here[first[here] > at]].sum()),
                decode_tokens=int(max(left, 0)),
            )
        )  # fmt: skip
    return seen, first - arrival, tpot


def table(one: Seen) -> list[float]:
    """A row for trees."""
    return [one.kv_utilization, one.prompt_tokens, one.waiting_requests, one.running_requests,
            one.prefill_tokens, one.decode_tokens]  # fmt: skip


def trees(seen: list[Seen], real: Any, ask: list[Seen], quantile: float | None) -> Any:
    """Gradient boosting's word."""
    kind: dict[str, Any] = {"loss": "quantile", "quantile": quantile} if quantile else {}
    model = HistGradientBoostingRegressor(**kind, min_samples_leaf=5, max_iter=100)
    model.fit([table(one) for one in seen], real)
    return model.predict([table(one) for one in ask])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1200)
    parser.add_argument("--timing", default="h200/llama-3.1-8b")
    given = parser.parse_args()
    work = lw.Workload.preset("sharegpt", requests=2000, rate=1.0, seed=9)
    node = lw.Node(lw.Engine(max_num_seqs=SEATS), lw.timing(given.timing), lw.load_policy("fcfs"))
    most = saturation_rate(work, lw.System((node,), lw.load_router("round-robin")))
    print(f"{given.timing}, {SEATS} seats, at most {most:.1f} requests/s")
    print(f"{'load':>5} {'of':>5} {'observed':>9} {'':<16} {'error':>7} {'below P90':>10}")
    for load in (0.7, 0.95):
        seen, *latencies = rows(given.requests, load * most, given.timing, 1)
        half = len(seen) // 2
        for name, real, answer in (("TTFT", latencies[0], 0), ("TPOT", latencies[1], 1)):
            ask, truth = seen[half:], real[half:]
            for count in (0, *OBSERVED):
                first, told = seen[half - count : half], real[half - count : half]
                lines: dict[str, tuple[Any, Any]] = {}
                models = []
                for quantile in (None, 0.9):
                    model = LatencyModel(node.engine, node.timing, 320.0, quantile)
                    for one, *both in zip(first, *(x[half - count : half] for x in latencies),
                                          strict=True):  # fmt: skip
                        model.observe(one, *both)
                    models.append([model.predict(one)[answer] for one in ask])
                lines["serve-latency" if count else "timing alone"] = (models[0], models[1])
                if count:
                    lines["trees"] = (trees(first, told, ask, None), trees(first, told, ask, 0.9))
                    flat = np.full(len(ask), told.mean())
                    lines["mean"] = (flat, np.full(len(ask), np.quantile(told, 0.9)))
                for label, (mean, high) in lines.items():
                    error = np.abs(np.array(mean) - truth).mean() / truth.mean()
                    below = (truth <= np.array(high)).mean()
                    shown = f"{below:10.0%}" if count else f"{'':>10}"
                    print(f"{load:5g} {name:>5} {count:9d} {label:<16} {error:7.0%} {shown}")


if __name__ == "__main__":
    main()
