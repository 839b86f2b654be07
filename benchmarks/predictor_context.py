"""What context is worth: one predictor for all models of a file, unseen models, sessions.

    python benchmarks/predictor_context.py [DATA] [--models ridge,gbdt] [--only fleet]

DATA is the folder with ``prompts/`` and ``sessions/`` (default ../shared/data). Prompts are split
in halves by a hash of their text. Kendall's tau_b over all rows of all models pooled; intervals are
percentiles of 200 bootstrap samples of prompts, of the pair's difference as well.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau

from lengthwise.context import Context
from lengthwise.predictors.load import make_predictor
from lengthwise.serving.workload.split import in_split

SAMPLES = 200
UNSEEN = 10  # models left out, one at a time


def fleet(data: Path, source: str, most: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Prompts, lengths and models of a file, at most so many rows drawn at random."""
    import pandas as pd

    lengths = pd.read_csv(data / f"prompts/{source}_lengths.csv.gz")
    with gzip.open(data / f"prompts/{source}_prompts.jsonl.gz", "rt") as lines:
        texts = {row["prompt_id"]: row["prompt"] for row in map(json.loads, lines)}
    lengths = lengths[(lengths.output_tokens > 0) & lengths.prompt_id.isin(texts.keys())]
    if len(lengths) > most:
        lengths = lengths.sample(most, random_state=seed)
    return {
        "prompt": lengths.prompt_id.map(texts).to_numpy(object),
        "model": lengths.model.to_numpy(object),
        "output_tokens": lengths.output_tokens.to_numpy(),
    }


def sessions(data: Path) -> dict[str, np.ndarray]:
    """Every answer of the multi-turn sessions whose texts are there, what was asked before it."""
    import pandas as pd

    from lengthwise.chat import asked, messages
    from lengthwise.sessions import Answers

    turns = pd.read_csv(data / "sessions/mint_turns.csv.gz")
    length = turns.set_index(["session_id", "turn"]).output_tokens.to_dict()
    columns: dict[str, list] = {}
    with gzip.open(data / "sessions/mint_messages.jsonl.gz", "rt") as lines:
        for session in map(json.loads, lines):
            chat, before, turn = messages(session["messages"]), Answers(), 0
            for place, message in enumerate(chat):
                if message.role != "assistant":
                    continue
                tokens = length.get((session["session_id"], turn))
                if tokens is None or tokens < 1:
                    break
                row = {
                    "prompt": asked(chat[:place]),
                    "first": chat[0].text,
                    "output_tokens": tokens,
                    "model": session["model"],
                    "task": session["task"],
                    **before.row(),
                }
                for name, value in row.items():
                    columns.setdefault(name, []).append(value)
                before, turn = before.then(tokens), turn + 1
    return {
        name: np.array(v, object if name in ("prompt", "first", "model", "task") else float)
        for name, v in columns.items()
    }


def fitted(model: str, rows: dict, names: tuple[str, ...], train: np.ndarray):
    """A predictor with those columns of context, and how many seconds it took."""
    begun = time.perf_counter()
    context = Context(**{n: rows[n][train] for n in names}) if names else None
    made = make_predictor(model).fit(
        list(rows["prompt"][train]), rows["output_tokens"][train], context=context
    )
    return made, time.perf_counter() - begun


def said(predictor, rows: dict, names: tuple[str, ...], part: np.ndarray) -> np.ndarray:
    """Predicted tokens of the rows in ``part``."""
    context = Context(**{n: rows[n][part] for n in names}) if names else None
    return predictor.predict(list(rows["prompt"][part]), context=context).predicted_tokens


def intervals(truth: np.ndarray, tried: dict[str, np.ndarray], groups: np.ndarray) -> None:
    """Prints tau of each, and what it adds to the first, with bootstrap intervals over groups."""
    rng, (_, place) = np.random.default_rng(0), np.unique(groups, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(place.max() + 2))
    draws = []
    for _ in range(SAMPLES):
        drawn = rng.integers(0, len(starts) - 1, len(starts) - 1)
        rows = np.concatenate([order[starts[g] : starts[g + 1]] for g in drawn])
        draws.append(rng.permutation(rows)[:20_000])  # enough for tau to 0.003
    taus = {n: [kendalltau(p[rows], truth[rows])[0] for rows in draws] for n, p in tried.items()}
    first = next(iter(tried))
    for name, predicted in tried.items():
        low, high = np.percentile(taus[name], (2.5, 97.5))
        gain = np.subtract(taus[name], taus[first])
        a, b = np.percentile(gain, (2.5, 97.5))
        error = np.abs(predicted - truth).mean()
        print(
            f"  {name:34} tau {kendalltau(predicted, truth)[0]:.3f} ({low:.3f} to {high:.3f})"
            f"  gain {gain.mean():+.3f} ({a:+.3f} to {b:+.3f})  MAE {error:.1f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", nargs="?", default="../shared/data", type=Path)
    parser.add_argument("--models", default="ridge,gbdt")
    parser.add_argument("--only", default="fleet,unseen,sessions")
    parser.add_argument("--most-rows", type=int, default=200_000)
    given = parser.parse_args()
    parts, models = given.only.split(","), given.models.split(",")
    for source in ("alpaca_eval", "mmlu_pro") if "fleet" in parts else ():
        rows = fleet(given.data, source, given.most_rows)
        test = in_split(rows["prompt"], "test")
        print(f"{source}: {len(test)} rows, {len(set(rows['model']))} models, {test.sum()} tested")
        tried = {}
        for model in models:
            for names in ((), ("model",)):
                made, seconds = fitted(model, rows, names, ~test)
                label = f"{model} {'+'.join(names) or 'prompt alone'} ({seconds:.0f} s)"
                tried[label] = said(made, rows, names, test)
        intervals(rows["output_tokens"][test], tried, rows["prompt"][test])
    if "unseen" in parts:
        rows = fleet(given.data, "alpaca_eval", given.most_rows)
        test = in_split(rows["prompt"], "test")
        every = sorted(set(rows["model"]))
        chosen = [every[i] for i in np.random.default_rng(0).permutation(len(every))[:UNSEEN]]
        nothing = np.zeros(len(test), bool)
        for kind in models:
            for told, hidden in (
                ("prompts new too", test),
                ("prompts that others answered", nothing),
            ):
                found = []
                for model in chosen:
                    its = rows["model"] == model
                    made, _ = fitted(kind, rows, ("model",), ~hidden & ~its)
                    length = said(made, rows, ("model",), test & its)
                    found.append(kendalltau(length, rows["output_tokens"][test & its])[0])
                print(
                    f"unseen models, {kind}, {told}: tau median {np.median(found):.3f}, "
                    f"{min(found):.3f} to {max(found):.3f} of {UNSEEN}",
                    flush=True,
                )
    if "sessions" in parts:
        rows = sessions(given.data)
        test = in_split(rows["first"], "test")
        print(f"mint: {len(test)} answers, {test.sum()} tested")
        before = ("previous_answers", "previous_log_tokens", "previous_tokens")
        opening = rows | {"prompt": rows["first"]}  # of a server that is told no more
        for model in models:
            for read, table in (("opening question", opening), ("prompt", rows)):
                tried = {}
                for names in ((), before, ("model", "task"), ("model", "task", *before)):
                    made, seconds = fitted(model, table, names, ~test)
                    label = "+".join([read, *(n for n in names if n not in before)])
                    label = f"{model} {label}{' +session' if before[0] in names else ''}"
                    tried[label] = said(made, table, names, test)
                intervals(rows["output_tokens"][test], tried, rows["first"][test])


if __name__ == "__main__":
    main()
