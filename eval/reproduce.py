"""Published tables, ours beside theirs, as far as the papers say how they were made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lengthwise.errors import UnknownNameError
from lengthwise.eval.alone import alone_s
from lengthwise.eval.cells import Cells
from lengthwise.eval.compare import Comparison, compare
from lengthwise.eval.source import Spelled
from lengthwise.eval.statistics import Interval
from lengthwise.serving import Engine
from lengthwise.serving.timing import timing as load_timing

Progress = Callable[[int, int], None]
PLAIN = str.maketrans("/:", "--")  # of a file's name


@dataclass(frozen=True)
class Line:
    """One line of a published table and what it is here; None where the paper gives no number."""

    setting: str
    policy: str
    theirs: str
    their_ratio: str
    ours: Interval | None = None
    our_ratio: Interval | None = None


@dataclass(frozen=True)
class Reproduction:
    """A paper's table with ours beside it, and what differs between the two.

    ``first`` names what ratios are to.
    """

    title: str
    quantity: str
    lines: tuple[Line, ...]
    differs: tuple[str, ...]
    first: str = "FCFS"


def vllm_ltr(
    seeds: int, processes: int, progress: Progress | None = None, cells: Cells | None = None
) -> Reproduction:
    """Fu et al., "Efficient LLM Scheduling by Learning to Rank", NeurIPS 2024: burst of 2,000."""
    lines: list[Line] = []
    for setting, timing, workload, tau, published in (
        ("8B, ShareGPT", "roofline:a100/llama-3.1-8b", "sharegpt", 0.54, (1.15, 1.07, 0.56)),
        ("8B, LMSYS", "roofline:a100/llama-3.1-8b", "lmsys-chat", 0.62, (1.73, 0.80, 0.38)),
        ("70B, ShareGPT", "roofline:8xa100/llama-3.1-70b", "sharegpt", 0.54, (1.44, 1.37, 0.78)),
        ("70B, LMSYS", "roofline:8xa100/llama-3.1-70b", "lmsys-chat", 0.62, (2.17, 1.00, 0.54)),
    ):
        found = compare(
            Spelled(workload, {"requests": 2000, "arrivals": "burst"}),
            ("mlfq+preempt:price=0", "sjf"),
            (f"noisy-oracle:tau={tau}",),
            seeds=seeds,
            timing=timing,
            processes=processes,
            progress=progress,
            cells=None if cells is None else cells.part(f"{timing}-{workload}".translate(PLAIN)),
        )
        names = ("FCFS", "MLFQ", f"LTR (tau {tau})")
        rows = (found.contenders[0], found.contenders[1], found.contenders[2])
        for name, who, value in zip(names, rows, published, strict=True):
            rate = found.rates[0]
            lines.append(
                Line(
                    setting,
                    name,
                    f"{value:.2f}",
                    f"{value / published[0]:.2f}",
                    found.interval(rate, who, "normalized_latency_mean_s"),
                    found.ratio(rate, who, "normalized_latency_mean_s"),
                )
            )
    return Reproduction(
        "vLLM-LTR: mean latency a token when 2,000 requests arrive at once",
        "s/token",
        tuple(lines),
        (
            "theirs: vLLM 0.4 on one A100 (8B) and eight (70B), Llama 3; ours: today's scheduler "
            "on a roofline of those GPUs, an estimate, with Llama 3.1's shapes",
            "theirs: answers of Llama 3; ours: presets of the two data sets with other models' "
            "answers, so only the ratios compare",
            "their predictor (OPT) is stood in for by the true length with noise of their "
            "Kendall tau; ours is calibrated to tokens, and sjf needs only the order",
        ),
    )


def ssjf(
    seeds: int, processes: int, progress: Progress | None = None, cells: Cells | None = None
) -> Reproduction:
    """Qiu et al., "Efficient Interactive LLM Serving with Proxy Model-based Sequence Length
    Prediction", 2024: job completion time without batching."""
    engine, timing = Engine(max_num_seqs=1), "roofline:a100/llama-2-13b"
    source = Spelled("lmsys-chat", {"requests": 2000, "arrivals": "poisson"})
    probe = source.load(1.0, 0)
    alone = alone_s(probe, engine, load_timing(timing))
    assert alone is not None  # the engine does not schedule ahead
    service_s = float(alone.mean())
    loads = (0.5, 0.7, 0.8, 0.9)
    found: Comparison = compare(
        source,
        ("sjf",),
        ("noisy-oracle:tau=0.635",),
        [load / service_s for load in loads],
        seeds,
        engine,
        timing,
        processes=processes,
        progress=progress,
        cells=cells,
    )
    lines: list[Line] = []
    for load, rate in zip(loads, found.rates, strict=True):
        for name, who, theirs in zip(
            ("FCFS", "SSJF (tau 0.635)", "oracle"),
            found.contenders,
            ("1", "0.64 to 0.70", "0.54 to 0.58"),
            strict=True,
        ):
            line = Line(f"load {load:g}", name, "not stated", theirs)
            lines.append(
                replace(
                    line,
                    ours=found.interval(rate, who, "e2e_mean_s"),
                    our_ratio=found.ratio(rate, who, "e2e_mean_s"),
                )
            )
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
    )


PAPERS: dict[str, Callable[..., Reproduction]] = {"vllm-ltr": vllm_ltr, "ssjf": ssjf}


def reproduce(
    paper: str,
    seeds: int = 5,
    processes: int = 1,
    progress: Progress | None = None,
    cells: Cells | None = None,
    *,
    papers: Mapping[str, Callable[..., Reproduction]] = PAPERS,
    **options: Any,
) -> Reproduction:
    """Our version of a published table; raises ``UnknownNameError`` with the nearest name.

    With ``cells``, what is finished is kept, and is not run again. ``papers`` are those known,
    ``options`` what the paper's own function takes beside these.
    """
    if paper not in papers:
        raise UnknownNameError("paper", paper, papers)
    return papers[paper](seeds, processes, progress, cells, **options)
