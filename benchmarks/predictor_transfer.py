"""What predictors do where they were not trained: each source's on each other source.

``python benchmarks/predictor_transfer.py DATA/prompts --model ridge --out transfer --jobs 16``

A predictor is trained on half of the prompts of a source (answers of one model, default settings)
and used on the other half of each source, as the simulator uses it, and with its abstention
switched off ("before"). SJF's mean and P99 latency are ratios to FCFS's on the same requests: drawn
with replacement, Poisson arrivals at ``--load`` of what FCFS completes when all are there at once.
Intervals of tau are percentiles over bootstrap draws of the prompts, those of latency are Student's
over seeds. Each source's row of the matrix is a file in --out: what is there is not run again.

The thresholds beyond which a workload is another one are chosen, by the rule of ``threshold``, on
the pairs without a source, and applied to all pairs with it.
"""

from __future__ import annotations

import argparse
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import lengthwise as lw
from lengthwise.errors import InputError
from lengthwise.eval import metrics
from lengthwise.eval.pool import over_cores
from lengthwise.eval.prediction_metrics import kendall_tau
from lengthwise.eval.simulate import simulate
from lengthwise.eval.statistics import paired_ratio
from lengthwise.prediction import Prediction
from lengthwise.predictors import make_predictor
from lengthwise.predictors.novelty import ABSTAIN, FEWEST, SHIFT
from lengthwise.predictors.predict import predict
from lengthwise.workload import Workload
from lengthwise.writing import whole_file

Table = pd.DataFrame
ENGINE = lw.Engine(max_num_seqs=64)
# the same prompts
SAME = {"gsm8k_example_solutions": "zeroeval_gsm", "zeroeval_gsm": "gsm8k_example_solutions"}
HARM = 1.02  # of FCFS's mean latency: more is harm
SHIFTS = np.arange(0.05, 2.0, 0.05).round(2)  # tried


