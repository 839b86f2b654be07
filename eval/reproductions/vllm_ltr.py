"""Fu et al., "Efficient LLM Scheduling by Learning to Rank", NeurIPS 2024."""

from __future__ import annotations

from functools import partial

import numpy as np

from lengthwise.eval.cells import Cells
from lengthwise.eval.compare import compare
from lengthwise.eval.reproductions.table import (
    NONE,
    Case,
    Line,
    Progress,
    Reproduction,
    Row,
    lines,
)
from lengthwise.eval.source import Spelled
from lengthwise.prediction import Prediction, Predictions
from lengthwise.workload import Workload

# setting -> timing, workload, Kendall tau of their predictor, s/token of FCFS, MLFQ and LTR
THEIRS: dict[str, tuple[str, str, float, tuple[float, float, float]]] = {
    "8B, ShareGPT": ("roofline:a100/llama-3.1-8b", "sharegpt", 0.54, (1.15, 1.07, 0.56)),
    "8B, LMSYS": ("roofline:a100/llama-3.1-8b", "lmsys-chat", 0.62, (1.73, 0.80, 0.38)),
    "70B, ShareGPT": ("roofline:8xa100/llama-3.1-70b", "sharegpt", 0.54, (1.44, 1.37, 0.78)),
    "70B, LMSYS": ("roofline:8xa100/llama-3.1-70b", "lmsys-chat", 0.62, (2.17, 1.00, 0.54)),
}
PLAIN = str.maketrans("/:", "--")  # of a file's name
LATENCY = "normalized_latency_mean_s"


def shuffled(longer: bool, workload: Workload, seed: int) -> Predictions:
    """The true lengths, but those of the longer half of answers (or of the shorter one) are dealt
    anew among themselves: a tau of 0.75 either way, since a quarter of all pairs are at random.
    """
    tokens = workload["output_tokens"].astype(np.float64)
    order = np.argsort(tokens, kind="stable")
    half = order[len(order) // 2 :] if longer else order[: len(order) // 2]
    tokens[half] = np.random.default_rng(seed).permutation(tokens[half])
    return Prediction.exact(tokens).of_run()


def vllm_ltr(
    seeds: int, processes: int, progress: Progress | None = None, cells: Cells | None = None,
    *, requests: int = 2000,
) -> Reproduction:  # fmt: skip
    """vLLM-LTR (NeurIPS 2024): mean latency a token in a burst, and one tau twice."""
    found: list[Line] = []
    for setting, (timing, workload, tau, published) in THEIRS.items():
        compared = compare(
            Spelled(workload, {"requests": requests, "arrivals": "burst"}),
            ("mlfq+preempt:price=0", "sjf"),
            (f"noisy-oracle:tau={tau}",),
            seeds=seeds,
            timing=timing,
            processes=processes,
            progress=progress,
            cells=None if cells is None else cells.part(f"{timing}-{workload}".translate(PLAIN)),
        )
        names = ("FCFS", "MLFQ", f"LTR (tau {tau})")
        rows = compared.contenders[:3]
        for name, who, value in zip(names, rows, published, strict=True):
            rate = compared.rates[0]
            found.append(
                Line(
                    setting,
                    name,
                    f"{value:.2f}",
                    f"{value / published[0]:.2f}",
                    compared.interval(rate, who, LATENCY),
                    compared.ratio(rate, who, LATENCY),
                )
            )
    timing, workload, *_ = THEIRS["8B, ShareGPT"]
    burst = Spelled(workload, {"requests": requests, "arrivals": "burst"})
    pair = [
        Row("8B, ShareGPT, one tau", name, NONE, NONE,
            Case(burst, policy, predictor, timing=timing), LATENCY)
        for name, policy, predictor in (
            ("FCFS", "fcfs", None),
            ("errs among long (0.75)", "sjf", partial(shuffled, True)),
            ("errs among short (0.75)", "sjf", partial(shuffled, False)),
        )
    ]  # fmt: skip
    found += lines(pair, seeds, processes, progress, None if cells is None else cells.part("pair"))
    return Reproduction(
        "vLLM-LTR: mean latency a token when 2,000 requests arrive at once",
        "s/token",
        tuple(found),
        (
            "theirs: vLLM 0.4 on one A100 (8B) and eight (70B), Llama 3; ours: today's scheduler "
            "on a roofline of those GPUs, an estimate, with Llama 3.1's shapes",
            "theirs: answers of Llama 3; ours: presets of the two data sets with other models' "
            "answers, so only the ratios compare",
            "their predictor (OPT) is stood in for by the true length with noise of their "
            "Kendall tau; ours is calibrated to tokens, and sjf needs only the order",
            "the two orders of one tau are ours: they show what tau does not say",
        ),
        source="Fu et al., NeurIPS 2024, section 5: burst of 2,000 requests; predictors' tau",
        why="Ours gains about twice theirs. Their predictor errs as a model does and runs beside "
        "the engine, with 2,000 requests sorted anew in Python at each step of vLLM 0.4; a noisy "
        "oracle errs alike on all lengths, at no cost. The last rows show how much that is: of two "
        "orders with one tau, the one that errs among short answers has 1.7 times the latency.",
    )
