"""Trains the base that ships: ``python -m lengthwise.training.base DATA --out DIR``.

DATA is a folder of ``NAME_prompts.jsonl.gz`` and ``NAME_lengths.csv.gz``; only the sources of
``SOURCES`` are read, whose licences permit it. Log lengths are centred per source and model, and
scaled per source; a prompt's label is their mean. ``--leave-out NAME`` trains without a source, to
see what the base is worth where it was not trained. The same data give the same bytes on the same
kind of CPU.
"""

from __future__ import annotations

import argparse
import hashlib
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lengthwise.predictors import folder, targets
from lengthwise.predictors.base import Pretrained, embeddings
from lengthwise.predictors.features import TextFeatures
from lengthwise.predictors.learned import folds_of
from lengthwise.predictors.novelty import Novelty
from lengthwise.predictors.text import solve
from lengthwise.writing import whole_file

Floats = NDArray[np.float64]

SOURCES = {  # and the licence that its repository states, of prompts and lengths
    "arena_hard": "lmarena/arena-hard-auto, Apache-2.0",
    "creative_writing_2025": "sam-paech/slop-score results/, MIT",
    "gpteacher_codegen": "teknium1/GPTeacher, MIT",
    "gsm8k_example_solutions": "openai/grade-school-math, MIT",
    "mmlu_pro": "TIGER-AI-Lab/MMLU-Pro, Apache-2.0",
    "oasst_sampling": "Open-Assistant/oasst-model-eval, Apache-2.0",
    "self_instruct_eval": "yizhongw/self-instruct, Apache-2.0",
    "zeroeval_gsm": "WildEval/ZeroEval, Apache-2.0 (GSM8K: MIT)",
    "zeroeval_math_l5": "WildEval/ZeroEval, Apache-2.0 (MATH: MIT)",
}
MOST_PROMPTS = 1500  # of a source, those with the smallest hash
FEWEST_PROMPTS = 5  # that hold a term: no user's words are in the file
MOST_TERMS = 8000
PENALTY = 5.0


def answers(data: Path, name: str) -> pd.DataFrame:
    """A row an answer of a source that is not empty: the columns of its lengths, and prompt."""
    lengths = pd.read_csv(data / f"{name}_lengths.csv.gz", keep_default_na=False)
    prompts = pd.read_json(data / f"{name}_prompts.jsonl.gz", lines=True)
    for table in (lengths, prompts):
        table["prompt_id"] = table["prompt_id"].astype(str)
    return lengths[lengths["output_tokens"] > 0].merge(
        prompts[["prompt_id", "prompt"]], on="prompt_id"
    )


def read(data: Path, leave_out: str | None = None) -> pd.DataFrame:
    """A row a source's prompt: source, prompt, label (centred and scaled), one answer's tokens."""
    parts = []
    for name in SOURCES:
        if name == leave_out:
            continue
        rows = answers(data, name)
        log = np.log(rows["output_tokens"])
        rows["label"] = log - log.groupby(rows["model"]).transform("mean")
        found = rows.groupby("prompt", sort=True).agg(
            label=("label", "mean"), tokens=("output_tokens", _one)
        )
        found["label"] = (found["label"] - found["label"].mean()) / found["label"].std()
        found["spread"] = rows.groupby("prompt")["label"].mean().std()
        found["source"] = name
        found = found.reset_index()
        order = np.argsort([zlib.crc32(prompt.encode()) for prompt in found["prompt"]])
        parts.append(found.iloc[np.sort(order[:MOST_PROMPTS])])
    return pd.concat(parts, ignore_index=True)


def train(rows: pd.DataFrame, embedding: Floats) -> tuple[dict[str, Any], dict[str, Any]]:
    """State and arrays of the base, from rows of ``read`` and their embeddings (n, width)."""
    from scipy.sparse import csr_matrix, hstack

    prompts, label = list(rows["prompt"]), rows["label"].to_numpy()[:, None]
    weights = 1 / np.sqrt(rows.groupby("source")["label"].transform("size").to_numpy())
    weights /= weights.mean()
    features = _common(prompts)
    shift, scale = embedding.mean(axis=0), embedding.std(axis=0) * np.sqrt(embedding.shape[1])
    sparse = features.rows(prompts)
    text = csr_matrix((sparse.values, sparse.columns, sparse.starts), (len(rows), sparse.width))
    matrix = csr_matrix(hstack(((embedding - shift) / scale, text)))
    solved, intercept = solve(matrix, label, PENALTY, weights)
    width = embedding.shape[1]
    pretrained = Pretrained(
        features, solved[width:], shift, scale, np.ascontiguousarray(solved[:width, 0]), intercept
    )
    folds, unseen = folds_of(prompts, 0), np.empty(len(rows))
    for fold in range(int(folds.max()) + 1):
        out = folds == fold
        part, bias = solve(matrix[~out], label[~out], PENALTY, weights[~out])
        unseen[out] = (matrix[out] @ part + bias)[:, 0]
    tokens = rows["tokens"].to_numpy(float)
    by_source = rows.assign(log=np.log(tokens)).groupby("source")
    centre = np.array([by_source["log"].mean().mean(), by_source["spread"].first().median()])
    raw = (centre[0] + centre[1] * unseen)[:, None]
    target = targets.Exact(1.0, float(tokens.max())).calibrated(raw, tokens)
    arrays = pretrained.arrays() | {"centre": centre}
    arrays |= {f"target.{name}": value for name, value in target.arrays().items()}
    novelty = Novelty.fit(prompts, tokens, raw, weights).among(prompts, list(rows["source"]))
    arrays |= novelty.arrays()
    return {"terms": list(features.terms)}, arrays