def sources(folder: Path) -> dict[str, Table]:
    """Answers of one model to the prompts of each source: the middle name of the complete ones."""
    found = {}
    for path in sorted(folder.glob("*_lengths.csv.gz")):
        name = path.name.removesuffix("_lengths.csv.gz")
        lengths = pd.read_csv(path, keep_default_na=False)
        prompts = pd.read_json(folder / f"{name}_prompts.jsonl.gz", lines=True)
        lengths["prompt_id"] = lengths["prompt_id"].astype(str)
        prompts["prompt_id"] = prompts["prompt_id"].astype(str)
        rows = lengths[lengths["output_tokens"] > 0].drop_duplicates(["model", "prompt_id"])
        rows = rows.merge(prompts[["prompt_id", "prompt", "prompt_tokens"]], on="prompt_id")
        counts = rows["model"].value_counts()
        whole = sorted(counts[counts >= 0.8 * counts.max()].index)
        found[name] = rows[rows["model"] == whole[len(whole) // 2]].reset_index(drop=True)
    return found


def half(rows: Table, side: int) -> Table:
    """Half of the prompts, by a hash of their text."""
    mark = np.array([zlib.crc32(prompt.encode()) % 2 for prompt in rows["prompt"]])
    return rows[mark == side].reset_index(drop=True)


def workload(rows: Table, seed: int, load: float, requests: int = 2000) -> Workload:
    """Requests drawn from rows, arriving at ``load`` times what FCFS can complete."""
    rng = np.random.default_rng(seed)
    drawn = rows.iloc[rng.integers(0, len(rows), requests)]
    columns: dict[str, Any] = {
        "arrival_s": np.zeros(requests), "prompt": drawn["prompt"].to_numpy(object),
        "prompt_tokens": drawn["prompt_tokens"].to_numpy(),
        "output_tokens": drawn["output_tokens"].to_numpy(),
    }  # fmt: skip
    last = metrics.e2e_s(simulate(Workload(columns), "fcfs", engine=ENGINE).records).max()
    columns["arrival_s"] = np.cumsum(rng.exponential(last / requests / load, requests))
    return Workload(columns)


def mean_s(drawn: Workload, policy: str, said: Any = None) -> tuple[float, float]:
    """Mean and P99 latency."""
    times = metrics.e2e_s(simulate(drawn, policy, engine=ENGINE, predicted_tokens=said).records)
    return float(times.mean()), float(np.percentile(times, 99))


def latency_ratios(rows: Table, predictor: Any, seeds: int, load: float) -> dict[str, Any]:
    """SJF's mean (with its interval) and P99 latency over FCFS's, the share abstained from."""
    found = []
    for seed in range(seeds):
        drawn = workload(rows, seed, load)
        said = predict(predictor, drawn)
        assert said is not None
        found.append((*mean_s(drawn, "sjf", said), *mean_s(drawn, "fcfs"), said.abstained_share))
    sjf, sjf_p99, fcfs, fcfs_p99, abstained = np.array(found).T
    ratio = paired_ratio(sjf, fcfs)
    return {
        "mean": ratio.mean, "interval": [ratio.low, ratio.high],
        "p99": float(np.mean(sjf_p99 / fcfs_p99)), "abstained": float(abstained.mean()),
    }  # fmt: skip


@contextmanager
def remembered(predictor: Any, prompts: list[str]) -> Iterator[None]:
    """What the predictor reads of these prompts is computed once, however often it is asked."""
    if not hasattr(predictor, "_raw"):
        yield
        return
    read = predictor._raw
    raw, place = read(prompts), {prompt: row for row, prompt in enumerate(prompts)}

    def again(asked: list[str]) -> Any:
        known = all(prompt in place for prompt in asked)
        return raw[[place[prompt] for prompt in asked]] if known else read(asked)

    predictor._raw = again
    try:
        yield
    finally:
        del predictor._raw  # the class's own is back


def tau_interval(said: Prediction, length: Any, draws: int = 100) -> list[float]:
    """Kendall's tau and its 95% bootstrap interval."""
    rng = np.random.default_rng(0)
    tokens, n = said.order, len(length)
    rows = [rng.integers(0, n, n) for _ in range(draws)]
    taus = [kendall_tau(tokens[row], length[row]) for row in rows]
    return [kendall_tau(tokens, length), *np.quantile(taus, (0.025, 0.975)).tolist()]


def coverage(said: Prediction, length: Any, level: float = 0.9) -> float:
    """Share of lengths within their intervals; NaN of predictions without any."""
    try:
        low, high = said.interval(level)
    except InputError:
        return float("nan")
    return float(((length >= low) & (length <= high)).mean())


def judged(predictor: Any, rows: Table, seeds: int, load: float) -> dict[str, Any]:
    """One cell of the matrix."""
    length, prompts = rows["output_tokens"].to_numpy(float), list(rows["prompt"])
    with remembered(predictor, prompts):
        said = predictor.stream().predict(prompts, prompt_tokens=rows["prompt_tokens"].to_numpy())
        return {
            "tau": tau_interval(said, length), "coverage": coverage(said, length),
            **latency_ratios(rows, predictor, seeds, load),
        }  # fmt: skip


def shifted(fitted: Any, rows: Table, seeds: int, load: float) -> dict[str, Any]:
    """How far the workload has moved, and SJF's mean over FCFS's by where the threshold lies."""
    novelty, target, found, drift = fitted.novelty_, fitted.target_, [], []
    neutral = novelty.neutral(target).predicted_tokens[0]
    prompts = list(rows["prompt"])
    place = {prompt: row for row, prompt in enumerate(prompts)}
    said, shapes = target.prediction(fitted._raw(prompts)).predicted_tokens, novelty.shapes(prompts)
    new = novelty.score(prompts) > ABSTAIN
    for seed in range(seeds):
        drawn = workload(rows, seed, load)
        row = np.array([place[prompt] for prompt in drawn["prompt"]])
        moved, count = novelty.window().drift(shapes[row])
        drift.append(np.median(moved[count >= FEWEST]))
        fcfs, times = mean_s(drawn, "fcfs")[0], []
        for at in SHIFTS:
            out = new[row] | (moved > at) & (count >= FEWEST)
            times.append(mean_s(drawn, "sjf", np.where(out, neutral, said[row]))[0])
        found.append(np.divide(times, fcfs))
    return {"drift": float(np.median(drift)), "by_shift": np.mean(found, axis=0).tolist()}


def row_of_matrix(
    name: str, folder: Path, out: Path, model: str, target: str, seeds: int, load: float, most: int,
    names: list[str],
) -> None:  # fmt: skip
    """Trains on one source, tests on all of ``names``, and writes ``out``/NAME.json."""
    found = sources(folder)
    data = {other: found[other] for other in names}
    train = half(data[name], 0)
    options = {} if model == "prompt-length" else {"target": target}
    fitted: Any = make_predictor(model, **options)
    fitted.fit(
        list(train["prompt"]), train["output_tokens"].to_numpy(),
        prompt_tokens=train["prompt_tokens"].to_numpy(),
    )  # fmt: skip
    knows = "company_" if model == "prompt-length" else "novelty_"  # where it was trained
    cells = []
    for other, rows in data.items():
        test = half(rows, 1)
        test = test.sample(min(len(test), most), random_state=0)
        cell = {"train": name, "test": other, "tested": len(test)}
        cell["after"] = judged(fitted, test, seeds, load)
        if knows == "novelty_":
            cell |= shifted(fitted, test, seeds, load)
        kept = getattr(fitted, knows)
        setattr(fitted, knows, None)
        cell["before"] = judged(fitted, test, seeds, load)
        setattr(fitted, knows, kept)
        cells.append(cell)
    with whole_file(out / f"{name}.json") as fresh:
        fresh.write_text(json.dumps(cells))


def threshold(cells: Iterable[dict[str, Any]]) -> float:
    """The geometric middle between the farthest that halves of one source are apart and the
    nearest pair of sources that harms when nothing is abstained from.
    """
    cells = list(cells)
    same = max(c["drift"] for c in cells if c["train"] == c["test"])
    harm = [c["drift"] for c in cells if c["before"]["mean"] > HARM and c["train"] != c["test"]]
    return float(np.sqrt(same * min(harm)))


def nested(cells: list[dict[str, Any]]) -> None:
    """Prints, for each source, the threshold chosen without it and the worst pair with it."""
    print("\n| source left out | threshold | worst pair with it | mean × FCFS there |")
    print("|---|---:|---|---:|")
    for name in dict.fromkeys(c["train"] for c in cells):
        at = threshold(c for c in cells if name not in (c["train"], c["test"]))
        place = int(np.searchsorted(SHIFTS, at, side="right")) - 1
        its = [c for c in cells if name in (c["train"], c["test"]) and c["train"] != c["test"]]
        worst = max(its, key=lambda c: c["by_shift"][place])
        pair = f"{worst['train']} on {worst['test']}"
        print(f"| {name} | {at:.2f} | {pair} | {worst['by_shift'][place]:.3f} |")
    print(f"\nOn all of them {threshold(cells):.2f}; the default is {SHIFT}.")


def printed(cells: list[dict[str, Any]]) -> None:
    """The matrix as a table, and its worst case."""
    print("| trained on | used on | τ blind | SJF × FCFS blind | abstained | τ | SJF × FCFS |"
          " P99 × | coverage of 90% |")  # fmt: skip
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for c in cells:
        before, after = c["before"], c["after"]
        tau, low, high = after["tau"]
        print(
            f"| {c['train']} | {c['test']} | {before['tau'][0]:+.2f} | {before['mean']:.3f} "
            f"| {after['abstained']:.0%} | {tau:+.2f} ({low:+.2f} to {high:+.2f}) "
            f"| {after['mean']:.3f} ({after['interval'][0]:.3f} to {after['interval'][1]:.3f}) "
            f"| {after['p99']:.2f} | {after['coverage']:.0%} |"
        )
    out = [c for c in cells if c["train"] != c["test"]]
    for when in ("before", "after") if out else ():
        own = [c[when]["coverage"] for c in cells if c["train"] == c["test"]]
        worst = max(out, key=lambda c: c[when]["mean"])
        print(
            f"\n{'blind' if when == 'before' else 'by default'}: worst mean "
            f"{worst[when]['mean']:.3f} ({worst['train']} on {worst['test']}), above {HARM}: "
            f"{sum(c[when]['mean'] > HARM for c in out)} of {len(out)}; mean of the ratios in "
            f"source {np.mean([c[when]['mean'] for c in cells if c['train'] == c['test']]):.3f}, "
            f"out of it {np.mean([c[when]['mean'] for c in out]):.3f}; coverage in source "
            f"{min(own):.0%} to {max(own):.0%}, out of it median "
            f"{np.median([c[when]['coverage'] for c in out]):.0%}, least "
            f"{min(c[when]['coverage'] for c in out):.0%}"
        )


def main() -> None:
    """Runs what is missing in --out, and prints the matrix."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="ridge")
    parser.add_argument("--target", default="exact")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--load", type=float, default=1.0)
    parser.add_argument("--rows", type=int, default=500, help="of each source to test on")
    parser.add_argument("--out", type=Path, default=Path("transfer"))
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--sources", help="these alone, with commas; all by default")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    names = given.sources.split(",") if given.sources else list(sources(given.folder))
    todo = [
        (name, given.folder, given.out, given.model, given.target, given.seeds, given.load,
         given.rows, names)
        for name in names if not (given.out / f"{name}.json").is_file()
    ]  # fmt: skip
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes, which are as many as cores
    for _ in over_cores(row_of_matrix, todo, given.jobs):
        pass
    cells = [c for name in names for c in json.loads((given.out / f"{name}.json").read_text())]
    printed(cells)
    if "drift" in cells[0] and len(names) > 1:
        nested(cells)


if __name__ == "__main__":
    main()
