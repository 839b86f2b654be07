"""Qiu et al., "Efficient Interactive LLM Serving with Proxy Model-based Sequence Length
Prediction", 2024."""

from __future__ import annotations

from lengthwise.eval.alone import alone_s
from lengthwise.eval.cells import Cells
from lengthwise.eval.compare import compare
from lengthwise.eval.reproductions.table import UNSTATED, Line, Progress, Reproduction
from lengthwise.eval.source import Spelled
from lengthwise.serving import Engine
from lengthwise.serving.timing import timing as load_timing

LOADS = (0.5, 0.7, 0.8, 0.9)
THEIRS = {"FCFS": "1", "SSJF (tau 0.635)": "0.64 to 0.70", "oracle": "0.54 to 0.58"}


def ssjf(
    seeds: int, processes: int, progress: Progress | None = None, cells: Cells | None = None,
    *, requests: int = 2000,
) -> Reproduction:  # fmt: skip
    """SSJF (2024): mean job completion time, one request at a time."""
    engine, timing = Engine(max_num_seqs=1), "roofline:a100/llama-2-13b"
    source = Spelled("lmsys-chat", {"requests": requests, "arrivals": "poisson"})
    alone = alone_s(source.load(1.0, 0), engine, load_timing(timing))
    assert alone is not None  # the engine does not schedule ahead
    service_s = float(alone.mean())
    found = compare(
        source,
        ("sjf",),
        ("noisy-oracle:tau=0.635",),
        [load / service_s for load in LOADS],
        seeds,
        engine,
        timing,
        processes=processes,
        progress=progress,
        cells=cells,
    )
    lines: list[Line] = []
    for load, rate in zip(LOADS, found.rates, strict=True):
        for (name, theirs), who in zip(THEIRS.items(), found.contenders, strict=True):
            own = found.interval(rate, who, "e2e_mean_s")
            ratio = found.ratio(rate, who, "e2e_mean_s")
            lines.append(Line(f"load {load:g}", name, UNSTATED, theirs, own, ratio))
    return Reproduction(
        "SSJF: mean job completion time, one request at a time",
        "s",
        tuple(lines),
        (
            "the paper states no load; the gain depends on it, so ours is shown at four",
            "theirs: Vicuna-13B's answers to LMSYS-Chat-1M; ours: a preset of that data set's "
            "lengths, on a roofline of an A100, an estimate",
            "their BERT is stood in for by the true length with noise of its Kendall tau-b (0.635)",
        ),
        source="Qiu et al., 2024: job completion time without batching, and with the true lengths",
        why="Theirs is what comes out between load 0.7 and 0.85: on one server the gain grows "
        "with the load without bound. With batching the queue is gone, and so is the gain: "
        "`lengthwise reproduce clairvoyant` shows the same workload on a batching engine.",
    )