def _common(prompts: list[str]) -> TextFeatures:
    """Features whose terms enough prompts hold, the most frequent of them."""
    fitted = TextFeatures.fit(list(dict.fromkeys(prompts)), max_terms=100 * MOST_TERMS)
    total = len(set(prompts))
    held = np.round((1 + total) / np.exp(fitted.idf - 1) - 1)  # the idf's own definition
    frequent = np.flatnonzero(held >= FEWEST_PROMPTS)
    kept = np.sort(frequent[np.argsort(-held[frequent], kind="stable")[:MOST_TERMS]])
    terms = tuple(fitted.terms[i] for i in kept)
    return TextFeatures(terms, fitted.idf[kept], fitted.shift, fitted.scale)


def _one(tokens: pd.Series[int]) -> int:
    """One of a prompt's answers, the middle one in the file: they differ by model."""
    return int(tokens.iloc[len(tokens) // 2])


def embedded(prompts: list[str], cache: Path | None) -> Floats:
    """Embeddings, kept by hashes of the prompts in ``cache`` where one is named."""
    keys = [hashlib.sha256(prompt.encode("utf-8", "replace")).hexdigest() for prompt in prompts]
    known: dict[str, Any] = {}
    if cache is not None and cache.is_file():
        with np.load(cache) as kept:
            known = dict(zip(kept["keys"].tolist(), kept["rows"], strict=True))
    new = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in known}
    if new:
        made = embeddings(list(new.values()), exact=True).astype(np.float32)
        known |= dict(zip(new, made, strict=True))
        if cache is not None:
            np.savez(cache, keys=np.array(list(known)), rows=np.stack(list(known.values())))
    return np.stack([known[key] for key in keys]).astype(np.float64)


def card(rows: pd.DataFrame) -> str:
    """The model card, in the hub's format."""
    counts = rows.groupby("source").size()
    listed = "\n".join(
        f"| `{name}` | {SOURCES[name]} | {counts[name]:,} |" for name in SOURCES if name in counts
    )
    return f"""---
license: apache-2.0
library_name: lengthwise
tags: [output-length-prediction, llm-serving]
---
# lengthwise base

Predicts which answers of a language model will be long, from the prompt's text. A linear score of
all-MiniLM-L6-v2's embedding (Apache-2.0, not in this folder), TF-IDF of up to {MOST_TERMS:,}
words and word pairs that at least {FEWEST_PROMPTS} prompts hold, and the text's shape.

Intended use: ordering requests, alone or with rows of the workload at hand (`lengthwise train
predictor DATA --base`). Not for billing or limits: lengths as such differ by model and application,
and without rows of the workload its intervals are as wide as that.

| source | repository and licence | prompts |
|---|---|---:|
{listed}

Only lengths of the answers were used, none of their text; the models' providers may have terms of
their own for their answers. Sources for research only (AlpacaEval's prompts, CC-BY-NC) and without
a licence are left out. No prompt's text is in the folder.

Limits: mostly English; single-turn questions, exams, mathematics, code and stories. On sources that
it was not trained on its order is right more often than not but weak, and on narrow sets of stories
of one prescribed length it was wrong (docs/predictors.md).

Made by `python -m lengthwise.training.base DATA --out DIR`.
"""


def main() -> None:
    """Trains and writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--leave-out", choices=SOURCES)
    parser.add_argument("--cache", type=Path, help="FILE.npz of embeddings, kept between calls")
    given = parser.parse_args()
    rows = read(given.data, given.leave_out)
    state, arrays = train(rows, embedded(list(rows["prompt"]), given.cache))
    options = {"target": "exact", "buckets": None, "levels": list(targets.LEVELS), "seed": 0}
    saved = folder.Saved("base", options, state, arrays)
    folder.write(saved, given.out)
    with whole_file(given.out / "README.md") as fresh:  # in place of the card that all folders have
        fresh.write_text(card(rows), encoding="utf-8")
    print(f"wrote {given.out}: {len(rows):,} prompts of {rows['source'].nunique()} sources")


if __name__ == "__main__":
    main()
