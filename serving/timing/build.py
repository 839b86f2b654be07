"""From what was measured to a profile: the fit, its errors on held-out iterations, the JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lengthwise.errors import InputError
from lengthwise.serving.timing import fit as fitting
from lengthwise.serving.timing.errors import errors
from lengthwise.serving.timing.fit import Fit, Iterations
from lengthwise.serving.timing.profile import FORMAT, FORMAT_VERSION


def build_profile(
    name: str, iterations: pd.DataFrame, frontend: pd.DataFrame, about: dict[str, Any]
) -> dict[str, Any]:
    """A profile as a JSON object; ``iterations`` and ``frontend`` as ``measure_vllm`` records.

    The coefficients are fitted to all iterations; the errors under "errors" are those of a fit
    that did not see the iterations on which they are measured.
    """
    recorded = fitting.read_iterations(iterations, about["cudagraph_capture_sizes"])
    if recorded.usable.sum() < 500:
        raise InputError(
            f"{int(recorded.usable.sum())} usable iterations are too few for a profile; 500 are "
            "the least: measure for longer"
        )
    blind = fitting.fit(recorded)
    held_out = {
        "cpu_speed_known": errors(recorded, blind, recorded.held_out),
        "as_simulated": errors(recorded, blind, recorded.held_out, mean_speed=True),
    }
    whole = fitting.fit(recorded, hold_out=False)
    cpu = fitting.overheads(recorded)
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": name,
        **about,
        "iterations": len(iterations),
        "measured": measured(iterations),
        "cpu_speed": cpu_speed(recorded, whole),
        "errors": held_out,
        "fit": {
            "decode": whole.decode,
            "decode_context": whole.decode_context,
            "mixed": whole.mixed,
            "terms": whole.terms | cpu | fitting.frontend(frontend, cpu),
        },
    }


def measured(iterations: pd.DataFrame) -> dict[str, int]:
    """The most sequences that decoded alone, tokens and context of any recorded iteration."""
    done = iterations[iterations["done_ns"] > 0]
    alone = done[done["prefill_tokens"] == 0]
    return {
        "sequences": int(alone["decode_seqs"].max()),
        "tokens": int((done["prefill_tokens"] + done["decode_seqs"]).max()),
        "context": int(done["max_context"].max()),
    }


def cpu_speed(iterations: Iterations, fit: Fit) -> dict[str, float]:
    """How much longer the CPU took than at its best, over the windows that can tell."""
    mixed = np.bincount(fitting.windows(iterations), ~iterations.decode, len(fit.speeds))
    told = fit.speeds[mixed >= 3]
    return {
        "mean": float(told.mean()),
        "p10": float(np.quantile(told, 0.1)),
        "p90": float(np.quantile(told, 0.9)),
    }


def write_profile(profile: dict[str, Any], path: Path) -> None:
    """Writes a profile atomically, numbers at a precision that the measurement has."""

    def shorten(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.5g}")
        if isinstance(value, dict):
            return {key: shorten(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [shorten(item) for item in value]
        return value

    part = path.with_suffix(path.suffix + ".part")
    part.write_text(json.dumps(shorten(profile)) + "\n", "utf-8")
    part.replace(path)
