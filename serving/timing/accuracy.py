"""What an estimate is worth: the rooflines beside the profiles of the same models."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import pandas as pd

from lengthwise.protocols import Batch
from lengthwise.serving.timing.load import PROFILES, shipped
from lengthwise.serving.timing.roofline import roofline

SAMPLE = 400
SHAPE = ("prefill_tokens", "prefill_seqs", "decode_seqs", "context_tokens", "chunk_context")


def error_of_roofline(seed: int = 0) -> dict[str, dict[str, float]]:
    """Mean relative error of each profile's roofline by regime, on iterations that were recorded.

    Measured against the fitted profile at the recorded shapes, which is free of the noise of
    single iterations, with the mean speed of its host's CPU. Regimes: "decode",
    "prefill" (alone) and "mixed".
    """
    table = {}
    for name, file in PROFILES.items():
        rows = recorded(file)
        drawn = rows.sample(min(SAMPLE * 3, len(rows)), random_state=seed)
        profile = shipped(name)
        profile = profile.with_factors(cpu=max(profile.about["cpu_speed"]["mean"], 1.0))
        measured = profile.tables(int(rows["tokens"].max()), int(rows["decode_seqs"].max()))
        estimate = roofline(name).tables(int(rows["tokens"].max()), int(rows["decode_seqs"].max()))
        shapes = drawn[list(SHAPE)].to_numpy(dtype=np.int64).tolist()
        batches = [Batch(*shape) for shape in shapes]
        errors = [estimate.iteration_ps(b) / measured.iteration_ps(b) - 1 for b in batches]
        off = pd.Series(np.abs(errors), index=drawn["regime"])
        table[name] = {str(regime): float(e) for regime, e in off.groupby(level=0).mean().items()}
    return table


def recorded(file: str) -> pd.DataFrame:
    """The shapes of a profile's recorded iterations."""
    stem = file.removesuffix(".json")
    path = files("lengthwise.serving.timing").joinpath("data", f"{stem}.iterations.parquet")
    with path.open("rb") as stream:
        rows = pd.read_parquet(stream)
    rows = rows[rows["new"] <= 10]
    prefill, decode = rows["prefill_tokens"] > 0, rows["decode_seqs"] > 0
    regime = np.where(~prefill, "decode", np.where(decode, "mixed", "prefill"))
    return rows.assign(regime=regime, tokens=rows["prefill_tokens"] + rows["decode_seqs"])
