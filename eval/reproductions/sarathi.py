"""Agrawal et al., "Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve", OSDI
2024."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from lengthwise.eval import metrics
from lengthwise.eval.cells import Cells
from lengthwise.eval.reproductions.table import (
    NONE,
    Line,
    Progress,
    Reproduction,
    over_seeds,
)
from lengthwise.eval.setting import Setting
from lengthwise.eval.simulate import simulate_on
from lengthwise.eval.statistics import paired_ratio, t_interval
from lengthwise.serving import Engine
from lengthwise.workload import Workload

TIMING, SEATS, DELAY_S, CLOSE = "roofline:a100/mistral-7b", 128, 2.0, 1.03
# median and 90th percentile of prompts and of answers, tokens, and the longest that is kept
DATA = {
    "ShareGPT": ((1730, 5696), (415, 834), 8192),
    "arXiv": ((7059, 12985), (208, 371), 16384),
}
SLOS = {"strict": (0.1, 512), "relaxed": (0.5, 2048)}  # P99 between tokens, s; their chunk, tokens
THEIRS = "up to 2.6"


@dataclass(frozen=True)
class Drawn:
    """Log-normal lengths with a data set's medians and 90th percentiles."""

    data: str
    requests: int

    def load(self, seed: int) -> Workload:
        """Draws it, at one request a second."""
        rng = np.random.default_rng(seed)
        *parts, longest = DATA[self.data]
        tokens = []
        for median, p90 in parts:
            spread = np.log(p90 / median) / 1.2816
            drawn = median * np.exp(spread * rng.standard_normal(self.requests))
            tokens.append(np.maximum(np.rint(drawn), 1).astype(np.int64))
        output = np.minimum(tokens[1], longest // 4)
        prompt = np.minimum(tokens[0], longest - output)
        arrival = rng.exponential(1.0, self.requests).cumsum()
        return Workload(
            {"arrival_s": arrival, "prompt_tokens": prompt, "output_tokens": output},
            name=self.data,
        )


def engines(chunk: int) -> dict[str, Engine]:
    """With whole prompts beside who decodes, as in Orca, and with prompts in chunks."""
    whole = Engine(max_num_seqs=SEATS, max_num_batched_tokens=16_384, enable_chunked_prefill=False)
    chunked = replace(whole, max_num_batched_tokens=chunk, enable_chunked_prefill=True)
    return {"whole prompts": whole, f"chunks of {chunk}": chunked}


def meets(workload: Workload, engine: Engine, limit_s: float) -> bool:
    """Whether the P99 between tokens is within the limit, and half wait less than ``DELAY_S``."""
    loaded = Setting(engine, TIMING).load()
    found = simulate_on(
        workload, loaded, "fcfs", None, seed=0, backend="auto", log_iterations=True
    ).records
    assert found.iterations is not None
    gaps, tokens = metrics.itl_s(found.iterations)
    within = metrics.weighted_percentile(gaps, tokens, 99) <= limit_s
    return bool(within and np.median(metrics.wait_s(found)) <= DELAY_S)


def capacity(workload: Workload, engine: Engine, limit_s: float) -> float:
    """The largest rate, requests/s, that meets both, within 3%; the least that is tried is 0.01."""
    low, high = 0.01, 0.02
    while high < 1000 and meets(workload.at_rate(high), engine, limit_s):
        low, high = high, 2 * high
    while high / low > CLOSE:
        middle = (low * high) ** 0.5
        if meets(workload.at_rate(middle), engine, limit_s):
            low = middle
        else:
            high = middle
    return low


def _capacities(requests: int, seed: int) -> list[float]:
    return [
        capacity(Drawn(data, requests).load(seed), engine, limit_s)
        for data in DATA
        for limit_s, chunk in SLOS.values()
        for engine in engines(chunk).values()
    ]


def sarathi(
    seeds: int, processes: int, progress: Progress | None = None, cells: Cells | None = None,
    *, requests: int = 300,
) -> Reproduction:  # fmt: skip
    """Sarathi-Serve (OSDI 2024): capacity with chunked prefill against without."""
    values = over_seeds(partial(_capacities, requests), seeds, processes, progress, cells)
    found: list[Line] = []
    for data in DATA:
        for slo, (limit_s, chunk) in SLOS.items():
            first = len(found)
            for name in engines(chunk):
                own = values[:, len(found)]
                found.append(
                    Line(f"{data}, {slo}: {limit_s:g} s", name, NONE,
                         "1" if len(found) == first else THEIRS, t_interval(own),
                         paired_ratio(own, values[:, first]))
                )  # fmt: skip
    return Reproduction(
        "Sarathi-Serve: capacity under a limit on the P99 between tokens, Mistral-7B on an A100",
        "requests/s",
        tuple(found),
        (
            "theirs compares with vLLM 0.2, which computes waiting prompts before it decodes, and "
            "with Orca; ours without chunks is as Orca: whole prompts in the same iteration",
            "theirs: openchat_sharegpt4 and arxiv_summarization; ours: log-normal lengths with "
            "their medians and 90th percentiles, from memory, Poisson arrivals",
            "limits of 0.1 and 0.5 s and a median wait of at most 2 s, 128 seats, from memory; "
            "ours is a roofline of an A100, an estimate",
        ),
        "whole",
        "Agrawal et al., OSDI 2024, abstract: 2.6 times vLLM's capacity for Mistral-7B on an A100",
        "Ours is a gain of the same size, larger under the strict limit for chat and smaller under "
        "the relaxed one, where most whole prompts fit. vLLM of its day also let who decodes wait "
        "for several prompts in a row, which no option here does.",
    )
