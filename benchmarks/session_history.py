"""What more of a session's earlier answers tells than their mean: forgetting, trend, residuals.

    python benchmarks/session_history.py DATA

Text is read by a ridge that did not see the row (folds by the opening question); on its guess and
columns of the session a linear model with terms of the first two turns, or small boosted trees.
Kendall's tau in cross-validation on the training half, by which to choose, and on the other half.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from predictor_context import sessions
from scipy.stats import kendalltau
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import RidgeCV

from lengthwise.predictors.learned import folds_of
from lengthwise.predictors.text import Design
from lengthwise.serving.workload.split import in_split

SETS = {
    "text alone": [],
    "mean, last, how many": ["turn", "mean", "last"],
    "and forgetting, trend, least, most": ["turn", "mean", "last", "before", "recent", "trend",
                                           "least", "most"],
    "what text missed before": ["turn", "missed", "missed_recent", "missed_mean"],
    "all of these": ["turn", "mean", "last", "before", "recent", "trend", "least", "most",
                     "missed", "missed_recent", "missed_mean"],
}  # fmt: skip


def history(logs: pd.Series, session: np.ndarray) -> dict[str, pd.Series]:
    """Of each answer, statistics of those before it in its session."""
    by = logs.groupby(session)
    last, before = by.shift(1), by.shift(2)
    return {
        "last": last, "before": before, "trend": last - before,
        "mean": by.transform(lambda s: s.shift(1).expanding().mean()),
        "recent": by.transform(lambda s: s.shift(1).ewm(alpha=0.5).mean()),
        "least": by.transform(lambda s: s.shift(1).expanding().min()),
        "most": by.transform(lambda s: s.shift(1).expanding().max()),
    }  # fmt: skip


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(prog="python benchmarks/session_history.py")
    parser.add_argument("data", type=Path)
    rows = sessions(parser.parse_args().data)
    test, logs = in_split(rows["first"], "test"), np.log(rows["output_tokens"])
    turn, prompts = rows["previous_answers"], rows["prompt"]
    session = np.cumsum(turn == 0)
    train, held = np.flatnonzero(~test), np.flatnonzero(test)
    folds = folds_of(list(rows["first"][train]), 0)
    parts = [(train[folds != k], train[folds == k]) for k in range(int(folds.max()) + 1)]
    guess = np.empty(len(logs))
    for seen, out in [*parts, (train, held)]:
        design = Design.of(list(prompts[seen]), 0)
        weights, intercept = design.solve(logs[seen][:, None], 3.0)
        guess[out] = design.features.rows(list(prompts[out])).dot(weights)[:, 0] + intercept[0]
    columns = {"turn": turn, **history(pd.Series(logs), session)}
    missed = history(pd.Series(logs - guess), session)
    columns |= {"missed": missed["last"], "missed_mean": missed["mean"]}
    columns |= {"missed_recent": missed["recent"]}

    def linear(x: np.ndarray, seen: np.ndarray, out: np.ndarray) -> np.ndarray:
        z = np.nan_to_num((x - np.nanmean(x[seen], axis=0)) / (np.nanstd(x[seen], axis=0) + 1e-9))
        early = [(turn == k)[:, None] for k in (0, 1)]
        z = np.concatenate([z, *(z * mark for mark in early), *early], axis=1)
        return RidgeCV(np.logspace(-1, 3, 9)).fit(z[seen], logs[seen]).predict(z[out])

    def trees(x: np.ndarray, seen: np.ndarray, out: np.ndarray) -> np.ndarray:
        model = HistGradientBoostingRegressor(
            max_iter=120, learning_rate=0.06, max_leaf_nodes=8, l2_regularization=5, random_state=0
        )
        return model.fit(x[seen], logs[seen]).predict(x[out])

    print(
        "| beside the text's guess | model | cross-validated tau | other half |\n|---|---|---|---|"
    )
    for name, chosen in SETS.items():
        x = np.column_stack([guess, *(np.asarray(columns[c], float) for c in chosen)])
        for kind in (linear, trees):
            said = np.empty(len(logs))
            for seen, out in parts:
                said[out] = kind(x, seen, out)
            inside = kendalltau(said[train], logs[train])[0]
            outside = kendalltau(kind(x, train, held), logs[held])[0]
            print(f"| {name} | {kind.__name__} | {inside:.3f} | {outside:.3f} |", flush=True)


if __name__ == "__main__":
    main()
