"""What keeps the tail near FCFS's, and what of the gain is left: guards, ageing, and counting work.

    python -m benchmarks.guards TRACE [--first N] [--windows W] [--rates 16,22] [--predictor SPEC]
    python -m benchmarks.guards TRACE --prompts FILE --answers-by MODEL --predictor ridge ...

Windows of 3,000 requests of a trace at each rate, on one simulated H200 with 64 seats. With
``--prompts`` each of a window's arrivals is a prompt of the test split, drawn anew for each window,
and the predictor is trained on the train split; a trace alone has no text, and takes an oracle with
noise. Mean and P99 latency in FCFS's, geometric over windows with paired 95% intervals, and the
share of what ``srtf`` gains in the mean. ``--policies`` are others than these, files among them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau

import lengthwise as lw
from lengthwise.eval.statistics import Interval, paired_ratio
from lengthwise.prediction import Predictions
from lengthwise.predictors import make_predictor
from lengthwise.predictors.predict import PredictorLike, predict
from lengthwise.serving.workload import load_workload, read_prompts

LENGTH = 3000  # requests of a window

SPECS = (
    "fcfs", "srtf", "srtf+guard:ratio=1.5", "srtf+guard:ratio=1.25", "srtf+guard:ratio=1",
    "sjf+guard:ratio=1.5", "sjf+guard:ratio=1.25", "srtf-refreshed+guard:ratio=1.25",
    "ageing:tokens_per_s=10", "ageing:tokens_per_s=40", "ageing:tokens_per_s=10+guard:ratio=1.25",
    "hrrn:floor_tokens=100", "work:b=0.3", "work:b=0.3+guard:ratio=1.5",
    "work:b=0.3+guard:ratio=1.25", "work+guard:ratio=1.25",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace")
    parser.add_argument("--first", type=int, default=0, help="requests that are passed over")
    parser.add_argument("--windows", type=int, default=1)
    parser.add_argument("--rates", default="16,22")
    parser.add_argument("--predictor", default="noisy-oracle:tau=0.45")
    parser.add_argument("--prompts", help="prompts with answers, for the trace's arrivals")
    parser.add_argument("--answers-by", help="the model whose answers those are")
    parser.add_argument("--policies", default=";".join(SPECS), help="between semicolons")
    given = parser.parse_args()
    specs = list(dict.fromkeys(("fcfs", "srtf", *given.policies.split(";"))))
    windows = windows_of(given.trace, given.first, given.windows, given.prompts, given.answers_by)
    predictor = trained(given.predictor, given.prompts, given.answers_by)
    predicted = [predict(predictor, w, seed) for seed, w in enumerate(windows)]
    taus = [tau_of(p, w) for p, w in zip(predicted, windows, strict=True)]
    print(f"lengths of {given.predictor}: τ {np.mean(taus):.2f}")
    engine = lw.Engine(max_num_seqs=64)
    for rate in map(float, given.rates.split(",")):
        found = {}
        for spec in specs:
            ends = []
            for seed, (window, lengths) in enumerate(zip(windows, predicted, strict=True)):
                summary = lw.simulate(
                    window.at_rate(rate), policy=spec,
                    predicted_tokens=None if spec == "fcfs" else lengths, engine=engine, seed=seed,
                ).summary()  # fmt: skip
                ends.append((summary["e2e_mean_s"], summary["e2e_p99_s"]))
            found[spec] = np.array(ends)
        told(rate, found)


def windows_of(
    trace: str, first: int, count: int, prompts: str | None = None, model: str | None = None
) -> list[lw.Workload]:
    """Windows of a trace, its arrivals those of prompts of the test split if there are any."""
    starts = [first + LENGTH * k for k in range(count)]
    if prompts is None:
        whole = lw.Workload.read(trace)
        return [whole.window(at, at + LENGTH) for at in starts]
    return [
        load_workload(
            prompts, arrivals=trace, requests=at + LENGTH, model=model, split="test",
            seed=seed, drop_zero=True,
        ).window(at, at + LENGTH)
        for seed, at in enumerate(starts)
    ]  # fmt: skip


def trained(spec: str, prompts: str | None, model: str | None) -> PredictorLike:
    """The predictor, trained on prompts of the train split where there are any to train it on."""
    if prompts is None or needs_no_training(spec):
        return spec
    train = read_prompts(prompts, model=model, drop_zero=True).split("train", 0.5)
    made = make_predictor(spec, target="exact", seed=0)
    return made.fit(list(train.prompt), train.output_tokens, prompt_tokens=train.prompt_tokens)


def needs_no_training(spec: str) -> bool:
    """Whether it is an oracle, trained already, or in a folder."""
    return "oracle" in spec or spec == "base" or Path(spec).is_dir()


def tau_of(predictions: Predictions | None, workload: lw.Workload) -> float:
    """Kendall's tau of predicted lengths with the true ones."""
    assert predictions is not None  # a predictor was given
    said = predictions.columns["predicted_tokens"]
    return float(kendalltau(said, workload["output_tokens"]).statistic)


def told(rate: float, found: dict[str, np.ndarray]) -> None:
    print(f"\n**{rate:g} requests/s**\n\n| policy | mean × fcfs | P99 × fcfs | of srtf's gain |")
    print("|---|---:|---:|---:|")
    ratios = {
        spec: [paired_ratio(ends[:, k], found["fcfs"][:, k]) for k in (0, 1)]
        for spec, ends in found.items()
    }
    gain = 1 - ratios["srtf"][0].mean
    for spec, (mean, p99) in ratios.items():
        share = f"{(1 - mean.mean) / gain:.2f}" if gain > 0.005 else "–"
        print(f"| {spec} | {said(mean)} | {said(p99)} | {share} |")


def said(ratio: Interval) -> str:
    spread = "" if np.isnan(ratio.low) else f" ({ratio.low:.2f} to {ratio.high:.2f})"
    return f"{ratio.mean:.2f}{spread}"


if __name__ == "__main__":
    main()
